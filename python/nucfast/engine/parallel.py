"""Several engines as one: a worker for each GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.base import Engine, Maps, check_tiles, output_buffers


class ParallelEngine:
    """Shares every batch out to engines of one bundle, each in a thread; see ``nucfast.engine.Engine``."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        first = engines[0]
        self.engines = tuple(engines)
        self.bundle = first.bundle
        self.name = first.name
        self.device = ",".join(engine.device for engine in engines)
        self.precision = first.precision
        self.threads = first.threads
        self.description = f"{len(engines)} x {first.description} ({self.device})"
        self._workers = ThreadPoolExecutor(len(engines))

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """See ``nucfast.engine.Engine.run``."""
        check_tiles(tiles, self.bundle)
        maps = output_buffers(tiles, self.bundle, out)
        cuts = np.linspace(0, len(tiles), len(self.engines) + 1).astype(int)
        jobs = [
            self._workers.submit(
                engine.run,
                tiles[begin:end],
                out={name: value[begin:end] for name, value in maps.items()},
            )
            for engine, begin, end in zip(self.engines, cuts[:-1], cuts[1:], strict=True)
            if begin < end
        ]
        for job in jobs:
            job.result()
        return maps
