import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal
from scipy import ndimage
from skimage import measure

import reference
from nucfast.ops.distance import distance_transform


def scipy_distance(mask):
    return ndimage.distance_transform_edt(mask).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.bool_, np.int32])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_equals_reference(data, dtype):
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=20))
    levels = st.integers(0, 1 if dtype is np.bool_ else 3)
    image = data.draw(arrays(np.uint8, shape, elements=levels, fill=st.just(1))).astype(dtype)
    actual = distance_transform(image, threads=data.draw(st.integers(1, 3)))
    assert actual.dtype == np.float32
    assert_array_equal(actual, reference.distance_transform(image))


@pytest.mark.parametrize("zeros", [1, 3, 40, 4000])
@pytest.mark.parametrize("shape", [(300, 411), (7, 900), (900, 7)])
@pytest.mark.parametrize("threads", [1, 4])
def test_objects_larger_than_the_search_reach(shape, zeros, threads):
    rng = np.random.default_rng(zeros)
    mask = np.ones(shape, bool)
    mask.flat[rng.choice(mask.size, zeros, replace=False)] = False
    assert_array_equal(distance_transform(mask, threads=threads), scipy_distance(mask))


@pytest.mark.parametrize("radius", [31, 124, 125, 126, 127, 128])
def test_discs_about_the_search_reach(radius, isa):
    row, col = np.ogrid[:270, :290]
    mask = (row - 135) ** 2 + (col - 140) ** 2 < radius**2
    assert_array_equal(distance_transform(mask), scipy_distance(mask))


def test_a_large_object_among_small_ones(isa):
    rng = np.random.default_rng(1)
    labels = measure.label(rng.random((700, 600)) < 0.55, connectivity=1).astype(np.int32)
    labels[150:560, 120:500] = labels.max() + 1
    labels[151:559:90, 130:490:80] = labels.max() + 1
    expected = ndimage.distance_transform_edt(labels > 0).astype(np.float32)
    assert expected.max() > 40
    assert_array_equal(distance_transform(labels > 0, threads=3), expected)
    big = labels == labels[200, 200]
    assert_array_equal(distance_transform(labels, threads=3)[big], scipy_distance(big)[big])
    solid = np.ones((400, 420), np.int32)
    solid[7, 9] = 0
    assert_array_equal(distance_transform(solid), scipy_distance(solid > 0))


@pytest.mark.parametrize("dtype", [np.bool_, np.int32])
def test_instruction_sets_and_threads_agree(dtype, isa):
    rng = np.random.default_rng(2)
    for shape in [(1, 1), (1, 31), (64, 32), (65, 33), (129, 331)]:
        for density in (0.3, 0.9, 0.999):
            image = (rng.integers(1, 3, shape) * (rng.random(shape) < density)).astype(dtype)
            expected = reference.distance_transform(image) if image.size < 4000 else None
            for threads in (1, 2, 5):
                actual = distance_transform(image, threads=threads)
                expected = actual if expected is None else expected
                assert_array_equal(actual, expected)


def test_every_pixel_another_label():
    labels = np.arange(1, 36 * 50 + 1, dtype=np.int32).reshape(36, 50)
    labels[3, 4] = np.iinfo(np.int32).max
    assert_array_equal(distance_transform(labels), np.ones(labels.shape))


def test_sides_have_a_limit():
    # No memory is touched: the check comes first.
    with pytest.raises(ValueError, match="image: expected sides up to 16777216, got"):
        distance_transform(np.empty((0, 2**24 + 1), bool))


def test_labels_end_where_another_label_begins():
    labels = np.zeros((640, 660), np.int32)
    labels[5:630, 3:340] = 1  # deeper than the search reach
    labels[5:630, 340:655] = 2
    labels[60:70, 60:70] = 3
    expected = sum(np.where(labels == i, scipy_distance(labels == i), 0) for i in (1, 2, 3))
    assert_array_equal(distance_transform(labels), expected)


def test_the_border_is_not_background():
    mask = np.ones((3, 5), bool)
    mask[:, 0] = False
    assert_array_equal(distance_transform(mask), np.tile([0, 1, 2, 3, 4], (3, 1)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (65, 70)])
@pytest.mark.parametrize("dtype", [np.bool_, np.int32])
@pytest.mark.parametrize("threads", [1, 2])
def test_infinite_without_background(shape, dtype, threads):
    assert np.isposinf(distance_transform(np.ones(shape, dtype), threads=threads)).all()
    assert_array_equal(distance_transform(np.zeros(shape, dtype), threads=threads), np.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_empty(shape):
    assert distance_transform(np.zeros(shape, bool)).shape == shape


def test_real_label_map(real_labels):
    labels = real_labels
    assert_array_equal(distance_transform(labels > 0), scipy_distance(labels > 0))
    actual = distance_transform(labels, threads=2)
    for i, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        own = labels[wide] == i
        assert_array_equal(actual[wide][own], scipy_distance(own)[own])


def test_any_non_zero_byte_is_true():
    mask = np.array([[0, 1, 2, 255, 0]], np.uint8).view(np.bool_)
    assert_array_equal(distance_transform(mask), [[0, 1, 2, 1, 0]])


def test_views_read_only_and_out():
    mask = np.random.default_rng(0).random((30, 40)) < 0.7
    mask.flags.writeable = False
    view = mask[::2, 1::3].T
    out = np.full(view.shape, -1, np.float32)
    assert distance_transform(view, out=out) is out
    assert_array_equal(out, scipy_distance(view))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": np.zeros((2, 2), np.uint8)}, TypeError, "image: expected bool or int32, got uint8"),
        ({"image": np.zeros((2, 2, 2), bool)}, ValueError, "image: expected 2 dimensions"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
        ({"out": np.zeros((2, 2))}, TypeError, "out: expected float32, got float64"),
        ({"out": np.zeros((2, 1), np.float32)}, ValueError, r"out: expected shape \(2, 2\), got \(2, 1\)"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        distance_transform(**{"image": np.zeros((2, 2), bool), **arguments})
