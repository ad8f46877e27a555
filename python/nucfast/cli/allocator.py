"""What the C library does with large arrays that are freed. Only commands set it, never the Python API."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping

# Of mallopt(3), which glibc has and other C libraries lack.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def give_memory_back() -> None:
    """Return large arrays to the system: kept and cut up, they cost a run a quarter more memory."""
    # Arrow's own allocator keeps what it has had.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # Large: those that NumPy asks to have in huge pages. Smaller ones come page by page, which costs more
    # than to fill them. A low trim threshold would give the heap's end back after every tile.
    _mallopt({_M_MMAP_THRESHOLD: 4 << 20, _M_TRIM_THRESHOLD: 32 << 20})


def keep_memory() -> None:
    """Keep freed arrays: each step of a training asks for the same again; fresh pages took a third of it."""
    _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 1 << 30})


def _mallopt(settings: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in settings.items():
            libc.mallopt(parameter, value)
