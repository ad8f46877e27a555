"""Networks that tell background and classes apart, as the runtime's outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NucleusAndClass(nn.Module):
    """Turns one head of background and classes into the outputs "nucleus" and "class".

    With softmax probabilities p0 (background), p1, ... the outputs' logits are those of 1 - p0, and of p1,
    p2, ... given that the pixel is nucleus: nothing is lost.

    Args:
        network: returns {"semantic": (N, 1 + classes, H, W) logits}.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits ``nucleus`` (N, 1, H, W) and ``class`` (N, classes, H, W)."""
        logits = self.network(x)["semantic"]
        classes = logits[:, 1:]
        return {"nucleus": torch.logsumexp(classes, dim=1, keepdim=True) - logits[:, :1], "class": classes}
