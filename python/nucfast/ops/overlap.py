"""What two label maps of one image share, and which nucleus of one is which of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs of nuclei that share pixels, and the nuclei themselves; all that instance metrics need.

    Pairs are sorted by (true id, pred id), nuclei by id. Background is in none of them.

    Attributes:
        true_id: (P,) int64, id in the true map.
        pred_id: (P,) int64, id in the predicted map.
        count: (P,) int64, pixels shared, at least 1.
        iou: (P,) float64, ``count / (true area + pred area - count)``.
        true_ids: (T,) int64, every id of the true map.
        true_areas: (T,) int64, pixels.
        true_centroids: (T, 2) float64, mean (row, col) of the pixel indices.
        pred_ids: (Q,) int64, every id of the predicted map.
        pred_areas: (Q,) int64, pixels.
        pred_centroids: (Q, 2) float64, mean (row, col) of the pixel indices.
    """

    true_id: NDArray[np.int64] = field(repr=False)
    pred_id: NDArray[np.int64] = field(repr=False)
    count: NDArray[np.int64] = field(repr=False)
    iou: NDArray[np.float64] = field(repr=False)
    true_ids: NDArray[np.int64] = field(repr=False)
    true_areas: NDArray[np.int64] = field(repr=False)
    true_centroids: NDArray[np.float64] = field(repr=False)
    pred_ids: NDArray[np.int64] = field(repr=False)
    pred_areas: NDArray[np.int64] = field(repr=False)
    pred_centroids: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Matches:
    """A one-to-one matching of true and predicted nuclei.

    Attributes:
        true_id: (M,) int64, ascending: the matched true nuclei ...
        pred_id: (M,) int64: ... and the predicted nucleus of each.
        iou: (M,) float64, their intersection over union.
        missed_true: ids of true nuclei without a match (false negatives), ascending.
        extra_pred: ids of predicted nuclei without a match (false positives), ascending.
    """

    true_id: NDArray[np.int64] = field(repr=False)
    pred_id: NDArray[np.int64] = field(repr=False)
    iou: NDArray[np.float64] = field(repr=False)
    missed_true: NDArray[np.int64] = field(repr=False)
    extra_pred: NDArray[np.int64] = field(repr=False)

    @property
    def tp(self) -> int:
        """Number of matched pairs."""
        return len(self.true_id)

    @property
    def fp(self) -> int:
        """Number of predicted nuclei without a match."""
        return len(self.extra_pred)

    @property
    def fn(self) -> int:
        """Number of true nuclei without a match."""
        return len(self.missed_true)


def overlaps(true: NDArray[np.int32], pred: NDArray[np.int32], *, threads: int = 1) -> Overlaps:
    """Count the pixels that each true nucleus shares with each predicted one.

    Linear in pixels; there is no dense matrix, and ids may be anything from 1 to 2^31 - 1 with gaps.

    Args:
        true: (H, W) int32, 0 = background.
        pred: (H, W) int32, 0 = background.
        threads: at most so many; the result does not depend on it.

    Raises:
        TypeError: a map is not int32; nothing is cast silently.
        ValueError: shapes differ, an id is negative, or ``threads`` is below 1.
    """
    return Overlaps(*_core.overlaps(np.ascontiguousarray(true), np.ascontiguousarray(pred), threads))


@dataclass(frozen=True)
class InstanceSums:
    """What the instance scores of one image are made of; pixels and pairs are whole numbers.

    Attributes:
        good: pairs with IoU > 0.5; no nucleus is in two of them.
        good_iou: the sum of their IoUs.
        matched: by threshold, the pairs of ``match`` at IoU 0.5 that reach it.
        matched_iou: the sum of the IoUs of that matching.
        best_shared: pixels that each overlapped true nucleus shares with the predicted one of highest IoU
            (ties: the larger overlap, then the smaller id), which several may take.
        best_union: pixels of the unions of these pairs and of all nuclei left over.
        one_to_one_shared: pixels shared by the pairs of the one-to-one matching with the largest sum of IoUs.
        one_to_one_union: pixels of their unions and of all nuclei left over.
    """

    good: int
    good_iou: float
    matched: list[int]
    matched_iou: float
    best_shared: int
    best_union: int
    one_to_one_shared: int
    one_to_one_union: int


def instance_sums(found: Overlaps, *, thresholds: Sequence[float]) -> InstanceSums:
    """Add up overlaps as AP, PQ and AJI need them.

    Args:
        found: the result of ``overlaps``.
        thresholds: IoUs from 0.5 to 1 at which ``InstanceSums.matched`` counts.

    Raises:
        ValueError: a threshold is outside 0.5 to 1.
    """
    for threshold in thresholds:
        if not 0.5 <= threshold <= 1.0:
            raise ValueError(f"thresholds: expected 0.5 to 1, got {threshold}")
    return InstanceSums(
        *_core.instance_sums(
            found.true_id,
            found.pred_id,
            found.count,
            found.iou,
            found.true_ids,
            found.true_areas,
            found.pred_ids,
            found.pred_areas,
            list(thresholds),
        )
    )


def match(true: NDArray[np.int32], pred: NDArray[np.int32], *, iou_threshold: float = 0.5) -> Matches:
    """Match true and predicted nuclei one to one.

    A pair may match if the nuclei overlap and IoU >= ``iou_threshold``. Among such pairs the matching has as
    many pairs as possible and, of all those, the largest sum of IoUs. That is StarDist's number of matches at
    every threshold, except that pairs below the threshold have no say in which of equally many are taken.

    Above 0.5 no nucleus has two candidates, so the matching is unique. At exactly 0.5 a nucleus has two only
    if they are two halves of it, pixel for pixel; it then matches one of them and the other stays over.

    Args:
        true: (H, W) int32, 0 = background.
        pred: (H, W) int32, 0 = background.
        iou_threshold: from 0 (any overlap) to 1 (identical).

    Raises:
        TypeError: a map is not int32.
        ValueError: shapes differ, an id is negative, or the threshold is outside 0 to 1.
    """
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold: expected 0 to 1, got {iou_threshold}")
    found = overlaps(true, pred)
    candidates = np.flatnonzero(found.iou >= iou_threshold)
    # All IoUs together weigh less than one pair more.
    most = max(1, min(len(found.true_ids), len(found.pred_ids)))
    weight = 1.0 + found.iou[candidates] / (2.0 * most)
    picked = candidates[_core.match_pairs(found.true_id[candidates], found.pred_id[candidates], weight)]
    true_id, pred_id = found.true_id[picked], found.pred_id[picked]
    return Matches(
        true_id=true_id,
        pred_id=pred_id,
        iou=found.iou[picked],
        missed_true=_without(found.true_ids, true_id),
        extra_pred=_without(found.pred_ids, pred_id),
    )


def match_points(
    true: NDArray[np.float64], pred: NDArray[np.float64], *, radius_px: float
) -> NDArray[np.int64]:
    """Pair two sets of points one to one, as nucleus detection is scored in the HoVer-Net paper.

    Every point of the smaller set is paired so that the sum of all distances is smallest; then pairs further
    apart than ``radius_px`` are dissolved. (The radius does not steer the pairing: a far pair may cost a near
    one. Graham et al., Medical Image Analysis 58, 2019, and their published code.) Time grows with the square
    of the number of points and more, memory does not.

    Args:
        true: (T, 2) float64, (row, col).
        pred: (Q, 2) float64, (row, col).
        radius_px: largest distance of a pair, inclusive; at least 0.

    Returns:
        (T,) int64: for every true point the index of its partner in ``pred``, or -1.

    Raises:
        TypeError: an array is not float64.
        ValueError: a shape is not (N, 2), a coordinate is not finite, or the radius is negative.
    """
    if not radius_px >= 0.0:
        raise ValueError(f"radius_px: expected at least 0, got {radius_px}")
    partner = _core.match_points(np.ascontiguousarray(true), np.ascontiguousarray(pred))
    paired = np.flatnonzero(partner >= 0)
    step = true[paired] - pred[partner[paired]]
    partner[paired[np.sqrt((step * step).sum(axis=1)) > radius_px]] = -1
    return partner


def _without(ids: NDArray[np.int64], matched: NDArray[np.int64]) -> NDArray[np.int64]:
    left = np.ones(len(ids), dtype=np.bool_)
    left[np.searchsorted(ids, matched)] = False
    return ids[left]
