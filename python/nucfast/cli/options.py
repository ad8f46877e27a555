"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nucfast.engine import ENGINES, PRECISIONS
from nucfast.pipeline import InferConfig

Command = TypeVar("Command", bound=Callable[..., Any])

model_option = click.option(
    "--model", default=InferConfig.model, show_default=True, help="A model's name or path."
)


def network_options(command: Command) -> Command:
    """Which network runs where: ``--model``, ``--device``, ``--engine``, ``--precision``."""
    options = (
        model_option,
        click.option(
            "--device",
            default=InferConfig.device,
            show_default=True,
            help="auto, cpu, cuda (all GPUs of one kind), cuda:N or cuda:N,M.",
        ),
        click.option("--engine", type=click.Choice(ENGINES), default=InferConfig.engine, show_default=True),
        click.option(
            "--precision", type=click.Choice(PRECISIONS), default=InferConfig.precision, show_default=True
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
