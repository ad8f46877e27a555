"""``nucfast demo``."""

from __future__ import annotations

from pathlib import Path

import click

from nucfast.cli.options import model_option


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("nucfast-demo"),
    show_default=True,
    help="Folder for the slide and the results.",
)
@click.option("--size-px", type=int, default=3000, show_default=True, help="Side of the slide, at 0.5 um/px.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, another slide.")
@model_option
def command(output: Path, size_px: int, seed: int, model: str) -> int:
    """Make a synthetic H&E slide with known nuclei, run on it, and compare. Needs no network and no data."""
    from nucfast.cli.infer import run_with_progress
    from nucfast.metrics import evaluate
    from nucfast.nuclei import Nuclei
    from nucfast.pipeline import infer
    from nucfast.slide import write_slide
    from nucfast.testing import synthetic_slide

    output.mkdir(parents=True, exist_ok=True)
    path = output / "synthetic.svs"
    made = synthetic_slide(size_px, size_px, seed=seed)
    write_slide(path, made.image, mpp=made.mpp)
    report = run_with_progress(
        lambda on_event: infer(path, output / "results", model=model, overwrite=True, on_event=on_event)
    )
    if report.exit_code:
        return report.exit_code
    folder = Path(report.slides[0].folder)
    nuclei = Nuclei.read(folder / "nuclei.parquet")
    scores = evaluate([made.labels], [nuclei.to_labels(made.labels.shape)])
    click.echo(
        f"nuclei found {len(nuclei):,}, made {scores.true_nuclei:,}; F1 at IoU 0.5 {scores.f1_50:.3f}, "
        f"AJI {scores.aji:.3f}"
    )
    click.echo(f"look at {folder / 'overlay.png'}; open {path} in QuPath and drop nuclei.geojson.gz on it")
    return 0
