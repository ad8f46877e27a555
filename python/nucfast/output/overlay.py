"""The overlay: a picture of the slide with every nucleus outlined in the colour of its class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nucfast import _core
from nucfast.nuclei import Nuclei
from nucfast.output.writer import AtomicFile
from nucfast.slide import Slide

RGB = tuple[int, int, int]

COLORBLIND_SAFE: tuple[RGB, ...] = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
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

    Where nuclei of several batches share a pixel of the picture, the later ones are drawn over the earlier.

    Args:
        path: the PNG file.
        slide: the slide the nuclei come from.
        nuclei: a table, or batches of it; classes may not differ between batches.
        max_px: the most that the picture's longest side may have. A larger slide is drawn downsampled, by a
            whole number of pixels of its pyramid, which are read ten times as fast as others.
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
        picture[top : top + rows] = slide.read_scaled(0, top / scale, size[0], rows, 1 / scale)
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
    finished = Image.fromarray(picture)
    _draw_legend(finished, [(name, colors.get(name, _UNCLASSIFIED_COLOR), n) for name, n in counts.items()])
    with AtomicFile(path) as file:
        file.write(_png(finished))


def _downsample(slide: Slide, max_px: int) -> float:
    """Level-0 pixels per pixel of the picture."""
    least = max(1.0, max(slide.dimensions) / max_px)
    level = [level.downsample for level in slide.levels if level.downsample <= least][-1]
    return level * math.ceil(least / level)


def _png(picture: Image.Image) -> bytes:
    """A PNG file; runs alone and one filter take a third of Pillow's time, for as many bytes."""
    data = imagecodecs.png_encode(
        np.asarray(picture),
        level=1,
        strategy=imagecodecs.PNG.STRATEGY.RLE,
        filter=imagecodecs.PNG.FILTER.PAETH,
    )
    return bytes(data)


def _draw(picture: NDArray[np.uint8], nuclei: Nuclei, colors: Sequence[RGB], scale: float) -> None:
    if not len(nuclei):
        return
    side_px = float(np.median(nuclei.bbox[:, 2:] - nuclei.bbox[:, :2])) * scale
    width = 0.0 if side_px < _FILL_BELOW_PX else 1.0 if side_px < _THICK_FROM_PX else 2.0
    shades = np.array(colors, np.uint8)[nuclei.class_codes()]
    _core.draw_outlines(nuclei.vertices * scale, nuclei.offsets, shades, width, picture)


def _draw_legend(picture: Image.Image, entries: Sequence[tuple[str, RGB, int]]) -> None:
    if not entries:
        return
    size = max(10, min(32, max(picture.size) // 60))
    font = ImageFont.load_default(size)
    texts = [f"{name}  {count:,}" for name, _, count in entries]
    draw = ImageDraw.Draw(picture)
    pad, row = size // 2, round(size * 1.5)
    width = round(max(draw.textlength(text, font) for text in texts)) + size + 3 * pad
    if 2 * width > picture.width or 2 * (row * len(texts) + pad) > picture.height:
        return  # it would hide the picture
    draw.rectangle(
        (pad, pad, pad + width, 2 * pad + row * len(texts)), fill=(255, 255, 255), outline=(96, 96, 96)
    )
    for i, (text, (_, color, _)) in enumerate(zip(texts, entries, strict=True)):
        top = 2 * pad + row * i
        box = (2 * pad, top, 2 * pad + size, top + size)
        draw.rectangle(box, fill=color, outline=(96, 96, 96))
        draw.text((3 * pad + size, top + size // 2), text, fill=(0, 0, 0), font=font, anchor="lm")
