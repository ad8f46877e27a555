from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose
from PIL import Image

from nucfast.cli import group
from nucfast.engine import Variant, create_engine, load_bundle, tensorrt_engine, write_bundle
from nucfast.engine import create as create_module
from nucfast.engine.openvino_engine import cpu_has_bf16
from nucfast.engine.tensorrt_engine import TensorRtEngine
from nucfast.errors import BundleError, DatasetError, EngineError, MissingExtraError, NucfastError
from small_networks import SMALL
from tiny_model import tiny_onnx, tiny_spec, write_tiny

pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("onnxruntime", reason="files are checked with ONNX Runtime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from nucfast_export import ExportError, variants
from nucfast_export.export import _to_onnx
from nucfast_export.graph import fuse_rounding, plain_outputs
from nucfast_export.images import read_tiles
from nucfast_export.quantize import largest_pair, quantize
from nucfast_export.variants import _make, add_variant, half
from nucfast_export.wrapper import ExportNetwork
from nucfast_training.networks import build_network


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of two images."""
    root = tmp_path_factory.mktemp("data") / "small"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    with (root / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "split", "image"])
        for seed, split in enumerate(("train", "val")):
            rows.writerow([split, split, f"images/{split}.png"])
            Image.fromarray(noise((64, 72, 3), seed)).save(root / "images" / f"{split}.png")
            labels = np.zeros((64, 72), np.uint8)
            labels[8:20, 8:20] = 1
            Image.fromarray(labels).save(root / "labels" / f"{split}.png")
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def with_int8(bundle, data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("int8") / "tiny"
    # One layer of random weights on noise: eight bits cost it more than a trained network.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "MAX_MEAN", variants.MAX_MEAN | {"int8": 8.0})
        return add_variant(bundle, directory, format="onnx", precision="int8", data=data)


def test_int8(with_int8, bundle):
    written = load_bundle(with_int8.bundle.path)
    assert written == with_int8.bundle
    assert written.variant("onnx", "int8").details["checked"]["data"] == "small"
    assert {row.engine.split()[0] for row in with_int8.differences} == {"ONNX", "OpenVINO"}
    assert written.model_bytes() == bundle.model_bytes()
    operators = {
        node.op_type for node in onnx.load_from_string(written.read_file("model-int8.onnx")).graph.node
    }
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_int8_runs(with_int8, engine):
    runner = create_engine(with_int8.bundle, engine=engine, device="cpu", precision="int8")
    exact = create_engine(with_int8.bundle, engine=engine, device="cpu", precision="fp32")
    assert ", int8, " in runner.description
    tiles = noise((2, 64, 64, 3), 3)
    for name, value in runner.run(tiles).items():
        assert 0 < np.abs(value.astype(int) - exact.run(tiles)[name]).mean() < 8


@pytest.mark.parametrize(
    ("native", "expected"), [(True, "int8"), (False, "bf16" if cpu_has_bf16() else "fp32")]
)
def test_auto_precision(with_int8, monkeypatch, native, expected):
    monkeypatch.setattr(create_module, "has_int8", lambda *, overflow_free: native and overflow_free)
    monkeypatch.setattr(create_module, "bf16_pays", lambda: True)
    assert create_engine(with_int8.bundle, device="cpu").precision == expected
    assert create_engine(with_int8.bundle, device="cpu", precision="fp32").precision == "fp32"


@pytest.mark.parametrize(
    ("engine", "expected"), [("auto", "int8"), ("openvino", "int8"), ("onnxruntime", "fp32")]
)
def test_auto_takes_the_files_of_the_engine(bundle, monkeypatch, engine, expected):
    """A bundle whose int8 file is OpenVINO's own."""
    monkeypatch.setattr(create_module, "has_int8", lambda *, overflow_free: overflow_free)
    files = _make(bundle, "openvino", "fp32", (), 64, 1)
    variant = Variant("model-fp32.xml", "openvino", "int8", {"overflow_free": True})
    own = write_bundle(
        bundle.path.parent / engine, replace(bundle, variants=(variant,)), files | {"model.onnx": tiny_onnx()}
    )
    assert create_engine(own, engine=engine, device="cpu").precision == expected


@pytest.mark.parametrize(("version", "expected"), [("1.0", "fp16"), ("2.0", "fp32")])
def test_auto_takes_an_engine_that_came_with_the_bundle(bundle, monkeypatch, version, expected):
    """If this version of the library can load it."""
    monkeypatch.setattr(
        tensorrt_engine, "import_tensorrt", lambda library: SimpleNamespace(__version__=version)
    )
    monkeypatch.setattr(tensorrt_engine, "CudaDevice", lambda *_: None)

    def precision_is_known(engine, runtime):
        raise EngineError(f"picked {engine.precision}")

    monkeypatch.setattr(TensorRtEngine, "_engine_bytes", precision_is_known)
    variant = Variant("model-fp16.tensorrt", "tensorrt", "fp16", {"library": "tensorrt 1.0"})
    with pytest.raises(EngineError, match=f"picked {expected}"):
        create_engine(replace(bundle, variants=(variant,)), engine="tensorrt", device="cuda:0")


def test_auto_without_a_file(bundle, monkeypatch):
    monkeypatch.setattr(create_module, "has_int8", lambda **_: True)
    assert create_engine(bundle, device="cpu").precision != "int8"


def test_int8_of_earlier_releases_needs_dot_products(with_int8, monkeypatch):
    """Their sums may not fit into 16 bits, and the files do not say that they do."""
    (variant,) = with_int8.bundle.variants
    assert variant.details["overflow_free"] is True
    details = {name: value for name, value in variant.details.items() if name != "overflow_free"}
    older = replace(with_int8.bundle, variants=(replace(variant, details=details),))
    monkeypatch.setattr(create_module, "has_int8", lambda *, overflow_free: overflow_free)
    assert create_engine(with_int8.bundle, device="cpu").precision == "int8"
    assert create_engine(older, device="cpu").precision != "int8"


class TestSmallSums:
    """No sum of two neighbouring products of int8 weights overflows 16 bits, and the weights are the same."""

    @pytest.fixture(params=[1, 2], ids=["dense", "grouped"])
    def model(self, request):
        rng = np.random.default_rng(0)
        kernel = rng.normal(size=(8, 8, 3, 3)).astype(np.float32)
        kernel[0, 2:4, 1, 1] = 6.0  # together far above the limit
        kernel[1, 2:4, 1, 1] = 6.0, -6.0  # these cancel out
        kernel[2, 1:3, 1, 1] = 6.0  # these are not summed with each other
        kernel[3] = 0
        kernel = kernel[:, : 8 // request.param]
        nodes = [
            helper.make_node(
                "Conv",
                ["x", "w", "b"],
                ["c"],
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
                group=request.param,
                name="c",
            ),
            helper.make_node("Relu", ["c"], ["r"], name="r"),
            helper.make_node("Mul", ["r", "one"], ["y"], name="m"),
        ]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16, 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 16, 16])],
            [
                numpy_helper.from_array(kernel, "w"),
                numpy_helper.from_array(rng.normal(60, 1, size=8).astype(np.float32), "b"),  # none below 0
                numpy_helper.from_array(np.ones(1, np.float32), "one"),
            ],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    @pytest.fixture
    def tiles(self):
        tiles = [np.random.default_rng(i).random((1, 8, 16, 16)).astype(np.float32) for i in range(4)]
        for tile in tiles:
            tile[0, 2:4, :8] = 1.0  # the brightest, where weights are largest
        return tiles

    @pytest.fixture
    def quantised(self, model, tiles):
        return quantize(model, tiles)

    def weights(self, quantised):
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
        return stored["w_quantized"].astype(int), stored["w_scale"], stored

    def test_sums_fit(self, quantised):
        levels, _, _ = self.weights(quantised)
        for sign in (1, -1):
            part = np.maximum(sign * levels, 0)
            assert 255 * (part[:, 0::2] + part[:, 1::2]).max() < 1 << 15
        assert abs(levels[1:3]).max(axis=(1, 2, 3)).min() >= 126  # nothing was given up there
        assert levels[0].max() == 64

    def test_weights_and_biases_are_the_same(self, model, quantised):
        levels, scale, stored = self.weights(quantised)
        kernel, bias, _ = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
        each = scale[:, None, None, None]
        assert (np.abs(levels * each - kernel) <= 0.5001 * each).all()
        step = stored["b_quantized_scale"]
        # The mean of the input is about 0.6: what rounding may add to 72 weights is less than a step of each.
        assert_allclose(stored["b_quantized"] * step, bias, atol=0.5 * 72 * scale.max() * 0.6)

    def test_no_channel_is_shifted_in_the_mean(self, model, quantised, tiles):
        from onnx.reference import ReferenceEvaluator

        exact, rounded = (
            np.mean(
                [ReferenceEvaluator(graph).run(None, {"x": tile})[0] for tile in tiles], axis=(0, 1, 3, 4)
            )
            for graph in (model, quantised)
        )
        # Channel 3 has no weights: what differs there is the rounding of one value.
        assert np.delete(np.abs(exact - rounded), 3).max() < 0.01

    @pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
    def test_engines_compute_what_the_graph_says(self, quantised, tiles, engine):
        """The graph in floating point, as the reference does it, is what int8 must give on any processor."""
        from onnx.reference import ReferenceEvaluator

        (expected,) = ReferenceEvaluator(quantised).run(None, {"x": tiles[0]})
        content = quantised.SerializeToString()
        if engine == "onnxruntime":
            import onnxruntime

            (got,) = onnxruntime.InferenceSession(content).run(None, {"x": tiles[0]})
        else:
            import openvino

            compiled = openvino.Core().compile_model(openvino.Core().read_model(content), "CPU")
            got = compiled(tiles[0])[0]
        step = expected[expected > 0].min()
        assert np.abs(got - expected).max() <= 1.01 * step

    def test_channels_that_are_no_multiple_of_four(self):
        """Padding may put any two of them side by side."""
        kernel = np.zeros((1, 3, 3, 3), np.int8)
        kernel[0, 0, 0, 0], kernel[0, 2, 2, 2], kernel[0, 1, 1, 1] = 100, 90, -127
        assert largest_pair(kernel).tolist() == [190]


@pytest.mark.parametrize("name", ["he-accurate", "he-fast", "he-open", "micro-fast"])
def test_shipped_int8_is_free_of_overflow(name):
    bundle = load_bundle(name)
    variant = bundle.variant("onnx", "int8")
    assert variant.details["overflow_free"] is True
    model = onnx.load_from_string(bundle.read_file(variant.file))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = {node.output[0]: node for node in model.graph.node}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convs) > 10
    for conv in convs:
        levels = numpy_helper.to_array(stored[maker[conv.input[1]].input[0]])
        assert largest_pair(levels).max() <= 128


def test_calibration_on_tiles_of_several_sizes():
    tiles = [noise((1, height, width, 3), height) for height, width in ((32, 32), (64, 48))]
    model = quantize(onnx.load_from_string(tiny_onnx()), tiles)
    assert any(node.op_type == "DequantizeLinear" for node in model.graph.node)


def test_calibration_on_several_sets(bundle, data, tmp_path, monkeypatch):
    """Ranges come from all of them, the comparison from the one to check on."""
    asked = []
    real = variants.read_tiles
    monkeypatch.setattr(
        variants, "read_tiles", lambda folder, split, *rest: asked.append(split) or real(folder, split, *rest)
    )
    add_variant(
        bundle, tmp_path / "tiny", format="onnx", precision="int8", data=data, calibrate=(data, data, data)
    )
    assert asked.count("train") == 3


def test_openvino_files(bundle, data, tmp_path):
    report = add_variant(bundle, tmp_path / "tiny", format="openvino", precision="fp32", data=data)
    assert set(report.bundle.files) == {"model.onnx", "model-fp32.xml", "model-fp32.bin"}
    tiles = noise((1, 64, 64, 3))
    for name, value in create_engine(report.bundle, engine="openvino", precision="fp32").run(tiles).items():
        assert np.abs(value.astype(int) - create_engine(bundle, precision="fp32").run(tiles)[name]).max() <= 1


def test_half(bundle):
    model = half(onnx.load_from_string(bundle.model_bytes()))
    assert {tensor.data_type for tensor in model.graph.initializer} >= {TensorProto.FLOAT16}
    assert {port.type.tensor_type.elem_type for port in model.graph.output} == {TensorProto.UINT8}


def test_symmetric_for_tensorrt():
    model = quantize(onnx.load_from_string(tiny_onnx()), [noise((1, 32, 32, 3))], symmetric=True)
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    zeros = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert {stored[name] for name in zeros} == {TensorProto.INT8}


def test_no_constant_is_left_over(capfd):
    """ONNX Runtime would warn of each on the user's screen."""
    model = onnx.load_from_string(tiny_onnx())
    fuse_rounding(model)  # as every bundle's is
    quantize(model, [noise((1, 32, 32, 3))], symmetric=True)
    plain_outputs(model)
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    assert "Removing initializer" not in capfd.readouterr().err


def test_a_file_that_differs_is_not_written(bundle, data, tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "MAX_MEAN", variants.MAX_MEAN | {"int8": 0.0})
    with pytest.raises(
        ExportError, match=r"model-int8.onnx not written: .* differs from model.onnx in output"
    ):
        add_variant(bundle, tmp_path / "tiny", format="onnx", precision="int8", data=data)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_loses_accuracy_is_not_written(bundle, data, tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "MAX_MEAN", variants.MAX_MEAN | {"int8": 8.0})
    monkeypatch.setattr(variants, "MAX_LOSS", -1.0)
    with pytest.raises(ExportError, match=r"model-int8.onnx not written: it loses .* PQ on small"):
        add_variant(bundle, tmp_path / "tiny", format="onnx", precision="int8", data=data)
    assert list(tmp_path.iterdir()) == []


def test_int8_takes_the_widest_ranges_where_the_mean_loses_too_much(bundle, data, tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "MAX_MEAN", variants.MAX_MEAN | {"int8": 8.0})
    check, read, refused = variants._check, variants.read_tiles, []

    def read_two_kinds(*args):
        return [kind for tile in read(*args) for kind in (tile, tile // 4)]

    def refuse_first(*args):
        if not refused:
            refused.append(args[-1]["model-int8.onnx"])
            raise ExportError("it loses too much")
        return check(*args)

    monkeypatch.setattr(variants, "read_tiles", read_two_kinds)
    monkeypatch.setattr(variants, "_check", refuse_first)
    written = add_variant(bundle, tmp_path / "tiny", format="onnx", precision="int8", data=data).bundle
    assert sum_of_scales(written.read_file("model-int8.onnx")) > sum_of_scales(refused[0])


def sum_of_scales(content):
    """Those of all activations."""
    model = onnx.load_from_string(content)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return sum(
        float(stored[node.input[1]].sum()) for node in model.graph.node if node.op_type == "QuantizeLinear"
    )


@pytest.mark.parametrize(
    ("format", "precision", "message"),
    [
        ("onnx", "bf16", "onnx has fp32, fp16, int8, got bf16; OpenVINO computes model.onnx in bf16"),
        ("onnx", "fp32", "model.onnx is the fp32 ONNX file; nothing to add"),
        ("openvino", "fp16", "openvino has fp32, bf16, int8, got fp16"),
    ],
)
def test_combinations_that_do_not_exist(bundle, data, tmp_path, format, precision, message):
    with pytest.raises(ExportError, match=message):
        add_variant(bundle, tmp_path / "tiny", format=format, precision=precision, data=data)


def test_missing_tensorrt(bundle, data, tmp_path):
    pytest.importorskip("onnx")
    try:
        import tensorrt  # noqa: F401

        pytest.skip("TensorRT is installed")
    except ImportError:
        pass
    with pytest.raises(MissingExtraError, match=r"run  pip install 'nucfast\[tensorrt\]'"):
        add_variant(bundle, tmp_path / "tiny", format="tensorrt", precision="fp32", data=data)
    with pytest.raises(MissingExtraError, match=r"run  pip install 'nucfast\[tensorrt\]'"):
        create_engine(bundle, engine="tensorrt")


@pytest.mark.parametrize(("name", "quoted"), [("tiny", r"/\S+tiny"), ("my model", r"'/.+my model'")])
def test_no_file_for_a_precision(tmp_path, name, quoted):
    """The command in the message is one that a shell takes."""
    bundle = write_tiny(tmp_path / name)
    with pytest.raises(
        EngineError,
        match=rf"precision int8: .*has no file .* nucfast export {quoted} --to onnx --precision int8",
    ):
        create_engine(bundle, engine="openvino", precision="int8")


def test_manifest_with_a_variant_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="variants: expected files that are written"):
        write_bundle(
            tmp_path / "tiny",
            replace(tiny_spec(), variants=(Variant("model-int8.onnx", "onnx", "int8"),)),
            {"model.onnx": tiny_onnx()},
        )


def test_damaged_variant(with_int8, tmp_path):
    files = {name: with_int8.bundle.read_file(name) for name in with_int8.bundle.files}
    made = write_bundle(tmp_path / "tiny", with_int8.bundle, files)
    (made.path / "model-int8.onnx").write_bytes(files["model-int8.onnx"][:-1])
    with pytest.raises(BundleError, match=r"model-int8.onnx is damaged"):
        load_bundle(made.path)


def test_bytes_before_pixels():
    """The sigmoid moves before the shuffle; values stay the same."""
    import onnxruntime

    plain = onnx.load_from_string(tiny_onnx())
    fused = onnx.load_from_string(tiny_onnx())
    fuse_rounding(fused)
    back = onnx.ModelProto()
    back.CopyFrom(fused)
    plain_outputs(back)
    assert not any(node.op_type == "Round" for node in fused.graph.node)
    tiles = noise((2, 32, 48, 3))
    sessions = [onnxruntime.InferenceSession(m.SerializeToString()) for m in (plain, fused, back)]
    expected, *others = (session.run(None, {"image": tiles}) for session in sessions)
    for maps in others:
        for value, wanted in zip(maps, expected, strict=True):
            assert np.abs(value.astype(int) - wanted).max() <= 1


def test_shuffle_fills_vectors():
    """Pixels come out of 16 channels of bytes, 8 of which are zeros in the convolution."""
    import onnxruntime

    network = build_network({"network": SMALL["fast_unet"]}).eval()
    wrapper = ExportNetwork(network, ["nucleus", "distance"])
    plain, _, _ = _to_onnx(wrapper, tiny_spec(stride_px=16), "torchscript")
    fused = onnx.ModelProto()
    fused.CopyFrom(plain)
    fuse_rounding(fused)
    maker = {name: node for node in fused.graph.node for name in node.output}
    shuffles = [node for node in fused.graph.node if node.op_type == "DepthToSpace"]
    assert len(shuffles) == 2
    for shuffle in shuffles:
        cut = maker[shuffle.input[0]]
        assert cut.op_type == "Slice"
        assert maker[cut.input[0]].op_type == "QuantizeLinear"
    tiles = noise((1, 32, 48, 3))
    expected, found = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": tiles})
        for model in (plain, fused)
    )
    for value, wanted in zip(found, expected, strict=True):
        assert np.abs(value.astype(int) - wanted).max() <= 1


def test_command(bundle, data, tmp_path):
    run = CliRunner().invoke
    result = run(group, ["export", str(bundle.path), "--precision", "int8"])
    assert isinstance(result.exception, NucfastError)
    assert "give the images to check on with --data" in str(result.exception)
    arguments = [
        "export",
        str(bundle.path),
        "--to",
        "openvino",
        "--data",
        str(data),
        "-o",
        str(tmp_path / "b"),
    ]
    result = run(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "PQ on val of small:" in result.output
    assert re.findall(r"(model\S+): \d+\.\d\d MB", result.output) == ["model-fp32.xml", "model-fp32.bin"]
    assert load_bundle(tmp_path / "b").variant("openvino", "fp32") is not None


def test_command_mends_a_damaged_file(bundle, data, tmp_path):
    """It is the one that the error about the file names."""
    damaged = replace(bundle, variants=(Variant("model-fp32.xml", "openvino", "fp32"),))
    files = {"model.onnx": tiny_onnx(), "model-fp32.xml": b"", "model-fp32.bin": b""}
    path = write_bundle(tmp_path / "tiny", damaged, files).path
    (path / "model-fp32.bin").write_bytes(b"damaged")
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    _, *arguments = str(caught.value).partition("with  ")[2].replace("DATASET", str(data)).split()
    assert CliRunner().invoke(group, arguments, catch_exceptions=False).exit_code == 0
    assert load_bundle(path).read_file("model-fp32.bin") != b"damaged"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "tensorrt-rtx", "--tile-px", "-8"], "-8 is not in the range x>=1"),
        (["--to", "tensorrt-rtx", "--tile-px", "0"], "0 is not in the range x>=1"),
        (["--tile-px", "64"], "--tile-px and --batch are of TensorRT engines; --to onnx takes any size"),
        (["--to", "openvino", "--batch", "4"], "--to openvino takes any size"),
        (["--calibrate", "."], "--calibrate is for --precision int8, not fp32"),
        (["--scores", __file__], "--recipe and --scores are for a training run"),
        (["--recipe", "he-fast"], "--recipe and --scores are for a training run"),
        (["--data", "/nowhere"], "Directory '/nowhere' does not exist"),
    ],
)
def test_options_that_mean_nothing(bundle, data, tmp_path, arguments, message):
    command = ["export", str(bundle.path), "-o", str(tmp_path / "b"), "--data", str(data), *arguments]
    result = CliRunner().invoke(group, command, catch_exceptions=False)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_cannot_be_decoded(bundle, data, tmp_path, monkeypatch):
    """Before the work, since no score could check it."""
    monkeypatch.setattr(variants, "_make", lambda *_: pytest.fail("made"))
    (_, *others) = bundle.outputs
    blind = replace(bundle, outputs=tuple(others))
    with pytest.raises(BundleError, match=r"tiny: decoder 'climb' needs the outputs \['nucleus'\]"):
        add_variant(blind, tmp_path / "b", format="openvino", precision="fp32", data=data)


def test_images_that_hold_no_tile(bundle, data, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(data, small)
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        Image.new(mode, (200, 3)).save(small / kind / "val.png")
    with pytest.raises(
        DatasetError, match=r"small: expected images of at least 4 x 4 px at 0.5 um/px .* 'val'"
    ):
        add_variant(bundle, tmp_path / "b", format="openvino", precision="fp32", data=small)
    with (small / "manifest.csv").open("a") as file:
        file.write("large,val,images/train.png\n")
    shutil.copy(small / "labels" / "train.png", small / "labels" / "large.png")
    assert [tile.shape for tile in read_tiles(small, "val", bundle, 4)] == [(1, 64, 72, 3)]


def test_images_without_nuclei(bundle, data, tmp_path):
    """Neither annotated nor found: no score says what a file loses."""
    empty = tmp_path / "empty"
    shutil.copytree(data, empty)
    Image.new("L", (72, 64)).save(empty / "labels" / "val.png")
    blind = replace(bundle, decoder=replace(bundle.decoder, min_area_um2=1e9))
    with pytest.raises(
        DatasetError, match=r"empty: expected nuclei in images of the split 'val', .* got none"
    ):
        add_variant(blind, tmp_path / "b", format="openvino", precision="fp32", data=empty)
    assert not (tmp_path / "b").exists()


def test_tiles_that_are_no_whole_strides(bundle, data, tmp_path):
    with pytest.raises(ExportError, match="tile_px: expected a multiple of 4, the stride of tiny, got 30"):
        add_variant(bundle, tmp_path / "b", format="tensorrt-rtx", precision="fp32", data=data, tile_px=30)


@pytest.mark.parametrize("format", ["tensorrt", "tensorrt-rtx"])
def test_no_engine_is_built_where_none_can_run(bundle, data, tmp_path, monkeypatch, format):
    monkeypatch.setattr(variants, "import_tensorrt", lambda _: None)
    monkeypatch.setattr(variants, "cuda_device_count", lambda: 0)
    monkeypatch.setattr(variants, "build_engine", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ExportError, match="an engine is checked on the NVIDIA GPU it is for") as error:
        add_variant(bundle, tmp_path / "b", format=format, precision="fp32", data=data)
    assert "--device" not in str(error.value)


def test_no_bf16_where_it_cannot_run(bundle, data, tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(variants, "_make", lambda *_, **__: pytest.fail("made"))
    with pytest.raises(ExportError, match="precision bf16: this CPU has no bf16 instructions"):
        add_variant(bundle, tmp_path / "b", format="openvino", precision="bf16", data=data)


def unknown_operator():
    model = onnx.load_from_string(tiny_onnx())
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Nonsense"
    return model.SerializeToString()


@pytest.mark.parametrize("content", [b"nonsense", tiny_onnx()[:-500], unknown_operator()])
@pytest.mark.parametrize(("format", "precision"), [("onnx", "int8"), ("onnx", "fp16"), ("openvino", "fp32")])
def test_a_model_that_cannot_be_read(data, tmp_path, content, format, precision):
    """Though its checksum is right."""
    bundle = write_bundle(tmp_path / "bad", tiny_spec(), {"model.onnx": content})
    with pytest.raises(BundleError, match=r"bad: model.onnx cannot be loaded \(") as error:
        add_variant(bundle, tmp_path / "b", format=format, precision=precision, data=data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_model_that_cannot_be_converted(data, bundle, tmp_path, monkeypatch, precision):
    """Each converter has errors of its own."""

    def fail(*_, **__):
        raise type("OfTheBinding", (Exception,), {})("no such operator\nand a long story")

    monkeypatch.setattr(variants, "half", fail)
    monkeypatch.setattr(variants, "quantize", fail)
    with pytest.raises(ExportError, match=r"\(OfTheBinding: no such operator\)") as error:
        add_variant(bundle, tmp_path / "b", format="onnx", precision=precision, data=data)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"tiny: no onnx file in {precision} can be made of model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_openvino_cannot_read(data, bundle, tmp_path, monkeypatch):
    """ONNX Runtime has operators that OpenVINO lacks."""

    def fail(_):
        raise RuntimeError(
            "Exception from core.cpp:105:\nSummary:\n-- No conversion rule found for operations: Rfft\nTo do"
        )

    library = SimpleNamespace(__version__="1", Core=lambda: SimpleNamespace(read_model=fail))
    monkeypatch.setattr(variants, "import_openvino", lambda: library)
    with pytest.raises(
        BundleError, match=r"cannot be loaded \(No conversion rule found for operations: Rfft\)"
    ):
        add_variant(bundle, tmp_path / "b", format="openvino", precision="fp32", data=data)
