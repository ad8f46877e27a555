"""How much memory a run may take."""

from __future__ import annotations

import contextlib
import re
from itertools import product
from pathlib import Path

from nucfast.engine.threads import control_groups
from nucfast.errors import NucfastError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# The interpreter, its libraries and the network with its buffers; measured with the shipped model.
_FIXED_BYTES = 600 * 2**20

# Per pixel read and decoded: the image and its crop, maps, labels, and what the decoder makes of them.
_BYTES_PER_PX = 34


def parse_size(text: str) -> int:
    """Bytes of "800M", "2G", "1.5GiB" or a plain number; units are powers of 1024.

    Raises:
        NucfastError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise NucfastError(f"max_memory: expected a size such as 800M or 2G, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def available_memory(root: Path = Path("/")) -> int:
    """Bytes this process may use: the machine's memory, or the limit of its control group if that is less.

    ``root`` is "/" except in tests.
    """
    limits = []
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                limits.append(int(line.split()[1]) * 1024)
    for group, name in product(control_groups("memory", root=root), ("memory.max", "memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            limits.append(int((group / name).read_text()))
    return min(limits, default=8 * 2**30)


def regions_in_memory(max_memory: str | None, region_px: int, *, most: int) -> int:
    """How many regions of about ``region_px`` pixels may be between reading and writing at once.

    Args:
        max_memory: the limit as the user wrote it; None: a quarter of what is available.
        region_px: pixels of the largest region, halo included.
        most: more than this would keep nothing busier.

    Raises:
        NucfastError: the limit is no size, or does not hold one region.
    """
    one = region_px * _BYTES_PER_PX
    if max_memory is None:
        return max(1, min(most, (available_memory() // 4 - _FIXED_BYTES) // one))
    count = (parse_size(max_memory) - _FIXED_BYTES) // one
    if count < 1:
        raise NucfastError(
            f"max_memory: {max_memory} is less than the {(_FIXED_BYTES + one) / 2**30:.1f}G that one region "
            "takes; allow more, or lower --region-px"
        )
    return min(most, count)


def processes_in_memory(max_memory: str | None, region_px: int, *, most: int) -> int:
    """How many processes with one region each ``max_memory`` allows; None: as many as ``most``."""
    if max_memory is None:
        return most
    return max(1, min(most, parse_size(max_memory) // (_FIXED_BYTES + region_px * _BYTES_PER_PX)))
