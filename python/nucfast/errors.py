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
    """A package is not installed or does not load; the message holds the command that mends it."""


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def require(module: str, *, extra: str | None, purpose: str) -> ModuleType:
    """Import a module that may not be there.

    Args:
        module: the module's dotted name, such as ``"geopandas"``.
        extra: the extra of nucfast that brings it; None: nucfast itself does.
        purpose: what needs it, for the message: "to_geopandas()", "--engine onnxruntime".

    Raises:
        MissingExtraError: it is not installed, or not whole; the message holds the command.
    """
    package = module.split(".")[0]
    brings_it = "nucfast" if extra is None else f"'nucfast[{extra}]'"
    try:
        return importlib.import_module(module)
    # Libraries raise whatever fails in them: a library of theirs is broken, or made for another NumPy.
    except Exception as error:
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if missing == package:
            what, install = "", brings_it if extra is not None else f"--force-reinstall {brings_it}"
        elif missing and missing.split(".")[0] != package:
            what, install = f", which needs {missing.split('.')[0]!r}", missing.split(".")[0]
        else:
            what, install = f", which does not load ({one_line(error)})", f"--force-reinstall {brings_it}"
        raise MissingExtraError(
            f"{purpose} needs the package {package!r}{what}: run  pip install {install}"
        ) from error
