"""AdaBound against an independent implementation; any optimiser's state survives the disk format."""

import json

import pytest

pytest.importorskip("torch", reason="training needs PyTorch")

import torch

from nucfast_training.optimisers import OPTIMISERS, AdaBound, pack, unpack
from nucfast_training.recipe import OptimiserSettings


def descend(optimiser, weights, steps):
    for step in range(steps):
        optimiser.zero_grad()
        (weights[0].square().sum() + (weights[1] * (1 + step % 3) - 1).pow(4).mean()).backward()
        optimiser.step()


def start():
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((4,), (3, 2))
    ]


def test_adabound_equals_the_independent_one():
    oracle = pytest.importorskip("pytorch_optimizer", reason="the oracle is not installed")
    mine, theirs = start(), start()
    settings = {"lr": 1e-2, "final_lr": 0.1, "gamma": 1e-2, "weight_decay": 1e-3}
    descend(AdaBound(mine, **settings), mine, 50)
    descend(oracle.AdaBound(theirs, weight_decouple=False, **settings), theirs, 50)
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_adabound_first_step_in_closed_form():
    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimiser = AdaBound([weight], 1e-3, final_lr=0.1, gamma=1e-3)
    weight.grad = torch.tensor([4.0], dtype=torch.float64)
    optimiser.step()
    # The bounds at step 1 are 0.1 * (1 - 1 / 1.001) and 0.1 * 1001; the mean is 0.1 * 4, and the bias
    # correction is in the rate.
    rate = 1e-3 * (1 - 0.999) ** 0.5 / (1 - 0.9) / ((0.001 * 16) ** 0.5 + 1e-8)
    rate = min(max(rate, 0.1 * (1 - 1 / 1.001)), 0.1 * 1001)
    assert float(weight.detach()) == pytest.approx(2.0 - rate * 0.4, rel=1e-12)


@pytest.mark.parametrize("kind", list(OPTIMISERS))
def test_state_survives(kind):
    settings = OptimiserSettings(learning_rate=1e-2, kind=kind, momentum=0.9, weight_decay=1e-3)
    whole, halves = start(), start()
    descend(OPTIMISERS[kind](whole, settings), whole, 6)
    first = OPTIMISERS[kind](halves, settings)
    descend(first, halves, 3)
    tensors, plain = pack(first)
    second = OPTIMISERS[kind](halves, settings)
    unpack(second, tensors, json.loads(json.dumps(plain)))
    descend(second, halves, 3)
    for left, right in zip(whole, halves, strict=True):
        torch.testing.assert_close(left, right)
