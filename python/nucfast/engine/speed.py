"""How fast an engine runs a bundle: whole tiles in, maps out, nothing left out."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from nucfast.engine.bundle import load_bundle
from nucfast.engine.create import create_engine
from nucfast.errors import EngineError

MIN_RUNS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """One engine on one machine.

    Attributes:
        engine: its name.
        precision: its arithmetic.
        tile_px: side of the tiles.
        batch: tiles per call.
        mpx_per_s: million input pixels per second, from the median call.
        mm2_per_s: the same as tissue at the model's mpp, margins included.
        p50_ms: median time of a call; half were faster.
        p90_ms: 90 % were faster.
        p99_ms: 99 % were faster.
        peak_mb: the process's largest memory, library and network included.
        first_run_s: importing the library, loading the network and the first call.
        runs: calls that were timed.
        description: the engine's own.
    """

    engine: str
    precision: str
    tile_px: int
    batch: int
    mpx_per_s: float
    mm2_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    peak_mb: float
    first_run_s: float
    runs: int
    description: str


def measure_speed(
    model: str,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    tile_px: int | None = None,
    batch: int = 1,
    seconds: float = 3.0,
) -> Speed:
    """Time an engine in a process of its own, so that memory and first-run cost are its own.

    Args:
        model: as for ``load_bundle``.
        engine: as for ``create_engine``.
        device: likewise.
        precision: likewise.
        tile_px: side of the tiles; None: the bundle's.
        batch: tiles per call.
        seconds: how long to measure; at least ``MIN_RUNS`` calls are.

    Raises:
        NucfastError: as ``load_bundle`` and ``create_engine`` do.
        EngineError: the memory does not hold the batch.
    """
    # Spawned, not forked: a fork inherits the libraries already loaded, and their broken thread pools.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers:
        job = workers.submit(_measure, model, engine, device, precision, tile_px, batch, seconds)
        try:
            return job.result()
        # The system kills what takes too much.
        except (MemoryError, BrokenProcessPool) as error:
            raise EngineError(
                f"no memory for a batch of {batch} such tiles ({error}): give fewer, or smaller ones"
            ) from error


def _measure(
    model: str,
    engine: str,
    device: str,
    precision: str,
    tile_px: int | None,
    batch: int,
    seconds: float,
) -> Speed:
    bundle = load_bundle(model)
    side = tile_px or bundle.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    started = time.perf_counter()
    runner = create_engine(bundle, engine=engine, device=device, precision=precision)
    maps = runner.run(tiles)
    first = time.perf_counter() - started
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < MIN_RUNS or time.perf_counter() - started < seconds:
        begin = time.perf_counter()
        runner.run(tiles, out=maps)
        times.append(time.perf_counter() - begin)
    p50, p90, p99 = (float(np.percentile(times, share)) for share in (50, 90, 99))
    mpx_per_s = batch * side * side / p50 / 1e6
    return Speed(
        engine=runner.name,
        precision=runner.precision,
        tile_px=side,
        batch=batch,
        mpx_per_s=round(mpx_per_s, 3),
        mm2_per_s=round(mpx_per_s * bundle.mpp**2, 4),
        p50_ms=round(1e3 * p50, 2),
        p90_ms=round(1e3 * p90, 2),
        p99_ms=round(1e3 * p99, 2),
        peak_mb=round(_peak_mb(), 1),
        first_run_s=round(first, 3),
        runs=len(times),
        description=runner.description,
    )


def _peak_mb() -> float:
    """The largest memory of this program; getrusage would count what its parent held when it started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
