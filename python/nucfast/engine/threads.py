"""How many processors this process may use.

On a shared machine the number of processors built in says little: a batch system narrows the process's
affinity, a container limits its share through a cgroup quota. Both are honoured here.
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cpus() -> int:
    """Processors this process may keep busy, at least 1.

    The smaller of its CPU affinity and of the CPU quota (rounded up) of its control group and of all groups
    above it, version 1 and 2.
    """
    return max(1, min(len(os.sched_getaffinity(0)), _quota_cpus(Path("/"))))


def resolve_threads(threads: int | None) -> int:
    """The number of threads to use: ``threads``, or all that are available.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below 1.
    """
    if threads is None:
        return available_cpus()
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise TypeError(f"threads: expected int or None, got {type(threads).__name__}")
    if threads < 1:
        raise ValueError(f"threads: expected 1 or more, got {threads}")
    return threads


def _quota_cpus(root: Path) -> int:
    """The tightest CPU quota over this process's cgroups; very large where there is none.

    ``root`` is "/" except in tests.
    """
    tightest = float("inf")
    for group in control_groups("cpu", root=root):
        tightest = min(tightest, _v2_quota(group), _v1_quota(group))
    return math.ceil(tightest) if math.isfinite(tightest) else 1 << 30


def control_groups(controller: str, *, root: Path = Path("/")) -> list[Path]:
    """The folders of this process's control groups, and of all above them, that may limit what it uses.

    Args:
        controller: "cpu" or "memory"; version 2 has all of them in one hierarchy.
        root: "/" except in tests.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    # proc(5), cgroups(7): "hierarchy:controllers:path"; version 2 has no controllers listed.
    unified: str | None = None
    separate: str | None = None
    for line in groups:
        _, names, path = line.split(":", 2)
        if names == "":
            unified = path
        elif controller in names.split(","):
            separate = path
    found: list[Path] = []
    for line in mounts:
        # "id parent dev root mount-point options ... - type source super-options"
        left, _, right = line.partition(" - ")
        mounted, point = left.split()[3:5]
        kind, *_, options = right.split()
        own = {"cgroup2": unified, "cgroup": separate}.get(kind)
        if own is None or (kind == "cgroup" and controller not in options.split(",")):
            continue
        mount = root / point.lstrip("/")
        # In a container the path may be the host's, above what is mounted: then the mount is the own group.
        folder = mount / own.removeprefix(mounted).lstrip("/")
        folder = folder if folder.is_dir() else mount
        found += [group for group in (folder, *folder.parents) if group.is_relative_to(mount)]
    return found


def _v2_quota(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return float("inf")


def _v1_quota(group: Path) -> float:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
        return float("inf") if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return float("inf")
