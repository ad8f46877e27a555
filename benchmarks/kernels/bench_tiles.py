"""Tiles with overlap out of an image, into a batch that is used again."""

import numpy as np

from harness import Bar, Peer
from inputs import dense_image
from nucfast import ops

SIDE_PX, SIZE_PX, OVERLAP_PX = 4096, 512, 64


def test_tiles(compare):
    image = dense_image(SIDE_PX)
    starts = range(0, SIDE_PX - OVERLAP_PX, SIZE_PX - OVERLAP_PX)
    origins = np.array([(row, col) for row in starts for col in starts], np.int32)
    padded = np.full((starts[-1] + SIZE_PX, starts[-1] + SIZE_PX, 3), 255, np.uint8)
    padded[:SIDE_PX, :SIDE_PX] = image  # so that slicing finds whole windows; not timed
    batch = np.empty((len(origins), SIZE_PX, SIZE_PX, 3), np.uint8)
    sliced = np.empty_like(batch)

    def slices(threads):
        for window, (row, col) in zip(sliced, origins, strict=True):
            window[:] = padded[row : row + SIZE_PX, col : col + SIZE_PX]
        return sliced

    def copy(threads):
        np.copyto(sliced, batch)  # bytes as they lie: what the memory gives
        return sliced

    compare(
        kernel="uint8 tiles with overlap into a reused batch",
        data=f"dense {SIDE_PX}^2, {SIZE_PX} px tiles, {OVERLAP_PX} px overlap",
        pixels=batch.size // 3,
        nucfast=lambda threads: ops.tile(image, origins, size_px=SIZE_PX, out=batch),
        peers=[
            Peer("NumPy slices", slices, np.testing.assert_array_equal),
            Peer("NumPy copy", copy, np.testing.assert_array_equal, "a plain copy of the batch, the limit"),
        ],
        bars=[Bar(1.0, 1.2, peer="NumPy slices"), Bar(None, None, 0.8, peer="NumPy copy")],
    )
