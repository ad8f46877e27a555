"""The kernels: plain functions on NumPy arrays, computed in C++ with the GIL released."""

from nucfast.ops.components import label
from nucfast.ops.contours import Rings, contours
from nucfast.ops.distance import distance_transform
from nucfast.ops.hover_net import hover_net_labels
from nucfast.ops.overlap import Matches, Overlaps, match, overlaps
from nucfast.ops.properties import mean_intensity, region_properties
from nucfast.ops.rasterize import rasterize
from nucfast.ops.split import find_nuclei, split_instances
from nucfast.ops.stain import REFERENCE_STAINS, Stains, fit_stains, normalize_stain
from nucfast.ops.tiles import blend, stitch, tile
from nucfast.ops.watershed import find_seeds, watershed

__all__ = [
    "REFERENCE_STAINS",
    "Matches",
    "Overlaps",
    "Rings",
    "Stains",
    "blend",
    "contours",
    "distance_transform",
    "find_nuclei",
    "find_seeds",
    "fit_stains",
    "hover_net_labels",
    "label",
    "match",
    "mean_intensity",
    "normalize_stain",
    "overlaps",
    "rasterize",
    "region_properties",
    "split_instances",
    "stitch",
    "tile",
    "watershed",
]
