"""Exact Euclidean distance transforms of masks and inside the nuclei of label maps."""

import functools

import numpy as np
import pytest

from harness import Bar, Peer
from inputs import dense_labels, mosaic, real_maps
from nucfast import ops

INPUTS = {
    "dense 4096^2": lambda: [dense_labels(4096)],
    "dense 8192^2": lambda: [dense_labels(8192)],
    "dsb2018 in 4096^2": lambda: [mosaic(4096)],
    "consep": lambda: real_maps("consep")[0],
}


def same_distances(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("data", INPUTS)
def test_distance_in_a_mask(compare, data):
    masks = [labels > 0 for labels in INPUTS[data]()]
    outs = [np.empty(mask.shape, np.float32) for mask in masks]
    pairs = list(zip(masks, [np.empty_like(out) for out in outs], strict=True))

    def opencv(threads):
        import cv2

        for mask, out in pairs:
            cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE, out)
        return [out for _, out in pairs]

    def edt(threads):
        import edt

        return [edt.edt(mask, parallel=threads) for mask in masks]

    def scipy(threads):
        import scipy.ndimage

        return [scipy.ndimage.distance_transform_edt(mask) for mask in masks]

    kept = []  # what SimpleITK's views look into

    @functools.cache
    def itk_background():
        import SimpleITK

        return [SimpleITK.GetImageFromArray((~mask).view(np.uint8)) for mask in masks]

    def simple_itk(threads):
        import SimpleITK

        kept[:] = [
            SimpleITK.SignedMaurerDistanceMap(background, squaredDistance=False)
            for background in itk_background()
        ]
        return [SimpleITK.GetArrayViewFromImage(distances) for distances in kept]

    compare(
        kernel="exact Euclidean distance transform of a mask",
        data=data,
        pixels=sum(mask.size for mask in masks),
        nucfast=lambda threads: [
            ops.distance_transform(mask, out=out, threads=threads)
            for mask, out in zip(masks, outs, strict=True)
        ],
        peers=[
            Peer("OpenCV", opencv, same_distances),
            Peer("edt", edt, same_distances),
            Peer("SciPy", scipy, same_distances),
            Peer(
                "SimpleITK",
                simple_itk,
                lambda ours, theirs: same_distances(ours, [np.maximum(one, 0) for one in theirs]),
                "distances of the background too, negative",
            ),
        ],
        bars=[Bar(8.0, 6.0, 15.0, peer="OpenCV")],
    )


@pytest.mark.parametrize("data", INPUTS)
def test_distance_inside_labels(compare, data):
    maps = [labels.copy() for labels in INPUTS[data]()]  # edt refuses read-only arrays
    outs = [np.empty(labels.shape, np.float32) for labels in maps]

    def edt(threads):
        import edt

        return [edt.edt(labels, parallel=threads) for labels in maps]

    compare(
        kernel="exact Euclidean distance transform inside each label",
        data=data,
        pixels=sum(labels.size for labels in maps),
        nucfast=lambda threads: [
            ops.distance_transform(labels, out=out, threads=threads)
            for labels, out in zip(maps, outs, strict=True)
        ],
        peers=[Peer("edt", edt, same_distances)],
        bars=[Bar(3.0, 4.0, 6.0)],
    )
