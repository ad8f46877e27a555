"""The made-up slides: their truth must be exact, and they must look like what they imitate."""

import numpy as np
import pytest

from nucfast.testing import CLASSES, assert_nuclei_equal, random_blobs, synthetic_slide
from test_nuclei import make_nuclei


@pytest.fixture(scope="module")
def slide():
    return synthetic_slide(768, 640, seed=5, nuclei_per_mm2=4000)


def test_shapes_and_truth(slide):
    assert slide.image.shape == (640, 768, 3)
    assert (slide.image.dtype, slide.labels.dtype, slide.class_ids.dtype) == (np.uint8, np.int32, np.uint8)
    count = len(slide.class_ids)
    np.testing.assert_array_equal(np.unique(slide.labels), np.arange(count + 1))
    assert set(slide.class_ids.tolist()) == {entry.id for entry in CLASSES}
    area_mm2 = 768 * 640 * (0.5 / 1000) ** 2
    assert 0.6 < count / (4000 * area_mm2) < 1.05  # some of it is glass


def test_every_nucleus_is_one_piece(slide):
    measure = pytest.importorskip("skimage.measure")
    pieces = measure.label(slide.labels, connectivity=1)
    assert pieces.max() == len(slide.class_ids)


def test_some_nuclei_touch(slide):
    left, right = slide.labels[:, :-1], slide.labels[:, 1:]
    assert np.count_nonzero((left != right) & (left > 0) & (right > 0)) > 50


def test_sizes_are_those_of_nuclei(slide):
    area_um2 = np.bincount(slide.labels.ravel())[1:] * slide.mpp**2
    diameter_um = 2 * np.sqrt(area_um2 / np.pi)
    for class_id, low, high in ((1, 6, 9), (2, 4.3, 6), (3, 4.5, 7.5)):
        assert low < np.median(diameter_um[slide.class_ids == class_id]) < high
    assert area_um2.min() >= 1


def test_colours_are_those_of_haematoxylin_and_eosin(slide):
    density = -np.log10((slide.image.astype(np.float64) + 1) / 256)
    nuclei = slide.labels > 0
    glass = density.sum(2) < 0.12
    stroma = ~nuclei & ~glass
    red, green, _ = density[nuclei].mean(0)
    assert 0.15 < red < 0.6
    assert green > red
    red, green, _ = density[stroma].mean(0)
    assert green > 1.5 * red  # eosin hardly takes red
    assert density[nuclei, 0].mean() > 2.5 * density[stroma, 0].mean()
    assert 0.02 < glass.mean() < 0.6


def test_a_seed_is_a_slide():
    first, again, other = (synthetic_slide(200, 160, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.class_ids, again.class_ids)
    assert (first.image != other.image).any()


def test_size_in_micrometres_does_not_depend_on_mpp():
    fine, coarse = (synthetic_slide(n, n, mpp=mpp, seed=3) for n, mpp in ((800, 0.25), (200, 1.0)))
    sizes = [np.bincount(s.labels.ravel())[1:].mean() * s.mpp**2 for s in (fine, coarse)]
    assert 0.6 < sizes[0] / sizes[1] < 1.5


@pytest.mark.parametrize("width, height", [(1, 1), (17, 5), (64, 3), (40, 40)])
def test_tiny_slides(width, height):
    slide = synthetic_slide(width, height)
    assert slide.image.shape == (height, width, 3)
    assert slide.labels.max() == len(slide.class_ids)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="mpp: expected a positive number, got 0"):
        synthetic_slide(10, 10, mpp=0)


def test_random_blobs():
    labels = random_blobs((120, 90), count=80, seed=2)
    assert labels.shape == (120, 90)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert 40 < labels.max() <= 80
    np.testing.assert_array_equal(labels, random_blobs((120, 90), count=80, seed=2))
    assert (labels != random_blobs((120, 90), count=80, seed=3)).any()
    assert not random_blobs((5, 5), count=0).any()
    assert random_blobs((0, 7), count=0).shape == (0, 7)


def test_unequal_nuclei_are_told_apart():
    nuclei = make_nuclei(5)
    assert_nuclei_equal(nuclei, make_nuclei(5), meta=True)
    with pytest.raises(AssertionError):
        assert_nuclei_equal(nuclei[:4], nuclei)
    with pytest.raises(AssertionError, match="id"):
        assert_nuclei_equal(nuclei[::-1], nuclei)
