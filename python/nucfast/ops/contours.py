"""The outlines of labelled objects as polygons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


@dataclass(frozen=True)
class Rings:
    """The outer rings of the parts of a label map, as flat arrays.

    Ring ``i`` is ``points[offsets[i]:offsets[i + 1]]``; its last point repeats the first. All rings are
    simple and run counter-clockwise in the axes x, y (positive shoelace area, as RFC 7946 wants it; on a
    screen, where y points down, that is clockwise).

    Attributes:
        labels: (R,) int32, the label each ring belongs to; a label has one ring per 4-connected part.
        offsets: (R + 1,) int64, where each ring starts in ``points``.
        points: (P, 2) float32, (x, y) = (column, row) in pixel-corner coordinates: pixel (r, c) covers
            [c, c + 1] x [r, r + 1]. Exact: integers or halves of them.
    """

    labels: NDArray[np.int32]
    offsets: NDArray[np.int64]
    points: NDArray[np.float32]


def contours(
    labels: NDArray[np.int32], *, style: Literal["edges", "midpoints"] = "edges", threads: int = 1
) -> Rings:
    """Trace the outer ring of every 4-connected part of every label.

    Holes are not traced: a ring encloses them. Every ring is simple, in particular valid for shapely and for
    QuPath, and stays so when it is scaled and rounded to a grid finer than a fifth of a pixel.

    Args:
        labels: (H, W) int32, sides of at most 2**23 px. 0 = background, 1.. = objects.
        style: ``"edges"`` follows the edges of the pixels: the area is that of the pixels and their holes.
            ``"midpoints"`` joins the middles of those edges, which makes straight lines of staircases; the
            ring holds the centres of the same pixels and its area is exactly 1/2 px less.
        threads: at most so many; the result does not depend on it.

    Returns:
        The rings, ordered by label, those of one label by their first pixel in raster order. A ring starts
        at its first pixel. No three consecutive points are collinear.

    Raises:
        TypeError: ``labels`` is not int32; nothing is cast silently.
        ValueError: ``labels`` is not two-dimensional, too large or holds a negative value; ``style`` is
            unknown; ``threads`` is below 1.
    """
    if style not in ("edges", "midpoints"):
        raise ValueError(f"style: expected 'edges' or 'midpoints', got {style!r}")
    return Rings(*_core.contours(np.ascontiguousarray(labels), style == "midpoints", threads))
