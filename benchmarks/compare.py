"""What got slower between two runs of the engines: ``python benchmarks/compare.py OLD.json NEW.json``.

Machines differ from hour to hour, so times of different runs are not compared. Each run holds every engine
beside a baseline, PyTorch in fp32, measured round by round in turn; compared is how many times the baseline
each reaches. Exit code 1 if one lost more than ``--allowed``, 2 if a file cannot be compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def times_baseline(path: Path) -> dict[str, float]:
    """By engine: its speed over that of the baseline in the same run.

    Raises:
        ValueError: the file cannot be read, or no engine in it was measured beside the baseline.
    """
    found: dict[str, float] = {}
    try:
        for entry in json.loads(path.read_text())["benchmarks"]:
            found |= entry["extra_info"].get("times_baseline", {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected the JSON of  scripts/bench engines, got {type(error).__name__}: {error}"
        ) from error
    if not found:
        raise ValueError(
            f"{path}: no engine was measured beside the baseline: run  scripts/bench engines  with PyTorch"
        )
    return found


def compare(old: dict[str, float], new: dict[str, float], *, allowed: float) -> tuple[list[str], bool]:
    """A line for each engine, and whether one of them lost more than ``allowed`` (0.1 is a tenth)."""
    lines, worse = [], False
    for name in sorted(old | new):
        if name not in old or name not in new:
            lines.append(f"{name:20} {'new' if name in new else 'gone'}")
            continue
        change = new[name] / old[name]
        slower = change < 1 - allowed
        worse |= slower
        mark = "  SLOWER" if slower else ""
        lines.append(f"{name:20} {old[name]:6.2f}x -> {new[name]:6.2f}x  ({change - 1:+.0%}){mark}")
    return lines, worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--allowed", type=float, default=0.1, help="loss that is put down to noise")
    args = parser.parse_args()
    try:
        old, new = times_baseline(args.old), times_baseline(args.new)
    except ValueError as error:
        parser.error(str(error))
    lines, worse = compare(old, new, allowed=args.allowed)
    print("\n".join(lines))
    return int(worse)


if __name__ == "__main__":
    raise SystemExit(main())
