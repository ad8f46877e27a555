"""How time grows with pixels, threads and nuclei: ``python benchmarks/kernels/scaling.py PLOT.png``."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from inputs import dense_image, dense_labels, dense_prediction
from nucfast import ops
from nucfast.testing import random_blobs

SIDES_PX = (512, 1024, 2048, 4096)
NUCLEI = (100, 1_000, 10_000, 30_000)  # on one size of image
SIDE_PX = 2048


def kernels(
    labels: NDArray[np.int32], pred: NDArray[np.int32], image: NDArray[np.uint8]
) -> dict[str, Callable[[int], object]]:
    """The main kernels on one map and image, each a function of the number of threads."""
    mask = labels > 0
    numbers, distance = np.empty(labels.shape, np.int32), np.empty(labels.shape, np.float32)
    height = np.minimum(255, 12 * ops.distance_transform(labels)).astype(np.uint8)
    painted = np.empty_like(image)
    size_px = min(512, len(labels))
    starts = range(0, len(labels), size_px)
    origins = np.array([(row, col) for row in starts for col in starts], np.int32)
    batch = np.empty((len(origins), size_px, size_px, 3), np.uint8)
    return {
        "components": lambda threads: ops.label(mask, out=numbers, threads=threads),
        "distance transform": lambda threads: ops.distance_transform(mask, out=distance, threads=threads),
        "splitting (one thread)": lambda threads: ops.split_instances(height, mask, min_rise=30),
        "overlaps": lambda threads: ops.overlaps(labels, pred, threads=threads),
        "rings": lambda threads: ops.contours(labels, threads=threads),
        "properties (one thread)": lambda threads: ops.region_properties(labels),
        "tiles": lambda threads: ops.tile(image, origins, size_px=size_px, out=batch, threads=threads),
        "stain normalisation": lambda threads: ops.normalize_stain(image, out=painted, threads=threads),
    }


def milliseconds(run: Callable[[], object]) -> float:
    """Median of three runs after one."""
    run()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return 1e3 * statistics.median(found)


def measure() -> dict[str, dict[str, list[float]]]:
    """For each of pixels, threads and nuclei, the milliseconds of each kernel."""
    found: dict[str, dict[str, list[float]]] = {"pixels": {}, "threads": {}, "nuclei": {}}
    for side_px in SIDES_PX:
        runs = kernels(dense_labels(side_px), dense_prediction(side_px), dense_image(side_px))
        for name, run in runs.items():
            found["pixels"].setdefault(name, []).append(milliseconds(lambda run=run: run(1)))
            if side_px == SIDES_PX[-1]:
                two = milliseconds(lambda run=run: run(2))
                found["threads"][name] = [found["pixels"][name][-1], two]
    for count in NUCLEI:
        radius_px = 0.4 * SIDE_PX / count**0.5  # the same share of the image is covered each time
        labels = random_blobs((SIDE_PX, SIDE_PX), count=count, radius_px=(0.6 * radius_px, 1.4 * radius_px))
        runs = kernels(labels, np.roll(labels, (1, 2), (0, 1)), dense_image(SIDE_PX))
        for name, run in runs.items():
            found["nuclei"].setdefault(name, []).append(milliseconds(lambda run=run: run(1)))
    return found


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Three plots side by side; the bars of the middle one name the colours of the others."""
    figure, (by_pixels, by_threads, by_nuclei) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for k, (name, times) in enumerate(found["pixels"].items()):
        by_pixels.loglog([side**2 / 1e6 for side in SIDES_PX], times, "o-", markersize=3, color=f"C{k}")
        by_nuclei.loglog(NUCLEI, found["nuclei"][name], "o-", markersize=3, color=f"C{k}")
    by_pixels.set(title="dense map, 1 thread", xlabel="million pixels", ylabel="milliseconds")
    by_nuclei.set(title=f"{SIDE_PX} x {SIDE_PX} px, 1 thread", xlabel="nuclei", ylabel="milliseconds")
    names = list(found["threads"])
    speed_ups = [one / two for one, two in found["threads"].values()]
    by_threads.barh(names, speed_ups, color=[f"C{k}" for k in range(len(names))])
    by_threads.axvline(1, color="black", linewidth=0.8)
    by_threads.invert_yaxis()
    by_threads.set(title=f"{SIDES_PX[-1]} x {SIDES_PX[-1]} px", xlabel="times faster with 2 threads")
    for axes in (by_pixels, by_nuclei):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plot", type=Path, help="picture to write")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures = measure()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, options.plot)
