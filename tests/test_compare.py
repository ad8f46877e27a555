"""The comparison of two runs of the engines, as a shell sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "compare.py"
OLD = {"pytorch fp32": 1.0, "openvino fp32": 1.5, "openvino int8": 4.0}


def write(path, *entries):
    """A file of pytest-benchmark; ``entries`` are what each benchmark says besides its times."""
    path.write_text(json.dumps({"benchmarks": [{"stats": {}, "extra_info": entry} for entry in entries]}))
    return path


def compare(*arguments, code):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def lines(tmp_path, new, *options, code):
    old = write(tmp_path / "old.json", {"times_baseline": OLD}, {})
    new = write(tmp_path / "new.json", {"times_baseline": new, "mpx_per_s": {"openvino int8": 0.001}})
    return compare(old, new, *options, code=code).stdout.splitlines()


def test_ratios_within_a_run_are_what_counts(tmp_path):
    """A machine that is a thousand times slower today is no regression."""
    same = lines(tmp_path, OLD, code=0)
    assert [line.split()[:2] for line in same] == [
        ["openvino", "fp32"], ["openvino", "int8"], ["pytorch", "fp32"]
    ]  # fmt: skip
    assert all("(+0%)" in line for line in same)


@pytest.mark.parametrize(("speed", "worse"), [(3.7, False), (3.5, True), (5.0, False)])
def test_a_loss_beyond_noise_fails(tmp_path, speed, worse):
    printed = lines(tmp_path, OLD | {"openvino int8": speed}, code=int(worse))
    assert [line.split()[1] for line in printed if line.endswith("  SLOWER")] == ["int8"] * worse
    assert f"4.00x ->   {speed:.2f}x" in printed[1]


def test_allowed_loss_is_an_option(tmp_path):
    new = OLD | {"openvino int8": 3.5}
    assert lines(tmp_path, new, "--allowed", "0.2", code=0)
    assert lines(tmp_path, new, "--allowed", "0.05", code=1)


def test_engines_come_and_go(tmp_path):
    new = {"pytorch fp32": 1.0, "openvino fp32": 1.5, "tensorrt fp16": 90.0}
    printed = {line[:20].strip(): line[20:].strip() for line in lines(tmp_path, new, code=0)}
    assert printed["openvino int8"] == "gone"
    assert printed["tensorrt fp16"] == "new"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"not json", "expected the JSON of  scripts/bench engines, got JSONDecodeError"),
        (b"\xff\xfe", "expected the JSON of  scripts/bench engines"),
        (b"[]", "expected the JSON of  scripts/bench engines"),
        (b'{"benchmarks": [{}]}', "got KeyError: 'extra_info'"),
        (b'{"benchmarks": [{"extra_info": {}}]}', "no engine was measured beside the baseline"),
    ],
)
def test_files_that_cannot_be_compared(tmp_path, content, message):
    good = write(tmp_path / "old.json", {"times_baseline": OLD})
    if content is not None:
        (tmp_path / "bad.json").write_bytes(content)
    done = compare(good, tmp_path / "bad.json", code=2)
    assert f"{tmp_path / 'bad.json'}: " in done.stderr
    assert message in done.stderr
    assert done.stdout == ""
