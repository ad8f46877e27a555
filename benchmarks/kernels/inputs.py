"""What the kernels are measured on: a dense H&E-like map that is generated, and real label maps.

Generated arrays are kept in the user's cache folder, since drawing 120,000 nuclei takes half a minute.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nucfast.testing import random_blobs

DENSITY = 29_300 / 4096**2  # nuclei drawn per pixel; of these 29,000 remain, the others are hidden


def _cached(make: Callable[[int], NDArray[Any]]) -> Callable[[int], NDArray[Any]]:
    """Keep a function's arrays on disk, apart for every version of this file and of ``random_blobs``."""
    version = hashlib.sha256((Path(__file__).read_text() + inspect.getsource(random_blobs)).encode())

    @functools.lru_cache(maxsize=1)
    def cached(side_px: int) -> NDArray[Any]:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nucfast" / "benchmarks"
        path = folder / f"{make.__name__}-{side_px}-{version.hexdigest()[:12]}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.npy")
            np.save(part, make(side_px))
            part.replace(path)
        array = np.load(path)
        array.flags.writeable = False  # shared by every benchmark of the run
        return array

    return cached


@_cached
def dense_labels(side_px: int) -> NDArray[np.int32]:
    """(side, side) int32: ellipses of radii 8-20 px, 29,000 at 4096^2, most of which touch others."""
    return random_blobs((side_px, side_px), count=round(side_px**2 * DENSITY), seed=0, radius_px=(8.0, 20.0))


@_cached
def dense_prediction(side_px: int) -> NDArray[np.int32]:
    """(side, side) int32: ``dense_labels`` as a decent model sees them.

    Outlines are off by two pixels, one nucleus in ten is missed and one in ten is joined to the next.
    """
    labels = np.roll(dense_labels(side_px), (1, 2), (0, 1))
    ids = np.arange(labels.max() + 1, dtype=np.int32)
    fate = np.random.default_rng(1).random(ids.size)
    ids[fate < 0.1] = 0
    joined = np.flatnonzero((fate > 0.9) & (ids < ids.size - 1))
    ids[joined] = ids[joined] + 1
    return ids[labels]


@_cached
def dense_image(side_px: int) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: ``dense_labels`` stained with H&E, by the law of Beer and Lambert."""
    labels = dense_labels(side_px)
    rng = np.random.default_rng(2)
    stains = np.array([[0.650, 0.704, 0.286], [0.216, 0.801, 0.558]], np.float32)
    nuclei = rng.uniform(0.5, 1.2, labels.max() + 1).astype(np.float32)
    nuclei[0] = 0.05
    coarse = Image.fromarray(rng.normal(0.25, 0.15, (side_px // 128, side_px // 128)).astype(np.float32))
    stroma = np.asarray(coarse.resize((side_px, side_px), Image.Resampling.BICUBIC))
    image = np.empty((*labels.shape, 3), np.uint8)
    for top in range(0, side_px, 256):  # strips bound the memory
        rows = np.s_[top : top + 256]
        haematoxylin = nuclei[labels[rows]] * rng.normal(1, 0.15, labels[rows].shape)
        eosin = np.maximum(stroma[rows], 0.02) * rng.normal(1, 0.15, labels[rows].shape)
        density = np.stack([haematoxylin, eosin], axis=-1).clip(0).astype(np.float32) @ stains
        image[rows] = (250 * np.power(10, -density)).astype(np.uint8)
    return image


def real_maps(dataset: str) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
    """True label maps of a data set below NUCFAST_DATA, and predictions made of them.

    Predictions are the maps moved by one pixel, so every kernel that compares two maps has work to do.
    """
    folder = Path(os.environ.get("NUCFAST_DATA", "")) / dataset
    if not os.environ.get("NUCFAST_DATA") or not folder.is_dir():
        pytest.skip(f"NUCFAST_DATA does not lead to {dataset}")
    with (folder / "manifest.csv").open(newline="") as manifest:
        names = [row["id"] for row in csv.DictReader(manifest)]
    true = [np.asarray(Image.open(folder / "labels" / f"{name}.png")).astype(np.int32) for name in names]
    return true, [np.roll(labels, (1, 1), (0, 1)) for labels in true]


@functools.lru_cache(maxsize=1)
def mosaic(side_px: int) -> NDArray[np.int32]:
    """(side, side) int32: the real label maps of dsb2018 in rows, ids made unique; repeated if too few."""
    maps, _ = real_maps("dsb2018")
    maps.sort(key=len)  # by height: rows without gaps
    labels = np.zeros((side_px, side_px), np.int32)
    top = left = height = used = 0
    for k in range(100 * len(maps)):
        piece = maps[k % len(maps)]
        if left >= side_px:
            top, left, height = top + height, 0, 0
        if top >= side_px:
            break
        place = labels[top : top + len(piece), left : left + piece.shape[1]]
        cut = piece[: place.shape[0], : place.shape[1]]
        place[:] = np.where(cut > 0, cut + used, 0)
        left, height, used = left + piece.shape[1], max(height, len(piece)), used + int(piece.max())
    labels.flags.writeable = False
    return labels
