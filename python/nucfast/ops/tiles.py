"""Square windows of an image: cutting them out, putting them back, blending where they overlap."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nucfast import _core

Pixel = TypeVar("Pixel", np.uint8, np.float32)


def tile(
    image: NDArray[np.uint8],
    origins: NDArray[np.int32],
    *,
    size_px: int,
    fill: int = 255,
    out: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Copy square windows out of an image.

    Args:
        image: (H, W, C) uint8.
        origins: (N, 2) int32, (row, col) of each window's first pixel. They may be negative, and windows may
            overlap.
        size_px: side of the windows, at least 1.
        fill: 0..255, the value of what lies outside the image.
        out: (N, size_px, size_px, C) uint8, C-contiguous, to reuse memory; a new array if not given.
        threads: how many threads to use; the result is the same for any number.

    Returns:
        ``out``, or the new array.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: a shape or a value differs from the above.
    """
    image, origins = np.ascontiguousarray(image), np.ascontiguousarray(origins)
    if size_px < 1:
        raise ValueError(f"size_px: expected a value >= 1, got {size_px}")
    if not 0 <= fill <= 255:
        raise ValueError(f"fill: expected a value in 0..255, got {fill}")
    shape = (len(origins), size_px, size_px, image.shape[-1])
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    _core.tile(image, origins, fill, out, threads)
    return out


def stitch(
    tiles: NDArray[Pixel], origins: NDArray[np.int32], out: NDArray[Pixel], *, margin_px: int
) -> NDArray[Pixel]:
    """Write the centre of each tile to its place in an image.

    Args:
        tiles: (N, s, s, C) uint8 or float32.
        origins: (N, 2) int32, (row, col) of each tile's first pixel, margin included. They may be negative.
        out: (H, W, C) of the same dtype, C-contiguous, changed in place. Where centres overlap the last tile
            wins; what no centre covers is left as it is, what lies outside is dropped. No tile keeps its
            margin at the border of the image: origins that start at ``-margin_px`` cover it.
        margin_px: pixels that each side of a tile loses, less than half of s.

    Returns:
        ``out``.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: a shape or ``margin_px`` differs from the above.
    """
    _core.stitch(np.ascontiguousarray(tiles), np.ascontiguousarray(origins), margin_px, out)
    return out


def blend(
    tiles: NDArray[np.uint8] | NDArray[np.float32],
    origins: NDArray[np.int32],
    *,
    shape: tuple[int, int],
    window: NDArray[np.float32],
    out: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Average overlapping tiles: the sum of window * tile over the sum of window, pixel by pixel.

    Tiles are added in the order given, in float32: the result is the same each time.

    Args:
        tiles: (N, s, s, C) uint8 or float32.
        origins: (N, 2) int32, (row, col) of each tile's first pixel. They may be negative; what lies outside
            the image is dropped.
        shape: (H, W) of the image.
        window: (s, s) float32, finite and >= 0: the weight of each pixel of a tile.
        out: (H, W, C) float32, C-contiguous, to reuse memory; a new array if not given.
        threads: how many threads to use; the result is the same for any number.

    Returns:
        ``out``, or the new array, in the unit of ``tiles``; 0 where no tile has a weight.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: a shape or a value differs from the above, or the weighted sum of a pixel is not finite.
    """
    if min(shape) < 0:
        raise ValueError(f"shape: expected values >= 0, got {shape}")
    image_shape = (*shape, tiles.shape[-1])
    if out is None:
        out = np.empty(image_shape, np.float32)
    elif out.shape != image_shape:
        raise ValueError(f"out: expected shape {image_shape}, got {out.shape}")
    _core.blend(
        np.ascontiguousarray(tiles),
        np.ascontiguousarray(origins),
        np.ascontiguousarray(window),
        out,
        threads,
    )
    return out
