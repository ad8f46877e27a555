"""Result files that are written while regions are still being done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from nucfast.nuclei import Nuclei
from nucfast.pipeline.journal import Journal
from nucfast.pipeline.stages import Stages

# Regions that other processes finish are looked for this often.
_POLL_SECONDS = 0.1


class Stopped(Exception):  # noqa: N818
    """The files are no longer wanted."""


class ResultFiles:
    """Writes a slide's result files, each in a thread of its own.

    Every thread takes the regions in their order, each as soon as it is on record, so that little is left to
    do after the last one. It reads them from the journal, one at a time: those whose turn has not come take
    no memory. Use it in a ``with`` block; threads that are still at work when the block ends are stopped.
    """

    def __init__(self, journal: Journal, indices: Sequence[int], *, files: int, stages: Stages) -> None:
        self._journal = journal
        self._indices = indices
        self._stages = stages
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(files, "nucfast-write")
        self._files: list[Future[None]] = []

    def add(self, write: Callable[[Iterator[Nuclei]], None]) -> None:
        """Start a thread that calls ``write`` with the regions' nuclei."""
        self._files.append(self._pool.submit(lambda: write(self._regions())))

    def check(self) -> None:
        """For steps that take long: raise ``Stopped`` if the files are no longer wanted."""
        if self._stop.is_set():
            raise Stopped

    def wait(self) -> None:
        """Wait until all files are written; raises what one of the threads raised."""
        for file in self._files:
            file.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._journal.wake()
        self._pool.shutdown()

    def _regions(self) -> Iterator[Nuclei]:
        for index in self._indices:
            while not self._journal.wait(index, _POLL_SECONDS):
                self.check()
            self.check()
            with self._stages.timed("write"):
                yield self._journal.read(index)
