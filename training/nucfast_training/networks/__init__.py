"""Networks. Each maps (N, 3, H, W) float in 0..1 to a dict of logits by head name.

Each has ``stride_px``, of which the sides of its input must be multiples, and ``outer``: the names of its
parts after the last shared features, which may be trained alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nucfast_training.errors import RecipeError
from nucfast_training.networks.ensemble import Ensemble
from nucfast_training.networks.fast_unet import FastUNet
from nucfast_training.networks.fcn import FCN
from nucfast_training.networks.linknet import LinkNet
from nucfast_training.networks.segnet import SegNet
from nucfast_training.networks.unet import UNet
from nucfast_training.networks.unet_sharp import UNetSharp

if TYPE_CHECKING:
    from nucfast_training.recipe import Recipe

NETWORKS: dict[str, type[nn.Module]] = {
    "ensemble": Ensemble,
    "fast_unet": FastUNet,
    "fcn": FCN,
    "linknet": LinkNet,
    "segnet": SegNet,
    "unet": UNet,
    "unet_sharp": UNetSharp,
}

# What PyTorch and Python raise for widths, heads and the like that make no network.
UNFIT = (TypeError, ValueError, LookupError, RuntimeError)


def build_network(recipe: Mapping[str, Any]) -> nn.Module:
    """The network that a recipe's ``[network]`` table describes.

    Raises:
        RecipeError: there is no such network, or it has no such setting.
    """
    settings = dict(recipe["network"])
    kind = settings.pop("kind", None)
    if kind not in NETWORKS:
        raise RecipeError(f"network.kind: expected one of {', '.join(NETWORKS)}, got {kind!r}")
    try:
        return NETWORKS[kind](**settings)
    except UNFIT as error:
        raise RecipeError(f"network: {kind} does not take these settings ({error})") from error


def check_heads(network: nn.Module, recipe: Recipe) -> None:
    """Hold the network's outputs against what the recipe teaches them.

    Raises:
        RecipeError: the network lacks a head of ``[loss]``, or one has not as many channels as there are
            classes.
    """
    side = int(network.stride_px)  # type: ignore[arg-type]
    was_training = network.training
    try:
        with torch.no_grad():
            heads = network.eval()(torch.zeros(1, 3, side, side))
    except UNFIT as error:
        kind = recipe.network["kind"]
        raise RecipeError(f"network: {kind} does not run with these settings ({error})") from error
    channels = {name: out.shape[1] for name, out in heads.items()}
    network.train(was_training)
    classes = len(recipe.classes.names) if recipe.classes else 0
    for head in recipe.loss:
        if head not in channels:
            raise RecipeError(
                f"loss.{head}: this network has no such head (it has {', '.join(channels)}): leave it "
                "out, or change [network]"
            )
        needed = {"class": classes, "semantic": classes + 1}.get(head, 1)
        if channels[head] != needed:
            background = " and the background" if head == "semantic" else ""
            raise RecipeError(
                f"network: its head {head!r} has {channels[head]} channels, but classes.names has {classes} "
                f"classes{background}: change [network] or [classes] so that they fit"
            )
