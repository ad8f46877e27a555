"""The rings of all instances of a label map."""

import numpy as np

from harness import Bar, Peer
from inputs import dense_labels
from nucfast import ops

SIDE_PX = 4096


def test_contours(compare):
    labels = dense_labels(SIDE_PX)
    present = np.unique(labels[labels > 0]).size

    def opencv(threads):
        import cv2

        return cv2.findContours(labels, cv2.RETR_FLOODFILL, cv2.CHAIN_APPROX_SIMPLE)[0]

    def opencv_per_crop(threads):
        import cv2
        from scipy.ndimage import find_objects

        rings = []
        for label, box in enumerate(find_objects(labels), 1):
            if box is not None:
                crop = (labels[box] == label).view(np.uint8)
                rings.extend(cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0])
        return rings

    def rasterio(threads):
        from rasterio.features import shapes

        return [shape for shape, value in shapes(labels, connectivity=4) if value]

    def at_least_one_each(expected, found):
        assert len(found) >= present

    def as_many(expected, found):
        assert present <= len(found) <= len(expected.labels)  # corners connect there

    def same_rings(expected, found):
        assert len(found) == len(expected.labels)

    compare(
        kernel="rings of all instances",
        data=f"dense {SIDE_PX}^2",
        pixels=labels.size,
        nucfast=lambda threads: ops.contours(labels, threads=threads),
        peers=[
            Peer(
                "OpenCV RETR_FLOODFILL",
                opencv,
                at_least_one_each,
                "through pixel centres, 8-connected, also of holes and of the background",
            ),
            Peer("OpenCV per crop", opencv_per_crop, as_many, "through pixel centres, 8-connected"),
            Peer("rasterio", rasterio, same_rings, "holes as well"),
        ],
        bars=[Bar(1.6, 3, 4)],
    )
