"""Where the data that is too large for the repository lies; the instruction sets to compare."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nucfast import _core


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of annotated data sets, from ``NUCFAST_DATA``."""
    folder = os.environ.get("NUCFAST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("NUCFAST_DATA does not name the folder of data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def real_labels(data_dir: Path) -> NDArray[np.int32]:
    """(1000, 1000), the nuclei of an image of CoNSeP."""
    with Image.open(data_dir / "consep" / "labels" / "train_1.png") as image:
        labels = np.asarray(image).astype(np.int32)
    labels.flags.writeable = False
    return labels


@pytest.fixture(scope="session")
def slides_dir() -> Path:
    """The folder of real slides, from ``NUCFAST_SLIDES`` or beside ``NUCFAST_DATA``."""
    folder = os.environ.get("NUCFAST_SLIDES")
    if not folder and os.environ.get("NUCFAST_DATA"):
        folder = str(Path(os.environ["NUCFAST_DATA"]).parent / "slides")
    if not folder or not Path(folder).is_dir():
        pytest.skip("neither NUCFAST_SLIDES nor NUCFAST_DATA leads to a folder of slides")
    return Path(folder)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with each instruction set of the kernels."""
    limit: str = request.param
    if _core.set_isa(limit) != limit:
        pytest.skip(f"this CPU lacks {limit}")
    yield limit
    _core.set_isa(None)
