"""From the pixels of a region to the network's maps of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Engine, Maps
from nucfast.pipeline.cover import Tile
from nucfast.pipeline.grid import Window


def predict_maps(
    engine: Engine,
    image: NDArray[np.uint8],
    tiles: Sequence[Tile],
    kept: Window,
    *,
    corner: tuple[int, int] = (0, 0),
    batch: int = 1,
) -> Maps:
    """Run the network over parts of an image.

    Args:
        engine: the network; its bundle gives stride and outputs.
        image: (H, W, 3) uint8 RGB at the bundle's mpp.
        tiles: what goes through the network, as ``cover`` makes them.
        kept: where maps are wanted; it holds what is kept of the tiles.
        corner: row and column of the image's first pixel, where tiles and ``kept`` are counted.
        batch: tiles of one size that go through the network at once.

    Returns:
        For each output of the bundle (ceil(height / stride), ceil(width / stride), channels) uint8, of
        ``kept``; 0 where no tile lies.
    """
    bundle = engine.bundle
    step = bundle.stride_px
    # The network needs whole strides; mirrored pixels continue the tissue, where white would draw an edge.
    padding = ((0, -image.shape[0] % step), (0, -image.shape[1] % step), (0, 0))
    padded = np.pad(image, padding, mode="symmetric") if any(after for _, after in padding) else image
    maps = {
        output.name: np.zeros(
            (-(-kept.height // output.stride), -(-kept.width // output.stride), output.channels), np.uint8
        )
        for output in bundle.outputs
    }
    # One for all batches: to touch fresh memory costs as much as to fill it.
    largest = max((tile.seen.area for tile in tiles), default=0)
    buffer = np.empty(min(batch, len(tiles)) * largest * 3, np.uint8)
    for (height, width), equal in groupby(tiles, lambda tile: tile.seen.size):
        sized = list(equal)
        for first in range(0, len(sized), batch):
            group = sized[first : first + batch]
            pixels = buffer[: len(group) * height * width * 3].reshape(-1, height, width, 3)
            for tile, to in zip(group, pixels, strict=True):
                seen = tile.seen.shifted(-corner[0], -corner[1])
                to[...] = padded[seen.top : seen.bottom, seen.left : seen.right]
            results = engine.run(pixels)
            for output in bundle.outputs:
                for tile, result in zip(group, results[output.name], strict=True):
                    place = scaled(tile.kept, kept, output.stride)
                    maps[output.name][place] = result[scaled(tile.kept, tile.seen, output.stride)]
                    for part in tile.blank:
                        maps[output.name][scaled(part, kept, output.stride)] = 0
    return maps


def scaled(part: Window, whole: Window, stride: int) -> tuple[slice, slice]:
    """Where ``part`` lies in a map of ``whole``; both start at whole strides."""
    top, left = (part.top - whole.top) // stride, (part.left - whole.left) // stride
    return slice(top, top - (-part.height // stride)), slice(left, left - (-part.width // stride))
