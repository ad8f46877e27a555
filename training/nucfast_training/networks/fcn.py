"""Fully convolutional network with skips (Long, Shelhamer & Darrell, CVPR 2015), made small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nucfast_training.networks.heads import Heads


class FCN(nn.Module):
    """Convolutions and pooling down to stride 16; scores of three strides are added, then enlarged.

    Args:
        widths: channels before each of four poolings.
        heads: channels of the logits by head.

    ``forward`` takes (N, 3, H, W) in 0..1, H and W multiples of 16, and returns logits (N, C, H, W).
    """

    stride_px = 16
    outer = ("scores",)

    def __init__(self, *, widths: Sequence[int] = (16, 32, 64, 128), heads: Mapping[str, int]) -> None:
        super().__init__()
        channels = [3, *widths]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(after, after, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            )
            for before, after in zip(channels, widths, strict=False)
        )
        self.scores = nn.ModuleList(Heads(width, heads) for width in widths[1:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head; see the class."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        by_stride = [score(feature) for score, feature in zip(self.scores, features[1:], strict=True)]
        return {head: self._fuse([maps[head] for maps in by_stride]) for head in by_stride[0]}

    def _fuse(self, maps: list[Tensor]) -> Tensor:
        fused = maps.pop()
        while maps:
            fused = maps.pop() + _enlarge(fused, 2.0)
        return _enlarge(fused, 4.0)


def _enlarge(x: Tensor, factor: float) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
