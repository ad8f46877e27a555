"""Every network of the registry survives the way to ONNX."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs PyTorch")
ort = pytest.importorskip("onnxruntime", reason="exports are checked with ONNX Runtime")

import onnx  # noqa: E402

from nucfast.engine import OutputSpec  # noqa: E402
from nucfast.errors import EngineError  # noqa: E402
from nucfast_export.context import context_px  # noqa: E402
from nucfast_export.export import _tidy, _to_onnx  # noqa: E402
from nucfast_export.flips import FlipMean  # noqa: E402
from nucfast_export.graph import fuse_rounding  # noqa: E402
from nucfast_export.semantic import NucleusAndClass  # noqa: E402
from nucfast_export.torch_engine import TorchEngine  # noqa: E402
from nucfast_export.wrapper import ExportNetwork  # noqa: E402
from nucfast_training.networks import NETWORKS, build_network  # noqa: E402
from small_networks import SMALL  # noqa: E402
from tiny_model import tiny_spec  # noqa: E402


class Probabilities(torch.nn.Module):
    """As exported, but floating point: rounding to grey levels would hide small differences."""

    def __init__(self, network, names):
        super().__init__()
        self.network = network
        self.names = tuple(names)

    def forward(self, image):
        logits = self.network(image.to(torch.float32).permute(0, 3, 1, 2) * (1 / 255))
        return tuple(torch.sigmoid(logits[name]) for name in self.names)


def network_and_spec(name):
    torch.manual_seed(0)
    network = build_network({"network": SMALL[name]}).eval()
    side = 2 * network.stride_px
    with torch.no_grad():
        heads = network(torch.zeros(1, 3, side, side))
    outputs = tuple(
        OutputSpec(head, "", value.shape[1], side // value.shape[2]) for head, value in heads.items()
    )
    changes = {} if "class" in heads else {"classes": (), "class_scheme": None}
    classes = heads["class"].shape[1] if "class" in heads else 0
    if classes != len(tiny_spec().classes):
        changes = {"classes": tiny_spec().classes[:classes], "class_scheme": None}
    stride = network.stride_px
    return network, tiny_spec(
        stride_px=stride, tile_px=8 * stride, margin_px=stride, outputs=outputs, **changes
    )


SIDES = ((256, 256), (512, 512), (1000, 1400))


def two_tiles(height, width, stride):
    """Noise, in whole strides as the pipeline makes them."""
    tiles = np.random.default_rng(height).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    return np.pad(tiles, ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0)), mode="symmetric")


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_export(name):
    """Within 1e-4 of PyTorch, whatever the size and the batch."""
    network, spec = network_and_spec(name)
    # Batches of the largest size would take minutes of all networks.
    one = (1,) if name != "fast_unet" else (1, 3, 8)
    check_export(network, spec, dict(zip(SIDES, ((1, 3, 8), (1, 3, 8), one), strict=True)))


def test_export_of_what_is_put_around_a_network():
    """Background and classes as the outputs of a bundle, alone and with mirror images."""
    torch.manual_seed(0)
    network = NucleusAndClass(build_network({"network": SMALL["unet"] | {"heads": {"semantic": 4}}}))
    outputs = (OutputSpec("nucleus", "", 1, 1), OutputSpec("class", "", 3, 1))
    spec = tiny_spec(outputs=outputs, classes=tiny_spec().classes[:3], class_scheme=None)
    for wrapped in (network, FlipMean(network)):
        check_export(wrapped, spec, {(96, 160): (1, 3), (256, 256): (2,)}, exporter="torchscript")


def check_export(network, spec, counts, *, exporter="auto"):
    """Compare a graph in ONNX Runtime with its network, in these batches by (height, width)."""
    names = [output.name for output in spec.outputs]
    exact = Probabilities(network, names).eval()
    model, used, _ = _to_onnx(exact, spec, exporter)
    assert used == ("dynamo" if exporter == "auto" else exporter)
    _tidy(model)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False  # it would keep the largest batch
    session = ort.InferenceSession(model.SerializeToString(), options)
    for (height, width), batches in counts.items():
        tiles = two_tiles(height, width, spec.stride_px)[: max(batches)]
        with torch.no_grad():
            expected = [value.numpy() for value in exact(torch.from_numpy(tiles))]
        for count in batches:
            order = np.arange(count) % 2
            results = session.run(None, {spec.input_name: tiles[order]})
            for value, wanted in zip(results, expected, strict=True):
                assert value.shape == (count, *wanted.shape[1:])
                for got, index in zip(value, order, strict=True):
                    assert np.abs(got - wanted[index]).max() <= 1e-4, (height, width, count)


def test_levels():
    """What is written to the file, rounded to grey levels; of a network averaged over mirror images."""
    network, spec = network_and_spec("fast_unet")
    network = FlipMean(network)
    names = [output.name for output in spec.outputs]
    model, _, _ = _to_onnx(ExportNetwork(network, names), spec, "auto")
    _tidy(model)
    fuse_rounding(model)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    engine = TorchEngine(network, spec)
    for height, width in SIDES[:2]:
        tiles = two_tiles(height, width, spec.stride_px)[:1]
        maps = engine.run(tiles)
        for name, value in zip(names, session.run(names, {spec.input_name: tiles}), strict=True):
            assert np.abs(value.astype(int) - maps[name]).max() <= 1


def test_torch_engine():
    network, spec = network_and_spec("fast_unet")
    tiles = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    exact = TorchEngine(network, spec).run(tiles)
    rough = TorchEngine(network, spec, precision="bf16")
    assert rough.description.endswith("on cpu, bf16")
    for name, value in rough.run(tiles).items():
        assert np.abs(value.astype(int) - exact[name]).mean() < 2
    assert rough.run(tiles[:0])["nucleus"].shape == (0, 64, 64, 1)
    with pytest.raises(EngineError, match="precision int8: PyTorch has fp32, bf16, fp16 here"):
        TorchEngine(network, spec, precision="int8")
    with pytest.raises(EngineError, match="CUDA graphs need a CUDA device"):
        TorchEngine(network, spec, cuda_graph=True)


def test_context_is_what_has_any_influence():
    network, spec = network_and_spec("fast_unet")
    exact = Probabilities(network, [output.name for output in spec.outputs]).eval()
    context = context_px(_to_onnx(exact, spec, "auto")[0], spec)
    stride = network.stride_px
    first = -(-context // stride) * stride + stride
    side = 2 * first + stride
    tile = torch.rand(1, 3, side, side, requires_grad=True)
    # With weights above 0 nothing is cut off, nor do two ways cancel out.
    for parameter in network.parameters():
        parameter.data.abs_().add_(1e-3).div_(parameter[0].numel() if parameter.dim() > 1 else 1)
    seen = torch.zeros(side, dtype=torch.bool)
    for value in network(tile).values():
        place = slice(first * value.shape[2] // side, (first + stride) * value.shape[2] // side)
        (gradient,) = torch.autograd.grad(value[:, :, place, place].sum(), tile, retain_graph=True)
        seen |= (gradient != 0).any(dim=3).any(dim=1)[0]
    rows = seen.nonzero()
    assert context == max(first - int(rows.min()), int(rows.max()) - (first + stride - 1))
