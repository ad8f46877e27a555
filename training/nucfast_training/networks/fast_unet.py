"""The network of ``he-fast``: a small residual U-Net that spends nothing at full resolution.

U-Net: Ronneberger et al., MICCAI 2015. Residual blocks: He et al., CVPR 2016. Sub-pixel output: Shi et al.,
CVPR 2016. What makes it fast on a CPU: a strided stem, so that the first real convolution runs at half
resolution; dense 3x3 convolutions with 32 channels or more, which reach the processor's peak where depthwise
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
    """Two 3x3 convolutions around an identity, with ``inner`` channels between them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, inner),
            nn.Conv2d(inner, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same."""
        return torch.relu(x + self.body(x))


def stage(
    channels_in: int, channels_out: int, blocks: int, *, stride: int = 1, inner: int = 0
) -> nn.Sequential:
    """A convolution, then residual blocks."""
    return nn.Sequential(
        *conv(channels_in, channels_out, stride=stride),
        *(Residual(channels_out, inner or channels_out) for _ in range(blocks)),
    )


class FastUNet(nn.Module):
    """Residual U-Net from half resolution down, with maps at full resolution.

    Args:
        widths: channels at 1/2, 1/4, 1/8, ... of the input's resolution; as many levels as there are widths.
        blocks: residual blocks of the encoder at 1/4, 1/8, ...
        inner: channels within those blocks; 0, or none given: as many as outside.
        decoder_widths: channels that each level of the decoder, from its coarsest to that at 1/4, hands on;
            none given: as many as the encoder has there.
        decoder_blocks: residual blocks of the decoder, down to 1/2.
        head_width: channels from which the maps are read.
        classes: classes of nuclei; 0 leaves the class head out.
        class_stride: classes are read where the decoder has this share of the resolution.

    ``forward`` takes (N, 3, H, W), H and W multiples of ``stride_px``, values in 0..1, and returns logits:
    ``nucleus`` and ``distance`` (N, 1, H, W), ``class`` (N, classes, H / class_stride, W / class_stride).
    """

    outer = ("maps", "kinds")

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 48, 96, 192),
        blocks: Sequence[int] = (1, 1, 1),
        inner: Sequence[int] = (),
        decoder_widths: Sequence[int] = (),
        decoder_blocks: Sequence[int] = (0, 0, 0),
        head_width: int = 32,
        classes: int = 4,
        class_stride: int = 4,
    ) -> None:
        super().__init__()
        self.strides = [2 ** (level + 1) for level in range(len(widths))]
        self.stride_px = self.strides[-1]
        self.class_stride = class_stride
        self.encode2 = conv(3, widths[0], stride=2)
        for level in range(1, len(widths)):
            down = stage(
                widths[level - 1],
                widths[level],
                blocks[level - 1],
                stride=2,
                inner=inner[level - 1] if inner else 0,
            )
            self.add_module(f"encode{self.strides[level]}", down)
        handed_on = [*(decoder_widths or widths[-2:0:-1]), head_width]
        if len(handed_on) != len(widths) - 1:
            raise ValueError(f"decoder_widths: expected {len(widths) - 2}, got {len(decoder_widths)}")
        below = widths[-1]
        for level, out in enumerate(handed_on):
            stride, width = self.strides[-2 - level], widths[-2 - level]
            self.add_module(f"lift{stride}", nn.Conv2d(below, width, 1))
            self.add_module(f"decode{stride}", stage(width, out, decoder_blocks[level]))
            below = out
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.maps = nn.Conv2d(head_width, 2 * 4, 1)
        self.to_pixels = nn.PixelShuffle(2)
        kinds_from = handed_on[-1 - self.strides.index(class_stride)]
        self.kinds = nn.Conv2d(kinds_from, classes, 1) if classes else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head; see the class."""
        y, kinds = self.features(x)
        maps = self.to_pixels(self.maps(y))
        heads = {"nucleus": maps[:, 0:1], "distance": maps[:, 1:2]}
        if kinds is not None:
            heads["class"] = kinds
        return heads

    def links(self) -> list[tuple[list[str], list[str]]]:
        """Where the number of channels is free: all convolutions that give them, and all that read them.

        Those that give them are added up: a level's first convolution, its residual blocks, and what comes
        from below.
        """
        found: list[tuple[list[str], list[str]]] = []
        for stride in self.strides:
            blocks = [
                f"{name}.body"
                for name, module in self.named_modules()
                if isinstance(module, Residual) and name.startswith(f"encode{stride}.")
            ]
            makers = [f"encode{stride}.0", *(f"{block}.1" for block in blocks)]
            readers = [f"{block}.0.0" for block in blocks]
            if stride < self.stride_px:
                makers.append(f"lift{stride}")
                readers += [f"encode{2 * stride}.0", f"decode{stride}.0"]
            else:
                readers.append(f"lift{stride // 2}")
            found.append((makers, readers))
        found += [
            ([f"{name}.body.0.0"], [f"{name}.body.1"])
            for name, module in self.named_modules()
            if isinstance(module, Residual)
        ]
        for stride in reversed(self.strides[:-1]):
            blocks = [
                f"decode{stride}.{place}.body"
                for place, module in enumerate(self.get_submodule(f"decode{stride}"))  # type: ignore[arg-type]
                if isinstance(module, Residual)
            ]
            readers = [f"{block}.0.0" for block in blocks]
            readers.append(f"lift{stride // 2}" if stride > 2 else "maps")
            if self.kinds is not None and stride == self.class_stride:
                readers.append("kinds")
            found.append(([f"decode{stride}.0", *(f"{block}.1" for block in blocks)], readers))
        return found

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the maps are read from, (N, head_width, H / 2, W / 2), and the logits of the classes."""
        encoded = []
        for stride in self.strides:
            x = self.get_submodule(f"encode{stride}")(x)
            encoded.append(x)
        kinds = None
        y = encoded.pop()
        for stride in reversed(self.strides[:-1]):
            # The 1x1 convolution comes before the upsampling: a quarter of the work, the same result.
            lifted = self.up(self.get_submodule(f"lift{stride}")(y))
            y = self.get_submodule(f"decode{stride}")(self.join(encoded.pop(), lifted))
            if self.kinds is not None and stride == self.class_stride:
                kinds = self.kinds(y)
        return y, kinds

    @staticmethod
    def join(skip: Tensor, lifted: Tensor) -> Tensor:
        """A level's features of the encoder with those from below: added, not concatenated."""
        return skip + lifted
