"""Vendor formats through OpenSlide: Hamamatsu, Leica, MIRAX, Philips, Ventana, Trestle, DICOM, Zeiss, ..."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import SlideError
from nucfast.slide.base import Slide, make_levels
from nucfast.slide.mpp import number, openslide_candidates, resolve_mpp


def detect_vendor(path: Path) -> str | None:
    """OpenSlide's name for the vendor of a file, None if OpenSlide cannot read it."""
    import openslide

    try:
        vendor: str | None = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None
    return vendor


class OpenSlideSlide(Slide):
    """A file that OpenSlide reads."""

    def __init__(self, path: Path, *, mpp: float | None) -> None:
        """Open the file.

        Raises:
            SlideError: OpenSlide finds it damaged, or it states no resolution.
        """
        import openslide

        self._file = path
        try:
            self._handle: Any = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(
                f"{path}: damaged slide ({error}); copy it again, with all files that belong to it"
            ) from error
        try:
            properties = dict(self._handle.properties)
            resolution = resolve_mpp(
                path,
                flag=mpp,
                candidates=openslide_candidates(properties),
                objective_power=number(properties.get("openslide.objective-power")),
            )
            bounds = [
                number(properties.get(f"openslide.bounds-{key}")) for key in ("x", "y", "width", "height")
            ]
            x, y, width, height = (int(value) if value is not None else -1 for value in bounds)
            super().__init__(
                path=path,
                levels=make_levels(self._handle.level_dimensions),
                resolution=resolution,
                properties=properties,
                bounds=(x, y, width, height) if min(x, y) >= 0 and min(width, height) > 0 else None,
            )
            self._downsamples = self._handle.level_downsamples
        except BaseException:
            self._handle.close()
            raise

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See :meth:`Slide.read_level`."""
        import openslide
        from PIL import Image

        # OpenSlide divides by its own downsample, which is not the integer where sizes were rounded.
        downsample = self._downsamples[level]
        position = (round(x * downsample), round(y * downsample))
        try:
            try:
                image = self._handle.read_region(position, level, (width, height))
            except openslide.OpenSlideError:
                # After one error a handle refuses everything, and another thread may have met that error.
                fresh = openslide.OpenSlide(self._file)
                image = fresh.read_region(position, level, (width, height))
                self._handle = fresh
        except (openslide.OpenSlideError, ValueError, OSError) as error:
            raise SlideError(
                f"{self.path}: cannot read at {position} ({error}); copy the file again"
            ) from error
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] == 255:
            return np.array(image.convert("RGB"))
        # MIRAX and others leave unscanned parts transparent, which would otherwise turn black.
        paper = Image.new("RGB", image.size, (255, 255, 255))
        paper.paste(image, mask=alpha)
        return np.array(paper)

    def _release(self) -> None:
        self._handle.close()
