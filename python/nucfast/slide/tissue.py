"""Where the tissue is, so that empty glass costs nothing.

Losing tissue loses nuclei; keeping glass costs only time. Every choice below leans to keeping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nucfast.slide.base import Slide

# Where the slide has no mpp: what 8 um are at 20x.
_DEFAULT_SCALE = 16.0

# A mask of a slide with an absurd mpp must not fill the memory: coarser then.
_MAX_MASK_PX = 2**26

# Side of the part of the mask computed at once.
_BLOCK_PX = 512

# Glass is bright, grey and even: the peak of the histogram among pixels at least this bright whose channels
# differ by at most this much, if the peak and its neighbours hold this share of the slide. Pale pink stroma
# is bright, too, but not grey.
_MIN_GLASS = 215
_MAX_SATURATION = 12
_PEAK_WIDTH = 3
_MIN_PEAK_SHARE = 0.01

# Darker than glass by less than the first is noise of the sensor and of JPEG; by more than the second it is
# tissue, whatever Otsu's threshold says: dark folds and ink must not hide pale stroma.
_MIN_CONTRAST, _MAX_CONTRAST = 8, 12

# A pixel is dust unless at least this many of the 5 x 5 around it are tissue. At 8 um two pixels are one
# large cell, so smears keep their single cells.
_MIN_CLUSTER = 2

# Holes up to twice this radius are closed (vessels, glands, fat), and the border grows by the margin.
_CLOSE_PX = 4
_MARGIN_PX = 2

# An image of at most this side is one region or so: if it holds any tissue, all of it is taken.
_SMALL_MASK_PX = 128


@dataclass(frozen=True)
class TissueMask:
    """Tissue on a coarse grid.

    Attributes:
        mask: (rows, cols) bool; cell (r, c) covers the level-0 square at (c, r) * ``scale``, of side
            ``scale``.
        scale: level-0 pixels per cell.
    """

    mask: NDArray[np.bool_]
    scale: float

    @property
    def fraction(self) -> float:
        """Share of the slide that is tissue, 0 to 1."""
        return float(self.mask.mean()) if self.mask.size else 0.0

    def any_in(self, x: float, y: float, width: float, height: float) -> bool:
        """Whether a rectangle in level-0 pixels touches tissue; False outside the slide."""
        if width <= 0 or height <= 0:
            return False
        left, top = max(0, math.floor(x / self.scale)), max(0, math.floor(y / self.scale))
        right, bottom = math.ceil((x + width) / self.scale), math.ceil((y + height) / self.scale)
        return bool(self.mask[top:bottom, left:right].any())


def tissue_mask(slide: Slide, *, mpp: float = 8.0) -> TissueMask:
    """Find the tissue of a bright-field slide.

    A pixel is tissue if its darkest channel, which sees pale pink and dark blue alike, is below Otsu's
    threshold (A threshold selection method from gray-level histograms, 1979), the latter kept near the value
    of the glass. Specks are dropped, small holes closed, and the border widened. A slide without any
    glass is all tissue; so is fluorescence.

    What cannot be read is taken for tissue. Memory grows with the mask only, not with the slide.

    Args:
        slide: any slide; one without mpp gets cells of 16 x 16 pixels.
        mpp: size of a cell in micrometres, at least the slide's own.

    Raises:
        ValueError: ``mpp`` is not positive.
    """
    if not (math.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp: expected a positive number, got {mpp}")
    scale = max(1.0, _DEFAULT_SCALE if slide.mpp is None else mpp / slide.mpp)
    width, height = slide.dimensions
    scale = max(scale, math.sqrt(width * height / _MAX_MASK_PX))
    darkest, glass_counts = _darkest_channel(slide, scale)
    counts = np.bincount(darkest.reshape(-1), minlength=256)
    mask = darkest < _threshold(counts, glass_counts)
    if not mask.any():
        return TissueMask(mask, scale)
    mask &= _count_5x5(mask) >= min(_MIN_CLUSTER, mask.size)
    if mask.any() and max(mask.shape) <= _SMALL_MASK_PX:
        mask[...] = True
    else:
        mask = _dilate(_erode(_dilate(mask, _CLOSE_PX), _CLOSE_PX), _MARGIN_PX)
    return TissueMask(mask, scale)


def _darkest_channel(slide: Slide, scale: float) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The mask's cells as (rows, cols) minimum over R, G, B; and the histogram of it over the grey ones."""
    width, height = slide.dimensions
    cols, rows = math.ceil(width / scale), math.ceil(height / scale)
    darkest = np.empty((rows, cols), np.uint8)
    grey_counts = np.zeros(256, np.int64)
    for row in range(0, rows, _BLOCK_PX):
        for col in range(0, cols, _BLOCK_PX):
            view = darkest[row : row + _BLOCK_PX, col : col + _BLOCK_PX]
            # Black counts as tissue: the regions there find out what can be read.
            block = slide.read_around_damage(
                col * scale, row * scale, view.shape[1], view.shape[0], scale, fill=0
            )
            np.min(block, axis=2, out=view)
            grey = block.max(axis=2) - view <= _MAX_SATURATION
            grey_counts += np.bincount(view[grey], minlength=256)
    return darkest, grey_counts


def _threshold(counts: NDArray[np.int64], grey_counts: NDArray[np.int64]) -> int:
    """Values below this are tissue."""
    glass = _glass(grey_counts, int(counts.sum()))
    if glass is None:
        return 256
    return min(max(_otsu(counts), glass - _MAX_CONTRAST), glass - _MIN_CONTRAST)


def _glass(grey_counts: NDArray[np.int64], total: int) -> int | None:
    """The value of the glass, None if there is none to be seen.

    Pure white is no measurement but what lies outside the scanned part, or a background that was painted out:
    it counts where there is no other.
    """
    peaks = np.convolve(grey_counts[:255], np.ones(2 * _PEAK_WIDTH + 1, np.int64), mode="same")
    peak = _MIN_GLASS + int(peaks[_MIN_GLASS:].argmax())
    if peaks[peak] >= _MIN_PEAK_SHARE * total:
        return peak
    return 255 if grey_counts[255] >= _MIN_PEAK_SHARE * total else None


def _otsu(counts: NDArray[np.int64]) -> int:
    """The first value of the brighter of two classes, split so that the variance between them is greatest."""
    values = np.arange(256)
    below = np.cumsum(counts) - counts
    above = counts.sum() - below
    sums = np.cumsum(counts * values) - counts * values
    total = float((counts * values).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (total - sums) / above) ** 2
    return int(np.nan_to_num(between).argmax())


def _count_5x5(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """How many of the 5 x 5 cells around each are True; outside counts as False."""
    count = mask.astype(np.uint8)
    for axis in (0, 1):
        source = np.swapaxes(count, 0, axis)
        total = source.copy()
        for shift in (1, 2):
            total[shift:] += source[:-shift]
            total[:-shift] += source[shift:]
        count = np.swapaxes(total, 0, axis)
    return count


def _dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Maximum over a square of side 2 * radius + 1; outside counts as False."""
    for axis in (0, 1):
        source = np.swapaxes(mask, 0, axis)
        grown = source.copy()
        for shift in range(1, radius + 1):
            grown[shift:] |= source[:-shift]
            grown[:-shift] |= source[shift:]
        mask = np.swapaxes(grown, 0, axis)
    return mask


def _erode(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Minimum over a square; outside counts as True, so tissue is not eaten at the border of the slide."""
    return ~_dilate(~mask, radius)
