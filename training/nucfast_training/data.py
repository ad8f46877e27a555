"""Annotated sets: a folder with a manifest, as the models that ship are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nucfast.errors import DatasetError
from nucfast.pipeline.evaluate import read_ids, read_manifest, row_mpp
from nucfast_training.recipe import Recipe, SetSettings
from nucfast_training.targets import TARGETS

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
TYPICAL_AREA_UM2 = 40.0  # of a nucleus; guesses the scale of sets that do not state it


@dataclass(frozen=True)
class Sample:
    """One annotated image with its targets, at the image's own resolution.

    ``image`` (H, W, 3) uint8; ``labels`` (H, W) int32; ``targets`` (H, W) uint8 by head, as ``TARGETS`` makes
    them; ``mpp`` um per pixel.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.int32]
    targets: dict[str, NDArray[np.uint8]]
    mpp: float


def read_sets(recipe: Recipe, data: Path, split: str, *, cache: Path, limit: int = 0) -> list[list[Sample]]:
    """The recipe's sets, one list of samples each.

    Args:
        recipe: names the sets and the heads whose targets are made.
        data: folder that holds the sets.
        split: "train" or "val".
        cache: folder that keeps the distance maps between runs.
        limit: images of each set; 0: all.

    Raises:
        DatasetError: a file is missing, unreadable or not what it must be, or a split is empty.
    """
    from nucfast_training.annotations import read_annotations
    from nucfast_training.pannuke import read_pannuke

    found = []
    for entry in recipe.sets:
        folder = data / entry.name
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; --data names the folder that holds the sets")
        if entry.layout == "pannuke":
            samples = read_pannuke(folder, split, entry, recipe, limit=limit)
        elif entry.layout == "annotations":
            samples = read_annotations(folder, split, entry, recipe, cache=cache, limit=limit)
        else:
            samples = read_set(folder, split, entry, recipe, cache=cache, limit=limit)
        if not samples:
            raise DatasetError(f"{folder}: no image of split {split!r} for this recipe")
        found.append(samples)
    return found


def read_set(
    folder: Path, split: str, entry: SetSettings, recipe: Recipe, *, cache: Path, limit: int = 0
) -> list[Sample]:
    """Read one split of a set with ``manifest.csv``, ``images/``, ``labels/`` and maybe ``types/``.

    The manifest has the columns id and split, and maybe image (else ``images/<id>.*``), mpp and modality.
    Where neither it nor the recipe states the mpp, it is guessed from the size of the nuclei.
    """
    rows = read_manifest(folder)
    if rows and not {"id", "split"} <= set(rows[0]):
        raise DatasetError(
            f"{folder / 'manifest.csv'}: expected the columns id and split, got {sorted(rows[0])}"
        )
    rows = [
        row
        for row in rows
        if row["split"] == split and (not entry.modality or row.get("modality") == entry.modality)
    ]
    samples = []
    for row in rows[: limit or None]:
        path = folder / row["image"] if row.get("image") else find_image(folder / "images" / row["id"])
        types = folder / "types" / f"{row['id']}.png"
        image = read_image(path)
        labels = read_labels(folder / "labels" / f"{row['id']}.png", image.shape[:2])
        kinds = read_kinds(types, recipe, labels) if types.exists() else np.zeros(labels.shape, np.uint8)
        mpp = row_mpp(folder, row) or entry.mpp or guess_mpp(labels)
        samples.append(make_sample(f"{folder.name}/{row['id']}", image, labels, kinds, mpp, recipe, cache))
    return samples


def make_sample(
    name: str,
    image: NDArray[np.uint8],
    labels: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    mpp: float,
    recipe: Recipe,
    cache: Path | None,
) -> Sample:
    """A sample with the targets of the recipe's heads; ``kinds`` (H, W) are class ids, 0 = none."""
    targets = {
        head: _distance(labels, kinds, cache)
        if head == "distance" and cache is not None
        else TARGETS[head].make(labels, kinds)
        for head in recipe.loss
    }
    return Sample(name, image, labels, targets, mpp)


def find_image(stem: Path) -> Path:
    """The file of this name with a suffix of ``SUFFIXES``."""
    for suffix in SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    raise DatasetError(f"{stem}: no image of this name with one of the endings {', '.join(SUFFIXES)}")


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # which Pillow would clip at 255
                raise DatasetError(
                    f"{path}: expected 8 bits per channel, got {image.mode!r}: scale it to 0..255 first"
                )
            return np.asarray(image.convert("RGB"))
    # What Pillow raises for damaged files, and for very large ones.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be read as an image ({error})") from error


def read_labels(path: Path, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Instance ids, (H, W) int32; gaps between ids are allowed."""
    labels = read_ids(path, shape)
    if not labels.any():
        raise DatasetError(f"{path}: holds no nucleus; annotate some, or leave the image out of the set")
    return labels.astype(np.int32)


def read_kinds(
    path: Path, recipe: Recipe, labels: NDArray[np.int32], *, raw_ids: bool = True
) -> NDArray[np.uint8]:
    """Class ids of the recipe, (H, W) uint8, from an image of them or of raw ids."""
    raw = read_ids(path, labels.shape)
    if recipe.classes is None:
        return np.zeros(labels.shape, np.uint8)
    if raw_ids:
        return map_kinds(raw, {int(key): value for key, value in recipe.classes.raw.items()}, path)
    names = recipe.classes.names
    strange = sorted(set(np.unique(raw).tolist()) - set(range(len(names) + 1)))
    if strange:
        known = ", ".join(f"{i} = {name}" for i, name in enumerate(names, start=1))
        raise DatasetError(f"{path}: class id {strange[0]} is none of the recipe's classes ({known})")
    return raw.astype(np.uint8)


def map_kinds(raw: NDArray[np.generic], scheme: Mapping[int, int], path: Path) -> NDArray[np.uint8]:
    """Raw class ids to those of the scheme; 0 stays 0."""
    kinds = np.zeros(raw.shape, np.uint8)
    for value in np.unique(raw).tolist():
        if value == 0:
            continue
        if value not in scheme:
            raise DatasetError(
                f"{path}: class id {value} is not in the recipe's classes.raw ({_listed(scheme)})"
            )
        kinds[raw == value] = scheme[value]
    return kinds


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in sorted(values))


def guess_mpp(labels: NDArray[np.int32]) -> float:
    """um per pixel if the median nucleus has the typical area."""
    areas = np.bincount(labels.ravel())[1:]
    return float(np.sqrt(TYPICAL_AREA_UM2 / np.median(areas[areas > 0])))


def _distance(labels: NDArray[np.int32], kinds: NDArray[np.uint8], cache: Path) -> NDArray[np.uint8]:
    path = cache / f"{hashlib.sha256(labels.tobytes()).hexdigest()[:24]}.png"
    if not path.exists():
        keep_map(TARGETS["distance"].make(labels, kinds), path)
    return np.asarray(Image.open(path))


def keep_map(plane: NDArray[np.uint8], path: Path) -> None:
    """Write a PNG of the cache, which is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    Image.fromarray(plane).save(partial, "PNG")
    partial.replace(path)
