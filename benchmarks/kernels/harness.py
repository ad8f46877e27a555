"""One way to measure a kernel against the libraries people use for it.

Everything runs on the same arrays in one process, interleaved round by round, after a warm-up whose results
are compared. What is compared is the median of the rounds, at the same number of threads; a library without
threads counts at two with what it reaches with one.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib.metadata
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import threadpoolctl

THREADS = (1, 2)
NUCFAST = "nucfast"


@dataclass(frozen=True)
class Library:
    """A library to compare with: what to import, what it is installed as, whether it has threads."""

    module: str
    distribution: str
    threaded: bool


LIBRARIES = {
    "OpenCV": Library("cv2", "opencv-python-headless", True),
    "SciPy": Library("scipy", "scipy", False),
    "scikit-image": Library("skimage", "scikit-image", False),
    "SimpleITK": Library("SimpleITK", "SimpleITK", True),
    "cc3d": Library("cc3d", "connected-components-3d", False),
    "edt": Library("edt", "edt", True),
    "StarDist": Library("stardist", "stardist", False),
    "pycocotools": Library("pycocotools", "pycocotools", False),
    "faster-coco-eval": Library("faster_coco_eval", "faster-coco-eval", False),
    "rasterio": Library("rasterio", "rasterio", False),
    "torchstain": Library("torchstain", "torchstain", True),
    "PyTorch": Library("torch", "torch", True),
    "NumPy": Library("numpy", "numpy", False),
}


@dataclass(frozen=True)
class Peer:
    """One way to compute the same with another library.

    Attributes:
        name: the library as in ``LIBRARIES``, with a word more if it is measured in two ways.
        run: gets the number of threads, returns the result. Imports its library itself.
        agrees: gets nucfast's result and the peer's, and raises AssertionError if they disagree.
        differs: where the two definitions differ, in words; empty if they are the same.
    """

    name: str
    run: Callable[[int], Any]
    agrees: Callable[[Any, Any], object]
    differs: str = ""

    @property
    def behind(self) -> Library:
        """The library that computes it."""
        return next(library for name, library in LIBRARIES.items() if self.name.startswith(name))


@dataclass(frozen=True)
class Bar:
    """How many times faster than a peer to be, at one thread and at two.

    Attributes:
        t1: ratio to reach with one thread.
        t2: ratio to reach with two.
        goal: ratio hoped for with one thread.
        peer: the peer's name; empty: the best one at that number of threads.
    """

    t1: float | None
    t2: float | None
    goal: float | None = None
    peer: str = ""


def installed(library: Library) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(library.module) is not None


def versions() -> dict[str, str | None]:
    """Version of every library of the comparison; None: not installed."""
    return {
        name: importlib.metadata.version(library.distribution) if installed(library) else None
        for name, library in LIBRARIES.items()
    }


def _set_threads(threads: int) -> None:
    """Tell every library that is loaded how many threads to use."""
    threadpoolctl.threadpool_limits(threads)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    if simple_itk := sys.modules.get("SimpleITK"):
        simple_itk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def assert_same(actual: Any, expected: Any) -> None:
    """Raise AssertionError unless two results are equal to the last bit."""
    if dataclasses.is_dataclass(expected):
        actual, expected = vars(actual), vars(expected)
    if isinstance(expected, Mapping):
        assert list(actual) == list(expected)
        actual, expected = list(actual.values()), list(expected.values())
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(actual, expected)


@dataclass
class _Contestant:
    name: str
    threads: int
    run: Callable[[int], Any]
    seconds: list[float] = dataclasses.field(default_factory=list)

    def measure(self) -> Any:
        _set_threads(self.threads)
        start = time.perf_counter()
        result = self.run(self.threads)
        self.seconds.append(time.perf_counter() - start)
        return result


def compare(
    benchmark: Any,
    *,
    kernel: str,
    data: str,
    pixels: int,
    nucfast: Callable[[int], Any],
    peers: Sequence[Peer],
    bars: Sequence[Bar],
    seconds: float = 3.0,
) -> None:
    """Measure nucfast and its peers, and check that they agree.

    Args:
        benchmark: the fixture of pytest-benchmark; gets nucfast's rounds with one thread, and in
            ``extra_info`` all that ``report.py`` prints.
        kernel: what is computed, as it stands in the table.
        data: on what.
        pixels: how many pixels that is.
        nucfast: gets the number of threads, returns the result, equal for any number. Should fill memory
            that is allocated once, as peers should where they can.
        peers: what to compare with; those that are not installed are left out.
        bars: ratios to reach.
        seconds: time per contestant after which it has been measured enough; at least three rounds.
    """
    left_out = [peer.name for peer in peers if not installed(peer.behind)]
    peers = [peer for peer in peers if peer.name not in left_out]
    contestants = [_Contestant(NUCFAST, threads, nucfast) for threads in THREADS]
    expected = copy.deepcopy(contestants[0].measure())
    assert_same(contestants[1].measure(), expected)
    for peer in peers:
        for threads in THREADS if peer.behind.threaded else THREADS[:1]:
            contestants.append(_Contestant(peer.name, threads, peer.run))
            peer.agrees(expected, contestants[-1].measure())
    del expected
    warm_up = [contestant.seconds.pop() for contestant in contestants]
    rounds = [max(3, min(15, round(seconds / time))) for time in warm_up]

    def others() -> None:
        gc.collect()
        for contestant, count in zip(contestants[1:], rounds[1:], strict=True):
            if len(contestant.seconds) < count:
                contestant.measure()
        _set_threads(1)

    # A round is the others one after another, untimed as set-up, then nucfast with one thread.
    benchmark.pedantic(contestants[0].measure, setup=others, rounds=max(rounds))
    medians: dict[str, dict[str, float]] = {}
    for contestant in contestants:
        ns_per_px = statistics.median(contestant.seconds) / pixels * 1e9
        medians.setdefault(contestant.name, {})[str(contestant.threads)] = round(ns_per_px, 4)
    benchmark.extra_info.update(
        kernel=kernel,
        data=data,
        pixels=pixels,
        ns_per_px=medians,
        left_out=left_out,
        differs={peer.name: peer.differs for peer in peers if peer.differs},
        bars=[dataclasses.asdict(bar) | ratios(medians, bar.peer) for bar in bars],
    )


def ratios(medians: Mapping[str, Mapping[str, float]], peer: str) -> dict[str, Any]:
    """How many times faster nucfast is than one peer, or than the best at each number of threads."""
    found: dict[str, Any] = {}
    for threads in THREADS:
        # A library without threads is at two what it is at one.
        times = {
            name: of.get(str(threads), of["1"])
            for name, of in medians.items()
            if name != NUCFAST and peer in ("", name)
        }
        best = min(times, key=times.__getitem__, default=None)
        found[f"best_t{threads}"] = best
        found[f"ratio_t{threads}"] = best and round(times[best] / medians[NUCFAST][str(threads)], 3)
    return found
