"""A recipe run as a user asks for it: by name, with changes, a whole sweep, or small to see if it runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nucfast_training.errors import RecipeError, TrainingError
from nucfast_training.recipe import load_recipe
from nucfast_training.smoke import IMAGES, made_small, make_data
from nucfast_training.train import Event, TrainReport, train


def run_recipe(
    name: str | Path,
    *,
    changes: Sequence[str] = (),
    data: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    max_seconds: float = math.inf,
    smoke: bool = False,
    tensorboard: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> list[TrainReport]:
    """Train a recipe, or each variant of its sweep.

    Args:
        name: of a shipped recipe, or the path of a TOML file.
        changes: settings as "table.key=value".
        data: folder that holds the recipe's sets; with ``smoke`` it may be left out.
        out: folder of the run; None: "runs/" and the recipe's name, with "-smoke" where it is that. Variants
            get folders in it, and ``sweep.json`` compares them.
        device: "auto", "cpu", "cuda" or "cuda:N".
        max_seconds: for all variants together.
        smoke: four steps of small patches on two images of each set, or on synthetic ones.
        tensorboard: also write TensorBoard's event files.
        on_event: as in ``train``.

    Returns:
        One report per variant that was trained to its end; what stopped the others is in ``sweep.json``.

    Raises:
        NucfastError: recipe, data or device cannot be used, or a run cannot go on.
    """
    recipe = load_recipe(name, changes)
    if not max_seconds >= 0:
        raise TrainingError(f"--max-seconds: expected a number from 0 on, got {max_seconds}")
    folder = out or Path("runs") / (f"{recipe.name}-smoke" if smoke else recipe.name)
    variants = recipe.variants()
    reports = []
    rows: dict[str, Any] = {}
    began = time.monotonic()
    for i, (variant, chosen) in enumerate(variants.items()):
        settings = made_small(chosen) if smoke else chosen
        place = data
        if place is None:
            if not smoke:
                raise RecipeError("--data: give the folder that holds the sets, or set NUCFAST_DATA")
            place = folder / "data"
            make_data(settings, place)
        left = max(0.0, max_seconds - (time.monotonic() - began))
        try:
            report = train(
                settings,
                data=place,
                out=folder / variant,
                device=device,
                max_seconds=left / (len(variants) - i),
                limit=IMAGES if smoke else 0,
                tensorboard=tensorboard,
                on_event=on_event,
            )
        except TrainingError as error:
            # Of a sweep the others are run: which rates are too high is what it may be there to find.
            if not recipe.sweep:
                raise
            rows[variant] = {"error": str(error)}
            on_event({"event": "failed", "message": f"{variant}: {error}"})
        else:
            reports.append(report)
            rows[variant] = asdict(report) | {"out": str(report.out)}
        if recipe.sweep:
            (folder / "sweep.json").write_text(json.dumps(rows, indent=2) + "\n")
    if not reports:
        raise TrainingError(f"{recipe.name}: no variant could be trained; {folder / 'sweep.json'} says why")
    return reports
