"""SegNet (Badrinarayanan, Kendall & Cipolla, TPAMI 2017): VGG-16's 13 convolutions, and 13 back up.

The decoder puts values back where max pooling found the largest ("pooling indices"). It is written with pixel
rearrangement and masks, which gives what ``max_unpool2d`` gives and exports to every engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from nucfast_training.networks.heads import Heads


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling, and which pixel of each block was the largest.

    Returns:
        (N, C, H/2, W/2), and a mask (N, C, 4, H/2, W/2), 1 at the first largest pixel in raster order.
    """
    count, channels, height, width = x.shape
    blocks = functional.pixel_unshuffle(x, 2).reshape(count, channels, 4, height // 2, width // 2)
    highest = blocks.amax(dim=2, keepdim=True)
    free = torch.ones_like(highest)
    places = []
    for i in range(4):
        here = (blocks[:, :, i : i + 1] == highest).to(x.dtype) * free
        free = free - here
        places.append(here)
    return highest.squeeze(2), torch.cat(places, dim=2)


def unpool(x: Tensor, places: Tensor) -> Tensor:
    """Put each value where ``pool`` found the largest, 0 elsewhere: (N, C, h, w) to (N, C, 2h, 2w)."""
    spread = x.unsqueeze(2) * places
    count, channels, _, height, width = spread.shape
    return functional.pixel_shuffle(spread.reshape(count, 4 * channels, height, width), 2)


def _stack(channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SegNet(nn.Module):
    """Encoder and decoder mirror each other.

    Args:
        widths: channels of each stage, from full resolution down.
        depths: convolutions of each stage; 2, 2, 3, 3, 3 is VGG-16.
        heads: channels of the logits by head.

    ``forward`` takes (N, 3, H, W) in 0..1, sides multiples of ``stride_px``, and returns logits (N, C, H, W).
    """

    outer = ("heads",)

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        heads: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.stride_px = 2 ** len(widths)
        befores = (3, *widths[:-1])
        stages = list(zip(befores, widths, depths, strict=True))
        self.encoder = nn.ModuleList(_stack([before, *[width] * depth]) for before, width, depth in stages)
        # The last convolution of the decoder is the heads'.
        self.decoder = nn.ModuleList(
            _stack([*[width] * depth, before] if level else [width] * depth)
            for level, (before, width, depth) in reversed(list(enumerate(stages)))
        )
        self.heads = Heads(widths[0], heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head; see the class."""
        places = []
        for stack in self.encoder:
            x, where = pool(stack(x))
            places.append(where)
        for stack in self.decoder:
            x = stack(unpool(x, places.pop()))
        heads: dict[str, Tensor] = self.heads(x)
        return heads
