"""The network as the runtime sees it: uint8 pixels in, uint8 maps out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ExportNetwork(nn.Module):
    """Wraps a network that maps normalised images to logits, so that nothing is left to do outside the graph.

    In: (N, H, W, 3) uint8 RGB. Out, in the order of ``names``: (N, H / stride, W / stride, C) uint8, which is
    255 times the sigmoid of the logits, or their softmax over the channels for the output "class".

    Args:
        network: (N, 3, H, W) float32, ``(pixel / 255 - mean) / std``, to a dict of logits (N, C, h, w).
        names: the keys of that dict to export.
        mean: per channel, in units of 0..1.
        std: likewise.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)
        # No add without a mean: the first convolution can absorb a lone multiply, but not an add, because of
        # its zero padding.
        self.shifted = any(value != 0 for value in mean)
        scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float32))
        offset = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", scale.reshape(1, 3, 1, 1))
        self.register_buffer("offset", offset.reshape(1, 3, 1, 1))
        self.scale: Tensor
        self.offset: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """One uint8 map per name; see the class."""
        # Cast before transposing: TensorRT refuses to transpose uint8.
        pixels = image.to(torch.float32).permute(0, 3, 1, 2)
        pixels = pixels * self.scale
        if self.shifted:
            pixels = pixels + self.offset
        logits = self.network(pixels)
        return tuple(self._encode(name, logits[name]) for name in self.names)

    @staticmethod
    def _encode(name: str, logits: Tensor) -> Tensor:
        probability = torch.softmax(logits, dim=1) if name == "class" else torch.sigmoid(logits)
        # round(), not +0.5: in bf16 the halves above 128 do not exist.
        return (probability * 255.0).round().permute(0, 2, 3, 1).to(torch.uint8)
