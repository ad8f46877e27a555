"""The unweighted average of several networks' probabilities, as one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Members run side by side; what comes out are logits of the mean of their probabilities.

    Args:
        members: the ``[network]`` table of each.

    ``forward`` takes and returns what the members do; heads with several channels are averaged after softmax.
    """

    outer = ()

    def __init__(self, *, members: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        from nucfast_training.networks import build_network

        self.members = nn.ModuleList(build_network({"network": member}) for member in members)
        # Each stride is a power of two.
        self.stride_px = max(int(member.stride_px) for member in self.members)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head; see the class."""
        outputs = [member(x) for member in self.members]
        return {head: _mean_logits([output[head].float() for output in outputs]) for head in outputs[0]}


def _mean_logits(logits: list[Tensor]) -> Tensor:
    binary = logits[0].shape[1] == 1
    chances = [torch.sigmoid(x) if binary else torch.softmax(x, dim=1) for x in logits]
    mean = (torch.stack(chances).sum(dim=0) / len(chances)).clamp(1e-6, 1.0 - 1e-6)
    return torch.log(mean) - torch.log1p(-mean) if binary else torch.log(mean)
