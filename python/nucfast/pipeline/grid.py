"""Where regions lie. Everything here is integer arithmetic on the slide's model-pixel grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


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

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Pixels."""
        return self.height * self.width

    def shifted(self, rows: int, cols: int) -> Window:
        """The same further down and to the right."""
        return Window(self.top + rows, self.left + cols, self.bottom + rows, self.right + cols)

    def within(self, other: Window) -> Window:
        """What both have; its ``area`` is 0 if that is nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Window(
            top, left, max(top, min(self.bottom, other.bottom)), max(left, min(self.right, other.right))
        )

    def grown(self, by_px: int, *, align_px: int, within: Window) -> Window:
        """Grown on every side, then outwards to multiples of ``align_px``, clipped to ``within``."""
        return Window(
            max((self.top - by_px) // align_px * align_px, within.top),
            max((self.left - by_px) // align_px * align_px, within.left),
            min(-((-self.bottom - by_px) // align_px) * align_px, within.bottom),
            min(-((-self.right - by_px) // align_px) * align_px, within.right),
        )

    def at_least(self, side_px: int, *, align_px: int, within: Window) -> Window:
        """Grown to sides of this length, as far as ``within`` reaches.

        Upwards and to the left it grows by multiples of ``align_px``, and else the other way.
        """

        def grown(begin: int, end: int, low: int, high: int) -> tuple[int, int]:
            missing = max(0, side_px - (end - begin))
            steps = -(-missing // align_px)
            begin = max(begin - steps * align_px, low)
            return begin, min(max(end, begin + side_px), high)

        top, bottom = grown(self.top, self.bottom, within.top, within.bottom)
        left, right = grown(self.left, self.right, within.left, within.right)
        return Window(top, left, bottom, right)


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
