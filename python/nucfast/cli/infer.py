"""``nucfast infer``."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nucfast.cli.options import network_options
from nucfast.output import FORMATS
from nucfast.pipeline import Event, InferConfig, RunReport, infer


@click.command("infer")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the results.",
)
@network_options
@click.option("--threads", type=int, help="Processor threads; default: all that this process may use.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(list(FORMATS)),
    multiple=True,
    default=InferConfig.formats,
    show_default=True,
    help="May be given several times.",
)
@click.option(
    "--overlay/--no-overlay", default=InferConfig.overlay, help="Write a picture with the outlines."
)
@click.option(
    "--mpp", type=float, help="um per pixel, for slides that do not say (0.25 for 40x, 0.5 for 20x)."
)
@click.option(
    "--region-px", type=int, help="Side of a unit of work; default: 2048 for int8 on a CPU, else 4096."
)
@click.option(
    "--batch",
    type=int,
    default=InferConfig.batch,
    show_default=True,
    help="Tiles in the network at once, on each GPU if there are several.",
)
@click.option(
    "--tissue-only/--whole-slide",
    default=InferConfig.tissue_only,
    help="Leave out regions without tissue, or not.",
)
@click.option(
    "--roi",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Analyse only inside these polygons: GeoJSON or WKT.",
)
@click.option(
    "--exclude",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Analyse nothing inside these polygons: GeoJSON or WKT.",
)
@click.option(
    "--tissue-mask",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Image of the whole slide, black where nothing is analysed, instead of finding the tissue.",
)
@click.option(
    "--allow-unreadable",
    is_flag=True,
    help="Take what cannot be read of a slide for empty, listed in run.json; without it the slide fails.",
)
@click.option(
    "--max-memory", help="What the run may take, such as 2G; default: a quarter of what this process may use."
)
@click.option(
    "--shard",
    callback=lambda ctx, param, value: parse_shard(value),
    metavar="I/N",
    help='Do the I-th of N parts of the work; "slurm": as SLURM_ARRAY_TASK_ID says.',
)
@click.option(
    "--dask", metavar="ADDRESS", help='Dask scheduler whose workers do the regions, or "local" for one here.'
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--overwrite", is_flag=True, help="Do finished slides again; without it they are skipped.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as one JSON object per line.")
def command(inputs: tuple[str, ...], output: Path, as_json: bool, **settings: Any) -> int:
    """Outline and classify every nucleus of slides.

    INPUT is a slide, a folder of slides, a glob pattern or a CSV file with the columns path and mpp. Each
    slide gets a folder below OUTPUT; an interrupted run goes on where it stopped when the command is given
    again. The same command given several times at once, here or on other machines, shares the work.
    """
    settings["formats"] = tuple(dict.fromkeys(settings["formats"]))
    if as_json:
        report = infer(inputs, output, on_event=lambda event: click.echo(json.dumps(event)), **settings)
    else:
        report = run_with_progress(lambda on_event: infer(inputs, output, on_event=on_event, **settings))
    return report.exit_code


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """(i, n) from "i/n", or from the variables of a SLURM job array."""
    if text is None:
        return None
    if text == "slurm":
        names = ("ID", "MIN", "MAX", "COUNT", "STEP")
        texts = [os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names]
        if not all(re.fullmatch("[0-9]+", text) for text in texts):
            said = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
            raise click.BadParameter(
                f"slurm: expected numbers in SLURM_ARRAY_TASK_{{{','.join(names)}}}, got {said}; "
                "use sbatch --array, or give --shard I/N"
            )
        task, first, last, count, step = map(int, texts)
        tasks = range(first, last + 1, max(step, 1))
        if step == 0 or task not in tasks or len(tasks) != count:
            raise click.BadParameter(
                f"slurm: expected an array of even steps, such as 0-15, got {count} tasks from {first} to "
                f"{last} in steps of {step}; give --shard $SLURM_ARRAY_TASK_ID/N, with tasks from 1 to N"
            )
        return tasks.index(task) + 1, count
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise click.BadParameter(f"expected I/N, such as 3/8, or slurm, got {text!r}")
    return int(match[1]), int(match[2])


def run_with_progress(work: Callable[[Callable[[Event], None]], RunReport]) -> RunReport:
    """Show a run: progress and summary on stderr, one line per finished slide on stdout."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=None, note="")
        nuclei = 0
        files = ""

        def show(event: Event) -> None:
            nonlocal nuclei, files
            kind = event["event"]
            if kind == "run":
                files = ", ".join(event["files"])
                console.print(
                    f"{event['model']} on {event['engine']}; {event['slides']} input(s)", markup=False
                )
            elif kind == "slide":
                nuclei = 0
                name = Path(event["slide"]).name
                progress.reset(
                    bar, description=name, total=event["regions"], completed=event["done"], note=""
                )
            elif kind == "region":
                nuclei += event["nuclei"]
                note = f"{nuclei:,} nuclei  {event['mm2_per_s']:.2f} mm2/s"
                progress.update(bar, completed=event["done"], note=note)
            elif kind == "failed":
                console.print(f"failed: {event['error']}", style="red", markup=False, soft_wrap=True)
            elif kind in ("planned", "partial"):
                note = f"{event['regions']} regions, {event['analysed_mm2']:.2f} mm2 to analyse"
                if kind == "partial":
                    note += "; this shard's are done"
                made = f": {files}" if kind == "planned" else ""
                progress.stop()
                click.echo(f"{event['slide']}: {note} -> {event['folder']}{made}")
                progress.start()
            elif kind in ("done", "skipped"):
                counts = ", ".join(f"{name} {number:,}" for name, number in event["counts"].items())
                note = f"{event['seconds']:.1f} s" if kind == "done" else "finished earlier"
                progress.stop()
                click.echo(
                    f"{event['slide']}: {event['nuclei']:,} nuclei ({counts}), {note} -> {event['folder']}"
                )
                progress.start()

        report = work(show)
    if report.stages.seconds:
        table = Table()
        table.add_column("stage")
        table.add_column("seconds", justify="right")
        table.add_column("Mpx/s per thread", justify="right")
        table.add_column("idle", justify="right")
        for row in report.stages.rows():
            speed = f"{row['mpx_per_s']:.1f}" if row["mpx_per_s"] else "-"
            idle = "-" if row["idle"] is None else f"{row['idle']:.0%}"
            table.add_row(str(row["stage"]), f"{row['seconds']:.2f}", speed, idle)
        console.print(table)
        console.print(
            f"{report.seconds:.1f} s in all; bottleneck: {report.stages.bottleneck()}", markup=False
        )
    if report.failed:
        count = len(report.failed)
        where = "above" if report.manifest is None else f"above and in {report.manifest}"
        click.echo(f"{count} of {len(report.slides)} inputs failed; reasons {where}", err=True)
    sys.stdout.flush()
    return report
