"""What got slower between two runs of one suite: ``python benchmarks/compare.py OLD.json NEW.json``.

Machines differ from hour to hour, so times of different runs are not compared. Each run holds what it
measures beside something else, round by round in turn: engines beside PyTorch in fp32, kernels beside the
libraries people use for them, reading slides beside OpenSlide, two workers beside one. Compared is how many
times as fast each is. Another kind of machine or another model has other ratios, so that is said. Exit code 1
if one lost more than ``--allowed``, 2 if a file cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from machine import machine_name


class Run(NamedTuple):
    """A file: on what machine, with which model, and by name how many times as fast as what is beside it."""

    machine: str
    model: str
    ratios: dict[str, float]


def read_run(path: Path) -> Run:
    """A file of ``benchmarks/run.py``.

    Raises:
        ValueError: it cannot be read, or nothing in it was measured beside something else.
    """
    model, found = "no model stated", {}
    try:
        results = json.loads(path.read_text())
        cpu = results.get("machine_info", {}).get("cpu", {})
        for entry in results["benchmarks"]:
            info = entry["extra_info"]
            model = info.get("model", model)
            found |= _ratios(entry.get("name", "").removeprefix("test_"), info)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected the JSON of  scripts/bench SUITE, got {type(error).__name__}: {error}"
        ) from error
    if not found:
        raise ValueError(
            f"{path}: nothing was measured beside anything else: run  scripts/bench  with PyTorch or the "
            "libraries to compare with installed"
        )
    return Run(machine_name(cpu, cpu.get("count", 0)), model, found)


def _ratios(name: str, info: dict[str, Any]) -> dict[str, float]:
    """What one benchmark says: of engines, of a kernel, of a slide."""
    found: dict[str, float] = dict(info.get("times_baseline", {}))
    for bar in info.get("bars", ()):
        for threads in (1, 2):
            ratio, peer = bar[f"ratio_t{threads}"], bar["peer"] or "the best"
            if ratio is not None:
                found[f"{name} by {peer}, T{threads}"] = ratio
    # Decoding's share of the network's time falls with either; it is no ratio to a peer.
    if "ratio" in info and "decode_s" not in info:
        found[name] = info["ratio"]
    return found


def compare(old: dict[str, float], new: dict[str, float], *, allowed: float) -> tuple[list[str], bool]:
    """A line for each name, and whether one of them lost more than ``allowed`` (0.1 is a tenth)."""
    lines, worse = [], False
    width = max(20, *map(len, old | new))
    for name in sorted(old | new):
        if name not in old or name not in new:
            lines.append(f"{name:{width}} {'new' if name in new else 'gone'}")
            continue
        change = new[name] / old[name]
        slower = change < 1 - allowed
        worse |= slower
        mark = "  SLOWER" if slower else ""
        lines.append(f"{name:{width}} {old[name]:6.2f}x -> {new[name]:6.2f}x  ({change - 1:+.0%}){mark}")
    return lines, worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--allowed", type=float, default=0.1, help="loss that is put down to noise")
    args = parser.parse_args()
    try:
        old, new = read_run(args.old), read_run(args.new)
    except ValueError as error:
        parser.error(str(error))
    for name, run in (("old", old), ("new", new)):
        print(f"{name}: {run.machine}, {run.model}")
    for what in ("machine", "model"):
        if getattr(old, what) != getattr(new, what):
            print(f"warning: another {what}: its ratios may differ for that alone", file=sys.stderr)
    lines, worse = compare(old.ratios, new.ratios, allowed=args.allowed)
    print("\n".join(lines))
    return int(worse)


if __name__ == "__main__":
    raise SystemExit(main())
