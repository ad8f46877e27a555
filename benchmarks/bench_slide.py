"""Whole slides: end to end, reading against OpenSlide, decoding's share, two workers against one, memory.

    python benchmarks/bench_slide.py --texture SLIDE.svs [--part PART]... [--size-px 20000] [--json F]

Makes its slides: Aperio's layout, JPEG 4:2:0 at quality 80, 0.25 um/px, the tissue of a real slide (0.5 um/px
enlarged twice) continued by mirroring, and glass between, so that about 60 % is tissue. A line per result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from nucfast.slide import open_slide, tissue_mask, write_slide

PARTS = ("read", "run", "workers", "memory")
WINDOW_PX = 2048  # of the output, at 0.5 um/px


def make_slide(path: Path, texture: Path, size_px: int) -> None:
    """A slide of ``size_px`` squared; takes about a minute for 20000."""
    with open_slide(texture) as source:
        # The middle of CMU-1-Small-Region; there is mostly glass on both sides.
        whole = Image.fromarray(source.read(740, 500, 960, 2400, None))
    tissue = np.asarray(whole.resize((2 * whole.width, 2 * whole.height), Image.Resampling.BICUBIC))
    shades = np.random.default_rng(0).integers(-6, 7, (64, 64, 3))

    def mirrored(start: int, length: int, period: int) -> np.ndarray:
        at = np.arange(start, start + length) % (2 * period)
        return np.minimum(at, 2 * period - 1 - at)

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        rows, cols = mirrored(y, height, tissue.shape[0]), mirrored(x, width, tissue.shape[1])
        across, down = np.arange(x, x + width), np.arange(y, y + height)[:, None]
        shade = shades[y // tissue.shape[0] % 64, x // tissue.shape[1] % 64]
        pixels = np.clip(tissue[np.ix_(rows, cols)].astype(np.int16) + shade, 0, 255).astype(np.uint8)
        wave = np.sin(across / 1500) + np.sin(down / 1300) + np.sin((across + down) / 2100)
        pixels[wave < -0.45] = 243, 242, 244
        return pixels

    write_slide(path, read, mpp=0.25, size=(size_px, size_px), quality=80, subsampling="4:2:0")


def tissue_mm2(path: Path) -> float:
    with open_slide(path) as slide:
        width, height = slide.dimensions
        return tissue_mask(slide).fraction * width * height * 0.25**2 / 1e6


def bench_read(path: Path, rounds: int = 3) -> list[dict]:
    """Level-0 Mpx/s of one thread at 0.5 um/px: ours and OpenSlide's read_region + resize, taking turns."""
    import openslide

    side = 2 * WINDOW_PX
    with open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
        width, height = ours.dimensions
        places = [(x, y) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
        places = places[:: max(1, len(places) // 6)]

        def read_ours(x: int, y: int) -> np.ndarray:
            return ours.read_scaled(x, y, WINDOW_PX, WINDOW_PX, 2.0)

        def read_theirs(x: int, y: int) -> np.ndarray:
            region = theirs.read_region((x, y), 0, (side, side)).convert("RGB")
            return np.asarray(region.resize((WINDOW_PX, WINDOW_PX), Image.Resampling.BOX))

        differences = [
            np.abs(read_ours(*place).astype(int) - read_theirs(*place)).mean() for place in places[:2]
        ]
        seconds: dict[str, list[float]] = {"nucfast": [], "openslide": []}
        for _ in range(rounds):
            for name, read in (("nucfast", read_ours), ("openslide", read_theirs)):
                start = time.thread_time()
                for place in places:
                    read(*place)
                seconds[name].append(time.thread_time() - start)
    speed = {name: len(places) * side**2 / 1e6 / min(times) for name, times in seconds.items()}
    return [
        {
            "part": "read",
            "nucfast_mpx_per_s": round(speed["nucfast"], 1),
            "openslide_mpx_per_s": round(speed["openslide"], 1),
            "ratio": round(speed["nucfast"] / speed["openslide"], 2),
            "mean_difference_grey_levels": round(float(np.mean(differences)), 3),
        }
    ]


def run(path: Path, out: Path, *options: str, workers: int = 1) -> dict:
    """One run in processes of its own: wall time, peak memory of the largest, and what its manifest says."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "nucfast", "infer", str(path), "-o", str(out), "--json", *options]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as first:
        others = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(workers - 1)]
        _, status, usage = os.wait4(first.pid, 0)
        first.returncode = os.waitstatus_to_exitcode(status)
        codes = [first.returncode, *(other.wait() for other in others)]
    if any(codes):
        raise SystemExit(f"{' '.join(command)} failed")
    manifest = json.loads((out / "manifest.json").read_text())
    slide = manifest["slides"][0]
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_mb": usage.ru_maxrss / 1024,
        "nuclei": slide["nuclei"],
        "stages": {row["stage"]: row for row in manifest["stages"]},
        "slide_seconds": slide["seconds"],
    }


def bench_run(path: Path, out: Path) -> list[dict]:
    """End to end with the default model, GeoParquet and GeoJSON; and the stages' seconds."""
    result, mm2 = run(path, out), tissue_mm2(path)
    busy = {name: row["seconds"] for name, row in result["stages"].items()}
    engine = busy["network"]
    return [
        {
            "part": "run",
            "tissue_mm2": round(mm2, 2),
            "nuclei": result["nuclei"],
            "s_per_mm2": round(result["slide_seconds"] / mm2, 3),
            "cpu_s_per_mm2": round(result["cpu_seconds"] / mm2, 3),
            "decode_share_of_engine": round(busy["decode"] / engine, 3),
            "stages_s": {name: round(seconds, 2) for name, seconds in busy.items()},
            "idle": {name: row["idle"] for name, row in result["stages"].items() if row["idle"] is not None},
            "peak_rss_mb": round(result["peak_rss_mb"]),
        }
    ]


def bench_workers(path: Path, out: Path) -> list[dict]:
    """One process of one thread against two of them on the same slide; needs two idle cores."""
    one = run(path, out, "--threads=1")["slide_seconds"]
    two = run(path, out, "--threads=1", workers=2)["slide_seconds"]
    return [{"part": "workers", "one_s": round(one, 1), "two_s": round(two, 1), "ratio": round(one / two, 2)}]


def bench_memory(folder: Path, texture: Path, out: Path, size_px: int) -> list[dict]:
    """Peak memory on slides of 1x, 4x and 16x area, and of the result files of a million nuclei alone."""
    peaks = {}
    for factor in (1, 2, 4):
        path = slide_of(folder, texture, factor * size_px)
        peaks[f"{factor * factor}x"] = round(
            run(path, out, "--max-memory=2G", "--region-px=1024")["peak_rss_mb"]
        )
    code = f"import bench_slide; print(bench_slide.write_rows({str(out)!r}, 1_000_000))"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    seconds, peak_mb = json.loads(done.stdout)
    return [
        {"part": "memory", "side_px": size_px, "peak_rss_mb": peaks},
        {"part": "writers", "nuclei": 1_000_000, "seconds": round(seconds, 1), "peak_rss_mb": round(peak_mb)},
    ]


def write_rows(out: str, count: int) -> list[float]:
    """Write that many made-up nuclei in regions of 5000 to GeoParquet and GeoJSON: seconds, peak MB."""
    from contextlib import ExitStack

    from nucfast.nuclei import FEATURES, Nuclei, NucleusClass
    from nucfast.output import FORMATS, SlideInfo, open_writer

    folder, rows, points = Path(out), 5000, 40
    folder.mkdir(parents=True, exist_ok=True)
    angle = np.linspace(0, 2 * np.pi, points)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 12
    ring[-1] = ring[0]
    classes = (NucleusClass(1, "one", (255, 0, 0)),)
    info = SlideInfo("made", 100_000, 100_000, 0.25)
    random = np.random.default_rng(0)
    start = time.perf_counter()
    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_writer(name, folder / FORMATS[name], slide_info=info, classes=classes))
            for name in ("geoparquet", "geojson.gz")
        ]
        for first in range(0, count, rows):
            center = random.uniform(0, 100_000, (rows, 2))
            batch = Nuclei(
                id=np.arange(first, first + rows, dtype=np.int64),
                x=center[:, 0].copy(),
                y=center[:, 1].copy(),
                bbox=np.hstack([center - 12, center + 12]),
                class_id=np.ones(rows, np.uint8),
                probability=np.ones(rows, np.float32),
                class_probability=np.ones(rows, np.float32),
                features={name: random.random(rows, np.float32) for name in FEATURES},
                vertices=(center[:, None] + ring).reshape(-1, 2),
                offsets=np.arange(0, (rows + 1) * points, points, dtype=np.int64),
                classes=classes,
                mpp=0.25,
            )
            for writer in writers:
                writer.write(batch)
    return [time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]


def slide_of(folder: Path, texture: Path, size_px: int) -> Path:
    """The slide of this size, made if it is not there."""
    path = folder / f"bench-{size_px}.svs"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_slide(path, texture, size_px)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    data = Path(os.environ.get("NUCFAST_DATA", "."))
    parser.add_argument("--texture", type=Path, default=data.parent / "slides" / "CMU-1-Small-Region.svs")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nucfast-bench-slides")
    parser.add_argument("--size-px", type=int, default=20_000)
    parser.add_argument("--memory-px", type=int, default=5_000, help="smallest slide of the memory part")
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    out = arguments.folder / "out"
    rows = []
    for part in arguments.part or PARTS:
        if part == "memory":
            found = bench_memory(arguments.folder, arguments.texture, out, arguments.memory_px)
        else:
            path = slide_of(arguments.folder, arguments.texture, arguments.size_px)
            if part == "read":
                found = bench_read(path)
            else:
                found = bench_run(path, out) if part == "run" else bench_workers(path, out)
        for row in found:
            print(json.dumps(row), flush=True)
        rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
