"""C++ kernels of nucfast; use them through nucfast.ops."""

import numpy as np
from numpy.typing import NDArray

# overlap
def match_pairs(
    true_id: NDArray[np.int64], pred_id: NDArray[np.int64], weight: NDArray[np.float64]
) -> NDArray[np.int64]: ...
def match_points(true: NDArray[np.float64], pred: NDArray[np.float64]) -> NDArray[np.int64]: ...
def overlaps(
    true: NDArray[np.int32], pred: NDArray[np.int32]
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
]: ...
