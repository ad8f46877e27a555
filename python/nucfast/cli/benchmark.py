"""``nucfast benchmark``."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click

from nucfast.cli.options import model_option
from nucfast.engine import ENGINES, PRECISIONS, Speed, available_cpus, load_bundle, measure_speed
from nucfast.engine.create import check_device_name
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
@model_option
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
@click.option(
    "--tile-px",
    "sides",
    type=click.IntRange(min=1),
    multiple=True,
    help="Side of the tiles, a multiple of the model's stride; default: the model's.",
)
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, default=(1,), show_default=True
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="How long to measure each row.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Also write the rows, and what was left out, to this file.",
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
    bundle = load_bundle(model)
    for side in sides:
        if side % bundle.stride_px:
            raise click.BadParameter(
                f"expected a multiple of {bundle.stride_px}, got {side}", param_hint="--tile-px"
            )
    check_device_name(device)
    if json_path is not None and not os.access(json_path.parent, os.W_OK):
        raise click.BadParameter(f"{json_path.parent} is no folder to write to", param_hint="--json")
    rows: list[Speed] = []
    left_out: list[dict[str, Any]] = []
    for engine, precision, side, batch in product(
        engines or COMPARED, precisions or PRECISIONS[1:], sides or (bundle.tile_px,), batches
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
            click.echo(f"left out: {engine} {precision}: {error}", err=True)
            asked = {"engine": engine, "precision": precision, "tile_px": side, "batch": batch}
            left_out.append(asked | {"reason": str(error)})
            continue
        if not rows:
            click.echo("".join(_cell(name, name) for name in COLUMNS))
        click.echo("".join(_cell(name, getattr(row, name)) for name in COLUMNS))
        rows.append(row)
    if json_path is not None:
        machine = {"cpus": available_cpus(), "processor": _processor(), "platform": platform.platform()}
        text = {
            "nucfast": VERSION,
            "model": model,
            "machine": machine,
            "rows": [asdict(row) for row in rows],
            "left_out": left_out,
        }
        try:
            json_path.write_text(json.dumps(text, indent=2) + "\n")
        except OSError as error:  # of a full disk it does not know the file
            raise NucfastError(f"{json_path}: {error.strerror}; make room, or name another place") from error
    return 0 if rows else 1


def _cell(name: str, value: object) -> str:
    return f"{value!s:<13}" if name in WORDS else f"{value!s:>12}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
