"""Where the first weights come from: a bundle, other runs, or an encoder trained by others."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nucfast.engine import Bundle, load_bundle
from nucfast.errors import NucfastError, require
from nucfast_training.errors import RecipeError
from nucfast_training.networks import Ensemble, build_network
from nucfast_training.networks.fast_unet import Residual
from nucfast_training.recipe import Recipe

WEIGHTS_FILE = "weights.safetensors"
"""In a run's folder: the weights that it keeps, with the recipe in their header."""

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def load_start(network: nn.Module, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Fill a new network as ``[start]`` says.

    Raises:
        RecipeError: a file is missing or holds other weights; the message names the setting.
    """
    start = recipe.start
    if start.bundle:
        new = load_from_bundle(network, load_bundle(start.bundle))
        say(f"weights of the bundle {start.bundle}" + (f"; new: {', '.join(new)}" if new else ""))
    if start.runs:
        load_from_runs(network, [Path(run) for run in start.runs])
        say(f"weights of {', '.join(start.runs)}")
    if start.grow:
        load_grown(network, start.grow)
        say(f"weights of {start.grow}, whose network was grown to this one")
    if start.refine:
        load_grown(network, start.refine, finer=True)
        say(f"weights of {start.refine}, whose network got a finer level")
    if start.encoder:
        load_encoder(network, Path(start.encoder))
        say(f"encoder weights of {start.encoder}")
    elif hasattr(network, "encoder") and hasattr(network.encoder, "layer1") and not start.runs:
        say("start.encoder is empty: the encoder is trained from scratch, with nothing frozen")


def load_from_bundle(network: nn.Module, bundle: Bundle) -> list[str]:
    """Put a bundle's weights into the network it was exported from.

    They are read from the ONNX graph, by the names that the export keeps. Batch normalisation was folded
    into the convolutions there, so what is left of it here is its offset: scale and variance 1, mean 0. The
    network computes what the bundle does as long as it is in evaluation mode.

    Returns:
        Parameters of the network's outer parts for which the bundle has none of the right shape, which stay
        as they were: heads for other classes.

    Raises:
        RecipeError: the bundle's graph does not hold this network's weights.
    """
    onnx = require("onnx", extra="train", purpose="start.bundle")
    graph = onnx.load_from_string(bundle.model_bytes()).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    cast = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}

    def value(name: str) -> NDArray[np.float32]:
        tensor = constants[cast.get(name, name)]
        return np.array(onnx.numpy_helper.to_array(tensor), np.float32)  # a copy: onnx's is read-only

    stored: dict[str, tuple[NDArray[np.float32], NDArray[np.float32] | None]] = {}
    for node in graph.node:
        if node.op_type in {"Conv", "ConvTranspose"} and cast.get(node.input[1], node.input[1]) in constants:
            # Each wrapper of the export, such as that for mirror images, adds a prefix.
            name = re.sub(r"^(network\.)+", "", node.input[1]).removesuffix(".weight")
            stored[name] = value(node.input[1]), value(node.input[2]) if len(node.input) > 2 else None
    norms = norms_of(network)
    new = []
    for name, module in network.named_modules():
        if not isinstance(module, CONVOLUTIONS):
            continue
        weight, bias = stored.get(name, (None, None))
        if isinstance(module, nn.Conv2d) and weight is not None and not weight[module.out_channels :].any():
            # Channels of zeros, which the export adds to fill vectors.
            weight, bias = (
                weight[: module.out_channels],
                None if bias is None else bias[: module.out_channels],
            )
        if weight is None or weight.shape != tuple(module.weight.shape):
            if name.startswith(getattr(network, "outer", ())):
                new.append(name)
                continue
            raise RecipeError(
                f"start.bundle: {bundle.name} holds no weights of shape {tuple(module.weight.shape)} for "
                f"{name!r}; start from its training run instead, with start.runs"
            )
        offset = torch.zeros(module.out_channels) if bias is None else torch.from_numpy(bias)
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight))
            norm = norms.get(name)
            if norm is not None:
                norm.reset_parameters()
                norm.running_var.fill_(1.0 - norm.eps)
                norm.bias.copy_(offset)
            if module.bias is not None:
                module.bias.copy_(torch.zeros_like(offset) if norm is not None else offset)
    return new


def norms_of(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch normalisation behind each convolution, by its name, as seen in a forward pass."""
    order: list[tuple[str, nn.Module, int, int]] = []
    kept: list[tuple[Tensor, Tensor]] = []
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.BatchNorm2d)):

            def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                order.append((name, module, id(args[0]), id(output)))
                kept.append((args[0], output))  # or an id could be given to another tensor

            hooks.append(module.register_forward_hook(note))
    was_training = network.training
    side = 2 * int(network.stride_px)  # type: ignore[arg-type]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    made = {output: name for name, module, _, output in order if isinstance(module, CONVOLUTIONS)}
    return {
        made[given]: module
        for _, module, given, _ in order
        if isinstance(module, nn.BatchNorm2d) and given in made
    }


def fold_norms(network: nn.Module) -> nn.Module:
    """Put each batch normalisation into the convolution before it, for evaluation; changes the network."""
    places = {module: name for name, module in network.named_modules()}
    for name, norm in norms_of(network).items():
        folded = fuse_conv_bn_eval(network.get_submodule(name), norm)
        network.set_submodule(name, folded)
        network.set_submodule(places[norm], nn.Identity())
    return network


@torch.no_grad()
def calibrate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let batch normalisation know what goes through it, without changing what the network computes.

    A bundle's normalisation is folded into its convolutions. To train on, each layer of it needs the mean and
    variance of its input; scale and offset then take them back. Without this the first batch in training mode
    would be scaled in another way than the network was trained for.

    Args:
        network: as ``load_from_bundle`` fills it.
        batches: (N, 3, H, W) each, as it is trained on; dozens of patches in all.
    """
    seen: dict[nn.BatchNorm2d, list[Tensor]] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(args[0].double(), dim=(0, 2, 3), correction=0)
        seen.setdefault(module, []).append(torch.stack([mean, variance + mean**2]))  # type: ignore[arg-type]

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [module.register_forward_pre_hook(note) for module in norms]
    was_training = network.training
    network.eval()
    for images in batches:
        network(images)
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    for norm, moments in seen.items():
        if norm.running_mean is None or norm.running_var is None:
            continue
        mean, square = torch.stack(moments).mean(dim=0)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        norm.bias += (mean - norm.running_mean) * scale
        variance = (square - mean**2).clamp_(min=0.0).float()
        norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def load_from_runs(network: nn.Module, runs: list[Path]) -> None:
    """Weights of one run, or for an ensemble of one run per member."""
    targets = list(network.members) if isinstance(network, Ensemble) else [network]
    if len(targets) != len(runs):
        raise RecipeError(f"start.runs: expected {len(targets)}, one per member, got {len(runs)}")
    for target, run in zip(targets, runs, strict=True):
        try:
            target.load_state_dict(_weights(run, "start.runs"))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise RecipeError(f"start.runs: {run} holds another network ({reason})") from error


def load_grown(network: nn.Module, source: str | Path, *, finer: bool = False) -> None:
    """Weights of a narrower or shallower network of the same kind, so that both compute the same.

    Channels are repeated, and what reads them is divided among the copies at random, so that these do not
    learn the same (Net2Net: Chen, Goodfellow & Shlens, ICLR 2016). Residual blocks that the small network
    lacks add nothing at first; those that it alone has are left out, and what they added is lost.

    With ``finer`` the small network is one for twice the um per pixel: its levels become those below the
    network's first, which at first hands down the mean colour of every 2 x 2 pixels. Down to the features
    from which it read its maps both then compute the same; the finest level and the maps are new.

    Args:
        network: to be filled.
        source: folder of a run, or a bundle, by name or path.
        finer: whether the network has one level more, at the fine end.

    Raises:
        RecipeError: the source holds a larger or another network.
    """
    setting = "start.refine" if finer else "start.grow"
    small = _stored(source, setting)
    state = network.state_dict()
    if finer:
        small = _with_finer_level(small, state)
    small = {name: value for name, value in small.items() if name in state or ".body." not in name}
    strange = [name for name in small if name not in state]
    strange += [
        name
        for name, value in small.items()
        if name in state
        and (value.dim() != state[name].dim() or any(np.greater(value.shape, state[name].shape)))
    ]
    if strange:
        raise RecipeError(f"{setting}: {source} is not of a smaller network of this kind, see {strange[0]!r}")
    for name, value in state.items():
        if name not in small:
            continue
        grown = small[name]
        for axis in range(min(grown.dim(), 2)):
            copy_of = torch.arange(value.shape[axis]) % grown.shape[axis]
            grown = grown.index_select(axis, copy_of)
            if axis == 1 and len(copy_of) > small[name].shape[1]:
                grown = grown * _shares(value.shape[0], copy_of)[:, :, None, None]
        state[name] = grown
    network.load_state_dict(state)
    for name, module in network.named_modules():
        if isinstance(module, Residual) and f"{name}.body.2.weight" not in small:
            nn.init.zeros_(module.body[2].weight)


def _with_finer_level(small: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of ``small`` at their places in a network with one level more, and those that feed them."""
    # Strides, which the names hold, are doubled. The maps are read from the new level.
    found = {
        re.sub(r"^([a-z]+)(\d+)", lambda part: f"{part[1]}{2 * int(part[2])}", name): value
        for name, value in small.items()
        if not name.startswith("maps.")
    }
    # What was the first convolution sees three mean colours, and as yet nothing of the other channels.
    stem = found.get("encode4.0.weight")
    first = state["encode2.0.weight"].clone()
    if stem is not None and stem.shape[1] == 3 <= len(first):
        found["encode4.0.weight"] = torch.nn.functional.pad(stem, (0, 0, 0, 0, 0, len(first) - 3))
        first[:3] = 0.0
        first[range(3), range(3), 1:, 1:] = 0.25  # rows and columns 2i and 2i + 1, at stride 2
        found["encode2.0.weight"] = first
    return found


def _stored(source: str | Path, setting: str) -> dict[str, Tensor]:
    """The weights of a run's folder or of a bundle."""
    if (Path(source) / WEIGHTS_FILE).exists():
        return _weights(Path(source), setting)
    return stored_network(source, setting).state_dict()


def stored_network(source: str | Path, setting: str) -> nn.Module:
    """The network of a run's folder or of a bundle.

    Raises:
        RecipeError: it cannot be read; the message names the setting.
    """
    path = Path(source) / WEIGHTS_FILE
    if path.exists():
        weights = _weights(Path(source), setting)
        with safe_open(path, "pt") as file:
            recipe = (file.metadata() or {}).get("recipe")
        if recipe is None:
            raise RecipeError(f"{setting}: {path} holds no recipe, so it is not from a run of  nucfast train")
        network = build_network(json.loads(recipe))
        network.load_state_dict(weights)
        return network
    try:
        bundle = load_bundle(source)
    except NucfastError as error:
        raise RecipeError(f"{setting}: {source} cannot be read, neither as a run nor as a bundle") from error
    network = build_network(bundle.training.get("recipe", {}))
    load_from_bundle(network, bundle)
    return network


def _shares(outputs: int, copy_of: Tensor) -> Tensor:
    """(outputs, inputs): random parts that sum to 1 over the copies of the same channel."""
    parts = torch.rand(outputs, len(copy_of)) + 0.1
    sums = torch.zeros(outputs, int(copy_of.max()) + 1).index_add_(1, copy_of, parts)
    return parts / sums[:, copy_of]


def _weights(run: Path, setting: str) -> dict[str, Tensor]:
    path = run / WEIGHTS_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{setting}: {path} cannot be read ({error})") from error


def load_encoder(network: nn.Module, path: Path) -> None:
    """Weights with timm's names, from safetensors or ``torch.save``; a classifier is ignored."""
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise RecipeError("start.encoder: this network has no encoder of its own to fill")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise RecipeError(f"start.encoder: {path} cannot be read as weights ({error})") from error
    wanted = encoder.state_dict()
    # Files of older PyTorch count no batches; nothing depends on that count.
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    wrong = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if missing or wrong:
        raise RecipeError(
            f"start.encoder: {path} is not this encoder's: {len(missing)} parameters missing and "
            f"{len(wrong)} of another shape, such as {(missing + wrong)[0]!r}"
        )
    encoder.load_state_dict({name: tensors.get(name, wanted[name]) for name in wanted})
