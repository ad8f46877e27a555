"""Dense random label maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_blobs(
    shape: tuple[int, int], *, count: int, seed: int = 0, radius_px: tuple[float, float] = (3.0, 9.0)
) -> NDArray[np.int32]:
    """Random ellipses; where they overlap, a pixel is of the one whose own centre it is nearest to.

    So many touch, along lines as between real nuclei that crowd each other.

    Args:
        shape: (H, W) of the map.
        count: ellipses drawn; ellipses that others hide entirely do not appear.
        seed: equal seeds give equal maps.
        radius_px: range of the semi-axes.

    Returns:
        (H, W) int32, 0 = background, 1..n without gaps, n <= count. A cut ellipse may be in two pieces.
    """
    rng = np.random.default_rng(seed)
    height, width = shape
    labels = np.zeros(shape, np.int32)
    depths = np.ones(shape, np.float32)  # in a pixel's own ellipse: 0 at the centre, 1 on the edge
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
        depth = (along / a) ** 2 + (across / b) ** 2
        window = np.s_[top:bottom, left:right]
        nearer = depth < depths[window]
        labels[window][nearer] = label
        depths[window][nearer] = depth[nearer]
    present = np.zeros(count + 1, np.bool_)
    present[labels] = True
    present[0] = False
    return np.where(present, np.cumsum(present), 0).astype(np.int32)[labels]
