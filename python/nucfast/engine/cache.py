"""Where built engines are kept: building takes minutes, loading does not.

One file for each network, device, precision and shape, named by them and by the network's SHA-256. It begins
with a line of JSON: what it was built from, with which version of the library, for which device, and the
SHA-256 of the rest. A library that keeps its engines itself gets a folder in place of the file, with that
line in a file of its own. Of networks that share a name, the ``KEPT`` used last keep their engines.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from nucfast.errors import EngineError

MAGIC = "nucfast engine 1"
HEADER = "nucfast.json"  # of a folder
KEPT = 4
_DIGITS = 12  # of the network's SHA-256, in names


def cache_folder() -> Path:
    """``$NUCFAST_CACHE``, else ``nucfast`` in the user's cache folder."""
    chosen = os.environ.get("NUCFAST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nucfast"


def cached_engine(
    slot: Mapping[str, str], build: Callable[[], bytes], *, network: bytes, version: str, folder: Path
) -> bytes:
    """A built engine from the cache; built, and kept there, if the cache has none that fits.

    Args:
        slot: what the engine is for: the network's name, device, precision, shape.
        build: makes the engine.
        network: what it is built from: an ONNX file with all of its weights, wherever they are stored.
        version: the library's. An engine of another one, or a damaged one, is stale: it is built again and
            replaced.
        folder: the cache; made if need be.

    Raises:
        EngineError: the file in this place is not one of nucfast's, or the cache cannot be written.
    """
    header = _made_from(slot, network, version)
    path = _place(slot, header["sha256_of_network"][:_DIGITS], ".engine", folder)
    with usable(path):
        found = _read(path, header)
        if found is not None:
            _note_use(path)
            return found
        # Before the minutes that it takes to build: there may be no place to keep it.
        folder.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the rename is atomic: a reader sees the old file or the new one.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{path.name}.") as scratch:
            engine = build()
            full = {**header, "sha256": hashlib.sha256(engine).hexdigest()}
            made = Path(scratch) / "engine"
            made.write_bytes(json.dumps(full).encode() + b"\n" + engine)
            made.replace(path)
    _forget_oldest(slot, ".engine", folder)
    return engine


@contextmanager
def cached_folder(slot: Mapping[str, str], *, network: bytes, version: str, folder: Path) -> Iterator[Path]:
    """The same for a library that keeps its engines itself: gives it the folder that holds them.

    If the cache has none that fits, the folder is a new, empty one, which takes its place in the cache when
    the with-block ends without an error: complete or not at all.

    Raises:
        EngineError: as ``cached_engine``.
    """
    header = _made_from(slot, network, version)
    path = _place(slot, header["sha256_of_network"][:_DIGITS], ".engines", folder)
    with usable(path):
        fits = path.exists() and _header(path) == header
    if fits:
        _note_use(path)
        yield path
        return
    with usable(path):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=f".{path.name}."))
    try:
        made = scratch / "engines"
        with usable(path):
            made.mkdir()
        yield made
        with usable(path):
            (made / HEADER).write_text(json.dumps(header))
        # Another process may put its own there in between: that one fits as well.
        with suppress(OSError):
            if path.exists():
                path.rename(scratch / "stale")
            made.rename(path)
        _forget_oldest(slot, ".engines", folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def slot_name(slot: Mapping[str, str]) -> str:
    """What an engine is for, as a file's name."""
    return "-".join(value.replace("/", "_").replace(" ", "_") for value in slot.values())


def _made_from(slot: Mapping[str, str], network: bytes, version: str) -> dict[str, str]:
    made_from = {"sha256_of_network": hashlib.sha256(network).hexdigest(), "version": version}
    return {"magic": MAGIC, **slot, **made_from}


def _place(slot: Mapping[str, str], digits: str, ending: str, folder: Path) -> Path:
    return folder / f"{slot_name(slot)}-{digits}{ending}"


def _note_use(path: Path) -> None:
    with suppress(OSError):  # a cache that can only be read serves as well
        os.utime(path)


def _forget_oldest(slot: Mapping[str, str], ending: str, folder: Path) -> None:
    """Remove those of all but the last networks of this name: a model exported often would fill the disk."""
    alike = _place({"slot": glob.escape(slot_name(slot))}, "[0-9a-f]" * _DIGITS, ending, Path())
    # What cannot be removed, or another process has removed already, is no reason to fail.
    with suppress(OSError, EngineError):
        for path in sorted(folder.glob(str(alike)), key=lambda path: -path.stat().st_mtime_ns)[KEPT:]:
            _header(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turns what the system refuses within it into an EngineError that says how to mend it."""
    try:
        yield
    except OSError as error:
        mend = "set NUCFAST_CACHE to a folder that can be written"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            mend = "free some space there, or set NUCFAST_CACHE to a folder on another disk"
        raise EngineError(
            f"{path}: the engine cannot be kept there ({error.strerror or error}): {mend}"
        ) from error


def _header(path: Path) -> dict[str, str]:
    """The header of a file or folder, once it is certain that nucfast wrote it."""
    try:
        with (path / HEADER if path.is_dir() else path).open("rb") as file:
            found = json.loads(file.readline())
    except (FileNotFoundError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("magic") != MAGIC:
        raise EngineError(f"{path}: is not an engine that nucfast built: remove it or set NUCFAST_CACHE")
    return found


def _read(path: Path, header: Mapping[str, str]) -> bytes | None:
    """The engine in this file; None if there is no file or it is stale."""
    if not path.exists():
        return None
    found = _header(path)
    _, _, engine = path.read_bytes().partition(b"\n")
    return engine if {**header, "sha256": hashlib.sha256(engine).hexdigest()} == found else None
