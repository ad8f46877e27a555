"""QuPath GeoJSON, plain and gzipped.

QuPath rounds coordinates to 0.01 px and refuses the whole file if one ring is then invalid, so they are
rounded here already. It shows slides with bounds (MIRAX) from the bounds' corner, which is subtracted.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from nucfast.nuclei import Nuclei
from nucfast.output.writer import AtomicFile, SlideInfo, Writer

_TAIL = b"\n]}\n"
_CHUNK = 4096  # features per write: large for zlib, small beside a region


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
        # wbits 31 is gzip, with neither name nor time in its header: equal nuclei give equal bytes. Level 1:
        # the others take longer than all else. Not gzip.GzipFile, which completes itself when it is
        # collected, even after the file is gone.
        self._deflate = zlib.compressobj(level=1, wbits=31)
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
        file.write(gzip.compress(data, 1, mtime=0) if str(path).endswith(".gz") else data)


def uuids(ids: NDArray[np.int64], slide_name: str) -> list[str]:
    """A UUID of version 8 (RFC 9562: custom) per nucleus, the same at every run on the slide.

    Two halves of 64 bits, each the SplitMix64 finaliser (Steele et al., 2014) of the nucleus's id mixed
    with half of a hash of the slide's name; then the version and variant bits.
    """
    key = np.frombuffer(hashlib.blake2b(slide_name.encode(), digest_size=16).digest(), "<u8")
    halves = _mix(_mix(ids.astype(np.uint64)[:, None] ^ key) + key[::-1])
    raw = halves.astype(">u8").view(np.uint8).reshape(-1, 16)
    raw[:, 6] = raw[:, 6] & 0x0F | 0x80
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    text = raw.tobytes().hex()
    whole = [text[i : i + 32] for i in range(0, len(text), 32)]
    return [f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}" for t in whole]


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
    classes = {
        entry.id: orjson.Fragment(orjson.dumps({"name": entry.name, "color": entry.color}))
        for entry in nuclei.classes
    }
    names = [measurement_name(name) for name in (*nuclei.features, "probability", "class_probability")]
    for start in range(0, len(nuclei), _CHUNK):
        part = nuclei[start : start + _CHUNK]
        part_columns = [*part.features.values(), part.probability, part.class_probability]
        table = np.stack(part_columns, axis=1).astype(np.float64).round(4)
        whole = bool(np.isfinite(table).all())
        # Adding 0.0 turns -0.0 into 0.0.
        points = np.round(part.vertices - slide_info.origin, 2) + 0.0
        bounds = part.offsets.tolist()
        lines = []
        for i, (identifier, class_id, row) in enumerate(
            zip(uuids(part.id, slide_info.name), part.class_id.tolist(), table.tolist(), strict=True)
        ):
            measurements = dict(zip(names, row, strict=True))
            if not whole:
                measurements = {name: value for name, value in measurements.items() if np.isfinite(value)}
            properties: dict[str, object] = {"objectType": "detection"}
            if class_id:
                properties["classification"] = classes[class_id]
            properties["measurements"] = measurements
            feature = {
                "type": "Feature",
                "id": identifier,
                "geometry": {"type": "Polygon", "coordinates": [points[bounds[i] : bounds[i + 1]]]},
                "properties": properties,
            }
            lines.append(orjson.dumps(feature, option=orjson.OPT_SERIALIZE_NUMPY))
        yield b",\n".join(lines)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
