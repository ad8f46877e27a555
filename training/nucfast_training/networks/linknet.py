"""LinkNet (Chaurasia & Culurciello, VCIP 2017): a residual encoder, skips that are added, thin decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nucfast_training.networks.heads import Heads


def _conv(channels_in: int, channels_out: int, side: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, side, stride=stride, padding=side // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _up(channels_in: int, channels_out: int) -> nn.Sequential:
    # Kernel 4, not the paper's 3: a multiple of the stride writes every pixel equally often.
    return nn.Sequential(
        nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels_in, channels_out, 3, stride=stride),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.short = nn.Sequential()
        if stride > 1 or channels_in != channels_out:
            self.short = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.short(x) + self.body(x))


class LinkNet(nn.Module):
    """A strided stem, then encoder blocks and as many decoder blocks.

    Args:
        widths: channels of the encoder blocks: two for "2+2", four for "4+4" (the paper's ResNet-18 encoder).
        heads: channels of the logits by head.

    ``forward`` takes (N, 3, H, W) in 0..1, sides multiples of ``stride_px``, and returns logits (N, C, H, W).
    """

    outer = ("heads",)

    def __init__(self, *, widths: Sequence[int] = (64, 128, 256, 512), heads: Mapping[str, int]) -> None:
        super().__init__()
        # The stem halves twice, every block but the first once more.
        self.stride_px = 2 ** (len(widths) + 1)
        first = widths[0]
        self.stem = nn.Sequential(_conv(3, first, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        befores = [first, *widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                _Residual(before, after, stride=1 if level == 0 else 2), _Residual(after, after, stride=1)
            )
            for level, (before, after) in enumerate(zip(befores, widths, strict=True))
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(
                _conv(after, after // 4, 1),
                _up(after // 4, after // 4) if level else _conv(after // 4, after // 4, 3),
                _conv(after // 4, before, 1),
            )
            for level, (before, after) in reversed(list(enumerate(zip(befores, widths, strict=True))))
        )
        half = first // 2
        self.finish = nn.Sequential(_up(first, half), _conv(half, half, 3), _up(half, half))
        self.heads = Heads(half, heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head; see the class."""
        x = self.stem(x)
        skips = [x]
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = block(x) + skips.pop()
        heads: dict[str, Tensor] = self.heads(self.finish(x))
        return heads
