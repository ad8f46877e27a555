"""Made-up slides and label maps with known truth, for tests, demonstrations and benchmarks."""

from nucfast.testing.blobs import random_blobs
from nucfast.testing.compare import assert_nuclei_equal
from nucfast.testing.hover_net import hover_net_maps
from nucfast.testing.synthetic import CLASSES, SyntheticSlide, synthetic_slide

__all__ = [
    "CLASSES",
    "SyntheticSlide",
    "assert_nuclei_equal",
    "hover_net_maps",
    "random_blobs",
    "synthetic_slide",
]
