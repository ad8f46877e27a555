"""What the processor computes natively, where a precision is only worth having if it does."""

from __future__ import annotations

from pathlib import Path

# Instructions that multiply and sum bytes into 32 bits: x86 (VNNI, AMX), AArch64 (dot product).
_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}

# They sum two products in 16 bits.
_INT8_IN_16_BITS = {"avx2"}


def has_int8(*, overflow_free: bool = False, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether int8 computes right on this processor, and faster than fp32.

    Args:
        overflow_free: the weights are such that sums of two products fit into 16 bits. Others need
            instructions that sum in 32.
        cpuinfo: as Linux writes it; False where there is none.
    """
    fit = _INT8 | _INT8_IN_16_BITS if overflow_free else _INT8
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return not fit.isdisjoint(value.split())
    return False
