from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.testing import assert_array_equal

import reference
from nucfast.ops.contours import contours
from nucfast.ops.rasterize import rasterize

STYLES = ("edges", "midpoints")

# Few values on few pixels: pinch vertices, holes, nested labels and touching parts of one label are common.
maps = npst.arrays(
    np.int32,
    npst.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12),
    elements=st.sampled_from([0, 1, 2, 2**31 - 1]),
)


def polygons(rings):
    return [rings.points[a:b] for a, b in zip(rings.offsets[:-1], rings.offsets[1:], strict=True)]


def check(labels, style):
    """Equal to the reference, valid, and still valid after what QuPath does to a ring."""
    rings = contours(labels, style=style)
    parts = reference.parts(labels)
    assert (
        rings.labels.dtype == np.int32
        and rings.offsets.dtype == np.int64
        and rings.points.dtype == np.float32
    )
    assert_array_equal(rings.labels, [label for label, _ in parts])
    for ring, (_, part) in zip(polygons(rings), parts, strict=True):
        assert_array_equal(ring, reference.contour(part, style=style))
        polygon = shapely.Polygon(ring)
        assert polygon.is_valid and polygon.exterior.is_ccw
        assert polygon.area == len(reference.fill_holes(part)) - (0.5 if style == "midpoints" else 0.0)
        for scale in (1.0, 0.4990 / 0.2527, 4.0079, 0.25):
            moved = shapely.Polygon(ring.astype(np.float64) * scale + 1234.5678)
            rounded = shapely.set_precision(moved, 0.01, mode="pointwise")
            assert rounded.is_valid and rounded.geom_type == "Polygon"
            assert shapely.set_precision(moved, 0.01).equals(rounded)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=80, deadline=None)
@given(labels=maps)
def test_equals_reference_and_is_valid(style, labels):
    check(labels, style)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("density", [0.4, 0.6, 0.75])
def test_random_masks(style, density):
    rng = np.random.default_rng(7)
    check((rng.random((40, 40)) < density).astype(np.int32), style)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=50, deadline=None)
@given(labels=maps)
def test_rasterizing_gives_back_the_filled_pixels(style, labels):
    rings = contours(labels, style=style)
    for ring, (_, part) in zip(polygons(rings), reference.parts(labels), strict=True):
        out = np.zeros(labels.shape, np.int32)
        offsets = np.array([0, len(ring)], np.int64)
        rasterize(ring.astype(np.float64), offsets, np.array([1], np.int32), out)
        assert {(int(r), int(c)) for r, c in np.argwhere(out)} == reference.fill_holes(part)


def test_pinch_vertex_encloses_the_hole():
    labels = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.int32)  # the hole touches the outside at (2, 2)
    assert_array_equal(contours(labels).points, [[0, 0], [3, 0], [3, 2], [2, 2], [2, 3], [0, 3], [0, 0]])


def test_diagonal_parts_of_one_label_stay_apart():
    rings = contours(np.array([[5, 0], [0, 5]], np.int32))
    assert_array_equal(rings.labels, [5, 5])
    assert_array_equal(rings.offsets, [0, 5, 10])
    assert_array_equal(rings.points[5:], [[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]])


def test_one_pixel():
    labels = np.array([[2**31 - 1]], np.int32)
    assert_array_equal(contours(labels).points, [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    diamond = contours(labels, style="midpoints").points
    assert_array_equal(diamond, [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5], [0.5, 0]])


def test_midpoints_make_a_staircase_straight():
    labels = np.tril(np.ones((50, 50), np.int32))
    assert len(contours(labels).points) == 2 * 50 + 3
    assert len(contours(labels, style="midpoints").points) == 7


def test_order_is_label_then_first_pixel():
    labels = np.array([[3, 0, 1, 0, 3], [0, 0, 0, 0, 0], [1, 0, 3, 0, 2]], np.int32)
    rings = contours(labels)
    assert_array_equal(rings.labels, [1, 1, 2, 3, 3, 3])
    assert_array_equal(rings.points[rings.offsets[:-1]], [[2, 0], [0, 2], [4, 2], [0, 0], [4, 0], [2, 2]])


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0), (5, 5)])
def test_nothing_to_trace(shape):
    rings = contours(np.zeros(shape, np.int32))
    assert rings.labels.shape == (0,) and rings.points.shape == (0, 2)
    assert_array_equal(rings.offsets, [0])


def test_one_huge_label_and_many_tiny_ones():
    assert_array_equal(contours(np.full((300, 500), 9, np.int32)).points[2], [500, 300])
    checkerboard = (np.indices((200, 200)).sum(axis=0) % 2).astype(np.int32)
    assert len(contours(checkerboard).labels) == 20_000


@pytest.mark.parametrize("style", STYLES)
def test_threads_give_the_same_rings(style):
    labels = np.random.default_rng(5).integers(0, 3, (60, 70), dtype=np.int32) * 1_000_000_007
    expected = contours(labels, style=style)
    for threads in (2, 5, 99):
        found = contours(labels, style=style, threads=threads)
        for name, values in vars(expected).items():
            assert_array_equal(getattr(found, name), values)


def test_views_and_read_only_arrays():
    labels = np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.int32)
    labels.flags.writeable = False
    assert_array_equal(contours(labels[::2, ::-3]).points, contours(labels[::2, ::-3].copy()).points)


def test_real_label_map(real_labels):
    for style in STYLES:
        check(real_labels[200:500, 300:600], style)


def test_bad_arguments():
    labels = np.zeros((3, 3), np.int32)
    with pytest.raises(TypeError, match="labels: expected int32, got int64"):
        contours(labels.astype(np.int64))
    with pytest.raises(ValueError, match="labels: expected 2 dimensions"):
        contours(labels[0])
    with pytest.raises(ValueError, match="style: expected 'edges' or 'midpoints', got 'corners'"):
        contours(labels, style="corners")
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        contours(labels, threads=0)
    labels[1, 1] = -4
    with pytest.raises(ValueError, match="labels: expected values >= 0, got -4"):
        contours(labels)
    with pytest.raises(ValueError, match="labels: expected sides of at most 8388608 px"):
        contours(np.zeros((1, 2**23 + 1), np.int32))
