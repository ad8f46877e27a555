import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal
from scipy import ndimage
from skimage import measure

import reference
from nucfast.ops.components import label

DTYPES = [np.bool_, np.uint8, np.uint16, np.int32]
shapes = array_shapes(min_dims=2, max_dims=2, max_side=24)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_equals_reference(data, dtype, connectivity):
    levels = st.integers(0, 1 if dtype is np.bool_ else 2)
    image = data.draw(arrays(np.uint8, shapes, elements=levels)).astype(dtype)
    threads = data.draw(st.integers(1, 4))
    expected = reference.label(image, connectivity=connectivity)
    actual = label(image, connectivity=connectivity, threads=threads)
    assert actual.dtype == np.int32
    assert_array_equal(actual, expected)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("density", [0.02, 0.4, 0.6, 0.98])
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_scipy_and_skimage(density, connectivity, threads):
    rng = np.random.default_rng(0)
    mask = rng.random((601, 733)) < density  # large enough for three threads
    labels = label(mask, connectivity=connectivity, threads=threads)
    structure = np.ones((3, 3)) if connectivity == 8 else None
    assert_array_equal(labels, ndimage.label(mask, structure)[0])
    values = np.where(mask, rng.integers(1, 4, mask.shape), 0).astype(np.int32)
    expected = measure.label(values, connectivity=connectivity // 4, background=0)
    assert_array_equal(label(values, connectivity=connectivity, threads=threads), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_real_label_map(real_labels, threads):
    expected = measure.label(real_labels, connectivity=2, background=0)
    assert_array_equal(label(real_labels, threads=threads), expected)
    assert_array_equal(label(real_labels.astype(np.uint16), threads=threads), expected)
    mask = real_labels > 0
    assert_array_equal(label(mask, threads=threads), ndimage.label(mask, np.ones((3, 3)))[0])


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_and_threads_agree(dtype, connectivity, isa):
    rng = np.random.default_rng(3)
    for shape in [(1, 1), (3, 64), (5, 65), (64, 128), (77, 300)]:
        for density in (0.1, 0.5, 0.9):
            image = np.where(rng.random(shape) < density, rng.integers(1, 3, shape), 0).astype(dtype)
            expected = measure.label(image, connectivity=connectivity // 4, background=0)
            for threads in (1, 2, 7):
                assert_array_equal(label(image, connectivity=connectivity, threads=threads), expected)


def test_numbers_follow_the_first_pixel_in_raster_order():
    # Rows are taken in pairs: what begins in the upper one comes first, wherever it is.
    mask = np.array([[0, 0, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    assert_array_equal(label(mask), [[0, 0, 0, 0, 1], [2, 0, 3, 0, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_one_huge_label_and_labels_of_one_pixel(dtype, threads):
    assert_array_equal(label(np.ones((200, 333), dtype), threads=threads), np.ones((200, 333)))
    image = (np.indices((50, 130)).sum(axis=0) % 2 + 1).astype(dtype)  # a chessboard
    expected = measure.label(image, connectivity=1, background=0)
    assert_array_equal(label(image, connectivity=4, threads=threads), expected)
    apart = np.zeros((50, 131), dtype)
    apart[::2, ::2] = 1
    expected = np.zeros(apart.shape, np.int32)
    expected[::2, ::2] = np.arange(1, 25 * 66 + 1).reshape(25, 66)
    assert_array_equal(label(apart, threads=threads), expected)


def test_the_largest_ids():
    image = np.array([[2**31 - 1, 2**31 - 2], [2**31 - 2, 2**31 - 1], [-(2**31), 0]], np.int32)
    assert_array_equal(label(image), [[1, 2], [2, 1], [3, 0]])


def test_rows_have_a_limit():
    # No memory is touched: the check comes first.
    with pytest.raises(ValueError, match=r"image: expected at most 2\^30 columns, got 1073741825"):
        label(np.empty((0, 2**30 + 1), bool))


def test_touching_values_stay_apart_and_parts_are_numbered():
    image = np.array([[7, 7, 3], [0, 3, 3], [7, 0, 0]], np.int32)
    assert_array_equal(label(image), [[1, 1, 2], [0, 2, 2], [3, 0, 0]])


def test_negative_values_are_objects():
    assert_array_equal(label(np.array([[-1, -1, 0, -2]], np.int32)), [[1, 1, 0, 2]])


def test_runs_that_abut_connect_by_their_corners():
    # The runs of 1 above and of 2 below end in the same column; each touches the other row's next run.
    image = np.array([[1, 1, 2, 2], [2, 2, 1, 1]], np.int32)
    assert_array_equal(label(image, connectivity=8), [[1, 1, 2, 2], [2, 2, 1, 1]])
    assert_array_equal(label(image, connectivity=4), [[1, 1, 2, 2], [3, 3, 4, 4]])


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 64), (64, 1), (3, 63), (3, 65)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_cases(shape, dtype):
    assert_array_equal(label(np.zeros(shape, dtype)), np.zeros(shape))
    assert_array_equal(label(np.ones(shape, dtype), threads=2), np.ones(shape))


def test_any_non_zero_byte_is_true():
    mask = np.array([[0, 1, 2, 255, 0, 128]], np.uint8).view(np.bool_)
    assert_array_equal(label(mask), [[0, 1, 1, 1, 0, 2]])


def test_views_and_read_only_arrays():
    image = np.arange(64, dtype=np.int32).reshape(8, 8) % 3
    image.flags.writeable = False
    for view in (image[::2, 1::3], image.T, image[:, ::-1]):
        assert_array_equal(label(view), reference.label(view, connectivity=8))


def test_out_is_filled_and_returned():
    mask = np.eye(5, dtype=bool)
    out = np.full((5, 5), -1, np.int32)
    assert label(mask, out=out) is out
    assert_array_equal(out, np.eye(5))


def test_out_may_be_the_image():
    image = np.array([[5, 5, 0], [0, 0, 5]], np.int32)
    label(image, connectivity=4, out=image)
    assert_array_equal(image, [[1, 1, 0], [0, 0, 2]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": np.zeros((2, 2))}, TypeError, "image: expected bool, uint8, uint16 or int32, got float64"),
        ({"image": np.zeros(2, bool)}, ValueError, r"image: expected 2 dimensions, got shape \(2,\)"),
        ({"connectivity": 6}, ValueError, "connectivity: expected 4 or 8, got 6"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
        ({"out": np.zeros((2, 2), np.int64)}, TypeError, "out: expected int32, got int64"),
        ({"out": np.zeros((2, 3), np.int32)}, ValueError, r"out: expected shape \(2, 2\), got \(2, 3\)"),
        ({"out": np.zeros((4, 2), np.int32)[::2]}, ValueError, "out: expected a C-contiguous array"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        label(**{"image": np.zeros((2, 2), bool), **arguments})
