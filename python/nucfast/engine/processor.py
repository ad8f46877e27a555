"""What the processor computes natively, where a precision is only worth having if it does."""

from __future__ import annotations

from pathlib import Path

# Instructions that multiply and sum bytes into 32 bits: x86 (VNNI, AMX), AArch64 (dot product).
_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}


def has_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has int8 dot products; without them int8 may overflow 16-bit sums.

    False where it cannot be told.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return not _INT8.isdisjoint(value.split())
    return False
