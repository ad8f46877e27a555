"""Writers: from batches of nuclei to files that other programs open, and the overlay picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nucfast.nuclei import FEATURES, NucleusClass
from nucfast.output.writer import SlideInfo, Writer

if TYPE_CHECKING:
    from nucfast.output.overlay import write_overlay

__all__ = ["FORMATS", "SlideInfo", "Writer", "open_writer", "write_overlay"]

FORMATS = {
    "geoparquet": "nuclei.parquet",
    "geojson": "nuclei.geojson",
    "geojson.gz": "nuclei.geojson.gz",
    "csv": "nuclei.csv",
}
"""Format name to the name of its file in a result folder."""

_WRITERS = {
    "geoparquet": ("nucfast.output.geoparquet", "GeoParquetWriter"),
    "geojson": ("nucfast.output.geojson", "GeoJsonWriter"),
    "geojson.gz": ("nucfast.output.geojson", "GeoJsonGzWriter"),
    "csv": ("nucfast.output.csv", "CsvWriter"),
}


def open_writer(
    format: str,
    path: str | Path,
    *,
    slide_info: SlideInfo,
    classes: Sequence[NucleusClass],
    features: Sequence[str] = FEATURES,
    meta: Mapping[str, Any] | None = None,
) -> Writer:
    """Open a file for writing, a batch of nuclei at a time, in bounded memory.

    Use it in a ``with`` block: the file appears under its name when the block ends, and not at all if it
    ends in an exception.

    Args:
        format: a key of ``FORMATS``.
        path: the file to write; one that exists is replaced at ``close()``.
        slide_info: the slide; its mpp must be that of every batch.
        classes: the class scheme, the same in every batch.
        features: the names of the features, the same in every batch.
        meta: what else to record: model, version, licence, ...; must be writable as JSON.

    Raises:
        ValueError: the format is unknown.
        OutputError: the file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    module, name = _WRITERS[format]  # imported only now: pyarrow alone takes a second
    writer = cast("type[Writer]", getattr(import_module(module), name))
    return writer(path, slide_info=slide_info, classes=classes, features=features, meta=meta)


def __getattr__(name: str) -> Any:
    if name == "write_overlay":
        return import_module("nucfast.output.overlay").write_overlay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
