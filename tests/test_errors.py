"""Packages that are missing, or there but broken: one line with the command that mends it."""

from __future__ import annotations

import json
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner

from nucfast.cli import group
from nucfast.engine import bundle, openvino_engine
from nucfast.errors import MissingExtraError, require
from tiny_model import write_tiny

BROKEN = "--force-reinstall 'nucfast[cpu]'"
CASES = [
    (
        "raise ImportError('libx.so: cannot open\\nshared object')",
        "libx.so: cannot open shared object",
        BROKEN,
    ),
    ("raise OSError('libx.so: file too short')", "libx.so: file too short", BROKEN),
    ("raise RuntimeError", "RuntimeError", BROKEN),
    ("import broken_package.gone", "No module named 'broken_package.gone'", BROKEN),
    ("import gone_package.part", "which needs 'gone_package'", "gone_package"),
]


def put(folder, name, code, monkeypatch):
    """A package that comes before any other of its name."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    for loaded in [item for item in sys.modules if item.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)


@pytest.mark.parametrize(("code", "reason", "command"), CASES)
def test_a_package_that_does_not_load(tmp_path, monkeypatch, code, reason, command):
    put(tmp_path, "broken_package", code, monkeypatch)
    with pytest.raises(MissingExtraError) as caught:
        require("broken_package", extra="cpu", purpose="engine x")
    message = str(caught.value)
    assert message.startswith("engine x needs the package 'broken_package', which ")
    assert reason in message
    assert message.endswith(f": run  pip install {command}")
    assert "\n" not in message


def test_a_package_that_is_missing():
    for module in ("gone_package", "gone_package.part"):
        with pytest.raises(
            MissingExtraError, match=r"package 'gone_package': run  pip install 'nucfast\[cpu\]'$"
        ):
            require(module, extra="cpu", purpose="engine x")
        with pytest.raises(MissingExtraError, match=r": run  pip install --force-reinstall nucfast$"):
            require(module, extra=None, purpose="engine x")


def test_openvino_that_does_not_load(tmp_path, monkeypatch):
    put(tmp_path, "openvino", "raise ImportError('libopenvino.so: cannot open')", monkeypatch)
    with pytest.raises(
        MissingExtraError, match=r"does not load \(libopenvino.so.*--force-reinstall nucfast$"
    ):
        openvino_engine.import_openvino()
    assert "openvino_telemetry" not in sys.modules


def doctor(code):
    result = CliRunner().invoke(group, ["doctor"], catch_exceptions=False, standalone_mode=False)
    assert result.return_value == code
    return result


def test_doctor_survives_packages_that_do_not_load(tmp_path, monkeypatch):
    put(tmp_path, "openvino", "raise ImportError('libopenvino.so: cannot open')", monkeypatch)
    put(tmp_path, "geopandas", "raise OSError('libgeos.so: file too short')", monkeypatch)
    real = metadata.version
    monkeypatch.setattr(
        "nucfast.cli.doctor.version", lambda name: "1.0" if name == "geopandas" else real(name)
    )
    result = doctor(1)
    assert "geopandas          1.0: does not load (to_geopandas())\n" in result.stdout
    problems = [line for line in result.stderr.splitlines() if line.startswith("problem: ")]
    assert problems == [
        "problem: inference on the CPU needs the package 'openvino', which does not load "
        "(libopenvino.so: cannot open): run  pip install --force-reinstall nucfast",
        "problem: to_geopandas() needs the package 'geopandas', which does not load "
        "(libgeos.so: file too short): run  pip install --force-reinstall 'nucfast[pandas]'",
    ]
    assert result.stdout.endswith("problems: 2\n")


def test_doctor_names_what_is_missing(monkeypatch):
    real = metadata.version

    def version(name):
        if name in ("pyarrow", "torch"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("nucfast.cli.doctor.version", version)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = doctor(1)
    assert "torch              not installed (training: pip install 'nucfast[train]')\n" in result.stdout
    assert (
        "problem: GeoParquet needs the package 'pyarrow': run  pip install --force-reinstall nucfast\n"
        in result.stderr
    )


class TestDamagedModels:
    """The others are still told of."""

    @pytest.fixture(autouse=True)
    def shipped(self, tmp_path, monkeypatch):
        for name in ("a", "b", "c", "d"):
            write_tiny(tmp_path / name, name=name)
        (tmp_path / "b" / "model.onnx").write_bytes(b"damaged")
        (tmp_path / "c" / "bundle.json").unlink()
        monkeypatch.setattr(bundle, "_shipped_root", lambda: tmp_path)

    def test_models(self):
        result = CliRunner().invoke(group, ["models", "--json"], standalone_mode=False)
        assert result.return_value == 1
        assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["a", "d"]
        damaged, without = result.stderr.splitlines()
        assert "b: model.onnx is damaged" in damaged
        assert "c: no bundle.json in it" in without
        assert damaged.endswith("run  pip install --force-reinstall nucfast")

    def test_doctor(self):
        result = doctor(1)
        assert [line[:7] for line in result.stdout.splitlines() if line.startswith("model ")] == [
            "model a",
            "model d",
        ]
        problems = [line for line in result.stderr.splitlines() if line.startswith("problem: ")]
        assert "b: model.onnx is damaged" in problems[0]
        assert "c: no bundle.json in it" in problems[1]
