"""U-Net (Ronneberger, Fischer & Brox, MICCAI 2015), at any width and depth.

With the default widths it has the paper's 23 convolutions: two 3x3 at each of five levels and again on the
way up, four up-convolutions and the last 1x1. Convolutions are padded, so that maps have the image's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nucfast_training.networks.heads import Heads


def _stack(channels_in: int, channels_out: int, *, batch_norm: bool, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers.append(nn.Conv2d(channels, channels_out, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(channels_out))
        layers.append(nn.ReLU(inplace=True))
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two convolutions per level, max pooling down, transposed convolutions up, concatenated skips.

    Args:
        widths: channels at each level, from full resolution down.
        heads: channels of the logits by head.
        batch_norm: after every 3x3 convolution.
        dropout: share of channels dropped after each pair of convolutions while training.

    ``forward`` takes (N, 3, H, W) in 0..1, sides multiples of ``stride_px``, and returns logits (N, C, H, W).
    """

    outer = ("heads",)

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        heads: Mapping[str, int],
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stride_px = 2 ** (len(widths) - 1)
        options = {"batch_norm": batch_norm, "dropout": dropout}
        pairs = list(zip((3, *widths), widths, strict=False))
        self.encoder = nn.ModuleList(_stack(before, after, **options) for before, after in pairs)
        self.pool = nn.MaxPool2d(2)
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(low, high, 2, stride=2) for low, high in steps)
        self.decoder = nn.ModuleList(_stack(2 * high, high, **options) for _, high in steps)
        self.heads = Heads(widths[0], heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head; see the class."""
        skips = []
        for level, stack in enumerate(self.encoder):
            x = stack(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for up, stack in zip(self.up, self.decoder, strict=True):
            x = stack(torch.cat([skips.pop(), up(x)], dim=1))
        heads: dict[str, Tensor] = self.heads(x)
        return heads
