"""The overlay: a picture of the slide with every nucleus outlined in the colour of its class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

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
_FILL_BELOW_PX = 5  # nuclei smaller than this in the picture have no inside left to show: they are filled


def write_overlay(
    path: str | Path,
    slide: Slide,
    nuclei: Nuclei | Iterable[Nuclei],
    *,
    max_px: int = 4096,
    palette: Sequence[RGB] | None = None,
) -> None:
    """Draw the nuclei on the slide as a PNG with a legend of classes and counts.

    Args:
        path: the PNG file.
        slide: the slide the nuclei come from.
        nuclei: a table, or batches of it; classes may not differ between batches.
        max_px: longest side of the picture; a larger slide is drawn downsampled.
        palette: RGB of each class in the order of the scheme; None: the scheme's colours.

    Raises:
        ValueError: the palette is shorter than the scheme, or the batches differ in kind.
        OutputError: the file cannot be written.
    """
    width, height = slide.dimensions
    scale = min(1.0, max_px / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    base = Image.fromarray(slide.read_scaled(0, 0, *size, 1.0 / scale))
    # Lines drawn on an enlarged copy and averaged back are antialiased; pixels without lines come back as
    # they were, because a pixel enlarged to equal pixels has them as its average.
    canvas = base.resize((size[0] * _SUPERSAMPLE, size[1] * _SUPERSAMPLE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
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
        _draw(draw, batch, [*colors.values(), _UNCLASSIFIED_COLOR], scale * _SUPERSAMPLE)
    picture = canvas.reduce(_SUPERSAMPLE)
    _draw_legend(picture, [(name, colors.get(name, _UNCLASSIFIED_COLOR), n) for name, n in counts.items()])
    with AtomicFile(path) as file:
        picture.save(file, "PNG", compress_level=1)


def _draw(draw: ImageDraw.ImageDraw, nuclei: Nuclei, colors: Sequence[RGB], scale: float) -> None:
    if not len(nuclei):
        return
    sides = (nuclei.bbox[:, 2:] - nuclei.bbox[:, :2]) * scale
    filled = np.median(sides) < _FILL_BELOW_PX * _SUPERSAMPLE
    line_px = _SUPERSAMPLE if np.median(sides) < 20 * _SUPERSAMPLE else 2 * _SUPERSAMPLE
    # Pillow counts from pixel centres, we from corners.
    points = nuclei.vertices * scale - 0.5
    bounds = nuclei.offsets.tolist()
    for i, code in enumerate(nuclei.class_codes().tolist()):
        ring = points[bounds[i] : bounds[i + 1]].ravel().tolist()
        if filled:
            draw.polygon(ring, fill=colors[code])
        else:
            draw.line(ring, fill=colors[code], width=line_px, joint=None)


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
