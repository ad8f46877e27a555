"""Whatever befalls a run, the same command given again ends with the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed
import numpy as np
import pytest

import killable
import nucfast
from nucfast.engine import DecoderSpec, write_bundle
from nucfast.errors import NucfastError
from nucfast.output import FORMATS
from nucfast.pipeline import infer, journal, run
from nucfast.pipeline.cluster import Cluster
from nucfast.pipeline.journal import Journal, Worker
from nucfast.pipeline.run import WORK_FOLDER
from nucfast.slide import write_slide
from nucfast.testing import synthetic_slide
from tiny_model import tiny_onnx, tiny_spec

RESULTS = [*FORMATS.values(), "overlay.png"]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "made.svs"
    write_slide(path, synthetic_slide(430, 400, nuclei_per_mm2=4000, seed=5).image, mpp=0.5)
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    model = tmp_path_factory.mktemp("models") / "tiny"
    decoder = DecoderSpec("climb", 128, min_rise=5, min_area_um2=1.0, max_hole_um2=5.0, peak_share=0.5)
    write_bundle(model, tiny_spec(decoder=decoder), {"model.onnx": tiny_onnx(seed=6)})
    return {
        "model": str(model),
        "formats": tuple(FORMATS),
        "region_px": 128,
        "tissue_only": False,
        "precision": "fp32",
    }


@pytest.fixture(scope="module")
def expected(slide, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    report = infer(slide, out, **settings)
    assert report.exit_code == 0
    assert report.slides[0].nuclei > 50
    assert report.slides[0].regions == 16
    return out / "made.svs"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same(folder, expected):
    assert names(folder) == names(expected)
    for name in RESULTS:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    found, right = (json.loads((path / "run.json").read_text()) for path in (folder, expected))
    for content in (found, right):
        report = content["report"]
        del content["finished"], report["seconds"], report["folder"], content["settings"]["shard"]
    assert found == right


def events(path, kind):
    return [event for line in path.read_text().splitlines() if (event := json.loads(line))["event"] == kind]


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(slide, settings, expected, tmp_path, seed):
    """Seven kills each, 21 in all, anywhere from the first step to the last."""
    chance = random.Random(seed)
    kills = 0
    while kills < 7:
        code = killable.run(slide, tmp_path, kill_at=chance.randint(3, 250), **settings)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if code == 0:
            assert_same(tmp_path / "made.svs", expected)
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
    assert killable.run(slide, tmp_path, **settings) == 0
    assert_same(tmp_path / "made.svs", expected)
    assert names(tmp_path) == ["made.svs", "manifest.json"]


def test_killed_where_neighbours_share_what_they_see(slide, settings, tmp_path):
    """After a kill regions compute what else they would have got from their neighbours: to the same bytes."""
    int8 = {**settings, "model": "he-fast", "precision": "int8"}
    assert infer(slide, tmp_path / "whole", **int8).slides[0].nuclei > 50
    for kill_at in (60, 100):
        assert killable.run(slide, tmp_path / "killed", kill_at=kill_at, **int8) == -signal.SIGKILL
    done = len(list(tmp_path.glob("killed/made.svs/.nucfast-work/*/*.part")))
    assert 3 <= done < 16
    assert killable.run(slide, tmp_path / "killed", **int8) == 0
    assert_same(tmp_path / "killed" / "made.svs", tmp_path / "whole" / "made.svs")


def test_parts_damaged_by_a_power_cut_are_done_again(slide, settings, expected, tmp_path):
    assert killable.run(slide, tmp_path, kill_at=60, **settings) == -signal.SIGKILL
    parts = sorted(tmp_path.glob("made.svs/.nucfast-work/*/*.part"))
    assert len(parts) >= 3
    parts[0].write_bytes(b"")
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    parts[2].write_bytes(bytes(len(parts[2].read_bytes())))
    log = tmp_path / "events"
    assert killable.run(slide, tmp_path, events=log, **settings) == 0
    assert events(log, "slide")[0]["done"] == len(parts) - 3
    log.unlink()
    assert_same(tmp_path / "made.svs", expected)


@pytest.mark.parametrize("content", [b"", bytes(500), b'{"fingerprint": "12', b"[]"])
def test_a_run_file_damaged_by_a_power_cut_is_as_none(slide, settings, expected, tmp_path, content):
    shutil.copytree(expected, tmp_path / "made.svs")
    (tmp_path / "made.svs" / "run.json").write_bytes(content)
    assert infer(slide, tmp_path, dry_run=True, **settings).slides[0].status == "planned"
    assert (tmp_path / "made.svs" / "run.json").read_bytes() == content
    report = infer(slide, tmp_path, **settings)
    assert [entry.status for entry in report.slides] == ["done"]
    assert_same(tmp_path / "made.svs", expected)


def test_results_are_on_the_disk_before_the_run_file_says_so(slide, settings, tmp_path, monkeypatch):
    steps = []
    sync, replace = os.fsync, Path.replace

    def note_sync(handle):
        steps.append(("sync", Path(f"/proc/self/fd/{handle}").resolve().name))
        sync(handle)

    def note_replace(path, target):
        steps.append(("name", target.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    assert infer(slide, tmp_path, **settings).exit_code == 0
    named = steps.index(("name", "run.json"))
    assert steps[named - 2 : named + 2] == [
        ("sync", "made.svs"),
        ("sync", "run.json"),
        ("name", "run.json"),
        ("sync", "made.svs"),
    ]
    for name in RESULTS:
        assert ("sync", f"{name}.tmp") in steps[:named]
        assert ("name", name) in steps[: named - 2]
    assert steps[-2:] == [("sync", steps[-2][1]), ("name", "manifest.json")]


def command(slide, out, settings):
    """The command line of these settings."""
    return [
        *(sys.executable, "-m", "nucfast", "infer", slide, "-o", out, "--json", "--region-px=128"),
        *("--model", settings["model"], "--whole-slide", "--precision=fp32"),
        *(f"--format={name}" for name in FORMATS),
    ]


def test_a_killed_dask_worker_is_survived(slide, settings, expected, tmp_path):
    # Memory for both, but not for three.
    arguments = [*command(slide, tmp_path, settings), "--dask=local", "--threads=3", "--max-memory=1.6G"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed, regions = False, 0
    for line in process.stdout:
        if json.loads(line)["event"] == "region":
            regions += 1
            if not killed:
                workers = children(process.pid, "spawn_main")
                assert len(workers) == 2
                os.kill(workers[0], signal.SIGKILL)
                killed = True
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert regions == 16
    assert "Scheduler at" not in errors
    stages = {row["stage"]: row for row in json.loads((tmp_path / "manifest.json").read_text())["stages"]}
    for name in ("read", "network", "decode"):
        assert stages[name]["seconds"] > 0
        assert stages[name]["mpx_per_s"] > 0
    for name in RESULTS:
        assert (tmp_path / "made.svs" / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_cluster_that_gives_no_client_is_ended(monkeypatch):
    started = []

    def refuse(cluster, **options):
        started.append(cluster)
        raise OSError("refused")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(
        NucfastError, match=r"dask local: no scheduler answers \(refused\); check the address"
    ):
        Cluster("local", workers=0)
    assert started[0].status == distributed.Status.closed


def children(pid, word):
    """Processes started by ``pid`` that have a word in their command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and word in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_terminated(slide, settings, expected, tmp_path):
    arguments = command(slide, tmp_path, settings)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if json.loads(line)["event"] == "region":
            break
    process.send_signal(signal.SIGTERM)
    message = process.communicate()[1]
    assert process.returncode == 130
    assert message.strip().count("\n") == 0
    assert not (tmp_path / "made.svs" / "run.json").exists()
    assert not (tmp_path / ".nucfast-workers").exists()
    log = tmp_path / "events"
    assert killable.run(slide, tmp_path, events=log, **settings) == 0
    assert events(log, "slide")[0]["done"] >= 1
    log.unlink()
    assert_same(tmp_path / "made.svs", expected)


def test_disk_full(slide, settings, expected, tmp_path):
    assert killable.run(slide, tmp_path, file_bytes=9000, **settings) == 1
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "made.svs" in manifest["slides"][0]["error"]
    assert "free space" in manifest["slides"][0]["error"]
    assert not list(tmp_path.glob("made.svs/nuclei.*"))
    assert killable.run(slide, tmp_path, **settings) == 0
    assert_same(tmp_path / "made.svs", expected)


@pytest.mark.parametrize("tissue_only", [False, True])
def test_a_part_that_cannot_be_read_costs_only_its_regions(slide, settings, expected, tmp_path, tissue_only):
    settings = {**settings, "tissue_only": tissue_only}
    copy = tmp_path / "made.svs"
    whole, stat = slide.read_bytes(), slide.stat()
    position = whole.index(b"\xff\xd8")  # the head of the first tile
    copy.write_bytes(whole[:position] + bytes(100) + whole[position + 100 :])
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    out = tmp_path / "out"
    report = infer(copy, out, **settings)
    assert report.exit_code == 1
    assert "tile 0 cannot be decoded" in report.slides[0].error
    done = len(list(out.glob("made.svs/.nucfast-work/*/*.part")))
    assert 4 <= done < 16
    assert report.slides[0].error.endswith(
        f"; {done} of 16 regions are done and kept; --allow-unreadable takes what cannot be read for empty"
    )
    copy.write_bytes(whole)
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen = []
    assert infer(copy, out, on_event=seen.append, **settings).exit_code == 0
    assert sum(event["event"] == "region" for event in seen) == 16 - done
    for name in RESULTS:
        assert (out / "made.svs" / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize("dask", [None, "local"])
def test_what_cannot_be_read_can_be_left_out(slide, settings, expected, tmp_path, dask):
    copy, out = tmp_path / "made.svs", tmp_path / "out"
    whole = slide.read_bytes()
    position = whole.index(b"\xff\xd8")
    copy.write_bytes(whole[:position] + bytes(100) + whole[position + 100 :])
    done = infer(copy, out, **settings)
    assert done.exit_code == 1
    kept = len(list(out.glob("made.svs/.nucfast-work/*/*.part")))
    seen = []
    report = infer(copy, out, allow_unreadable=True, dask=dask, on_event=seen.append, **settings)
    assert report.exit_code == 0
    assert sum(event["event"] == "region" for event in seen) == 16 - kept  # what was done counts
    parts = json.loads((out / "made.svs" / "run.json").read_text())["unreadable"]
    assert len(parts) < 10
    warning = report.slides[0].warning
    assert warning.endswith(" mm2 that cannot be read count as empty; run.json says where")
    missing = np.zeros((400, 430), bool)
    for x, y, width, height in parts:
        assert not missing[y : y + height, x : x + width].any()
        missing[y : y + height, x : x + width] = True
    assert missing[:256, :256].all()  # the tile
    assert float(warning.split()[0]) == pytest.approx(missing.sum() * 0.0005**2, rel=0.1)
    assert not missing[256 + 64 :].any()
    assert not missing[:, 256 + 64 :].any()
    found, all_of_them = (
        nucfast.Nuclei.read(folder / "nuclei.parquet") for folder in (out / "made.svs", expected)
    )
    far = (all_of_them.x > 256 + 64 + 40) | (all_of_them.y > 256 + 64 + 40)
    assert far.sum() > 10
    assert set(all_of_them.id[far]) <= set(found.id)
    assert len(found) < len(all_of_them)


def test_processes_share_the_work(slide, settings, expected, tmp_path):
    logs = [tmp_path / f"events{i}" for i in range(3)]
    out = tmp_path / "out"
    processes = [killable.start(slide, out, events=log, **settings) for log in logs]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(len(events(log, "region")) for log in logs) == 16
    assert_same(out / "made.svs", expected)


def test_files_are_written_once_though_others_do_the_last_region(
    slide, settings, expected, tmp_path, monkeypatch
):
    opened, log = [], []
    real = run.open_writer
    monkeypatch.setattr(run, "open_writer", lambda *args, **more: opened.append(args) or real(*args, **more))
    others = [tmp_path / name for name in ("second.tif", "third.tif")]
    for path in others:
        write_slide(path, np.full((64, 64, 3), 255, np.uint8), mpp=0.5)
    out = tmp_path / "out"
    with Worker(out) as other:
        theirs = []

        def on_event(event):
            if event["event"] in ("slide", "done"):
                log.append((event["event"], Path(event["slide"]).stem))
            if log[-1:] == [("slide", "made")] and not theirs:
                (work,) = (out / "made.svs" / WORK_FOLDER).iterdir()
                theirs.append(Journal(work, other))
                assert theirs[0].claim(15) == 0
            elif log[-1:] == [("done", "second")]:
                theirs[0].release(15, 0)

        assert infer([slide, *others], out, **settings, on_event=on_event).exit_code == 0
    assert len(opened) == 3 * len(FORMATS)
    # What others had the rest of is finished before yet another slide begins.
    assert [name for kind, name in log if kind == "slide"] == ["made", "second", "third"]
    assert log.index(("done", "made")) < log.index(("slide", "third"))
    assert_same(out / "made.svs", expected)


def test_processes_that_overwrite_do_so_once(slide, settings, expected, tmp_path):
    other = tmp_path / "other.svs"
    shutil.copy(slide, other)
    out = tmp_path / "out"
    inputs = [slide, other]
    assert infer(inputs, out, **settings).exit_code == 0
    before = (out / "made.svs" / "run.json").stat().st_mtime_ns
    regions = []

    def count(event):
        if event["event"] == "region":
            regions.append(event["slide"])
        if event["event"] == "done" and event["slide"] == str(slide):
            # A second process, which began with this one, has come to the second slide first.
            assert infer(other, out, overwrite=True, on_event=count, **settings).exit_code == 0

    report = infer(inputs, out, overwrite=True, on_event=count, **settings)
    assert [entry.status for entry in report.slides] == ["done", "skipped"]
    assert sorted(regions) == sorted([str(slide)] * 16 + [str(other)] * 16)
    assert (out / "made.svs" / "run.json").stat().st_mtime_ns > before
    for name in RESULTS:
        assert (out / "made.svs" / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_killed_process_is_replaced_by_one_that_waits_for_it(slide, settings, expected, tmp_path):
    log, out = tmp_path / "events", tmp_path / "out"
    first = killable.start(slide, out, events=log, **settings)
    while not log.exists() or not events(log, "region"):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # it holds its claims, and shows no sign of death
    second = killable.start(slide, out, **settings)
    second.join(3)
    os.kill(first.pid, signal.SIGKILL)
    second.join()
    assert second.exitcode == 0
    assert_same(out / "made.svs", expected)
    first.join()


def test_threads_make_no_difference(slide, settings, expected, tmp_path):
    assert infer(slide, tmp_path, threads=3, **settings).exit_code == 0
    for name in RESULTS:
        assert (tmp_path / "made.svs" / name).read_bytes() == (expected / name).read_bytes(), name
    assert "3 threads" in json.loads((tmp_path / "made.svs" / "run.json").read_text())["model"]["engine"]


def test_shards(slide, settings, expected, tmp_path):
    seen = []
    reports = [
        infer(slide, tmp_path, shard=(number, 3), on_event=seen.append, **settings) for number in (3, 1, 2)
    ]
    assert [report.slides[0].status for report in reports] == ["partial", "partial", "done"]
    assert sum(event["event"] == "region" for event in seen) == 16
    assert_same(tmp_path / "made.svs", expected)
    assert json.loads((tmp_path / "manifest-2-of-3.json").read_text())["slides"][0]["status"] == "done"


def test_a_dry_run_says_what_is_left_to_do(slide, settings, tmp_path):
    out = tmp_path / "out"

    def planned(**others):
        seen = []
        report = infer(slide, out, dry_run=True, on_event=seen.append, **settings, **others)
        assert report.manifest is None
        assert seen[-1]["manifest"] is None
        assert seen[0]["files"] == RESULTS
        (entry,) = report.slides
        assert entry.status == "planned"
        return entry.regions, entry.analysed_mm2

    whole = 430 * 400 * 0.25e-6
    assert planned() == (16, pytest.approx(whole, abs=1e-4))
    assert not out.exists()
    assert sum(planned(shard=(number, 3))[0] for number in (1, 2, 3)) == 16
    done = infer(slide, out, shard=(1, 3), **settings).slides[0]
    regions, mm2 = planned()
    assert regions in (10, 11)
    assert mm2 < whole
    assert planned(shard=(1, 3)) == (0, 0)
    assert done.regions == 16


def test_shards_that_differ_say_so(slide, settings, expected, tmp_path, caplog):
    copy, out = tmp_path / "made.svs", tmp_path / "out"
    shutil.copy(slide, copy)
    first, third = (infer(copy, out, shard=(number, 3), **settings).slides[0] for number in (1, 3))
    assert (first.status, first.warning, third.warning) == ("partial", "", "")
    os.utime(copy, ns=(1, 1))
    second = infer(copy, out, shard=(2, 3), **settings)
    assert second.exit_code == 1
    assert second.slides[0].error.startswith(f"{copy}: 11 of its regions were done with another date of")
    os.utime(copy, ns=(2, 2))
    again = infer(copy, out, shard=(2, 3), **settings)
    assert again.exit_code == 0
    assert "date of the slide" in again.slides[0].warning
    assert again.slides[0].warning in caplog.text
    manifest = json.loads((out / "manifest-2-of-3.json").read_text())
    assert manifest["slides"][0]["warning"] == again.slides[0].warning
    assert infer(copy, out, **settings).exit_code == 0
    for name in RESULTS:
        assert (out / "made.svs" / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_slide_that_was_replaced_is_done_anew(slide, settings, expected, tmp_path):
    copy, out = tmp_path / "made.svs", tmp_path / "out"
    write_slide(copy, np.full((400, 430, 3), 128, np.uint8), mpp=0.5)
    assert killable.run(copy, out, kill_at=60, **settings) == -signal.SIGKILL
    copy.write_bytes(slide.read_bytes())
    assert infer(copy, out, **settings).exit_code == 0
    for name in RESULTS:
        assert (out / "made.svs" / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_worker_elsewhere_is_dead_when_it_shows_no_sign(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(journal.time, "monotonic", lambda: now)
    with Worker(tmp_path) as here, Worker(tmp_path) as there:
        ours, theirs = Journal(tmp_path / "work", here), Journal(tmp_path / "work", there)
        sign = tmp_path / journal.WORKERS_FOLDER / there.token
        sign.write_text(json.dumps({"place": "another machine", "pid": 1, "started": "1"}))
        assert theirs.claim(0) == 0
        assert ours.claim(0) is None
        now += journal.DEAD_SECONDS - 1
        os.utime(sign, ns=(1, 1))  # whatever its clock says, it has changed
        assert ours.claim(0) is None
        now += journal.DEAD_SECONDS - 1
        assert ours.claim(0) is None
        now += 2
        assert ours.claim(0) == 1
        assert theirs.claim(0) is None


def test_a_claim_that_was_never_written_is_taken_over(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(journal.time, "monotonic", lambda: now)
    with Worker(tmp_path) as worker:
        work = Journal(tmp_path / "work", worker)
        (tmp_path / "work" / "000007.claim-0").touch()
        assert work.claim(7) is None
        now += journal.BEAT_SECONDS + 1
        assert work.claim(7) == 1
        work.release(7, 1)
        assert work.claim(7) == 1
