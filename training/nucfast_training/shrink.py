"""Weights for a network that is narrower between some of its layers than the one that has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from nucfast_training.errors import RecipeError
from nucfast_training.start import norms_of, stored_network

_SAMPLES = 1500  # places of each image at which layers are compared
_RIDGE = 1e-4  # of the mean square of what a layer reads: against channels that are nearly the same
_AT_ONCE = 6  # a sixth of the channels that have still to go goes at once


def load_wide(network: nn.Module, source: str | Path) -> nn.Module:
    """The trained network of a run's folder or of a bundle, which ``network`` can be made of by ``shrink``.

    Raises:
        RecipeError: the source cannot be read or holds another network.
    """
    wide = stored_network(source, "start.shrink")
    links = network.links() if hasattr(network, "links") else []
    norms = norms_of(network)
    places = {module: name for name, module in network.named_modules()}
    makers = {maker for made, _ in links for maker in made}
    free = {(maker, 0) for maker in makers} | {(places[norms[maker]], 0) for maker in makers & norms.keys()}
    free |= {(reader, 1) for _, readers in links for reader in readers}
    sizes = wide.state_dict()
    strange = sizes.keys() ^ network.state_dict().keys()
    for name, value in network.state_dict().items():
        other = sizes.get(name, value)
        if value.dim() != other.dim():
            strange.add(name)
            continue
        for axis, (here, there) in enumerate(zip(value.shape, other.shape, strict=True)):
            if here > there or (here < there and (name.rpartition(".")[0], axis) not in free):
                strange.add(name)
    if strange:
        raise RecipeError(
            f"start.shrink: {source} is not of a network of this kind that is wider between some of its "
            f"layers and else the same, see {min(strange)!r}"
        )
    return wide


@torch.no_grad()
def shrink(network: nn.Module, wide: nn.Module, batches: Sequence[Tensor]) -> None:
    """Leave out channels so that the maps change least.

    Between two layers those channels go whose work the others can take over best (Hassibi & Stork: Second
    order derivatives for network pruning, NIPS 1992, for all weights of a channel at once). Then the layers
    behind are fitted, by least squares over pixels of images, to what they gave in the wide network (He,
    Zhang & Sun: Channel pruning for accelerating very deep neural networks, ICCV 2017).

    Args:
        network: to be filled.
        wide: from ``load_wide``; stays as it is.
        batches: (N, 3, H, W) each, as ``wide`` was trained on; dozens of patches in all.
    """
    wide.eval()
    narrow = deepcopy(wide)
    kept: dict[str, Tensor] = {}
    for makers, readers in network.links():  # type: ignore[operator]
        keep = _conv(network, makers[0]).out_channels
        if keep < _conv(narrow, makers[0]).out_channels:
            _thin(narrow, wide, makers, readers, keep, batches, kept)
    network.load_state_dict(narrow.state_dict())


def _thin(
    narrow: nn.Module,
    wide: nn.Module,
    makers: Sequence[str],
    readers: Sequence[str],
    keep: int,
    batches: Sequence[Tensor],
    kept: dict[str, Tensor],
) -> None:
    """Keep so many of the channels that the makers give, and fit the readers to those.

    ``kept``: by convolution, which of the wide network's channels it still gives; added to.
    """
    alive = torch.arange(_conv(narrow, makers[0]).out_channels)
    moments = [_moments(narrow, wide, reader, batches, kept.get(reader)) for reader in readers]
    sizes = [_conv(narrow, reader).kernel_size[0] ** 2 for reader in readers]
    while len(alive) > keep:
        losses = torch.zeros(len(alive), dtype=torch.float64)
        for (gram, cross, energy), size in zip(moments, sizes, strict=True):
            fit, inverse = _fit(gram, cross, alive, size)
            weights = fit[:-1].reshape(len(alive), size, -1)
            own = inverse[:-1, :-1].reshape(len(alive), size, len(alive), size)
            own = own[range(len(alive)), :, range(len(alive))]
            # By how much the squared error grows if all weights of a channel are 0 and the others do their
            # best, as a share of what the reader gives.
            losses += (weights * torch.linalg.solve(own, weights)).sum(dim=(1, 2)) / energy
        gone = min(len(alive) - keep, max(1, (len(alive) - keep) // _AT_ONCE))
        alive = alive[losses.argsort()[gone:].sort().values]
    places = {module: name for name, module in narrow.named_modules()}
    norms = {name: places[norm] for name, norm in norms_of(narrow).items()}
    for name in makers:
        narrow.set_submodule(name, _part(_conv(narrow, name), alive))
        if name in norms:
            old_norm = narrow.get_submodule(norms[name])
            narrow.set_submodule(norms[name], _part_of_norm(old_norm, alive))  # type: ignore[arg-type]
        kept[name] = alive
    for name, (gram, cross, _), size in zip(readers, moments, sizes, strict=True):
        fit, _ = _fit(gram, cross, alive, size)
        old = _conv(narrow, name)
        new = _like(old, keep, old.out_channels)
        new.weight.copy_(fit[:-1].T.reshape(new.weight.shape))
        if new.bias is not None:
            new.bias.copy_(fit[-1])
        else:
            narrow.get_submodule(norms[name]).running_mean -= fit[-1].float()  # type: ignore[operator]
        narrow.set_submodule(name, new.to(old.weight.device))
    narrow.eval()


def _moments(
    narrow: nn.Module, wide: nn.Module, reader: str, batches: Iterable[Tensor], kept: Tensor | None
) -> tuple[Tensor, Tensor, float]:
    """Sums over places of images: products of what is read, and of it with what should be given; its square.

    What is read is, for each channel, what lies under the kernel, and last 1. ``kept``: which of the wide
    network's channels the reader still gives; None: all.
    """
    conv = _conv(narrow, reader)
    side, stride = conv.kernel_size[0], conv.stride[0]
    generator = torch.Generator().manual_seed(0)
    gram = cross = torch.zeros((), dtype=torch.float64)
    energy = 0.0
    for images in batches:
        read = _seen(narrow, reader, images, given=True)
        given = _seen(wide, reader, images, given=False)
        if kept is not None:
            given = given[:, kept]
        for one, result in zip(read, given, strict=True):
            at = torch.randint(result[0].numel(), (_SAMPLES,), generator=generator).to(result.device)
            under = unfold(one[None], side, padding=side // 2, stride=stride)[0, :, at]
            values = pad(under.double(), (0, 0, 0, 1), value=1.0)
            wanted = result.flatten(1)[:, at].double()
            gram = gram.to(values.device) + values @ values.T
            cross = cross.to(values.device) + values @ wanted.T
            energy += float((wanted - wanted.mean(dim=1, keepdim=True)).square().sum())
    return gram.cpu(), cross.cpu(), energy


def _seen(network: nn.Module, name: str, images: Tensor, *, given: bool) -> Tensor:
    """What a layer is given, or what it gives."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0] if given else output).clone())  # before the next works in place

    hook = network.get_submodule(name).register_forward_hook(note)
    network(images)
    hook.remove()
    return seen[0]


def _fit(gram: Tensor, cross: Tensor, alive: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The weights of the readers, if only these channels are there, and the inverse of their products.

    ``size`` is the number of pixels under the kernel.
    """
    rows = (alive[:, None] * size + torch.arange(size)).flatten()
    rows = torch.cat([rows, torch.tensor([len(gram) - 1])])
    products = gram[rows][:, rows]
    ridge = _RIDGE * products.diagonal()[:-1].mean()
    inverse = torch.linalg.inv(products + ridge * torch.eye(len(rows), dtype=torch.float64))
    return inverse @ cross[rows], inverse


def _like(old: nn.Conv2d, channels_in: int, channels_out: int) -> nn.Conv2d:
    """A new convolution of the same kind."""
    return nn.Conv2d(
        channels_in,
        channels_out,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )


def _part(old: nn.Conv2d, alive: Tensor) -> nn.Conv2d:
    new = _like(old, old.in_channels, len(alive))
    new.weight.copy_(old.weight[alive])
    if new.bias is not None and old.bias is not None:
        new.bias.copy_(old.bias[alive])
    return new.to(old.weight.device)


def _part_of_norm(old: nn.BatchNorm2d, alive: Tensor) -> nn.BatchNorm2d:
    new = nn.BatchNorm2d(len(alive), eps=old.eps).to(old.weight.device)
    for name, value in new.state_dict().items():
        whole = old.state_dict()[name]
        value.copy_(whole[alive] if whole.dim() else whole)
    return new


def _conv(network: nn.Module, name: str) -> nn.Conv2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module
