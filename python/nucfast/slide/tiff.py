"""TIFF: plain, tiled and pyramidal, OME-TIFF, and Aperio's SVS with tiles of JPEG or JPEG 2000.

tifffile reads the structure once; after that a read is ``pread`` of whole tiles and their decoding, which
shares nothing between threads. OpenSlide would take six times as long per tile, and shifts the coarser levels
by fractions of a pixel where their size was rounded.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import SlideError, one_line
from nucfast.slide import jpeg2000
from nucfast.slide.base import WHITE, Part, Slide, make_levels
from nucfast.slide.jpeg import ReducedJpeg, average, reduced_jpeg
from nucfast.slide.mpp import (
    Candidate,
    Resolution,
    aperio_candidates,
    aperio_fields,
    number,
    ome_candidates,
    resolve_mpp,
    tiff_tag_candidates,
)
from nucfast.slide.raster import ArraySlide, check_whole, to_rgb
from nucfast.slide.stated import STATED_BY, UNSTATED, check_size, jpeg_size

_MINISWHITE, _MINISBLACK, _RGB, _YCBCR = 0, 1, 2, 6
_SEPARATE = 2
_UNSPECIFIED, _PREMULTIPLIED = 0, 1
_JPEG = 7
_PHOTOMETRIC_NAMES = {3: "palette", 4: "mask", 5: "CMYK", 8: "CIELab", 9: "ICCLab"}

# A tile is decoded as a whole; no scanner writes more than 4096 x 4096.
_MAX_TILE_PX = 2**26

# Decoded tiles that are kept for the next read: those of one region of 2048 px.
_RECENT_BYTES = 20 * 2**20


@dataclass(frozen=True)
class _Tiles:
    """One level's tiles: where they lie in the file and how to decode one."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    planes: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    decode: Any
    tables: dict[str, bytes]
    jpeg: ReducedJpeg | None
    compression: int
    to_rgb: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

    @cached_property
    def stored(self) -> NDArray[np.bool_]:
        """(down, across): which tiles the file holds; the others are white."""
        count = self.planes * self.across * self.down
        held = np.fromiter((size > 0 for size in self.sizes[:count]), bool, count)
        return np.asarray(held.reshape(self.planes, self.down, self.across).all(axis=0))

    @property
    def across(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def down(self) -> int:
        return -(-self.height // self.tile_height)

    def whole(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The decoded pixels of a tile, which damage may have left with another shape."""
        expected = (self.tile_height, self.tile_width, 3)
        if pixels.shape != expected:
            raise ValueError(f"expected {expected} pixels, got {pixels.shape}")
        return pixels


class TiffSlide(Slide):
    """A tiled TIFF whose tiles are decoded on demand."""

    def __init__(
        self, path: Path, levels: list[_Tiles], *, resolution: Resolution, properties: dict[str, str]
    ) -> None:
        super().__init__(
            path=path,
            levels=make_levels([(tiles.width, tiles.height) for tiles in levels]),
            resolution=resolution,
            properties=properties,
        )
        self._tiles = levels
        self._recent: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._recent_lock = threading.Lock()
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        # Also where the caller forgets to close.
        self._close_file = weakref.finalize(self, os.close, self._fd)

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See :meth:`Slide.read_level`."""
        out = np.empty((height, width, 3), np.uint8)
        self.read_average(level, x, y, 1, out)
        return out

    def read_average(
        self,
        level: int,
        x: int,
        y: int,
        factor: int,
        out: NDArray[np.uint8],
        parts: Sequence[Part] | None = None,
    ) -> bool:
        """See :meth:`Slide.read_average`: each tile is decoded once, averaged, and copied to its place."""
        tiles = self._tiles[level]
        if x % factor or y % factor or tiles.tile_width % factor or tiles.tile_height % factor:
            return False
        height, width, _ = out.shape
        tile_width, tile_height = tiles.tile_width // factor, tiles.tile_height // factor
        x, y = x // factor, y // factor
        first_row, first_col = y // tile_height, x // tile_width
        rows, cols = -(-(y + height) // tile_height) - first_row, -(-(x + width) // tile_width) - first_col
        needed = np.full((rows, cols), parts is None)
        for part_x, part_y, part_width, part_height in parts or ():
            in_rows = _tiles_under(y + part_y, part_height, tile_height, first_row)
            needed[in_rows, _tiles_under(x + part_x, part_width, tile_width, first_col)] = True
        for row in range(rows):
            top = (first_row + row) * tile_height
            y0, y1 = max(y, top), min(y + height, top + tile_height)
            for col in range(cols):
                left = (first_col + col) * tile_width
                x0, x1 = max(x, left), min(x + width, left + tile_width)
                tile = None
                if needed[row, col]:
                    index = (first_row + row) * tiles.across + first_col + col
                    tile = self._recent_tile(level, index, factor)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = (
                    WHITE if tile is None else tile[y0 - top : y1 - top, x0 - left : x1 - left]
                )
        return True

    def stores(self, level: int, x: int, y: int, width: int, height: int) -> bool:
        """See :meth:`Slide.stores`."""
        tiles = self._tiles[level]
        rows = _tiles_under(y, height, tiles.tile_height, 0)
        return bool(tiles.stored[rows, _tiles_under(x, width, tiles.tile_width, 0)].any())

    def _recent_tile(self, level: int, index: int, factor: int) -> NDArray[np.uint8] | None:
        """``_tile``, kept for a while: a region and the next one overlap. For reading only."""
        key = level, index, factor
        with self._recent_lock:
            tile = self._recent.get(key)
            if tile is not None:
                self._recent.move_to_end(key)
                return tile
        tile = self._tile(self._tiles[level], index, factor)
        if tile is not None and tile.nbytes <= _RECENT_BYTES // 64:
            with self._recent_lock:
                self._recent[key] = tile
                while len(self._recent) * tile.nbytes > _RECENT_BYTES:
                    self._recent.popitem(last=False)
        return tile

    def _tile(self, tiles: _Tiles, index: int, factor: int) -> NDArray[np.uint8] | None:
        """One decoded tile as RGB, averaged over squares of ``factor``; None where none is stored."""
        planes = []
        for plane in range(tiles.planes):
            at = index + plane * tiles.across * tiles.down
            if tiles.sizes[at] == 0:
                return None
            try:
                data = os.pread(self._fd, tiles.sizes[at], tiles.offsets[at])
                check_size(data, tiles.compression, tiles.tile_width, tiles.tile_height)
                if tiles.jpeg is not None and factor > 1:
                    small = tiles.jpeg.decode(data, factor)
                    if small is not None:
                        return small
                if tiles.compression in jpeg2000.APERIO:
                    return average(tiles.whole(jpeg2000.decode(data, tiles.compression)), factor)
                pixels = tiles.decode(data, at, **tiles.tables)[0]
            except Exception as error:  # imagecodecs has an exception class for every codec
                raise SlideError(
                    f"{self.path}: tile {at} cannot be decoded ({one_line(error)}); copy the file again"
                ) from error
            planes.append(pixels[0])
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        return average(tiles.to_rgb(pixels), factor)

    def _release(self) -> None:
        self._close_file()


def _tiles_under(start: int, size: int, tile_size: int, first: int) -> slice:
    """The tiles, counted from ``first``, that hold any of [start, start + size)."""
    return slice(max(0, start // tile_size - first), max(0, -(-(start + size) // tile_size) - first))


def is_tiff(header: bytes) -> bool:
    """Whether a file starting with ``header`` is a TIFF or BigTIFF of either byte order."""
    return header[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_here(path: Path, tif: Any, vendor: str | None) -> bool:
    """Whether a parsed TIFF, of the vendor OpenSlide sees in it, is read by this module and not by OpenSlide.

    OME comes first: OpenSlide would open it as a plain TIFF, without levels or resolution.
    """
    if tif.is_ome or vendor in (None, "generic-tiff"):
        return True
    return vendor == "aperio" and all(
        page.compression == _JPEG or (jpeg2000.is_aperio_jpeg2000(page) and jpeg2000.decodes_here(path, page))
        for page in tif.pages
        if page.is_tiled
    )


def tiff_slide(path: Path, tif: Any, *, mpp: float | None) -> Slide:
    """A slide from a parsed ``tifffile.TiffFile``.

    Raises:
        SlideError: not 8-bit RGB or grey, a compression that is not read, several images of one size,
            truncated, or no resolution stated.
    """
    pages = _images(tif)
    if not pages or _chain_is_cut(tif):
        raise SlideError(
            f"{path}: truncated TIFF, a directory lies beyond the end of the file; copy it again"
        )
    base = max(pages, key=lambda page: page.imagewidth * page.imagelength)
    size = (base.imagewidth, base.imagelength)
    twins = sum((page.imagewidth, page.imagelength) == size for page in pages)
    if twins > 1:
        raise SlideError(
            f"{path}: {twins} images of {size[0]} x {size[1]} (a stack or separate channels); "
            "export one plane as 8-bit RGB"
        )
    problem = _unsupported(base)
    if problem is not None:
        raise SlideError(f"{path}: {problem}; convert it to 8-bit RGB, best in JPEG tiles")
    resolution = _resolution(path, tif, base, mpp)
    properties = _properties(base)
    if not base.is_tiled:
        check_whole(path, *size)
        return ArraySlide(_decode_whole(path, base), path=path, resolution=resolution, properties=properties)
    coarser = [page for page in pages if _is_level_of(base, page)]
    coarser.sort(key=lambda page: -page.imagewidth)
    levels = [_tiles(path, page) for page in (base, *coarser)]
    return TiffSlide(path, levels, resolution=resolution, properties=properties)


def _images(tif: Any) -> list[Any]:
    """All pages and their SubIFDs, in the order of the file."""
    images = []
    for page in tif.pages:
        images.append(page)
        if page.subifds:
            images.extend(page.pages)
    return [page for page in images if page.imagewidth and page.imagelength]


def _chain_is_cut(tif: Any) -> bool:
    """Whether the last page points to another that is not in the file; tifffile only logs that."""
    layout, file = tif.tiff, tif.filehandle
    file.seek(tif.pages[-1].offset)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(tags * layout.tagsize, os.SEEK_CUR)
    (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    return bool(following >= file.size)


def _unsupported(page: Any) -> str | None:
    """Why the pixels cannot be taken as 8-bit RGB, None if they can."""
    if page.compression in UNSTATED:
        return f"pixels compressed as {page.compression.name}"
    if page.dtype != np.uint8 or page.bitspersample != 8:
        return f"{page.bitspersample}-bit {'integer' if page.sampleformat in (1, 2) else 'float'} pixels"
    if getattr(page, "imagedepth", 1) != 1:
        return f"a volume of {page.imagedepth} planes"
    photometric, samples = int(page.photometric), page.samplesperpixel
    if photometric in (_MINISWHITE, _MINISBLACK) and samples == 1:
        return None
    if photometric == _RGB and samples in (3, 4):
        return None
    if photometric == _YCBCR and samples == 3:
        known = page.compression == _JPEG or jpeg2000.is_aperio_jpeg2000(page)
        return None if known else "YCbCr colours without JPEG"
    kind = _PHOTOMETRIC_NAMES.get(photometric, "unknown" if samples <= 4 else "multichannel")
    return f"{kind} colours with {samples} samples per pixel"


def _conversion(page: Any) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """How decoded pixels, (H, W) or (H, W, samples), become RGB over white paper."""
    if int(page.photometric) == _MINISWHITE:
        return lambda pixels: to_rgb(255 - pixels)
    if page.samplesperpixel != 4:
        return to_rgb
    meaning = int(page.extrasamples[0]) if page.extrasamples else _UNSPECIFIED
    if meaning == _UNSPECIFIED:
        return lambda pixels: pixels[..., :3]
    if meaning == _PREMULTIPLIED:
        return lambda pixels: 255 - np.minimum(pixels[..., 3:] - pixels[..., :3], pixels[..., 3:])
    return to_rgb


def _is_level_of(base: Any, page: Any) -> bool:
    """Whether ``page`` is a coarser copy of ``base``: a label or macro image has another shape or layout."""
    same = ("photometric", "samplesperpixel", "dtype", "planarconfig")
    if page is base or not page.is_tiled or any(getattr(page, key) != getattr(base, key) for key in same):
        return False
    across, down = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
    # Sizes are rounded to whole pixels, which shows most in the smaller one.
    tolerance = 1.5 / min(page.imagewidth, page.imagelength)
    return bool(across > 1.2 and abs(across - down) <= tolerance * across)


def _tiles(path: Path, page: Any) -> _Tiles:
    """One level, checked against the length of the file: better at the start than after hours."""
    if page.tilewidth * page.tilelength > _MAX_TILE_PX:
        raise SlideError(
            f"{path}: tiles of {page.tilewidth} x {page.tilelength} pixels; write tiles of 256 to 1024"
        )
    _check_tables(path, page)
    tables = {}
    if page.compression == _JPEG and page.jpegtables is not None:
        tables["jpegtables"] = page.jpegtables
    tiles = _Tiles(
        width=page.imagewidth,
        height=page.imagelength,
        tile_width=page.tilewidth,
        tile_height=page.tilelength,
        planes=page.samplesperpixel if page.planarconfig == _SEPARATE else 1,
        offsets=page.dataoffsets,
        sizes=page.databytecounts,
        decode=page.decode,
        tables=tables,
        jpeg=reduced_jpeg(page),
        compression=int(page.compression),
        to_rgb=_conversion(page),
    )
    expected = tiles.across * tiles.down * tiles.planes
    complete = len(tiles.offsets) >= expected and len(tiles.sizes) >= expected
    end = max((at + size for at, size in zip(tiles.offsets, tiles.sizes, strict=False) if size), default=0)
    if not complete or end > path.stat().st_size:
        raise SlideError(f"{path}: truncated, tiles lie beyond the end of the file; copy it again")
    return tiles


def _check_tables(path: Path, page: Any) -> None:
    """Refuse JPEG tables that hold an image: a decoder would take its size for that of every tile."""
    if page.jpegtables is not None and jpeg_size(page.jpegtables) is not None:
        raise SlideError(f"{path}: damaged TIFF, its JPEG tables hold an image; copy or export it again")


def _decode_whole(path: Path, page: Any) -> NDArray[np.uint8]:
    try:
        _check_tables(path, page)
        rows = min(page.rowsperstrip, page.imagelength)
        with path.open("rb") as file:
            for at, size in zip(page.dataoffsets, page.databytecounts, strict=False):
                if size and page.compression in STATED_BY:
                    file.seek(at)
                    check_size(file.read(size), page.compression, page.imagewidth, rows)
        pixels = page.asarray(maxworkers=1)
    except SlideError:
        raise
    except Exception as error:  # imagecodecs has an exception class for every codec
        raise SlideError(
            f"{path}: damaged TIFF image ({one_line(error)}); copy or export it again"
        ) from error
    if page.samplesperpixel > 1 and page.planarconfig == _SEPARATE:
        pixels = np.moveaxis(pixels, 0, -1)
    return np.ascontiguousarray(_conversion(page)(pixels))


def _resolution(path: Path, tif: Any, base: Any, mpp: float | None) -> Resolution:
    candidates: list[Candidate] = []
    power = None
    if tif.is_ome:
        found, power = ome_candidates(tif.ome_metadata or "", width=base.imagewidth, height=base.imagelength)
        candidates += found
    fields = aperio_fields(base.description)
    candidates += aperio_candidates(fields)
    power = power or number(fields.get("AppMag"))
    tags = base.tags
    if "XResolution" in tags and "YResolution" in tags:
        x, y = (
            numerator / denominator if denominator else 0.0
            for numerator, denominator in (tags["XResolution"].value, tags["YResolution"].value)
        )
        candidates += tiff_tag_candidates(x, y, int(tags.valueof("ResolutionUnit", 2)))
    return resolve_mpp(path, flag=mpp, candidates=candidates, objective_power=power)


def _properties(base: Any) -> dict[str, str]:
    properties = {"nucfast.format": "TIFF"}
    for tag in ("Make", "Model", "Software", "DateTime", "ImageDescription"):
        if tag in base.tags:
            properties[f"tiff.{tag}"] = str(base.tags[tag].value)
    fields = aperio_fields(base.description)
    properties.update({f"aperio.{key}": value for key, value in fields.items()})
    return properties
