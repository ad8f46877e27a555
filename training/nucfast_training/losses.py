"""Losses on the logits of a network's heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nucfast_training.data import UNCLASSIFIED


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice over the whole batch (Milletari et al., 3DV 2016); target in 0..1."""
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum()
    return 1.0 - (2.0 * overlap + 1.0) / (probability.sum() + target.sum() + 1.0)


def heads_loss(heads: dict[str, Tensor], target: Tensor, class_weights: Tensor) -> dict[str, Tensor]:
    """Loss of each head.

    Args:
        heads: logits: ``nucleus`` and ``distance`` (N, 1, H, W), maybe ``class`` (N, C, H/2, W/2).
        target: (N, H, W, 3) uint8: nucleus 0..255, distance 0..255, class index or ``UNCLASSIFIED``.
        class_weights: (C,) float.

    Returns:
        Scalars ``nucleus`` (cross-entropy + Dice), ``distance`` (cross-entropy with soft targets, whose
        minimum is the target itself; Dice would push it to 0 and 1) and, where
        the batch holds classified pixels, ``class``.
    """
    nucleus = target[..., 0].unsqueeze(1).float() / 255.0
    distance = target[..., 1].unsqueeze(1).float() / 255.0
    logits = {name: head.float() for name, head in heads.items()}
    losses = {
        "nucleus": functional.binary_cross_entropy_with_logits(logits["nucleus"], nucleus)
        + dice_loss(logits["nucleus"], nucleus),
        "distance": 2.0 * functional.binary_cross_entropy_with_logits(logits["distance"], distance),
    }
    if "class" in logits:
        kind = target[:, 1::2, 1::2, 2].long()
        if bool((kind != UNCLASSIFIED).any()):
            losses["class"] = functional.cross_entropy(
                logits["class"], kind, weight=class_weights, ignore_index=UNCLASSIFIED, label_smoothing=0.05
            )
    return losses
