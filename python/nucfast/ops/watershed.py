"""Marker-controlled watershed: the textbook way to split touching nuclei."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast import _core
from nucfast.ops.components import label


def find_seeds(
    height: NDArray[np.uint8],
    *,
    threshold: int,
    mask: NDArray[np.bool_] | None = None,
    out: NDArray[np.int32] | None = None,
    threads: int = 1,
) -> NDArray[np.int32]:
    """Mark nuclei by the connected parts of a height map at or above a threshold.

    One threshold suits heights that reach about the same maximum in every nucleus, such as a normalised
    distance map. ``split_instances`` needs no such threshold: it judges each summit by its own rise.

    Args:
        height: (H, W) uint8, higher towards nucleus centres.
        threshold: lowest height that belongs to a seed, 1 to 255.
        mask: (H, W) bool; seeds live only where true. None: everywhere.
        out: (H, W) int32, C-contiguous, to be filled and returned instead of a new array.
        threads: at most so many; the result does not depend on it.

    Returns:
        (H, W) int32: 0, or 1..n for the 4-connected seeds in raster order of their first pixel.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: shapes differ, or ``threshold`` or ``threads`` is out of range.
    """
    height = np.asarray(height)
    if height.dtype != np.uint8:
        raise TypeError(f"height: expected uint8, got {height.dtype}")
    if not 1 <= threshold <= 255:
        raise ValueError(f"threshold: expected 1 to 255, got {threshold}")
    high = height >= threshold
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask: expected bool, got {mask.dtype}")
        if mask.shape != height.shape:
            raise ValueError(f"mask: expected shape {height.shape}, got {mask.shape}")
        high &= mask
    return label(high, connectivity=4, out=out, threads=threads)


def watershed(
    elevation: NDArray[np.uint8] | NDArray[np.uint16],
    markers: NDArray[np.int32],
    *,
    mask: NDArray[np.bool_],
    out: NDArray[np.int32] | None = None,
    threads: int = 1,
) -> NDArray[np.int32]:
    """Grow each marker over its basin, 4-connected.

    The pixel flooded next is the lowest of those queued, of equally low ones the one queued first. It gives
    its label to its unlabelled neighbours (up, left, right, down) and queues them at their own elevation, or
    at the present level if that is higher. Marker pixels are queued at the start, in raster order.

    This is the rule of ``skimage.segmentation.watershed`` (0.26, ``connectivity=1``) but for one point:
    there, marker pixels of equal elevation leave the queue in the arbitrary order of a heap. If no two marker
    pixels have the same elevation, the results are equal to the pixel; otherwise, pixels that two markers
    reach at the same level after the same number of steps may differ.

    Args:
        elevation: (H, W) uint8 or uint16; low at nucleus centres.
        markers: (H, W) int32. 0 = unlabelled, positive = seeds, under any numbers.
        mask: (H, W) bool. Labels never leave it; markers outside are dropped.
        out: (H, W) int32, C-contiguous, to be filled and returned instead of a new array; may be ``markers``
            itself.
        threads: at most so many; the result does not depend on it.

    Returns:
        (H, W) int32 holding the ids of ``markers``; 0 = background, and mask that no marker reaches.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: shapes differ, ``markers`` holds a negative number, or ``threads`` is below 1.

    Beucher, Meyer: The morphological approach to segmentation: the watershed transformation. Mathematical
    Morphology in Image Processing, 1993.
    """
    levels: NDArray[Any] = np.ascontiguousarray(elevation)
    labels = np.empty(levels.shape, np.int32) if out is None else out
    _core.watershed(levels, np.ascontiguousarray(mask), np.ascontiguousarray(markers), labels, threads)
    return labels
