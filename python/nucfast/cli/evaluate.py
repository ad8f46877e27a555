"""``nucfast evaluate``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from nucfast.cli.options import network_options
from nucfast.engine import create_engine, load_bundle
from nucfast.errors import DatasetError
from nucfast.pipeline import evaluate_dataset
from nucfast.slide.mpp import check_option


@click.command("evaluate")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--split", default="val", show_default=True, help="Rows of manifest.csv to use.")
@network_options
@click.option("--mpp", type=float, help="um per pixel, for images whose row of the manifest states none.")
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only rows with this value, such as modality=fluorescence.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Also write the scores to this file."
)
def command(
    dataset: Path,
    split: str,
    model: str,
    device: str,
    engine: str,
    precision: str,
    mpp: float | None,
    where: tuple[str, ...],
    json_path: Path | None,
) -> None:
    """Score a model on DATASET: a folder with manifest.csv, images/, labels/ and maybe types/."""
    check_option(mpp)
    for item in where:
        if "=" not in item:
            raise DatasetError(f"--where {item}: expected COLUMN=VALUE, such as modality=fluorescence")
    wanted = dict(item.partition("=")[::2] for item in where)
    runner = create_engine(load_bundle(model), engine=engine, device=device, precision=precision)
    click.echo(f"{model} on {runner.description}", err=True)
    started = time.perf_counter()
    scores = evaluate_dataset(
        dataset,
        engine=runner,
        split=split,
        mpp=mpp,
        where=wanted,
        on_image=lambda name, nuclei: click.echo(f"{name}: {len(nuclei)} nuclei", err=True),
    )
    result = {
        "model": model,
        "dataset": dataset.name,
        "split": split,
        **scores.as_dict(),
        "seconds": round(time.perf_counter() - started, 3),
    }
    for key, value in result.items():
        if isinstance(value, dict):
            for name, figures in value.items():
                click.echo(f"{key}.{name}  " + "  ".join(f"{k} {_number(v)}" for k, v in figures.items()))
        else:
            click.echo(f"{key}  {_number(value)}")
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n")


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
