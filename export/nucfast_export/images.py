"""The annotated images that files are checked on: a data set, or what the model itself was trained on."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.base import Engine
from nucfast.engine.bundle import Bundle
from nucfast.errors import DatasetError
from nucfast.metrics import Scores, evaluate
from nucfast.pipeline.evaluate import dataset_rows, evaluate_dataset, row_mpp
from nucfast.pipeline.in_memory import segment
from nucfast.slide import open_slide
from nucfast_training.data import Sample, read_sets
from nucfast_training.recipe import Recipe

TILE_PX = 512


def read_tiles(data: Path, split: str, bundle: Bundle, count: int) -> list[NDArray[np.uint8]]:
    """(1, h, w, 3) uint8 tiles at the bundle's mpp, one from each of ``count`` images spread over a split.

    Images of less than a stride, which hold no tile, are left out.

    Args:
        data: a data set as for ``nucfast evaluate``, or the folder that was given to ``nucfast train``.
        split: "train" or "val".
        bundle: the model.
        count: how many, or fewer where there are no more.

    Raises:
        DatasetError: the folder is neither, or an image cannot be read, or none holds a tile.
    """
    sources: list[tuple[Any, float]]
    if _is_data_set(data, bundle):
        rows = dataset_rows(data, split, {})
        sources = [(data / row["image"], row_mpp(data, row) or bundle.mpp) for row in rows]
    else:
        sources = [(sample.image, sample.mpp) for sample in _samples(data, split, bundle, limit=count)]
    tiles = []
    for source, mpp in sources[:: max(1, len(sources) // count)][:count]:
        with open_slide(source, mpp=mpp) as slide:
            width, height = (
                min(TILE_PX, round(side * mpp / bundle.mpp)) // bundle.stride_px * bundle.stride_px
                for side in slide.dimensions
            )
            if width and height:
                tiles.append(slide.read(0, 0, width, height, mpp=bundle.mpp)[None])
    if not tiles:
        raise DatasetError(
            f"{data}: expected images of at least {bundle.stride_px} x {bundle.stride_px} px at "
            f"{bundle.mpp:g} um/px in the split {split!r}, got smaller ones only"
        )
    return tiles


def score(data: Path, *, engine: Engine) -> Scores:
    """The scores of an engine on the validation images of ``data``, which is as for ``read_tiles``.

    Raises:
        DatasetError: as ``read_tiles``, or there is nothing to score, neither annotated nor found.
    """
    scores = _score(data, engine)
    if math.isnan(scores.pq):
        raise DatasetError(f"{data}: expected nuclei in images of the split 'val', to check on, got none")
    return scores


def _score(data: Path, engine: Engine) -> Scores:
    if _is_data_set(data, engine.bundle):
        return evaluate_dataset(data, engine=engine)
    samples = _samples(data, "val", engine.bundle)
    found = [
        segment(sample.image, mpp=sample.mpp, engine=engine).to_labels(sample.labels.shape)
        for sample in samples
    ]
    return evaluate([sample.labels for sample in samples], found)


def _is_data_set(data: Path, bundle: Bundle) -> bool:
    # Without a recipe the manifest is what its reader misses.
    return (data / "manifest.csv").is_file() or not bundle.training.get("recipe")


def _samples(data: Path, split: str, bundle: Bundle, *, limit: int = 0) -> list[Sample]:
    recipe = Recipe.of(bundle.training["recipe"])
    missing = [entry.name for entry in recipe.sets if not (data / entry.name).is_dir()]
    if missing:
        raise DatasetError(
            f"{data}: expected a data set, with manifest.csv, or the folder that {bundle.name} was trained "
            f"with: it lacks {', '.join(missing)}"
        )
    with tempfile.TemporaryDirectory() as cache:
        sets = read_sets(recipe, data, split, cache=Path(cache), limit=limit)
    return [sample for samples in sets for sample in samples]
