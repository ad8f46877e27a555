from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import reference
from nucfast.ops.contours import contours
from nucfast.ops.rasterize import rasterize

# Quarter steps hit pixel centres and pixel edges; the range leaves a 9 x 11 image on all sides.
points = st.tuples(st.integers(-16, 60), st.integers(-16, 60)).map(lambda p: (p[0] / 4, p[1] / 4))


def flat(polygons):
    offsets = np.cumsum([0, *map(len, polygons)], dtype=np.int64)
    vertices = [np.asarray(p, np.float64).reshape(-1, 2) for p in polygons]
    return np.concatenate([np.empty((0, 2)), *vertices]), offsets


@settings(max_examples=80, deadline=None)
@given(polygons=st.lists(st.lists(points, max_size=7), max_size=4), closed=st.booleans())
def test_equals_reference(polygons, closed):
    if closed:
        polygons = [p + p[:1] for p in polygons]
    values = np.arange(1, len(polygons) + 1, dtype=np.int32) * 1000
    out = np.zeros((9, 11), np.int32)
    out[4, :3] = -5
    expected = reference.rasterize(polygons, values, out.copy())
    assert rasterize(*flat(polygons), values, out) is out
    assert_array_equal(out, expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(points, min_size=4, max_size=4))
def test_shared_edges_leave_no_gap_and_no_overlap(corners):
    triangle_fan = [[corners[0], corners[1], corners[2]], [corners[0], corners[2], corners[3]]]
    counts = np.zeros((9, 11), np.int32)
    for triangle in triangle_fan:
        one = np.zeros_like(counts)
        counts += rasterize(*flat([triangle]), np.array([1], np.int32), one)
    whole = rasterize(*flat([corners]), np.array([1], np.int32), np.zeros_like(counts))
    assert_array_equal(counts % 2, whole)  # even-odd: exact, also where the quadrilateral crosses itself


def test_first_polygon_wins():
    square = [(0, 0), (2, 0), (2, 2), (0, 2)]
    shifted = [(x + 1, y + 1) for x, y in square]
    out = np.zeros((3, 3), np.int32)
    rasterize(*flat([square, shifted]), np.array([7, 2**31 - 1], np.int32), out)
    big = 2**31 - 1
    assert_array_equal(out, [[7, 7, 0], [7, 7, big], [0, big, big]])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1)])
def test_tiny_images_and_nothing_to_draw(shape):
    out = np.zeros(shape, np.int32)
    rasterize(*flat([]), np.empty(0, np.int32), out)
    assert not out.any()
    rasterize(*flat([[(-9, -9), (1e15, -9), (1e15, 1e15), (-9, 1e15)]]), np.array([3], np.int32), out)
    assert (out == 3).all()


def test_real_label_maps_come_back(real_labels):
    labels = real_labels
    for style in ("edges", "midpoints"):
        rings = contours(labels, style=style)
        out = np.zeros_like(labels)
        rasterize(rings.points.astype(np.float64), rings.offsets, rings.labels, out)
        assert_array_equal(out[labels > 0], labels[labels > 0])  # holes are filled, so background may change
        assert np.mean(out != labels) < 0.001


def test_bad_arguments():
    vertices, offsets = flat([[(0, 0), (2, 0), (2, 2)]])
    values, out = np.array([1], np.int32), np.zeros((3, 3), np.int32)
    with pytest.raises(TypeError, match="vertices: expected float64, got float32"):
        rasterize(vertices.astype(np.float32), offsets, values, out)
    with pytest.raises(ValueError, match="vertices: expected shape"):
        rasterize(np.zeros((2, 3)), offsets, values, out)
    with pytest.raises(ValueError, match=r"offsets: expected shape \(2,\), got \(3,\)"):
        rasterize(vertices, np.array([0, 1, 3]), values, out)
    for bad in ([0, 2], [1, 3], [0, 4]):
        with pytest.raises(
            ValueError, match="offsets: expected values rising from 0 to the number of vertices, 3"
        ):
            rasterize(vertices, np.array(bad), values, out)
    with pytest.raises(ValueError, match="offsets: expected values rising"):
        rasterize(vertices, np.array([0, 4, 3]), np.array([1, 1], np.int32), out)
    for bad in (np.nan, np.inf, -1e16):
        with pytest.raises(ValueError, match="vertices: expected finite coordinates"):
            rasterize(np.where(vertices == 2, bad, vertices), offsets, values, out)
    with pytest.raises(ValueError, match="values: expected values >= 0, got -1"):
        rasterize(vertices, offsets, -values, out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writable array"):
        rasterize(vertices, offsets, values, out)
    assert not out.any()
