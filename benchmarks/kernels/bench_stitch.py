"""Overlapping tiles with three channels, blended into one image by weights that fall towards their edges."""

import numpy as np
import pytest

from harness import Bar, Peer
from inputs import dense_image
from nucfast import ops

SIDE_PX, SIZE_PX, OVERLAP_PX = 4096, 512, 64


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_blend(compare, dtype):
    # The grid ends with the image, so that the peers need not cut tiles.
    starts = [*range(0, SIDE_PX - SIZE_PX, SIZE_PX - OVERLAP_PX), SIDE_PX - SIZE_PX]
    origins = np.array([(row, col) for row in starts for col in starts], np.int32)
    tiles = ops.tile(dense_image(SIDE_PX), origins, size_px=SIZE_PX).astype(dtype)
    ramp = np.minimum(np.arange(1, SIZE_PX + 1), OVERLAP_PX) / OVERLAP_PX
    ramp = np.minimum(ramp, ramp[::-1])
    window = np.outer(ramp, ramp).astype(np.float32)
    out = np.empty((SIDE_PX, SIDE_PX, 3), np.float32)
    blended = np.empty_like(out)
    weights = np.empty((SIDE_PX, SIDE_PX, 1), np.float32)
    product = np.empty((SIZE_PX, SIZE_PX, 3), np.float32)

    def numpy(threads):
        blended[:] = 0
        weights[:] = 0
        for tile, (row, col) in zip(tiles, origins, strict=True):
            place = np.s_[row : row + SIZE_PX, col : col + SIZE_PX]
            np.multiply(tile, window[..., np.newaxis], out=product)
            blended[place] += product
            weights[place] += window[..., np.newaxis]
        np.divide(blended, weights, out=blended)
        return blended

    def pytorch(threads):
        import torch

        total, weight = torch.from_numpy(blended), torch.from_numpy(weights)
        total.zero_()
        weight.zero_()
        factor = torch.from_numpy(window)[..., np.newaxis]
        for tile, (row, col) in zip(torch.from_numpy(tiles), origins, strict=True):
            place = np.s_[row : row + SIZE_PX, col : col + SIZE_PX]
            total[place].addcmul_(tile.float(), factor)
            weight[place].add_(factor)
        total.div_(weight)
        return blended

    def agree(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)

    compare(
        kernel=f"weighted blending of overlapping tiles, 3 channels, {np.dtype(dtype)}",
        data=f"{SIDE_PX}^2, {SIZE_PX} px tiles, {OVERLAP_PX} px overlap",
        pixels=SIDE_PX**2,
        nucfast=lambda threads: ops.blend(
            tiles, origins, shape=(SIDE_PX, SIDE_PX), window=window, out=out, threads=threads
        ),
        peers=[Peer("PyTorch addcmul", pytorch, agree), Peer("NumPy", numpy, agree)],
        bars=[Bar(1.6, 1.6, 3.0)],
    )
