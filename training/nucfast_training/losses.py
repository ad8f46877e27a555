"""Losses on the logits of a network's heads.

A binary head has logits (N, 1, H, W) and a target of the same shape in 0..1. A head of classes has logits
(N, C, H, W) and a target (N, H, W) of class indices, where pixels of ``UNCLASSIFIED`` do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from nucfast_training.targets import TARGETS, UNCLASSIFIED


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy; with soft targets its minimum is the target itself."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice over the whole batch (Milletari et al., 3DV 2016)."""
    return 1.0 - _soft_dice(logits, target)


def log_dice(logits: Tensor, target: Tensor) -> Tensor:
    """-log Dice over the whole batch: steeper than 1 - Dice while the overlap is small."""
    return -torch.log(_soft_dice(logits, target))


def _soft_dice(logits: Tensor, target: Tensor) -> Tensor:
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum()
    return (2.0 * overlap + 1.0) / (probability.sum() + target.sum() + 1.0)


def focal_tversky(logits: Tensor, target: Tensor, *, beta: float = 0.7, gamma: float = 4 / 3) -> Tensor:
    """(1 - T)^(1 / gamma), T = TP / (TP + beta FN + (1 - beta) FP), mean over the classes.

    Abraham & Khan, ISBI 2019; the Tversky index with its weight ``beta`` of misses: Salehi et al., MLMI 2017.
    """
    if target.dim() == logits.dim():
        probability, truth = torch.sigmoid(logits), target
    else:
        known = (target != UNCLASSIFIED).unsqueeze(1)
        truth = functional.one_hot(target.where(known[:, 0], 0), logits.shape[1]).movedim(-1, 1)
        truth = truth * known
        probability = torch.softmax(logits, dim=1) * known
    axes = (0, 2, 3)
    hit = (probability * truth).sum(axes)
    missed = ((1.0 - probability) * truth).sum(axes)
    extra = (probability * (1.0 - truth)).sum(axes)
    index = (hit + 1.0) / (hit + beta * missed + (1.0 - beta) * extra + 1.0)
    # The power's slope is infinite at 0.
    return (1.0 - index).clamp_min(1e-7).pow(1.0 / gamma).mean()


def cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, *, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy over classes, mean over the pixels that count; 0 without any."""
    total = functional.cross_entropy(
        logits, target, weights, ignore_index=UNCLASSIFIED, reduction="sum", label_smoothing=smoothing
    )
    # Its own mean is not a number where nothing counts, and to ask whether anything does, a GPU has to wait.
    known = target != UNCLASSIFIED
    shares = known.to(logits.dtype) if weights is None else weights[target.where(known, 0)] * known
    return total / shares.sum().clamp_min(1e-6)


def smooth_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with 5 % of the truth spread over all classes (Szegedy et al., CVPR 2016)."""
    return cross_entropy(logits, target, weights, smoothing=0.05)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "dice": dice,
    "log_dice": log_dice,
    "focal_tversky": focal_tversky,
    "cross_entropy": cross_entropy,
    "smooth_cross_entropy": smooth_cross_entropy,
}

# What a head is trained with where a recipe gives only its weight.
USUAL: dict[str, dict[str, float]] = {
    "nucleus": {"bce": 1.0, "dice": 1.0},
    "distance": {"bce": 2.0},  # not Dice, which would push it to 0 and 1
    "class": {"smooth_cross_entropy": 1.0},
    "semantic": {"cross_entropy": 1.0},
}


def terms_of(head: str, weight: float | Mapping[str, float]) -> dict[str, float]:
    """The weight of each loss of a head, from an entry of a recipe's ``[loss]``."""
    if isinstance(weight, Mapping):
        return dict(weight)
    return {name: weight * share for name, share in USUAL[head].items()}


def heads_loss(
    heads: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    loss: Mapping[str, float | Mapping[str, float]],
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weighted loss of each head.

    Args:
        heads: logits by head, (N, C, H / stride, W / stride).
        targets: (N, H, W) uint8 by head: 0..255 for binary heads, class indices for others.
        loss: a recipe's ``[loss]``.
        class_weights: (C,) float, of the head "class".

    Returns:
        A scalar per head.
    """
    losses = {}
    for head, weight in loss.items():
        logits = heads[head].float()
        step = targets[head].shape[-1] // logits.shape[-1]
        target = targets[head][:, step // 2 :: step, step // 2 :: step]
        extra: dict[str, Tensor | None] = {}
        if TARGETS[head].binary:
            target = target.unsqueeze(1).float() / 255.0
        else:
            target = target.long()
            extra = {"weights": class_weights if head == "class" else None}
        terms = []
        for name, share in terms_of(head, weight).items():
            arguments = extra if name.endswith("cross_entropy") else {}
            terms.append(share * LOSSES[name](logits, target, **arguments))
        losses[head] = torch.stack(terms).sum()
    return losses
