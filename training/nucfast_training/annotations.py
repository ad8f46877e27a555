"""A user's own folder: images with QuPath GeoJSON annotations or label images beside them.

For ``case.png``: ``case.geojson`` (or ``.geojson.gz``, ``.json``), or ``labels/case.png`` with instance ids
and maybe ``types/case.png`` with class ids, 1 for the first of the recipe's ``classes.names``. Images may lie
in ``images/``, annotations in ``annotations/``.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import DatasetError
from nucfast.ops import label, rasterize
from nucfast_training.data import SUFFIXES, Sample, make_sample, read_image, read_kinds, read_labels
from nucfast_training.recipe import Recipe, SetSettings

ENDINGS = (".geojson", ".geojson.gz", ".json")
logger = logging.getLogger(__name__)

VAL_SHARE = 0.2  # of the images, at least one


def read_annotations(
    folder: Path, split: str, entry: SetSettings, recipe: Recipe, *, cache: Path, limit: int = 0
) -> list[Sample]:
    """Read the annotated images; every fifth one, by name, is for validation.

    Raises:
        DatasetError: fewer than two annotated images, an empty annotation, a size or class that does not
            fit, an unreadable file, or an unknown resolution.
    """
    root = folder / "images" if (folder / "images").is_dir() else folder
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
    pairs = [(path, found) for path in paths if (found := _annotation(folder, path)) is not None]
    if len(pairs) < 2:
        raise DatasetError(
            f"{folder}: expected at least two images with an annotation (NAME.geojson or labels/NAME.png), "
            f"one of them for validation; got {len(pairs)} of {len(paths)} images"
        )
    if len(pairs) < len(paths) and split == "train":
        bare = sorted(set(paths) - {path for path, _ in pairs})
        logger.warning("%s: left out, no annotation: %s", folder, ", ".join(path.name for path in bare))
    if not entry.mpp:
        raise DatasetError(
            f"{folder}: the images' resolution is not known: give it in um per pixel, --set sets.0.mpp=0.25"
        )
    count = max(1, round(VAL_SHARE * len(pairs)))
    chosen = {int((i + 0.5) * len(pairs) / count) for i in range(count)}
    samples = []
    for i, (path, annotation) in enumerate(pairs):
        if (i in chosen) != (split == "val") or (limit and len(samples) == limit):
            continue
        image = read_image(path)
        if annotation.name.endswith(ENDINGS):
            labels, kinds = read_geojson(annotation, image.shape[:2], entry, recipe)
        else:
            labels = _numbered(read_labels(annotation, image.shape[:2]), annotation)
            types = folder / "types" / f"{path.stem}.png"
            kinds = np.zeros(labels.shape, np.uint8)
            if types.exists():
                kinds = read_kinds(types, recipe, labels, raw_ids=False)
        samples.append(make_sample(path.name, image, labels, kinds, entry.mpp, recipe, cache))
    return samples


def _annotation(folder: Path, image: Path) -> Path | None:
    for place in (image.parent, folder / "annotations", folder):
        for ending in ENDINGS:
            if (place / f"{image.stem}{ending}").is_file():
                return place / f"{image.stem}{ending}"
    labels = folder / "labels" / f"{image.stem}.png"
    return labels if labels.is_file() else None


def _numbered(labels: NDArray[np.int32], path: Path) -> NDArray[np.int32]:
    """Refuse a mask, all of whose nuclei would be one."""
    ids = np.unique(labels[labels > 0])
    parts = int(label(labels).max()) if len(ids) == 1 else 1
    if parts > 1:
        raise DatasetError(
            f"{path}: expected another id for each nucleus, got {ids[0]} alone in {parts} places: number the "
            "parts of the mask first, with nucfast.ops.label"
        )
    return labels


def read_geojson(
    path: Path, shape: tuple[int, ...], entry: SetSettings, recipe: Recipe
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Instance ids and class ids per pixel from polygons in pixels of the image, as QuPath exports them.

    Of a cell with a nucleus the nucleus is taken. Holes are ignored: nuclei have none.
    """
    try:
        content = path.read_bytes()
        data = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read as GeoJSON ({error})") from error
    features = data.get("features", [data]) if isinstance(data, dict) else data
    if not isinstance(features, list):
        raise DatasetError(f"{path}: expected a FeatureCollection or a list of features")
    rings: list[NDArray[np.float64]] = []
    kinds: list[int] = []
    for number, feature in enumerate(features):
        where = f"{path}: feature {number}"
        if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
            raise DatasetError(f"{where}: expected an object with a geometry")
        outlines = _outlines(feature.get("nucleusGeometry") or feature["geometry"], where)
        rings += outlines
        kinds += [_class_of(feature, where, entry, recipe)] * len(outlines)
    if not rings:
        raise DatasetError(f"{path}: holds no nucleus; annotate some, or delete the file")
    vertices = np.concatenate(rings)
    height, width = shape
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    # Half a nucleus beyond the rim is an outline drawn generously; more is another image's annotation.
    if (low < -20).any() or high[0] > width + 20 or high[1] > height + 20:
        raise DatasetError(
            f"{path}: reaches from ({low[0]:.0f}, {low[1]:.0f}) to ({high[0]:.0f}, {high[1]:.0f}), but "
            f"the image is {width} x {height} pixels: export the annotation from the same image, "
            "at full resolution"
        )
    if (high < 0.55 * np.array([width, height])).all():
        logger.warning(
            "%s: reaches to (%.0f, %.0f) of %d x %d pixels: was it exported from a smaller image?",
            path, *high, width, height,
        )  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum([len(ring) for ring in rings])]).astype(np.int64)
    labels = rasterize(
        vertices, offsets, np.arange(1, len(rings) + 1, dtype=np.int32), np.zeros((height, width), np.int32)
    )
    if not labels.any():
        raise DatasetError(f"{path}: no outline covers a pixel of the image")
    return labels, np.concatenate([[0], kinds]).astype(np.uint8)[labels]


def _outlines(geometry: dict[str, Any], where: str) -> list[NDArray[np.float64]]:
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise DatasetError(f"{where}: expected a Polygon or MultiPolygon, got {kind!r}")
    polygons = coordinates if kind == "MultiPolygon" else [coordinates]
    try:
        outlines = [np.asarray(polygon[0], np.float64)[:, [0, 1]] for polygon in polygons or []]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise DatasetError(f"{where}: expected rings of [x, y] points ({error})") from error
    for ring in outlines:
        if len(ring) < 3 or not np.isfinite(ring).all():
            raise DatasetError(f"{where}: expected at least three finite points, got {len(ring)}")
    return outlines


def _class_of(feature: dict[str, Any], where: str, entry: SetSettings, recipe: Recipe) -> int:
    if recipe.classes is None or not {"class", "semantic"} & recipe.loss.keys():
        return 0
    properties = feature.get("properties") or {}
    given = properties.get("classification") if isinstance(properties, dict) else properties
    name = given
    if isinstance(given, dict):
        names = given.get("names") or []
        name = given.get("name") or (" ".join(map(str, names)) if isinstance(names, list) else names)
    if not name:
        return 0
    if not isinstance(name, str):
        raise DatasetError(f"{where}: expected a classification with a name, got {str(given)[:60]}")
    known = {known.lower(): i + 1 for i, known in enumerate(recipe.classes.names)}
    meant = {key.lower(): value for key, value in entry.classes.items()}.get(name.lower(), name)
    if meant.lower() not in known:
        mapped = "" if meant == name else f", which sets.classes maps to {meant!r},"
        raise DatasetError(
            f"{where}: class {name!r}{mapped} is not in the scheme {recipe.classes.scheme!r} "
            f"({', '.join(recipe.classes.names)}): map it, "
            f"--set 'sets.0.classes.{name}={recipe.classes.names[0]}'"
        )
    return known[meant.lower()]
