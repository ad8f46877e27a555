"""Pictures of a run: its learning curve, and what the network sees, should find and finds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nucfast.errors import require
from nucfast.output.overlay import COLORBLIND_SAFE
from nucfast_training.augmentation import Planes
from nucfast_training.targets import TARGETS, UNCLASSIFIED

PALETTE = np.array([(0, 0, 0), *COLORBLIND_SAFE], np.uint8)  # background, then classes


def draw_learning_curve(log: Path, out: Path, metric: str) -> None:
    """Loss of training and validation, and the metric, over steps, from ``log.jsonl``."""
    require("matplotlib", extra="train", purpose="the learning curve")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, group, style in (("training", "train", "-"), ("validation", "val", "o-")):
        points = [(r["step"], r[group]["loss"]) for r in records if group in r]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=f"loss, {name}", markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    points = [
        (r["step"], r["val"][metric]) for r in records if metric != "loss" and metric in r.get("val", {})
    ]
    if points:
        right = axes.twinx()
        right.plot(*zip(*points, strict=True), "s-", color="tab:green", markersize=4)
        right.set_ylabel(metric, color="tab:green")
    axes.legend(loc="upper center", ncols=2, frameon=False)
    figure.savefig(out, dpi=100)


def draw_predictions(rows: Sequence[tuple[Planes, Mapping[str, NDArray[Any]]]], out: Path) -> None:
    """One row per patch: image, then truth and prediction of each head.

    Args:
        rows: a patch with its targets, and by head probabilities (H, W) in 0..1 or class indices (H, W).
        out: PNG to write.
    """
    lines: list[NDArray[np.uint8]] = []
    for planes, found in rows:
        line = [np.asarray(planes["image"])]
        for head, map_ in found.items():
            truth = np.asarray(planes[head])
            side = map_.shape[0]
            step = truth.shape[0] // side
            binary = TARGETS[head].binary
            for plane in (truth[step // 2 :: step, step // 2 :: step], map_):
                line.append(_grey(plane, step) if binary else _coloured(plane, step, head))
        gap = np.full((line[0].shape[0], 4, 3), 255, np.uint8)
        lines.append(np.hstack([part for picture in line for part in (picture, gap)][:-1]))
    gap = np.full((4, lines[0].shape[1], 3), 255, np.uint8)
    Image.fromarray(np.vstack([part for line in lines for part in (line, gap)][:-1])).save(out)


def _grey(plane: NDArray[Any], step: int) -> NDArray[np.uint8]:
    grey = plane if plane.dtype == np.uint8 else np.rint(255.0 * plane).astype(np.uint8)
    return np.dstack([grey] * 3).repeat(step, 0).repeat(step, 1)


def _coloured(plane: NDArray[Any], step: int, head: str) -> NDArray[np.uint8]:
    known = (plane != UNCLASSIFIED)[..., None]
    first = 1 if head == "class" else 0  # it has no background
    colors = PALETTE[(plane.astype(np.int64) + first) % len(PALETTE)]
    return np.where(known, colors, np.uint8(128)).repeat(step, 0).repeat(step, 1)
