"""CSV: one row per nucleus, for spreadsheets and R; no polygons."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from nucfast.nuclei import Nuclei, to_arrow_column, to_arrow_strings
from nucfast.output.writer import Writer


class CsvWriter(Writer):
    """Units are in the header; four decimals; a value that is missing or undefined is an empty field."""

    def _begin(self) -> None:
        schema = _table(self._empty).schema
        self._file.write((",".join(schema.names) + "\n").encode())  # pyarrow would put it into quotes
        options = csv.WriteOptions(include_header=False, quoting_style="needed")
        self._csv = csv.CSVWriter(self._file, schema, write_options=options)

    def _append(self, nuclei: Nuclei) -> None:
        self._csv.write_table(_table(nuclei))

    def _end(self) -> None:
        self._csv.close()


def _table(nuclei: Nuclei) -> pa.Table:
    names = to_arrow_strings([entry.name for entry in nuclei.classes])
    codes = nuclei.class_codes()
    columns = {
        "id": to_arrow_column(nuclei.id),
        "class": names.take(to_arrow_column(codes, codes >= 0)),
        "probability": _decimals(nuclei.probability),
        "class_probability": _decimals(nuclei.class_probability),
        "x_px": _decimals(nuclei.x),
        "y_px": _decimals(nuclei.y),
        "x_um": _decimals(nuclei.x * nuclei.mpp),
        "y_um": _decimals(nuclei.y * nuclei.mpp),
        **{name: _decimals(column) for name, column in nuclei.features.items()},
    }
    return pa.Table.from_arrays(list(columns.values()), list(columns))


def _decimals(column: NDArray[np.floating]) -> pa.Array:
    return to_arrow_column(column.astype(np.float64).round(4), np.isfinite(column))
