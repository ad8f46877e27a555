"""Connected components of masks and of label maps."""

import functools

import numpy as np
import pytest

from harness import Bar, Peer
from inputs import dense_labels, mosaic, real_maps
from nucfast import ops

INPUTS = {
    "dense 4096^2": lambda: [dense_labels(4096)],
    "dense 8192^2": lambda: [dense_labels(8192)],
    "dsb2018 in 8192^2": lambda: [mosaic(8192)],
    "consep": lambda: real_maps("consep")[0],
}


def same_components(actual, expected):
    """Whatever their numbers."""
    for one, other in zip(actual, expected, strict=True):
        assert one.max() == other.max()
        number = np.zeros(one.max() + 1, other.dtype)
        number[one] = other
        np.testing.assert_array_equal(number[one], other)


@pytest.mark.parametrize("data", INPUTS)
def test_components_of_a_mask(compare, data):
    masks = [labels > 0 for labels in INPUTS[data]()]
    outs = [np.empty(mask.shape, np.int32) for mask in masks]
    pairs = list(zip(masks, [np.empty_like(out) for out in outs], strict=True))

    def opencv(threads):
        import cv2

        for mask, out in pairs:
            cv2.connectedComponents(mask.view(np.uint8), out, 8, cv2.CV_32S)
        return [out for _, out in pairs]

    def cc3d(threads):
        import cc3d

        return [cc3d.connected_components(mask, connectivity=8, binary_image=True) for mask in masks]

    def scipy(threads):
        import scipy.ndimage

        for mask, out in pairs:
            scipy.ndimage.label(mask, np.ones((3, 3)), out)
        return [out for _, out in pairs]

    def scikit_image(threads):
        import skimage.measure

        return [skimage.measure.label(mask, connectivity=2) for mask in masks]

    kept = []  # what SimpleITK's views look into

    @functools.cache
    def itk_masks():
        import SimpleITK

        return [SimpleITK.GetImageFromArray(mask.view(np.uint8)) for mask in masks]

    def simple_itk(threads):
        import SimpleITK

        kept[:] = [SimpleITK.ConnectedComponent(mask, True) for mask in itk_masks()]
        return [SimpleITK.GetArrayViewFromImage(labels) for labels in kept]

    compare(
        kernel="connected components of a mask, 8-connected",
        data=data,
        pixels=sum(mask.size for mask in masks),
        nucfast=lambda threads: [
            ops.label(mask, out=out, threads=threads) for mask, out in zip(masks, outs, strict=True)
        ],
        peers=[
            Peer("OpenCV", opencv, same_components),
            Peer("cc3d", cc3d, same_components),
            Peer("SciPy", scipy, np.testing.assert_array_equal),
            Peer("scikit-image", scikit_image, np.testing.assert_array_equal),
            Peer("SimpleITK", simple_itk, same_components),
        ],
        bars=[Bar(1.2, 1.1, 2.0)],
    )


@pytest.mark.parametrize("data", INPUTS)
def test_components_of_labels(compare, data):
    maps = [labels.copy() for labels in INPUTS[data]()]  # cc3d refuses read-only arrays
    outs = [np.empty(labels.shape, np.int32) for labels in maps]

    def cc3d(threads):
        import cc3d

        return [cc3d.connected_components(labels, connectivity=8) for labels in maps]

    def scikit_image(threads):
        import skimage.measure

        return [skimage.measure.label(labels, background=0, connectivity=2) for labels in maps]

    compare(
        kernel="connected components of a label map, 8-connected",
        data=data,
        pixels=sum(labels.size for labels in maps),
        nucfast=lambda threads: [
            ops.label(labels, out=out, threads=threads) for labels, out in zip(maps, outs, strict=True)
        ],
        peers=[
            Peer("cc3d", cc3d, same_components),
            Peer("scikit-image", scikit_image, np.testing.assert_array_equal),
        ],
        bars=[Bar(1.1, 1.7, 3.0)],
    )
