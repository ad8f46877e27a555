"""Several engines as one: a worker for each GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.base import Engine, Maps, check_tiles, output_buffers
from nucfast.errors import EngineError


class ParallelEngine:
    """Shares every batch out to engines of one bundle, each in a thread; see ``nucfast.engine.Engine``.

    Engines take turns at being the first, so that batches smaller than their number keep all of them busy.

    Raises:
        EngineError: they compute in different precisions, so that maps would depend on whose turn it is.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        first = engines[0]
        self.engines = tuple(engines)
        self.bundle = first.bundle
        self.name = first.name
        # As it is asked for: "cuda:0,1".
        self.device = ",".join([first.device, *(item.device.removeprefix("cuda:") for item in engines[1:])])
        self.precision = first.precision
        self.threads = first.threads
        self.description = f"{len(engines)} x {first.description} ({self.device})"
        if len({item.precision for item in engines}) > 1:
            listed = ", ".join(f"{item.device} {item.precision}" for item in engines)
            raise EngineError(
                f"device {self.device}: these GPUs differ in what precision auto means ({listed}): "
                "give --precision fp32, or GPUs of one kind"
            )
        self._workers = ThreadPoolExecutor(len(engines))
        self._turns = count()

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """See ``nucfast.engine.Engine.run``."""
        check_tiles(tiles, self.bundle)
        maps = output_buffers(tiles, self.bundle, out)
        turn = next(self._turns) % len(self.engines)
        cuts = np.linspace(0, len(tiles), len(self.engines) + 1).astype(int)
        jobs = [
            self._workers.submit(
                engine.run,
                tiles[begin:end],
                out={name: value[begin:end] for name, value in maps.items()},
            )
            for engine, begin, end in zip(
                self.engines[turn:] + self.engines[:turn], cuts[:-1], cuts[1:], strict=True
            )
            if begin < end
        ]
        # All of them, before any failure is told: the others still fill the caller's arrays.
        wait(jobs)
        for job in jobs:
            job.result()
        return maps
