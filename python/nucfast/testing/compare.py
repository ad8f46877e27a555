"""Equality of results, for tests."""

from __future__ import annotations

from dataclasses import fields

from numpy.testing import assert_array_equal

from nucfast.nuclei import Nuclei


def assert_nuclei_equal(actual: Nuclei, expected: Nuclei, *, meta: bool = False) -> None:
    """Raise AssertionError unless both hold the same rows in the same order, bit for bit.

    Args:
        actual: the table under test.
        expected: what it must be.
        meta: whether ``meta`` must be equal too.
    """
    assert actual.classes == expected.classes, f"classes: {actual.classes} != {expected.classes}"
    assert actual.mpp == expected.mpp, f"mpp: {actual.mpp} != {expected.mpp}"
    assert list(actual.features) == list(expected.features), f"features: {list(actual.features)}"
    for name in (entry.name for entry in fields(Nuclei)):
        if name not in {"classes", "mpp", "features", "meta"}:
            assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)
    for name, column in actual.features.items():
        assert_array_equal(column, expected.features[name], err_msg=name)
    if meta:
        assert actual.meta == expected.meta, f"meta: {actual.meta} != {expected.meta}"
