"""Several engines as one: who works, and what happens when one fails."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from nucfast.engine import create_engine, cuda
from nucfast.engine.base import output_buffers
from nucfast.engine.parallel import ParallelEngine
from nucfast.errors import EngineError
from nucfast.pipeline import segment
from tiny_model import tiny_spec, write_tiny

BUNDLE = tiny_spec()


class Worker:
    """Writes its number into every map."""

    name, precision, threads, description = "none", "fp32", 1, "a worker"

    def __init__(self, number, precision="fp32"):
        self.bundle, self.number, self.precision = BUNDLE, number, precision
        self.device = f"cuda:{number}"

    def run(self, tiles, *, out=None):
        maps = output_buffers(tiles, self.bundle, out)
        for value in maps.values():
            value[:] = self.number
        return maps


def tiles(count):
    return np.zeros((count, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_several_engines_are_one(tmp_path, count):
    bundle = write_tiny(tmp_path / "tiny")
    single = create_engine(bundle, engine="openvino", precision="fp32", threads=1)
    both = ParallelEngine([single, create_engine(bundle, engine="openvino", precision="fp32", threads=1)])
    noise = np.random.default_rng(0).integers(0, 256, (count, 32, 64, 3), dtype=np.uint8)
    maps = both.run(noise)
    for name, value in single.run(noise).items():
        assert_array_equal(maps[name], value)
    assert both.description.startswith("2 x OpenVINO")


@pytest.mark.parametrize("engines", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_all_workers_get_their_share(engines, count):
    together = ParallelEngine([Worker(number) for number in range(engines)])
    done = Counter()
    for _ in range(6):
        done.update(together.run(tiles(count))["nucleus"][:, 0, 0, 0].tolist())
    assert set(done.values()) == {6 * count // engines}


def test_a_failure_is_told_when_all_are_done():
    failed, finished = threading.Event(), threading.Event()

    class Failing(Worker):
        def run(self, tiles, *, out=None):
            failed.set()
            raise EngineError("out of memory")

    class Slow(Worker):
        def run(self, tiles, *, out=None):
            failed.wait(10)
            finished.wait(0.2)  # nobody sets it
            super().run(tiles, out=out)
            finished.set()

    with pytest.raises(EngineError, match="out of memory"):
        ParallelEngine([Failing(0), Slow(1)]).run(tiles(2))
    assert finished.is_set()


def test_device_is_as_it_is_asked_for():
    assert ParallelEngine([Worker(0), Worker(2)]).device == "cuda:0,2"


def test_different_precisions_are_refused():
    with pytest.raises(
        EngineError, match=r"device cuda:0,1: .*\(cuda:0 tf32, cuda:1 fp32\): give --precision"
    ):
        ParallelEngine([Worker(0, "tf32"), Worker(1)])


def test_the_pipeline_feeds_every_gpu():
    """One caller with batches of one tile keeps all of them busy."""
    given = []
    together = ParallelEngine([Worker(0), Worker(1)])
    real = together.run
    together.run = lambda batch, **options: given.append(len(batch)) or real(batch, **options)
    segment(np.zeros((300, 300, 3), np.uint8), engine=together)
    assert max(given) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], "cuda:0"), (["H100"], "cuda:0"), (["H100", "T4", "H100"], "cuda:0,2"), (None, "cuda:0")],
)
def test_all_devices_are_of_one_kind(monkeypatch, names, expected):
    def name(target, size, device):
        target.value = names[device.value].encode()

    def get(target, index):
        target._obj.value = index

    def count(target):
        target._obj.value = len(names)
        return 0

    driver = SimpleNamespace(cuDeviceGetCount=count, cuDeviceGet=get, cuDeviceGetName=name)
    monkeypatch.setattr(cuda, "_driver", lambda: None if names is None else driver)
    assert cuda.all_devices() == expected


@pytest.mark.parametrize(
    ("engine", "device"), [("auto", "auto"), ("auto", "cuda"), ("onnxruntime", "auto"), ("tensorrt", "auto")]
)
def test_auto_takes_all_gpus(monkeypatch, engine, device):
    made = []

    def make(bundle, *, device, **options):
        made.append(device)
        return Worker(int(device[-1]))

    monkeypatch.setattr("nucfast.engine.create.cuda_available", lambda: True)
    monkeypatch.setattr("nucfast.engine.create.all_devices", lambda: "cuda:0,1")
    monkeypatch.setattr("nucfast.engine.create.OnnxRuntimeEngine", make)
    monkeypatch.setattr("nucfast.engine.create.TensorRtEngine", make)
    assert create_engine(BUNDLE, engine=engine, device=device).device == "cuda:0,1"
    assert made == ["cuda:0", "cuda:1"]
