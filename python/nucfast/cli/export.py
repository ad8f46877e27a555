"""``nucfast export``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nucfast.engine import load_bundle
from nucfast.engine.bundle import MANIFEST
from nucfast.errors import NucfastError, require

FORMATS = ("onnx", "openvino", "tensorrt", "tensorrt-rtx")
WEIGHTS = "weights.safetensors"


@click.command("export")
@click.argument("source", metavar="CHECKPOINT|BUNDLE")
@click.option("--to", "format", type=click.Choice(FORMATS), default="onnx", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(("fp32", "fp16", "bf16", "int8")),
    default="fp32",
    show_default=True,
    help="The arithmetic of the file.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the bundle; default: add the file to BUNDLE.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Data set to check on, as for `nucfast evaluate`.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Data set from which int8 takes its ranges, again for each; default: that of --data.",
)
@click.option(
    "--recipe",
    help="Name or path of the recipe whose [bundle] counts, instead of the checkpoint's own.",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Results of `nucfast evaluate --json` for the bundle to state.",
)
@click.option("--tile-px", type=int, help="Largest tile of a TensorRT engine; default: the model's.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Largest batch of a TensorRT engine; default: 16, fewer for tiles of more than 1536 px.",
)
def command(
    source: str,
    format: str,
    precision: str,
    output: Path | None,
    data: Path | None,
    calibrate: tuple[Path, ...],
    recipe: str | None,
    scores: tuple[Path, ...],
    tile_px: int | None,
    batch: int | None,
) -> None:
    """Write a bundle from a training run, or add a file for another precision or library to a bundle.

    Real tiles go through what it was made from and through the result; a file that differs too much, or that
    loses more than 0.005 PQ or AJI on the validation images, is not written.
    """
    for module in ("onnx", "torch"):
        require(module, extra="train", purpose="nucfast export")
    require("onnxruntime", extra="cpu", purpose="nucfast export")
    from nucfast_export.run import export_run
    from nucfast_export.variants import CHECK_TILES, add_variant, read_tiles
    from nucfast_training.recipe import load_recipe

    path = Path(source)
    run = path.parent if path.name == WEIGHTS else path
    if (run / WEIGHTS).is_file() and not (run / MANIFEST).is_file():
        if output is None:
            raise NucfastError(f"{source}: say where the bundle goes, with -o FOLDER")
        report = export_run(
            run,
            output,
            recipe=load_recipe(recipe).table if recipe else None,
            scores=[json.loads(file.read_text()) for file in scores],
            tiles=lambda bundle: read_tiles(data, "val", bundle, CHECK_TILES) if data else [],
        )
        for row in report.differences:
            _say(row.engine, row.output, row.largest, row.mean)
        click.echo(f"{output / 'model.onnx'}: {report.file_bytes / 1e6:.2f} MB")
        bundle = report.bundle
        if (format, precision) == ("onnx", "fp32"):
            return
    else:
        bundle = load_bundle(source, without=(format, precision))
        if output is None and (bundle.path is None or not bundle.path.is_dir()):
            raise NucfastError(f"{source}: a zip is not written to; give -o FOLDER")
    if data is None:
        raise NucfastError(f"--precision {precision}: give --data DATASET, to check the file on its images")
    assert bundle.path is not None
    directory = output or bundle.path
    added = add_variant(
        bundle,
        directory,
        format=format,
        precision=precision,
        data=data,
        calibrate=calibrate,
        tile_px=tile_px,
        batch=batch,
    )
    for row in added.differences:
        _say(row.engine, row.output, row.largest, row.mean)
    for name in ("pq", "aji"):
        before, after = getattr(added.before, name), getattr(added.after, name)
        click.echo(f"{name.upper()} on {data.name}: {before:.4f} -> {after:.4f} ({after - before:+.4f})")
    size = len(added.bundle.read_file(added.variant.file))
    click.echo(f"{directory / added.variant.file}: {size / 1e6:.2f} MB")


def _say(engine: str, output: str, largest: int, mean: float) -> None:
    click.echo(f"{engine}: {output} differs by {mean:.3f} grey levels in the mean, {largest} at most")
