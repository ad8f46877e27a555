"""Networks: shapes, sizes, the identities they rest on, and that each becomes a bundle."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs PyTorch")

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from nucfast.engine import create_engine
from nucfast_export import ExportError
from nucfast_export.run import export_run
from nucfast_training.networks import NETWORKS, build_network
from nucfast_training.networks.segnet import pool, unpool
from nucfast_training.networks.unet_sharp import ResNeXt
from nucfast_training.recipe import load_recipe
from small_networks import SMALL

SEMANTIC = {"kind": "unet", "widths": [4, 8], "heads": {"semantic": 4}, "batch_norm": True}


def parameters(name):
    with torch.device("meta"):  # counted, not stored
        network = build_network(load_recipe(name).table)
    return network, sum(parameter.numel() for parameter in network.parameters())


def test_every_network_has_a_small_one_here():
    assert SMALL.keys() == NETWORKS.keys()


@pytest.mark.parametrize("kind", list(SMALL))
def test_maps_have_the_size_of_the_image(kind):
    network = build_network({"network": SMALL[kind]}).eval()
    stride = network.stride_px
    with torch.no_grad():
        heads = network(torch.rand(2, 3, 2 * stride, 3 * stride))
    for head, logits in heads.items():
        step = 4 if head == "class" else 1
        assert logits.shape[0] == 2
        assert logits.shape[2:] == (2 * stride // step, 3 * stride // step)
    names = [name for name, _ in network.named_parameters()]
    for part in network.outer:
        assert any(name.startswith(part) for name in names)


def test_unet_has_23_convolutions():
    network, count = parameters("consep-unet")
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 23
    assert count == pytest.approx(31.03e6, rel=1e-3)  # the paper's, with 3 channels in and 1 out


def test_unet_sharp_has_57_million_parameters_and_timm_names():
    network, count = parameters("pannuke-unet-sharp")
    assert count == pytest.approx(57e6, rel=0.01)
    encoder = network.encoder
    # timm's resnext101_32x4d has 44.18 M, 2.05 M of them in the classifier that is not here.
    assert sum(p.numel() for p in encoder.parameters()) == 44_177_704 - 2_049_000
    shapes = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.conv2.weight"] == (128, 4, 3, 3)
    assert shapes["layer3.22.bn3.bias"] == (1024,)
    assert shapes["layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)


def test_encoder_computes_what_a_grouped_bottleneck_does():
    torch.manual_seed(0)
    encoder = ResNeXt((1, 1, 1, 1)).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = encoder(x)
        block = encoder.layer1[0]
        y = functional.max_pool2d(features[0], 3, 2, 1)
        z = torch.relu(block.bn1(block.conv1(y)))
        groups = [  # grouped convolution, one group at a time
            functional.conv2d(z[:, 4 * g : 4 * g + 4], block.conv2.weight[4 * g : 4 * g + 4], padding=1)
            for g in range(32)
        ]
        z = torch.relu(block.bn2(torch.cat(groups, 1)))
        z = torch.relu(block.bn3(block.conv3(z)) + block.downsample(y))
    torch.testing.assert_close(features[1], z)
    assert [f.shape[1] for f in features] == [64, 256, 512, 1024, 2048]
    assert [f.shape[2] for f in features] == [32, 16, 8, 4, 2]


def test_unpooling_equals_that_by_indices():
    torch.manual_seed(0)
    # Small integers, so that blocks hold ties, and zeros as after ReLU.
    x = torch.randint(0, 3, (2, 5, 8, 12)).float()
    values = torch.randn(2, 5, 4, 6)
    pooled, places = pool(x)
    expected, indices = functional.max_pool2d(x, 2, return_indices=True)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(unpool(values, places), functional.max_unpool2d(values, indices, 2))


def test_gradients_flow_through_pooling_as_through_torch_s():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    (mine,) = torch.autograd.grad(pool(x)[0].square().sum(), x)
    (theirs,) = torch.autograd.grad(functional.max_pool2d(x, 2).square().sum(), x)
    torch.testing.assert_close(mine, theirs)


def test_segnet_has_thirteen_convolutions_each_way():
    network, _ = parameters("isbi2012-segnet")
    assert sum(isinstance(m, nn.Conv2d) for m in network.encoder.modules()) == 13
    # The thirteenth of the decoder is the one that ends in logits.
    assert sum(isinstance(m, nn.Conv2d) for m in network.decoder.modules()) + 1 == 13


def test_ensemble_is_the_mean_of_probabilities():
    torch.manual_seed(0)
    network = build_network({"network": SMALL["ensemble"]}).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        both = [torch.sigmoid(member(x)["nucleus"]) for member in network.members]
        torch.testing.assert_close(torch.sigmoid(network(x)["nucleus"]), (both[0] + both[1]) / 2)


@pytest.mark.parametrize("kind", ["segnet", "semantic", "ensemble"])
def test_becomes_a_bundle_that_says_what_the_network_does(kind, tmp_path):
    settings = SEMANTIC if kind == "semantic" else SMALL[kind]
    base = load_recipe("consep-unet-sharp" if kind == "semantic" else "dsb2018-unet").table
    torch.manual_seed(0)
    network = build_network({"network": settings})
    recipe = base | {
        "patches": base["patches"] | {"normalise": ""},
        "network": settings,
        "bundle": base["bundle"] | {"stride_px": 32, "tile_px": 256, "margin_px": 32, "weights": "fp32"},
    }
    if kind == "semantic":
        kinds = recipe["classes"]
        recipe["classes"] = kinds | {
            "names": kinds["names"][:3],
            "colors": kinds["colors"][:3],
            "raw": {"1": 1},
        }
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: nothing at its default
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    save_file(network.state_dict(), tmp_path / "weights.safetensors", {"recipe": json.dumps(recipe)})
    bundle = export_run(tmp_path, tmp_path / "bundle").bundle  # compares the engines with the network
    tile = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    maps = create_engine(bundle, engine="onnxruntime", device="cpu", precision="fp32").run(tile)
    with torch.no_grad():
        heads = network.eval()(torch.from_numpy(tile).permute(0, 3, 1, 2).float() / 255)
    if kind == "semantic":
        chance = torch.softmax(heads["semantic"], dim=1)
        expected = 255 * (1 - chance[:, 0])
        inner = 255 * chance[:, 1:] / chance[:, 1:].sum(1, keepdim=True)
        assert np.abs(maps["class"][0] - inner[0].permute(1, 2, 0).numpy()).max() <= 1.01
    else:
        assert set(maps) == {"nucleus"}
        expected = 255 * torch.sigmoid(heads["nucleus"][:, 0])
    assert np.abs(maps["nucleus"][..., 0] - expected.numpy()).max() <= 1.01


def test_networks_for_normalised_stains_do_not_become_bundles(tmp_path):
    recipe = load_recipe("consep-unet-sharp").table
    save_file({}, tmp_path / "weights.safetensors", {"recipe": json.dumps(recipe)})
    with pytest.raises(ExportError, match=r"consep-unet-sharp: learned from stain-normalised images"):
        export_run(tmp_path, tmp_path / "bundle")
