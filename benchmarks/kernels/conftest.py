"""The fixture that every kernel's benchmark uses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import harness


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., None]:
    """``harness.compare`` with this test's ``benchmark``."""
    return functools.partial(harness.compare, benchmark)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["libraries"] = harness.versions()
