"""Where the time of a run goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stages:
    """Seconds, megapixels and waiting by stage, added up over threads.

    Attributes:
        seconds: time spent working.
        mpx: megapixels worked on.
        offered: seconds that the stage's threads were there for, working or not.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    mpx: dict[str, float] = field(default_factory=dict)
    offered: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def timed(self, stage: str, pixels: int = 0) -> Iterator[None]:
        """Add the time of a ``with`` block, and the pixels it worked on, to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
                self.mpx[stage] = self.mpx.get(stage, 0.0) + pixels / 1e6

    def add(self, seconds: Mapping[str, float], mpx: Mapping[str, float]) -> None:
        """Add what another process has measured."""
        with self._lock:
            for stage in seconds:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds[stage]
                self.mpx[stage] = self.mpx.get(stage, 0.0) + mpx[stage]

    @contextmanager
    def staffed(self, **threads: int) -> Iterator[None]:
        """Stages named here have that many threads during the ``with`` block, which may wait or work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                for stage, count in threads.items():
                    self.offered[stage] = self.offered.get(stage, 0.0) + count * spent

    def idle(self, stage: str) -> float | None:
        """Share of their time that the stage's threads waited, 0 to 1; None for stages without threads."""
        if not self.offered.get(stage):
            return None
        return max(0.0, 1.0 - self.seconds.get(stage, 0.0) / self.offered[stage])

    def bottleneck(self) -> str:
        """The stage that waited least, for which all others waited; "" before anything was timed."""
        idle = {stage: share for stage in self.seconds if (share := self.idle(stage)) is not None}
        if idle:
            return min(idle, key=lambda stage: idle[stage])
        return max(self.seconds, key=lambda stage: self.seconds[stage], default="")

    def rows(self) -> list[dict[str, str | float | None]]:
        """One row per stage: name, seconds, Mpx/s of one thread (0: not counted in pixels), idle share."""
        rows: list[dict[str, str | float | None]] = []
        for stage, seconds in self.seconds.items():
            idle = self.idle(stage)
            rows.append(
                {
                    "stage": stage,
                    "seconds": round(seconds, 3),
                    "mpx_per_s": round(self.mpx[stage] / seconds, 2) if seconds > 0 else 0.0,
                    "idle": None if idle is None else round(idle, 3),
                }
            )
        return rows
