"""GeoParquet 1.1: the exact form of a result, which ``Nuclei.read`` reads back and geopandas opens."""

from __future__ import annotations

import contextlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nucfast.nuclei import Nuclei
from nucfast.output.writer import Writer

# Some 5 MB: large enough that statistics and compression pay, small enough to wait for in memory. All row
# groups but the last have this size, so the file does not depend on how the nuclei came in batches.
_ROW_GROUP_ROWS = 8192


class GeoParquetWriter(Writer):
    """WKB polygons, a bbox covering, the class as dictionary, zstd."""

    _parquet: Any = None

    def _begin(self) -> None:
        self._kept: list[Nuclei] = []
        schema = self._empty.to_arrow().schema
        self._parquet = pq.ParquetWriter(
            pa.PythonFile(self._file, "w"), schema, compression="zstd", use_dictionary=["class"]
        )

    def _append(self, nuclei: Nuclei) -> None:
        self._kept.append(nuclei)
        if sum(map(len, self._kept)) < _ROW_GROUP_ROWS:
            return
        merged = Nuclei.concat(self._kept)
        full = len(merged) // _ROW_GROUP_ROWS * _ROW_GROUP_ROWS
        for start in range(0, full, _ROW_GROUP_ROWS):
            self._write_group(merged[start : start + _ROW_GROUP_ROWS])
        self._kept = [merged[full:]]

    def _end(self) -> None:
        if self._kept:
            self._write_group(Nuclei.concat(self._kept))
        self._parquet.close()

    def _release(self) -> None:
        # Closing writes a footer, which may fail just like what failed before; it is thrown away anyhow.
        if self._parquet is not None:
            with contextlib.suppress(OSError):
                self._parquet.close()
            self._parquet.is_open = False

    def _write_group(self, nuclei: Nuclei) -> None:
        if len(nuclei):
            self._parquet.write_table(nuclei.to_arrow(), row_group_size=_ROW_GROUP_ROWS)
