"""Exact Euclidean distance transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


def distance_transform(
    image: NDArray[np.bool_] | NDArray[np.int32],
    *,
    out: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Measure, in each object, the exact distance to the nearest pixel outside it.

    For a mask this is ``scipy.ndimage.distance_transform_edt``; in a label map the distance ends at the
    nearest pixel of any other value, so touching objects each get their own dome.

    Args:
        image: (H, W) bool or int32, sides up to 2^24 pixels; zero is background.
        out: (H, W) float32, C-contiguous, to be filled and returned instead of a new array.
        threads: how many threads to use at most, fewer for small images; the result does not depend on it.

    Returns:
        (H, W) float32: the distance in pixels between the centres of a pixel and of the nearest pixel of
        another value; 0 for background. The border of the image is not background: an object it cuts is as
        deep as if it went on. If no pixel of another value exists, the distance is ``inf``.

    Raises:
        TypeError: ``image`` or ``out`` has another dtype; nothing is cast silently.
        ValueError: shapes differ, a side is too long, or ``threads`` is out of range.

    Meijster, Roerdink, Hesselink: A general algorithm for computing distance transforms in linear time.
    Mathematical Morphology and its Applications to Image and Signal Processing, 2000.
    """
    values: NDArray[Any] = np.ascontiguousarray(image)
    distances = np.empty(values.shape, np.float32) if out is None else out
    _core.distance_transform(values, distances, threads)
    return distances
