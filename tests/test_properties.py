from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage
from skimage.measure import regionprops_table

import reference
from nucfast.ops.properties import mean_intensity, region_properties

SKIMAGE = {
    "area": "area",
    "equivalent_diameter_area": "equivalent_diameter_area",
    "extent": "extent",
    "perimeter": "perimeter",
    "major_axis_length": "axis_major_length",
    "minor_axis_length": "axis_minor_length",
    "eccentricity": "eccentricity",
}


def blobs(shape, seed, threshold=0.02):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    return ndimage.label(noise > threshold)[0].astype(np.int32)


def check(labels, intensity):
    """Equal to scikit-image, up to rounding and the stated difference of the hull."""
    ours = region_properties(labels, intensity=intensity)
    names = [
        *SKIMAGE.values(),
        "label",
        "bbox",
        "centroid",
        "orientation",
        "mean_intensity",
        "coords",
        "area_convex",
    ]
    theirs = regionprops_table(labels, intensity, properties=names)
    rows = theirs["label"] - 1
    assert len(ours["area"]) == labels.max(initial=0)
    absent = np.setdiff1d(np.arange(labels.max(initial=0)), rows)
    assert not ours["area"][absent].any() and np.isnan(ours["centroid"][absent]).all()

    # A thin object's minor axis is the root of a difference: scikit-image leaves 1e-7 of it instead of 0.
    for name, their_name in SKIMAGE.items():
        loose = {"minor_axis_length": 1e-5, "eccentricity": 1e-6}.get(name, 1e-9)
        assert_allclose(ours[name][rows], theirs[their_name], rtol=1e-9, atol=loose, err_msg=name)
    assert_array_equal(ours["bbox"][rows], np.stack([theirs[f"bbox-{k}"] for k in range(4)], axis=1))
    assert_allclose(ours["centroid"][rows], np.stack([theirs["centroid-0"], theirs["centroid-1"]], axis=1))
    first = np.array([coords[0] for coords in theirs["coords"]]).reshape(-1, 2)
    assert_array_equal(ours["first_pixel"][rows], first)
    turn = ours["orientation"][rows] - theirs["orientation"]
    elongated = ours["eccentricity"][rows] > 0.05
    assert_allclose(np.sin(turn[elongated]), 0, atol=1e-6)
    channels = intensity.shape[2] if intensity.ndim == 3 else 1
    for k in range(channels):
        means = ours["mean_intensity"] if intensity.ndim == 2 else ours["mean_intensity"][:, k]
        assert_allclose(
            means[rows], theirs[f"mean_intensity-{k}" if channels > 1 else "mean_intensity"], rtol=1e-6
        )

    convex_area = ours["convex_area"][rows]
    assert (convex_area >= theirs["area"]).all()
    big = theirs["area"] >= 100
    assert_allclose(convex_area[big], theirs["area_convex"][big], rtol=0.12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_scikit_image_on_blobs(seed):
    labels = blobs((90, 120), seed)
    intensity = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    check(labels, intensity)
    check(labels, intensity[..., 0].astype(np.float32) / 7)


@settings(max_examples=40, deadline=None)
@given(
    labels=npst.arrays(
        np.int32,
        npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.sampled_from([0, 1, 2, 4]),
    )
)
def test_equals_scikit_image_on_noise(labels):
    check(labels, labels.astype(np.float32))


@settings(max_examples=80, deadline=None)
@given(npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)))
def test_hull_equals_reference(mask):
    columns = region_properties(mask.astype(np.int32), count=1)
    if mask.any():
        assert columns["convex_area"][0] == reference.convex_hull_area(np.argwhere(mask))
        assert columns["solidity"][0] == mask.sum() / columns["convex_area"][0] <= 1
        assert 0 < columns["circularity"][0] <= 1


def test_real_label_map(data_dir, real_labels):
    with Image.open(next(data_dir.glob("consep/images/train_1.*"))) as image:
        intensity = np.asarray(image.convert("RGB"))
    check(real_labels[100:450, 300:650], intensity[100:450, 300:650])


def test_rectangle():
    labels = np.zeros((50, 60), np.int32)
    labels[10:20, 30:55] = 2
    columns = region_properties(labels)
    assert_array_equal(columns["area"], [0, 250])
    assert_array_equal(columns["bbox"], [[0, 0, 0, 0], [10, 30, 20, 55]])
    assert_array_equal(columns["first_pixel"], [[-1, -1], [10, 30]])
    assert_array_equal(columns["centroid"][1], [14.5, 42.0])
    assert columns["solidity"][1] == columns["extent"][1] == 1
    assert_allclose(columns["major_axis_length"][1], 4 * np.sqrt((25**2 - 1) / 12))
    assert_allclose(columns["orientation"][1], np.pi / 2)  # along the columns
    for name in set(columns) - {"area", "bbox", "first_pixel"}:
        assert np.isnan(columns[name][0]).all(), name


def test_lines_have_no_width():
    labels = np.zeros((40, 40), np.int32)
    labels[3, 5:30] = 1
    np.fill_diagonal(labels[10:, 5:], 2)
    columns = region_properties(labels)
    assert_array_equal(columns["minor_axis_length"], [0, 0])
    assert_array_equal(columns["eccentricity"], [1, 1])
    assert_allclose(columns["orientation"], [np.pi / 2, np.pi / 4])


def test_one_pixel():
    columns = region_properties(np.array([[1]], np.int32), intensity=np.array([[7]], np.uint8))
    assert columns["area"] == columns["convex_area"] == columns["circularity"] == 1
    assert columns["perimeter"] == columns["major_axis_length"] == columns["eccentricity"] == 0
    assert columns["mean_intensity"] == 7


def test_far_from_the_origin_nothing_is_lost():
    labels = np.zeros((3, 4_000_000), np.int32)
    near = blobs((3, 40), 5)
    labels[:, -40:] = near
    expected, columns = region_properties(near), region_properties(labels)
    assert_array_equal(columns["major_axis_length"], expected["major_axis_length"])
    assert_array_equal(columns["orientation"], expected["orientation"])


def test_one_huge_label():
    columns = region_properties(
        np.ones((2000, 3000), np.int32), intensity=np.full((2000, 3000), 255, np.uint8)
    )
    assert columns["area"] == columns["convex_area"] == 6_000_000
    assert_allclose(columns["minor_axis_length"], 4 * np.sqrt((2000**2 - 1) / 12), rtol=1e-12)
    assert columns["mean_intensity"] == 255


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0), (3, 3)])
def test_nothing_to_measure(shape):
    columns = region_properties(np.zeros(shape, np.int32), intensity=np.zeros((*shape, 2), np.uint8))
    assert all(len(column) == 0 for column in columns.values())
    assert columns["mean_intensity"].shape == (0, 2)
    assert_array_equal(region_properties(np.zeros(shape, np.int32), count=3)["area"], [0, 0, 0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels(channels):
    labels = blobs((30, 40), 3)
    image = np.random.default_rng(1).integers(0, 256, (30, 40, channels), dtype=np.uint8)
    means = region_properties(labels, intensity=image)["mean_intensity"]
    for k in range(channels):
        assert_array_equal(means[:, k], region_properties(labels, intensity=image[..., k])["mean_intensity"])
        assert_allclose(means[:, k], ndimage.mean(image[..., k], labels, np.arange(1, labels.max() + 1)))


@pytest.mark.parametrize(
    "cut",
    [
        lambda image: image[3:40, 5:36],
        lambda image: image[40:3:-1, 5:36],
        lambda image: image[3:77:2, 5:36],
        lambda image: image[3:40, 36:5:-1],
        lambda image: image[3:40, 5:36, ::2],
        lambda image: np.broadcast_to(image[:1, 5:36], (37, 31, 3)),
        lambda image: image[3:40, 5:6],
        lambda image: image[3:4, 5:36],
    ],
)
def test_parts_of_an_image_are_measured_where_they_lie(cut):
    part = cut(np.random.default_rng(2).integers(0, 256, (90, 50, 3), np.uint8))
    labels = np.random.default_rng(3).integers(0, 5, part.shape[:2], np.int32)
    assert_array_equal(mean_intensity(labels, part, count=4), mean_intensity(labels, part.copy(), count=4))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_weighted_means(dtype):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 6, (40, 50)).astype(np.int32)
    image = rng.integers(0, 256, (40, 50, 3)).astype(dtype)
    weights = rng.integers(0, 256, (40, 60)).astype(np.uint8)[:, 5:55]
    weights[labels == 4] = 0
    found = mean_intensity(labels, image, count=7, weights=weights)
    for label in (1, 2, 3, 5):
        inside = labels == label
        expected = np.average(image[inside].astype(float), axis=0, weights=weights[inside])
        np.testing.assert_allclose(found[label - 1], expected, rtol=1e-12)
    assert np.isnan(found[[3, 5, 6]]).all()
    with pytest.raises(ValueError, match=r"weights: expected shape \(40, 50\), got \(50, 50\)"):
        mean_intensity(labels, image, count=7, weights=np.ones((50, 50), np.uint8))
    with pytest.raises(TypeError, match="weights: expected uint8, got float64"):
        mean_intensity(labels, image, count=7, weights=np.ones((40, 50)))


def test_mean_intensity_is_the_column_of_that_name():
    labels = blobs((30, 40), 3)
    image = np.random.default_rng(1).random((30, 40, 2), dtype=np.float32)
    expected = region_properties(labels, intensity=image, count=99)["mean_intensity"]
    assert_array_equal(mean_intensity(labels, image, count=99), expected)
    assert np.isnan(expected[98]).all()
    with pytest.raises(ValueError, match="labels: expected values of at most count = 1"):
        mean_intensity(labels, image, count=1)
    with pytest.raises(ValueError, match="count: expected a value >= 0, got -1"):
        mean_intensity(labels, image, count=-1)


def test_views_and_read_only_arrays():
    labels = blobs((30, 40), 0)
    labels.flags.writeable = False
    view, copy = region_properties(labels.T), region_properties(labels.T.copy())
    for name in copy:
        assert_array_equal(view[name], copy[name])


def test_bad_arguments():
    labels = np.array([[0, 3]], np.int32)
    with pytest.raises(TypeError, match="labels: expected int32, got int64"):
        region_properties(labels.astype(np.int64))
    with pytest.raises(ValueError, match="labels: expected 2 dimensions"):
        region_properties(labels[0])
    with pytest.raises(ValueError, match="labels: expected values of at most count = 2, got 3"):
        region_properties(labels, count=2)
    with pytest.raises(ValueError, match="count: expected a value >= 0, got -1"):
        region_properties(labels, count=-1)
    with pytest.raises(ValueError, match="labels: expected values >= 0, got -3"):
        region_properties(-labels)
    with pytest.raises(TypeError, match="intensity: expected uint8 or float32, got float64"):
        region_properties(labels, intensity=np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"intensity: expected the sides of labels, \(1, 2\), got \(2, 1\)"):
        region_properties(labels, intensity=np.zeros((2, 1), np.uint8))
    with pytest.raises(ValueError, match="intensity: expected 3 dimensions"):
        region_properties(labels, intensity=np.zeros(2, np.uint8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_intensity_that_is_not_finite_is_an_error(bad):
    labels = np.array([[0, 1], [1, 1]], np.int32)
    intensity = np.ones((2, 2, 3), np.float32)
    intensity[1, 0, 2] = bad
    with pytest.raises(ValueError, match="intensity: expected finite values"):
        region_properties(labels, intensity=intensity)
