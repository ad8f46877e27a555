"""The result everywhere: one row per nucleus, plus one ragged array of polygons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nucfast.errors import OutputError, require

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd
    import pyarrow as pa

FEATURES = (
    "area_um2",
    "perimeter_um",
    "major_axis_um",
    "minor_axis_um",
    "eccentricity",
    "solidity",
    "circularity",
    "orientation_rad",
    "mean_red",
    "mean_green",
    "mean_blue",
)
"""The features that the pipeline measures, in the order of every table."""

UNCLASSIFIED = "unclassified"
"""What ``counts()`` calls nuclei of class 0; tables hold a missing value for them."""

_COLUMNS = {
    "id": ("int64", ()),
    "x": ("float64", ()),
    "y": ("float64", ()),
    "bbox": ("float64", (4,)),
    "class_id": ("uint8", ()),
    "probability": ("float32", ()),
    "class_probability": ("float32", ()),
}
_BBOX = ("xmin", "ymin", "xmax", "ymax")
_BATCH_ROWS = 65536  # keeps a batch's WKB far below the 2 GiB that 32-bit Arrow offsets can address


@dataclass(frozen=True)
class NucleusClass:
    """One class of a scheme: its id (1..255; 0 means unclassified), name and RGB colour (0..255)."""

    id: int
    name: str
    color: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not 1 <= self.id <= 255:
            raise ValueError(f"id: expected 1..255, got {self.id}")
        if not self.name or self.name == UNCLASSIFIED:
            raise ValueError(f"name: expected a name other than '' and {UNCLASSIFIED!r}, got {self.name!r}")
        object.__setattr__(self, "color", tuple(int(value) for value in self.color))
        if len(self.color) != 3 or not all(0 <= value <= 255 for value in self.color):
            raise ValueError(f"color: expected three integers of 0..255, got {self.color}")


@dataclass(frozen=True, eq=False)
class Nuclei:
    """Nuclei of one slide or image; row i of every column is the same nucleus.

    Positions are level-0 pixels, (x, y), in pixel-corner coordinates: the first pixel covers 0..1.

    Attributes:
        id: (N,) int64, ``row << 32 | col`` of the nucleus's first pixel in raster order on the model's
            pixel grid of the whole slide; independent of how the slide was cut.
        x: (N,) float64, centroid.
        y: (N,) float64, centroid.
        bbox: (N, 4) float64, xmin, ymin, xmax, ymax.
        class_id: (N,) uint8, an id of ``classes``, or 0 for unclassified.
        probability: (N,) float32, mean probability of being a nucleus.
        class_probability: (N,) float32, mean probability of that class over the nucleus's pixels; 1 where the
            model tells no classes apart.
        features: name to (N,) float32; units are in the names, NaN where a value is undefined.
        vertices: (P, 2) float64, the rings one after another, each closed (first point == last).
        offsets: (N + 1,) int64; ring i is ``vertices[offsets[i]:offsets[i + 1]]``.
        classes: the class scheme.
        mpp: micrometres per level-0 pixel.
        meta: what is known of the slide, model and run; must be writable as JSON.

    Raises:
        TypeError: a column is not an array of the dtype above; nothing is cast.
        ValueError: a shape differs, a class id is unknown, or a ring is not closed.
    """

    id: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    bbox: NDArray[np.float64]
    class_id: NDArray[np.uint8]
    probability: NDArray[np.float32]
    class_probability: NDArray[np.float32]
    features: dict[str, NDArray[np.float32]]
    vertices: NDArray[np.float64]
    offsets: NDArray[np.int64]
    classes: tuple[NucleusClass, ...]
    mpp: float
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self)
        for name, (dtype, tail) in _COLUMNS.items():
            _expect(name, getattr(self, name), dtype, (count, *tail))
        for name, column in self.features.items():
            _expect(f"features[{name!r}]", column, "float32", (count,))
        _expect("offsets", self.offsets, "int64", (count + 1,))
        _expect("vertices", self.vertices, "float64", (int(self.offsets[-1]), 2))
        if not (np.isfinite(self.mpp) and self.mpp > 0):
            raise ValueError(f"mpp: expected a positive number, got {self.mpp}")
        object.__setattr__(self, "classes", tuple(self.classes))
        for key in ("id", "name"):
            values = [getattr(entry, key) for entry in self.classes]
            if len(set(values)) != len(values):
                raise ValueError(f"classes: expected each {key} once, got {values}")
        unknown = set(np.unique(self.class_id).tolist()) - {0, *(entry.id for entry in self.classes)}
        if unknown:
            raise ValueError(f"class_id: expected 0 or an id of classes, got {sorted(unknown)}")
        if self.offsets[0] != 0 or (count and np.diff(self.offsets).min() < 4):
            raise ValueError("offsets: expected 0 first and steps of at least 4 points (a closed triangle)")
        if not np.array_equal(self.vertices[self.offsets[:-1]], self.vertices[self.offsets[1:] - 1]):
            raise ValueError("vertices: expected closed rings, got one whose last point is not its first")

    def __len__(self) -> int:
        return int(self.id.shape[0]) if isinstance(self.id, np.ndarray) and self.id.ndim else 0

    def __repr__(self) -> str:
        classes = ", ".join(f"{name}: {count}" for name, count in self.counts().items())
        return f"Nuclei({len(self)} at {self.mpp:g} um/px; {classes or 'no classes'})"

    def __getitem__(self, index: slice | NDArray[Any] | Sequence[int] | Sequence[bool]) -> Nuclei:
        """The rows that a slice, a mask of N bools or an array of row numbers picks, in its order."""
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.size == 0:
                index = index.astype(np.int64)  # an empty list has no integer dtype of its own
            if index.ndim != 1 or index.dtype.kind not in "biu":
                got = f"{index.dtype} {index.shape}"
                raise TypeError(f"index: expected a slice, mask or index array, got {got}")
            if index.dtype == bool and index.size != len(self):
                raise ValueError(f"index: expected a mask of {len(self)} rows, got {index.size}")
        rows = np.arange(len(self))[index]
        counts = np.diff(self.offsets)[rows]
        offsets = np.zeros(rows.size + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        points = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Nuclei(
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
            features={name: column[rows] for name, column in self.features.items()},
            vertices=self.vertices[points],
            offsets=offsets,
            classes=self.classes,
            mpp=self.mpp,
            meta=self.meta,
        )

    @classmethod
    def empty(
        cls,
        *,
        classes: Sequence[NucleusClass],
        mpp: float,
        features: Sequence[str] = FEATURES,
        meta: Mapping[str, Any] | None = None,
    ) -> Nuclei:
        """No nuclei, with every column in place."""
        return cls(
            **{name: np.empty((0, *tail), dtype) for name, (dtype, tail) in _COLUMNS.items()},
            features={name: np.empty(0, np.float32) for name in features},
            vertices=np.empty((0, 2)),
            offsets=np.zeros(1, np.int64),
            classes=tuple(classes),
            mpp=mpp,
            meta=dict(meta or {}),
        )

    @classmethod
    def concat(cls, parts: Sequence[Nuclei]) -> Nuclei:
        """One table of all rows, in order; ``meta`` is that of the first part.

        Raises:
            ValueError: there is no part, or the parts differ in classes, mpp or features.
        """
        if not parts:
            raise ValueError("parts: expected at least one Nuclei, got none (see Nuclei.empty)")
        first = parts[0]
        for part in parts[1:]:
            part.check_like(classes=first.classes, mpp=first.mpp, features=list(first.features))
        starts = np.cumsum([0] + [part.vertices.shape[0] for part in parts])
        steps = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS},
            features={
                name: np.concatenate([part.features[name] for part in parts]) for name in first.features
            },
            vertices=np.concatenate([part.vertices for part in parts]),
            offsets=np.concatenate([np.zeros(1, np.int64), *steps]),
            classes=first.classes,
            mpp=first.mpp,
            meta=first.meta,
        )

    def check_like(self, *, classes: Sequence[NucleusClass], mpp: float, features: Sequence[str]) -> None:
        """Raise ValueError unless classes, mpp and features are these: only such tables can be joined."""
        mine = {"classes": self.classes, "mpp": self.mpp, "features": list(self.features)}
        for name, expected in {"classes": tuple(classes), "mpp": mpp, "features": list(features)}.items():
            if mine[name] != expected:
                raise ValueError(f"{name}: expected {expected}, got {mine[name]}")

    def counts(self) -> dict[str, int]:
        """Class name to number of nuclei, in the order of the scheme; unclassified ones last, if any."""
        histogram = np.bincount(self.class_id, minlength=256)
        counts = {entry.name: int(histogram[entry.id]) for entry in self.classes}
        return counts | ({UNCLASSIFIED: int(histogram[0])} if histogram[0] else {})

    def polygons(self) -> list[NDArray[np.float64]]:
        """The rings, (n, 2) views of ``vertices``, each closed."""
        bounds = self.offsets.tolist()
        return [self.vertices[a:b] for a, b in pairwise(bounds)]

    def to_labels(self, shape: tuple[int, int], *, downsample: float = 1.0) -> NDArray[np.int32]:
        """Draw the polygons as a label map: a pixel belongs to the nucleus that holds its centre.

        Args:
            shape: (H, W) of the map, whose corner is the slide's.
            downsample: level-0 pixels per pixel of the map.

        Returns:
            (H, W) int32; row i of this table is label i + 1, 0 is background. Earlier rows win overlaps.
        """
        from nucfast.ops.rasterize import rasterize

        if not downsample > 0:
            raise ValueError(f"downsample: expected a positive number, got {downsample}")
        labels = np.zeros(shape, np.int32)
        values = np.arange(1, len(self) + 1, dtype=np.int32)
        rasterize(self.vertices / downsample, self.offsets, values, labels)
        return labels

    def to_geojson(self, path: str | Path | None = None) -> bytes:
        """The QuPath GeoJSON document; also written to ``path`` if given (compressed if it ends in ``.gz``).

        ``meta["slide"]``, if present, gives the slide's name and bounds (see ``nucfast.output.SlideInfo``).
        """
        from nucfast.output.geojson import document, save

        data = document(self)
        if path is not None:
            save(data, path)
        return data

    def to_pandas(self) -> pd.DataFrame:
        """A row per nucleus without polygons: id, x, y, class (categorical), probabilities, features."""
        pd = require("pandas", extra="pandas", purpose="to_pandas()")
        return pd.DataFrame(
            {
                "id": self.id,
                "x": self.x,
                "y": self.y,
                "class": pd.Categorical.from_codes(
                    self.class_codes(), [entry.name for entry in self.classes]
                ),
                "probability": self.probability,
                "class_probability": self.class_probability,
                **self.features,
            }
        )

    def to_geopandas(self) -> gpd.GeoDataFrame:
        """``to_pandas()`` with the polygons as geometry: level-0 pixels, y down, no CRS."""
        gpd = require("geopandas", extra="pandas", purpose="to_geopandas()")
        shapely = require("shapely", extra="pandas", purpose="to_geopandas()")
        owners = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        rings = shapely.linearrings(self.vertices, indices=owners)
        return gpd.GeoDataFrame(self.to_pandas(), geometry=shapely.polygons(rings), crs=None)

    def to_arrow(self) -> pa.Table:
        """An Arrow table laid out, and described in its schema's metadata, as GeoParquet 1.1.

        Columns: id, geometry (WKB polygons), bbox (struct), x, y, class (dictionary; null: unclassified),
        probability, class_probability, then the features. ``from_arrow`` is the exact inverse.
        """
        import pyarrow as pa

        box = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in _BBOX])
        schema = pa.schema(
            [
                pa.field("id", pa.int64(), nullable=False),
                pa.field("geometry", pa.binary(), nullable=False),
                pa.field("bbox", box, nullable=False),
                pa.field("x", pa.float64(), nullable=False),
                pa.field("y", pa.float64(), nullable=False),
                pa.field("class", pa.dictionary(pa.int32(), pa.string())),
                pa.field("probability", pa.float32(), nullable=False),
                pa.field("class_probability", pa.float32(), nullable=False),
                *(pa.field(name, pa.float32(), nullable=False) for name in self.features),
            ],
            metadata={"geo": json.dumps(_GEO), "nucfast": self._header()},
        )
        names = to_arrow_strings([entry.name for entry in self.classes])
        batches = []
        for start in range(0, len(self), _BATCH_ROWS):
            part = self[start : start + _BATCH_ROWS]
            codes = part.class_codes()
            arrays = [
                to_arrow_column(part.id),
                _encode_wkb(part.vertices, part.offsets),
                pa.StructArray.from_arrays(
                    [to_arrow_column(column) for column in part.bbox.T],
                    fields=list(box),
                ),
                to_arrow_column(part.x),
                to_arrow_column(part.y),
                pa.DictionaryArray.from_arrays(to_arrow_column(codes, codes >= 0), names),
                to_arrow_column(part.probability),
                to_arrow_column(part.class_probability),
                *(to_arrow_column(column) for column in part.features.values()),
            ]
            batches.append(pa.record_batch(arrays, schema=schema))
        return pa.Table.from_batches(batches, schema)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Nuclei:
        """The inverse of ``to_arrow``.

        Raises:
            OutputError: the table was not written by nucfast.
        """
        try:
            header = json.loads((table.schema.metadata or {})[b"nucfast"])
            classes = tuple(NucleusClass(**entry) for entry in header["classes"])
            ids = {entry.name: entry.id for entry in classes} | {None: 0}
            boxes = [[from_arrow_column(chunk.field(n)) for n in _BBOX] for chunk in table["bbox"].chunks]
            rings = [_decode_wkb(chunk) for chunk in table["geometry"].chunks]
            counts = np.concatenate([np.empty(0, np.int64), *(sizes for _, sizes in rings)])
            class_id = [
                np.array([ids[name] for name in [*chunk.dictionary.to_pylist(), None]], np.uint8)[
                    from_arrow_column(chunk.indices, null=len(chunk.dictionary))
                ]
                for chunk in table["class"].chunks
            ]
            return cls(
                **{n: _numbers(table[n]) for n in ("id", "x", "y", "probability", "class_probability")},
                bbox=np.concatenate([np.empty((0, 4)), *(np.stack(box, axis=1) for box in boxes)]),
                class_id=np.concatenate([np.empty(0, np.uint8), *class_id]),
                features={name: _numbers(table[name]) for name in header["features"]},
                vertices=np.concatenate([np.empty((0, 2)), *(points for points, _ in rings)]),
                offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
                classes=classes,
                mpp=header["mpp"],
                meta=header["meta"],
            )
        # Attributes and indices are missing where columns are of other types, or hold other bytes.
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise OutputError(f"table: expected one that nucfast wrote, got {_reason(error)}") from error

    @classmethod
    def read(cls, path: str | Path) -> Nuclei:
        """Read a GeoParquet file that nucfast wrote.

        Raises:
            OutputError: the file is missing, damaged or not one of nucfast.
        """
        return cls.concat(list(cls.read_batches(path)))

    @classmethod
    def read_batches(cls, path: str | Path) -> Iterator[Nuclei]:
        """The same in parts of bounded size, in order; at least one, which may be empty."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                yield cls.from_arrow(pa.Table.from_batches([], file.schema_arrow))
                for group in range(file.num_row_groups):
                    yield cls.from_arrow(file.read_row_group(group))
        except (OSError, ValueError, OutputError) as error:  # ArrowInvalid is a ValueError
            raise OutputError(
                f"{path}: expected a GeoParquet file that nucfast wrote, got {_reason(error)}"
            ) from error

    def class_codes(self) -> NDArray[np.int32]:
        """(N,) int32, the position of each nucleus's class in ``classes``; -1: unclassified."""
        table = np.full(256, -1, np.int32)
        table[[entry.id for entry in self.classes]] = np.arange(len(self.classes), dtype=np.int32)
        return table[self.class_id]

    def _header(self) -> str:
        classes = [{"id": c.id, "name": c.name, "color": list(c.color)} for c in self.classes]
        header = {"mpp": self.mpp, "classes": classes, "features": list(self.features), "meta": self.meta}
        return json.dumps(header)


# GeoParquet 1.1. "crs": null must be written out: left away it would mean longitude and latitude.
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {
        "geometry": {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None,
            "covering": {"bbox": {name: ["bbox", name] for name in _BBOX}},
        }
    },
}

# A WKB polygon of one ring: byte order, type, number of rings, number of points; then the points.
_WKB_HEAD = np.dtype([("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4")])
_POINT_BYTES = 16


# pa.array() and to_numpy() would import pandas wherever it is installed: half a second, 40 MB.


def to_arrow_column(values: NDArray[np.generic], valid: NDArray[np.bool_] | None = None) -> pa.Array:
    """An Arrow array of the same type, without a copy where it can be; not ``valid``: null."""
    import pyarrow as pa

    bits = None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    buffers = [bits, pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), buffers)


def from_arrow_column(values: pa.Array, null: int | None = None) -> NDArray[Any]:
    """The inverse of ``to_arrow_column`` for numbers; nulls become ``null``, or are an error without it."""
    dtype = np.dtype(values.type.to_pandas_dtype())
    if dtype.kind not in "iuf":
        raise ValueError(f"{values.type} where numbers belong")
    if not len(values):
        return np.empty(0, dtype)
    bits, numbers = values.buffers()
    rows = slice(values.offset, values.offset + len(values))
    found = np.frombuffer(numbers, dtype)[rows]
    if values.null_count == 0:
        return found
    if null is None:
        raise ValueError(f"{values.null_count} nulls where numbers belong")
    valid = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[rows]
    return np.where(valid == 1, found, dtype.type(null))


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    parts = [from_arrow_column(chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0, column.type.to_pandas_dtype())


def to_arrow_strings(texts: Sequence[str]) -> pa.Array:
    """An Arrow array of strings."""
    import pyarrow as pa

    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _encode_wkb(vertices: NDArray[np.float64], offsets: NDArray[np.int64]) -> pa.Array:
    import pyarrow as pa

    count, points = len(offsets) - 1, len(vertices)
    starts = _POINT_BYTES * offsets + _WKB_HEAD.itemsize * np.arange(count + 1)
    if starts[-1] > np.iinfo(np.int32).max:
        raise OutputError(f"geometry: expected less than 2 GiB in {count} polygons, got {starts[-1]} bytes")
    data = np.empty(int(starts[-1]), np.uint8)
    if count:
        sizes = np.diff(offsets)
        head = _at_any_byte(data, _WKB_HEAD)
        records = np.empty(count, _WKB_HEAD)
        records["order"], records["type"], records["rings"], records["points"] = 1, 3, 1, sizes
        head[starts[:-1]] = records
        heads = np.repeat(np.arange(1, count + 1), sizes)  # how many lie before each point
        places = _POINT_BYTES * np.arange(points) + _WKB_HEAD.itemsize * heads
        rows = np.ascontiguousarray(vertices, "<f8").view("V16")[:, 0]
        _at_any_byte(data, np.dtype("V16"))[places] = rows
    buffers = [None, pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), count, buffers)


def _decode_wkb(chunk: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The points of all rings, and how many each has."""
    if not len(chunk):
        return np.empty((0, 2)), np.empty(0, np.int64)
    _, ends, values = chunk.buffers()
    starts = np.frombuffer(ends, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
    data = np.frombuffer(values, np.uint8)
    if np.diff(starts).min() < _WKB_HEAD.itemsize:
        raise ValueError("geometry that is not WKB")
    head = _at_any_byte(data, _WKB_HEAD)[starts[:-1]]
    sizes = head["points"].astype(np.int64)
    whole = np.array_equal(np.diff(starts), _WKB_HEAD.itemsize + _POINT_BYTES * sizes)
    plain = (head["order"] == 1) & (head["type"] == 3) & (head["rings"] == 1)
    if not (whole and plain.all()):
        raise ValueError("geometry that is not little-endian WKB polygons of one ring")
    firsts = np.repeat(starts[:-1] - _POINT_BYTES * (np.cumsum(sizes) - sizes), sizes)
    places = firsts + _WKB_HEAD.itemsize + _POINT_BYTES * np.arange(sizes.sum())
    rows = _at_any_byte(data, np.dtype("V16"))[places]
    return rows.view("<f8").reshape(-1, 2), sizes


def _at_any_byte(data: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Element i of the result is the ``dtype`` that starts at byte i: WKB is not aligned."""
    count = max(0, data.size - dtype.itemsize + 1)
    return np.ndarray((count,), dtype, buffer=data, strides=(1,))


def _expect(name: str, array: object, dtype: str, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name}: expected {dtype}, got {got}")
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"no {text}" if isinstance(error, KeyError) else text
