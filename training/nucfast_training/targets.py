"""What a network is asked to predict, made from instance labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

UNCLASSIFIED = 255  # class index of pixels that do not enter a loss


def peaked_distance(labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Distance to the nucleus's edge, shaped so that every nucleus has a single summit.

    Inside each nucleus the Euclidean distance to its edge, divided by its largest value, is multiplied by a
    cone that falls from 1 at the centre to 1/2 at the farthest pixel. The plain distance of an elongated
    nucleus is a ridge, on which noise makes several summits; on this one every path leads to the centre. It
    does not depend on scale, so it can be resampled together with the image.

    Args:
        labels: (H, W) int32, 0 = background.

    Returns:
        (H, W) uint8, 0 outside nuclei, 255 at most.
    """
    out = np.zeros(labels.shape, np.uint8)
    rows, cols = np.nonzero(labels)
    ids = labels[rows, cols]
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=-1))
    for start, stop in zip(starts, np.append(starts[1:], ids.size), strict=True):
        r, c = rows[order[start:stop]], cols[order[start:stop]]
        top, left = r.min(), c.min()
        # One pixel of padding makes the crop's rim background, except where the image itself ends.
        inside = np.zeros((r.max() - top + 3, c.max() - left + 3), np.uint8)
        inside[r - top + 1, c - left + 1] = 1
        edge = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[r - top + 1, c - left + 1]
        centre = np.argmin((r - r.mean()) ** 2 + (c - c.mean()) ** 2)
        reach = np.hypot(r - r[centre], c - c[centre])
        cone = 1.0 - 0.5 * reach / max(float(reach.max()), 1.0)
        out[r, c] = np.rint(255.0 * edge / edge.max() * cone)
    return out


def nucleus(labels: NDArray[np.int32], kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """255 in nuclei (or cells), 0 outside."""
    return np.where(labels > 0, np.uint8(255), np.uint8(0))


def distance(labels: NDArray[np.int32], kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``peaked_distance``."""
    return peaked_distance(labels)


def class_index(labels: NDArray[np.int32], kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class index from 0 in classified nuclei, ``UNCLASSIFIED`` elsewhere."""
    return np.where((labels > 0) & (kinds > 0), kinds - np.uint8(1), np.uint8(UNCLASSIFIED))


def semantic(labels: NDArray[np.int32], kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0 = background, else the class id; nuclei without a class are ``UNCLASSIFIED``."""
    return np.where(
        (labels > 0) & (kinds == 0), np.uint8(UNCLASSIFIED), np.where(labels > 0, kinds, 0)
    ).astype(np.uint8)


@dataclass(frozen=True)
class Target:
    """How a target is made from instance labels and class ids per pixel, both (H, W).

    ``binary`` targets are 0..255 and may be interpolated; others are class indices.
    """

    make: Callable[[NDArray[np.int32], NDArray[np.uint8]], NDArray[np.uint8]]
    binary: bool


# By the name of the head that learns them.
TARGETS = {
    "nucleus": Target(nucleus, binary=True),
    "distance": Target(distance, binary=True),
    "class": Target(class_index, binary=False),
    "semantic": Target(semantic, binary=False),
}
