"""The class every kind of slide derives from, and the one place where pixels are resampled.

A backend gives two things: its pyramid ``levels`` and ``read_level``, which returns the pixels of a
rectangle that lies inside a level. Everything else, from the choice of the level to the white outside the
slide, happens here, so all formats give the same pixels for the same question.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import SlideError
from nucfast.slide.mpp import Resolution

logger = logging.getLogger("nucfast")

WHITE = 255

Part = tuple[int, int, int, int]
"""x, y, width, height of a part of an image."""

# A level this little coarser than the scale asked for still serves: 1 % is no visible loss, while the
# next finer level costs four to sixteen times the decoding.
LEVEL_TOLERANCE = 1.01

# Side of the source window that read() holds at once. It bounds memory (50 MB, and as much in Pillow) where a
# thumbnail is made from level 0, and keeps Pillow's float32 boxes exact to a thousandth of a pixel.
MAX_SOURCE_PX = 4096

# How close to an integer a scale, and a position on the level's grid, must be to count as one. Both only
# absorb rounding of floats; 2 % or 3 % of difference in mpp is resampled faithfully.
SCALE_EPSILON = 1e-9
PHASE_EPSILON = 1e-3

# Pillow's filters against exact area averages of a JPEG slide, mean absolute difference in grey levels at
# scale 1.002, 1.25, 1.5, 1.98, 2.5:
#   BOX       4.8  3.7  2.3  3.6  1.8   takes or leaves whole source pixels, so neighbours jump
#   HAMMING   2.0  1.5  0.9  0.7  0.4
#   BILINEAR  0.2  0.7  0.7  1.8  2.1   its triangle grows too wide and blurs
HAMMING_FROM = 1.5

# Reach of both filters, in output pixels: one on either side of the centre.
FILTER_SUPPORT = 1.0

# Resampled pixels are made in blocks of the output's grid whose source is about this large, whatever window
# is asked for: Pillow's weights depend a little on where its window begins.
GRID_SOURCE_PX = 256

# Around damage a read is cut in halves down to pieces of this side, in output pixels. Smaller ones would take
# minutes where nothing can be read at all.
DAMAGE_PX = 64

# How close to a multiple of the scale a position must be to lie on the output's grid, in output pixels.
GRID_EPSILON = 1e-6


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its size in pixels, and how many level-0 pixels one of its pixels spans."""

    width: int
    height: int
    downsample: float


def make_levels(sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from their (width, height), finest first, with downsamples freed of rounding.

    Writers cut the size of a level to whole pixels: 2221 / 4 is stored as 555, a quotient of 4.0018.
    Positions are exact only with the true factor, which is an integer if one explains the size to within a
    pixel. If several do, which happens for tiny levels, it is the power of two.
    """
    width, height = sizes[0]
    levels = []
    for w, h in sizes:
        quotient = (width / w + height / h) / 2
        integers = range(max(1, math.floor(quotient / 2)), math.ceil(quotient * 2) + 1)
        fitting = [n for n in integers if abs(width / n - w) < 1 and abs(height / n - h) < 1]
        nearest = min(fitting, key=lambda n: (n & (n - 1) != 0, abs(n - quotient)), default=quotient)
        levels.append(Level(w, h, float(nearest)))
    return tuple(levels)


class Slide(ABC):
    """A whole-slide image or a plain one. Use it in a ``with`` statement, or call :meth:`close`.

    Attributes:
        path: the file, None for an array.
        name: the file's name, or "array".
        levels: the pyramid, finest first; ``levels[0]`` is the coordinate system of everything.
        mpp: micrometres per level-0 pixel. None only for an array opened without it.
        mpp_source: where ``mpp`` comes from, in words: "flag", "openslide.mpp-x", "OME PhysicalSizeX", ...
        properties: what the file says about itself.
        bounds: (x, y, width, height) of the scanned part, in level-0 pixels; the whole slide if not stated.
    """

    path: Path | None
    name: str
    levels: tuple[Level, ...]
    mpp: float | None
    mpp_source: str
    properties: dict[str, str]
    bounds: tuple[int, int, int, int]

    def __init__(
        self,
        *,
        path: Path | None,
        levels: tuple[Level, ...],
        resolution: Resolution,
        properties: dict[str, str],
        bounds: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.path = path
        self.name = "array" if path is None else path.name
        self.levels = levels
        self.mpp = resolution.mpp
        self.mpp_source = resolution.source
        self.properties = properties
        self._closed = False
        self._damage_told = False
        self.bounds = bounds or (0, 0, levels[0].width, levels[0].height)

    @abstractmethod
    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Pixels of a rectangle of one level, in that level's pixels, as a new (height, width, 3) array.

        The caller guarantees that the rectangle is not empty and lies inside the level. Called from several
        threads at once.

        Raises:
            SlideError: the file is damaged there.
        """

    @abstractmethod
    def _release(self) -> None:
        """Give back the file or the memory; called once."""

    def close(self) -> None:
        """Release the file. Reading afterwards is an error; closing again is not."""
        if not self._closed:
            self._closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.dimensions
        mpp = "unknown mpp" if self.mpp is None else f"{self.mpp:g} mpp ({self.mpp_source})"
        return f"<{type(self).__name__} {self.name}: {width} x {height} px, {mpp}, {len(self.levels)} levels>"

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.levels[0].width, self.levels[0].height

    def require_mpp(self) -> float:
        """``mpp``, for callers that cannot work without.

        Raises:
            SlideError: this is an array opened without mpp.
        """
        if self.mpp is None:
            raise SlideError(
                f"{self.name}: resolution unknown; pass mpp in um per pixel (0.25 for 40x, 0.5 for 20x)"
            )
        return self.mpp

    def read(self, x: float, y: float, width: int, height: int, mpp: float | None) -> NDArray[np.uint8]:
        """Pixels of a rectangle at any resolution.

        With s = ``mpp`` / ``slide.mpp``, output pixel k covers the level-0 interval [x + k s, x + (k + 1) s)
        and holds its average; for s < 1 it is interpolated. Two windows that sample the same positions hold
        the same pixels there: exactly if s is an integer or x and y are multiples of s, within one grey level
        otherwise. Thread-safe.

        Args:
            x, y: position of the top-left corner in level-0 pixels; may be fractional or outside.
            width, height: size in output pixels.
            mpp: resolution of the output; None for that of level 0.

        Returns:
            (height, width, 3) uint8 RGB, a new array; white (255) outside the slide.

        Raises:
            ValueError: an argument is negative, not finite or zero where it must not be.
            SlideError: the file is damaged or closed, or ``mpp`` is given for an array without one.
        """
        scale = 1.0
        if mpp is not None:
            if not (math.isfinite(mpp) and mpp > 0):
                raise ValueError(f"mpp: expected a positive number, got {mpp}")
            scale = mpp / self.require_mpp()
        return self.read_scaled(x, y, width, height, scale)

    def read_scaled(
        self,
        x: float,
        y: float,
        width: int,
        height: int,
        scale: float,
        *,
        parts: Sequence[Part] | None = None,
    ) -> NDArray[np.uint8]:
        """:meth:`read` with the output's pixel size given in level-0 pixels, for slides of unknown mpp.

        ``parts``, rectangles (x, y, width, height) of the output, are all that is needed of it: what lies
        beside them may be white, where that saves work.
        """
        if self._closed:
            raise SlideError(f"{self.path or self.name}: the slide is closed; open it again")
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"x, y: expected finite numbers, got {x}, {y}")
        if width < 0 or height < 0:
            raise ValueError(f"width, height: expected 0 or more pixels, got {width}, {height}")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: expected a positive number, got {scale}")
        if abs(scale - round(scale)) <= SCALE_EPSILON * scale and scale > 0.5:
            scale = float(round(scale))

        index = self._level_for(scale)
        downsample = self.levels[index].downsample
        left, top, step = x / downsample, y / downsample, scale / downsample
        out = np.empty((height, width, 3), np.uint8)
        if not out.size:
            return out
        # Here for the whole window, and again for its parts: a sparse slide may measure a million pixels.
        reach = math.ceil(FILTER_SUPPORT * max(step, 1.0)) + 1
        right, bottom = (math.ceil(at + size * step) + reach for at, size in ((left, width), (top, height)))
        if self._is_white(index, math.floor(left) - reach, math.floor(top) - reach, right, bottom):
            out[...] = WHITE
        elif not _whole(left, top, step):
            self._resample(index, x, y, scale, out)
        elif not self._read_whole(index, left, top, step, out, parts):
            block = max(1, int(MAX_SOURCE_PX / step))
            for row in range(0, height, block):
                for col in range(0, width, block):
                    view = out[row : row + block, col : col + block]
                    self._sample(index, left + col * step, top + row * step, step, view)
        return out

    def read_around_damage(
        self,
        x: float,
        y: float,
        width: int,
        height: int,
        scale: float,
        *,
        fill: int,
        damage: list[Part] | None = None,
    ) -> NDArray[np.uint8]:
        """:meth:`read_scaled`, but what cannot be read, and a little around it, has the grey value ``fill``.

        For looks that one bad tile should not prevent. The first damage is logged; all of it is added to
        ``damage``, in level-0 pixels.
        """
        try:
            return self.read_scaled(x, y, width, height, scale)
        except SlideError as error:
            if self._closed:
                raise
            if not self._damage_told:
                self._damage_told = True
                logger.warning("%s; until then it counts as tissue and is white in the overlay", error)
        if max(width, height) <= DAMAGE_PX:
            if damage is not None:
                damage.append((round(x), round(y), math.ceil(width * scale), math.ceil(height * scale)))
            return np.full((height, width, 3), fill, np.uint8)

        def part(across: int, down: int, columns: int, rows: int) -> NDArray[np.uint8]:
            at = x + across * scale, y + down * scale
            return self.read_around_damage(*at, columns, rows, scale, fill=fill, damage=damage)

        if width >= height:
            first = width // 2
            halves = part(0, 0, first, height), part(first, 0, width - first, height)
            return np.concatenate(halves, axis=1)
        first = height // 2
        return np.concatenate([part(0, 0, width, first), part(0, first, width, height - first)])

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """The whole slide, scaled so that its longer side has at most ``max_px`` pixels; never enlarged."""
        if max_px < 1:
            raise ValueError(f"max_px: expected at least 1, got {max_px}")
        width, height = self.dimensions
        scale = max(1.0, max(width, height) / max_px)
        return self.read_scaled(0, 0, max(1, round(width / scale)), max(1, round(height / scale)), scale)

    def _level_for(self, scale: float) -> int:
        """The coarsest level that still has the detail: its downsample is at most ``scale``."""
        index = 0
        for candidate, level in enumerate(self.levels):
            if self.levels[index].downsample < level.downsample <= scale * LEVEL_TOLERANCE:
                index = candidate
        return index

    def read_average(
        self,
        level: int,
        x: int,
        y: int,
        factor: int,
        out: NDArray[np.uint8],
        parts: Sequence[Part] | None = None,
    ) -> bool:
        """Fill ``out`` with averages over squares of ``factor`` pixels of a level, from (x, y) on.

        For backends that can do so piece by piece, without holding all pixels; others leave it, and return
        False. What lies beside all ``parts`` of ``out`` may be left white; None: all is needed. The caller
        guarantees that the area lies inside the level. Called from several threads at once.

        Raises:
            SlideError: the file is damaged there.
        """
        return False

    def stores(self, level: int, x: int, y: int, width: int, height: int) -> bool:
        """Whether the file holds anything of a rectangle that lies inside a level; if not, it is white.

        For backends that know, and can say so at once; others leave it, and return True.
        """
        return True

    def _is_white(self, level: int, x0: int, y0: int, x1: int, y1: int) -> bool:
        """Whether a half-open rectangle lies beside the level, or where nothing is stored."""
        extent = self.levels[level]
        left, top = max(x0, 0), max(y0, 0)
        width, height = min(x1, extent.width) - left, min(y1, extent.height) - top
        return width <= 0 or height <= 0 or not self.stores(level, left, top, width, height)

    def _read_whole(
        self,
        level: int,
        left: float,
        top: float,
        step: float,
        out: NDArray[np.uint8],
        parts: Sequence[Part] | None,
    ) -> bool:
        """Fill ``out`` by ``read_average`` as far as it lies inside the level; False where that cannot be."""
        x, y, factor = round(left), round(top), round(step)
        height, width, _ = out.shape
        extent = self.levels[level]
        # Output pixels of which all lies inside.
        c0, r0 = max(0, -(x // factor)), max(0, -(y // factor))
        c1, r1 = min(width, (extent.width - x) // factor), min(height, (extent.height - y) // factor)
        if c1 <= c0 or r1 <= r0:
            return False
        inside = None if parts is None else [(px - c0, py - r0, w, h) for px, py, w, h in parts]
        if not self.read_average(level, x + c0 * factor, y + r0 * factor, factor, out[r0:r1, c0:c1], inside):
            return False
        for rows, cols in (
            (slice(0, r0), slice(0, width)),
            (slice(r1, height), slice(0, width)),
            (slice(r0, r1), slice(0, c0)),
            (slice(r0, r1), slice(c1, width)),
        ):
            if rows.start < rows.stop and cols.start < cols.stop:
                self._sample(level, x + cols.start * step, y + rows.start * step, step, out[rows, cols])
        return True

    def _sample(self, level: int, left: float, top: float, step: float, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with averages over squares of ``step`` pixels of the level, which are whole ones."""
        from PIL import Image

        height, width, _ = out.shape
        x, y, factor = round(left), round(top), round(step)
        if self._is_white(level, x, y, x + width * factor, y + height * factor):
            out[...] = WHITE
            return
        pixels = self._window(level, x, y, x + width * factor, y + height * factor)
        out[...] = pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))

    def _resample(self, level: int, x: float, y: float, scale: float, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` where ``scale`` or the position is no whole number of the level's pixels."""
        height, width, _ = out.shape
        downsample = self.levels[level].downsample
        across, down = _Axis.at(x, scale, downsample), _Axis.at(y, scale, downsample)
        block = max(1, int(MAX_SOURCE_PX / across.step) // across.block) * across.block
        for rows in down.cut(height, block):
            for cols in across.cut(width, block):
                pixels = self._resample_blocks(level, across, down, cols, rows)
                pixels = pixels[rows[0] % down.block :, cols[0] % across.block :]
                view = out[rows[0] - down.first : rows[1] - down.first, cols[0] - across.first :]
                view[:, : cols[1] - cols[0]] = pixels[: rows[1] - rows[0], : cols[1] - cols[0]]

    def _resample_blocks(
        self, level: int, across: _Axis, down: _Axis, cols: tuple[int, int], rows: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """All blocks of the grid that hold these columns and rows."""
        from PIL import Image

        columns, lines = across.blocks(*cols), down.blocks(*rows)
        x0, x1, y0, y1 = columns[0].start, columns[-1].stop, lines[0].start, lines[-1].stop
        shape = len(lines) * down.block, len(columns) * across.block, 3
        if self._is_white(level, x0, y0, x1, y1):
            return np.full(shape, WHITE, np.uint8)
        resample = Image.Resampling.HAMMING if across.step >= HAMMING_FROM else Image.Resampling.BILINEAR
        source = Image.fromarray(self._window(level, x0, y0, x1, y1))
        # One axis after the other, as the order in which one call treats the axes, and with it the rounding
        # between them, depends on the window's shape.
        narrow = Image.new("RGB", (shape[1], source.height))
        for number, part in enumerate(columns):
            piece = source.crop((part.start - x0, 0, part.stop - x0, source.height))
            box = (part.begin - part.start, 0, part.end - part.start, source.height)
            piece = piece.resize((across.block, source.height), resample, box=box)
            narrow.paste(piece, (number * across.block, 0))
        out = Image.new("RGB", (shape[1], shape[0]))
        for number, part in enumerate(lines):
            piece = narrow.crop((0, part.start - y0, shape[1], part.stop - y0))
            area = (0, part.begin - part.start, shape[1], part.end - part.start)
            out.paste(piece.resize((shape[1], down.block), resample, box=area), (0, number * down.block))
        return np.asarray(out)

    def _window(self, level: int, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """The level's pixels in a half-open rectangle that touches it, white where it leaves the level."""
        extent = self.levels[level]
        left, top = max(x0, 0), max(y0, 0)
        right, bottom = min(x1, extent.width), min(y1, extent.height)
        inside = self.read_level(level, left, top, right - left, bottom - top)
        if (left, top, right, bottom) == (x0, y0, x1, y1):
            return inside
        window = np.full((y1 - y0, x1 - x0, 3), WHITE, np.uint8)
        window[top - y0 : bottom - y0, left - x0 : right - x0] = inside
        return window


def _whole(left: float, top: float, step: float) -> bool:
    """Whether every output pixel is a square of whole source pixels."""
    return step == round(step) and max(abs(left - round(left)), abs(top - round(top))) <= PHASE_EPSILON


@dataclass(frozen=True)
class _Block:
    """Output pixels along one axis: they cover [begin, end) of the source and see [start, stop)."""

    begin: float
    end: float
    start: int
    stop: int


@dataclass(frozen=True)
class _Axis:
    """The grid of output pixels along one axis: pixel i starts at ``origin + i * scale`` of level 0.

    Attributes:
        first: the first pixel that is wanted.
        block: pixels that are made at once, from a multiple of this on.
    """

    origin: float
    first: int
    scale: float
    downsample: float
    block: int

    @property
    def step(self) -> float:
        """Source pixels per output pixel."""
        return self.scale / self.downsample

    @classmethod
    def at(cls, position: float, scale: float, downsample: float) -> _Axis:
        """The slide's own grid if ``position`` lies on it, else one that begins there."""
        source = min(GRID_SOURCE_PX, MAX_SOURCE_PX) * downsample / scale
        block = 2 ** max(0, math.floor(math.log2(source)))
        first = round(position / scale)
        if abs(position / scale - first) <= GRID_EPSILON:
            return cls(0.0, first, scale, downsample, block)
        return cls(position, 0, scale, downsample, block)

    def cut(self, size: int, most: int) -> list[tuple[int, int]]:
        """The wanted pixels [first, first + size), cut at multiples of ``most``."""
        end = self.first + size
        cuts = range((self.first // most + 1) * most, end, most)
        return list(pairwise([self.first, *cuts, end]))

    def blocks(self, begin: int, end: int) -> list[_Block]:
        """The blocks that hold pixels [begin, end)."""
        # The filter must see true neighbours at the border of a block, or seams would show.
        context = math.ceil(FILTER_SUPPORT * max(self.step, 1.0)) + 1
        blocks = []
        for pixel in range(begin // self.block * self.block, end, self.block):
            low, high = (
                (self.origin + at * self.scale) / self.downsample for at in (pixel, pixel + self.block)
            )
            blocks.append(_Block(low, high, math.floor(low) - context, math.ceil(high) + context))
        return blocks
