"""The table of a kernel run: printed, and as Markdown for the results folder and the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"


def times(value: float | None) -> str:
    """3.14159 -> 3.14x."""
    return "-" if value is None else f"{value:.3g}x" if value < 100 else f"{value:.0f}x"


def nanoseconds(of: dict[str, float]) -> str:
    """One thread / two threads."""
    return " / ".join(f"{of[threads]:.3g}" for threads in ("1", "2") if threads in of)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """One row for every bar of every benchmark; the first is the header."""
    table = [
        [
            "kernel",
            "input",
            "peers, ns/px T1 / T2",
            "nucfast",
            "against",
            "T1",
            "T2",
            "bar T1",
            "bar T2",
            "goal",
        ]
    ]
    for entry in results["benchmarks"]:
        info = entry["extra_info"]
        peers = sorted((of["1"], name) for name, of in info["ns_per_px"].items() if name != "nucfast")
        for k, bar in enumerate(info["bars"]):
            if bar["best_t1"] is None:
                continue
            against = bar["best_t1"]
            if bar["best_t2"] != against:
                against += f", T2 {bar['best_t2']}"
            missed = [
                "" if bar[f"t{t}"] is None or bar[f"ratio_t{t}"] >= bar[f"t{t}"] else " !" for t in (1, 2)
            ]
            table.append(
                [
                    info["kernel"] if k == 0 else "",
                    info["data"] if k == 0 else "",
                    "; ".join(f"{name} {nanoseconds(info['ns_per_px'][name])}" for _, name in peers)
                    if k == 0
                    else "",
                    nanoseconds(info["ns_per_px"]["nucfast"]) if k == 0 else "",
                    against,
                    times(bar["ratio_t1"]) + missed[0],
                    times(bar["ratio_t2"]) + missed[1],
                    times(bar["t1"]),
                    times(bar["t2"]),
                    times(bar["goal"]),
                ]
            )
    return table


def notes(results: dict[str, Any]) -> list[str]:
    """The machine, the versions, what was left out and where definitions differ."""
    machine = results["machine_info"]
    versions = machine["libraries"]
    lines = [
        f"{machine['cpu'].get('brand_raw', machine['processor'])}, {machine['cpu'].get('count')} cores, "
        f"Python {machine['python_version']}, {results['datetime'][:10]}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + ".",
        "T1, T2: one thread, two threads. Ratios are of medians of rounds that alternate; ! = below the bar.",
    ]
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        lines.append(f"Not installed, so left out: {', '.join(missing)}.")
    differing = {
        f"{name}: {text}"
        for entry in results["benchmarks"]
        for name, text in entry["extra_info"]["differs"].items()
    }
    return lines + sorted(differing)


def plain(table: list[list[str]]) -> str:
    """The table for a terminal, one line a row."""
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def markdown(table: list[list[str]], lines: list[str]) -> str:
    """The table and its notes for a page."""
    head, *body = ["| " + " | ".join(row) + " |" for row in table]
    rule = "| " + " | ".join("---" for _ in table[0]) + " |"
    return "\n".join([head, rule, *body, "", *(f"- {line}" for line in lines), ""])


def write(folder: Path) -> str:
    """Write kernels.md beside a run's kernels.json; returns the table for a terminal."""
    results = json.loads((folder / "kernels.json").read_text())
    table, lines = rows(results), notes(results)
    (folder / "kernels.md").write_text("# Kernels\n\n" + markdown(table, lines))
    return "\n".join([plain(table), *lines])


def insert(folder: Path, page: Path) -> None:
    """Put the table of a run between the markers of a page."""
    results = json.loads((folder / "kernels.json").read_text())
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{markdown(rows(results), notes(results))}{END}{after}")
