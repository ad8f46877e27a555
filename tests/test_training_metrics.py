"""Mask scores against loops over pixels."""

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs PyTorch")

from nucfast.metrics import evaluate
from nucfast.ops import label
from nucfast_training.metrics import MaskScores
from nucfast_training.targets import UNCLASSIFIED


def test_by_hand():
    scores = MaskScores(1)
    scores.add(np.array([[1, 1, 1, 0]], np.uint8), np.array([[1, 1, 0, 1]], np.uint8))
    found = scores.scores()
    assert found["jaccard"] == found["mean_iou"] == 2 / 4
    assert found["pixel_accuracy"] == 2 / 4
    assert found["precision"] == found["recall"] == found["f1"] == found["mean_dice"] == 2 / 3
    assert math.isnan(found["mean_ap"])


def test_equals_loops():
    rng = np.random.default_rng(0)
    images = [
        (rng.integers(0, 4, (9, 7)).astype(np.uint8), rng.integers(0, 4, (9, 7)).astype(np.uint8))
        for _ in range(3)
    ]
    images[0][0][0, :5] = UNCLASSIFIED
    scores = MaskScores(4)  # the fourth class never occurs
    for true, pred in images:
        scores.add(true, pred)
    pairs = [(t, p) for true, pred in images for t, p in zip(true.ravel(), pred.ravel(), strict=True)]
    pairs = [pair for pair in pairs if pair[0] != UNCLASSIFIED]
    found = scores.scores()
    assert found["pixel_accuracy"] == sum(t == p for t, p in pairs) / len(pairs)
    assert found["precision"] == sum(t > 0 and p > 0 for t, p in pairs) / sum(p > 0 for _, p in pairs)
    assert found["recall"] == sum(t > 0 and p > 0 for t, p in pairs) / sum(t > 0 for t, _ in pairs)
    iou, dice = [], []
    for kind in (1, 2, 3):
        both = sum(t == p == kind for t, p in pairs)
        either = sum(kind in (t, p) for t, p in pairs)
        iou.append(both / either)
        dice.append(2 * both / (either + both))
        assert found[f"iou_{kind}"] == iou[-1]
        assert found[f"dice_{kind}"] == dice[-1]
    assert found["mean_iou"] == pytest.approx(np.mean(iou))
    assert found["mean_dice"] == pytest.approx(np.mean(dice))
    assert math.isnan(found["iou_4"])


def test_mean_ap_is_that_of_the_components():
    rng = np.random.default_rng(1)
    masks = [np.kron(rng.random((8, 8)) > 0.7, np.ones((5, 5), bool)) for _ in range(3)]
    truths = [label(np.roll(mask, shift, axis=1), connectivity=4) for shift, mask in enumerate(masks)]
    scores = MaskScores(1)
    for truth, mask in zip(truths, masks, strict=True):
        scores.add_instances(truth, mask)
    expected = evaluate(truths, [label(mask, connectivity=4) for mask in masks]).ap
    assert 0 < expected < 1
    assert scores.scores()["mean_ap"] == pytest.approx(expected)
