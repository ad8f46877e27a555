"""Where regions and tiles lie. Everything here is integer arithmetic on the slide's model-pixel grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Window:
    """Half-open rectangle of model pixels: rows [top, bottom), columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def grown(self, by_px: int, *, align_px: int, within: Window) -> Window:
        """Grown on every side, then outwards to multiples of ``align_px``, clipped to ``within``."""
        return Window(
            max((self.top - by_px) // align_px * align_px, within.top),
            max((self.left - by_px) // align_px * align_px, within.left),
            min(-((-self.bottom - by_px) // align_px) * align_px, within.bottom),
            min(-((-self.right - by_px) // align_px) * align_px, within.right),
        )


@dataclass(frozen=True)
class Region:
    """The unit of work.

    ``owned``: nuclei whose centroid lies here belong to this region. ``decoded``: owned plus halo, what the
    decoder sees, so that every owned nucleus is whole. ``read``: decoded plus the context that the network
    needs to be right up to the edge of ``decoded``. The last two start at multiples of the network's stride,
    so that the network's own sampling grid is the same on all regions.
    """

    index: int
    owned: Window
    decoded: Window
    read: Window

    def with_halo(self, halo_px: int, margin_px: int, stride_px: int, *, within: Window) -> Region:
        """The region that owns the same square and sees this much around it."""
        decoded = self.owned.grown(halo_px, align_px=stride_px, within=within)
        read = decoded.grown(margin_px, align_px=stride_px, within=within)
        return Region(self.index, self.owned, decoded, read)


def regions(
    width_px: int, height_px: int, *, region_px: int, halo_px: int, margin_px: int, stride_px: int
) -> Iterator[Region]:
    """Cut a slide of ``width_px`` x ``height_px`` model pixels into regions, row by row."""
    whole = Window(0, 0, height_px, width_px)
    index = 0
    for top in range(0, height_px, region_px):
        for left in range(0, width_px, region_px):
            owned = Window(top, left, min(top + region_px, height_px), min(left + region_px, width_px))
            yield Region(index, owned, owned, owned).with_halo(halo_px, margin_px, stride_px, within=whole)
            index += 1


@dataclass(frozen=True)
class Span:
    """One tile along one axis: it covers [start, start + size), and its result is used in [begin, end)."""

    start: int
    begin: int
    end: int


def spans(extent_px: int, *, tile_px: int, margin_px: int, stride_px: int) -> tuple[int, list[Span]]:
    """Cover ``extent_px`` with the fewest tiles of at most ``tile_px`` that overlap by two margins.

    The ends of the extent need no margin: there the network sees what it saw at the borders of its training
    patches. Tiles are only as large as an even split needs.

    Args:
        extent_px: a multiple of ``stride_px``.
        tile_px: largest tile, at least two margins and a stride.
        margin_px: pixels at a tile's inner edges that are not used.
        stride_px: tiles start at, and measure, multiples of it.

    Returns:
        The tile size and the tiles in order; their [begin, end) are the extent without gap or overlap.
    """
    if extent_px <= tile_px:
        return extent_px, [Span(0, 0, extent_px)]

    def step(size: int) -> int:
        """Largest distance between the starts of tiles of this size that still overlap by two margins."""
        return (size - 2 * margin_px) // stride_px * stride_px

    count = 1 + math.ceil((extent_px - tile_px) / step(tile_px))
    size = math.ceil((extent_px + (count - 1) * 2 * margin_px) / count / stride_px) * stride_px
    while size + (count - 1) * step(size) < extent_px:
        size += stride_px
    starts = [min(i * step(size), extent_px - size) for i in range(count)]
    cuts = [0, *((a + size + b) // 2 for a, b in pairwise(starts)), extent_px]
    return size, [
        Span(start, begin, end) for start, begin, end in zip(starts, cuts[:-1], cuts[1:], strict=True)
    ]
