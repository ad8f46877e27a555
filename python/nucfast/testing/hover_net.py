"""What a HoVer-Net would predict for a known label map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hover_net_maps(
    labels: NDArray[np.int32], *, noise: float = 0.1, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make nucleus probability and distance maps of labels, with noise.

    Args:
        labels: (H, W) int32, 0 = background.
        noise: standard deviation of what is added to each pixel of the maps.
        seed: equal seeds give equal maps.

    Returns:
        (H, W) float32 probability, 0 to 1, and (H, W, 2) float32: column and row relative to the centroid of
        the pixel's nucleus, -1 and 1 at its ends, about 0 in the background.
    """
    rng = np.random.default_rng(seed)
    flat = labels.ravel()
    areas = np.maximum(np.bincount(flat), 1)
    hv = np.empty((*labels.shape, 2), np.float32)
    for k, axis in enumerate((1, 0)):
        place = np.indices(labels.shape)[axis].ravel()
        offset = place - (np.bincount(flat, place) / areas)[flat]
        reach = np.ones((2, areas.size))
        np.maximum.at(reach, (np.int64(offset > 0), flat), np.abs(offset))
        offset /= reach[np.int64(offset > 0), flat]
        offset[flat == 0] = 0
        hv[..., k] = offset.reshape(labels.shape) + rng.normal(0, noise, labels.shape)
    probability = np.where(labels > 0, 0.9, 0.1) + rng.normal(0, noise, labels.shape)
    return probability.clip(0, 1).astype(np.float32), hv
