"""Drawing rings: the kernel equals the slow Python version."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import reference
from nucfast import _core


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 999),
    shape=st.sampled_from([(1, 1), (9, 14), (30, 21)]),
    width=st.sampled_from([0.0, 1.0, 2.0, 3.7]),
    closed=st.booleans(),
)
def test_equals_reference(seed, shape, width, closed):
    random = np.random.default_rng(seed)
    # Coordinates whose distances to samples are never just half of a width, which rounding could decide.
    rings = [
        random.uniform(-4, 34, 2) + random.uniform(0.5, 9) * random.normal(size=(points, 2))
        for points in (3, 1, 7, 4)
    ]
    if closed:
        rings = [np.concatenate([ring, ring[:1]]) for ring in rings]
    colors = random.integers(0, 256, (len(rings), 3), np.uint8)
    picture = random.integers(0, 256, (*shape, 3), np.uint8)
    expected = picture.copy()
    reference.draw_outlines(rings, colors, width, expected)
    offsets = np.cumsum([0, *map(len, rings)])
    _core.draw_outlines(np.concatenate(rings), offsets, colors, width, picture)
    assert_array_equal(picture, expected)


def test_bad_arguments_leave_the_picture():
    picture = np.full((5, 5, 3), 7, np.uint8)
    ring, offsets, color = np.array([[0.0, 0], [4, 0], [4, 4]]), np.array([0, 3]), np.zeros((1, 3), np.uint8)
    with pytest.raises(ValueError, match="offsets: expected values rising"):
        _core.draw_outlines(ring, np.array([0, 2]), color, 1.0, picture)
    with pytest.raises(ValueError, match="vertices: expected finite"):
        _core.draw_outlines(ring * np.nan, offsets, color, 1.0, picture)
    with pytest.raises(ValueError, match="width: expected 0 to 1000"):
        _core.draw_outlines(ring, offsets, color, -1.0, picture)
    with pytest.raises(ValueError, match="picture: expected 3 dimensions"):
        _core.draw_outlines(ring, offsets, color, 1.0, picture[0])
    assert (picture == 7).all()
