"""Files that are damaged, mislabelled or made to exhaust memory, and what must become of them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from nucfast.engine import load_bundle
from nucfast.errors import BundleError, NucfastError
from nucfast.slide import open_slide
from tiny_model import write_tiny


def seeds(folder: Path) -> list[bytes]:
    """Small valid files of every kind that is read here."""
    rows, cols = np.mgrid[:70, :90]
    image = np.dstack([rows * 3, cols * 2, rows + cols]).astype(np.uint8)
    files = []
    for options in (
        {"compression": "jpeg", "tile": (32, 32)},
        {"compression": "jpeg2000", "tile": (32, 32)},
        {"compression": "lzw", "tile": (32, 32)},
        {"compression": "zlib", "tile": (32, 32), "bigtiff": True, "byteorder": ">"},
        {"tile": (32, 32), "photometric": "rgb", "planarconfig": "separate"},
        {"compression": "zlib", "ome": True},
    ):
        path = folder / "seed.tif"
        planar = options.get("planarconfig") == "separate"
        tifffile.imwrite(
            path, np.moveaxis(image, -1, 0) if planar else image, **({"photometric": "rgb"} | options)
        )
        files.append(path.read_bytes())
    for kind in ("PNG", "JPEG", "BMP", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


def bombs() -> dict[str, bytes]:
    """Small files that promise, or unpack to, more than any memory."""
    side = 2**31 - 1
    tags = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]
    found = {}
    for name, extra in {
        "huge.tif": [(273, 4, 1, 200), (278, 4, 1, side), (279, 4, 1, 100)],
        "huge-tiles.tif": [
            (322, 4, 1, side - 15),
            (323, 4, 1, side - 15),
            (324, 4, 1, 200),
            (325, 4, 1, 100),
        ],
        "many-tiles.tif": [(322, 4, 1, 16), (323, 4, 1, 16), (324, 4, 2**30, 200), (325, 4, 2**30, 200)],
        "many-values.tif": [(270, 2, 2**31 - 1, 200), (273, 4, 1, 200), (278, 4, 1, side), (279, 4, 1, 100)],
    }.items():
        entries = sorted(tags + extra)
        directory = struct.pack("<H", len(entries))
        directory += b"".join(
            struct.pack("<HHI", tag, kind, count) + struct.pack("<I", value)
            for tag, kind, count, value in entries
        )
        found[name] = b"II*\0" + struct.pack("<I", 8) + directory + bytes(400)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(2**24))
    found["bomb.png"] = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed * 8) + chunk(b"IEND", b"")
    )
    return found | tile_bombs()


def tile_bombs() -> dict[str, bytes]:
    """Tiled TIFFs of a few kB whose tiles, of 256 x 256, state that they are far larger."""
    gray = np.full((256, 256, 3), 128, np.uint8)

    def larger(data: bytes, layout: str) -> bytes:
        return data.replace(struct.pack(layout, 256, 256), struct.pack(layout, 12000, 12000))

    found = {}
    for name, compression, tile in (
        ("jpeg-tiles.tif", 7, larger(imagecodecs.jpeg8_encode(gray), ">HH")),
        ("aperio-tiles.svs", 33005, larger(imagecodecs.jpeg2k_encode(gray, codecformat="j2k"), ">II")),
        ("jpeg2000-tiles.tif", 34712, larger(imagecodecs.jpeg2k_encode(gray, codecformat="j2k"), ">II")),
    ):
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            iter([tile] * 16),
            shape=(1024, 1024, 3),
            dtype=np.uint8,
            tile=(256, 256),
            photometric="rgb",
            compression=compression,
            description="Aperio x|MPP = 0.5",
            metadata=None,
        )
        found[name] = file.getvalue()
    return found


def damaged(data: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    """``data`` with edits at shares of its length: "flip" a bit, "cut" the rest off, "set" four bytes."""
    for kind, share, value in edits:
        at = int(share * (len(data) - 1)) if data else 0
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :]
        elif kind == "set":
            data = data[:at] + struct.pack("<I", value % 2**32) + data[at + 4 :]
    return data


def peak_kb() -> int:
    """The most memory this process held since :func:`forget_peak`."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def forget_peak() -> None:
    """Count peaks from here on: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def bundle_files(folder: Path) -> dict[str, bytes]:
    """The files of a small valid bundle, which is written to ``folder``."""
    write_tiny(folder)
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def damaged_bundle(files: dict[str, bytes], edits: list[tuple[str, float, int]], target: str | None) -> bytes:
    """A zipped bundle with edits in the file ``target``, or in the archive itself."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in files.items():
            zipped.writestr(name, damaged(data, edits) if name == target else data)
    return damaged(archive.getvalue(), edits) if target is None else archive.getvalue()


def check_slide(path: Path) -> str:
    """Open and read: "read", or the one-line error that names the file. Anything else is a failure."""
    try:
        with open_slide(path, mpp=0.5) as slide:
            width, height = slide.dimensions
            for x, y in ((0, 0), (width - 40, height - 40), (width // 2, height // 2)):
                for mpp in (0.5, 1.0, 1.3):
                    pixels = slide.read(x, y, 48, 48, mpp)
                    assert pixels.shape == (48, 48, 3)
            return "read"
    except NucfastError as error:
        message = str(error)
        assert str(path) in message, message
        assert "\n" not in message, message
        return message


def check_bundle(path: Path) -> None:
    """Load it: a bundle, or the one-line error that names the file. Anything else is a failure."""
    try:
        load_bundle(path).model_bytes()
    except BundleError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
