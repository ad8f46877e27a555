"""One slide through all stages: read, network, decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Bundle, Engine
from nucfast.pipeline.decode import Decoded, decode_region
from nucfast.pipeline.grid import Region, Window, regions
from nucfast.pipeline.maps import predict_maps
from nucfast.pipeline.stages import Stages
from nucfast.slide import Slide

# A scale this near to a whole number is taken for it: scanners state 0.2527 where the model wants 0.5, and
# one per cent of size means nothing to the network, while whole factors are read faster and without
# resampling.
SCALE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Plan:
    """How a slide maps to the model's pixel grid.

    Attributes:
        mpp: um per level-0 pixel.
        scale: level-0 pixels per model pixel.
        width_px, height_px: the slide in model pixels.
        regions: all regions, in the order in which their rows are written.
    """

    mpp: float
    scale: float
    width_px: int
    height_px: int
    regions: tuple[Region, ...]


def plan(slide: Slide, bundle: Bundle, *, region_px: int) -> Plan:
    """Lay the grid of regions over a slide; an array without mpp is taken to be at the model's."""
    mpp = slide.mpp if slide.mpp is not None else bundle.mpp
    scale = bundle.mpp / mpp
    if abs(scale - round(scale)) <= SCALE_TOLERANCE * round(scale):
        scale = float(round(scale))
    width, height = slide.dimensions
    width_px, height_px = max(1, round(width / scale)), max(1, round(height / scale))
    grid = regions(
        width_px,
        height_px,
        region_px=region_px,
        halo_px=bundle.halo_px,
        margin_px=bundle.margin_px,
        stride_px=bundle.stride_px,
    )
    return Plan(mpp, scale, width_px, height_px, tuple(grid))


def run_regions(
    slide: Slide,
    layout: Plan,
    todo: list[Region],
    *,
    engine: Engine,
    batch: int,
    decoders: int,
    stages: Stages,
    finish: Callable[[Region, Decoded], None],
) -> Iterator[tuple[Region, Decoded]]:
    """Run regions through all stages and yield them in order.

    One thread reads ahead, the caller's thread runs the network, ``decoders`` threads decode; at most two
    regions wait between any two stages, which bounds memory.

    Args:
        slide: where pixels come from.
        layout: from ``plan``.
        todo: the regions to run.
        engine: the network; its bundle says how to decode.
        batch: tiles that go through the network at once.
        decoders: threads that decode.
        stages: timings are added here.
        finish: called in the decoder's thread with each result, before it is yielded.
    """
    bundle = engine.bundle
    waiting_reads: deque[tuple[Region, Future[NDArray[np.uint8]]]] = deque()
    waiting_decodes: deque[tuple[Region, Future[Decoded]]] = deque()
    upcoming = iter(todo)

    def read(region: Region) -> NDArray[np.uint8]:
        window = region.read
        with stages.timed("read", window.height * window.width):
            return slide.read_scaled(
                window.left * layout.scale,
                window.top * layout.scale,
                window.width,
                window.height,
                layout.scale,
            )

    def decode(region: Region, image: NDArray[np.uint8], maps: dict[str, NDArray[np.uint8]]) -> Decoded:
        window = region.decoded
        with stages.timed("decode", window.height * window.width):
            decoded = decode_region(
                maps,
                image,
                region,
                bundle,
                scale=layout.scale,
                mpp=layout.mpp,
                slide=Window(0, 0, layout.height_px, layout.width_px),
            )
        finish(region, decoded)
        return decoded

    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(decoders) as workers:
        try:
            for region in upcoming:
                waiting_reads.append((region, readers.submit(read, region)))
                if len(waiting_reads) == 2:
                    break
            while waiting_reads:
                region, pixels = waiting_reads.popleft()
                image = pixels.result()
                following = next(upcoming, None)
                if following is not None:
                    waiting_reads.append((following, readers.submit(read, following)))
                with stages.timed("network", image.shape[0] * image.shape[1]):
                    maps = predict_maps(engine, image, batch=batch)
                row, col = region.decoded.top - region.read.top, region.decoded.left - region.read.left
                inner = {
                    spec.name: _crop(maps[spec.name], row, col, region, spec.stride)
                    for spec in bundle.outputs
                }
                waiting_decodes.append(
                    (region, workers.submit(decode, region, _crop(image, row, col, region, 1), inner))
                )
                if len(waiting_decodes) > 2:
                    done, result = waiting_decodes.popleft()
                    yield done, result.result()
            for done, result in waiting_decodes:
                yield done, result.result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            workers.shutdown(wait=False, cancel_futures=True)


def _crop(plane: NDArray[np.uint8], row: int, col: int, region: Region, stride: int) -> NDArray[np.uint8]:
    """The part of a map over ``region.read`` that lies over ``region.decoded``; offsets are whole strides."""
    window = region.decoded
    bottom, right = -(-(row + window.height) // stride), -(-(col + window.width) // stride)
    return plane[row // stride : bottom, col // stride : right]
