"""The size that a compressed tile states, read before it is decoded: decoders allocate what it says.

A few hundred bytes of JPEG can promise 65,500 pixels on each side, and hold 13 GB once decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from nucfast.slide.jpeg2000 import APERIO, CODESTREAM

Size = tuple[int, int]
"""Width and height in pixels."""

_JP2 = b"\0\0\0\x0cjP  "
_MAX_COMPONENTS = 4


def jpeg_size(data: bytes) -> Size | None:
    """Size by the frame header of a JPEG; None if it has none, as a stream of mere tables, or several.

    Markers are looked for as libjpeg does, which passes over what lies between two segments.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    at, size = 2, None
    while (at := data.find(b"\xff", at)) >= 0 and at + 9 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:  # no marker, or one without a segment
            at += 2
            continue
        if marker in (0xD9, 0xDA):  # the end, or pixels
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if size is not None:
                return None
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = width, height
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return size


def jpeg2000_size(data: bytes) -> Size | None:
    """Size of a JPEG 2000 codestream, bare or in a JP2 file; None if it has none or too many components."""
    at = 0
    if data.startswith(_JP2):
        while data[at + 4 : at + 8] != b"jp2c":
            length = int.from_bytes(data[at : at + 4], "big")
            if length < 8:
                return None
            at += length
        at += 8
    if data[at : at + 4] != CODESTREAM or at + 42 > len(data):
        return None
    # ISO/IEC 15444-1, A.5.1: the size of the reference grid, and where the image begins on it.
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    (components,) = struct.unpack_from(">H", data, at + 40)
    return (right - left, bottom - top) if components <= _MAX_COMPONENTS else None


def webp_size(data: bytes) -> Size | None:
    """Size of a WebP image."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    bits = int.from_bytes(data[21:25] if kind == b"VP8L" else data[26:30], "little")
    if kind == b"VP8L":
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return (bits & 0x3FFF, bits >> 16 & 0x3FFF) if kind == b"VP8 " else None


def png_size(data: bytes) -> Size | None:
    """Size of a PNG image."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 24:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


# By TIFF's number of the compression; others unpack into as much memory as a tile takes, but for UNSTATED.
STATED_BY: dict[int, Callable[[bytes], Size | None]] = {
    **dict.fromkeys((6, 7, 33007, 34892), jpeg_size),
    **dict.fromkeys((*APERIO, 33004, 34712), jpeg2000_size),
    **dict.fromkeys((34927, 50001), webp_size),
    34933: png_size,
}

# LERC, JPEG XR and JPEG XL: what they take is not told by a header that would be read here.
UNSTATED = frozenset((22610, 34887, 34934, 50002, 52546))


def check_size(data: bytes, compression: int, width: int, height: int) -> None:
    """Raise ValueError unless a compressed tile states a size of at most ``width`` x ``height``."""
    stated = STATED_BY.get(compression)
    if stated is None:
        return
    size = stated(data)
    if size is None or not (0 <= size[0] <= width and 0 <= size[1] <= height):
        found = "no size" if size is None else f"{size[0]} x {size[1]} pixels"
        raise ValueError(f"it states {found}, expected {width} x {height}")
