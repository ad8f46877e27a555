"""PanNuke in its official layout (Gamper et al., ECDP 2019; arXiv 2003.10778).

``Fold k/images/foldk/images.npy`` (N, 256, 256, 3), ``Fold k/images/foldk/types.npy`` (N,) tissue names, and
``Fold k/masks/foldk/masks.npy`` (N, 256, 256, 6): instance ids of the classes neoplastic, inflammatory,
connective, dead and epithelial, then the background.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import DatasetError
from nucfast_training.data import Sample, make_sample, map_kinds
from nucfast_training.errors import RecipeError
from nucfast_training.recipe import Recipe, SetSettings

MPP = 0.25
CLASSES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")


def read_pannuke(
    folder: Path, split: str, entry: SetSettings, recipe: Recipe, *, limit: int = 0
) -> list[Sample]:
    """Read the folds that ``entry.folds`` gives for the split; patches without nuclei belong to the set."""
    if split not in entry.folds:
        raise RecipeError(f"sets.{entry.name}.folds: expected folds for {split!r}, got {entry.folds}")
    scheme = {} if recipe.classes is None else {int(k): v for k, v in recipe.classes.raw.items()}
    samples: list[Sample] = []
    for fold in entry.folds[split]:
        root = folder / f"Fold {fold}"
        images_path = root / "images" / f"fold{fold}" / "images.npy"
        masks_path = root / "masks" / f"fold{fold}" / "masks.npy"
        images, masks = _open(images_path), _open(masks_path)
        if images.ndim != 4 or images.shape[3] != 3:
            raise DatasetError(f"{images_path}: expected shape (N, H, W, 3), got {images.shape}")
        if masks.shape != (*images.shape[:3], len(CLASSES) + 1):
            expected = (*images.shape[:3], len(CLASSES) + 1)
            raise DatasetError(f"{masks_path}: expected shape {expected}, got {masks.shape}")
        for i in range(len(images)):
            if limit and len(samples) == limit:
                return samples
            labels, raw = merge_masks(np.asarray(masks[i, ..., : len(CLASSES)]))
            kinds = map_kinds(raw, scheme, masks_path) if scheme else np.zeros_like(raw)
            image = np.clip(np.rint(images[i]), 0, 255).astype(np.uint8)
            samples.append(
                make_sample(f"fold{fold}/{i}", image, labels, kinds, entry.mpp or MPP, recipe, None)
            )
    return samples


def merge_masks(masks: NDArray[np.generic]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Instance ids 1..n and class ids per pixel from (H, W, classes) masks of ids.

    An id may occur in several channels; those are different nuclei. Where channels overlap, the first wins.
    """
    labels = np.zeros(masks.shape[:2], np.int32)
    kinds = np.zeros(masks.shape[:2], np.uint8)
    for channel in range(masks.shape[2]):
        plane = masks[..., channel].astype(np.int64)
        free = (plane > 0) & (labels == 0)
        if free.any():
            _, numbers = np.unique(plane[free], return_inverse=True)
            labels[free] = labels.max() + 1 + numbers.astype(np.int32)
            kinds[free] = channel + 1
    return labels, kinds


def _open(path: Path) -> NDArray[np.generic]:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: expected an array of PanNuke's official layout, got {error}") from error
