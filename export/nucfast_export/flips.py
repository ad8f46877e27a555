"""Test-time augmentation as part of the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

AXES = ((), (3,), (2,), (2, 3))


class FlipMean(nn.Module):
    """The mean of a network's logits over an image and its three mirror images: four times the work.

    Args:
        network: (N, 3, H, W) to a dict of logits (N, C, h, w).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head, shaped as the network's."""
        views = self.network(torch.cat([torch.flip(x, axes) if axes else x for axes in AXES]))
        heads = {}
        for name, logits in views.items():
            parts = [
                torch.flip(part, axes) if axes else part
                for part, axes in zip(logits.chunk(len(AXES)), AXES, strict=True)
            ]
            heads[name] = torch.stack(parts).mean(dim=0)
        return heads
