"""A model scored on an annotated data set."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Bundle, Engine
from nucfast.errors import DatasetError
from nucfast.metrics import Scores, evaluate
from nucfast.nuclei import Nuclei
from nucfast.pipeline.in_memory import segment


def evaluate_dataset(
    folder: str | Path,
    *,
    engine: Engine,
    split: str = "val",
    mpp: float | None = None,
    where: dict[str, str] | None = None,
    on_image: Callable[[str, Nuclei], None] = lambda name, nuclei: None,
) -> Scores:
    """Score a model on one split of a data set.

    The folder holds ``manifest.csv`` (columns id, split, image, maybe mpp), the images, ``labels/<id>.png``
    (instance ids) and maybe ``types/<id>.png`` (raw class ids, mapped by the bundle's class scheme). Each
    image is segmented at its own mpp (none stated: at the model's, so pixel for pixel), and what was found is
    drawn at the image's own resolution and compared there.

    Args:
        folder: the data set.
        engine: the model on its engine.
        split: rows of the manifest to use.
        mpp: um per pixel for images whose row states none.
        where: further columns of the manifest and the value each must have, such as ``{"modality":
        "tissue"}``.
        on_image: called with each image's id and nuclei.

    Raises:
        DatasetError: a file is missing, unreadable or of the wrong size, or the split is empty.
    """
    root, bundle = Path(folder), engine.bundle
    truth, found, true_types, found_types = [], [], [], []
    for row in dataset_rows(root, split, where or {}):
        labels = _read_png(root / "labels" / f"{row['id']}.png").astype(np.int32)
        nuclei = segment(root / row["image"], mpp=row_mpp(root, row) or mpp or bundle.mpp, engine=engine)
        on_image(row["id"], nuclei)
        types = root / "types" / f"{row['id']}.png"
        if types.exists():
            true_types.append(_map_types(_read_png(types), bundle, types))
            found_types.append(np.concatenate([[0], nuclei.class_id]).astype(np.uint8))
        truth.append(labels)
        found.append(nuclei.to_labels(labels.shape))
    typed = len(true_types) == len(truth) and bundle.class_scheme is not None
    return evaluate(
        truth,
        found,
        true_types=true_types if typed else None,
        pred_types=found_types if typed else None,
        classes={entry.id: entry.name for entry in bundle.classes} if typed else None,
    )


def dataset_rows(root: Path, split: str, where: dict[str, str]) -> list[dict[str, str]]:
    """The rows of a manifest in one split and with these values; DatasetError if there are none."""
    manifest = root / "manifest.csv"
    try:
        with manifest.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DatasetError(f"{manifest}: cannot be read ({error.strerror}); a data set needs it") from error
    columns = set(rows[0]) if rows else set()
    missing = {"id", "split", "image", *where} - columns
    if missing:
        raise DatasetError(f"{manifest}: expected the columns id, split, image, got {sorted(columns)}")
    wanted = [row for row in rows if row["split"] == split and all(row[k] == v for k, v in where.items())]
    if not wanted:
        raise DatasetError(
            f"{manifest}: no image of split {split!r}; it has {sorted({row['split'] for row in rows})}"
        )
    return wanted


def row_mpp(root: Path, row: dict[str, str]) -> float | None:
    """um per pixel of a row's image; None if the row does not say."""
    text = row.get("mpp") or ""
    try:
        return float(text) if text else None
    except ValueError as error:
        raise DatasetError(
            f"{root / 'manifest.csv'}: mpp of {row['id']}: expected a number, got {text!r}"
        ) from error


def _read_png(path: Path) -> NDArray[Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except OSError as error:
        raise DatasetError(f"{path}: expected an image of ids, got {error}") from error


def _map_types(raw: NDArray[Any], bundle: Bundle, path: Path) -> NDArray[np.uint8]:
    if bundle.class_scheme is None:
        return np.zeros(raw.shape, np.uint8)
    table = np.zeros(256, np.uint8)
    known = np.zeros(256, bool)
    known[0] = True
    for key, value in bundle.class_scheme.raw.items():
        table[key], known[key] = value, True
    strange = np.unique(raw[~known[raw]])
    if strange.size:
        raise DatasetError(
            f"{path}: class ids {strange.tolist()} are not in the model's scheme {bundle.class_scheme.name!r}"
        )
    mapped: NDArray[np.uint8] = table[raw]
    return mapped
