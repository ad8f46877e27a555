"""The overlay: a picture of the slide with every nucleus outlined in the colour of its class."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nucfast import _core
from nucfast.nuclei import Nuclei
from nucfast.output.writer import AtomicFile
from nucfast.slide import Slide

RGB = tuple[int, int, int]

COLORBLIND_SAFE: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""A palette that most people with colour blindness tell apart (Okabe & Ito, 2008), without its black."""

_UNCLASSIFIED_COLOR = (255, 255, 255)
_BLOCK_ROWS = 512  # of the picture, read at once
_FILL_BELOW_PX = 5  # nuclei smaller than this in the picture have no inside left to show: they are filled
_THICK_FROM_PX = 20  # from this size on a line of two pixels leaves enough of it


def write_overlay(
    path: str | Path,
    slide: Slide,
    nuclei: Nuclei | Iterable[Nuclei],
    *,
    max_px: int = 4096,
    palette: Sequence[RGB] | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Draw the nuclei on the slide as a PNG with a legend of classes and counts.

    What cannot be read of the slide is white. Where nuclei of several batches share a pixel of the picture,
    the later ones are drawn over the earlier.

    Args:
        path: the PNG file.
        slide: the slide the nuclei come from.
        nuclei: a table, or batches of it; classes may not differ between batches.
        max_px: the most that the picture's longest side may have. A larger slide is drawn downsampled, by a
            power of two of one of its levels, which is read ten times as fast as other sizes.
        palette: RGB of each class in the order of the scheme; None: the scheme's colours.
        check: called now and then while the slide is read; what it raises ends the drawing.

    Raises:
        ValueError: the palette is shorter than the scheme, or the batches differ in kind.
        OutputError: the file cannot be written.
    """
    width, height = slide.dimensions
    scale = 1 / _downsample(slide, max_px)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = np.empty((size[1], size[0], 3), np.uint8)
    for top in range(0, size[1], _BLOCK_ROWS):
        check()
        rows = min(_BLOCK_ROWS, size[1] - top)
        picture[top : top + rows] = slide.read_around_damage(
            0, top / scale, size[0], rows, 1 / scale, fill=255
        )
    counts: dict[str, int] = {}
    colors: dict[str, RGB] = {}
    first: Nuclei | None = None
    for batch in [nuclei] if isinstance(nuclei, Nuclei) else nuclei:
        first = first or batch
        batch.check_like(classes=first.classes, mpp=first.mpp, features=list(first.features))
        if palette is not None and len(palette) < len(batch.classes):
            raise ValueError(f"palette: expected {len(batch.classes)} colours, got {len(palette)}")
        chosen = palette or [entry.color for entry in batch.classes]
        colors = dict(zip((entry.name for entry in batch.classes), chosen, strict=False))
        for name, count in batch.counts().items():
            counts[name] = counts.get(name, 0) + count
        _draw(picture, batch, [*colors.values(), _UNCLASSIFIED_COLOR], scale)
    _draw_legend(picture, [(name, colors.get(name, _UNCLASSIFIED_COLOR), n) for name, n in counts.items()])
    with AtomicFile(path) as file:
        _write_png(file, picture)


def _downsample(slide: Slide, max_px: int) -> float:
    """Level-0 pixels per pixel of the picture."""
    least = max(1.0, max(slide.dimensions) / max_px)
    level = [level.downsample for level in slide.levels if level.downsample <= least][-1]
    halvings = math.ceil(math.log2(least / level))
    return level * 2.0**halvings


def _write_png(file: BinaryIO, picture: NDArray[np.uint8]) -> None:
    """Every row less the one above, at ISA-L's first level: a quarter of the time of zlib's quickest."""

    def put(kind: bytes, data: bytes) -> None:
        file.write(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(kind + data))
        )

    rows, cols, _ = picture.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    put(b"IHDR", struct.pack(">IIBBBBB", cols, rows, 8, 2, 0, 0, 0))
    deflate = isal_zlib.compressobj(1)
    above = np.zeros_like(picture[:1])
    for top in range(0, rows, _BLOCK_ROWS):
        block = picture[top : top + _BLOCK_ROWS]
        lines = np.full((len(block), 1 + 3 * cols), 2, np.uint8)  # before each row, the number of its filter
        lines[:, 1:] = (block - np.concatenate([above, block[:-1]])).reshape(len(block), -1)
        put(b"IDAT", deflate.compress(lines.tobytes()))
        above = block[-1:]
    put(b"IDAT", deflate.flush())
    put(b"IEND", b"")


def _draw(picture: NDArray[np.uint8], nuclei: Nuclei, colors: Sequence[RGB], scale: float) -> None:
    if not len(nuclei):
        return
    side_px = float(np.median(nuclei.bbox[:, 2:] - nuclei.bbox[:, :2])) * scale
    width = 0.0 if side_px < _FILL_BELOW_PX else 1.0 if side_px < _THICK_FROM_PX else 2.0
    shades = np.array(colors, np.uint8)[nuclei.class_codes()]
    _core.draw_outlines(nuclei.vertices * scale, nuclei.offsets, shades, width, picture)


def _draw_legend(picture: NDArray[np.uint8], entries: Sequence[tuple[str, RGB, int]]) -> None:
    if not entries:
        return
    rows, cols, _ = picture.shape
    size = max(10, min(32, max(rows, cols) // 60))
    font = ImageFont.load_default(size)
    texts = [f"{name}  {count:,}" for name, _, count in entries]
    pad, row = size // 2, round(size * 1.5)
    width = round(max(font.getlength(text) for text in texts)) + size + 3 * pad
    if 2 * width > cols or 2 * (row * len(texts) + pad) > rows:
        return  # it would hide the picture
    corner = picture[: 3 * pad + row * len(texts), : 2 * pad + width]
    legend = Image.fromarray(corner)
    draw = ImageDraw.Draw(legend)
    draw.rectangle(
        (pad, pad, pad + width, 2 * pad + row * len(texts)), fill=(255, 255, 255), outline=(96, 96, 96)
    )
    for i, (text, (_, color, _)) in enumerate(zip(texts, entries, strict=True)):
        top = 2 * pad + row * i
        box = (2 * pad, top, 2 * pad + size, top + size)
        draw.rectangle(box, fill=color, outline=(96, 96, 96))
        draw.text((3 * pad + size, top + size // 2), text, fill=(0, 0, 0), font=font, anchor="lm")
    corner[...] = np.asarray(legend)
