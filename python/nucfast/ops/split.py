"""The pipeline's own splitting of touching nuclei: local, so that a halo makes regions exact."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


def split_instances(
    height: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    *,
    min_rise: int,
    out: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """Split a mask into nuclei along the valleys of a height map.

    Every pixel climbs to its highest 8-neighbour until it stands on a summit; pixels that share a summit are
    a basin. Basins that share an edge are joined, over their highest saddles first, if the lower of the two
    summits rises less than ``min_rise`` above the saddle. Each summit that stands out by at least
    ``min_rise`` from the way to any higher one thus becomes one nucleus (its "dynamics", Grimaud 1992).

    The result is local: it depends on the surroundings of a nucleus, not on the far end of its clump, so away
    from its edges a crop of an image has the same nuclei as the image, to the pixel.

    Args:
        height: (H, W) uint8, higher towards nucleus centres, such as a predicted distance to the edge.
        mask: (H, W) bool. Nuclei live only where true; disconnected parts are never one nucleus.
        min_rise: how far a summit must stand out to be a nucleus of its own, in units of ``height``. 1 only
            joins summits on one plateau, 0 or less joins nothing, above 255 nothing is split.
        out: (H, W) int32, C-contiguous, to be filled and returned instead of a new array.

    Returns:
        (H, W) int32: 0, or 1..n in raster order of each nucleus's first pixel. Nuclei are 4-connected and
        cover the mask, except for pixels that hang on to theirs by a corner only: of each nucleus the
        largest 4-connected part is kept, of equally large ones the first in raster order.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: shapes differ.

    Grimaud: A new measure of contrast: the dynamics. Image Algebra and Morphological Image Processing III,
    Proc. SPIE 1769, 1992.
    """
    height = np.ascontiguousarray(height)
    nuclei = np.empty(height.shape, np.int32) if out is None else out
    _core.split_instances(height, np.ascontiguousarray(mask), min_rise, nuclei)
    return nuclei


def find_nuclei(
    probability: NDArray[np.uint8],
    height: NDArray[np.uint8],
    *,
    threshold: int,
    min_rise: int,
    peak_share: float = 0.0,
    max_hole_px: float = 0.0,
    min_area_px: float = 0.0,
    out: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """Turn a network's maps into nuclei.

    ``height`` is smoothed with the 3x3 binomial kernel, so that a single pixel makes no summit. The mask is
    where the probability is at or above ``threshold``. It is split as by ``split_instances``; of each nucleus
    stay the pixels with at least ``peak_share`` of its highest probability, so that with a low threshold
    faint nuclei are found and clear ones are not widened. Then its small holes are filled. What is left of it
    in 4-connected parts are as many nuclei, but for those that are too small.

    Args:
        probability: (H, W) uint8, of nucleus.
        height: (H, W) uint8, higher towards nucleus centres, such as a predicted distance to the edge.
        threshold: lowest probability in the mask, 1 to 255.
        min_rise: how far a summit of ``height`` must stand out, as for ``split_instances``.
        peak_share: 0 to 1; 0 leaves the mask as it is.
        max_hole_px: 4-connected holes of at most so many pixels are filled, unless they reach the edge or lie
            between several nuclei.
        min_area_px: a nucleus has at least so many pixels.
        out: (H, W) int32, C-contiguous, to be filled and returned instead of a new array.

    Returns:
        (H, W) int32: 0, or 1..n in raster order of the first pixel, each 4-connected.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: shapes differ, or ``threshold`` or ``peak_share`` is out of range.
    """
    if not 1 <= threshold <= 255:
        raise ValueError(f"threshold: expected 1 to 255, got {threshold}")
    if not 0.0 <= peak_share <= 1.0:
        raise ValueError(f"peak_share: expected 0 to 1, got {peak_share}")
    probability = np.ascontiguousarray(probability)
    nuclei = np.empty(probability.shape, np.int32) if out is None else out
    _core.find_nuclei(
        probability,
        np.ascontiguousarray(height),
        threshold,
        min_rise,
        peak_share,
        max_hole_px,
        min_area_px,
        nuclei,
    )
    return nuclei
