"""What the C library does with large arrays that are freed. Only commands set it, never the Python API."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping

# Of mallopt(3), which glibc has and other C libraries lack.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def give_memory_back() -> None:
    """Return the largest arrays to the system, and keep those of a region for the next one.

    Fresh memory costs more than to fill it. Arrays of 32 MB and more, kept and cut up, would cost a run a
    quarter more memory; smaller ones do not, if all threads take them from one place.
    """
    # Arrow's own allocator keeps what it has had.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    _mallopt({_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20, _M_ARENA_MAX: 1})


def keep_memory() -> None:
    """Keep freed arrays: each step of a training asks for the same again; fresh pages took a third of it."""
    _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 1 << 30})


def _mallopt(settings: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in settings.items():
            libc.mallopt(parameter, value)
