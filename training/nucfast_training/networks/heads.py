"""From a last feature map to logits by head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """One 1x1 convolution for all heads.

    Args:
        channels: of the feature map.
        heads: channels of each head's logits, such as {"nucleus": 1} or {"semantic": 8}.
    """

    def __init__(self, channels: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.heads = dict(heads)
        self.conv = nn.Conv2d(channels, sum(self.heads.values()), 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, channels, H, W) to (N, C, H, W) by head."""
        parts = torch.split(self.conv(x), list(self.heads.values()), dim=1)
        return dict(zip(self.heads, parts, strict=True))
