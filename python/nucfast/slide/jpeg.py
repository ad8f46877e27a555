"""JPEG tiles decoded straight to a half, a quarter or an eighth of their size.

libjpeg-turbo then computes fewer pixels from the same coefficients: a third of the time of decoding and
averaging, and within a third of a grey level of it on average (H&E at 4:2:0, quality 80).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.slide.stated import jpeg_size

_JPEG, _CONTIGUOUS, _RGB, _YCBCR = 7, 1, 2, 6
_START = b"\xff\xd8"

# An Adobe marker tells decoders whether the colours are RGB (0) or YCbCr (1), which in TIFF a tag does.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


@dataclass(frozen=True)
class ReducedJpeg:
    """How the JPEG tiles of one level are decoded.

    Attributes:
        width, height: of a tile, multiples of 8.
        head: what makes a whole JPEG file of an abbreviated one, between its start and the rest.
        ycbcr: how the TIFF says that colours are stored; else RGB.
    """

    width: int
    height: int
    head: bytes
    ycbcr: bool

    def decode(self, data: bytes, factor: int) -> NDArray[np.uint8] | None:
        """The tile as RGB, averaged over squares of ``factor``; None if this is no case for it."""
        import simplejpeg

        scale = math.gcd(factor, 8)
        own = data.find(_ADOBE[4:9], 0, 512)
        contradicts = own >= 0 and data[own + 11 : own + 12] != bytes([self.ycbcr])
        if scale == 1 or contradicts or not data.startswith(_START):
            return None
        whole = b"".join((_START, self.head, data[2:]))
        if jpeg_size(whole) != (self.width, self.height):
            return None
        height, width = self.height // scale, self.width // scale
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                whole, min_height=height, min_width=width, min_factor=scale
            )
        except ValueError:
            return None
        return average(pixels, factor // scale) if pixels.shape == (height, width, 3) else None


def reduced_jpeg(page: Any) -> ReducedJpeg | None:
    """The decoder for the tiles of a page, None if they are not plain colour JPEG."""
    photometric, width, height = int(page.photometric), page.tilewidth, page.tilelength
    if (
        page.compression != _JPEG
        or photometric not in (_RGB, _YCBCR)
        or (page.samplesperpixel, page.planarconfig) != (3, _CONTIGUOUS)
        or width % 8
        or height % 8
    ):
        return None
    tables = page.jpegtables[2:-2] if page.jpegtables else b""
    ycbcr = photometric == _YCBCR
    return ReducedJpeg(width, height, _ADOBE + bytes([ycbcr]) + tables, ycbcr)


def average(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """(H, W, 3) averaged over squares of ``factor``, which divides both."""
    from PIL import Image

    return pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))
