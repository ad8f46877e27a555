"""Pyramidal, JPEG-tiled TIFF in Aperio's layout, which every program for slides opens with the right mpp."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import OutputError
from nucfast.slide.base import Slide
from nucfast.slide.mpp import Resolution
from nucfast.slide.raster import ArraySlide

# read(x, y, width, height) -> (height, width, 3) uint8, always inside the image.
Reader = Callable[[int, int, int, int], NDArray[np.uint8]]

# Readers know the layout by the first word.
_DESCRIPTION = "Aperio Image Library (layout), written by nucfast"
_THUMBNAIL_PX = 768
_SUBSAMPLING = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}


def write_slide(
    path: str | os.PathLike[str],
    image: NDArray[np.uint8] | Slide | Reader,
    *,
    mpp: float,
    size: tuple[int, int] | None = None,
    tile_px: int = 256,
    quality: int = 90,
    subsampling: str = "4:2:0",
    levels: Sequence[int] | None = None,
) -> None:
    """Write a slide that OpenSlide, QuPath and this package open.

    Tiles are read, reduced and encoded one after the other, so an image larger than memory can be written
    from a slide or a function; the coarser levels wait in unnamed temporary files beside ``path``. The file
    appears under its name only when it is complete.

    Args:
        path: the file; ``.svs`` or ``.tif``.
        image: (H, W, 3) uint8 RGB; or a slide, of which level 0 is taken; or a function
            ``read(x, y, width, height)`` that returns such pixels, called once per tile, row by row.
        mpp: micrometres per pixel.
        size: (width, height) of what a function reads; only then.
        tile_px: side of the tiles, a multiple of 16.
        quality: of JPEG, 1 to 100.
        subsampling: of the colours: "4:4:4" (none), "4:2:2" or "4:2:0".
        levels: downsampling factors, 1 first, each a multiple of the one before in a step that divides
            ``tile_px``. Default: 1, 4, 16, ... until a level fits four tiles.

    Raises:
        TypeError, ValueError: an argument is not as above.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    read, width, height = _reader(image, size)
    factors = _factors(levels, width, height, tile_px)
    if not (math.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp: expected a positive number of um per pixel, got {mpp}")
    if tile_px < 16 or tile_px % 16:
        raise ValueError(f"tile_px: expected a positive multiple of 16, got {tile_px}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}")
    if subsampling not in _SUBSAMPLING:
        raise ValueError(f"subsampling: expected one of {', '.join(_SUBSAMPLING)}, got {subsampling!r}")

    import imagecodecs

    def encode(pixels: NDArray[np.uint8]) -> bytes:
        chroma = subsampling.replace(":", "")
        return bytes(
            imagecodecs.jpeg8_encode(
                pixels, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling=chroma
            )
        )

    # A leading dot: a half-written file is hidden from whoever searches the folder for slides.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _write(
            unfinished,
            read,
            (width, height),
            factors,
            mpp=mpp,
            tile_px=tile_px,
            encode=encode,
            quality=quality,
            subsampling=subsampling,
        )
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder and its free space"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _array_reader(pixels: NDArray[np.uint8]) -> Reader:
    return lambda x, y, width, height: pixels[y : y + height, x : x + width]


def _reader(
    image: NDArray[np.uint8] | Slide | Reader, size: tuple[int, int] | None
) -> tuple[Reader, int, int]:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"image: expected uint8, got {image.dtype}")
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"image: expected shape (H, W, 3) with pixels, got {image.shape}")
        chosen, found = _array_reader(image), (image.shape[1], image.shape[0])
    elif isinstance(image, Slide):
        chosen, found = partial(image.read_level, 0), image.dimensions
    elif callable(image):
        if size is None or min(size) < 1:
            raise ValueError(f"size: expected (width, height) of what image reads, got {size}")
        return image, *size
    else:
        raise TypeError(f"image: expected an array, a slide or a function, got {type(image).__name__}")
    if size is not None and tuple(size) != found:
        raise ValueError(f"size: expected {found} or None, got {size}")
    return chosen, *found


def _factors(levels: Sequence[int] | None, width: int, height: int, tile_px: int) -> list[int]:
    if levels is None:
        factors = [1]
        while max(width, height) / factors[-1] > 2 * tile_px:
            factors.append(4 * factors[-1])
        return factors
    factors = list(levels)
    steps = list(pairwise(factors))
    if factors[:1] != [1] or not all(b > a and b % a == 0 and tile_px % (b // a) == 0 for a, b in steps):
        raise ValueError(
            f"levels: expected 1 and then multiples in steps that divide tile_px = {tile_px}, got {factors}"
        )
    return factors


def _write(
    path: Path,
    read: Reader,
    size: tuple[int, int],
    factors: list[int],
    *,
    mpp: float,
    tile_px: int,
    encode: Callable[[NDArray[np.uint8]], bytes],
    quality: int,
    subsampling: str,
) -> None:
    import tifffile

    width, height = size
    sizes = [(-(-width // factor), -(-height // factor)) for factor in factors]
    # JPEG tiles are smaller than their pixels at any quality one would use.
    big = sum(w * h for w, h in sizes) * 3 > 2**32 - 2**26
    with tifffile.TiffWriter(path, bigtiff=big) as tif:
        for index, (w, h) in enumerate(sizes):
            coarser, ratio = None, 1
            if index + 1 < len(sizes):
                coarser, ratio = (
                    _scratch(path.parent, *sizes[index + 1]),
                    factors[index + 1] // factors[index],
                )
            note = "" if index == 0 else f" -> {w}x{h}"
            tif.write(
                _tiles(read, w, h, tile_px, encode, coarser, ratio),
                shape=(h, w, 3),
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=_SUBSAMPLING[subsampling],
                resolution=(1e4 / (mpp * factors[index]), 1e4 / (mpp * factors[index])),
                resolutionunit="CENTIMETER",
                description=(
                    f"{_DESCRIPTION}\r\n{width}x{height} [0,0 {width}x{height}] ({tile_px}x{tile_px}){note} "
                    f"JPEG/YCC Q={quality}|AppMag = {10 / mpp:.3g}|MPP = {mpp:.10g}"
                ),
                metadata=None,
                software=False,
            )
            if coarser is None:
                break
            read = _array_reader(coarser)
            if index == 0:
                # Aperio's second image is a thumbnail in strips, and readers skip whatever is there.
                thumbnail = ArraySlide(coarser, path=None, resolution=Resolution(None, ""), properties={})
                tif.write(
                    thumbnail.thumbnail(_THUMBNAIL_PX),
                    photometric="rgb",
                    compression="jpeg",
                    compressionargs={"level": quality},
                    description=f"{_DESCRIPTION}\r\nthumbnail",
                    metadata=None,
                    software=False,
                )


def _scratch(folder: Path, width: int, height: int) -> NDArray[np.uint8]:
    """An image on the disk, in a file without a name that vanishes with the array, whatever happens."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=(height, width, 3))


def _tiles(
    read: Reader,
    width: int,
    height: int,
    tile_px: int,
    encode: Callable[[NDArray[np.uint8]], bytes],
    coarser: NDArray[np.uint8] | None,
    ratio: int,
) -> Iterator[bytes]:
    """The encoded tiles of one level, row by row; the next level is filled on the way."""
    from PIL import Image

    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            w, h = min(tile_px, width - x), min(tile_px, height - y)
            pixels = read(x, y, w, h)
            if pixels.shape != (h, w, 3) or pixels.dtype != np.uint8:
                raise ValueError(
                    f"image: expected to read uint8 {(h, w, 3)}, got {pixels.dtype} {pixels.shape}"
                )
            if coarser is not None:
                reduced = np.asarray(Image.fromarray(pixels).reduce(ratio))
                left, top = x // ratio, y // ratio
                coarser[top : top + reduced.shape[0], left : left + reduced.shape[1]] = reduced
            if (h, w) != (tile_px, tile_px):
                # Repeating the edge keeps its JPEG blocks free of a step that would ring into the image.
                pixels = np.pad(pixels, ((0, tile_px - h), (0, tile_px - w), (0, 0)), mode="edge")
            yield encode(np.ascontiguousarray(pixels))
