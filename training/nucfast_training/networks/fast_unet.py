"""The network of ``he-fast``: a small residual U-Net that spends nothing at full resolution.

U-Net: Ronneberger et al., MICCAI 2015. Residual blocks: He et al., CVPR 2016. Sub-pixel output: Shi et al.,
CVPR 2016. What makes it fast on a CPU: a strided stem, so that the first real convolution runs at half
resolution; dense 3x3 convolutions with 32 to 192 channels, which reach the processor's peak where depthwise
ones are bound by memory; skips that are added, not concatenated; and full-resolution maps made by moving
channels to pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same."""
        return torch.relu(x + self.body(x))


def stage(channels_in: int, channels_out: int, blocks: int, *, stride: int = 1) -> nn.Sequential:
    """A convolution, then residual blocks."""
    return nn.Sequential(
        *conv(channels_in, channels_out, stride=stride), *(Residual(channels_out) for _ in range(blocks))
    )


class FastUNet(nn.Module):
    """Residual U-Net from half resolution down, with maps at full resolution.

    Args:
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the input's resolution.
        blocks: residual blocks of the encoder at 1/4, 1/8 and 1/16.
        decoder_blocks: those of the decoder at 1/8, 1/4 and 1/2.
        head_width: channels from which the maps are read.
        classes: classes of nuclei; 0 leaves the class head out.

    ``forward`` takes (N, 3, H, W), H and W multiples of 16, values in 0..1, and returns logits:
    ``nucleus`` and ``distance`` (N, 1, H, W), ``class`` (N, classes, H/4, W/4).
    """

    stride_px = 16
    outer = ("maps", "kinds")

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 48, 96, 192),
        blocks: Sequence[int] = (1, 1, 1),
        decoder_blocks: Sequence[int] = (0, 0, 0),
        head_width: int = 32,
        classes: int = 4,
    ) -> None:
        super().__init__()
        w2, w4, w8, w16 = widths
        self.encode2 = conv(3, w2, stride=2)
        self.encode4 = stage(w2, w4, blocks[0], stride=2)
        self.encode8 = stage(w4, w8, blocks[1], stride=2)
        self.encode16 = stage(w8, w16, blocks[2], stride=2)
        self.lift8 = nn.Conv2d(w16, w8, 1)
        self.lift4 = nn.Conv2d(w8, w4, 1)
        self.lift2 = nn.Conv2d(w4, w2, 1)
        self.decode8 = stage(w8, w8, decoder_blocks[0])
        self.decode4 = stage(w4, w4, decoder_blocks[1])
        self.decode2 = stage(w2, head_width, decoder_blocks[2])
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.maps = nn.Conv2d(head_width, 2 * 4, 1)
        self.to_pixels = nn.PixelShuffle(2)
        self.kinds = nn.Conv2d(w4, classes, 1) if classes else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head; see the class."""
        x2 = self.encode2(x)
        x4 = self.encode4(x2)
        x8 = self.encode8(x4)
        x16 = self.encode16(x8)
        # The 1x1 convolution comes before the upsampling: a quarter of the work, the same result.
        y8 = self.decode8(x8 + self.up(self.lift8(x16)))
        y4 = self.decode4(x4 + self.up(self.lift4(y8)))
        y2 = self.decode2(x2 + self.up(self.lift2(y4)))
        maps = self.to_pixels(self.maps(y2))
        heads = {"nucleus": maps[:, 0:1], "distance": maps[:, 1:2]}
        if self.kinds is not None:
            heads["class"] = self.kinds(y4)
        return heads
