from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from onnx import TensorProto
from PIL import Image

from nucfast.engine import (
    OutputSpec,
    Variant,
    available_cpus,
    create_engine,
    cuda,
    load_bundle,
    onnxruntime_clash,
    onnxruntime_engine,
    openvino_engine,
    parity,
    write_bundle,
)
from nucfast.engine.tensorrt_engine import TensorRtEngine
from nucfast.engine.threads import _quota_cpus, resolve_threads
from nucfast.errors import BundleError, EngineError, MissingExtraError
from tiny_model import tiny_onnx, tiny_spec, write_tiny

pytest.importorskip("onnxruntime", reason="the engines are compared with ONNX Runtime")

CHOICES = [
    pytest.param({"engine": "openvino", "precision": "fp32"}, id="openvino-fp32"),
    pytest.param(
        {"engine": "openvino", "precision": "bf16"},
        id="openvino-bf16",
        marks=pytest.mark.skipif(not openvino_engine.cpu_has_bf16(), reason="this CPU has no bf16"),
    ),
    pytest.param({"engine": "onnxruntime", "device": "cpu"}, id="onnxruntime-cpu"),
    pytest.param(
        {"engine": "onnxruntime", "device": "cuda"},
        id="onnxruntime-cuda",
        marks=pytest.mark.skipif(not onnxruntime_engine.cuda_available(), reason="no CUDA device"),
    ),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module", params=CHOICES)
def engine(request, bundle):
    return create_engine(bundle, **request.param)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def devices(monkeypatch, count):
    for module in (cuda, onnxruntime_engine):
        monkeypatch.setattr(module, "cuda_device_count", lambda: count)


@pytest.fixture
def no_cuda(monkeypatch):
    devices(monkeypatch, 0)


@pytest.mark.parametrize(
    "shape", [(1, 4, 4, 3), (1, 64, 64, 3), (3, 32, 48, 3), (9, 64, 32, 3), (0, 64, 64, 3)]
)
def test_output_shapes(engine, shape):
    count, height, width, _ = shape
    maps = engine.run(noise(shape))
    assert {name: value.shape for name, value in maps.items()} == {
        "nucleus": (count, height, width, 1),
        "distance": (count, height, width, 1),
        "class": (count, height // 2, width // 2, 4),
    }
    assert all(value.dtype == np.uint8 for value in maps.values())


def test_engines_agree(bundle):
    tiles = noise((2, 64, 96, 3))
    engines = [
        create_engine(bundle, engine="onnxruntime", device="cpu", precision="fp32"),
        create_engine(bundle, engine="openvino", precision="fp32"),
    ]
    rows = parity(bundle, engines, tiles)
    assert [row.output for row in rows] == ["nucleus", "distance", "class"]
    for row in rows:
        assert row.engine.startswith("OpenVINO")
        assert row.largest <= 1
        assert row.mean < 1e-3
        assert row.share_above_1 == 0


def test_every_choice_agrees_with_the_reference(bundle, engine):
    reference = create_engine(bundle, engine="onnxruntime", device="cpu", precision="fp32")
    for row in parity(bundle, [reference, engine], noise((2, 64, 64, 3), seed=5)):
        assert row.mean < (1e-3 if engine.precision == "fp32" else 1.0)
        assert row.share_above_1 < (1e-9 if engine.precision == "fp32" else 0.1)


def test_engines_agree_on_a_real_image(bundle, data_dir):
    with Image.open(sorted((data_dir / "consep" / "images").iterdir())[0]) as image:
        tile = np.asarray(image.convert("RGB"))[None, :256, :512]
    engines = [
        create_engine(bundle, engine=name, device="cpu", precision="fp32")
        for name in ("onnxruntime", "openvino")
    ]
    assert all(row.largest <= 1 and row.mean < 1e-3 for row in parity(bundle, engines, tile))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_openvino_spared_the_shuffle_gives_the_same_bytes(precision, monkeypatch):
    he_fast = load_bundle("he-fast")
    spared = openvino_engine.OpenVinoEngine(he_fast, precision=precision, threads=2)
    assert set(spared._shuffled) == {"nucleus", "distance"}
    monkeypatch.setattr(openvino_engine, "cut_off_shuffles", lambda model: {})
    whole = openvino_engine.OpenVinoEngine(he_fast, precision=precision, threads=2)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    expected = whole.run(tiles)
    for name, found in spared.run(tiles).items():
        assert_array_equal(found, expected[name])


def test_parity_refuses_what_cannot_be_compared(bundle, tmp_path):
    one = create_engine(bundle, engine="openvino")
    other = create_engine(write_tiny(tmp_path / "other", version="2"), engine="openvino")
    with pytest.raises(ValueError, match="engines: expected two or more"):
        parity(bundle, [one], noise((1, 64, 64, 3)))
    with pytest.raises(ValueError, match="tiles: expected one or more"):
        parity(bundle, [one, one], noise((0, 64, 64, 3)))
    with pytest.raises(ValueError, match="engines: expected all to run 'tiny'"):
        parity(bundle, [one, other], noise((1, 64, 64, 3)))


def test_a_tile_does_not_depend_on_its_batch(engine):
    tiles = noise((5, 32, 32, 3))
    together = engine.run(tiles)
    for index in range(5):
        alone = engine.run(tiles[index : index + 1])
        for name, value in together.items():
            assert_array_equal(value[index : index + 1], alone[name])


def test_caller_buffers_are_filled(engine):
    tiles = noise((3, 32, 64, 3))
    expected = engine.run(tiles)
    # Every second tile of a larger buffer: not contiguous.
    out = {name: np.full((6, *value.shape[1:]), 7, np.uint8)[::2] for name, value in expected.items()}
    returned = engine.run(tiles, out=out)
    for name, value in expected.items():
        assert returned[name] is out[name]
        assert_array_equal(out[name], value)


def test_results_are_not_overwritten_by_the_next_run(engine):
    first = engine.run(noise((2, 32, 32, 3), seed=1))
    kept = {name: value.copy() for name, value in first.items()}
    engine.run(noise((2, 32, 32, 3), seed=2))
    for name, value in first.items():
        assert_array_equal(value, kept[name])


def test_views_and_read_only_tiles(engine):
    tiles = noise((2, 64, 64, 3))
    expected = engine.run(np.ascontiguousarray(tiles[:, ::2, :32, ::-1]))
    view = tiles[:, ::2, :32, ::-1]
    view.flags.writeable = False
    for name, value in engine.run(view).items():
        assert_array_equal(value, expected[name])
    fixed = np.ascontiguousarray(view)
    fixed.flags.writeable = False
    for name, value in engine.run(fixed).items():
        assert_array_equal(value, expected[name])


def test_many_threads_share_an_engine(engine):
    inputs = [noise((1 + seed % 4, 16 + 16 * (seed % 2), 32, 3), seed) for seed in range(8)]
    expected = [engine.run(tiles) for tiles in inputs]
    wrong, barrier = [], threading.Barrier(len(inputs))

    def work(tiles, reference):
        barrier.wait()
        for _ in range(15):
            maps = engine.run(tiles)
            if any(not np.array_equal(maps[name], reference[name]) for name in reference):
                wrong.append(tiles.shape)

    workers = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
    assert wrong == []


@pytest.mark.parametrize(
    ("tiles", "error", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), TypeError, "tiles: expected a uint8 array, got float32"),
        ([[1]], TypeError, "tiles: expected a uint8 array, got list"),
        (
            np.zeros((64, 64, 3), np.uint8),
            ValueError,
            r"tiles: expected \(N, height, width, 3\), got \(64, 64, 3\)",
        ),
        (np.zeros((1, 64, 64, 4), np.uint8), ValueError, r"tiles: expected \(N, height, width, 3\)"),
        (np.zeros((1, 62, 64, 3), np.uint8), ValueError, "multiples of 4, got 62 x 64"),
        (np.zeros((1, 64, 63, 3), np.uint8), ValueError, "multiples of 4, got 64 x 63"),
        (np.zeros((1, 0, 64, 3), np.uint8), ValueError, "multiples of 4, got 0 x 64"),
    ],
)
def test_wrong_tiles(engine, tiles, error, message):
    with pytest.raises(error, match=message):
        engine.run(tiles)


def test_wrong_buffers(engine):
    tiles = noise((1, 32, 32, 3))
    good = engine.run(tiles)
    with pytest.raises(ValueError, match=r"out: expected the outputs \['class', 'distance', 'nucleus'\]"):
        engine.run(tiles, out={"nucleus": good["nucleus"]})
    with pytest.raises(TypeError, match=r"out\['class'\]: expected uint8, got float32"):
        engine.run(tiles, out=good | {"class": good["class"].astype(np.float32)})
    with pytest.raises(ValueError, match=r"out\['class'\]: expected shape \(1, 16, 16, 4\)"):
        engine.run(tiles, out=good | {"class": good["nucleus"]})
    fixed = good["class"].copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="expected a writable array"):
        engine.run(tiles, out=good | {"class": fixed})


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
class TestWrongModel:
    def create(self, tmp_path, name, content, **changes):
        bundle = write_bundle(tmp_path / "bad", tiny_spec(**changes), {"model.onnx": content}, overwrite=True)
        return create_engine(bundle, engine=name, device="cpu", precision="fp32")

    @pytest.mark.parametrize("content", [b"", b"not a model", tiny_onnx()[:500], tiny_onnx()[40:]])
    def test_unreadable(self, tmp_path, name, content):
        with pytest.raises(BundleError, match=r"bad: model.onnx cannot be loaded .* export RUN -o FOLDER$"):
            self.create(tmp_path, name, content)

    @pytest.mark.parametrize("domain", ["", "com.example"])
    def test_unsupported_operator(self, tmp_path, name, domain):
        model = onnx.load_from_string(tiny_onnx())
        if domain:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
        for node in model.graph.node:
            if node.op_type == "Round":
                node.op_type, node.domain = "Frobnicate", domain
        with pytest.raises(BundleError) as caught:
            self.create(tmp_path, name, model.SerializeToString())
        assert re.fullmatch(
            r".*bad: model.onnx cannot be loaded \(.*Frobnicate.*\): "
            r"get it again, or write it with  nucfast export RUN -o FOLDER",
            str(caught.value),
        )

    def test_other_input(self, tmp_path, name):
        with pytest.raises(BundleError, match=r"bad: model.onnx takes .*image.*promises 'tiles' in uint8"):
            self.create(tmp_path, name, tiny_onnx(), input_name="tiles")
        with pytest.raises(BundleError, match=r"bad: model.onnx takes .*promises 'image' in uint8"):
            self.create(tmp_path, name, tiny_onnx(input_type=TensorProto.FLOAT))

    def test_missing_output(self, tmp_path, name):
        outputs = (*tiny_spec().outputs, OutputSpec("edges", "", 1, 1))
        with pytest.raises(BundleError, match=r"bad: model.onnx gives .*promises 'edges' in uint8"):
            self.create(tmp_path, name, tiny_onnx(), outputs=outputs)

    def test_other_shape(self, tmp_path, name):
        outputs = (*tiny_spec().outputs[:2], OutputSpec("class", "", 4, 4))
        with pytest.raises(
            BundleError, match=r"bad: output 'class' of model.onnx is \(1, 2, 2, 4\) where .* \(1, 1, 1, 4\)"
        ):
            self.create(tmp_path, name, tiny_onnx(), outputs=outputs).run(noise((1, 4, 4, 3)))


def test_the_reason_is_not_cut_off(tmp_path):
    """ONNX Runtime puts the signature of a C++ function, of any length, before it."""
    model = onnx.load_from_string(tiny_onnx())
    model.ir_version = 99
    bundle = write_bundle(tmp_path / "bad", tiny_spec(), {"model.onnx": model.SerializeToString()})
    with pytest.raises(
        BundleError, match=r"FAIL : Unsupported model IR version: 99, max supported .*\): get"
    ):
        create_engine(bundle, engine="onnxruntime", device="cpu")
    model = onnx.load_from_string(tiny_onnx())
    model.opset_import[0].version = 99
    bundle = write_bundle(tmp_path / "new", tiny_spec(), {"model.onnx": model.SerializeToString()})
    with pytest.raises(
        BundleError, match=r"\(\.\.\..* support for domain ai.onnx is till opset \d+\.\): get"
    ):
        create_engine(bundle, engine="onnxruntime", device="cpu")


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_further_file_that_cannot_be_loaded(tmp_path, name):
    variant = Variant("model-int8.onnx", "onnx", "int8")
    files = {"model.onnx": tiny_onnx(), "model-int8.onnx": b"not a model"}
    bundle = write_bundle(tmp_path / "bad", tiny_spec(variants=(variant,)), files)
    message = (
        r"bad: model-int8.onnx cannot be loaded .* nucfast export .*/bad --to onnx --precision int8 --data"
    )
    with pytest.raises(BundleError, match=message):
        create_engine(bundle, engine=name, device="cpu", precision="int8")


def test_engine_failure_is_an_engine_error(bundle, monkeypatch):
    engine = create_engine(bundle, engine="onnxruntime", device="cpu")

    def fail(*_):
        raise RuntimeError("out of memory\nstack")

    real = engine._session
    monkeypatch.setattr(
        engine, "_session", SimpleNamespace(io_binding=real.io_binding, run_with_iobinding=fail)
    )
    with pytest.raises(EngineError, match=r"tiny: ONNX Runtime failed: out of memory$"):
        engine.run(noise((1, 32, 32, 3)))


class HostMemory(cuda.CudaDevice):
    """A device whose memory is the host's: all of the way through a GPU but the driver's calls."""

    def __init__(self, index=0, asked=""):
        self.index, self.name, self.has_tf32, self.stream = index, "none", False, 77
        self._buffers = {}
        self.pairs = {}

    def enter(self):
        pass

    wait = compute_after_uploads = download_after_compute = enter

    def mark(self, number):
        self.marked = number

    def reach(self, number):
        assert number <= self.marked

    def buffers(self, key, size):
        if key not in self.pairs or self.pairs[key][0].size < size:
            self.pairs[key] = np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)
        here, there = self.pairs[key]
        return here, there.ctypes.data

    def upload(self, device, host, size):
        ctypes.memmove(device, host.ctypes.data, size)

    def download(self, host, device, size):
        ctypes.memmove(host.ctypes.data, device, size)


class TestBoundMemory:
    """ONNX Runtime reads and writes memory given by address: equal to what it returns by itself."""

    @pytest.fixture
    def engine(self, bundle):
        return create_engine(bundle, engine="onnxruntime", device="cpu", precision="fp32")

    def plain(self, engine, tiles):
        names = [spec.name for spec in engine.bundle.outputs]
        return dict(zip(names, engine._session.run(names, {"image": tiles}), strict=True))

    def equal(self, maps, expected):
        for name, value in expected.items():
            assert_array_equal(maps[name], value)

    @pytest.mark.parametrize("shape", [(1, 64, 64, 3), (3, 36, 52, 3)])
    def test_on_the_cpu(self, engine, shape):
        self.equal(engine.run(noise(shape)), self.plain(engine, noise(shape)))

    def test_maps_that_are_not_contiguous(self, engine):
        tiles = noise((2, 32, 32, 3))
        expected = self.plain(engine, tiles)
        out = {
            name: np.full((*value.shape[:3], 2 * value.shape[3]), 9, np.uint8)[..., ::2]
            for name, value in expected.items()
        }
        self.equal(engine.run(tiles, out=out), expected)

    def test_through_a_device(self, engine, monkeypatch):
        """By way of buffers of a device, which grow with the batch and are kept."""
        monkeypatch.setattr(engine, "_cuda", HostMemory())
        monkeypatch.setattr(engine, "_place", ("cpu", 0))
        for count, side in ((2, 32), (5, 64), (1, 16), (0, 32)):
            tiles = noise((count, side, side, 3), count)[:, ::-1]
            expected = self.plain(engine, np.ascontiguousarray(tiles))
            self.equal(engine.run(tiles), expected)
        assert {key: len(pair[0]) for key, pair in engine._cuda.pairs.items()} == {
            (None, None): 5 * 64 * 64 * 3,
            (None, "nucleus"): 5 * 64 * 64,
            (None, "distance"): 5 * 64 * 64,
            (None, "class"): 5 * 32 * 32 * 4,
        }

    @pytest.mark.parametrize(("count", "lengths"), [(8, [2, 2, 2, 2]), (7, [2, 2, 2, 1]), (3, [1, 1, 1])])
    def test_in_chunks(self, engine, monkeypatch, count, lengths):
        """Several calls for a batch, each with its own part of the buffers, at whole 256 bytes."""
        monkeypatch.setattr(cuda, "_CHUNK_PX", 1)
        monkeypatch.setattr(engine, "_cuda", HostMemory())
        monkeypatch.setattr(engine, "_place", ("cpu", 0))
        calls = []
        real = engine._compute
        monkeypatch.setattr(engine, "_compute", lambda *given: calls.append(given) or real(*given))
        tiles = noise((count, 12, 20, 3))
        self.equal(engine.run(tiles), self.plain(engine, tiles))
        assert [shape for shape, *_ in calls] == [(length, 12, 20, 3) for length in lengths]
        pairs = engine._cuda.pairs
        for number, (_, source, targets, _) in enumerate(calls):
            for name, address in ((None, source), *targets.items()):
                offset = address - pairs[None, name][1].ctypes.data
                assert offset % 256 == 0
                assert (offset == 0) == (number == 0)

    def test_chunks_are_large_enough(self):
        assert cuda.chunk_length((16, 1024, 1024, 3)) == 4
        assert cuda.chunk_length((64, 256, 256, 3)) == 32
        assert cuda.chunk_length((3, 256, 256, 3)) == 3
        assert cuda.chunk_length((1, 2304, 2304, 3)) == 1
        assert cuda.chunk_length((0, 64, 64, 3)) == 0

    def test_a_failure_leaves_no_copy_under_way(self, engine, monkeypatch):
        """What was begun before the failure has ended when it is told."""
        monkeypatch.setattr(cuda, "_CHUNK_PX", 1)
        monkeypatch.setattr(cuda, "_PART_BYTES", 100)
        monkeypatch.setattr(engine, "_cuda", HostMemory())
        begun = []
        real = cuda.begin_copy
        monkeypatch.setattr(cuda, "begin_copy", lambda *given: begun.append(real(*given)) or begun[-1])

        def fail(*_):
            raise EngineError("out of memory")

        monkeypatch.setattr(engine, "_compute", fail)
        with pytest.raises(EngineError, match="out of memory"):
            engine.run(noise((8, 64, 64, 3)))
        assert len(begun) == 4
        assert all(copied.done() for parts in begun for _, copied in parts)

    def test_copies_in_parts(self, engine, monkeypatch):
        monkeypatch.setattr(cuda, "_PART_BYTES", 1000)
        monkeypatch.setattr(engine, "_cuda", HostMemory())
        monkeypatch.setattr(engine, "_place", ("cpu", 0))
        tiles = noise((3, 36, 64, 3))
        parts = cuda.begin_copy(np.empty_like(tiles), tiles)
        assert [size for size, _ in parts] == 3 * [*7 * [5 * 192], 192]
        self.equal(engine.run(tiles), self.plain(engine, tiles))

    def test_tensorrt_is_given_what_it_was_built_for(self, engine, monkeypatch):
        monkeypatch.setattr(engine, "_cuda", HostMemory())
        monkeypatch.setattr(engine, "_place", ("cpu", 0))
        monkeypatch.setattr(engine, "name", "onnxruntime-tensorrt")
        tiles = noise((18, 16, 16, 3))
        self.equal(engine.run(tiles), self.plain(engine, tiles))
        assert len(engine._cuda.pairs[None, None][0]) == 16 * 16 * 16 * 3
        with pytest.raises(EngineError, match="onnxruntime-tensorrt was built for tiles of up to 64 px"):
            engine.run(noise((1, 64, 68, 3)))

    def test_a_graph_keeps_its_addresses(self, engine, monkeypatch):
        """A recorded graph reads and writes where it was recorded: one for each shape, up to a number."""
        monkeypatch.setattr(engine, "_cuda", HostMemory())
        monkeypatch.setattr(engine, "_place", ("cpu", 0))
        monkeypatch.setattr(engine, "_graphs", {})
        asked = []
        real = engine._run_options
        monkeypatch.setattr(engine, "_run_options", lambda graph: asked.append(graph) or real(graph))
        sides = [4 * (1 + index) for index in range(onnxruntime_engine.MAX_GRAPHS + 2)]
        addresses = {}
        for side in (*sides, *sides):
            tiles = noise((2, side, 8, 3), side)
            self.equal(engine.run(tiles), self.plain(engine, tiles))
            if asked[-1] is not None:
                pair = engine._cuda.pairs[asked[-1], "class"]
                assert addresses.setdefault(side, pair[1].ctypes.data) == pair[1].ctypes.data
        numbers = [*range(onnxruntime_engine.MAX_GRAPHS), None, None]
        assert asked == [*numbers, *numbers]
        assert real(3).get_run_config_entry("gpu_graph_id") == "3"
        assert real(None).get_run_config_entry("gpu_graph_id") == "-1"


def test_an_engine_of_the_bundle_names_the_tiles_that_it_was_built_for(bundle):
    """Which are not the bundle's, with `nucfast export --tile-px`."""
    engine = object.__new__(TensorRtEngine)
    engine.bundle, engine.name, engine._lock = bundle, "tensorrt", threading.Lock()
    engine._most, engine._largest_px, engine._cuda = 16, 1024, HostMemory()
    engine._context = SimpleNamespace(set_input_shape=lambda *_: False)
    with pytest.raises(EngineError, match="tensorrt was built for tiles of up to 1024 px, got 1028 x 64"):
        engine.run(noise((1, 1028, 64, 3)))


def test_provider_options(bundle, tmp_path):
    options = onnxruntime_engine.cuda_options(HostMemory(1), precision="tf32", cuda_graph=False)
    assert (options["device_id"], options["user_compute_stream"]) == ("1", "77")
    switches = ("use_tf32", "prefer_nhwc", "enable_cuda_graph")
    assert [options[name] for name in switches] == ["1", "0", "0"]
    options = onnxruntime_engine.cuda_options(HostMemory(), precision="fp16", cuda_graph=True)
    assert [options[name] for name in switches] == ["0", "1", "1"]
    folders = {"engines": tmp_path / "a", "timings": tmp_path / "b"}
    options = onnxruntime_engine.tensorrt_options(bundle, HostMemory(2), precision="fp16", **folders)
    assert options == {
        "device_id": "2",
        "user_compute_stream": "77",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path / "a"),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path / "b"),
        "trt_profile_min_shapes": "image:1x4x4x3",
        "trt_profile_opt_shapes": "image:16x64x64x3",
        "trt_profile_max_shapes": "image:16x64x64x3",
    }
    options = onnxruntime_engine.tensorrt_options(bundle, HostMemory(), precision="fp32", **folders)
    assert options["trt_fp16_enable"] == "0"


def test_onnxruntime_with_tensorrt_says_what_is_missing(bundle, monkeypatch):
    import onnxruntime

    if onnxruntime_engine.cuda_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(EngineError, match="onnxruntime-tensorrt runs on NVIDIA GPUs only"):
        create_engine(bundle, engine="onnxruntime-tensorrt", device="cpu")
    with pytest.raises(EngineError, match="precision int8: ONNX Runtime has fp32 and fp16 on cuda:0"):
        create_engine(bundle, engine="onnxruntime-tensorrt", precision="int8")
    with pytest.raises(EngineError, match=r"precision fp16: .*tiny has no file .* --precision fp16"):
        create_engine(bundle, engine="onnxruntime-tensorrt", precision="fp16")
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(EngineError, match=r"device cuda:0: .* no CUDA support: run  .*nucfast\[gpu\]"):
            create_engine(bundle, engine="onnxruntime-tensorrt")
    both = ["CUDAExecutionProvider", "TensorrtExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        message = (
            r"needs TensorRT 10, .* run  pip install 'tensorrt-cu13>=10.13,<11'  or use engine onnxruntime"
        )
        with pytest.raises(EngineError, match=message):
            create_engine(bundle, engine="onnxruntime-tensorrt")
    monkeypatch.setattr(onnxruntime_engine, "tensorrt_release", lambda: "10.13.0")
    with pytest.raises(EngineError, match="device cuda:0: no CUDA device is visible"):
        create_engine(bundle, engine="onnxruntime-tensorrt")


def test_cuda_graphs_need_a_gpu(bundle):
    with pytest.raises(EngineError, match="CUDA graphs need engine onnxruntime on a GPU"):
        onnxruntime_engine.OnnxRuntimeEngine(
            bundle, device="cpu", precision="fp32", threads=1, cuda_graph=True
        )


def test_description(bundle):
    engine = create_engine(bundle, engine="openvino", precision="fp32", threads=1)
    release = ".".join(metadata.version("openvino").split(".")[:2])
    assert engine.description == f"OpenVINO {release} on CPU, fp32, 1 thread"
    assert (engine.name, engine.device, engine.precision, engine.threads) == ("openvino", "cpu", "fp32", 1)
    assert engine.bundle is bundle
    engine = create_engine(bundle, engine="onnxruntime", device="cpu", threads=2)
    assert engine.description.startswith("ONNX Runtime 1.")
    assert engine.description.endswith(" on CPU, fp32, 2 threads")


def test_auto_without_cuda_is_openvino(bundle, no_cuda, monkeypatch):
    monkeypatch.setattr(openvino_engine, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr("nucfast.engine.create.cpu_has_bf16", lambda: False)
    engine = create_engine(bundle)
    assert (engine.name, engine.device, engine.precision) == ("openvino", "cpu", "fp32")
    assert engine.threads == available_cpus()
    assert create_engine(bundle, engine="onnxruntime").device == "cpu"
    with pytest.raises(EngineError, match="precision bf16: this CPU has no bf16 instructions"):
        create_engine(bundle, precision="bf16")


def test_auto_uses_bf16_where_it_pays(bundle, no_cuda, monkeypatch):
    if not openvino_engine.cpu_has_bf16():
        pytest.skip("this CPU has no bf16")
    for pays, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("nucfast.engine.create.bf16_pays", lambda pays=pays: pays)
        assert create_engine(bundle).precision == expected
    assert create_engine(bundle, precision="bf16").precision == "bf16"


def test_auto_takes_cuda_where_it_is(bundle, monkeypatch):
    asked = []
    monkeypatch.setattr("nucfast.engine.create.cuda_available", lambda: True)
    monkeypatch.setattr("nucfast.engine.create.OnnxRuntimeEngine", lambda _, **options: asked.append(options))
    create_engine(bundle, threads=1)
    create_engine(bundle, threads=1, engine="onnxruntime", precision="fp32")
    create_engine(bundle, threads=1, device="cuda:3")
    create_engine(bundle, threads=1, engine="onnxruntime", device="cpu")
    assert [(options["device"], options["precision"]) for options in asked] == [
        ("cuda:0", "auto"),
        ("cuda:0", "fp32"),
        ("cuda:3", "auto"),
        ("cpu", "auto"),
    ]
    assert create_engine(bundle, engine="openvino").device == "cpu"
    assert create_engine(bundle, device="cpu").name == "openvino"


def test_cuda_without_its_provider(bundle, monkeypatch):
    if onnxruntime_engine.cuda_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(
        EngineError,
        match=r"no CUDA support: run  pip uninstall -y onnxruntime && pip install 'nucfast\[gpu\]'",
    ):
        create_engine(bundle, device="cuda")


def test_cuda_without_a_device(bundle, no_cuda, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(EngineError, match=r"device cuda:0: no CUDA device is visible; .* use device cpu"):
        create_engine(bundle, device="cuda")
    devices(monkeypatch, 2)
    with pytest.raises(EngineError, match=r"device cuda:2: there are 2 CUDA devices, from 0"):
        create_engine(bundle, device="cuda:2")


def test_silent_fall_back_of_onnxruntime_is_an_error(bundle, monkeypatch):
    """ONNX Runtime itself goes on with the CPU when its CUDA libraries do not load."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda content, options, providers, **_: real(content, options, providers=["CPUExecutionProvider"]),
    )
    monkeypatch.setattr(onnxruntime_engine, "CudaDevice", HostMemory)
    with pytest.raises(EngineError, match=r"could not load its CUDA libraries: run  .*nucfast\[gpu\]"):
        create_engine(bundle, device="cuda")


def test_missing_packages(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"engine onnxruntime needs .* pip install 'nucfast\[cpu\]'"):
        create_engine(bundle, engine="onnxruntime", device="cpu")
    with pytest.raises(MissingExtraError, match=r"device cuda:0 needs .* pip install 'nucfast\[gpu\]'"):
        create_engine(bundle, device="cuda")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MissingExtraError, match=r"needs the package 'openvino': run  pip install .* nucfast$"
    ):
        create_engine(bundle, device="cpu")


def test_impossible_combinations(bundle):
    with pytest.raises(EngineError, match="engine openvino runs on the CPU only, not on cuda"):
        create_engine(bundle, engine="openvino", device="cuda")
    with pytest.raises(EngineError, match="precision bf16: ONNX Runtime has fp32 and int8 on cpu"):
        create_engine(bundle, engine="onnxruntime", device="cpu", precision="bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "fast"},
            "engine: expected one of auto, openvino, onnxruntime, .*, got 'fast'",
        ),
        ({"device": "gpu"}, "device: expected auto, cpu, cuda or cuda:<index>, got 'gpu'"),
        ({"device": "cuda:"}, "device: expected"),
        ({"device": 0}, "device: expected auto, cpu, cuda or cuda:<index>, got 0"),
        ({"precision": "int4"}, "precision: expected one of auto, fp32, bf16, fp16, int8, got 'int4'"),
    ],
)
def test_wrong_options(bundle, options, message):
    with pytest.raises(EngineError, match=message):
        create_engine(bundle, **options)


def test_wrong_threads(bundle):
    with pytest.raises(ValueError, match="threads: expected 1 or more, got 0"):
        create_engine(bundle, threads=0)


def test_clash_of_onnxruntime_packages(monkeypatch):
    installed = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    assert onnxruntime_engine.onnxruntime_packages() == installed
    assert onnxruntime_clash() == (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 overwrite each other: run  "
        "pip uninstall -y onnxruntime onnxruntime-gpu  and then  pip install 'nucfast[gpu]'"
    )
    del installed["onnxruntime"]
    assert onnxruntime_clash() is None


def test_import_is_light_and_openvino_stays_at_home(tmp_path, bundle):
    """No inference library at import; no telemetry, no file in the home folder, nothing on stderr at use."""
    code = """if True:
        import sys
        import nucfast.engine as engine
        heavy = {"openvino", "onnxruntime", "onnx", "torch"} & set(sys.modules)
        assert not heavy, heavy
        made = engine.create_engine(engine.load_bundle(sys.argv[1]), device="cpu")
        assert "openvino_telemetry" not in sys.modules
        print(made.description)
    """
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(bundle.path)],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("OpenVINO")
    assert list(home.iterdir()) == []


def test_zipped_bundle_runs(bundle, tmp_path):
    import shutil

    archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", bundle.path)
    engine = create_engine(load_bundle(archive), engine="openvino")
    assert engine.run(noise((1, 32, 32, 3))).keys() == {"nucleus", "distance", "class"}


class TestThreads:
    def test_affinity(self, monkeypatch):
        monkeypatch.setattr("nucfast.engine.threads._quota_cpus", lambda root: 1 << 30)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7})
        assert available_cpus() == 3
        monkeypatch.setattr("nucfast.engine.threads._quota_cpus", lambda root: 2)
        assert available_cpus() == 2

    def test_argument(self):
        assert resolve_threads(None) == available_cpus() >= 1
        assert resolve_threads(7) == 7
        with pytest.raises(TypeError, match="threads: expected int or None, got float"):
            resolve_threads(2.0)
        with pytest.raises(ValueError, match="threads: expected 1 or more, got -1"):
            resolve_threads(-1)

    def tree(self, root, *, cgroup, mountinfo, files):
        for path, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo, **files}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return _quota_cpus(root)

    V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    V1_MOUNT = "34 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"

    @pytest.mark.parametrize(
        ("content", "expected"),
        [("150000 100000\n", 2), ("max 100000\n", 1 << 30), ("50000 100000", 1), ("?", 1 << 30)],
    )
    def test_version_2(self, tmp_path, content, expected):
        quota = self.tree(
            tmp_path, cgroup="0::/\n", mountinfo=self.V2_MOUNT, files={"sys/fs/cgroup/cpu.max": content}
        )
        assert quota == expected

    def test_version_2_the_tightest_group_counts(self, tmp_path):
        files = {
            "sys/fs/cgroup/job/cpu.max": "400000 100000",
            "sys/fs/cgroup/job/step/cpu.max": "800000 100000",
            "sys/fs/cgroup/cpu.max": "max 100000",
            "sys/fs/cpu.max": "100000 100000",  # beside the hierarchy
        }
        assert self.tree(tmp_path, cgroup="0::/job/step\n", mountinfo=self.V2_MOUNT, files=files) == 4

    def test_version_1(self, tmp_path):
        group = "sys/fs/cgroup/cpu,cpuacct/batch/7"
        files = {f"{group}/cpu.cfs_quota_us": "300000", f"{group}/cpu.cfs_period_us": "100000"}
        lines = "5:memory:/other\n4:cpu,cpuacct:/batch/7\n0::/\n"
        assert self.tree(tmp_path, cgroup=lines, mountinfo=self.V1_MOUNT, files=files) == 3
        files[f"{group}/cpu.cfs_quota_us"] = "-1"
        assert self.tree(tmp_path, cgroup=lines, mountinfo=self.V1_MOUNT, files=files) == 1 << 30

    def test_container_that_sees_the_path_of_its_host(self, tmp_path):
        base = "sys/fs/cgroup/cpu,cpuacct"
        files = {f"{base}/cpu.cfs_quota_us": "250000", f"{base}/cpu.cfs_period_us": "100000"}
        lines = "4:cpu,cpuacct:/docker/abc\n"
        mount = self.V1_MOUNT.replace(" / /sys", " /docker/abc /sys")
        assert self.tree(tmp_path, cgroup=lines, mountinfo=mount, files=files) == 3
        assert self.tree(tmp_path, cgroup=lines, mountinfo=self.V1_MOUNT, files=files) == 3

    def test_without_cgroups(self, tmp_path):
        assert _quota_cpus(tmp_path) == 1 << 30


INTERRUPTED = """
import gc, signal, sys, threading
from nucfast.engine import create_engine, load_bundle

def let_go():
    engines.clear()
    gc.collect()

engines = [create_engine(load_bundle(sys.argv[1]), engine="openvino")]
thread = threading.Thread(target=let_go)
thread.start()
thread.join()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_engine_that_another_thread_lets_go_of_leaves_interrupts_as_they_are(bundle):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(bundle.path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
