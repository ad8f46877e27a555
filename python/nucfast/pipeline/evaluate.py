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
from nucfast.slide import open_slide
from nucfast.slide.mpp import EXPECTED, is_credible, number


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
        where: further columns of the manifest and the value each must have, such as
            ``{"modality": "tissue"}``.
        on_image: called with each image's id and nuclei.

    Raises:
        DatasetError: a file of the data set but an image is missing or unreadable, ids are of another size
            than their image, classes are unknown to the model, or the split is empty.
        SlideError: an image cannot be read.
    """
    root, bundle = Path(folder), engine.bundle
    truth, found, true_types, found_types = [], [], [], []
    for row in dataset_rows(root, split, where or {}):
        with open_slide(root / row["image"], mpp=row_mpp(root, row) or mpp or bundle.mpp) as image:
            width, height = image.dimensions
            labels = read_ids(root / "labels" / f"{row['id']}.png", (height, width)).astype(np.int32)
            types = root / "types" / f"{row['id']}.png"
            if types.exists():
                true_types.append(_map_types(read_ids(types, labels.shape), bundle, types))
            nuclei = segment(image, engine=engine)
        on_image(row["id"], nuclei)
        truth.append(labels)
        found_types.append(np.concatenate([[0], nuclei.class_id]).astype(np.uint8))
        found.append(nuclei.to_labels(labels.shape))
    if len(true_types) not in (0, len(truth)):
        raise DatasetError(f"{root / 'types'}: expected a file for each of {len(truth)} images, or for none")
    typed = bool(true_types) and bundle.class_scheme is not None
    return evaluate(
        truth,
        found,
        true_types=true_types if typed else None,
        pred_types=found_types if typed else None,
        classes={entry.id: entry.name for entry in bundle.classes} if typed else None,
    )


def dataset_rows(root: Path, split: str, where: dict[str, str]) -> list[dict[str, str]]:
    """The rows of a manifest in one split and with these values; DatasetError if there are none."""
    manifest, rows = root / "manifest.csv", read_manifest(root)
    columns = set(rows[0]) if rows else set()
    needed = ["id", "split", "image", *where]
    if not columns.issuperset(needed):
        raise DatasetError(f"{manifest}: expected the columns {', '.join(needed)}, got {sorted(columns)}")
    asked = [("split", split), *where.items()]
    for column, value in asked:
        found = sorted({row[column] for row in rows})
        if value not in found:
            others = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
            raise DatasetError(f"{manifest}: no image of {column} {value!r}; it has {others}")
    wanted = [row for row in rows if all(row[column] == value for column, value in asked)]
    if not wanted:
        raise DatasetError(
            f"{manifest}: no image has {', '.join(f'{k} {v!r}' for k, v in asked)} all at once"
        )
    return wanted


def read_manifest(root: Path) -> list[dict[str, str]]:
    """All rows of a data set's ``manifest.csv``; DatasetError if it cannot be read."""
    manifest = root / "manifest.csv"
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(
            f"{manifest}: cannot be read ({reason}); a data set needs it, as CSV in UTF-8"
        ) from error


def row_mpp(root: Path, row: dict[str, str]) -> float | None:
    """um per pixel of a row's image; None if the row does not say."""
    text = row.get("mpp") or ""
    mpp = number(text)
    if text and not is_credible(mpp):
        raise DatasetError(f"{root / 'manifest.csv'}: {row['id']}: mpp: {EXPECTED} or nothing, got {text!r}")
    return mpp


def read_ids(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """An image of instance or class ids, (H, W).

    Args:
        path: the file.
        shape: of the image that it belongs to.

    Raises:
        DatasetError: it cannot be read, or has another shape.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    # What Pillow raises for damaged files, and for very large ones.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: expected an image of ids, got {error}") from error
    if ids.shape != shape:
        raise DatasetError(f"{path}: expected ids of shape {shape} as the image has, got {ids.shape}")
    return ids


def _map_types(raw: NDArray[Any], bundle: Bundle, path: Path) -> NDArray[np.uint8]:
    mapped = np.zeros(raw.shape, np.uint8)
    if bundle.class_scheme is None:
        return mapped
    strange = np.setdiff1d(raw, [0, *bundle.class_scheme.raw])
    if strange.size:
        raise DatasetError(
            f"{path}: class ids {strange.tolist()} are not in the model's scheme {bundle.class_scheme.name!r}"
        )
    for key, value in bundle.class_scheme.raw.items():
        mapped[raw == key] = value
    return mapped
