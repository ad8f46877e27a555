"""The class of each nucleus, from the forms in which classes are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nucfast.ops.overlap import overlaps

# One image's classes: a map of pixels, a table by id, or a mapping.
Types: TypeAlias = NDArray[np.integer[Any]] | Mapping[int, int]


def vote_types(labels: NDArray[np.int32], types: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Give each nucleus the class that most of its pixels have.

    Only pixels with a class (not 0) vote; of equally frequent classes the smallest wins. A nucleus none of
    whose pixels has a class gets 0, unclassified.

    Args:
        labels: (H, W) int32, 0 = background.
        types: (H, W) any integer type, the class per pixel, 0 = none. Raw ids of a data set must have been
            mapped to the classes wanted before the vote: two raw classes may win together.

    Returns:
        The class of every id in ``labels``.

    Raises:
        TypeError: ``labels`` is not int32 or ``types`` not of integers.
        ValueError: shapes differ, or an id or a class is negative.
    """
    return _vote(labels, types, "types")


def _vote(labels: NDArray[np.int32], types: NDArray[np.integer[Any]], name: str) -> dict[int, int]:
    classes = as_int32(types, name)
    if classes.shape != labels.shape:
        raise ValueError(f"{name}: expected shape {labels.shape}, got {classes.shape}")
    if classes.min(initial=0) < 0:
        raise ValueError(f"{name}: expected classes >= 0, got {classes.min()}")
    votes = overlaps(labels, classes)
    winner = dict.fromkeys(votes.true_ids.tolist(), 0)
    # By ascending votes, equal ones from the largest class down: the last entry of a nucleus is its winner.
    order = np.lexsort((-votes.pred_id, votes.count))
    winner.update(zip(votes.true_id[order].tolist(), votes.pred_id[order].tolist(), strict=True))
    return winner


def types_of(ids: NDArray[np.int64], labels: NDArray[np.int32], types: Types, name: str) -> NDArray[np.int64]:
    """Look up the class of each id; ``name`` is the argument to blame in errors."""
    if isinstance(types, Mapping):
        missing = [number for number in ids.tolist() if number not in types]
        if missing:
            raise ValueError(f"{name}: expected a class for every nucleus, got none for id {missing[0]}")
        found = np.array([types[number] for number in ids.tolist()], dtype=np.int64)
    elif types.ndim == 1:
        table = as_int32(types, name)
        if len(ids) and ids[-1] >= len(table):
            raise ValueError(
                f"{name}: expected a class for every id up to {ids[-1]}, got {len(table)} entries"
            )
        found = table[ids].astype(np.int64)
    elif types.shape == labels.shape:
        voted = _vote(labels, types, name)
        found = np.array([voted[number] for number in ids.tolist()], dtype=np.int64)
    else:
        raise ValueError(f"{name}: expected shape {labels.shape} or one dimension, got {types.shape}")
    if len(found) and found.min() < 0:
        raise ValueError(f"{name}: expected classes >= 0, got {found.min()}")
    return found


def as_int32(array: NDArray[np.integer[Any]], name: str) -> NDArray[np.int32]:
    """Widen or narrow integers to int32 if every value survives it."""
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer):
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name}: expected an array of integers, got {got}")
    limits = np.iinfo(np.int32)
    if not np.can_cast(array.dtype, np.int32) and array.size:
        low, high = array.min(), array.max()
        if low < limits.min or high > limits.max:
            raise ValueError(f"{name}: expected values within int32, got {low if low < 0 else high}")
    return array.astype(np.int32, copy=False)
