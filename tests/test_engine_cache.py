from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from nucfast.engine import Variant, onnxruntime_engine, tensorrt_engine, write_bundle
from nucfast.engine.cache import HEADER, KEPT, cached_engine, cached_folder
from nucfast.engine.onnxruntime_engine import OnnxRuntimeEngine
from nucfast.engine.tensorrt_engine import TensorRtEngine
from nucfast.errors import EngineError
from tiny_model import tiny_spec

SLOT = {"network": "tiny", "device": "GPU [0]", "precision": "fp16", "shape": "16x64"}
MADE_WITH = {"network": b"weights", "version": "1.0"}
NAME = "tiny-GPU_[0]-fp16-16x64-9a129038d9a0"


def builder(content):
    calls = []

    def build():
        calls.append(content)
        return content

    build.calls = calls
    return build


def test_built_once(tmp_path):
    build = builder(b"engine\nof two lines")
    for _ in range(2):
        assert cached_engine(SLOT, build, folder=tmp_path / "c", **MADE_WITH) == b"engine\nof two lines"
    assert len(build.calls) == 1
    assert [path.name for path in (tmp_path / "c").iterdir()] == [f"{NAME}.engine"]


def test_stale_is_rebuilt(tmp_path):
    cached_engine(SLOT, builder(b"old"), folder=tmp_path, **MADE_WITH)
    assert cached_engine(SLOT, builder(b"new"), folder=tmp_path, **MADE_WITH | {"version": "2.0"}) == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_damaged_is_rebuilt(tmp_path):
    cached_engine(SLOT, builder(b"engine"), folder=tmp_path, **MADE_WITH)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert cached_engine(SLOT, builder(b"engine"), folder=tmp_path, **MADE_WITH) == b"engine"


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"[]\n", b'{"magic": "other"}\n'])
def test_foreign_is_refused(tmp_path, content):
    path = tmp_path / f"{NAME}.engine"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="is not an engine that nucfast built: remove it"):
        cached_engine(SLOT, builder(b"engine"), folder=tmp_path, **MADE_WITH)
    assert path.read_bytes() == content


def test_nowhere_to_keep_it(tmp_path):
    (tmp_path / "file").write_text("")
    build = builder(b"engine")
    with pytest.raises(EngineError, match="set NUCFAST_CACHE to a folder that can be written"):
        cached_engine(SLOT, build, folder=tmp_path / "file" / "cache", **MADE_WITH)
    assert build.calls == []


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(
        EngineError, match=r"\(No space left on device\): free some space there, or set NUCFAST"
    ):
        cached_engine(SLOT, builder(b"engine"), folder=tmp_path, **MADE_WITH)
    assert list(tmp_path.iterdir()) == []


def test_networks_of_one_name_do_not_evict_each_other(tmp_path):
    for _ in range(2):
        for network in (b"one", b"two"):
            made_with = MADE_WITH | {"network": network}
            found = cached_engine(SLOT, builder(network), folder=tmp_path, **made_with)
            assert found == network
    assert len(list(tmp_path.iterdir())) == 2


def test_those_used_last_are_kept(tmp_path):
    """Not those built last; other precisions and files of others do not count."""
    names = {}
    for number in range(KEPT):
        before = set(tmp_path.iterdir())
        made_with = MADE_WITH | {"network": bytes([number])}
        cached_engine(SLOT, builder(b"engine"), folder=tmp_path, **made_with)
        (names[number],) = set(tmp_path.iterdir()) - before
        os.utime(names[number], (number, number))
    cached_engine(SLOT | {"precision": "fp32"}, builder(b"engine"), folder=tmp_path, **MADE_WITH)
    (tmp_path / "notes.txt").write_text("mine")
    # The first is used again, so the second goes.
    cached_engine(SLOT, builder(b"engine"), folder=tmp_path, **MADE_WITH | {"network": bytes([0])})
    cached_engine(SLOT, builder(b"engine"), folder=tmp_path, **MADE_WITH)
    assert {number for number, path in names.items() if path.exists()} == {0, 2, 3}
    assert len(list(tmp_path.iterdir())) == KEPT + 2


class TestChangedWeights:
    """An engine is of the weights that it was built from, also where another file holds them."""

    def bundle(self, path, value):
        """A bundle whose fp16 file is the same whatever the value of its weight."""
        weight = onnx.numpy_helper.from_array(np.full(3, value, np.float16), "weight")
        graph = onnx.helper.make_graph([], "tiny", [], [], [weight])
        model = onnx.helper.make_model(graph).SerializeToString()
        variant = Variant("model-fp16.onnx", "onnx", "fp16", {"weights_of": "model.onnx"})
        files = {"model.onnx": model, "model-fp16.onnx": b""}
        return write_bundle(path, tiny_spec(variants=(variant,)), files, overwrite=True)

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("NUCFAST_CACHE", str(tmp_path / "cache"))

    def test_tensorrt(self, tmp_path, monkeypatch):
        built = []
        monkeypatch.setattr(
            tensorrt_engine, "build_engine", lambda content, *_, **__: built.append(content) or b"engine"
        )
        for value in (1, 1, 2):
            engine = object.__new__(TensorRtEngine)
            engine.bundle, engine.name, engine.precision = (
                self.bundle(tmp_path / "b", value),
                "tensorrt",
                "fp16",
            )
            engine._cuda = SimpleNamespace(name="none")
            engine._engine_bytes(SimpleNamespace(__version__="1.0"))
        assert len(built) == 2
        assert built[0] != built[1]

    def test_onnxruntime(self, tmp_path, monkeypatch):
        monkeypatch.setattr(onnxruntime_engine, "_check_providers", lambda *_: None)
        monkeypatch.setattr(onnxruntime_engine, "tensorrt_release", lambda: "10.13.2")
        monkeypatch.setattr(onnxruntime_engine, "cuda_options", lambda *_, **__: {})
        device = SimpleNamespace(index=0, name="none", has_tf32=False, stream=0)
        monkeypatch.setattr(onnxruntime_engine, "CudaDevice", lambda *_: device)
        monkeypatch.setattr(OnnxRuntimeEngine, "_check_ports", lambda _: None)
        monkeypatch.setattr(OnnxRuntimeEngine, "_check_shapes", lambda _: None)
        session = SimpleNamespace(get_providers=lambda: ["TensorrtExecutionProvider"])
        found = []

        def load(engine, network, providers):
            folder = Path(providers[0][1]["trt_engine_cache_path"])
            found.append((folder / "a.engine").exists())
            (folder / "a.engine").write_bytes(b"engine")
            return session

        monkeypatch.setattr(OnnxRuntimeEngine, "_load", load)
        for value in (1, 1, 2):
            bundle = self.bundle(tmp_path / "b", value)
            OnnxRuntimeEngine(bundle, device="cuda:0", precision="fp16", threads=1, tensorrt=True)
        assert found == [False, True, False]


class TestFolder:
    """For a library that writes its engines into a folder by itself."""

    def build(self, root, content, made_with=MADE_WITH):
        """Whether it had to be built, and what is there."""
        with cached_folder(SLOT, folder=root, **made_with) as path:
            built = not (path / "a.engine").exists()
            if built:
                assert list(path.iterdir()) == []
                (path / "a.engine").write_text(content)
            return built, (path / "a.engine").read_text()

    def test_built_once(self, tmp_path):
        assert self.build(tmp_path / "c", "old") == (True, "old")
        assert self.build(tmp_path / "c", "new") == (False, "old")
        assert [path.name for path in (tmp_path / "c").iterdir()] == [f"{NAME}.engines"]

    def test_stale_is_rebuilt(self, tmp_path):
        self.build(tmp_path, "old")
        assert self.build(tmp_path, "new", MADE_WITH | {"version": "2.0"}) == (True, "new")
        assert len(list(tmp_path.iterdir())) == 1

    def test_nothing_is_kept_of_a_build_that_failed(self, tmp_path):
        with pytest.raises(ZeroDivisionError), cached_folder(SLOT, folder=tmp_path, **MADE_WITH) as path:
            (path / "a.engine").write_text("half")
            _ = 1 / 0
        assert list(tmp_path.iterdir()) == []

    def test_another_process_was_first(self, tmp_path):
        with cached_folder(SLOT, folder=tmp_path, **MADE_WITH) as path:
            (path / "a.engine").write_text("mine")
            self.build(tmp_path, "theirs")
        assert self.build(tmp_path, "new") == (False, "mine")
        assert len(list(tmp_path.iterdir())) == 1

    def test_foreign_is_refused(self, tmp_path):
        path = tmp_path / f"{NAME}.engines"
        path.mkdir()
        (path / "photo.jpg").write_text("cat")
        with pytest.raises(EngineError, match="is not an engine that nucfast built: remove it"):
            self.build(tmp_path, "new")
        (path / HEADER).write_text('{"magic": "other"}')
        with pytest.raises(EngineError, match="is not an engine that nucfast built: remove it"):
            self.build(tmp_path, "new")
        assert (path / "photo.jpg").read_text() == "cat"

    def test_nowhere_to_keep_it(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(EngineError, match="set NUCFAST_CACHE to a folder that can be written"):
            self.build(tmp_path / "file" / "cache", "new")

    def test_a_full_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Path, "write_text", full_disk)
        with (
            pytest.raises(EngineError, match="free some space there"),
            cached_folder(SLOT, folder=tmp_path, **MADE_WITH),
        ):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_those_used_last_are_kept(self, tmp_path):
        for number in range(KEPT + 1):
            made_with = MADE_WITH | {"network": bytes([number])}
            assert self.build(tmp_path, str(number), made_with) == (True, str(number))
            for path in tmp_path.iterdir():
                if (path / "a.engine").read_text() == str(number):
                    os.utime(path, (number, number))
        kept = {(path / "a.engine").read_text() for path in tmp_path.iterdir()}
        assert kept == {str(number) for number in range(1, KEPT + 1)}
