"""``nucfast benchmark``."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from itertools import product
from pathlib import Path

import click

from nucfast.engine import ENGINES, PRECISIONS, Speed, available_cpus, load_bundle, measure_speed
from nucfast.errors import NucfastError
from nucfast.pipeline import InferConfig
from nucfast.version import VERSION

WORDS = ("engine", "precision")
NUMBERS = (
    "tile_px",
    "batch",
    "mpx_per_s",
    "mm2_per_s",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "peak_mb",
    "first_run_s",
)
COLUMNS = (*WORDS, *NUMBERS)
COMPARED = tuple(name for name in ENGINES if name not in {"auto", "pytorch"})


@click.command("benchmark")
@click.option("--model", default=InferConfig.model, show_default=True, help="A model's name or path.")
@click.option(
    "--engine",
    "engines",
    type=click.Choice(ENGINES),
    multiple=True,
    help="May be given several times; default: all that run here, but pytorch.",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="May be given several times; default: all that run here.",
)
@click.option("--device", default=InferConfig.device, show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--tile-px", "sides", type=int, multiple=True, help="Side of the tiles; default: the model's.")
@click.option("--batch", "batches", type=int, multiple=True, default=(1,), show_default=True)
@click.option("--seconds", type=float, default=3.0, show_default=True, help="How long to measure each row.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Also write the rows to this file."
)
def command(
    model: str,
    engines: tuple[str, ...],
    precisions: tuple[str, ...],
    device: str,
    sides: tuple[int, ...],
    batches: tuple[int, ...],
    seconds: float,
    json_path: Path | None,
) -> int:
    """Time a model on the engines of this machine: uint8 tiles in, maps out.

    Every row has a process of its own. What cannot run here is left out, with the reason. Compare only rows
    of one run on a machine that does nothing else.
    """
    load_bundle(model)
    rows: list[Speed] = []
    for engine, precision, side, batch in product(
        engines or COMPARED, precisions or PRECISIONS[1:], sides or (None,), batches
    ):
        try:
            row = measure_speed(
                model,
                engine=engine,
                device=device,
                precision=precision,
                tile_px=side,
                batch=batch,
                seconds=seconds,
            )
        except NucfastError as error:
            click.echo(f"left out: {error}", err=True)
            continue
        if not rows:
            click.echo("".join(_cell(name, name) for name in COLUMNS))
        click.echo("".join(_cell(name, getattr(row, name)) for name in COLUMNS))
        rows.append(row)
    if json_path is not None:
        machine = {"cpus": available_cpus(), "processor": _processor(), "platform": platform.platform()}
        text = {"nucfast": VERSION, "model": model, "machine": machine, "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(text, indent=2) + "\n")
    return 0 if rows else 1


def _cell(name: str, value: object) -> str:
    return f"{value!s:<13}" if name in WORDS else f"{value!s:>12}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
