from __future__ import annotations

import json
import os
import signal

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from nucfast.cli import group
from nucfast.engine import load_bundle, measure_speed, speed
from nucfast.engine.processor import bf16_pays, has_int8
from nucfast.engine.tensorrt_engine import TensorRtEngine, build_engine
from nucfast.errors import BundleError, EngineError, NucfastError
from tiny_model import tiny_onnx, write_tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bundle") / "tiny")


def test_benchmark_command(bundle, tmp_path):
    path = tmp_path / "speed.json"
    arguments = ["benchmark", "--model", str(bundle.path), "--engine", "openvino", "--precision", "fp32"]
    arguments += ["--precision", "int8", "--batch", "2", "--seconds", "0", "--json", str(path)]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "left out: openvino int8: precision int8" in result.stderr
    written = json.loads(path.read_text())
    (row,), (left_out,) = written["rows"], written["left_out"]
    reason = left_out.pop("reason")
    assert left_out == {"engine": "openvino", "precision": "int8", "tile_px": 64, "batch": 2}
    assert reason.startswith("precision int8: ")
    assert (row["engine"], row["precision"], row["tile_px"], row["batch"]) == ("openvino", "fp32", 64, 2)
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert row["mpx_per_s"] == pytest.approx(2 * 64 * 64 / row["p50_ms"] / 1e3, rel=0.05, abs=0.002)
    assert row["mm2_per_s"] == pytest.approx(row["mpx_per_s"] * 0.25, abs=1e-3)
    assert row["peak_mb"] > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tile-px", "63"], "--tile-px: expected a multiple of 4, got 63"),
        (["--tile-px", "-64"], "-64 is not in the range x>=1"),
        (["--tile-px", "0"], "0 is not in the range x>=1"),
        (["--batch", "-1"], "-1 is not in the range x>=1"),
        (["--batch", "0"], "0 is not in the range x>=1"),
        (["--seconds", "-1"], "-1.0 is not in the range x>=0"),
        (["--json", "/nodir/x.json"], "--json: /nodir is no folder to write to"),
    ],
)
def test_benchmark_refuses_before_it_measures(bundle, monkeypatch, arguments, message):
    monkeypatch.setattr("nucfast.cli.benchmark.measure_speed", lambda *_, **__: pytest.fail("measured"))
    result = CliRunner().invoke(group, ["benchmark", "--model", str(bundle.path), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_benchmark_refuses_a_device_before_it_measures(bundle, monkeypatch):
    monkeypatch.setattr("nucfast.cli.benchmark.measure_speed", lambda *_, **__: pytest.fail("measured"))
    arguments = ["benchmark", "--model", str(bundle.path), "--device", "foo"]
    with pytest.raises(EngineError, match="device: expected auto, cpu, cuda or cuda:<index>, got 'foo'"):
        CliRunner().invoke(group, arguments, catch_exceptions=False)


def test_a_batch_that_the_memory_does_not_hold(bundle):
    with pytest.raises(EngineError, match=r"no memory for a batch of 1000000000000 such tiles .*give fewer"):
        measure_speed(str(bundle.path), engine="openvino", batch=10**12)


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_measuring_process_that_is_killed(monkeypatch):
    """As the system does where memory runs out."""
    monkeypatch.setattr(speed, "_measure", killed)
    with pytest.raises(EngineError, match=r"no memory for a batch of 2 such tiles \(.* terminated abruptly"):
        measure_speed("he-fast", batch=2)


def test_a_full_disk_is_named_by_the_file(bundle, monkeypatch):
    monkeypatch.setattr("nucfast.cli.benchmark.measure_speed", lambda *_, **__: fail("nothing runs here"))
    arguments = ["benchmark", "--model", str(bundle.path), "--engine", "openvino", "--json", "/dev/full"]
    with pytest.raises(NucfastError, match=r"/dev/full: No space left on device; make room"):
        CliRunner().invoke(group, arguments, catch_exceptions=False)


def fail(reason):
    raise EngineError(reason)


def test_memory_is_that_of_the_measured_process_alone(bundle):
    """Not what the one that starts it holds."""
    settings = {"engine": "openvino", "precision": "fp32", "seconds": 0.0}
    alone = measure_speed(str(bundle.path), **settings).peak_mb
    held = np.ones(600 << 20, np.uint8)
    beside = measure_speed(str(bundle.path), **settings).peak_mb
    assert held.size > 0
    assert beside < alone + 100


@pytest.mark.parametrize(
    ("text", "any_sums", "small_sums"),
    [
        ("flags\t\t: fpu avx2 avx_vnni\n", True, True),
        ("flags\t\t: fpu avx2 avx512f\n", False, True),
        ("flags\t\t: fpu avx\n", False, False),
        ("Features\t: fp asimd asimddp\n", True, True),
        ("Features\t: fp asimd\n", False, False),
        ("", False, False),
    ],
)
def test_int8_by_processor(tmp_path, text, any_sums, small_sums):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert has_int8(cpuinfo=path) is any_sums
    assert has_int8(overflow_free=True, cpuinfo=path) is small_sums
    assert has_int8(overflow_free=True, cpuinfo=tmp_path / "missing") is False


@pytest.mark.parametrize(
    ("text", "pays"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16 amx_bf16\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16\n", True),
        ("Features\t: fp bf16\n", True),
    ],
)
def test_bf16_pays_by_processor(tmp_path, text, pays):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert bf16_pays(path) is pays
    assert bf16_pays(tmp_path / "missing") is True


class TestTensorRtRtx:
    """Builds for real, without a GPU."""

    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

    @pytest.fixture
    def built(self, monkeypatch):
        """What each engine is built of: no engine can be opened without a GPU, its network can."""
        import tensorrt_rtx

        build, found = tensorrt_rtx.Builder.build_serialized_network, []

        def spy(builder, network, config):
            ports = {
                kind: {port.name: (port.dtype, tuple(port.shape)) for port in map(get, range(count))}
                for kind, get, count in (
                    ("in", network.get_input, network.num_inputs),
                    ("out", network.get_output, network.num_outputs),
                )
            }
            layers = map(network.get_layer, range(network.num_layers))
            kind = tensorrt_rtx.LayerType.CONVOLUTION
            convolved = {layer.get_output(0).dtype for layer in layers if layer.type == kind}
            found.append((ports, convolved, config.get_flag(tensorrt_rtx.BuilderFlag.TF32), profiles))
            return build(builder, network, config)

        make, profiles = tensorrt_rtx.Builder.create_optimization_profile, []

        def keep(builder):
            profiles.append(make(builder))
            return profiles[-1]

        monkeypatch.setattr(tensorrt_rtx.Builder, "build_serialized_network", spy)
        monkeypatch.setattr(tensorrt_rtx.Builder, "create_optimization_profile", keep)
        return found

    def check_built(self, built, bundle, content, *, tile_px, batch):
        """Build an engine and check it."""
        engine = build_engine(
            content, bundle, library="tensorrt-rtx", tile_px=tile_px, batch=batch, file="model.onnx"
        )
        assert len(engine) > len(content) / 2
        return self.check_ports(built, bundle, tile_px=tile_px, batch=batch)

    def check_ports(self, built, bundle, *, tile_px, batch):
        """Hold inputs, outputs and shapes of the engine against the bundle; what its convolutions give."""
        import tensorrt_rtx

        ((ports, convolved, tf32, (profile,)),) = built
        uint8, stride = tensorrt_rtx.DataType.UINT8, bundle.stride_px
        assert ports["in"] == {"image": (uint8, (-1, -1, -1, 3))}
        assert {name: dtype for name, (dtype, _) in ports["out"].items()} == dict.fromkeys(
            (spec.name for spec in bundle.outputs), uint8
        )
        assert [shape[-1] for _, shape in ports["out"].values()] == [spec.channels for spec in bundle.outputs]
        largest = (batch, tile_px, tile_px, 3)
        shapes = [tuple(shape) for shape in profile.get_shape("image")]
        assert shapes == [(1, stride, stride, 3), largest, largest]
        assert not tf32
        return convolved

    def test_build(self, bundle, built):
        import tensorrt_rtx

        convolved = self.check_built(built, bundle, tiny_onnx(), tile_px=64, batch=2)
        assert convolved == {tensorrt_rtx.DataType.FLOAT}

    def test_builds_the_default_model(self, built):
        import tensorrt_rtx

        bundle = load_bundle("he-fast")
        content = bundle.onnx_bytes("model-fp16.onnx")
        convolved = self.check_built(built, bundle, content, tile_px=1024, batch=16)
        assert convolved == {tensorrt_rtx.DataType.HALF}

    def test_refuses_to_round_to_int8(self):
        """As it would where a graph rounds to bytes: every value above 127 would be 127."""
        bundle = load_bundle("he-fast")
        settings = {"library": "tensorrt-rtx", "tile_px": 1024, "batch": 16, "file": "model.onnx"}
        with pytest.raises(
            EngineError, match=r"makes int8 of output '\w+' of model.onnx, not uint8: use prec"
        ):
            build_engine(bundle.model_bytes(), bundle, **settings)

    def test_exports_the_default_model_in_fp32(self, built):
        """With rounding that it knows."""
        pytest.importorskip("torch", reason="exporting needs PyTorch")
        import tensorrt_rtx

        from nucfast_export import variants

        bundle = load_bundle("he-fast")
        (name,) = variants._make(bundle, "tensorrt-rtx", "fp32", (), 1024, 16)
        assert name == "model-fp32.tensorrt-rtx"
        assert self.check_ports(built, bundle, tile_px=1024, batch=16) == {tensorrt_rtx.DataType.FLOAT}

    def test_refuses_what_it_cannot_parse(self, bundle):
        with pytest.raises(BundleError, match=r"model.onnx cannot be loaded \(.*\): get it again"):
            build_engine(b"nonsense", bundle, library="tensorrt-rtx", tile_px=64, batch=2, file="model.onnx")

    @pytest.mark.parametrize(("name", "node"), [("head/frob", "head/frob"), ("", r"number \d+")])
    def test_names_the_operator_that_it_does_not_know(self, bundle, name, node):
        model = onnx.load_from_string(tiny_onnx())
        for item in model.graph.node:
            if item.op_type == "Round":
                item.op_type, item.name = "Frobnicate", name
        with pytest.raises(BundleError, match=rf"\(operator Frobnicate, node {node}: .*\): get it again"):
            build_engine(
                model.SerializeToString(),
                bundle,
                library="tensorrt-rtx",
                tile_px=64,
                batch=2,
                file="model.onnx",
            )

    def test_refuses_to_run_without_a_device(self, bundle, monkeypatch):
        monkeypatch.setattr("nucfast.engine.cuda.cuda_device_count", lambda: 0)
        with pytest.raises(EngineError, match="tensorrt-rtx on cuda:0: no CUDA device is visible"):
            TensorRtEngine(bundle, library="tensorrt-rtx", device="cuda:0", precision="fp32", threads=1)
