"""Where built engines are kept: building takes minutes, loading does not.

One file for each network, device, precision and shape, named by them. It begins with a line of JSON: what it
was built from, with which version of the library, for which device, and the SHA-256 of the rest. A library
that keeps its engines itself gets a folder in place of the file, with that line in a file of its own.
"""

from __future__ import annotations

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


def cache_folder() -> Path:
    """``$NUCFAST_CACHE``, else ``nucfast`` in the user's cache folder."""
    chosen = os.environ.get("NUCFAST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nucfast"


def cached_engine(
    slot: Mapping[str, str], made_with: Mapping[str, str], build: Callable[[], bytes], *, folder: Path
) -> bytes:
    """A built engine from the cache; built, and kept there, if the cache has none that fits.

    Args:
        slot: what the engine is for: network, device, precision, shape. A file for each.
        made_with: what may change under it: the bundle's hash, the library's version. An engine made with
            anything else, or a damaged one, is stale: it is built again and replaced.
        build: makes the engine.
        folder: the cache; made if need be.

    Raises:
        EngineError: the file in this place is not one of nucfast's, or the cache cannot be written.
    """
    name = slot_name(slot)
    path = folder / f"{name}.engine"
    header = {"magic": MAGIC, **slot, **made_with}
    try:
        found = _read(path, header)
        if found is not None:
            return found
        engine = build()
        folder.mkdir(parents=True, exist_ok=True)
        full = {**header, "sha256": hashlib.sha256(engine).hexdigest()}
        # In the same folder, so that the rename is atomic: a reader sees the old file or the new one.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
            file.write(json.dumps(full).encode() + b"\n" + engine)
        Path(file.name).replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    return engine


@contextmanager
def cached_folder(slot: Mapping[str, str], made_with: Mapping[str, str], *, folder: Path) -> Iterator[Path]:
    """The same for a library that keeps its engines itself: gives it the folder that holds them.

    If the cache has none that fits, the folder is a new, empty one, which takes its place in the cache when
    the with-block ends without an error: complete or not at all.

    Raises:
        EngineError: as ``cached_engine``.
    """
    name = slot_name(slot)
    path = folder / f"{name}.engines"
    header = {"magic": MAGIC, **slot, **made_with}
    if path.exists():
        text = (path / HEADER).read_bytes() if (path / HEADER).is_file() else b""
        if _header(path, text) == header:
            yield path
            return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}."))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        made = scratch / "engines"
        made.mkdir()
        yield made
        (made / HEADER).write_text(json.dumps(header))
        # Another process may put its own there in between: that one fits as well.
        with suppress(OSError):
            if path.exists():
                path.rename(scratch / "stale")
            made.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def slot_name(slot: Mapping[str, str]) -> str:
    """What an engine is for, as a file's name."""
    return "-".join(value.replace("/", "_").replace(" ", "_") for value in slot.values())


def _unwritable(path: Path, error: OSError) -> EngineError:
    return EngineError(
        f"{path}: the engine cannot be kept there ({error.strerror or error}): "
        "set NUCFAST_CACHE to a folder that can be written"
    )


def _header(path: Path, text: bytes) -> dict[str, str]:
    """The header, once it is certain that nucfast wrote what it belongs to."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("magic") != MAGIC:
        raise EngineError(f"{path}: is not an engine that nucfast built: remove it or set NUCFAST_CACHE")
    return found


def _read(path: Path, header: Mapping[str, str]) -> bytes | None:
    """The engine in this file; None if there is no file or it is stale."""
    if not path.exists():
        return None
    first, _, engine = path.read_bytes().partition(b"\n")
    fits = {**header, "sha256": hashlib.sha256(engine).hexdigest()} == _header(path, first)
    return engine if fits else None
