"""Slow, obvious Python versions of the kernels: the specification the C++ is held to."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

# --- overlap and metrics: loops over nuclei, from the published formulas --------------------------------


def ids_of(labels: NDArray[np.int32]) -> list[int]:
    return [int(number) for number in np.unique(labels) if number != 0]


def overlap_matrices(
    true: NDArray[np.int32], pred: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersection and union of every true nucleus (row) with every predicted one (column)."""
    true_ids, pred_ids = ids_of(true), ids_of(pred)
    shared = np.zeros((len(true_ids), len(pred_ids)), dtype=np.int64)
    union = np.zeros_like(shared)
    pred_areas = [int((pred == q).sum()) for q in pred_ids]
    for i, t in enumerate(true_ids):
        inside = pred[true == t]
        for j, q in enumerate(pred_ids):
            shared[i, j] = (inside == q).sum()
            union[i, j] = len(inside) + pred_areas[j] - shared[i, j]
    return shared, union


def best_pairs(gain: NDArray[np.float64]) -> list[tuple[int, int]]:
    """One-to-one pairs with the largest sum of ``gain``, without those that gain nothing."""
    rows, cols = linear_sum_assignment(gain, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, cols, strict=True) if gain[i, j] > 0]


def match(iou: NDArray[np.float64], threshold: float) -> list[tuple[int, int]]:
    """As many pairs of overlapping nuclei with IoU >= threshold as possible, then the largest sum of IoUs."""
    allowed = (iou >= threshold) & (iou > 0)
    return best_pairs(np.where(allowed, 1 + iou / (2 * max(1, *iou.shape)), 0.0))


def dice(true: NDArray[np.int32], pred: NDArray[np.int32]) -> float:
    both = ((true > 0) & (pred > 0)).sum()
    return float(2 * both / ((true > 0).sum() + (pred > 0).sum()))


def aggregated_jaccard(true: NDArray[np.int32], pred: NDArray[np.int32], *, one_to_one: bool) -> float:
    shared, union = overlap_matrices(true, pred)
    true_areas = [int((true == t).sum()) for t in ids_of(true)]
    pred_areas = [int((pred == q).sum()) for q in ids_of(pred)]
    iou = shared / np.maximum(union, 1)
    if one_to_one:
        pairs = best_pairs(iou)
    else:
        pairs = []
        for i in range(len(true_areas)):
            # max() keeps the first of equals: the smallest id.
            best = max(range(len(pred_areas)), key=lambda j: (iou[i, j], shared[i, j]), default=None)
            if best is not None and shared[i, best]:
                pairs.append((i, best))
    above = sum(int(shared[i, j]) for i, j in pairs)
    below = sum(int(union[i, j]) for i, j in pairs)
    below += sum(area for i, area in enumerate(true_areas) if i not in {i for i, _ in pairs})
    below += sum(area for j, area in enumerate(pred_areas) if j not in {j for _, j in pairs})
    return above / below


def panoptic_counts(true: NDArray[np.int32], pred: NDArray[np.int32]) -> tuple[int, int, int, float]:
    """TP, FP, FN and the sum of the matches' IoUs, at IoU > 0.5."""
    shared, union = overlap_matrices(true, pred)
    tp, total = 0, 0.0
    for i, j in np.argwhere(2 * shared > union):
        tp += 1
        total += shared[i, j] / union[i, j]
    return tp, shared.shape[1] - tp, shared.shape[0] - tp, total


def panoptic(tp: int, fp: int, fn: int, total: float) -> tuple[float, float, float]:
    """PQ, DQ, SQ."""
    dq = tp / (tp + fp / 2 + fn / 2)
    sq = total / tp if tp else 0.0
    return dq * sq, dq, sq


def average_precision(true: NDArray[np.int32], pred: NDArray[np.int32], threshold: float) -> float:
    shared, union = overlap_matrices(true, pred)
    tp = len(match(shared / np.maximum(union, 1), threshold))
    return tp / (sum(shared.shape) - tp)


def majority_type(labels: NDArray[np.int32], types: NDArray[np.uint8], number: int) -> int:
    votes = types[labels == number]
    votes = votes[votes > 0]
    return int(np.bincount(votes).argmax()) if len(votes) else 0


def detection_pairs(
    true: NDArray[np.int32], pred: NDArray[np.int32], radius_px: float
) -> list[tuple[int, int]]:
    """Pairs of ids by the smallest sum of centroid distances, cut at the radius afterwards."""
    true_ids, pred_ids = ids_of(true), ids_of(pred)
    true_points = [np.argwhere(true == t).mean(axis=0) for t in true_ids]
    pred_points = [np.argwhere(pred == q).mean(axis=0) for q in pred_ids]
    distance = np.array([[np.linalg.norm(a - b) for b in pred_points] for a in true_points])
    distance = distance.reshape(len(true_ids), len(pred_ids))
    rows, cols = linear_sum_assignment(distance)
    return [
        (true_ids[i], pred_ids[j]) for i, j in zip(rows, cols, strict=True) if distance[i, j] <= radius_px
    ]


def type_f1(
    images: list[tuple[list[tuple[int, int]], Mapping[int, int], Mapping[int, int]]], number: int
) -> float:
    """F_c of the HoVer-Net paper over (pairs, true types, predicted types) of each image."""
    tp_c = fp_c = fn_c = fp_d = fn_d = 0
    for pairs, true_types, pred_types in images:
        for t, q in pairs:
            tp_c += true_types[t] == number and pred_types[q] == number
            fp_c += true_types[t] != number and pred_types[q] == number
            fn_c += true_types[t] == number and pred_types[q] != number
        fn_d += sum(c == number for t, c in true_types.items() if t not in {t for t, _ in pairs})
        fp_d += sum(c == number for q, c in pred_types.items() if q not in {q for _, q in pairs})
    return 2 * tp_c / (2 * tp_c + 2 * fp_c + 2 * fn_c + fp_d + fn_d)
