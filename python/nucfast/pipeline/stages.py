"""Where the time of a run goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stages:
    """Seconds and megapixels by stage, added up over threads."""

    seconds: dict[str, float] = field(default_factory=dict)
    mpx: dict[str, float] = field(default_factory=dict)
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

    def add(self, other: Stages) -> None:
        """Add another run's figures."""
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
            self.mpx[stage] = self.mpx.get(stage, 0.0) + other.mpx[stage]

    def bottleneck(self) -> str:
        """The stage that took longest; "" before anything was timed."""
        return max(self.seconds, key=lambda stage: self.seconds[stage], default="")

    def rows(self) -> list[dict[str, str | float]]:
        """One row per stage: name, seconds, Mpx/s (0 for stages that are not counted in pixels)."""
        return [
            {
                "stage": stage,
                "seconds": round(seconds, 3),
                "mpx_per_s": round(self.mpx[stage] / seconds, 2) if seconds > 0 else 0.0,
            }
            for stage, seconds in self.seconds.items()
        ]
