"""Every nucleus of a whole-slide image, outlined and classified.

``segment`` takes an image in memory and gives ``Nuclei``, one row per nucleus; ``infer`` takes slides and
folders of slides and writes them to files. Names are loaded when first used: importing the package costs
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nucfast import metrics, ops
    from nucfast.engine import Bundle, load_bundle
    from nucfast.errors import NucfastError
    from nucfast.nuclei import Nuclei
    from nucfast.pipeline import RunReport, infer, segment
    from nucfast.slide import Slide, open_slide

    __version__: str

_HOME = {
    "Bundle": "nucfast.engine",
    "NucfastError": "nucfast.errors",
    "Nuclei": "nucfast.nuclei",
    "RunReport": "nucfast.pipeline",
    "Slide": "nucfast.slide",
    "infer": "nucfast.pipeline",
    "load_bundle": "nucfast.engine",
    "open_slide": "nucfast.slide",
    "segment": "nucfast.pipeline",
}

__all__ = [
    "Bundle",
    "NucfastError",
    "Nuclei",
    "RunReport",
    "Slide",
    "__version__",
    "infer",
    "load_bundle",
    "metrics",
    "open_slide",
    "ops",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in {"metrics", "ops"}:
        return importlib.import_module(f"nucfast.{name}")
    if name == "__version__":
        return importlib.import_module("nucfast.version").VERSION
    raise AttributeError(f"module 'nucfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
