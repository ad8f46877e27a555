"""``--engine pytorch``: a bundle's network in PyTorch equals what other engines make of its file."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from nucfast.cli import group
from nucfast.engine import create_engine, load_bundle, parity
from nucfast.errors import EngineError, MissingExtraError
from nucfast.testing import synthetic_slide
from tiny_model import write_tiny

torch = pytest.importorskip("torch", reason="the engine is PyTorch's")
pytest.importorskip("safetensors")


@pytest.fixture(autouse=True)
def threads():
    """PyTorch has one number for the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiles():
    return synthetic_slide(128, 256, nuclei_per_mm2=4000, seed=1).image.reshape(2, 128, 128, 3)


@pytest.mark.parametrize("name", ["he-accurate", "he-fast", "he-open", "micro-fast"])
def test_equals_openvino(name, tiles):
    bundle = load_bundle(name)
    engines = [
        create_engine(bundle, engine=engine, device="cpu", precision="fp32")
        for engine in ("openvino", "pytorch")
    ]
    assert engines[1].run(tiles)["nucleus"].max() > 128
    for row in parity(bundle, engines, tiles):
        assert row.engine.startswith("PyTorch")
        assert row.largest <= 1
        assert row.mean < 1e-3


def test_what_auto_means():
    engine = create_engine(load_bundle("he-fast"), engine="pytorch", device="cpu", threads=1)
    assert (engine.name, engine.device, engine.precision, engine.threads) == ("pytorch", "cpu", "fp32", 1)
    if not torch.cuda.is_available():
        assert create_engine(load_bundle("he-fast"), engine="pytorch").device == "cpu"


def test_what_is_not_there(tmp_path):
    bundle = load_bundle("he-fast")
    with pytest.raises(EngineError, match="precision int8: PyTorch has fp32, bf16, fp16 here"):
        create_engine(bundle, engine="pytorch", device="cpu", precision="int8")
    with pytest.raises(EngineError, match=r"pytorch on cuda:99: this PyTorch sees \d CUDA devices; use one"):
        create_engine(bundle, engine="pytorch", device="cuda:99")
    with pytest.raises(EngineError, match=r"tiny was not exported from a training run.* use engine openvino"):
        create_engine(write_tiny(tmp_path / "tiny"), engine="pytorch", device="cpu")


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        MissingExtraError, match=r"engine pytorch needs .*'torch': run  pip install 'nucfast\[train\]'"
    ):
        create_engine(load_bundle("he-fast"), engine="pytorch")


def test_a_failure_is_an_engine_error(tiles, monkeypatch):
    engine = create_engine(load_bundle("he-fast"), engine="pytorch", device="cpu")

    def fail(_):
        raise RuntimeError("out of memory\nstack")

    monkeypatch.setattr(engine, "_forward", fail)
    with pytest.raises(EngineError, match=r"he-fast: PyTorch failed: out of memory$"):
        engine.run(tiles)


def test_read_only_tiles(tiles):
    fixed = tiles.copy()
    fixed.flags.writeable = False
    engine = create_engine(load_bundle("he-fast"), engine="pytorch", device="cpu")
    assert engine.run(fixed)["nucleus"].shape == (2, 128, 128, 1)


def test_benchmark_only_if_asked(tmp_path, monkeypatch):
    asked = []

    def measure(model, *, engine, **_):
        asked.append(engine)
        raise EngineError("enough")

    monkeypatch.setattr("nucfast.cli.benchmark.measure_speed", measure)
    CliRunner().invoke(group, ["benchmark", "--precision", "fp32"], standalone_mode=False)
    assert "openvino" in asked
    assert not {"auto", "pytorch"} & set(asked)
    CliRunner().invoke(
        group, ["benchmark", "--engine", "pytorch", "--precision", "fp32"], standalone_mode=False
    )
    assert asked[-1] == "pytorch"


def test_auto_never_picks_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nucfast_export", None)
    assert create_engine(load_bundle("he-fast"), device="cpu").name == "openvino"
