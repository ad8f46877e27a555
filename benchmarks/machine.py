"""What a machine is called: the folder of its figures, and what ``compare.py`` holds against each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What an engine can reach depends on these more than on the brand, which clouds hide; the widest counts.
FEATURES = {"amx": ("amx_tile",), "vnni": ("avx512_vnni", "avx_vnni"), "avx2": ("avx2",)}


def machine_name(cpu: Mapping[str, Any], cores: int) -> str:
    """Of what py-cpuinfo says, such as ``amd-epyc-vnni-2-cores``."""
    brand = re.sub(r"\(.*?\)|CPU|Processor|@.*", "", cpu.get("brand_raw", "unknown")).lower()
    flags = set(cpu.get("flags", ()))
    feature = next((name for name, any_of in FEATURES.items() if flags & set(any_of)), "")
    return "-".join([*re.findall(r"[a-z0-9]+", f"{brand} {feature}"), str(cores), "cores"])
