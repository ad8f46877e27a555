"""The post-processing of a HoVer-Net: from its maps to nuclei."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


def hover_net_labels(
    nucleus_probability: NDArray[np.float32],
    hv_map: NDArray[np.float32],
    *,
    nucleus_threshold: float = 0.5,
    edge_threshold: float = 0.4,
    min_px: int = 10,
    out: NDArray[np.int32] | None = None,
    threads: int = 1,
) -> NDArray[np.int32]:
    """Turn the maps of a HoVer-Net into nuclei.

    Blobs of high probability are split along the steep falls of the two distance maps: Sobel operators of
    21 x 21 px give the strength of edges between nuclei, weak ones make markers, and a watershed grows these
    over the edge strength. The steps are those of the paper's published code (in ``hover_net.hpp`` one by
    one), except that the watershed floods 256 levels instead of floats and settles ties as ``watershed``
    does, and that filters work in single precision. So pixels whose ways from two markers are equally steep
    to 1/256 may go to the other of the two nuclei.

    Derivatives are scaled by their extremes over the whole image: the result of a crop differs a little from
    the crop of the result.

    Args:
        nucleus_probability: (H, W) float32, 0 to 1.
        hv_map: (H, W, 2) float32, finite: horizontal and vertical distance of each pixel to the centre of its
            nucleus, rising from left to right and from top to bottom inside it, in any unit.
        nucleus_threshold: lowest probability of a nucleus.
        edge_threshold: lowest edge strength, 0 to 1, that cannot be a marker.
        min_px: pixels of the smallest blob and of the smallest marker; smaller ones are dropped.
        out: (H, W) int32, C-contiguous, to be filled and returned instead of a new array.
        threads: at most so many; the result does not depend on it.

    Returns:
        (H, W) int32: 0 for background and for blobs without a marker, or 1..n in raster order of the first
        pixel of each nucleus's marker.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: shapes differ, ``hv_map`` is not finite, or ``threads`` is below 1.

    Graham, Vu, Raza, Azam, Tsang, Kwak, Rajpoot: HoVer-Net: Simultaneous segmentation and classification of
    nuclei in multi-tissue histology images. Medical Image Analysis 58, 2019.
    """
    probability = np.ascontiguousarray(nucleus_probability)
    labels = np.empty(probability.shape, np.int32) if out is None else out
    _core.hover_net_labels(
        probability, np.ascontiguousarray(hv_map), nucleus_threshold, edge_threshold, min_px, threads, labels
    )
    return labels
