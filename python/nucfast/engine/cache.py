"""Where built engines are kept: building takes minutes, loading does not.

One file for each network, device, precision and shape, named by them. It begins with a line of JSON: what it
was built from, with which version of the library, for which device, and the SHA-256 of the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from nucfast.errors import EngineError

MAGIC = "nucfast engine 1"


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
    name = "-".join(value.replace("/", "_").replace(" ", "_") for value in slot.values())
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
        raise EngineError(
            f"{path}: the engine cannot be kept there ({error.strerror or error}): "
            "set NUCFAST_CACHE to a folder that can be written"
        ) from error
    return engine


def _read(path: Path, header: Mapping[str, str]) -> bytes | None:
    """The engine in this file; None if there is no file or it is stale."""
    if not path.exists():
        return None
    first, _, engine = path.read_bytes().partition(b"\n")
    try:
        found = json.loads(first)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("magic") != MAGIC:
        raise EngineError(f"{path}: is not an engine that nucfast built: remove it or set NUCFAST_CACHE")
    fits = {**header, "sha256": hashlib.sha256(engine).hexdigest()} == found
    return engine if fits else None
