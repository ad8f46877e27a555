"""The commands, as a shell sees them: exit codes, what goes to stdout, one line per error."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from nucfast.cli import group
from nucfast.cli.infer import command as infer_command
from nucfast.engine import load_bundle, shipped_names
from nucfast.errors import SlideError
from nucfast.slide import write_slide
from nucfast.testing import synthetic_slide


def run(*args, code=0):
    done = subprocess.run([sys.executable, "-m", "nucfast", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_lists_every_command():
    text = run("--help").stdout
    for name in ("infer", "info", "models", "evaluate", "train", "export", "benchmark", "demo", "doctor"):
        assert f"  {name} " in text
        assert "Usage: " in run(name, "--help").stdout


def test_usage_errors_exit_with_2():
    assert "No such command" in run("segmentate", code=2).stderr
    assert "Missing" in run("infer", code=2).stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--roi", "gone.wkt", "'gone.wkt' does not exist"),
        ("--exclude", ".", "'.' is a directory"),
        ("--tissue-mask", "gone.png", "'gone.png' does not exist"),
        ("-o", __file__, "is a file"),
    ],
)
def test_files_and_folders_are_looked_for_before_anything_is_done(option, value, message):
    result = CliRunner().invoke(infer_command, ["a.svs", "-o", "out", option, value])
    assert result.exit_code == 2
    assert "Usage: " in result.output
    assert message in result.output.replace("\n", " ")


def test_infer_prints_results_on_stdout_and_the_rest_on_stderr(tmp_path):
    Image.fromarray(np.full((50, 60, 3), 240, np.uint8)).save(tmp_path / "blank.png")
    done = run("infer", tmp_path / "blank.png", "-o", tmp_path / "out", "--mpp", "0.5")
    assert done.stdout.count("\n") == 1
    assert "0 nuclei" in done.stdout
    assert re.search(r"tissue\W+[0-9.]+\W+-\W+-\W", done.stderr)  # neither pixels nor threads of its own
    events = run("infer", tmp_path / "blank.png", "-o", tmp_path / "out2", "--mpp", "0.5", "--json").stdout
    assert [json.loads(line)["event"] for line in events.splitlines()] == ["run", "slide", "done", "end"]


def test_a_dry_run_names_files_and_no_manifest(tmp_path):
    Image.fromarray(np.full((50, 60, 3), 100, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.svs").write_bytes(b"nothing")
    inputs, out = (tmp_path / "a.png", tmp_path / "b.svs"), tmp_path / "out"
    done = run("infer", *inputs, "-o", out, "--mpp=0.5", "--dry-run", "--format=csv", code=1)
    assert done.stdout == (
        f"{inputs[0]}: 1 regions, 0.00 mm2 to analyse -> {out / 'a.png'}: nuclei.csv, overlay.png\n"
    )
    assert done.stderr.endswith("1 of 2 inputs failed; reasons above\n")
    assert not out.exists()


def test_events_tell_a_whole_run(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "b.svs", synthetic_slide(500, 300, nuclei_per_mm2=4000, seed=5).image, mpp=0.5)
    (folder / "a.svs").write_bytes(b"nothing")
    options = ("--json", "--whole-slide", "--region-px=200")
    lines = run("infer", folder, "-o", tmp_path / "out", *options, code=1).stdout.splitlines()
    first, failed, slide, *regions, done, end = (json.loads(line) for line in lines)
    assert (first["event"], first["slides"], first["model"]) == ("run", 2, "he-fast")
    assert (failed["event"], failed["slide"]) == ("failed", str(folder / "a.svs"))
    assert "a.svs" in failed["error"]
    assert slide == {"event": "slide", "slide": str(folder / "b.svs"), "regions": 6, "done": 0}
    assert [event["event"] for event in regions] == ["region"] * 6
    assert [event["done"] for event in regions] == [1, 2, 3, 4, 5, 6]
    assert all(event["regions"] == 6 and event["mm2_per_s"] > 0 for event in regions)
    assert sum(event["mm2"] for event in regions) == pytest.approx(500 * 300 * 0.25e-6)
    assert regions[0]["seconds_left"] > 0 == regions[-1]["seconds_left"]
    assert sum(event["nuclei"] for event in regions) == done["nuclei"] > 0
    assert (done["event"], done["slide"], done["regions"]) == ("done", str(folder / "b.svs"), 6)
    assert done["seconds"] > 0
    assert (end["event"], end["slides"], end["failed"]) == ("end", 2, 1)
    assert Path(end["manifest"]).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_while_it_starts_is_one_line(number):
    code = (
        "import os, runpy, signal, sys\n"
        # Ignored where a shell runs the tests in the background, and then in here as well.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'click': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "runpy.run_module('nucfast', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "nucfast: interrupted; run the same command again to go on\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["models"], ["infer", "x.svs", "-o", "out", "--dry-run", "--json"]])
def test_output_that_cannot_be_written_is_one_line(tmp_path, arguments):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nucfast", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    assert done.returncode == 2
    assert done.stderr == (
        "nucfast: standard output: No space left on device; make room, or name another place\n"
    )


def test_infer_reports_failures(tmp_path):
    (tmp_path / "bad.svs").write_bytes(b"nothing")
    done = run("infer", tmp_path / "bad.svs", "-o", tmp_path / "out", code=1)
    assert done.stdout == ""
    assert "bad.svs" in done.stderr
    assert "1 of 1 inputs failed" in done.stderr


def test_unknown_model_device_and_engine_name_the_remedy(tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "x.png")
    common = ("infer", tmp_path / "x.png", "-o", tmp_path / "out")
    assert "he-fast" in run(*common, "--model", "he-slow", code=2).stderr
    run(*common, "--engine", "abacus", code=2)
    (tmp_path / "model.onnx").write_bytes(b"weights")
    line = run(*common, "--model", tmp_path / "model.onnx", code=2).stderr
    assert "write one with  nucfast export RUN" in line
    assert "\n" not in line.strip()


def test_info(slides_dir):
    slide = slides_dir / "CMU-1-Small-Region.svs"
    assert "2220 x 2967" in run("info", slide).stdout
    facts = json.loads(run("info", slide, "--json").stdout)
    assert facts["mpp"] == pytest.approx(0.499)
    assert "broken.svs" in run("info", slides_dir / "broken.svs", code=2).stderr


def test_what_tifffile_says_of_a_damaged_slide_is_not_repeated(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((300, 300, 3), np.uint8), tile=(64, 64), photometric="rgb")
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (tags,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * tags, len(data) + 999)  # a second directory, beyond the end
    path.write_bytes(data)
    assert run("info", path, code=2).stderr.startswith(f"nucfast: {path}: truncated TIFF")


def test_models_and_doctor():
    names = [json.loads(line)["name"] for line in run("models", "--json").stdout.splitlines()]
    assert names == shipped_names()
    assert "he-fast" in names
    assert "problems: none" in run("doctor").stdout


def test_demo_compares_with_the_truth(tmp_path):
    text = run("demo", "-o", tmp_path / "demo", "--size-px", "600").stdout
    assert "nuclei found" in text
    assert list((tmp_path / "demo").rglob("overlay.png"))


def test_evaluate_confirms_the_accuracy_that_the_bundle_claims(data_dir, tmp_path):
    claimed = {(entry["data"], entry["split"]): entry for entry in load_bundle("he-fast").accuracy}
    claim = claimed["consep", "val"]
    run("evaluate", data_dir / "consep", "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    for name in ("pq", "aji", "dice", "mpq"):
        # Arithmetic differs between processors: bf16 where there is bf16.
        assert scores[name] == pytest.approx(claim[name], abs=0.01), name
    keys = [
        "images",
        "dice",
        "aji",
        "pq",
        "dq",
        "sq",
        "f1_50",
        "ap50",
        "ap",
        "pq_pooled",
        "per_class",
        "mpq",
        "seconds",
    ]
    assert set(keys) <= set(scores)
    assert set(scores["per_class"]) == {"epithelial", "inflammatory", "spindle", "other"}


@pytest.mark.parametrize("command", ["info", "evaluate"])
@pytest.mark.parametrize("mpp", ["-1", "0", "nan", "250"])
def test_a_resolution_that_is_none_is_refused(command, mpp):
    done = CliRunner().invoke(group, [command, "x", "--mpp", mpp], standalone_mode=False)
    assert isinstance(done.exception, SlideError)
    assert f"mpp: expected um per pixel, 0.05 to 20 (0.25 for 40x, 0.5 for 20x), got {mpp}" in str(
        done.exception
    )


def test_evaluate_names_what_is_wrong_with_a_data_set(tmp_path):
    assert "manifest.csv" in run("evaluate", tmp_path, code=2).stderr
    (tmp_path / "manifest.csv").write_text("id,split,image\na,train,a.png\n")
    assert "no image of split 'val'" in run("evaluate", tmp_path, code=2).stderr
    wrong = run("evaluate", tmp_path, "--where", "kind", code=2).stderr
    assert "--where kind: expected COLUMN=VALUE, such as modality=fluorescence" in wrong


def test_train_runs_a_recipe_and_names_what_is_wrong(tmp_path):
    pytest.importorskip("torch", reason="training needs PyTorch")
    out = tmp_path / "run"
    done = run("train", "dsb2018-fcn", "--smoke", "--device", "cpu", "-o", out, "--set", "seed=2")
    assert done.stdout.startswith(f"{out}: 4 steps in ")
    assert "step 4: nucleus" in done.stderr
    assert {
        "log.jsonl",
        "last.safetensors",
        "weights.safetensors",
        "learning-curve.png",
        "predictions.png",
    } <= {path.name for path in out.iterdir()}
    assert "he-fast" in run("train", "no-such", code=2).stderr
    wrong = run("train", "dsb2018-fcn", "--set", "optimiser.learning_rate=0", code=2).stderr
    assert "optimiser.learning_rate: expected a number above 0" in wrong


def test_train_names_the_extra_where_it_is_missing(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['nucfast', 'train', 'he-fast'];"
        "import nucfast.cli; nucfast.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'nucfast[train]'" in done.stderr
