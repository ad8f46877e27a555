"""Dense random label maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_blobs(
    shape: tuple[int, int], *, count: int, seed: int = 0, radius_px: tuple[float, float] = (3.0, 9.0)
) -> NDArray[np.int32]:
    """Random ellipses, each drawn over the earlier ones, so that many touch and some are cut.

    Args:
        shape: (H, W) of the map.
        count: ellipses drawn; ellipses that later ones hide entirely do not appear.
        seed: equal seeds give equal maps.
        radius_px: range of the semi-axes.

    Returns:
        (H, W) int32, 0 = background, 1..n without gaps, n <= count. A cut ellipse may be in two pieces.
    """
    rng = np.random.default_rng(seed)
    height, width = shape
    labels = np.zeros(shape, np.int32)
    for label in range(1, count + 1):
        row, col = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(*radius_px, 2)
        angle = rng.uniform(0, np.pi)
        reach = max(a, b) + 1
        top, left = max(0, int(row - reach)), max(0, int(col - reach))
        bottom, right = min(height, int(row + reach) + 1), min(width, int(col + reach) + 1)
        dy = np.arange(top, bottom)[:, None] + 0.5 - row
        dx = np.arange(left, right) + 0.5 - col
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        labels[top:bottom, left:right][(along / a) ** 2 + (across / b) ** 2 <= 1] = label
    present = np.unique(labels)
    present = present[present > 0]
    ranks = np.zeros(count + 1, np.int32)
    ranks[present] = np.arange(1, present.size + 1, dtype=np.int32)
    return ranks[labels]
