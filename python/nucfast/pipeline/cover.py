"""Which tiles the network sees of a region: all that is wanted, and little else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Bundle
from nucfast.pipeline.grid import Window

# The sides of what is kept of a tile are multiples of about so much: small enough to follow the tissue.
# Smaller ones make more shapes of tiles, each of which costs an engine time when it is new.
CPU_CELL_PX = 256

# What a tile costs beside its pixels, in pixels, with its share of the time that new shapes take.
_TILE_COST_PX = 1 << 18


@dataclass(frozen=True)
class Tile:
    """``seen`` goes through the network; of the result ``kept`` is taken, without ``blank``."""

    seen: Window
    kept: Window
    blank: tuple[Window, ...] = ()


def cover(
    kept: Window,
    image: Window,
    bundle: Bundle,
    *,
    wanted: Callable[[Window], bool] | None = None,
    cell_px: int = CPU_CELL_PX,
) -> list[Tile]:
    """Tiles of at most ``bundle.tile_px`` whose kept parts hold all that is wanted, each pixel once.

    What is wanted is cut in two where that leaves out most, again and again, until no cut saves anything and
    all tiles are small enough. A tile sees the margin around what is kept of it, and a little more where that
    makes its sides one of few lengths, but nothing beyond the image: there the network sees what it saw at
    the borders of its training patches.

    What is wanted is decided by cells of a grid that lies on the slide, not on what is kept: so a pixel is
    among it or not, whichever part of the slide is looked at.

    Args:
        kept: where maps are needed; starts at multiples of the network's stride.
        image: what there is to see, in the same pixels; holds ``kept``, starts and ends at whole strides.
        bundle: tile size, margin and stride.
        wanted: says of a cell whether any of it is wanted; None: all is.
        cell_px: the sides of tiles differ by about so much; the tile's own: all tiles are alike.

    Returns:
        The tiles, those of one size one after another, the largest first.
    """
    stride = bundle.stride_px
    margin = -(-bundle.margin_px // stride) * stride
    most = bundle.tile_px - 2 * margin
    cell = max(stride, most // max(1, round(most / cell_px)) // stride * stride)
    # Tiles that are all alike lie where they are needed. Else regions begin and end with the grid's lines.
    alike = cell_px >= bundle.tile_px
    offset = -(-bundle.halo_px // stride) * stride
    first_top, first_left = (
        at if alike else (at - offset) // cell * cell + offset for at in (kept.top, kept.left)
    )
    tops = np.arange(first_top, kept.bottom, cell)
    lefts = np.arange(first_left, kept.right, cell)
    cells = np.ones((len(tops), len(lefts)), bool)
    if wanted is not None:
        for row, col in np.ndindex(cells.shape):
            top, left = int(tops[row]), int(lefts[col])
            cells[row, col] = wanted(Window(top, left, top + cell, left + cell))
    tops = np.append(tops.clip(kept.top), kept.bottom)
    lefts = np.append(lefts.clip(kept.left), kept.right)

    def lengths(
        begin: NDArray[np.intp], end: NDArray[np.intp], edges: NDArray[np.intp], low: int, high: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Pixels seen along one axis for cells [begin, end), in however many tiles that takes, and those."""
        seen = np.minimum(edges[end] + margin, high) - np.maximum(edges[begin] - margin, low)
        count = np.where(seen <= bundle.tile_px, 1, -((edges[begin] - edges[end]) // (most // cell * cell)))
        return seen + (count - 1) * 2 * margin, count

    def widened(begin: int, end: int, low: int, high: int) -> tuple[int, int]:
        """At least these pixels, as many as whole cells and two margins where there are so many."""
        length = -((begin - end + 2 * margin) // cell) * cell + 2 * margin
        length = max(end - begin, min(length, bundle.tile_px, high - low))
        begin = min(max(begin - (length - end + begin) // (2 * stride) * stride, low), high - length)
        return begin, begin + length

    def cost(box: _Boxes) -> NDArray[np.intp]:
        height, down = lengths(box.top, box.bottom, tops, image.top, image.bottom)
        width, across = lengths(box.left, box.right, lefts, image.left, image.right)
        return height * width + down * across * _TILE_COST_PX

    tiles = []
    todo = [(0, 0, len(tops) - 1, len(lefts) - 1)]
    while todo:
        top, left, bottom, right = todo.pop()
        part = cells[top:bottom, left:right]
        whole = _Boxes.before_rows(part)[-1:]
        if whole.bottom[0] == 0:
            continue
        (y0, x0, y1, x1) = (int(side[0]) for side in (whole.top, whole.left, whole.bottom, whole.right))
        part, top, left = part[y0:y1, x0:x1], top + y0, left + x0
        bottom, right = top + y1 - y0, left + x1 - x0
        kept_here = Window(int(tops[top]), int(lefts[left]), int(tops[bottom]), int(lefts[right]))
        seen = kept_here.grown(margin, align_px=stride, within=image)
        halves = [
            (
                cost(first.moved(top, left)) + cost(second.moved(top, left)),
                np.abs(2 * np.arange(1, len(first) + 1) - len(first) - 1),
            )
            for first, second in (_Boxes.of_row_cuts(part), _Boxes.of_col_cuts(part))
        ]
        costs, offcentre = (np.concatenate(columns) for columns in zip(*halves, strict=True))
        now = cost(_Boxes(*(np.array([side]) for side in (top, left, bottom, right))))[0]
        fits = max(seen.height, seen.width) <= bundle.tile_px
        # Of equally good cuts the one nearest to the middle, so that tiles are of like sizes.
        best = int(np.lexsort((offcentre, costs))[0]) if costs.size else -1
        if fits and (best < 0 or costs[best] >= now):
            (y0, y1), (x0, x1) = (
                widened(seen.top, seen.bottom, image.top, image.bottom),
                widened(seen.left, seen.right, image.left, image.right),
            )
            blank = [
                Window(*(int(edge) for edge in (tops[y], lefts[x], tops[y + 1], lefts[x + 1])))
                for y, x in np.argwhere(~part) + np.array([top, left])
            ]
            tiles.append(Tile(Window(y0, x0, y1, x1), kept_here, tuple(blank)))
        elif best < part.shape[0] - 1:
            cut = top + best + 1
            todo += [(top, left, cut, right), (cut, left, bottom, right)]
        else:
            cut = left + best - (part.shape[0] - 1) + 1
            todo += [(top, left, bottom, cut), (top, cut, bottom, right)]
    # The largest first: engines get their memory once, instead of more and more.
    return sorted(tiles, key=lambda t: (-t.seen.height, -t.seen.width, t.seen.top, t.seen.left))


@dataclass(frozen=True)
class _Boxes:
    """Boxes around what is True in parts of an array of cells; an empty part has ``bottom`` 0."""

    top: NDArray[np.intp]
    left: NDArray[np.intp]
    bottom: NDArray[np.intp]
    right: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: slice) -> _Boxes:
        return _Boxes(self.top[rows], self.left[rows], self.bottom[rows], self.right[rows])

    def turned(self) -> _Boxes:
        """With rows and columns exchanged."""
        return _Boxes(self.left, self.top, self.right, self.bottom)

    def moved(self, rows: int, cols: int) -> _Boxes:
        """The same further down and to the right."""
        return _Boxes(self.top + rows, self.left + cols, self.bottom + rows, self.right + cols)

    @classmethod
    def before_rows(cls, cells: NDArray[np.bool_]) -> _Boxes:
        """Of the first row, the first two rows, ..., all rows."""
        rows, cols = cells.shape
        some = cells.any(axis=1)
        at = np.arange(rows)
        first = np.where(some, cells.argmax(axis=1), cols)
        last = np.where(some, cols - cells[:, ::-1].argmax(axis=1), 0)
        return cls(
            np.minimum.accumulate(np.where(some, at, rows)),
            np.minimum.accumulate(first),
            np.maximum.accumulate(np.where(some, at + 1, 0)),
            np.maximum.accumulate(last),
        )

    @classmethod
    def of_row_cuts(cls, cells: NDArray[np.bool_]) -> tuple[_Boxes, _Boxes]:
        """Above and below each cut between two rows."""
        rows = cells.shape[0]
        above = cls.before_rows(cells)[:-1]
        flipped = cls.before_rows(cells[::-1])[-2::-1] if rows > 1 else above
        return above, cls(rows - flipped.bottom, flipped.left, rows - flipped.top, flipped.right)

    @classmethod
    def of_col_cuts(cls, cells: NDArray[np.bool_]) -> tuple[_Boxes, _Boxes]:
        """Left and right of each cut between two columns."""
        first, second = cls.of_row_cuts(cells.T)
        return first.turned(), second.turned()
