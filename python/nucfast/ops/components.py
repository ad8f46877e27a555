"""Connected components of masks and label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


def label(
    image: NDArray[np.bool_] | NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int32],
    *,
    connectivity: int = 8,
    out: NDArray[np.int32] | None = None,
    threads: int = 1,
) -> NDArray[np.int32]:
    """Number the connected components of an image.

    A component is a connected set of pixels of one equal, non-zero value, so the objects of a label map stay
    apart where they touch, and an object in several parts gets several numbers.

    Args:
        image: (H, W) bool, uint8, uint16 or int32; zero is background.
        connectivity: 8 if pixels that share a corner are connected, 4 if they must share an edge.
        out: (H, W) int32, C-contiguous, to be filled and returned instead of a new array.
        threads: how many threads to use at most, fewer for small images; the result does not depend on it.

    Returns:
        (H, W) int32: 0 for background, 1..n in raster order of each component's first pixel, which is the
        numbering of ``scipy.ndimage.label`` and ``skimage.measure.label``.

    Raises:
        TypeError: ``image`` or ``out`` has another dtype; nothing is cast silently.
        ValueError: shapes differ, ``connectivity`` or ``threads`` is out of range, or there are more than
            2^30 columns or 2^31 - 1 components. The number of pixels has no limit.

    He, Chao, Suzuki: A run-based two-scan labeling algorithm. IEEE Trans. Image Processing 17(5), 2008.
    """
    values: NDArray[Any] = np.ascontiguousarray(image)
    labels = np.empty(values.shape, np.int32) if out is None else out
    _core.label_components(values, labels, connectivity, threads)
    return labels
