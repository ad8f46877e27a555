"""``nucfast train``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nucfast.cli.allocator import keep_memory
from nucfast.errors import require


@click.command("train")
@click.argument("recipe")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one setting of the recipe."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="NUCFAST_DATA",
    help="Folder that holds the recipe's sets, or your own annotated images.  [env var: NUCFAST_DATA]",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/NAME]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--max-seconds", type=float, default=math.inf, help="Stop by then; the schedule fits.")
@click.option(
    "--smoke", is_flag=True, help="A few steps of small patches, on synthetic images without --data."
)
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard's event files.")
def command(recipe: str, **settings: Any) -> int:
    """Train RECIPE: the name of one that comes with nucfast, or a TOML file.

    The recipe "fine-tune" goes on from a model that comes with nucfast, on your own annotated images. An
    interrupted run goes on where it stopped when the command is given again.
    """
    for module in ("torch", "cv2", "safetensors", "matplotlib"):
        require(module, extra="train", purpose="nucfast train")
    if settings["smoke"] and click.get_current_context().get_parameter_source("data") is not (
        click.core.ParameterSource.COMMANDLINE
    ):
        settings["data"] = None  # what lies in NUCFAST_DATA may lack this recipe's sets
    keep_memory()
    run = importlib.import_module("nucfast_training.run")
    failed = 0

    def work(on_event: Callable[[dict[str, Any]], None]) -> list[Any]:
        def tell(event: dict[str, Any]) -> None:
            nonlocal failed
            failed += event["event"] == "failed"
            on_event(event)

        reports: list[Any] = run.run_recipe(recipe, on_event=tell, **settings)
        return reports

    for report in run_with_progress(work):
        click.echo(
            f"{report.out}: {report.steps:,} steps in {report.seconds:.0f} s ({report.stopped}); "
            f"best {report.metric} {report.best:.4f}"
        )
    return min(failed, 1)


def run_with_progress(work: Callable[[Callable[[dict[str, Any]], None]], list[Any]]) -> list[Any]:
    """Show a training on stderr: a bar for the steps, a line per validation."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("reading", total=None, loss="")

        def show(event: dict[str, Any]) -> None:
            kind = event["event"]
            if kind == "step":
                progress.update(
                    bar, completed=event["step"], total=event["steps"], loss=f"loss {event['loss']:.4f}"
                )
            elif kind == "start":
                progress.update(bar, description=event["name"], completed=event["step"], total=event["steps"])
                console.print(
                    f"{event['name']} on {event['device']} ({event['precision']}): "
                    f"{event['parameters'] / 1e6:.2f} M parameters, {event['patches']:,} patches an epoch, "
                    f"{event['val_patches']:,} for validation",
                    markup=False,
                    soft_wrap=True,
                )
            elif kind in {"message", "failed"}:
                console.print(event["message"], markup=False, soft_wrap=True)
            elif kind == "log" and "val" in event:
                scores = "  ".join(f"{name} {value:.4f}" for name, value in event["val"].items())
                best = " *" if event["best"] else ""
                console.print(f"step {event['step']:,}: {scores}{best}", markup=False, soft_wrap=True)

        return work(show)
