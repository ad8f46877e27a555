"""HoVer-Net's post-processing: from its maps to nuclei."""

import sys
from pathlib import Path

import numpy as np

from harness import Bar, Peer
from inputs import dense_labels
from nucfast import ops
from nucfast.testing import hover_net_maps

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

SIDE_PX = 1000


def test_hover_net(compare):
    probability, hv = hover_net_maps(np.ascontiguousarray(dense_labels(4096)[:SIDE_PX, :SIDE_PX]))
    labels = np.empty(probability.shape, np.int32)

    def chain(threads):
        import reference

        return reference.hover_net_labels(probability, hv)[0]

    def agrees(expected, found):
        np.testing.assert_array_equal(expected > 0, found > 0)
        assert np.mean(expected != found) < 0.003

    compare(
        kernel="HoVer-Net post-processing",
        data=f"dense {SIDE_PX}^2",
        pixels=labels.size,
        nucfast=lambda threads: ops.hover_net_labels(probability, hv, out=labels, threads=threads),
        peers=[
            Peer(
                "OpenCV, SciPy and scikit-image",
                chain,
                agrees,
                "double precision; its watershed floods floats instead of 256 levels",
            )
        ],
        bars=[Bar(8, 8, 20)],
    )
