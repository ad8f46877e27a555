"""What the processor computes natively, where a precision is only worth having if it does."""

from __future__ import annotations

from pathlib import Path

# Instructions that multiply and sum bytes into 32 bits: x86 (VNNI, AMX), AArch64 (dot product).
_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}

# They sum two products in 16 bits.
_INT8_IN_16_BITS = {"avx2"}


_CPUINFO = Path("/proc/cpuinfo")


def has_int8(*, overflow_free: bool = False, cpuinfo: Path = _CPUINFO) -> bool:
    """Whether int8 computes right on this processor, and faster than fp32.

    Args:
        overflow_free: the weights are such that sums of two products fit into 16 bits. Others need
            instructions that sum in 32.
        cpuinfo: as Linux writes it; False where there is none.
    """
    fit = _INT8 | _INT8_IN_16_BITS if overflow_free else _INT8
    return not fit.isdisjoint(_features(cpuinfo))


def bf16_pays(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether bf16, where it is computed at all, is faster than fp32.

    Intel's AVX-512 multiplies bf16 no faster than fp32, and converting comes on top (0.6 times the speed of
    fp32 on a Xeon whose AMX the virtual machine hides); AMX does, and so does AMD's AVX-512. True where
    nothing is known of the processor.
    """
    features = _features(cpuinfo)
    return "amx_bf16" in features or "avx512_bf16" not in features or "GenuineIntel" not in features


def _features(cpuinfo: Path) -> set[str]:
    """The first processor's flags and its vendor's name."""
    found: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value)
    except OSError:
        return set()
    return {word for key in ("vendor_id", "flags", "Features") for word in found.get(key, "").split()}
