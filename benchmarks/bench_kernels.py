"""The kernels on a dense map of touching nuclei, side by side with a library people use, results checked."""

import numpy as np
import pytest
import scipy.ndimage
import skimage.measure

from nucfast import ops
from nucfast.testing import random_blobs

SIDE_PX = 2048


@pytest.fixture(scope="module")
def labels():
    return random_blobs((SIDE_PX, SIDE_PX), count=7000, seed=0)


def measure(benchmark, function, *args, **kwargs):
    result = benchmark.pedantic(function, args, kwargs, rounds=5, warmup_rounds=1)
    benchmark.extra_info["ns_per_px"] = round(benchmark.stats.stats.median / SIDE_PX**2 * 1e9, 2)
    return result


@pytest.mark.benchmark(group="label bool")
@pytest.mark.parametrize("library", ["nucfast", "scipy"])
def test_label(benchmark, labels, library):
    mask = labels > 0
    if library == "nucfast":
        found = measure(benchmark, ops.label, mask)
    else:
        found, _ = measure(benchmark, scipy.ndimage.label, mask, np.ones((3, 3)))
    assert np.array_equal(found, ops.label(mask))


@pytest.mark.benchmark(group="distance transform")
@pytest.mark.parametrize("library", ["nucfast", "scipy"])
def test_distance_transform(benchmark, labels, library):
    mask = labels > 0
    functions = {"nucfast": ops.distance_transform, "scipy": scipy.ndimage.distance_transform_edt}
    found = measure(benchmark, functions[library], mask)
    np.testing.assert_allclose(found, ops.distance_transform(mask), rtol=1e-6)


@pytest.mark.benchmark(group="region properties")
@pytest.mark.parametrize("library", ["nucfast", "scikit-image"])
def test_region_properties(benchmark, labels, library):
    names = ("area", "bbox", "centroid", "eccentricity", "perimeter", "solidity")
    if library == "nucfast":
        found = measure(benchmark, ops.region_properties, labels)["area"]
    else:
        found = measure(benchmark, skimage.measure.regionprops_table, labels, properties=names)["area"]
    present = np.bincount(labels.ravel())[1:]
    assert np.array_equal(found[found > 0], present[present > 0])


@pytest.mark.benchmark(group="contours")
@pytest.mark.parametrize("style", ["edges", "midpoints"])
def test_contours(benchmark, labels, style):
    rings = measure(benchmark, ops.contours, labels, style=style)
    assert set(rings.labels) == set(np.unique(labels[labels > 0]))


@pytest.mark.benchmark(group="split")
def test_split_instances(benchmark, labels):
    distance = ops.distance_transform(labels)
    height = np.minimum(255, 12 * distance).astype(np.uint8)
    found = measure(benchmark, ops.split_instances, height, labels > 0, min_rise=30)
    assert 0.8 < found.max() / np.unique(labels).size < 1.2
