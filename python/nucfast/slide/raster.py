"""Slides held in memory: arrays, and plain images decoded as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import SlideError, one_line
from nucfast.slide.base import Slide, make_levels
from nucfast.slide.mpp import Candidate, Resolution, resolve_mpp

if TYPE_CHECKING:
    from PIL import Image

# Larger images must be tiled: this many pixels take 1.6 GB decoded, and Pillow 2.1 GB while decoding.
MAX_WHOLE_PX = 2**29
TILED_REMEDY = (
    "convert it to a tiled, pyramidal TIFF (vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg)"
)

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"RIFF": "WEBP",
}


class ArraySlide(Slide):
    """An RGB image in memory. The pixels are borrowed, not copied, and must not change while it is open."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        *,
        path: Path | None,
        resolution: Resolution,
        properties: dict[str, str],
    ) -> None:
        height, width, _ = pixels.shape
        super().__init__(
            path=path, levels=make_levels([(width, height)]), resolution=resolution, properties=properties
        )
        self._pixels = pixels

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See :meth:`Slide.read_level`."""
        return self._pixels[y : y + height, x : x + width].copy()

    def _release(self) -> None:
        self._pixels = np.empty((0, 0, 3), np.uint8)


def to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 1 to 4) as RGB: grey is repeated; 2 and 4 channels end in alpha, over white."""
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    channels = pixels.shape[2]
    color = pixels[..., : channels - 1] if channels in (2, 4) else pixels
    if channels in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint16)
        # Rounded division by 255, exact for all products of two bytes.
        mixed = color * alpha + 255 * (255 - alpha) + 127
        color = (mixed // 255).astype(np.uint8)
    return np.repeat(color, 3, axis=2) if color.shape[2] == 1 else color


def array_slide(array: object, *, mpp: float | None) -> ArraySlide:
    """A slide over an array; ``mpp`` None leaves its resolution unknown.

    Raises:
        TypeError: not an array of uint8.
        ValueError: another shape than (H, W), (H, W, 3) or (H, W, 4), or no pixel at all.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"source: expected a path or a uint8 array, got {type(array).__name__}")
    if array.dtype != np.uint8:
        raise TypeError(f"source: expected uint8, got {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ValueError(
            f"source: expected shape (H, W), (H, W, 3) or (H, W, 4) with pixels, got {array.shape}"
        )
    if mpp is None:
        resolution = Resolution(None, "not given")
    else:
        resolution = resolve_mpp("array", flag=mpp, candidates=())
    return ArraySlide(to_rgb(array), path=None, resolution=resolution, properties={})


def check_whole(path: Path, width: int, height: int) -> None:
    """Refuse to decode an image as a whole that is larger than memory should hold."""
    if width * height > MAX_WHOLE_PX:
        raise SlideError(
            f"{path}: {width} x {height} pixels in one piece are more than {MAX_WHOLE_PX / 1e6:.0f} million; "
            f"{TILED_REMEDY}"
        )


def sniff_image(header: bytes) -> str | None:
    """Pillow's name of the plain format that a file starting with ``header`` (16 bytes) has."""
    for magic, name in _MAGIC.items():
        if header.startswith(magic) and (name != "WEBP" or header[8:12] == b"WEBP"):
            return name
    return None


def image_slide(path: Path, format_name: str, *, mpp: float | None) -> ArraySlide:
    """Decode a PNG, JPEG, BMP or WebP file.

    Pixels are taken as they are stored: an EXIF orientation is not applied, so that positions agree with
    other programs for slides.

    Raises:
        SlideError: damaged, too large, 16-bit, CMYK, or no ``mpp``: these formats have no field for it, only
            a print resolution.
    """
    from PIL import Image

    Image.init()
    # Not Image.open(): its limit on the number of pixels is a global of the process. Ours is checked here.
    factory, _ = Image.OPEN[format_name]
    try:
        with path.open("rb") as file, factory(file, str(path)) as image:
            check_whole(path, *image.size)
            problem = _unsupported(path, image)
            if problem is not None:
                raise SlideError(f"{path}: {problem}; convert it to 8-bit RGB")
            # Before decoding: a folder full of such images should fail fast.
            dpi = image.info.get("dpi")
            note = (
                []
                if dpi is None
                else [Candidate(f"{format_name} print resolution", problem=f"{dpi[0]:.0f} dpi is no mpp")]
            )
            resolution = resolve_mpp(path, flag=mpp, candidates=note)
            pixels = _decode(image)
    except SlideError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise SlideError(
            f"{path}: damaged {format_name} image ({one_line(error)}); copy or export it again"
        ) from error
    return ArraySlide(pixels, path=path, resolution=resolution, properties={"nucfast.format": format_name})


def _unsupported(path: Path, image: Image.Image) -> str | None:
    """Why the colours of an image cannot be taken as they are, None if they can."""
    if image.mode == "CMYK":
        return "CMYK colours, whose conversion depends on the printer"
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        return f"more than 8 bits per channel (mode {image.mode})"
    if image.format == "PNG":
        # Pillow opens 16-bit RGB as 8-bit RGB without a word; the bit depth is byte 24 of the file.
        with path.open("rb") as file:
            if file.read(25)[24] == 16:
                return "16 bits per channel"
    return None


def _decode(image: Image.Image) -> NDArray[np.uint8]:
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        return to_rgb(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))
