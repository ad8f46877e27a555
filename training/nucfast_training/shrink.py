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
    free = {(place, 0) for made, _ in links for place in (made, places[norms[made]])}
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
    order derivatives for network pruning, NIPS 1992, for all weights of a channel at once). Then the layer
    behind is fitted, by least squares over pixels of images, to what it gave in the wide network (He, Zhang &
    Sun: Channel pruning for accelerating very deep neural networks, ICCV 2017).

    Args:
        network: to be filled.
        wide: from ``load_wide``; stays as it is.
        batches: (N, 3, H, W) each, as ``wide`` was trained on; dozens of patches in all.
    """
    wide.eval()
    narrow = deepcopy(wide)
    for made, readers in network.links():  # type: ignore[operator]
        keep = network.get_submodule(made).out_channels
        if keep < narrow.get_submodule(made).out_channels:  # type: ignore[operator]
            _thin(narrow, wide, made, readers, int(keep), batches)  # type: ignore[arg-type]
    network.load_state_dict(narrow.state_dict())


def _thin(
    narrow: nn.Module,
    wide: nn.Module,
    made: str,
    readers: Sequence[str],
    keep: int,
    batches: Iterable[Tensor],
) -> None:
    """Keep so many of the channels that the convolution ``made`` gives, and fit those that read them."""
    first = _conv(narrow, readers[0])
    gram, cross = _moments(narrow, wide, readers, batches)
    side = first.kernel_size[0]
    size = side * side
    alive = torch.arange(first.in_channels)
    while len(alive) > keep:
        fit, inverse = _fit(gram, cross, alive, size)
        weights = fit[:-1].reshape(len(alive), size, -1)
        own = inverse[:-1, :-1].reshape(len(alive), size, len(alive), size)
        own = own[range(len(alive)), :, range(len(alive))]
        # By how much the squared error grows if all weights of a channel are 0 and the others do their best.
        losses = (weights * torch.linalg.solve(own, weights)).sum(dim=(1, 2))
        gone = min(len(alive) - keep, max(1, (len(alive) - keep) // _AT_ONCE))
        alive = alive[losses.argsort()[gone:].sort().values]
    fit, _ = _fit(gram, cross, alive, size)
    norms = norms_of(narrow)
    places = {module: name for name, module in narrow.named_modules()}
    norm = norms[made]
    narrow.set_submodule(made, _part(_conv(narrow, made), alive))
    narrow.set_submodule(places[norm], _part_of_norm(norm, alive))
    parts = fit.split([_conv(wide, name).out_channels for name in readers], dim=1)
    for name, part in zip(readers, parts, strict=True):
        old = _conv(narrow, name)
        new = nn.Conv2d(keep, old.out_channels, side, padding=side // 2, bias=old.bias is not None)
        new.weight.copy_(part[:-1].T.reshape(new.weight.shape))
        if new.bias is not None:
            new.bias.copy_(part[-1])
        else:
            norms[name].running_mean -= part[-1].float()  # type: ignore[operator]
        narrow.set_submodule(name, new.to(old.weight.device))
    narrow.eval()


def _moments(
    narrow: nn.Module, wide: nn.Module, readers: Sequence[str], batches: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums over places of images: products of what the readers read, and of it with what they should give.

    What is read is, for each channel, what lies under the kernel, and last 1.
    """
    side = _conv(narrow, readers[0]).kernel_size[0]
    generator = torch.Generator().manual_seed(0)
    gram = cross = torch.zeros((), dtype=torch.float64)
    for images in batches:
        (read,) = _seen(narrow, readers[:1], images, given=True)
        given = torch.cat(_seen(wide, readers, images, given=False), dim=1)
        for one, result in zip(read, given, strict=True):
            at = torch.randint(result[0].numel(), (_SAMPLES,), generator=generator).to(result.device)
            values = pad(
                unfold(one[None], side, padding=side // 2)[0, :, at].double(), (0, 0, 0, 1), value=1.0
            )
            gram = gram.to(values.device) + values @ values.T
            cross = cross.to(values.device) + values @ result.flatten(1)[:, at].double().T
    return gram.cpu(), cross.cpu()


def _seen(network: nn.Module, names: Sequence[str], images: Tensor, *, given: bool) -> list[Tensor]:
    """What layers are given, or what they give."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> object:
        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (args[0] if given else output).clone()  # before the next works in place

        return note

    hooks = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]  # type: ignore[arg-type]
    network(images)
    for each in hooks:
        each.remove()
    return [seen[name] for name in names]


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


def _part(old: nn.Conv2d, alive: Tensor) -> nn.Conv2d:
    new = nn.Conv2d(old.in_channels, len(alive), old.kernel_size, old.stride, old.padding, bias=False)  # type: ignore[arg-type]
    new.weight.copy_(old.weight[alive])
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
