"""Whole slides: end to end, reading against OpenSlide, decoding's share, two workers against one, memory.

Makes its slides: Aperio's layout, JPEG 4:2:0 at quality 80, 0.25 um/px, the tissue of a real slide (0.5 um/px
enlarged twice) continued by mirroring, and glass between, so that about 60 % is tissue.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nucfast.engine import load_bundle
from nucfast.pipeline import InferConfig
from nucfast.slide import open_slide, tissue_mask, write_slide

SIDE_PX = int(os.environ.get("NUCFAST_BENCH_SLIDE_PX", "20000"))
SMALL_PX = 5000
TEXTURE = Path(os.environ.get("NUCFAST_DATA", ".")).parent / "slides" / "CMU-1-Small-Region.svs"
FOLDER = Path(tempfile.gettempdir()) / "nucfast-bench-slides"
WINDOW_PX = 2048  # of the output, at 0.5 um/px

# Runs a command and prints its processor seconds and peak memory in MB. A process of its own, because a child
# counts what its parent held when it started, and this one may hold much.
MEASURED = """
import json, os, subprocess, sys
command = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(command.pid, 0)
print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def make_slide(path: Path, size_px: int) -> None:
    """A slide of ``size_px`` squared; takes about a minute for 20000."""
    with open_slide(TEXTURE) as source:
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


def need_texture() -> None:
    if not TEXTURE.exists():
        pytest.skip(f"{TEXTURE} is not there; NUCFAST_DATA names the folder beside it")


def slide_of(size_px: int) -> Path:
    """The slide of this size, made if it is not there."""
    need_texture()
    path = FOLDER / f"bench-{size_px}.svs"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        make_slide(path, size_px)
    return path


def repeated_slide(side: int) -> Path:
    """A slide of ``side`` px squared: the tiles of that of 20,000 px as they are stored, again and again.

    The period is 16384 px, a whole number of tiles on all four levels.
    """
    import tifffile

    path, tile_px = FOLDER / f"bench-{side}.svs", 256
    if path.exists():
        return path
    source = slide_of(20_000)
    with tifffile.TiffFile(source) as tif, tifffile.TiffWriter(path, bigtiff=True) as out:
        base = tif.pages[0]

        def tiles(page: tifffile.TiffPage, size_px: int, period: int) -> Iterator[bytes]:
            across, count = -(-page.imagewidth // tile_px), -(-size_px // tile_px)
            stored = {}
            for row in range(period):
                for col in range(period):
                    at = row * across + col
                    tif.filehandle.seek(page.dataoffsets[at])
                    stored[row, col] = tif.filehandle.read(page.databytecounts[at])
            for row in range(count):
                for col in range(count):
                    yield stored[row % period, col % period]

        for factor in (1, 4, 16, 64):
            (page,) = (p for p in tif.pages if p.is_tiled and p.imagewidth == -(-base.imagewidth // factor))
            size_px = -(-side // factor)
            out.write(
                tiles(page, size_px, 16384 // factor // tile_px),
                shape=(size_px, size_px, 3),
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=(2, 2),
                description="Aperio Image Library (layout), benchmark|AppMag = 40|MPP = 0.25",
                metadata=None,
                software=False,
            )
    return path


def tissue_mm2(path: Path) -> float:
    with open_slide(path) as slide:
        width, height = slide.dimensions
        return tissue_mask(slide).fraction * width * height * 0.25**2 / 1e6


def test_read(benchmark):
    """JPEG tiles."""
    compare_reading(benchmark, slide_of(SIDE_PX))


@pytest.mark.parametrize("compression", [33003, 33005])
def test_read_jpeg2000(benchmark, compression):
    """Aperio's JPEG 2000 tiles, YCbCr and RGB."""
    compare_reading(benchmark, jpeg2000_slide(compression))


def jpeg2000_slide(compression: int) -> Path:
    """The small slide in JPEG 2000 at a tenth of its bytes, made if it is not there."""
    import imagecodecs
    import tifffile

    path, side = FOLDER / f"bench-{compression}.svs", 256
    if path.exists():
        return path
    with open_slide(slide_of(SMALL_PX)) as source:
        width, height = (size // side * side for size in source.dimensions)

        def tiles() -> Iterator[bytes]:
            for y in range(0, height, side):
                for x in range(0, width, side):
                    tile = source.read(x, y, side, side, None)
                    if compression == 33003:
                        tile = np.asarray(Image.fromarray(tile).convert("YCbCr"))
                    yield imagecodecs.jpeg2k_encode(
                        tile, level=38, codecformat="j2k", reversible=False, mct=compression == 33005
                    )

        tifffile.imwrite(
            path,
            tiles(),
            shape=(height, width, 3),
            dtype=np.uint8,
            tile=(side, side),
            photometric="rgb",
            compression=compression,
            description="Aperio Image Library (layout), benchmark|AppMag = 40|MPP = 0.25",
            metadata=None,
            software=False,
        )
    return path


def compare_reading(benchmark, path: Path) -> None:
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

        def seconds(read: Callable[[int, int], np.ndarray]) -> float:
            ours._recent.clear()  # tiles that were decoded before do not count
            start = time.thread_time()
            for place in places:
                read(*place)
            return time.thread_time() - start

        differences = [
            np.abs(read_ours(*place).astype(int) - read_theirs(*place)).mean() for place in places[:2]
        ]
        assert max(differences) < 2
        rounds = benchmark.pedantic(lambda: [(seconds(read_ours), seconds(read_theirs)) for _ in range(3)])
    ours_s, theirs_s = np.min(rounds, axis=0)
    megapixels = len(places) * side**2 / 1e6
    benchmark.extra_info |= {
        "nucfast_mpx_per_s": round(megapixels / ours_s, 1),
        "openslide_mpx_per_s": round(megapixels / theirs_s, 1),
        "ratio": round(theirs_s / ours_s, 2),
        "mean_difference_grey_levels": round(float(np.mean(differences)), 3),
    }


def run(path: Path, *options: str, workers: int = 1, bound: bool = False) -> dict:
    """One run in processes of its own: what the first of them took, and what its manifest says.

    ``bound``: each process has one core for itself, as its affinity says.
    """
    out = FOLDER / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "nucfast", "infer", str(path), "-o", str(out), "--json", *options]
    cores = sorted(os.sched_getaffinity(0))

    def start(worker: int) -> subprocess.Popen[bytes]:
        own = ["taskset", "-c", str(cores[worker])] if bound else []
        return subprocess.Popen([sys.executable, "-c", MEASURED, *own, *command], stdout=subprocess.PIPE)

    started = [start(worker) for worker in range(workers)]
    texts = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), f"{' '.join(command)} failed"
    cpu_seconds, peak_rss_mb = json.loads(texts[0])
    manifest = json.loads((out / "manifest.json").read_text())
    slide = manifest["slides"][0]
    stages = {row["stage"]: row for row in manifest["stages"]}
    return {
        "cpu_seconds": cpu_seconds,
        "peak_rss_mb": peak_rss_mb,
        "nuclei": slide["nuclei"],
        "stages": stages,
        "network_mpx": stages["network"]["seconds"] * stages["network"]["mpx_per_s"],
        "slide_seconds": slide["seconds"],
    }


def test_run(benchmark):
    """End to end with the default model, GeoParquet and GeoJSON; and the stages' seconds.

    "finish" is what the clock shows from the last region to the last file.
    """
    path = slide_of(SIDE_PX)
    mm2 = tissue_mm2(path)
    result = benchmark.pedantic(lambda: run(path))
    benchmark.extra_info |= {"model": default_model(), **figures(result, mm2)}


def default_model() -> str:
    """Name and version of what ``nucfast infer`` runs."""
    bundle = load_bundle(InferConfig.model)
    return f"{bundle.name} {bundle.version}"


def figures(result: dict, mm2: float) -> dict:
    stages = result["stages"]
    return {
        "tissue_mm2": round(mm2, 2),
        "nuclei": result["nuclei"],
        "s_per_mm2": round(result["slide_seconds"] / mm2, 3),
        "cpu_s_per_mm2": round(result["cpu_seconds"] / mm2, 3),
        "network_mpx": round(result["network_mpx"], 1),
        "decode_share_of_engine": round(stages["decode"]["seconds"] / stages["network"]["seconds"], 3),
        "stages_s": {name: round(row["seconds"], 2) for name, row in stages.items()},
        "idle": {name: row["idle"] for name, row in stages.items() if row["idle"] is not None},
        "peak_rss_mb": round(result["peak_rss_mb"]),
    }


def test_decode(benchmark):
    """One tile of tissue: from its maps to rows, against the network's time for it, each on idle cores."""
    from nucfast.engine import create_engine
    from nucfast.pipeline.slide_run import RegionTask, plan
    from nucfast.pipeline.stages import Stages

    need_texture()
    engine = create_engine(load_bundle("he-fast"), device="cpu")
    with open_slide(TEXTURE) as source:
        tissue = source.read(740, 500, 960, 2304, None)
    side = engine.bundle.tile_px
    pixels = np.ascontiguousarray(np.pad(tissue, ((0, 0), (0, side - 960), (0, 0)), mode="symmetric"))
    with open_slide(pixels, mpp=engine.bundle.mpp) as slide:
        layout = plan(slide, engine.bundle, region_px=side)
        task = RegionTask(slide, layout, engine, 1, Stages())
        (region,) = layout.regions
        sight = task.read(region)
        times: dict[str, list[float]] = {"network": [], "decode": []}

        def both() -> int:
            start = time.perf_counter()
            maps = task.predict(region, sight)
            between = time.perf_counter()
            found = task.decode(region, sight, maps)
            times["network"].append(between - start)
            times["decode"].append(time.perf_counter() - between)
            return len(found)

        nuclei = benchmark.pedantic(both, rounds=10, warmup_rounds=2)
    network_s, decode_s = (float(np.median(times[name])) for name in ("network", "decode"))
    benchmark.extra_info |= {
        "tile_px": side,
        "nuclei": nuclei,
        "network_s": round(network_s, 4),
        "decode_s": round(decode_s, 4),
        "ratio": round(decode_s / network_s, 3),
    }


def test_large(benchmark):
    """A slide of 100,000 px squared with more than a million nuclei, with all that is written by default."""
    if "NUCFAST_BENCH_LARGE" not in os.environ:
        pytest.skip("takes ten minutes and 2 GB of disk: set NUCFAST_BENCH_LARGE=1")
    path = repeated_slide(100_000)
    mm2 = tissue_mm2(path)
    result = benchmark.pedantic(lambda: run(path))
    benchmark.extra_info |= figures(result, mm2)
    path.unlink()
    shutil.rmtree(FOLDER / "out")


def test_workers(benchmark):
    """One process with one core against two of them on the same slide; needs two idle cores."""
    path = slide_of(SIDE_PX)
    one, two = benchmark.pedantic(
        lambda: [run(path, workers=count, bound=True)["slide_seconds"] for count in (1, 2)]
    )
    benchmark.extra_info |= {"one_s": one, "two_s": two, "ratio": round(one / two, 2)}


def test_memory(benchmark):
    """Peak memory on slides of 1x, 4x and 16x area: 10,000, 20,000 and 40,000 px squared.

    Regions are so small, and nuclei so many, that in the smallest slide too every queue and buffer is full.
    """

    def peaks() -> dict[str, int]:
        options = ("--max-memory=2G", "--region-px=1024")
        slides = {"1x": slide_of(10_000), "4x": slide_of(20_000), "16x": repeated_slide(40_000)}
        runs = {name: run(slide, *options) for name, slide in slides.items()}
        return {name: round(result["peak_rss_mb"]) for name, result in runs.items()}

    found = benchmark.pedantic(peaks)
    benchmark.extra_info["peak_rss_mb"] = found
    benchmark.extra_info["largest_by_smallest"] = round(max(found.values()) / min(found.values()), 3)


def test_writers(benchmark):
    """A million nuclei to GeoParquet and GeoJSON, in a process of its own."""
    code = "import bench_slide; bench_slide.write_rows(bench_slide.FOLDER / 'rows', 1_000_000)"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", MEASURED, sys.executable, "-c", code]

    def write() -> tuple[float, subprocess.CompletedProcess[bytes]]:
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        return time.perf_counter() - start, done

    seconds, done = benchmark.pedantic(write)
    cpu_seconds, peak_mb = json.loads(done.stdout)
    benchmark.extra_info |= {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_rss_mb": round(peak_mb),
    }


def write_rows(folder: Path, count: int) -> None:
    """Write that many made-up nuclei in regions of 5000 to GeoParquet and GeoJSON."""
    from contextlib import ExitStack

    from nucfast.nuclei import FEATURES, Nuclei, NucleusClass
    from nucfast.output import FORMATS, SlideInfo, open_writer

    rows, points = 5000, 40
    folder.mkdir(parents=True, exist_ok=True)
    angle = np.linspace(0, 2 * np.pi, points)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 12
    ring[-1] = ring[0]
    classes = (NucleusClass(1, "one", (255, 0, 0)),)
    info = SlideInfo("made", 100_000, 100_000, 0.25)
    random = np.random.default_rng(0)
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
