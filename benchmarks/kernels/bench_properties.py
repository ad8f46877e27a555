"""Twelve shape and intensity properties of every nucleus."""

import math

import numpy as np

from harness import Bar, Peer
from inputs import dense_image, dense_labels
from nucfast import ops

SIDE_PX = 4096
NAMES = (
    "area",
    "bbox",
    "centroid",
    "major_axis_length",
    "minor_axis_length",
    "eccentricity",
    "orientation",
    "equivalent_diameter_area",
    "extent",
    "perimeter",
    "solidity",
    "intensity_mean",
)


def test_properties(compare):
    labels = dense_labels(SIDE_PX)
    gray = np.ascontiguousarray(dense_image(SIDE_PX)[..., 1])

    def scikit_image(threads):
        from skimage.measure import regionprops_table

        return regionprops_table(labels, gray, properties=NAMES)

    def opencv(threads):
        import cv2
        from scipy.ndimage import find_objects

        rows = []
        for label, box in enumerate(find_objects(labels), 1):
            if box is None:
                continue
            crop = (labels[box] == label).view(np.uint8)
            rings, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            points = np.concatenate(rings)
            moments = cv2.moments(crop, binaryImage=True)
            area = moments["m00"]
            spread = math.hypot(moments["mu20"] - moments["mu02"], 2 * moments["mu11"])
            total = moments["mu20"] + moments["mu02"]
            hull = cv2.contourArea(cv2.convexHull(points))
            rows.append(
                (
                    area,
                    box[0].start,
                    box[1].start,
                    box[0].stop,
                    box[1].stop,
                    box[0].start + moments["m01"] / area,
                    box[1].start + moments["m10"] / area,
                    math.sqrt(max(0.0, 2 * spread / (total + spread))) if total else 0.0,
                    area / hull if hull else 1.0,
                    sum(cv2.arcLength(ring, True) for ring in rings),
                    cv2.mean(gray[box], crop)[0],
                )
            )
        return np.array(rows)

    def same_table(expected, found):
        present = expected["area"] > 0
        np.testing.assert_array_equal(found["area"], expected["area"][present])
        np.testing.assert_allclose(found["perimeter"], expected["perimeter"][present])
        for k in range(2):
            np.testing.assert_allclose(found[f"centroid-{k}"], expected["centroid"][present, k])
        np.testing.assert_allclose(found["intensity_mean"], expected["mean_intensity"][present])

    def same_rows(expected, found):
        present = expected["area"] > 0
        np.testing.assert_array_equal(found[:, 0], expected["area"][present])
        np.testing.assert_array_equal(found[:, 1:5], expected["bbox"][present])
        np.testing.assert_allclose(found[:, 5:7], expected["centroid"][present])
        np.testing.assert_allclose(found[:, 7], expected["eccentricity"][present], atol=1e-6)
        np.testing.assert_allclose(found[:, 10], expected["mean_intensity"][present])

    compare(
        kernel="12 shape and intensity properties",
        data=f"dense {SIDE_PX}^2",
        pixels=labels.size,
        nucfast=lambda threads: ops.region_properties(labels, intensity=gray),
        peers=[
            Peer(
                "OpenCV per crop",
                opencv,
                same_rows,
                "7 properties; perimeter and hull through pixel centres",
            ),
            Peer(
                "scikit-image",
                scikit_image,
                same_table,
                "1/12 px added to second moments; the hull counts pixels",
            ),
        ],
        bars=[Bar(4, 7, 8, peer="OpenCV per crop"), Bar(60, None, 120, peer="scikit-image")],
    )
