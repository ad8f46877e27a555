"""Where the data that is too large for the repository lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of annotated data sets, from ``NUCFAST_DATA``."""
    folder = os.environ.get("NUCFAST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("NUCFAST_DATA does not name the folder of data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def slides_dir() -> Path:
    """The folder of real slides, from ``NUCFAST_SLIDES`` or beside ``NUCFAST_DATA``."""
    folder = os.environ.get("NUCFAST_SLIDES")
    if not folder and os.environ.get("NUCFAST_DATA"):
        folder = str(Path(os.environ["NUCFAST_DATA"]).parent / "slides")
    if not folder or not Path(folder).is_dir():
        pytest.skip("neither NUCFAST_SLIDES nor NUCFAST_DATA leads to a folder of slides")
    return Path(folder)
