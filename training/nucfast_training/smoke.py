"""Any recipe made small: a few steps on synthetic images, to see that it runs from end to end."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nucfast.testing import SyntheticSlide, synthetic_slide
from nucfast_training.networks import build_network
from nucfast_training.recipe import Recipe, SetSettings, merge

STEPS = 4
IMAGES = 2  # per split
SYNTHETIC_MPP = 0.5


def made_small(recipe: Recipe) -> Recipe:
    """The same recipe with four steps of two small patches, no teacher, and an end to sweeps."""
    stride = int(build_network(recipe.table).stride_px)  # type: ignore[arg-type]
    small: dict[str, Any] = {
        "name": f"{recipe.name}-smoke",  # so that a real run never goes on from it
        "patches": {"batch": 2, "size_px": max(64, 2 * stride)},
        "optimiser": {"steps": STEPS, "epochs": 0.0, "warmup_steps": 1},
        # Files that the user's run will have.
        "start": {"runs": [], **dict.fromkeys(("grow", "shrink", "refine", "encoder"), "")},
        "teacher": {"bundle": ""},  # it takes seconds per image
        "validation": {"every_steps": STEPS, "every_epochs": 0.0, "patches": 2, "patience": 0},
    }
    if recipe.network["kind"] == "ensemble":
        small["optimiser"]["steps"] = 0
    table = merge(json.loads(json.dumps(recipe.table)), small)
    for entry in table["sets"]:
        if entry.get("layout") == "annotations":
            entry.setdefault("mpp", SYNTHETIC_MPP)  # which a user has to give
    return Recipe.of(table)


def make_data(recipe: Recipe, root: Path) -> None:
    """Write synthetic sets where, and in the layout in which, the recipe looks for its own."""
    # A set may be there several times, for several modalities: its folder is written once.
    for entry in {entry.name: entry for entry in recipe.sets}.values():
        folder = root / entry.name
        if entry.layout == "pannuke":
            _write_pannuke(folder, entry)
        elif entry.layout == "annotations":
            _write_annotations(folder)
        else:
            modalities = [other.modality for other in recipe.sets if other.name == entry.name]
            _write_manifest(folder, modalities, recipe, entry.mpp or SYNTHETIC_MPP)


@lru_cache(maxsize=2 * IMAGES)
def _made(seed: int) -> SyntheticSlide:
    return synthetic_slide(160, 144, mpp=SYNTHETIC_MPP, nuclei_per_mm2=5000, seed=seed)


def _write_manifest(folder: Path, modalities: Sequence[str], recipe: Recipe, mpp: float) -> None:
    for name in ("images", "labels", "types"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    raw = [0, *(int(key) for key in (recipe.classes.raw if recipe.classes else {"1": 1}))]
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "image", "modality", "mpp"])
        for split, modality in product(("train", "val"), modalities):
            for i in range(IMAGES):
                name = f"{split}_{modality}{i}"
                made = _made(i + IMAGES * (split == "val"))
                writer.writerow([name, split, f"images/{name}.png", modality, mpp])
                Image.fromarray(made.image).save(folder / "images" / f"{name}.png")
                Image.fromarray(made.labels.astype(np.uint16)).save(folder / "labels" / f"{name}.png")
                kinds = np.array(raw, np.uint8)[1 + made.labels % (len(raw) - 1)] * (made.labels > 0)
                if recipe.classes is not None:
                    Image.fromarray(kinds.astype(np.uint8)).save(folder / "types" / f"{name}.png")


def _write_pannuke(folder: Path, entry: SetSettings) -> None:
    for fold in {fold for folds in entry.folds.values() for fold in folds}:
        images = np.zeros((IMAGES, 256, 256, 3), np.float64)
        masks = np.zeros((IMAGES, 256, 256, 6), np.float64)
        for i in range(IMAGES):
            made = synthetic_slide(256, 256, mpp=0.25, nuclei_per_mm2=5000, seed=10 * fold + i)
            images[i] = made.image
            for kind in range(5):
                masks[i, ..., kind] = np.where(made.labels % 5 == kind, made.labels, 0)
            masks[i, ..., 5] = made.labels == 0
        for name, array in (("images", images), ("types", np.array(["Colon"] * IMAGES)), ("masks", masks)):
            place = folder / f"Fold {fold}" / ("masks" if name == "masks" else "images") / f"fold{fold}"
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / f"{name}.npy", array)


def _write_annotations(folder: Path) -> None:
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    for i in range(2 * IMAGES):
        made = _made(i)
        Image.fromarray(made.image).save(folder / f"{i}.png")
        Image.fromarray(made.labels.astype(np.uint16)).save(folder / "labels" / f"{i}.png")
