import numpy as np
import pytest
from numpy.testing import assert_array_equal

import reference
from nucfast import _core
from nucfast.ops.hover_net import hover_net_labels
from nucfast.ops.overlap import match
from nucfast.testing import hover_net_maps, random_blobs

pytest.importorskip("cv2", reason="the reference of these tests uses OpenCV")


def check(labels, *, noise, **settings):
    """Same markers as the reference; the same nuclei but for pixels equally far from two markers."""
    probability, hv = hover_net_maps(labels, noise=noise)
    expected, markers = reference.hover_net_labels(probability, hv, **settings)
    found = hover_net_labels(probability, hv, **settings)
    assert found.dtype == np.int32
    assert found.max() == markers.max()
    assert_array_equal(found > 0, expected > 0)
    assert np.mean(found != expected) < 0.01
    assert match(expected.astype(np.int32), found, iou_threshold=0.8).fn <= 0.01 * markers.max()
    return found


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_equals_reference_on_touching_nuclei(noise):
    labels = random_blobs((300, 280), count=110, seed=1, radius_px=(8, 20))
    found = check(labels, noise=noise)
    assert found.max() > 50


def test_settings():
    labels = random_blobs((200, 200), count=60, seed=2, radius_px=(8, 20))
    usual = check(labels, noise=0.1).max()
    assert check(labels, noise=0.1, edge_threshold=0.6).max() != usual
    assert check(labels, noise=0.1, min_px=200).max() < usual
    assert check(labels, noise=0.1, nucleus_threshold=0.8).max() > 0


def test_nuclei_are_found_again():
    labels = random_blobs((400, 400), count=90, seed=4, radius_px=(8, 20))
    found = check(labels, noise=0.1)
    assert match(labels, found).tp > 0.8 * len(np.unique(labels))


def test_equals_reference_on_real_nuclei(real_labels):
    check(real_labels[:500, :500], noise=0.1)


def test_instruction_sets_give_the_same_nuclei(isa):
    probability, hv = hover_net_maps(random_blobs((150, 171), count=40, seed=5, radius_px=(8, 20)))
    found = hover_net_labels(probability, hv)
    _core.set_isa("baseline")
    assert_array_equal(found, hover_net_labels(probability, hv))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 30), (30, 1), (3, 4), (40, 25)])
def test_small_shapes_and_constant_maps(shape):
    ones = np.ones(shape, np.float32)
    level = np.full((*shape, 2), 0.3, np.float32)
    assert not hover_net_labels(ones, level).any()  # no seed where all is steep
    assert not hover_net_labels(0 * ones, np.zeros((*shape, 2), np.float32)).any()
    rng = np.random.default_rng(0)
    hv = rng.normal(size=(*shape, 2)).astype(np.float32)
    if ones.size:
        expected, _ = reference.hover_net_labels(ones, hv, min_px=1)
        assert_array_equal(hover_net_labels(ones, hv, min_px=1) > 0, expected > 0)


def test_threads_views_read_only_and_out():
    labels = random_blobs((150, 170), count=40, seed=5, radius_px=(8, 20))
    probability, hv = hover_net_maps(labels)
    probability.flags.writeable = hv.flags.writeable = False
    expected = hover_net_labels(probability, hv)
    for threads in (2, 5):
        out = np.full(labels.shape, -1, np.int32)
        assert hover_net_labels(probability, hv, threads=threads, out=out) is out
        assert_array_equal(out, expected)
    flipped = hover_net_labels(probability[:, ::-1], hv[:, ::-1])
    assert_array_equal(flipped, hover_net_labels(probability[:, ::-1].copy(), hv[:, ::-1].copy()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"nucleus_probability": np.zeros((2, 2))},
            TypeError,
            "nucleus_probability: expected float32, got float64",
        ),
        ({"hv_map": np.zeros((2, 2, 2))}, TypeError, "hv_map: expected float32, got float64"),
        ({"hv_map": np.zeros((2, 2, 3), np.float32)}, ValueError, r"hv_map: expected shape \(2, 2, 2\), got"),
        ({"hv_map": np.full((2, 2, 2), np.nan, np.float32)}, ValueError, "hv_map: expected finite values"),
        ({"out": np.zeros((2, 3), np.int32)}, ValueError, r"out: expected shape \(2, 2\), got \(2, 3\)"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    good = {"nucleus_probability": np.zeros((2, 2), np.float32), "hv_map": np.zeros((2, 2, 2), np.float32)}
    with pytest.raises(error, match=message):
        hover_net_labels(**{**good, **arguments})
