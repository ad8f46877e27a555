"""The overlay: a picture of the slide with every nucleus outlined in the colour of its class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
_SUPERSAMPLE = 2
_BLOCK_PX = 512  # side of the part of the picture that is enlarged and drawn on at once
_FILL_BELOW_PX = 5  # nuclei smaller than this in the picture have no inside left to show: they are filled


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
    picture = Image.new("RGB", size)
    for top in range(0, size[1], _BLOCK_PX):
        check()
        rows = min(_BLOCK_PX, size[1] - top)
        picture.paste(Image.fromarray(slide.read_scaled(0, top / scale, size[0], rows, 1 / scale)), (0, top))
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
        _draw_blocks(picture, batch, [*colors.values(), _UNCLASSIFIED_COLOR], scale)
    _draw_legend(picture, [(name, colors.get(name, _UNCLASSIFIED_COLOR), n) for name, n in counts.items()])
    with AtomicFile(path) as file:
        file.write(_png(picture))


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


def _draw_blocks(picture: Image.Image, nuclei: Nuclei, colors: Sequence[RGB], scale: float) -> None:
    """Draw on one block of the picture after the other, which bounds memory."""
    if not len(nuclei):
        return
    side_px = float(np.median(nuclei.bbox[:, 2:] - nuclei.bbox[:, :2])) * scale
    # Lines reach further than the boxes, by half of their width.
    low = np.floor(nuclei.bbox[:, :2] * scale - 2).astype(int) // _BLOCK_PX
    high = np.ceil(nuclei.bbox[:, 2:] * scale + 2).astype(int) // _BLOCK_PX
    across, down = -(-picture.width // _BLOCK_PX), -(-picture.height // _BLOCK_PX)
    (left, top), (right, bottom) = np.maximum(low.min(0), 0), np.minimum(high.max(0) + 1, (across, down))
    for row in range(top, bottom):
        in_row = (low[:, 1] <= row) & (row <= high[:, 1])
        for col in range(left, right):
            here = np.flatnonzero(in_row & (low[:, 0] <= col) & (col <= high[:, 0]))
            if here.size:
                corner = col * _BLOCK_PX, row * _BLOCK_PX
                _draw(picture, corner, nuclei[here], colors, scale=scale, side_px=side_px)


def _draw(
    picture: Image.Image,
    corner: tuple[int, int],
    nuclei: Nuclei,
    colors: Sequence[RGB],
    *,
    scale: float,
    side_px: float,
) -> None:
    """Draw on the block at ``corner``; ``side_px`` is the usual size of a nucleus in the picture."""
    right, bottom = (
        min(at + _BLOCK_PX, end) for at, end in zip(corner, (picture.width, picture.height), strict=True)
    )
    block = picture.crop((*corner, right, bottom))
    # Lines drawn on an enlarged copy and averaged back are antialiased; pixels without lines come back as
    # they were, because a pixel enlarged to equal pixels has them as its average.
    size = block.width * _SUPERSAMPLE, block.height * _SUPERSAMPLE
    canvas = block.resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    line_px = _SUPERSAMPLE if side_px < 20 else 2 * _SUPERSAMPLE
    # Pillow counts from pixel centres, we from corners.
    points = (nuclei.vertices * scale - corner) * _SUPERSAMPLE - 0.5
    bounds = nuclei.offsets.tolist()
    for i, code in enumerate(nuclei.class_codes().tolist()):
        ring = points[bounds[i] : bounds[i + 1]].ravel().tolist()
        if side_px < _FILL_BELOW_PX:
            draw.polygon(ring, fill=colors[code])
        else:
            draw.line(ring, fill=colors[code], width=line_px, joint=None)
    picture.paste(canvas.reduce(_SUPERSAMPLE), corner)


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
