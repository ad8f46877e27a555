"""What stays as it is while the rest is trained."""

from __future__ import annotations

from torch import nn

from nucfast_training.errors import RecipeError
from nucfast_training.recipe import Recipe

BODY = "body"


def check_freeze(network: nn.Module, recipe: Recipe) -> None:
    """Refuse parts that the network does not have.

    Raises:
        RecipeError: a part matches no parameter.
    """
    names = [name for name, _ in network.named_parameters()]
    for part in recipe.freeze.parts:
        if part != BODY and not any(name.startswith(part) for name in names):
            tops = sorted({name.split(".")[0] for name in names})
            raise RecipeError(
                f"freeze.parts: no parameter begins with {part!r}; expected 'body' or {', '.join(tops)}"
            )


def prepare(network: nn.Module, recipe: Recipe, epoch: float) -> None:
    """Put a network into training mode, with what is frozen in this epoch left out.

    A recipe that starts from nothing freezes nothing: random weights are not worth keeping.
    """
    network.train()
    start, freeze = recipe.start, recipe.freeze
    from_nothing = not any(vars(start).values())
    outer = tuple(getattr(network, "outer", ()))
    held = freeze.until_epoch == 0 or epoch < freeze.until_epoch
    for name, parameter in network.named_parameters():
        frozen = any(name.startswith(part) for part in freeze.parts)
        frozen |= BODY in freeze.parts and not name.startswith(outer)
        parameter.requires_grad_(from_nothing or not (held and frozen))
    norms_stay = not from_nothing and 0 <= freeze.batch_norm_from_epoch <= epoch
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            if norms_stay:
                module.requires_grad_(False)
            if not module.weight.requires_grad:  # nor may a frozen one go on measuring
                module.eval()
