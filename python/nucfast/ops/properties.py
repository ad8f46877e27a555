"""What is measured of every object of a label map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


def region_properties(
    labels: NDArray[np.int32],
    *,
    intensity: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    count: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Measure every label: row i of each column belongs to label i + 1.

    Lengths are pixels, areas square pixels. Definitions are those of ``skimage.measure.regionprops`` unless
    stated. A label that does not occur has area 0, a ``bbox`` of zeros, ``first_pixel`` (-1, -1) and NaN in
    all other columns.

    Args:
        labels: (H, W) int32. 0 = background, 1..count = objects; an object need not be connected.
        intensity: (H, W) or (H, W, C), uint8 or float32: adds the column ``mean_intensity``. Several by name,
            which are read in one go: adds ``mean_<name>`` for each.
        count: the number of rows N; the greatest label if not given.

    Returns:
        A column by name, all float64 unless stated:

        - ``area``: (N,) int64, pixels.
        - ``bbox``: (N, 4) int32, min_row, min_col, max_row, max_col, half-open.
        - ``first_pixel``: (N, 2) int32, row and column of the first pixel in raster order.
        - ``centroid``: (N, 2), row and column; the centre of pixel (0, 0) is (0, 0).
        - ``major_axis_length``, ``minor_axis_length``, ``eccentricity``, ``orientation``: (N,), of the
          ellipse with the same second moments. The orientation is the angle in (-pi/2, pi/2] from the row
          axis to the major axis, positive towards greater columns. Pixels are points here (no 1/12 px is
          added to the moments), so a single pixel has axes of length 0.
        - ``equivalent_diameter_area``, ``extent``: (N,).
        - ``perimeter``: (N,), scikit-image's estimate with ``neighborhood=4``; 0 for the smallest objects.
        - ``convex_area``, ``solidity``: (N,), of the convex hull of the corners of the pixels: exact polygon
          areas. (scikit-image counts the pixels inside the hull of their edges' middles, a little less.)
        - ``circularity``: (N,), 4 pi area / perimeter^2, at most 1; 1 where the perimeter is 0.
        - ``mean_intensity`` or ``mean_<name>``: (N,) or (N, C), with ``intensity`` only.

    Raises:
        TypeError: ``labels`` or ``intensity`` has another dtype; nothing is cast silently.
        ValueError: ``labels`` holds a negative value or one greater than ``count``; ``intensity`` is not
            finite inside a label; shapes differ from the above.
    """
    labels = np.ascontiguousarray(labels)
    # Before the greatest value of something else decides how much memory is needed.
    if labels.dtype != np.int32:
        raise TypeError(f"labels: expected int32, got {labels.dtype}")
    if count is None:
        count = int(labels.max(initial=0))
    if count < 0:
        raise ValueError(f"count: expected a value >= 0, got {count}")

    area = np.empty(count, np.int64)
    bbox = np.empty((count, 4), np.int32)
    first_pixel = np.empty((count, 2), np.int32)
    moments = np.empty((count, 5), np.float64)
    perimeter = np.empty(count, np.float64)
    convex_area = np.empty(count, np.float64)
    images: Mapping[str, NDArray[Any]] = {}
    if intensity is not None:
        images = intensity if isinstance(intensity, Mapping) else {"intensity": intensity}
    read = {name: _readable(image, count) for name, image in images.items()}
    _core.region_properties(
        labels, area, bbox, first_pixel, moments, perimeter, convex_area, list(read.values())
    )

    absent = area == 0
    n = np.where(absent, np.nan, area)
    perimeter[absent] = np.nan
    convex_area[absent] = np.nan
    r, c, rr, rc, cc = moments.T
    # Times n^2, which keeps them whole numbers, exact for all but huge objects: a line has no width at all.
    var_r, cov, var_c = n * rr - r * r, n * rc - r * c, n * cc - c * c
    spread = np.hypot(var_r - var_c, 2 * cov)
    major = (var_r + var_c + spread) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        minor = np.where(major == 0, 0, np.maximum(var_r * var_c - cov * cov, 0) / major)
        eccentricity = np.where(major == 0, 0, np.sqrt(np.maximum(1 - minor / major, 0)))
        circularity = np.minimum(4 * np.pi * n / perimeter**2, 1)
    orientation = np.where(
        (var_r == var_c) & (cov == 0), -np.pi / 4, np.arctan2(2 * cov + 0.0, var_r - var_c) / 2
    )
    box_area = (bbox[:, 2] - bbox[:, 0]).astype(np.float64) * (bbox[:, 3] - bbox[:, 1])
    columns: dict[str, NDArray[Any]] = {
        "area": area,
        "bbox": bbox,
        "first_pixel": first_pixel,
        "centroid": first_pixel + np.stack([r / n, c / n], axis=1),
        "major_axis_length": 4 * np.sqrt(major) / n,
        "minor_axis_length": 4 * np.sqrt(minor) / n,
        "eccentricity": eccentricity,
        "orientation": orientation,
        "equivalent_diameter_area": np.sqrt(4 / np.pi * n),
        "extent": np.divide(n, box_area, out=np.full(count, np.nan), where=~absent),
        "perimeter": perimeter,
        "convex_area": convex_area,
        "solidity": n / convex_area,
        "circularity": circularity,
    }
    for name, (_, sums) in read.items():
        columns[f"mean_{name}"] = _means(sums, area, images[name].ndim)
    return columns


def mean_intensity(
    labels: NDArray[np.int32],
    intensity: NDArray[np.uint8] | NDArray[np.float32],
    *,
    count: int,
    weights: NDArray[np.uint8] | None = None,
) -> NDArray[np.float64]:
    """Average an image over every label: row i belongs to label i + 1.

    Args:
        labels: (H, W) int32. 0 = background, 1..count = objects.
        intensity: (H, W) or (H, W, C), uint8 or float32.
        count: the number of rows N.
        weights: (H, W) uint8, how much each pixel counts; None: all the same.

    Returns:
        (N,) or (N, C) float64; NaN for a label that does not occur, or only where weights are 0.

    Raises:
        TypeError: ``labels``, ``intensity`` or ``weights`` has another dtype; nothing is cast silently.
        ValueError: ``labels`` holds a negative value or one greater than ``count``; ``intensity`` is not
            finite inside a label; shapes differ from the above.
    """
    if count < 0:
        raise ValueError(f"count: expected a value >= 0, got {count}")
    channels, sums = _readable(intensity, count)
    pixels = np.zeros(count, np.int64)
    weights = None if weights is None else np.ascontiguousarray(weights)
    _core.intensity_sums(np.ascontiguousarray(labels), channels, pixels, sums, weights)
    return _means(sums, pixels, intensity.ndim)


def _readable(intensity: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The image as (H, W, C), and room for its sums."""
    channels = intensity[..., np.newaxis] if intensity.ndim == 2 else intensity
    if not channels[:1].flags.c_contiguous:  # rows may lie apart, pixels may not
        channels = np.ascontiguousarray(channels)
    return channels, np.zeros((count, channels.shape[-1] if channels.ndim == 3 else 0), np.float64)


def _means(sums: NDArray[np.float64], pixels: NDArray[np.int64], ndim: int) -> NDArray[np.float64]:
    if not np.isfinite(sums).all():  # one bad pixel spoils its label's sum, so the pixels need no look
        raise ValueError("intensity: expected finite values, got NaN or infinity inside a label")
    means = sums / np.where(pixels == 0, np.nan, pixels)[:, np.newaxis]
    return means[:, 0] if ndim == 2 else means
