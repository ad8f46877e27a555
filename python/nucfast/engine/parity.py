"""How far engines differ on the same tiles: all of them run the same file and must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.base import Engine
from nucfast.engine.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of one engine against the reference, in grey levels of 0..255.

    Attributes:
        engine: the engine's ``description``.
        output: the output's name.
        largest: the largest difference of any value.
        mean: the mean difference.
        share_above_1: the share of values that differ by more than one level.
    """

    engine: str
    output: str
    largest: int
    mean: float
    share_above_1: float


def parity(bundle: Bundle, engines: Sequence[Engine], tiles: NDArray[np.uint8]) -> list[Difference]:
    """Compare engines with the first of them.

    Args:
        bundle: what they all run.
        engines: two or more; the first is the reference.
        tiles: as for ``Engine.run``, at least one.

    Returns:
        A row for each other engine and each output.

    Raises:
        ValueError: fewer than two engines, no tile, or an engine of another bundle.
    """
    if len(engines) < 2:
        raise ValueError(f"engines: expected two or more, got {len(engines)}")
    if len(tiles) == 0:
        raise ValueError("tiles: expected one or more, got none")
    for engine in engines:
        if engine.bundle != bundle:
            raise ValueError(
                f"engines: expected all to run {bundle.name!r}, got one of {engine.bundle.name!r}"
            )
    expected, *others = [engine.run(tiles) for engine in engines]
    return [
        difference(engine.description, spec.name, maps[spec.name], expected[spec.name])
        for engine, maps in zip(engines[1:], others, strict=True)
        for spec in bundle.outputs
    ]


def difference(
    engine: str, output: str, values: NDArray[np.uint8], expected: NDArray[np.uint8]
) -> Difference:
    """Compare two non-empty maps of equal shape; ``engine`` and ``output`` are labels."""
    apart = np.abs(values.astype(np.int16) - expected.astype(np.int16))
    return Difference(engine, output, int(apart.max()), float(apart.mean()), float((apart > 1).mean()))
