"""From a path or an array to a slide: which backend reads it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import SlideError, one_line
from nucfast.slide.base import Slide
from nucfast.slide.inputs import find_slides
from nucfast.slide.mpp import check_flag


def open_slide(source: str | os.PathLike[str] | NDArray[np.uint8], *, mpp: float | None = None) -> Slide:
    """Open a slide, a plain image or an array.

    Args:
        source: a file of any format OpenSlide reads, TIFF or OME-TIFF (8-bit RGB or grey), PNG, JPEG, BMP,
            WebP; or a uint8 array of shape (H, W, 3), (H, W) or (H, W, 4), which is borrowed.
        mpp: micrometres per pixel of level 0, overriding what the file says. Required for files that say
            nothing; an array may go without, and then has ``slide.mpp`` None.

    Raises:
        TypeError, ValueError: ``source`` is an array of another kind, or ``mpp`` is not positive.
        SlideError: the file is missing, damaged, of another format, or of unknown resolution. The message is
            one line: the file, the reason, the remedy.
    """
    check_flag(mpp)
    if not isinstance(source, (str, os.PathLike)):
        from nucfast.slide.raster import array_slide

        return array_slide(source, mpp=mpp)
    return _open_file(Path(source), mpp)


def _open_file(path: Path, mpp: float | None) -> Slide:
    from nucfast.slide.raster import image_slide, sniff_image
    from nucfast.slide.tiff import is_tiff
    from nucfast.slide.vendor import OpenSlideSlide, detect_vendor

    header = _header(path)
    vendor = detect_vendor(path)
    if is_tiff(header):
        return _open_tiff(path, vendor, mpp)
    # Before the plain formats: a MIRAX file is a JPEG that stands for a folder.
    if vendor is not None:
        return OpenSlideSlide(path, mpp=mpp)
    if path.suffix.lower() == ".mrxs":
        raise SlideError(f"{path}: MIRAX file without its folder {path.stem}/; copy both")
    plain = sniff_image(header)
    if plain is not None:
        return image_slide(path, plain, mpp=mpp)
    raise SlideError(
        f"{path}: not a slide or image; expected a format of OpenSlide, TIFF, PNG, JPEG, BMP or WebP: "
        "remove it from the inputs, or export it again"
    )


def _open_tiff(path: Path, vendor: str | None, mpp: float | None) -> Slide:
    import tifffile

    from nucfast.slide.tiff import read_here, tiff_slide
    from nucfast.slide.vendor import OpenSlideSlide

    # Its warnings go to the log that an application sets up and not, as is Python's default, to stderr: what
    # matters to the user is in our one line.
    log = logging.getLogger("tifffile")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    try:
        with tifffile.TiffFile(path) as tif:
            if read_here(path, tif, vendor):
                return tiff_slide(path, tif, mpp=mpp)
    except SlideError:
        raise
    except Exception as error:  # tifffile meets damage with whatever its parsing runs into
        if vendor is None:
            raise SlideError(f"{path}: damaged TIFF ({one_line(error)}); copy it again") from error
    return OpenSlideSlide(path, mpp=mpp)


def _header(path: Path) -> bytes:
    """The first bytes of a file that can be read; for a folder, what is wrong with it."""
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            find_slides([path])
            raise SlideError(f"{path}: is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise SlideError(f"{path}: is no file but a device, pipe or socket; name a file")
        with path.open("rb") as file:
            header = file.read(16)
    except FileNotFoundError:
        raise SlideError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not header:
        raise SlideError(f"{path}: empty file; copy it again")
    return header
