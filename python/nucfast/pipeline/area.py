"""Where on a slide nuclei are wanted: tissue, regions of interest, and what is left out of them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import NucfastError
from nucfast.slide import Slide, TissueMask
from nucfast.slide.raster import MAX_WHOLE_PX, sniff_image
from nucfast.slide.tiff import is_tiff

logger = logging.getLogger("nucfast")

# A larger picture of the tissue is reduced: one byte a pixel is held as long as the slide.
_MAX_MASK_PX = 2**28

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_CHUNK = 2**22  # pairs of point and edge at once


@dataclass(frozen=True, eq=False)
class Polygon:
    """A polygon as its edges (E, 4): x0, y0, x1, y1. Inside by the even-odd rule: rings inside are holes."""

    edges: NDArray[np.float64]

    def contains(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points lie inside."""
        inside = np.zeros(x.shape, bool)
        x0, y0, x1, y1 = self.edges.T
        slope = (x1 - x0) / np.where(y1 == y0, 1.0, y1 - y0)
        step = max(1, _CHUNK // len(self.edges))
        for start in range(0, len(x), step):
            px, py = x[start : start + step, None], y[start : start + step, None]
            crossed = ((y0 <= py) != (y1 <= py)) & (px < x0 + (py - y0) * slope)
            inside[start : start + step] = crossed.sum(axis=1) % 2 == 1
        return inside

    def crosses(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether the outline comes into a rectangle."""
        x0, y0, x1, y1 = self.edges.T
        near = (np.minimum(x0, x1) <= right) & (np.maximum(x0, x1) >= left)
        near &= (np.minimum(y0, y1) <= bottom) & (np.maximum(y0, y1) >= top)
        x0, y0, x1, y1 = self.edges[near].T
        corners = ((left, top), (right, top), (left, bottom), (right, bottom))
        # An edge passes by if all corners are on one side of its line.
        side = np.array([(x1 - x0) * (py - y0) - (y1 - y0) * (px - x0) for px, py in corners])
        return not bool(((side > 0).all(axis=0) | (side < 0).all(axis=0)).all())

    def holds_middle(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether the middle of a rectangle lies inside."""
        return bool(self.contains(np.array([(left + right) / 2]), np.array([(top + bottom) / 2]))[0])


@dataclass(frozen=True, eq=False)
class Shape:
    """The union of polygons."""

    polygons: tuple[Polygon, ...]

    def contains(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points lie inside."""
        inside = np.zeros(x.shape, bool)
        for polygon in self.polygons:
            inside |= polygon.contains(x, y)
        return inside

    def any_in(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether any of the inside lies in a rectangle."""
        box = (left, top, right, bottom)
        return any(polygon.crosses(*box) or polygon.holds_middle(*box) for polygon in self.polygons)

    def all_in(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether a rectangle lies wholly inside one of the polygons."""
        box = (left, top, right, bottom)
        return any(polygon.holds_middle(*box) and not polygon.crosses(*box) for polygon in self.polygons)


@dataclass(frozen=True, eq=False)
class Area:
    """The part of a slide that is analysed; a nucleus counts where its centroid lies.

    Attributes:
        tissue: None: everywhere.
        roi: None: everywhere.
        exclude: None: nowhere.
    """

    tissue: TissueMask | None = None
    roi: Shape | None = None
    exclude: Shape | None = None

    def any_in(self, x: float, y: float, width: float, height: float) -> bool:
        """Whether a rectangle in level-0 pixels holds any of it."""
        box = (x, y, x + width, y + height)
        return (
            (self.tissue is None or self.tissue.any_in(x, y, width, height))
            and (self.roi is None or self.roi.any_in(*box))
            and (self.exclude is None or not self.exclude.all_in(*box))
        )

    def contains(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points, in level-0 pixels, lie in it."""
        inside = np.ones(x.shape, bool)
        if self.tissue is not None:
            rows, cols = self.tissue.mask.shape
            row = np.clip((y / self.tissue.scale).astype(np.int64), 0, rows - 1)
            col = np.clip((x / self.tissue.scale).astype(np.int64), 0, cols - 1)
            inside &= self.tissue.mask[row, col]
        if self.roi is not None:
            inside &= self.roi.contains(x, y)
        if self.exclude is not None:
            inside &= ~self.exclude.contains(x, y)
        return inside


def read_shape(path: Path, slide: Slide) -> Shape:
    """Polygons from GeoJSON, as QuPath exports annotations, or from WKT.

    GeoJSON counts from the corner of the slide's bounds, as QuPath does; WKT from the corner of the slide.
    Both are in level-0 pixels.

    Points, lines and annotations without a place are passed over. A warning tells of polygons that all lie
    beside the slide.

    Raises:
        NucfastError: the file holds no polygon.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        is_json = text.startswith(("{", "["))
        corner = np.array(slide.bounds[:2] if is_json else (0, 0), np.float64)
        found = _geojson_polygons(json.loads(text)) if is_json else _wkt_polygons(text)
        polygons = tuple(_polygon(rings, corner) for rings in found)
        if not polygons:
            raise ValueError("none in it, and points and lines do not count")
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise NucfastError(
            f"{path}: expected polygons as GeoJSON or WKT ({error}); export the annotations again"
        ) from error
    shape = Shape(polygons)
    width, height = slide.dimensions
    if not shape.any_in(0, 0, width, height):
        logger.warning("%s: lies wholly outside %s of %d x %d px", path, slide.name, width, height)
    return shape


def read_tissue_mask(path: Path, slide: Slide) -> TissueMask:
    """A tissue mask from an image of the whole slide, of any size: tissue where it is not black.

    Raises:
        NucfastError: it is no image, or of another shape than the slide.
    """
    from PIL import Image

    width, height = slide.dimensions
    Image.init()
    try:
        with path.open("rb") as file:
            header = file.read(16)
            file.seek(0)
            # Not Image.open(): its limit on the number of pixels is a global of the process, and too low.
            factory, _ = Image.OPEN["TIFF" if is_tiff(header) else sniff_image(header) or "no image"]
            with factory(file, str(path)) as image:
                cols, rows = image.size
                across, down = width / cols, height / rows
                if abs(across - down) > 1.5 * max(across, down) / min(rows, cols):
                    raise NucfastError(
                        f"{path}: expected a picture of the whole slide of {width} x {height}, "
                        f"got the shape of {cols} x {rows}"
                    )
                if rows * cols > MAX_WHOLE_PX:
                    raise NucfastError(
                        f"{path}: expected a picture of at most {MAX_WHOLE_PX / 1e6:.0f} million pixels, "
                        f"got {cols} x {rows}; save it smaller, as any size serves"
                    )
                factor = math.ceil(math.sqrt(rows * cols / _MAX_MASK_PX))
                mask = np.asarray(image.convert("L").point([0] + 255 * [255]).reduce(factor)) > 0
    except NucfastError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        reason = "no such format" if isinstance(error, KeyError) else error
        raise NucfastError(
            f"{path}: expected a PNG, JPEG, BMP, WebP or TIFF image of the slide's tissue ({reason})"
        ) from error
    return TissueMask(mask, max(across, down) * factor)


def digest(path: Path | None) -> str:
    """Stands for a file's content; "" for none.

    Raises:
        NucfastError: it cannot be read.
    """
    if path is None:
        return ""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise NucfastError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _polygon(rings: list[Any], corner: NDArray[np.float64]) -> Polygon:
    """A polygon of rings of points (x, y, ...)."""
    if not rings:
        raise ValueError("an empty polygon")
    edges = []
    for points in rings:
        ring = np.array(points, np.float64)[:, :2] + corner
        if len(ring) < 3 or not np.isfinite(ring).all():
            raise ValueError("a ring without three finite points")
        edges.append(np.hstack([ring, np.roll(ring, -1, axis=0)]))
    return Polygon(np.concatenate(edges))


def _geojson_polygons(node: Any) -> list[list[Any]]:
    """The rings of all polygons at any depth of a GeoJSON document."""
    if isinstance(node, list):
        return [polygon for entry in node for polygon in _geojson_polygons(entry)]
    if node is None or node["type"] in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return []
    for kind, key in (
        ("FeatureCollection", "features"),
        ("Feature", "geometry"),
        ("GeometryCollection", "geometries"),
    ):
        if node["type"] == kind:
            return _geojson_polygons(node[key])
    if node["type"] == "Polygon":
        return [node["coordinates"]]
    if node["type"] == "MultiPolygon":
        return list(node["coordinates"])
    raise ValueError(f"{node['type']} is no polygon")


def _wkt_polygons(text: str) -> list[list[Any]]:
    text = re.sub(r"^SRID=\d+;\s*", "", text, flags=re.IGNORECASE)
    if re.search(r"\bEMPTY\b", text, re.IGNORECASE):
        raise ValueError("an empty polygon")
    point = rf"{_NUMBER}(?:\s+{_NUMBER})+"
    ring = rf"\(\s*{point}(?:\s*,\s*{point})*\s*\)"
    polygon = rf"\(\s*{ring}(?:\s*,\s*{ring})*\s*\)"
    one = rf"POLYGON\s*Z?\s*{polygon}"
    many = rf"MULTIPOLYGON\s*Z?\s*\(\s*{polygon}(?:\s*,\s*{polygon})*\s*\)"
    if re.fullmatch(rf"(?:(?:{one}|{many})[\s;]*)+", text, re.IGNORECASE) is None:
        raise ValueError("not POLYGON or MULTIPOLYGON")
    return [
        [
            [pair.split() for pair in points.strip("() \t\r\n").split(",")]
            for points in re.findall(ring, rings)
        ]
        for rings in re.findall(polygon, text)
    ]
