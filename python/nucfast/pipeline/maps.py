"""From the pixels of a region to the network's maps of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Engine
from nucfast.pipeline.grid import Window, spans

Maps = Mapping[str, NDArray[np.uint8]]


def predict_maps(
    engine: Engine,
    image: NDArray[np.uint8],
    *,
    batch: int = 1,
    wanted: Callable[[Window], bool] | None = None,
) -> Maps:
    """Run the network over an image of any size, tile by tile.

    Args:
        engine: the network; its bundle gives tile size, margin, stride and outputs.
        image: (H, W, 3) uint8 RGB at the bundle's mpp.
        batch: tiles that go through the network at once.
        wanted: says of a part of the image whether it is wanted; maps are 0 under tiles that are not.

    Returns:
        For each output of the bundle (ceil(H / stride), ceil(W / stride), channels) uint8.
    """
    bundle = engine.bundle
    height, width = image.shape[:2]
    step = bundle.stride_px
    # The network needs whole strides; mirrored pixels continue the tissue, where white would draw an edge.
    padding = ((0, -height % step), (0, -width % step), (0, 0))
    padded = np.pad(image, padding, mode="symmetric") if any(after for _, after in padding) else image
    settings = {"tile_px": bundle.tile_px, "margin_px": bundle.margin_px, "stride_px": step}
    tile_height, rows = spans(padded.shape[0], **settings)
    tile_width, cols = spans(padded.shape[1], **settings)
    places = [
        (row, col)
        for row in rows
        for col in cols
        if wanted is None or wanted(Window(row.begin, col.begin, row.end, col.end))
    ]
    complete = len(places) == len(rows) * len(cols)
    maps = {
        output.name: (np.empty if complete else np.zeros)(
            (padded.shape[0] // output.stride, padded.shape[1] // output.stride, output.channels), np.uint8
        )
        for output in bundle.outputs
    }
    for first in range(0, len(places), batch):
        group = places[first : first + batch]
        tiles = np.stack(
            [
                padded[row.start : row.start + tile_height, col.start : col.start + tile_width]
                for row, col in group
            ]
        )
        results = engine.run(tiles)
        for output in bundle.outputs:
            s, target = output.stride, maps[output.name]
            for (row, col), tile in zip(group, results[output.name], strict=True):
                # Cuts are rounded down to the output's own grid on both sides alike: no gap, no overlap.
                inner = tile[
                    row.begin // s - row.start // s : row.end // s - row.start // s,
                    col.begin // s - col.start // s : col.end // s - col.start // s,
                ]
                target[row.begin // s : row.end // s, col.begin // s : col.end // s] = inner
    return {
        output.name: maps[output.name][: -(-height // output.stride), : -(-width // output.stride)]
        for output in bundle.outputs
    }
