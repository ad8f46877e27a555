"""``nucfast export``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from nucfast.engine import Bundle, Difference, create_engine, load_bundle, write_bundle
from nucfast.engine.bundle import MANIFEST, MODEL, VARIANT_PRECISIONS, check_target
from nucfast.errors import NucfastError, require

FORMATS = ("onnx", "openvino", "tensorrt", "tensorrt-rtx")
ONNX_FP32 = ("onnx", "fp32")  # what every bundle has
SCORES = ("pq", "aji")


@click.command("export")
@click.argument("source", metavar="RUN|BUNDLE")
@click.option("--to", "format", type=click.Choice(FORMATS), default="onnx", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(VARIANT_PRECISIONS),
    default="fp32",
    show_default=True,
    help="The arithmetic of the file.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the bundle, a new one; default: add the file to BUNDLE.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Images to check on, those of the split val: a data set as for `nucfast evaluate`, or the --data of "
    "`nucfast train`; default for a training run: what it was trained with.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="The same, for the ranges of int8, which are those of the split train; default: --data.",
)
@click.option(
    "--recipe",
    help="Name or path of the recipe whose [bundle] counts, instead of the run's own.",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Results of `nucfast evaluate --json` for a run's bundle to state.",
)
@click.option(
    "--tile-px",
    type=click.IntRange(min=1),
    help="Largest tile of a TensorRT engine, a multiple of the model's stride; default: the model's.",
)
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

    Real tiles go through what it was made from and through the result, and the validation images are scored;
    a file that differs too much, or that loses more than 0.005 PQ or AJI, is not written.
    """
    if not format.startswith("tensorrt") and (tile_px is not None or batch is not None):
        raise click.UsageError(f"--tile-px and --batch are of TensorRT engines; --to {format} takes any size")
    if precision != "int8" and calibrate:
        raise click.UsageError(f"--calibrate is for --precision int8, not {precision}")
    for module in ("onnx", "torch", "cv2", "safetensors"):
        require(module, extra="train", purpose="nucfast export")
    require("onnxruntime", extra="cpu", purpose="nucfast export")
    from nucfast_export.run import data_of_run
    from nucfast_training.recipe import load_recipe
    from nucfast_training.start import WEIGHTS_FILE

    path = Path(source)
    run = path.parent if path.name == WEIGHTS_FILE else path
    of_run = (run / WEIGHTS_FILE).is_file() and not (run / MANIFEST).is_file()
    bundle = None if of_run else load_bundle(source, without=(format, precision))
    if bundle is None and output is None:
        raise NucfastError(f"{source}: say where the bundle goes, with -o FOLDER")
    if bundle is not None:
        if recipe or scores:
            raise click.UsageError(f"--recipe and --scores are for a training run; {source} is a bundle")
        if output is None and not (bundle.path and bundle.path.is_dir()):
            raise NucfastError(f"{source}: a zip is not written to; give -o FOLDER")
        output = output or bundle.path
    if data is None and of_run:
        data = data_of_run(run)
    if data is None:
        raise NucfastError(
            f"{source}: give the images to check on with --data: a data set, or what it was trained with"
        )
    assert output is not None
    check_target(output, overwrite=bundle is not None and output == bundle.path)
    wanted = {"format": format, "precision": precision, "tile_px": tile_px}
    # A run's bundle takes its place once all that is to be in it has been checked.
    with tempfile.TemporaryDirectory() as scratch:
        if bundle is None:
            table = load_recipe(recipe).table if recipe else None
            stated = [_read_scores(file) for file in scores]
            bundle = _of_run(run, Path(scratch) / "bundle", data, wanted, recipe=table, scores=stated)
            if (format, precision) == ONNX_FP32:
                _write(bundle, output, data)
                return
        _add(bundle, output, data, **wanted, calibrate=calibrate, batch=batch)


def _of_run(run: Path, out: Path, data: Path, wanted: dict[str, Any], **stated: Any) -> Bundle:
    """The bundle of a run, compared with it, once it is certain that what is ``wanted`` can be made."""
    from nucfast_export.images import read_tiles
    from nucfast_export.run import export_run
    from nucfast_export.variants import CHECK_TILES, check_variant

    def tiles(bundle: Bundle) -> Any:
        if (wanted["format"], wanted["precision"]) != ONNX_FP32:
            check_variant(bundle, **wanted)
        return read_tiles(data, "val", bundle, CHECK_TILES)

    report = export_run(run, out, tiles=tiles, **stated)
    _say(report.differences)
    why = f" ({report.fallback_reason})" if report.fallback_reason else ""
    click.echo(f"exported by {report.exporter}{why}, opset {report.opset}")
    bundle: Bundle = report.bundle
    return bundle


def _write(bundle: Bundle, output: Path, data: Path) -> None:
    """Score the bundle of a run and write it."""
    from nucfast_export.images import score

    after = score(data, engine=create_engine(bundle, device="cpu", precision="fp32"))
    for name in SCORES:
        click.echo(f"{_on_val(name, data)}: {getattr(after, name):.4f}")
    _say_written(write_bundle(output, bundle, {MODEL: bundle.model_bytes()}), (MODEL,), output)


def _add(bundle: Bundle, output: Path, data: Path, **wanted: Any) -> None:
    """Add a file."""
    from nucfast_export.variants import add_variant

    added = add_variant(bundle, output, data=data, **wanted)
    _say(added.differences)
    for name in SCORES:
        before, after = getattr(added.before, name), getattr(added.after, name)
        click.echo(f"{_on_val(name, data)}: {before:.4f} -> {after:.4f} ({after - before:+.4f})")
    _say_written(added.bundle, added.variant.files, output)


def _read_scores(file: Path) -> dict[str, Any]:
    from nucfast_export.run import accuracy_of

    try:
        scores: dict[str, Any] = json.loads(file.read_text())
        accuracy_of(scores)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.BadParameter(
            f"{file}: expected what  nucfast evaluate --json  writes ({type(error).__name__}: {error})",
            param_hint="--scores",
        ) from error
    return scores


def _say(differences: Iterable[Difference]) -> None:
    for row in differences:
        click.echo(
            f"{row.engine}: {row.output} differs by {row.mean:.3f} grey levels in the mean, "
            f"{row.largest} at most"
        )


def _on_val(name: str, data: Path) -> str:
    return f"{name.upper()} on val of {data.resolve().name}"


def _say_written(bundle: Bundle, files: Sequence[str], output: Path) -> None:
    for file in files:
        click.echo(f"{output / file}: {len(bundle.read_file(file)) / 1e6:.2f} MB")
