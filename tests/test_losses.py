"""Losses in closed form, and against plain NumPy."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs PyTorch")

import torch

from nucfast_training.losses import (
    LOSSES,
    bce,
    cross_entropy,
    dice,
    focal_tversky,
    heads_loss,
    log_dice,
    smooth_cross_entropy,
    terms_of,
)
from nucfast_training.targets import UNCLASSIFIED

ONES = torch.ones(1, 1, 4, 4)
CERTAIN = 50.0 * ONES


def test_certain_and_right_costs_nothing():
    for name in ("bce", "dice", "log_dice", "focal_tversky"):
        # The power of focal Tversky keeps a trace of the floor that its slope needs.
        assert float(LOSSES[name](CERTAIN, ONES)) == pytest.approx(0.0, abs=1e-5), name


def test_certain_and_wrong():
    assert float(dice(-CERTAIN, ONES)) == pytest.approx(1.0 - 1.0 / 17.0)
    assert float(log_dice(-CERTAIN, ONES)) == pytest.approx(np.log(17.0))
    assert float(bce(-CERTAIN, ONES)) == pytest.approx(50.0)
    # All 16 pixels missed: T = 1 / (1 + 0.7 * 16).
    assert float(focal_tversky(-CERTAIN, ONES)) == pytest.approx((1 - 1 / 12.2) ** 0.75, rel=1e-5)
    # All 16 extra: T = 1 / (1 + 0.3 * 16).
    assert float(focal_tversky(CERTAIN, 0 * ONES)) == pytest.approx((1 - 1 / 5.8) ** 0.75, rel=1e-5)


def test_undecided():
    half = 0.0 * ONES
    assert float(bce(half, ONES)) == pytest.approx(np.log(2.0))
    assert float(dice(half, ONES)) == pytest.approx(1.0 - 17.0 / 25.0)
    logits = torch.zeros(2, 5, 3, 3)
    assert float(cross_entropy(logits, torch.zeros(2, 3, 3, dtype=torch.long))) == pytest.approx(np.log(5.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.05])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_cross_entropies_equal_numpy(smoothing, weights):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 3, 4, 5))
    target = rng.integers(0, 3, (2, 4, 5))
    target[0, 0] = UNCLASSIFIED
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    weight = np.ones(3) if weights is None else np.array(weights)
    total = count = 0.0
    for n, row, col in zip(*np.nonzero(target != UNCLASSIFIED), strict=True):
        kind, found = target[n, row, col], logs[n, :, row, col]
        total -= (1 - smoothing) * weight[kind] * found[kind] + smoothing * (weight * found).mean()
        count += weight[kind]
    loss = smooth_cross_entropy if smoothing else cross_entropy
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    assert float(loss(torch.from_numpy(logits), torch.from_numpy(target), given)) == pytest.approx(
        total / count
    )


def test_focal_tversky_of_classes_equals_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5, 6))
    target = rng.integers(0, 3, (2, 5, 6))
    target[0, 0, :3] = UNCLASSIFIED
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    known = target != UNCLASSIFIED
    losses = []
    for kind in range(3):
        p, t = chance[:, kind][known], (target == kind)[known].astype(float)
        tp, fn, fp = (p * t).sum(), ((1 - p) * t).sum(), (p * (1 - t)).sum()
        losses.append((1 - (tp + 1) / (tp + 0.7 * fn + 0.3 * fp + 1)) ** 0.75)
    got = focal_tversky(torch.from_numpy(logits), torch.from_numpy(target))
    assert float(got) == pytest.approx(np.mean(losses), rel=1e-9)


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_finite_and_point_down(name):
    torch.manual_seed(0)
    binary = name in {"bce", "dice", "log_dice", "focal_tversky"}
    logits = torch.randn(2, 1 if binary else 3, 8, 8, requires_grad=True)
    target = (torch.rand(2, 1, 8, 8) > 0.5).float() if binary else torch.randint(0, 3, (2, 8, 8))
    loss = LOSSES[name](logits, target)
    (slope,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(slope).all()
    assert float(LOSSES[name](logits.detach() - 0.1 * slope / slope.norm(), target)) < float(loss.detach())


def test_heads():
    heads = {name: torch.zeros(1, 1, 4, 4) for name in ("nucleus", "distance")}
    heads["class"] = torch.zeros(1, 4, 2, 2)
    targets = {name: torch.zeros(1, 4, 4, dtype=torch.uint8) for name in heads}
    targets["class"][:] = UNCLASSIFIED
    loss = {"nucleus": 1.0, "distance": {"bce": 2.0}, "class": 0.5}
    found = heads_loss(heads, targets, loss, torch.ones(4))
    assert float(found["class"]) == 0.0  # nothing is classified
    assert float(found["distance"]) == pytest.approx(2.0 * np.log(2.0))
    targets["class"][:, 1::2, 1::2] = 1  # where a map of stride 2 is compared
    found = heads_loss(heads, targets, loss, torch.ones(4))
    assert float(found["class"]) == pytest.approx(0.5 * np.log(4.0), rel=1e-5)


def test_usual_terms():
    assert terms_of("nucleus", 0.5) == {"bce": 0.5, "dice": 0.5}
    assert terms_of("nucleus", {"log_dice": 2.0}) == {"log_dice": 2.0}
