"""C++ kernels of nucfast; use them through nucfast.ops."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# dispatch
def set_isa(limit: str | None) -> str: ...

# overlap
def instance_sums(
    true_id: NDArray[np.int64],
    pred_id: NDArray[np.int64],
    count: NDArray[np.int64],
    iou: NDArray[np.float64],
    true_ids: NDArray[np.int64],
    true_areas: NDArray[np.int64],
    pred_ids: NDArray[np.int64],
    pred_areas: NDArray[np.int64],
    thresholds: list[float],
) -> tuple[int, float, list[int], float, int, int, int, int]: ...
def match_pairs(
    true_id: NDArray[np.int64], pred_id: NDArray[np.int64], weight: NDArray[np.float64]
) -> NDArray[np.int64]: ...
def match_points(true: NDArray[np.float64], pred: NDArray[np.float64]) -> NDArray[np.int64]: ...
def overlaps(
    true: NDArray[np.int32], pred: NDArray[np.int32], threads: int
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
]: ...

# outline
def draw_outlines(
    vertices: NDArray[np.float64],
    offsets: NDArray[np.int64],
    colors: NDArray[np.uint8],
    width: float,
    picture: NDArray[np.uint8],
) -> None: ...

# geojson
def geojson_features(
    id: NDArray[np.int64],
    class_code: NDArray[np.int32],
    vertices: NDArray[np.float64],
    offsets: NDArray[np.int64],
    measurements: NDArray[np.float32],
    key: tuple[int, int],
    origin: tuple[float, float],
    classes: list[bytes],
    names: list[bytes],
) -> bytes: ...

# contours
def contours(
    labels: NDArray[np.int32], midpoints: bool, threads: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]: ...

# properties
def intensity_sums(
    labels: NDArray[np.int32],
    intensity: NDArray[Any],
    pixels: NDArray[np.int64],
    sums: NDArray[np.float64],
    weights: NDArray[np.uint8] | None,
) -> None: ...
def region_properties(
    labels: NDArray[np.int32],
    area: NDArray[np.int64],
    bbox: NDArray[np.int32],
    first_pixel: NDArray[np.int32],
    moments: NDArray[np.float64],
    perimeter: NDArray[np.float64],
    convex_area: NDArray[np.float64],
    intensities: list[tuple[NDArray[Any], NDArray[np.float64]]],
) -> None: ...

# rasterize
def rasterize(
    vertices: NDArray[np.float64],
    offsets: NDArray[np.int64],
    values: NDArray[np.int32],
    out: NDArray[np.int32],
) -> None: ...

# stain
def fit_stains(image: NDArray[np.uint8], threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def normalize_stain(
    image: NDArray[np.uint8],
    source_vectors: NDArray[np.float64],
    source_strengths: NDArray[np.float64],
    target_vectors: NDArray[np.float64],
    target_strengths: NDArray[np.float64],
    out: NDArray[np.uint8],
    threads: int,
) -> None: ...

# tiles
def blend(
    tiles: NDArray[Any],
    origins: NDArray[np.int32],
    window: NDArray[np.float32],
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def pixel_shuffle(planes: NDArray[np.uint8], out: NDArray[np.uint8]) -> None: ...
def stitch(tiles: NDArray[Any], origins: NDArray[np.int32], margin_px: int, out: NDArray[Any]) -> None: ...
def tile(
    image: NDArray[np.uint8], origins: NDArray[np.int32], fill: int, out: NDArray[np.uint8], threads: int
) -> None: ...

# components
def label_components(image: NDArray[Any], out: NDArray[Any], connectivity: int, threads: int) -> int: ...

# distance
def distance_transform(image: NDArray[Any], out: NDArray[Any], threads: int) -> None: ...

# split
def find_nuclei(
    probability: NDArray[Any],
    height: NDArray[Any],
    threshold: int,
    min_rise: int,
    peak_share: float,
    max_hole_px: float,
    min_area_px: float,
    out: NDArray[Any],
) -> int: ...
def split_instances(height: NDArray[Any], mask: NDArray[Any], min_rise: int, out: NDArray[Any]) -> int: ...

# watershed
def watershed(
    elevation: NDArray[Any], mask: NDArray[Any], markers: NDArray[Any], out: NDArray[Any], threads: int
) -> None: ...

# hover_net
def hover_net_labels(
    nucleus_probability: NDArray[Any],
    hv_map: NDArray[Any],
    nucleus_threshold: float,
    edge_threshold: float,
    min_px: int,
    threads: int,
    out: NDArray[Any],
) -> int: ...
