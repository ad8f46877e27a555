import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal
from scipy import ndimage
from skimage import segmentation

import reference
from nucfast.ops.components import label
from nucfast.ops.distance import distance_transform
from nucfast.ops.watershed import find_seeds, watershed
from nucfast.testing import random_blobs


def blobs(shape, *, dtype=np.uint8, levels=6, seed=0):
    """Make a bumpy map of few levels, so that ties are common, with a few markers."""
    rng = np.random.default_rng(seed)
    elevation = ndimage.gaussian_filter(rng.random(shape), 1.5)
    elevation = np.interp(elevation, (elevation.min(), elevation.max() + 1e-9), (0, levels)).astype(dtype)
    mask = ndimage.gaussian_filter(rng.random(shape), 1) > 0.45
    markers = np.where(rng.random(shape) < 0.05, rng.integers(1, 9, shape), 0).astype(np.int32)
    return elevation, markers, mask


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_equals_reference(data, dtype):
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=16))
    top = int(np.iinfo(dtype).max)
    elevation = data.draw(arrays(dtype, shape, elements=st.sampled_from([0, 1, 2, 70, top - 1, top])))
    markers = data.draw(arrays(np.int32, shape, elements=st.sampled_from([0, 0, 0, 0, 1, 2, 9])))
    mask = data.draw(arrays(np.bool_, shape, fill=st.just(True)))
    before = markers.copy()
    expected = reference.watershed(elevation, markers, mask=mask)
    assert_array_equal(watershed(elevation, markers, mask=mask), expected)
    assert_array_equal(markers, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (17, 5), (80, 90)])
def test_equals_reference_on_blobs(shape, dtype):
    for levels in (2, 6, 200):
        elevation, markers, mask = blobs(shape, dtype=dtype, levels=levels)
        expected = reference.watershed(elevation, markers, mask=mask)
        assert_array_equal(watershed(elevation, markers, mask=mask), expected)


@pytest.mark.parametrize("seed", range(5))
def test_equals_skimage_without_ties(seed):
    rng = np.random.default_rng(seed)
    _, markers, mask = blobs((60, 70), seed=seed)
    elevation = rng.permutation(mask.size).reshape(mask.shape).astype(np.uint16)
    expected = segmentation.watershed(elevation, markers, mask=mask, connectivity=1)
    assert_array_equal(watershed(elevation, markers, mask=mask), expected)


@pytest.mark.parametrize("seed", range(5))
def test_equals_skimage_where_only_marker_pixels_have_no_ties(seed):
    rng = np.random.default_rng(seed)
    elevation, _, mask = blobs((60, 70), seed=seed)
    markers = np.zeros(mask.shape, np.int32)
    at = rng.choice(mask.size, 30, replace=False)
    markers.flat[at] = np.arange(1, 31)
    elevation.flat[at] = rng.permutation(30)
    expected = segmentation.watershed(elevation, markers, mask=mask, connectivity=1)
    assert_array_equal(watershed(elevation, markers, mask=mask), expected)


def test_almost_equals_skimage_on_real_nuclei(real_labels):
    mask = real_labels > 0
    height = np.minimum(distance_transform(mask) * 12, 255).astype(np.uint8)
    seeds = find_seeds(height, threshold=90, mask=mask)
    ours = watershed(255 - height, seeds, mask=mask)
    theirs = segmentation.watershed(255 - height, seeds, mask=mask, connectivity=1)
    assert_array_equal(ours > 0, theirs > 0)
    assert np.mean(ours != theirs) < 2e-3  # ties between marker pixels; the order of a heap is arbitrary


def test_floods_low_pixels_first():
    elevation = np.array([[0, 1, 2, 9, 3, 0]], np.uint8)
    markers = np.array([[1, 0, 0, 0, 0, 2]], np.int32)
    mask = np.ones((1, 6), bool)
    assert_array_equal(watershed(elevation, markers, mask=mask), [[1, 1, 1, 1, 2, 2]])


def test_the_flood_does_not_run_faster_downhill():
    # Both floods cross a rim of 5 at the same time; what lies below it fills evenly from both sides.
    elevation = np.array([[0, 5, 1, 0, 2, 3, 5, 0]], np.uint8)
    markers = np.array([[1, 0, 0, 0, 0, 0, 0, 2]], np.int32)
    mask = np.ones((1, 8), bool)
    assert_array_equal(watershed(elevation, markers, mask=mask), [[1, 1, 1, 1, 2, 2, 2, 2]])


def test_markers_outside_the_mask_are_cleared_and_unreached_mask_is_background():
    mask = np.array([[1, 1, 0, 1, 1]], bool)
    markers = np.array([[5, 0, 6, 0, 0]], np.int32)
    assert_array_equal(watershed(np.zeros((1, 5), np.uint8), markers, mask=mask), [[5, 5, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_threads_and_many_batches_give_the_same_result(dtype):
    # Parts of the mask are flooded in batches of 2^16 pixels or more; so there are a dozen here, and one more
    # part that is larger than all of them.
    labels = random_blobs((1100, 1100), count=2100, seed=3, radius_px=(8, 20))
    mask = labels > 0
    height = np.minimum(distance_transform(labels) * 12, 255).astype(np.uint8)
    seeds = find_seeds(height, threshold=60, mask=mask)
    elevation = (255 - height).astype(dtype)
    assert np.sort(np.bincount(label(mask, connectivity=4)[mask]))[-1] > 2**16
    expected = watershed(elevation, seeds, mask=mask)
    for threads in (2, 3, 8):
        assert_array_equal(watershed(elevation, seeds, mask=mask, threads=threads), expected)
    top, bottom = np.s_[:550], np.s_[550:]
    apart = np.array(mask)
    apart[549:551] = False  # no part crosses this line: the halves flood on their own
    whole = watershed(elevation, seeds, mask=apart, threads=2)
    for half in (top, bottom):
        assert_array_equal(whole[half], watershed(elevation[half], seeds[half], mask=apart[half]))


def test_out_may_be_the_markers():
    elevation, markers, mask = blobs((40, 40))
    markers[3, 3] = 2**31 - 1
    mask[3, 3] = True
    expected = watershed(elevation, markers, mask=mask)
    assert expected[3, 3] == 2**31 - 1
    assert watershed(elevation, markers, mask=mask, out=markers) is markers
    assert_array_equal(markers, expected)


def test_one_huge_part_and_one_pixel_parts():
    elevation = np.random.default_rng(0).integers(0, 256, (300, 500), dtype=np.uint8)
    markers = np.zeros(elevation.shape, np.int32)
    markers[150, 250] = 7
    everywhere = np.ones(elevation.shape, bool)
    assert (watershed(elevation, markers, mask=everywhere) == 7).all()
    markers[:] = np.arange(1, markers.size + 1).reshape(markers.shape)
    checkers = np.indices(markers.shape).sum(axis=0) % 2 == 0
    assert_array_equal(
        watershed(elevation, markers, mask=checkers, threads=2), np.where(checkers, markers, 0)
    )


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0), (1, 1)])
def test_empty(shape):
    zeros = np.zeros(shape, np.uint8)
    labels = watershed(zeros, zeros.astype(np.int32), mask=zeros.astype(bool))
    assert labels.shape == shape
    assert not labels.any()


def test_views_and_read_only_arrays():
    elevation, markers, mask = blobs((40, 40))
    for array in (elevation, markers, mask):
        array.flags.writeable = False
    views = elevation[::2, 1:].T, markers[::2, 1:].T
    expected = reference.watershed(*views, mask=mask[::2, 1:].T)
    assert_array_equal(watershed(*views, mask=mask[::2, 1:].T), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"elevation": np.zeros((2, 2))}, TypeError, "elevation: expected uint8 or uint16, got float64"),
        ({"markers": np.zeros((2, 2), np.int64)}, TypeError, "markers: expected int32, got int64"),
        ({"mask": np.zeros((2, 2), np.uint8)}, TypeError, "mask: expected bool, got uint8"),
        ({"mask": np.zeros((2, 3), bool)}, ValueError, r"mask: expected shape \(2, 2\), got \(2, 3\)"),
        (
            {"markers": np.zeros((1, 2), np.int32)},
            ValueError,
            r"markers: expected shape \(2, 2\), got \(1, 2\)",
        ),
        (
            {"markers": np.full((2, 2), -3, np.int32)},
            ValueError,
            "markers: expected no negative value, got -3",
        ),
        ({"out": np.zeros((2, 2), np.int64)}, TypeError, "out: expected int32, got int64"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    good = {
        "elevation": np.zeros((2, 2), np.uint8),
        "markers": np.zeros((2, 2), np.int32),
        "mask": np.ones((2, 2), bool),
    }
    with pytest.raises(error, match=message):
        watershed(**{**good, **arguments})


def test_find_seeds():
    height = np.array([[9, 9, 0, 8], [0, 0, 9, 7], [5, 9, 0, 0]], np.uint8)
    assert_array_equal(find_seeds(height, threshold=8), [[1, 1, 0, 2], [0, 0, 3, 0], [0, 4, 0, 0]])
    out = np.empty(height.shape, np.int32)
    assert find_seeds(height, threshold=8, out=out, threads=2) is out
    assert_array_equal(out, find_seeds(height, threshold=8))
    mask = height != 8
    assert_array_equal(find_seeds(height, threshold=8, mask=mask), [[1, 1, 0, 0], [0, 0, 2, 0], [0, 3, 0, 0]])
    assert find_seeds(np.zeros((0, 3), np.uint8), threshold=1).shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"height": np.zeros((2, 2))}, TypeError, "height: expected uint8, got float64"),
        ({"threshold": 0}, ValueError, "threshold: expected 1 to 255, got 0"),
        ({"threshold": 256}, ValueError, "threshold: expected 1 to 255, got 256"),
        ({"mask": np.zeros((2, 2), np.uint8)}, TypeError, "mask: expected bool, got uint8"),
        ({"mask": np.zeros((1, 2), bool)}, ValueError, r"mask: expected shape \(2, 2\), got \(1, 2\)"),
    ],
)
def test_find_seeds_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        find_seeds(**{"height": np.zeros((2, 2), np.uint8), "threshold": 5, **arguments})
