"""How far a slide is."""

from __future__ import annotations

import time


class Progress:
    """Counts the regions that this process finishes of one slide.

    Others that share the slide are not seen: where there are any, less time is left than this says.
    """

    def __init__(self, regions: int, done: int, mm2: float) -> None:
        """``done`` of ``regions`` are finished, and ``mm2`` is the area of those to do."""
        self._regions = regions
        self._done = done
        self._mm2 = mm2
        self._mm2_done = 0.0
        self._start = time.perf_counter()

    def add(self, nuclei: int, mm2: float) -> dict[str, float]:
        """Count a region; what its event says: nuclei, mm2, done, regions, mm2_per_s, seconds_left."""
        self._done += 1
        self._mm2_done += mm2
        rate = self._mm2_done / max(time.perf_counter() - self._start, 1e-9)
        return {
            "nuclei": nuclei,
            "mm2": round(mm2, 6),
            "done": self._done,
            "regions": self._regions,
            "mm2_per_s": round(rate, 6),
            "seconds_left": round(max(0.0, self._mm2 - self._mm2_done) / rate, 1),
        }
