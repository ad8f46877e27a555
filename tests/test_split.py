import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal
from scipy import ndimage

import reference
from nucfast import _core
from nucfast.ops.components import label
from nucfast.ops.distance import distance_transform
from nucfast.ops.split import find_nuclei, split_instances


def clumps(side, *, seed, noise=0.04):
    """Draw clumps of touching ellipses, up to 20 px long; return their labels and a noisy distance map."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side + 20, side + 20), np.int32)
    row, col = np.mgrid[-10:11, -10:11]
    for i in range(1, side * side // 110):
        a, b = rng.uniform(4, 10, 2)
        t = rng.uniform(0, np.pi)
        u, v = (col * np.cos(t) + row * np.sin(t)) / a, (row * np.cos(t) - col * np.sin(t)) / b
        r, c = rng.integers(0, side, 2)
        window = labels[r : r + 21, c : c + 21]
        window[(u * u + v * v <= 1) & (window == 0)] = i
    labels = labels[10:-10, 10:-10]
    labels = label(labels, connectivity=4)
    depth = distance_transform(labels)
    deepest = np.maximum(ndimage.maximum(depth, labels, np.arange(labels.max() + 1)), 1)
    height = ndimage.gaussian_filter(depth / deepest[labels], 1)
    height += noise * ndimage.gaussian_filter(rng.normal(size=height.shape), 1) * 3.5
    return labels, (height.clip(0, 1) * 255).astype(np.uint8)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_equals_reference(data):
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=14))
    levels = data.draw(st.sampled_from([[0, 1], [0, 1, 2, 3], [0, 3, 9, 100, 254, 255]]))
    height = data.draw(arrays(np.uint8, shape, elements=st.sampled_from(levels)))
    mask = data.draw(arrays(np.bool_, shape, fill=st.just(True)))
    min_rise = data.draw(st.sampled_from([-1, 0, 1, 2, 7, 95, 256]))
    expected = reference.split_instances(height, mask, min_rise=min_rise)
    actual = split_instances(height, mask, min_rise=min_rise)
    assert actual.dtype == np.int32
    assert_array_equal(actual, expected)


@pytest.mark.parametrize("noise", [0, 0.03, 0.2])
def test_equals_reference_on_clumps(noise):
    labels, height = clumps(64, seed=0, noise=noise)
    for min_rise in (1, 20, 60):
        expected = reference.split_instances(height, labels > 0, min_rise=min_rise)
        assert_array_equal(split_instances(height, labels > 0, min_rise=min_rise), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("min_rise", [1, 10, 40])
def test_a_nucleus_per_summit_of_enough_dynamics(seed, min_rise):
    rng = np.random.default_rng(seed)
    height = (ndimage.gaussian_filter(rng.random((40, 40)), 1.2) * 600 - 150).clip(0, 255).astype(np.uint8)
    mask = ndimage.gaussian_filter(rng.random((40, 40)), 2) > 0.47
    nuclei = split_instances(height, mask, min_rise=min_rise)
    dynamics = reference.dynamics(height, mask)
    assert nuclei.max() == sum(rise >= min_rise for rise in dynamics.values())


@pytest.mark.parametrize("seed", range(3))
def test_nuclei_are_4_connected_numbered_in_raster_order_and_cover_the_mask(seed):
    rng = np.random.default_rng(seed)
    for height in (clumps(128, seed=seed)[1], rng.integers(0, 256, (128, 128)).astype(np.uint8)):
        mask = rng.random(height.shape) < 0.8
        for min_rise in (0, 20, 256):
            nuclei = split_instances(height, mask, min_rise=min_rise)
            assert_array_equal(nuclei, label(nuclei, connectivity=4))
            assert not nuclei[~mask].any()
            # What is dropped hangs on by a corner: it is no more than a rim.
            assert np.mean(nuclei[mask] == 0) < 0.1
    labels, height = clumps(128, seed=seed, noise=0.02)
    nuclei = split_instances(height, labels > 0, min_rise=30)
    assert np.mean(nuclei[labels > 0] == 0) < 0.002


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
def test_local(seed, noise):
    """Nuclei more than two diameters inside a crop are what they are in the whole image."""
    margin_px = 40
    labels, height = clumps(256, seed=seed, noise=noise)
    mask = ndimage.binary_dilation(labels > 0)
    assert np.bincount(label(mask)[mask]).max() > 0.9 * mask.sum()  # one clump from border to border
    whole = split_instances(height, mask, min_rise=30)
    compared = 0
    for r0, c0, r1, c1 in [(0, 0, 150, 160), (61, 37, 200, 256), (100, 90, 256, 230), (31, 3, 171, 141)]:
        crop = (slice(r0, r1), slice(c0, c1))
        part = split_instances(height[crop], mask[crop], min_rise=30)
        # Sides that are the image's own need no margin.
        inner = (
            slice(margin_px if r0 else 0, r1 - r0 - (margin_px if r1 < 256 else 0)),
            slice(margin_px if c0 else 0, c1 - c0 - (margin_px if c1 < 256 else 0)),
        )
        a, b = whole[crop][inner], part[inner]
        assert_array_equal(a > 0, b > 0)
        pairs = np.unique(np.stack([a[a > 0], b[a > 0]]), axis=1)
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
        compared += pairs.shape[1]
    assert compared > 100


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_shifts_with_the_image(noise):
    labels, height = clumps(96, seed=9, noise=noise)
    nuclei = split_instances(height, labels > 0, min_rise=20)
    around = ((7, 30), (13, 2))
    shifted = split_instances(np.pad(height, around), np.pad(labels > 0, around), min_rise=20)
    assert_array_equal(shifted, np.pad(nuclei, around))


def test_real_nuclei_are_found_again(real_labels):
    labels = label(real_labels[::2, ::2])
    depth = distance_transform(labels)
    deepest = np.maximum(ndimage.maximum(depth, labels, np.arange(labels.max() + 1)), 1)
    height = (ndimage.gaussian_filter(depth / deepest[labels], 0.7) * 255).clip(0, 255).astype(np.uint8)
    nuclei = split_instances(height, labels > 0, min_rise=40)
    pairs, counts = np.unique(np.stack([labels[labels > 0], nuclei[labels > 0]]), axis=1, return_counts=True)
    areas, found = np.bincount(labels.ravel()), np.bincount(nuclei.ravel())
    iou = counts / (areas[pairs[0]] + found[pairs[1]] - counts)
    assert np.sum(iou > 0.5) > 0.93 * labels.max()
    assert abs(int(nuclei.max()) - int(labels.max())) < 0.05 * labels.max()


def test_instruction_sets_give_the_same_nuclei(isa):
    labels, height = clumps(128, seed=3)
    found = split_instances(height, labels > 0, min_rise=20)
    _core.set_isa("baseline")
    assert_array_equal(found, split_instances(height, labels > 0, min_rise=20))


def test_two_hills():
    height = np.array([[5, 9, 5, 2, 6, 8, 6]], np.uint8)
    mask = np.ones(height.shape, bool)
    assert_array_equal(split_instances(height, mask, min_rise=6), [[1, 1, 1, 2, 2, 2, 2]])
    assert_array_equal(split_instances(height, mask, min_rise=7), np.ones((1, 7)))


def test_summits_join_over_a_lower_one_between_them():
    # The middle summit is the lowest; 50 reaches 60 only across it.
    height = np.array([[60, 44, 48, 45, 50]], np.uint8)
    assert_array_equal(split_instances(height, np.ones((1, 5), bool), min_rise=10), np.ones((1, 5)))


def test_a_plateau_is_one_nucleus():
    rng = np.random.default_rng(1)
    mask = ndimage.gaussian_filter(rng.random((60, 60)), 2) > 0.5
    height = np.full(mask.shape, 7, np.uint8)
    assert_array_equal(split_instances(height, mask, min_rise=1), label(mask, connectivity=4))


def test_a_diagonal_valley_separates_and_a_diagonal_ridge_does_not():
    row, col = np.mgrid[:9, :9]
    mask = np.ones((9, 9), bool)
    valley = np.minimum(40 * np.abs(row - col), 255).astype(np.uint8)
    assert split_instances(valley, mask, min_rise=20).max() == 2
    assert split_instances(255 - valley, mask, min_rise=20).max() == 1


def test_pixels_that_hang_on_by_a_corner_are_dropped():
    mask = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    assert_array_equal(
        split_instances(mask.astype(np.uint8), mask, min_rise=1), [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    )
    mask = np.eye(2, dtype=bool)  # equal parts: the first in raster order stays
    assert_array_equal(split_instances(mask.astype(np.uint8), mask, min_rise=1), [[1, 0], [0, 0]])


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0), (1, 1), (1, 9), (9, 1)])
def test_edge_cases(shape):
    height = np.full(shape, 255, np.uint8)
    assert_array_equal(split_instances(height, np.zeros(shape, bool), min_rise=5), np.zeros(shape))
    assert_array_equal(split_instances(height, np.ones(shape, bool), min_rise=5), np.ones(shape))


def test_many_basins():
    rng = np.random.default_rng(0)
    height = rng.integers(0, 256, (300, 300)).astype(np.uint8)
    mask = np.ones(height.shape, bool)
    assert split_instances(height, mask, min_rise=256).max() == 1
    assert split_instances(height, mask, min_rise=0).max() > 8000


def test_views_read_only_and_out():
    labels, height = clumps(64, seed=3)
    height.flags.writeable = False
    view, mask = height[::2, 1:].T, (labels > 0)[::2, 1:].T
    out = np.full(view.shape, -1, np.int32)
    assert split_instances(view, mask, min_rise=20, out=out) is out
    assert_array_equal(out, reference.split_instances(view, mask, min_rise=20))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"height": np.zeros((2, 2))}, TypeError, "height: expected uint8, got float64"),
        ({"height": np.zeros(2, np.uint8)}, ValueError, "height: expected 2 dimensions"),
        ({"mask": np.zeros((2, 2), np.uint8)}, TypeError, "mask: expected bool, got uint8"),
        ({"mask": np.zeros((2, 3), bool)}, ValueError, r"mask: expected shape \(2, 2\), got \(2, 3\)"),
        ({"out": np.zeros((2, 2), np.int64)}, TypeError, "out: expected int32, got int64"),
        ({"out": np.zeros((3, 2), np.int32)}, ValueError, r"out: expected shape \(2, 2\), got \(3, 2\)"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    good = {"height": np.zeros((2, 2), np.uint8), "mask": np.ones((2, 2), bool), "min_rise": 1}
    with pytest.raises(error, match=message):
        split_instances(**{**good, **arguments})


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_find_nuclei_equals_reference(data):
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=12))
    probability = data.draw(
        arrays(np.uint8, shape, elements=st.sampled_from([0, 59, 60, 100, 130, 200, 255]))
    )
    height = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 3, 9, 100, 254, 255])))
    settings = {
        "threshold": 60,
        "min_rise": data.draw(st.sampled_from([0, 2, 95])),
        "peak_share": data.draw(st.sampled_from([0.0, 0.45, 0.5, 1.0])),
        "max_hole_px": data.draw(st.sampled_from([0, 1, 4.5, 100])),
        "min_area_px": data.draw(st.sampled_from([0, 2, 3.5])),
    }
    expected = reference.find_nuclei(probability, height, **settings)
    assert_array_equal(find_nuclei(probability, height, **settings), expected)


def test_find_nuclei_closes_only_small_inner_holes():
    probability = np.full((12, 12), 255, np.uint8)
    probability[2:4, 2:4] = 0  # 4 px
    probability[6:9, 6:9] = 0  # 9 px
    probability[5, 0] = 0  # at the edge: may go on outside
    found = find_nuclei(probability, probability, threshold=128, min_rise=256, max_hole_px=4)
    assert found[2:4, 2:4].all()
    assert not found[6:9, 6:9].any()
    assert not found[5, 0]


def test_find_nuclei_views_read_only_and_out():
    labels, height = clumps(64, seed=3)
    probability = np.where(labels > 0, 200, 20).astype(np.uint8)
    probability.flags.writeable = False
    out = np.full(height[::2, 1:].T.shape, -1, np.int32)
    found = find_nuclei(probability[::2, 1:].T, height[::2, 1:].T, threshold=128, min_rise=20, out=out)
    assert found is out
    plain = find_nuclei(probability[::2, 1:].T.copy(), height[::2, 1:].T.copy(), threshold=128, min_rise=20)
    assert_array_equal(out, plain)
    for shape in ((0, 0), (0, 4), (4, 0)):
        nothing = np.zeros(shape, np.uint8)
        assert find_nuclei(nothing, nothing, threshold=1, min_rise=1, peak_share=0.5).shape == shape


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"probability": np.zeros((2, 2))}, TypeError, "probability: expected uint8, got float64"),
        (
            {"height": np.zeros((2, 3), np.uint8)},
            ValueError,
            r"height: expected shape \(2, 2\), got \(2, 3\)",
        ),
        ({"threshold": 0}, ValueError, "threshold: expected 1 to 255, got 0"),
        ({"peak_share": 1.5}, ValueError, r"peak_share: expected 0 to 1, got 1\.5"),
    ],
)
def test_find_nuclei_errors_name_the_argument(arguments, error, message):
    zeros = np.zeros((2, 2), np.uint8)
    good = {"probability": zeros, "height": zeros, "threshold": 1, "min_rise": 1}
    with pytest.raises(error, match=message):
        find_nuclei(**{**good, **arguments})
