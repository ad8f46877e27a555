"""The chart of the docs: ``python benchmarks/chart_engines.py ENGINES.json docs/images/engines.png``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

COLORS = {"pytorch": "#b0b0b0", "onnxruntime": "#5b8db8", "openvino": "#1f4e79"}


def main() -> None:
    source, target = (Path(name) for name in sys.argv[1:])
    info = json.loads(source.read_text())["benchmarks"][0]["extra_info"]
    rows = sorted(info["mpx_per_s"].items(), key=lambda row: row[1])
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(rows) + 1.1), constrained_layout=True)
    bars = axes.barh([name for name, _ in rows], [value for _, value in rows])
    for bar, (name, value) in zip(bars, rows, strict=True):
        bar.set_color(COLORS[name.split()[0]])
        times = info["times_baseline"].get(name)
        axes.text(value, bar.get_y() + bar.get_height() / 2, f" {value:.1f}  ({times:.1f}x)", va="center")
    axes.set_xlim(0, rows[-1][1] * 1.25)
    axes.set_xlabel("Mpx/s, uint8 tiles in, maps out; in brackets: times PyTorch eager fp32")
    axes.set_title(f"{info['model']}, 1024 px tiles, 2 CPU cores", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main()
