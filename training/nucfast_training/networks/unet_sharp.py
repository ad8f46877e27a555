"""U-Net#: a ResNeXt encoder, full-scale skips, attention gates and an ASPP bridge.

Encoder: ResNeXt-101 32x4d (Xie et al., CVPR 2017), with the parameter names of timm, so that its weights can
be loaded from a file, such as the semi-weakly supervised ones (Yalniz et al., arXiv 1905.00546). Skips from
every scale to every decoder: U-Net 3+ (Huang et al., ICASSP 2020) and U-Net# (Qian et al., arXiv 2205.11759).
Attention gates: Oktay et al., MIDL 2018. ASPP: Chen et al., arXiv 1706.05587. Mish: Misra, BMVC 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nucfast_training.networks.heads import Heads


class _Bottleneck(nn.Module):
    def __init__(self, channels_in: int, planes: int, *, stride: int) -> None:
        super().__init__()
        width, channels_out = 2 * planes, 4 * planes  # 32 groups of 4 channels per 64 planes
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=32, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNeXt(nn.Module):
    """ResNeXt 32x4d without its classifier; parameters are named as in timm.

    Args:
        depths: blocks of the four layers; 3, 4, 23, 3 is ResNeXt-101.
    """

    def __init__(self, depths: Sequence[int] = (3, 4, 23, 3)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for level, depth in enumerate(depths):
            planes = 64 * 2**level
            blocks = []
            for i in range(depth):
                blocks.append(_Bottleneck(channels, planes, stride=2 if level and i == 0 else 1))
                channels = 4 * planes
            self.add_module(f"layer{level + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features at strides 2, 4, 8, 16, 32 with 64, 256, 512, 1024, 2048 channels."""
        x = torch.relu(self.bn1(self.conv1(x)))
        features = [x]
        x = self.maxpool(x)
        for level in range(1, 5):
            x = getattr(self, f"layer{level}")(x)
            features.append(x)
        return features


def _conv(channels_in: int, channels_out: int, side: int = 3, *, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (side // 2)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, side, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.Mish(inplace=True),
    )


class _ASPP(nn.Module):
    """1x1 and 3x3 convolutions at dilations 6, 12 and 18 side by side."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [_conv(channels_in, channels_out, 1)]
            + [_conv(channels_in, channels_out, dilation=rate) for rate in (6, 12, 18)]
        )
        self.project = _conv(4 * channels_out, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.project(torch.cat([branch(x) for branch in self.branches], dim=1))
        return joined


class _Gate(nn.Module):
    """Weighs a skip by what the next deeper decoder found."""

    def __init__(self, channels: int, deeper: int) -> None:
        super().__init__()
        inner = max(channels // 4, 16)
        self.skip = nn.Conv2d(channels, inner, 1, bias=False)
        self.skip_norm = nn.BatchNorm2d(inner)
        self.deep = nn.Conv2d(deeper, inner, 1, bias=False)
        self.deep_norm = nn.BatchNorm2d(inner)
        self.weigh = nn.Conv2d(inner, 1, 1)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        deep = _up(self.deep_norm(self.deep(deep)), 2)
        return skip * torch.sigmoid(self.weigh(torch.relu(self.skip_norm(self.skip(skip)) + deep)))


class _Decoder(nn.Module):
    """One scale: every encoder at or above it, pooled; every decoder below it, enlarged."""

    def __init__(self, level: int, encoders: Sequence[int], deeper: Sequence[int], width: int) -> None:
        super().__init__()
        self.level = level
        self.gate = _Gate(encoders[-1], deeper[-1])
        self.skips = nn.ModuleList(_conv(channels, width) for channels in encoders)
        self.deep = nn.ModuleList(_conv(channels, width) for channels in deeper)
        self.join = _conv(width * (len(encoders) + len(deeper)), width * (len(encoders) + len(deeper)))

    def forward(self, encoders: list[Tensor], deeper: list[Tensor]) -> Tensor:
        skips = [*encoders[: self.level], self.gate(encoders[self.level], deeper[-1])]
        maps = [
            conv(functional.max_pool2d(skip, 2 ** (self.level - i)) if i < self.level else skip)
            for i, (skip, conv) in enumerate(zip(skips, self.skips, strict=True))
        ]
        # The deepest comes first.
        count = len(deeper)
        maps += [
            _up(conv(x), 2 ** (count - i)) for i, (x, conv) in enumerate(zip(deeper, self.deep, strict=True))
        ]
        joined: Tensor = self.join(torch.cat(maps, dim=1))
        return joined


def _up(x: Tensor, factor: int) -> Tensor:
    return functional.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class UNetSharp(nn.Module):
    """U-Net# with a ResNeXt encoder.

    Args:
        heads: channels of the logits by head.
        width: channels of each branch of a decoder.
        bridge: channels of the ASPP.
        depths: blocks of the encoder's layers.

    ``forward`` takes (N, 3, H, W) in 0..1, H and W multiples of 32, and returns logits (N, C, H, W).
    """

    stride_px = 32
    outer = ("finish", "heads")

    def __init__(
        self,
        *,
        heads: Mapping[str, int],
        width: int = 40,
        bridge: int = 192,
        depths: Sequence[int] = (3, 4, 23, 3),
    ) -> None:
        super().__init__()
        # ImageNet's, which the encoder's weights were trained with.
        self.register_buffer(
            "mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.encoder = ResNeXt(depths)
        channels = (64, 256, 512, 1024, 2048)
        self.bridge = _ASPP(channels[-1], bridge)
        total = width * len(channels)
        self.decoders = nn.ModuleList(
            _Decoder(level, channels[: level + 1], [bridge, *[total] * (3 - level)], width)
            for level in (3, 2, 1, 0)
        )
        self.finish = _conv(total, 2 * width)
        self.heads = Heads(2 * width, heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head; see the class."""
        encoders = self.encoder((x - self.mean) / self.std)
        deeper = [self.bridge(encoders[-1])]
        for decoder in self.decoders:
            deeper.append(decoder(encoders, deeper))
        heads: dict[str, Tensor] = self.heads(self.finish(_up(deeper[-1], 2)))
        return heads
