"""Aperio's JPEG 2000 tiles: bare codestreams, whose colours the TIFF's compression tells.

They are decoded at full size and averaged. JPEG 2000 could stop at a half, but that is no average: its
samples lie on every second pixel, half a pixel beside the middle of the square that an output pixel covers,
and differ from the average by two grey levels (H&E).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

APERIO = APERIO_YCBCR, APERIO_RGB = 33003, 33005

_HEAD_BYTES = 64
CODESTREAM = b"\xff\x4f\xff\x51"  # its start, and its sizes


def is_aperio_jpeg2000(page: Any) -> bool:
    """Whether the tiles of a TIFF page are JPEG 2000 as Aperio writes it."""
    return int(page.compression) in APERIO


def decodes_here(path: Path, page: Any) -> bool:
    """Whether such tiles have three components of 8 bits, all of full size, by the first that is stored.

    Colours of half size, which some scanners write, are left to OpenSlide.
    """
    first = next((at for at, size in zip(page.dataoffsets, page.databytecounts, strict=False) if size), None)
    if first is None:
        return True
    with path.open("rb") as file:
        file.seek(first, os.SEEK_SET)
        head = file.read(_HEAD_BYTES)
    # ISO/IEC 15444-1, A.5.1: the number of components, then for each its bits - 1 and its steps in x and y.
    return head.startswith(CODESTREAM) and head[40:51] == b"\0\3" + 3 * b"\x07\1\1"


def decode(data: bytes, compression: int) -> NDArray[np.uint8]:
    """A tile as (H, W, 3) RGB.

    Raises:
        Exception: of imagecodecs, if the data are damaged.
    """
    import imagecodecs
    from PIL import Image

    pixels: NDArray[np.uint8] = imagecodecs.jpeg2k_decode(data, numthreads=1)
    if compression == APERIO_RGB:
        return pixels
    return np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
