"""Polygons to label maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


def rasterize(
    vertices: NDArray[np.float64],
    offsets: NDArray[np.int64],
    values: NDArray[np.int32],
    out: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Fill polygons into a label map; a pixel is inside if its centre is (even-odd rule).

    The first polygon wins: only pixels of ``out`` that are zero are written. Polygons that share an edge
    neither overlap nor leave a gap.

    Args:
        vertices: (P, 2) float64, (x, y) in pixel-corner coordinates of ``out``; parts outside it are clipped.
        offsets: (N + 1,) int64: polygon i is ``vertices[offsets[i]:offsets[i + 1]]``, closed or not.
        values: (N,) int32, >= 0: what to write for each polygon.
        out: (H, W) int32, C-contiguous, changed in place.

    Returns:
        ``out``.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: a shape differs from the above, ``offsets`` do not rise from 0 to P, a coordinate is not
            finite or beyond 1e15, a value is negative, or ``out`` is read-only or not contiguous. ``out`` is
            then unchanged.
    """
    _core.rasterize(
        np.ascontiguousarray(vertices), np.ascontiguousarray(offsets), np.ascontiguousarray(values), out
    )
    return out
