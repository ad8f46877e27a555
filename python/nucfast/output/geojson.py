"""QuPath GeoJSON, plain and gzipped.

QuPath rounds coordinates to 0.01 px and refuses the whole file if one ring is then invalid, so they are
rounded here already. It shows slides with bounds (MIRAX) from the bounds' corner, which is subtracted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
from isal import isal_zlib

from nucfast import _core
from nucfast.nuclei import Nuclei
from nucfast.output.writer import AtomicFile, SlideInfo, Writer

_TAIL = b"\n]}\n"
_GZIP = 31  # as wbits: neither name nor time in the header, so that equal nuclei give equal bytes
_CHUNK = 4096  # features per write: large for a compressor, small beside a region


class GeoJsonWriter(Writer):
    """A FeatureCollection of detections, one feature per line."""

    def _begin(self) -> None:
        self._put(_head(self._empty))

    def _append(self, nuclei: Nuclei) -> None:
        separator = b",\n" if self.rows else b""
        for chunk in _features(nuclei, self._slide_info):
            self._put(separator + chunk)
            separator = b",\n"

    def _end(self) -> None:
        self._put(_TAIL)

    def _put(self, data: bytes) -> None:
        self._file.write(data)


class GeoJsonGzWriter(GeoJsonWriter):
    """The same through gzip."""

    def _begin(self) -> None:
        # ISA-L: a quarter of zlib's time at its level 1, and fewer bytes. Not its GzipFile, which completes
        # itself when it is collected, even after the file is gone.
        self._deflate = isal_zlib.compressobj(level=1, wbits=_GZIP)
        super()._begin()

    def _end(self) -> None:
        super()._end()
        self._file.write(self._deflate.flush())

    def _put(self, data: bytes) -> None:
        self._file.write(self._deflate.compress(data))


def document(nuclei: Nuclei) -> bytes:
    """The whole GeoJSON document of a table."""
    return _head(nuclei) + b",\n".join(_features(nuclei, SlideInfo.of_nuclei(nuclei))) + _TAIL


def save(data: bytes, path: str | Path) -> None:
    """Write a document, compressed if the name ends in ``.gz``."""
    with AtomicFile(path) as file:
        file.write(isal_zlib.compress(data, 1, _GZIP) if str(path).endswith(".gz") else data)


def measurement_name(feature: str) -> str:
    """How QuPath's tables call a feature: ``area_um2`` is "Area um^2"."""
    words = feature.split("_")
    units = {"um2": "um^2"}
    return " ".join([words[0].capitalize(), *(units.get(word, word) for word in words[1:])])


def _head(nuclei: Nuclei) -> bytes:
    # A foreign member, as RFC 7946 section 6.1 allows; QuPath looks at "features" only.
    about = orjson.dumps({"mpp": nuclei.mpp, **nuclei.meta}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b'{"type":"FeatureCollection","nucfast":' + about + b',"features":[\n'


def _features(nuclei: Nuclei, slide_info: SlideInfo) -> Iterator[bytes]:
    """The features as JSON, joined by commas, in chunks."""
    hashed = hashlib.blake2b(slide_info.name.encode(), digest_size=16).digest()
    classes = [orjson.dumps({"name": entry.name, "color": entry.color}) for entry in nuclei.classes]
    columns = {
        **nuclei.features,
        "probability": nuclei.probability,
        "class_probability": nuclei.class_probability,
    }
    names = [orjson.dumps(measurement_name(name)) for name in columns]
    codes = nuclei.class_codes()
    for start in range(0, len(nuclei), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield _core.geojson_features(
            np.ascontiguousarray(nuclei.id[rows]),
            codes[rows],
            np.ascontiguousarray(nuclei.vertices),
            np.ascontiguousarray(nuclei.offsets[start : start + _CHUNK + 1]),
            np.stack([column[rows] for column in columns.values()], axis=1),
            (int.from_bytes(hashed[:8], "little"), int.from_bytes(hashed[8:], "little")),
            slide_info.origin,
            classes,
            names,
        )
