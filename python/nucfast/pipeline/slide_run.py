"""One slide through all stages: read, network, decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Bundle, Engine, Maps
from nucfast.errors import SlideError
from nucfast.nuclei import Nuclei
from nucfast.pipeline.area import Area
from nucfast.pipeline.cover import CPU_CELL_PX, Tile, cover
from nucfast.pipeline.damage import inside
from nucfast.pipeline.decode import Decoded, decode_region
from nucfast.pipeline.grid import Region, Window, regions
from nucfast.pipeline.maps import predict_maps
from nucfast.pipeline.seams import Seams, shares
from nucfast.pipeline.stages import Stages
from nucfast.slide import Slide
from nucfast.slide.base import WHITE, Part

# A scale this near to a whole number is taken for it: scanners state 0.2527 where the model wants 0.5, and a
# few per cent of size mean nothing to the network, while whole factors are read faster and without
# resampling.
SCALE_TOLERANCE = 0.05

# Sides of regions. Small ones begin and end sooner and need less memory, but cost more where neighbours do
# not share what they see (``seams``).
REGION_PX, SHARING_REGION_PX = 4096, 2048

# A region is decoded by so many threads: more of them only add halos.
DECODE_THREADS = 4

# How much larger the halo becomes for nuclei that reach past it, before they are reported as cut.
HALO_FACTORS = (2, 4, 8)


@dataclass(frozen=True)
class Plan:
    """How a slide maps to the model's pixel grid.

    Attributes:
        mpp: um per level-0 pixel.
        scale: level-0 pixels per model pixel.
        slide: the whole slide in model pixels.
        regions: all regions, in the order in which their rows are written.
    """

    mpp: float
    scale: float
    slide: Window
    regions: tuple[Region, ...]

    def with_halo(self, region: Region, halo_px: int, bundle: Bundle) -> Region:
        """The region with another halo."""
        return region.with_halo(halo_px, bundle.margin_px, bundle.stride_px, within=self.slide)


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
    return Plan(mpp, scale, Window(0, 0, height_px, width_px), tuple(grid))


def run_regions(
    slide: Slide,
    layout: Plan,
    todo: Iterable[Region],
    *,
    engine: Engine,
    batch: int,
    decoders: int,
    stages: Stages,
    finish: Callable[[Region, Nuclei], None],
    in_flight: int = 4,
    area: Area | None = None,
    allow_unreadable: bool = False,
) -> Iterator[tuple[Region, Nuclei]]:
    """Run regions through all stages and yield them in order.

    Some threads read ahead, the caller's thread runs the network, others decode and finish. At most
    ``in_flight`` regions are anywhere between being read and being yielded, which bounds memory.

    Where a part of the slide cannot be read, the regions that need it are left out and all others run, unless
    ``allow_unreadable`` takes it for empty.

    Args:
        slide: where pixels come from.
        layout: from ``plan``.
        todo: the regions to run; the next one is asked for when there is room for it.
        engine: the network; its bundle says how to decode.
        batch: tiles that go through the network at once, on each GPU if there are several.
        decoders: threads that decode, up to ``DECODE_THREADS`` of them one region.
        stages: timings are added here.
        finish: called in the decoder's thread with each result, before it is yielded.
        in_flight: regions in memory at once.
        area: where nuclei are wanted; None: everywhere.
        allow_unreadable: as above.

    Raises:
        SlideError: at the end, if a part of the slide could not be read.
    """
    task = RegionTask(slide, layout, engine, batch, stages, area, allow_unreadable)
    readers = min(in_flight, max(1, decoders // 2))
    at_once = max(1, decoders // DECODE_THREADS)
    upcoming = iter(todo)
    reading: deque[tuple[Region, Future[Sight]]] = deque()
    decoding: deque[tuple[Region, Future[Nuclei]]] = deque()
    unreadable: SlideError | None = None
    seams = Seams(layout.regions, engine.bundle, in_flight=in_flight) if shares(engine) else None
    first = True

    def decode(region: Region, sight: Sight, maps: Maps) -> Nuclei:
        nuclei = task.decode(region, sight, maps)
        finish(region, nuclei)
        return nuclei

    with (
        stages.staffed(read=readers, network=1, decode=at_once),
        ThreadPoolExecutor(readers, "nucfast-read") as read_pool,
        ThreadPoolExecutor(at_once, "nucfast-decode") as decode_pool,
    ):
        try:
            while True:
                while len(reading) + len(decoding) < in_flight and len(reading) <= readers:
                    following = next(upcoming, None)
                    if following is None:
                        break
                    computed = seams.begin(following) if seams else None
                    reading.append((following, read_pool.submit(task.read, following, computed, first=first)))
                    first = False
                if reading:
                    region, pixels = reading.popleft()
                    try:
                        sight = pixels.result()
                        # Of a neighbour that is damaged nothing is kept: then the region is done by itself.
                        if seams and sight.computed != region.decoded and not seams.has_rest(region):
                            sight = task.read(region)
                    except SlideError as error:
                        unreadable = unreadable or error
                        continue
                    maps = task.predict(region, sight)
                    if seams and sight.computed != region.decoded:
                        seams.fill(region, maps)
                    if seams and not sight.damage:
                        seams.keep(region, maps)
                    decoding.append((region, decode_pool.submit(decode, region, sight, maps)))
                    del sight, maps, pixels
                elif not decoding:
                    break
                # The oldest is waited for only where its room is needed, or nothing else is left to do.
                while decoding and (
                    decoding[0][1].done() or not reading or len(reading) + len(decoding) >= in_flight
                ):
                    region, result = decoding.popleft()
                    try:
                        nuclei = result.result()
                    except SlideError as error:  # read again with a larger halo
                        unreadable = unreadable or error
                        continue
                    yield region, nuclei
        finally:
            read_pool.shutdown(wait=False, cancel_futures=True)
            decode_pool.shutdown(wait=False, cancel_futures=True)
    if unreadable is not None:
        raise unreadable


@dataclass(frozen=True)
class Sight:
    """What is seen of a region: pixels of a window of the slide, and which tiles the network needs.

    The tiles make maps of ``computed``; those of the rest of the region are known. ``damage`` is what cannot
    be read and is white, in level-0 pixels.
    """

    window: Window
    image: NDArray[np.uint8]
    tiles: list[Tile]
    computed: Window
    damage: list[Part]


@dataclass(frozen=True)
class RegionTask:
    """What is done with one region, stage by stage."""

    slide: Slide
    layout: Plan
    engine: Engine
    batch: int
    stages: Stages
    area: Area | None = None
    allow_unreadable: bool = False

    def read(self, region: Region, computed: Window | None = None, *, first: bool = False) -> Sight:
        """The pixels that are needed; others of the window may be left white.

        Args:
            region: the region.
            computed: the part of ``region.decoded`` whose maps are to be computed; None: all.
            first: the network's first tile shall be the largest, so that the engine gets its memory once.
        """
        computed = computed or region.decoded
        window, scale, bundle = region.read, self.layout.scale, self.engine.bundle
        stride, cell_px, least = bundle.stride_px, CPU_CELL_PX, 0
        if self.engine.device != "cpu":  # a new shape costs a GPU a hundred megapixels' time
            cell_px = least = bundle.tile_px
        elif first:  # as large as what a region sees that shares nothing
            side = max(max(region.read.size) for region in self.layout.regions)
            least = min(bundle.tile_px, -(-side // stride) * stride)
        window = window.at_least(least, align_px=stride, within=self.layout.slide)
        with self.stages.timed("read", window.area):
            # At the slide's end the last stride is not whole.
            whole = window.grown(0, align_px=stride, within=Window(0, 0, 1 << 40, 1 << 40))
            wanted = self._wanted
            tiles = cover(computed, whole, bundle, wanted=wanted if self.area else None, cell_px=cell_px)
            if first and tiles:
                tile = tiles[0]
                seen = tile.seen.at_least(least, align_px=stride, within=whole)
                if seen.area < 1.5 * tile.seen.area:
                    tiles[0] = replace(tile, seen=seen)
            known = [
                Window(region.decoded.top, region.decoded.left, computed.top, region.decoded.right),
                Window(computed.top, region.decoded.left, computed.bottom, computed.left),
            ]
            parts = [
                (part.left - window.left, part.top - window.top, part.width, part.height)
                for part in [*(tile.seen for tile in tiles), *filter(wanted, known)]
            ]
            left, top = window.left * scale, window.top * scale
            try:
                image = self.slide.read_scaled(left, top, window.width, window.height, scale, parts=parts)
            except SlideError:
                if first:  # the damage may lie where only the larger tile sees
                    return self.read(region, computed)
                if not self.allow_unreadable:
                    raise
                if computed != region.decoded:
                    return self.read(region)
                return self._read_around_damage(region, window, tiles)
        return Sight(window, image, tiles, computed, [])

    def _read_around_damage(self, region: Region, window: Window, tiles: list[Tile]) -> Sight:
        """The same, where it cannot all be read; tiles overlap, so the damage is that of their kept parts."""
        scale, damage = self.layout.scale, list[Part]()
        image = np.full((window.height, window.width, 3), WHITE, np.uint8)
        for tile in tiles:
            found = list[Part]()
            seen = tile.seen.within(window)
            place = seen.shifted(-window.top, -window.left)
            view = image[place.top : place.bottom, place.left : place.right]
            view[...] = self.slide.read_around_damage(
                seen.left * scale,
                seen.top * scale,
                view.shape[1],
                view.shape[0],
                scale,
                fill=WHITE,
                damage=found,
            )
            damage += inside(found, tile.kept, scale)
        return Sight(window, image, tiles, region.decoded, damage)

    def predict(self, region: Region, sight: Sight) -> Maps:
        """The network's maps over ``region.decoded``."""
        pixels = sum(tile.seen.area for tile in sight.tiles)
        corner = sight.window.top, sight.window.left
        batch = self.batch * len(self.engine.device.split(","))  # for each of the engine's GPUs
        with self.stages.timed("network", pixels):
            return predict_maps(
                self.engine, sight.image, sight.tiles, region.decoded, corner=corner, batch=batch
            )

    def decode(self, region: Region, sight: Sight, maps: Maps) -> Nuclei:
        """The nuclei that the region owns; ``meta["oversized"]`` holds the ids of those that may be cut.

        ``meta["unreadable"]`` holds what of the region was taken for empty, (x, y, width, height) in level-0
        pixels. Where a nucleus reaches past the halo, the region is done again with a larger one.
        """
        decoded = self._decode(region, sight, maps, threads=min(DECODE_THREADS, self.engine.threads))
        halo_px = self.engine.bundle.halo_px
        for factor in HALO_FACTORS:
            if not decoded.oversized:
                break
            region = self.layout.with_halo(region, factor * halo_px, self.engine.bundle)
            sight = self.read(region)
            decoded = self._decode(region, sight, self.predict(region, sight))
        nuclei = decoded.nuclei
        if self.area is not None:
            nuclei = nuclei[self.area.contains(nuclei.x, nuclei.y)]
        oversized = sorted(decoded.oversized.intersection(nuclei.id.tolist()))
        unreadable = inside(sight.damage, region.owned, self.layout.scale)
        return replace(nuclei, meta={"oversized": oversized, "unreadable": unreadable})

    def _decode(self, region: Region, sight: Sight, maps: Maps, *, threads: int = 1) -> Decoded:
        layout, window = self.layout, region.decoded
        row, col = window.top - sight.window.top, window.left - sight.window.left
        with self.stages.timed("decode", window.area):
            return decode_region(
                maps,
                sight.image[row : row + window.height, col : col + window.width],
                region,
                self.engine.bundle,
                scale=layout.scale,
                mpp=layout.mpp,
                slide=layout.slide,
                threads=threads,
            )

    def _wanted(self, part: Window) -> bool:
        """Whether a part of the slide can hold pixels of a wanted nucleus."""
        scale, halo = self.layout.scale, self.engine.bundle.halo_px
        return bool(part.area) and (
            self.area is None
            or self.area.any_in(
                (part.left - halo) * scale,
                (part.top - halo) * scale,
                (part.width + 2 * halo) * scale,
                (part.height + 2 * halo) * scale,
            )
        )
