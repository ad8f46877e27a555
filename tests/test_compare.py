"""The comparison of two runs of a suite, as a shell sees it, and what machines are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPT = BENCHMARKS / "compare.py"
KEPT = sorted(
    path for suite in ("kernels", "engines", "slide") for path in BENCHMARKS.glob(f"results/*/{suite}.json")
)
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
    return compare(old, new, *options, code=code).stdout.splitlines()[2:]


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
        (b"not json", "expected the JSON of  scripts/bench SUITE, got JSONDecodeError"),
        (b"\xff\xfe", "expected the JSON of  scripts/bench SUITE"),
        (b"[]", "expected the JSON of  scripts/bench SUITE"),
        (b'{"benchmarks": [{}]}', "got KeyError: 'extra_info'"),
        (b'{"benchmarks": [{"extra_info": {}}]}', "nothing was measured beside anything else"),
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


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_suite_can_be_compared(path):
    printed = compare(path, path, code=0).stdout.splitlines()
    assert [line.partition(",")[0] for line in printed[:2]] == [
        f"old: {path.parent.name}", f"new: {path.parent.name}"
    ]  # fmt: skip
    assert len(printed) > 2
    assert all(line.endswith("(+0%)") for line in printed[2:])


def test_a_kernel_that_lost_to_its_peer(tmp_path):
    kernels = next(path for path in KEPT if path.name == "kernels.json")
    slower = json.loads(kernels.read_text())
    (entry,) = (entry for entry in slower["benchmarks"] if entry["name"] == "test_macenko")
    entry["extra_info"]["bars"][0]["ratio_t2"] /= 2
    (tmp_path / "new.json").write_text(json.dumps(slower))
    printed = compare(kernels, tmp_path / "new.json", code=1).stdout.splitlines()
    (line,) = (line for line in printed if line.endswith("(-50%)  SLOWER"))
    assert line.startswith("macenko by NumPy with table, T2 ")


def test_other_machines_and_models_are_named(tmp_path):
    cpus = [
        {"brand_raw": "AMD EPYC", "flags": flags, "count": 2} for flags in (["avx2"], ["avx2", "amx_tile"])
    ]
    for number, cpu in enumerate(cpus):
        made = write(tmp_path / f"{number}.json", {"times_baseline": OLD, "model": f"he-fast {number}"})
        made.write_text(json.dumps(json.loads(made.read_text()) | {"machine_info": {"cpu": cpu}}))
    done = compare(tmp_path / "0.json", tmp_path / "1.json", code=0)
    assert done.stdout.startswith(
        "old: amd-epyc-avx2-2-cores, he-fast 0\nnew: amd-epyc-amx-2-cores, he-fast 1\n"
    )
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == [
        "another machine", "another model"
    ]  # fmt: skip


def test_figures_go_to_the_folder_of_their_machine():
    done = subprocess.run(
        [sys.executable, "-c", "import run; print(run.machine())"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
    )
    if "No module named" in done.stderr:
        pytest.skip("py-cpuinfo is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("-cores")
