"""Every error a user can meet, and the one helper through which optional packages are imported."""

from __future__ import annotations

import importlib
from types import ModuleType


class NucfastError(Exception):
    """Base of all errors that a user can cause or mend; the message says what to do.

    Programming mistakes (wrong dtype, wrong shape) are ``TypeError`` and ``ValueError`` instead.
    """


class SlideError(NucfastError):
    """A slide cannot be opened or read, or its resolution is unknown."""


class BundleError(NucfastError):
    """A model bundle is missing, damaged or of a version this release cannot run."""


class EngineError(NucfastError):
    """The engine or device asked for is not there, or failed on a tile."""


class OutputError(NucfastError):
    """A result cannot be written or read."""


class DatasetError(NucfastError):
    """An annotated data set does not have the layout or the content it must have."""


class MissingExtraError(NucfastError):
    """An optional package is not installed; the message holds the command that installs it."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: the module's dotted name, such as ``"geopandas"``.
        extra: the extra of nucfast that brings it.
        purpose: what needs it, for the message: "to_geopandas()", "--engine onnxruntime".

    Raises:
        MissingExtraError: it is not installed; the message names the extra and the command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{purpose} needs the package {module.split('.')[0]!r}: run  pip install 'nucfast[{extra}]'"
        ) from error
