from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from nucfast.cli import group
from nucfast.engine import create_engine, load_bundle, parity
from nucfast.errors import BundleError, DatasetError, NucfastError
from tiny_model import tiny_spec

torch = pytest.importorskip("torch", reason="exporting needs PyTorch")
pytest.importorskip("onnxruntime", reason="exports are checked with ONNX Runtime")

import onnx  # noqa: E402
from onnx import TensorProto, numpy_helper  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from nucfast_export import ExportError, export, export_bundle  # noqa: E402
from nucfast_export.images import read_tiles  # noqa: E402
from nucfast_export.run import load_run  # noqa: E402
from nucfast_export.weights import store_weights_as_fp16  # noqa: E402
from nucfast_training.networks import build_network  # noqa: E402
from nucfast_training.recipe import load_recipe  # noqa: E402

STRIDE_PX = 4


class TinyNet(nn.Module):
    """Stem of stride 2, one level below it, a skip, pixel shuffle: the shape of the real network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.down = nn.Sequential(
            nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.heads = nn.Conv2d(16, 12, 1)
        self.to_pixels = nn.PixelShuffle(2)

    def forward(self, x):
        skip = self.stem(x - 0.5)
        heads = self.heads(skip + self.up(self.down(skip)))
        maps = self.to_pixels(heads[:, :8])
        return {"nucleus": maps[:, 0:1], "distance": maps[:, 1:2], "class": heads[:, 8:]}


def make_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = TinyNet()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: nothing at its default
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.05, 0.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module", params=["auto", "torchscript"])
def report(request, network, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "tiny"
    return export_bundle(network, directory, tiny_spec(stride_px=STRIDE_PX), exporter=request.param)


def expected_maps(network, tiles, *, mean=(0, 0, 0), std=(1, 1, 1)):
    """The definition, written out."""
    x = (torch.from_numpy(tiles).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        logits = network(x.permute(0, 3, 1, 2).float())
    maps = {name: torch.sigmoid(logits[name]) for name in ("nucleus", "distance")}
    maps["class"] = torch.softmax(logits["class"], dim=1)
    return {
        name: np.rint(255 * value.permute(0, 2, 3, 1).numpy()).astype(np.uint8)
        for name, value in maps.items()
    }


def tiles_of(shape, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def model_of(bundle):
    return onnx.load_from_string(bundle.model_bytes())


def test_report(report):
    assert report.fallback_reason is None
    assert report.exporter in {"dynamo", "torchscript"}
    assert report.opset == 18
    assert len(report.differences) == 6
    assert {row.engine.split()[0] for row in report.differences} == {"ONNX", "OpenVINO"}
    for row in report.differences:
        assert row.largest <= 1
        assert row.mean < 1e-3
    assert load_bundle(report.bundle.path) == report.bundle


def test_default_exporter_is_dynamo(report, request):
    if request.node.callspec.params["report"] == "auto":
        assert report.exporter == "dynamo"


def test_graph(report):
    model = model_of(report.bundle)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    operators = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in operators
    assert operators.index("Cast") < operators.index("Transpose")
    axes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", "height", "width", 3]
    for port in [*model.graph.input, *model.graph.output]:
        assert port.type.tensor_type.elem_type == TensorProto.UINT8
    # Nothing of the machine that made it.
    text = report.bundle.model_bytes()
    for part in (b"site-packages", b".py", str(Path.home()).encode()):
        assert part not in text


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 32, 48), (5, 64, 12)])
def test_equals_the_network(report, network, name, shape):
    engine = create_engine(report.bundle, engine=name, device="cpu", precision="fp32")
    tiles = tiles_of(shape)
    for output, value in engine.run(tiles).items():
        apart = np.abs(value.astype(int) - expected_maps(network, tiles)[output])
        assert apart.max() <= 1
        assert apart.mean() < 0.01


def test_normalisation_is_in_the_graph(network, tmp_path):
    mean, std = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
    report = export_bundle(
        network, tmp_path / "tiny", tiny_spec(), mean=mean, std=std, exporter="torchscript"
    )
    tiles = tiles_of((2, 32, 32))
    maps = create_engine(report.bundle, engine="openvino", precision="fp32").run(tiles)
    for output, value in expected_maps(network, tiles, mean=mean, std=std).items():
        assert np.abs(value.astype(int) - maps[output]).max() <= 1


@pytest.fixture(scope="module")
def fp16(network, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fp16") / "tiny"
    return export_bundle(network, directory, tiny_spec(), exporter="torchscript", weights="fp16")


def test_fp16_weights(report, fp16):
    plain, small = report, fp16
    stored = model_of(small.bundle).graph.initializer
    assert any(tensor.data_type == TensorProto.FLOAT16 for tensor in stored)
    assert all(np.prod(tensor.dims) < 1024 for tensor in stored if tensor.data_type == TensorProto.FLOAT)
    assert len(small.bundle.model_bytes()) < len(plain.bundle.model_bytes())
    tiles = tiles_of((2, 64, 64))
    for name in ("onnxruntime", "openvino"):
        engines = [
            create_engine(report.bundle, engine=name, device="cpu", precision="fp32")
            for report in (plain, small)
        ]
        expected, maps = (engine.run(tiles) for engine in engines)
        for output, value in maps.items():
            apart = np.abs(value.astype(int) - expected[output])
            assert apart.max() <= 1
            assert apart.mean() < 0.05


def test_fp16_weights_are_folded_when_loaded(fp16, tmp_path):
    """Or every run would convert them again."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(fp16.bundle.model_bytes(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    assert not any(tensor.data_type == TensorProto.FLOAT16 for tensor in optimised.initializer)
    assert sum(node.op_type == "Cast" for node in optimised.node) == 1  # of the pixels

    engine = create_engine(fp16.bundle, engine="openvino", precision="fp32")
    nodes = engine._compiled.get_runtime_model().get_ops()
    kinds = {
        node.get_rt_info()["layerType"].astype(str) for node in nodes if ".fp16" in node.get_friendly_name()
    }
    assert kinds <= {"Const"}


def test_fp16_refuses_what_it_cannot_hold():
    weights = numpy_helper.from_array(np.full((64, 64), 1e6, np.float32), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weights]))
    with pytest.raises(ValueError, match="weights: 'w' has values beyond float16"):
        store_weights_as_fp16(model)


def test_real_tiles_join_the_comparison(network, data_dir, tmp_path):
    with Image.open(sorted((data_dir / "consep" / "images").iterdir())[0]) as image:
        tiles = np.asarray(image.convert("RGB"))[None, :128, :256]
    report = export_bundle(network, tmp_path / "tiny", tiny_spec(), exporter="torchscript", tiles=[tiles])
    engines = [
        create_engine(report.bundle, engine=name, device="cpu", precision="fp32")
        for name in ("onnxruntime", "openvino")
    ]
    assert all(row.largest <= 1 for row in parity(report.bundle, engines, tiles))


def test_wrong_export_is_not_written(network, tmp_path, monkeypatch):
    real = export._torchscript

    def broken(wrapper, bundle):
        model = real(wrapper, bundle)
        for tensor in model.graph.initializer:
            if tensor.dims == [16, 3, 3, 3]:
                tensor.CopyFrom(numpy_helper.from_array(1.05 * numpy_helper.to_array(tensor), tensor.name))
        return model

    monkeypatch.setattr(export, "_torchscript", broken)
    with pytest.raises(ExportError, match=r"tiny: not written: .* differs from PyTorch in output '\w+' by"):
        export_bundle(network, tmp_path / "tiny", tiny_spec(), exporter="torchscript")
    assert list(tmp_path.iterdir()) == []


def test_fall_back_is_reported(network, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr(export, "_dynamo", fail)
    report = export_bundle(network, tmp_path / "tiny", tiny_spec())
    assert report.exporter == "torchscript"
    assert report.fallback_reason == "dynamo: RuntimeError: no such operator"
    with pytest.raises(
        ExportError, match=r"tiny: the network cannot be exported to ONNX \(dynamo: RuntimeError"
    ):
        export_bundle(network, tmp_path / "other", tiny_spec(), exporter="dynamo")


def test_unfolded_normalisation_is_refused(tmp_path):
    class NormFirst(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm2d(3)

        def forward(self, x):
            return super().forward(self.first(torch.relu(x)))

    with pytest.raises(ExportError, match="a batch normalisation could not be folded"):
        export_bundle(NormFirst().eval(), tmp_path / "tiny", tiny_spec(), exporter="torchscript")


def test_existing_bundle_is_kept(network, report):
    with pytest.raises(BundleError, match="exists already"):
        export_bundle(network, report.bundle.path, tiny_spec(), exporter="torchscript")


def test_network_is_not_modified(tmp_path):
    network = make_network(1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_bundle(network, tmp_path / "tiny", tiny_spec(), exporter="torchscript")
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_wrong_exporter(network, tmp_path):
    with pytest.raises(ValueError, match="exporter: expected auto, dynamo or torchscript, got 'fast'"):
        export_bundle(network, tmp_path / "tiny", tiny_spec(), exporter="fast")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run, whose synthetic set lies in its folder."""
    folder = tmp_path_factory.mktemp("training") / "run"
    narrow = "network={ kind = 'fcn', widths = [4, 4, 8, 8], heads = { nucleus = 1 } }"
    command = ["train", "dsb2018-fcn", "--smoke", "--device", "cpu", "-o", str(folder), "--set", narrow]
    assert CliRunner().invoke(group, command, catch_exceptions=False).exit_code == 0
    return folder


def invoke(*arguments):
    return CliRunner().invoke(group, ["export", *map(str, arguments)], catch_exceptions=False)


def test_command_makes_a_bundle_of_a_run(run, tmp_path):
    """From `nucfast train` to a bundle that computes what the run's weights do."""
    out = tmp_path / "bundle"
    # The weights' own path serves as well; they know what they were trained with.
    done = invoke(run / "weights.safetensors", "-o", out)
    assert done.exit_code == 0
    *differences, exporter, pq, aji, last = done.output.splitlines()
    assert all("grey levels in the mean" in line for line in differences)
    assert exporter == "exported by dynamo, opset 18"
    assert pq.startswith("PQ on val of data: 0.")
    assert aji.startswith("AJI on val of data: 0.")
    assert last.startswith(f"{out / 'model.onnx'}: ")
    bundle = load_bundle(out)
    assert bundle.name == "dsb2018-fcn-smoke"
    assert bundle.training["recipe"]["network"]["widths"] == [4, 4, 8, 8]
    network = build_network(bundle.training["recipe"]).eval()
    network.load_state_dict(load_file(run / "weights.safetensors"))
    tiles = tiles_of((2, 64, 96))
    with torch.no_grad():
        logits = network(torch.from_numpy(tiles).float().permute(0, 3, 1, 2) / 255)["nucleus"]
    expected = np.rint(255 * torch.sigmoid(logits).permute(0, 2, 3, 1).numpy())
    for name in ("onnxruntime", "openvino"):
        maps = create_engine(bundle, engine=name, device="cpu", precision="fp32").run(tiles)
        assert np.abs(maps["nucleus"] - expected).max() <= 1


def test_what_a_run_was_trained_with_is_read_as_its_data_set_is(run):
    _, bundle = load_run(run)
    for split in ("train", "val"):
        sets, rows = (read_tiles(run / data, split, bundle, 2) for data in ("data", "data/dsb2018"))
        assert len(sets) == len(rows) == 2
        for one, other in zip(sets, rows, strict=True):
            assert np.array_equal(one, other)


def test_command_gives_a_run_another_file_at_once(run, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr(export, "_dynamo", fail)
    out = tmp_path / "bundle"
    done = invoke(run, "-o", out, "--data", run / "data" / "dsb2018", "--to", "openvino")
    assert done.exit_code == 0
    assert "exported by torchscript (dynamo: RuntimeError: no such operator), opset 18" in done.output
    assert "PQ on val of dsb2018: " in done.output
    assert set(load_bundle(out).files) == {"model.onnx", "model-fp32.xml", "model-fp32.bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_command_refuses_before_it_works(run, tmp_path, monkeypatch):
    """And leaves nothing behind."""
    monkeypatch.setattr("nucfast_export.export._to_onnx", lambda *_: pytest.fail("exported"))
    out, data = ("-o", tmp_path / "out"), ("--data", run / "data")
    with pytest.raises(NucfastError, match=r"run: say where the bundle goes, with -o FOLDER"):
        invoke(run)
    moved = tmp_path / "moved"  # and what it was trained with is gone
    moved.mkdir()
    with safe_open(run / "weights.safetensors", "pt") as file:
        header = file.metadata() | {"data": str(tmp_path / "gone")}
    save_file(load_file(run / "weights.safetensors"), moved / "weights.safetensors", header)
    with pytest.raises(NucfastError, match=r"moved: give the images to check on with --data"):
        invoke(moved, *out)
    shutil.rmtree(moved)
    with pytest.raises(NucfastError, match=r"openvino has fp32, bf16, int8, got fp16"):
        invoke(run, *out, *data, "--to", "openvino", "--precision", "fp16")
    with pytest.raises(BundleError, match=r"recipe.toml: cannot be written, .*; give another directory"):
        (tmp_path / "recipe.toml").touch()
        invoke(run, "-o", tmp_path / "recipe.toml", *data)
    (tmp_path / "recipe.toml").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty: expected a data set.* or the folder .* it lacks dsb2018"):
        invoke(run, *out, "--data", tmp_path / "empty")
    (tmp_path / "empty").rmdir()
    with pytest.raises(BundleError, match=r"no such bundle .*give the path of a bundle"):
        invoke(tmp_path / "nothing", *out, *data)
    assert list(tmp_path.iterdir()) == []


def test_command_replaces_nothing(run, report, tmp_path):
    before = sorted(report.bundle.path.iterdir())
    with pytest.raises(NucfastError, match=r"tiny: exists already; give another folder"):
        invoke(run, "-o", report.bundle.path, "--data", run / "data")
    assert sorted(report.bundle.path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "File '.*scores.json' does not exist"),
        ("{", "scores.json: expected what  nucfast evaluate --json  writes .JSONDecodeError"),
        ("{}", "scores.json: expected what  nucfast evaluate --json  writes .KeyError: 'pq'"),
        ("[1]", "scores.json: expected what  nucfast evaluate --json  writes .TypeError"),
    ],
)
def test_command_refuses_what_are_no_scores(run, tmp_path, content, message):
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content)
    done = invoke(run, "-o", tmp_path / "out", "--data", run / "data", "--scores", path)
    assert done.exit_code == 2
    assert re.search(message, done.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_px": 1001}, r"ValueError: tile_px: expected a multiple of stride_px = 16, got 1001"),
        ({"tile_px": "512"}, r"TypeError: "),
        ({"stride_px": 0}, r"RuntimeError: "),
        ({"decoder": {"name": "components", "radius": 3}}, r"TypeError: .* 'radius'"),
        ({"weights": "fp64"}, r"ValueError: weights: expected fp32 or fp16, got 'fp64'"),
        (None, r"KeyError: 'weights'"),
    ],
)
def test_recipe_that_describes_no_bundle(run, changes, message):
    """A run may have been trained without [bundle]: then the export is the first to need it."""
    with safe_open(run / "weights.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    recipe["bundle"] = {} if changes is None else recipe["bundle"] | changes
    with pytest.raises(
        ExportError,
        match=rf"dsb2018-fcn-smoke: its recipe describes no bundle \({message}.*\): mend \[bundle\], which",
    ):
        load_run(run, recipe=recipe)


def test_weights_that_are_none(run, tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "weights.safetensors"
    whole = (run / "weights.safetensors").read_bytes()
    for content in (whole[:-100], b"", b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(ExportError, match=r"weights.safetensors: cannot be read as the weights of a run"):
            load_run(path.parent)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ExportError, match=r"weights.safetensors: holds no recipe"):
        load_run(path.parent)
    path.write_bytes(whole)
    with pytest.raises(ExportError, match=r"holds another network than that of the recipe dsb2018-linknet2"):
        load_run(path.parent, recipe=load_recipe("dsb2018-linknet2").table)
