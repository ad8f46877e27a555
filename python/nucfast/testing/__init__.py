"""Made-up slides and label maps with known truth, for tests, demonstrations and benchmarks."""

from nucfast.testing.blobs import random_blobs
from nucfast.testing.compare import assert_nuclei_equal
from nucfast.testing.synthetic import CLASSES, SyntheticSlide, synthetic_slide

__all__ = ["CLASSES", "SyntheticSlide", "assert_nuclei_equal", "random_blobs", "synthetic_slide"]
