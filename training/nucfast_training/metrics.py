"""Scores of predicted masks, pixel by pixel, and of the instances in them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nucfast.metrics import Evaluator
from nucfast.ops import label
from nucfast_training.targets import UNCLASSIFIED


class MaskScores:
    """Collects masks; all pixels of all images weigh the same ("pooled").

    Args:
        classes: classes besides the background; 1 for nucleus or not.
    """

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes + 1, classes + 1), np.int64)
        self._instances = Evaluator()
        self._images = 0

    def add(self, true: NDArray[np.uint8], pred: NDArray[np.uint8]) -> None:
        """Add masks of the same shape, 0 = background, else a class id; ``UNCLASSIFIED`` does not count."""
        known = true != UNCLASSIFIED
        side = len(self.counts)
        pairs = true[known].astype(np.int64) * side + pred[known]
        self.counts += np.bincount(pairs, minlength=side * side).reshape(side, side)

    def add_instances(self, labels: NDArray[np.int32], mask: NDArray[np.bool_]) -> None:
        """Add one image's true instances (H, W) and its predicted mask, whose components are compared."""
        self._instances.add(labels, label(mask, connectivity=4), radius_px=None)
        self._images += 1

    def scores(self) -> dict[str, float]:
        """Every score of ``METRICS`` and, per class, ``iou_<id>`` and ``dice_<id>``; NaN where undefined."""
        counts = self.counts
        hit = float(counts[1:, 1:].sum())
        extra, missed = float(counts[0, 1:].sum()), float(counts[1:, 0].sum())
        true, pred, both = counts.sum(1), counts.sum(0), np.diag(counts)
        iou = [_ratio(both[i], true[i] + pred[i] - both[i]) for i in range(1, len(counts))]
        dice = [_ratio(2 * both[i], true[i] + pred[i]) for i in range(1, len(counts))]
        return {
            "jaccard": _ratio(hit, hit + extra + missed),
            "pixel_accuracy": _ratio(both.sum(), counts.sum()),
            "precision": _ratio(hit, hit + extra),
            "recall": _ratio(hit, hit + missed),
            "f1": _ratio(2 * hit, 2 * hit + extra + missed),
            "mean_iou": _mean(iou),
            "mean_dice": _mean(dice),
            "mean_ap": self._instances.scores().ap if self._images else math.nan,
            **{f"iou_{i + 1}": value for i, value in enumerate(iou) if len(iou) > 1},
            **{f"dice_{i + 1}": value for i, value in enumerate(dice) if len(dice) > 1},
        }


# jaccard, precision, recall, f1: foreground against background, whatever the class.
# pixel_accuracy: share of pixels with the right class. mean_iou, mean_dice: over classes, without background.
# mean_ap: instances are the 4-connected components of the foreground; TP / (TP + FP + FN) per image, averaged
# over images and IoU 0.50:0.05:0.95 (Data Science Bowl 2018).
METRICS = ("jaccard", "pixel_accuracy", "precision", "recall", "f1", "mean_iou", "mean_dice", "mean_ap")


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _mean(values: list[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan
