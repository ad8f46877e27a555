"""Optimisers by name, AdaBound among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from nucfast_training.recipe import OptimiserSettings


class AdaBound(Optimizer):
    """Adam whose steps are bounded, ever more tightly, until it is SGD (Luo et al., ICLR 2019).

    Args:
        params: as of every optimiser.
        lr: learning rate of the beginning.
        betas: decay of the running means of gradient and squared gradient.
        final_lr: learning rate that both bounds approach.
        gamma: how fast they do, per step.
        eps: added to the root of the mean square.
        weight_decay: times the weights, added to the gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "final_lr": final_lr, "gamma": gamma, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay, "base_lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            # A schedule that lowers lr lowers the final rate with it.
            final = group["final_lr"] * group["lr"] / group["base_lr"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros(())
                    state["mean"] = torch.zeros_like(weight)
                    state["square"] = torch.zeros_like(weight)
                state["step"] += 1
                count = float(state["step"])
                gradient = weight.grad.add(weight, alpha=group["weight_decay"])
                state["mean"].lerp_(gradient, 1.0 - beta1)
                state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
                rate = group["lr"] * (1.0 - beta2**count) ** 0.5 / (1.0 - beta1**count)
                low = final * (1.0 - 1.0 / (group["gamma"] * count + 1.0))
                high = final * (1.0 + 1.0 / (group["gamma"] * count))
                rates = (rate / state["square"].sqrt().add_(group["eps"])).clamp_(low, high)
                weight.sub_(rates.mul_(state["mean"]))
        return loss


OPTIMISERS: dict[str, Callable[[Iterable[Tensor], OptimiserSettings], Optimizer]] = {
    "adamw": lambda weights, s: AdamW(weights, lr=s.learning_rate, weight_decay=s.weight_decay),
    "adam": lambda weights, s: Adam(weights, lr=s.learning_rate, weight_decay=s.weight_decay),
    "sgd": lambda weights, s: SGD(
        weights, lr=s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay
    ),
    "adagrad": lambda weights, s: Adagrad(weights, lr=s.learning_rate, weight_decay=s.weight_decay),
    "adabound": lambda weights, s: AdaBound(
        weights, s.learning_rate, final_lr=s.final_learning_rate, weight_decay=s.weight_decay
    ),
}


def pack(optimiser: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by name, and what of it is plain JSON; not its settings."""
    state = optimiser.state_dict()
    tensors, rest = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            place = tensors if isinstance(value, Tensor) else rest
            place[f"{index}.{name}"] = value
    return tensors, {"rest": rest}


def unpack(optimiser: Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Put back what ``pack`` gave; learning rate, momentum and the like stay the optimiser's own."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["rest"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
