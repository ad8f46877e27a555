"""Runs over real files with the shipped model: what is written, what is resumed, what is refused."""

import json
import os
import shutil
import uuid
import weakref

import geopandas
import numpy as np
import pytest
import shapely
from numpy.testing import assert_array_equal
from PIL import Image

import nucfast
from nucfast.engine import create_engine, load_bundle
from nucfast.errors import NucfastError, OutputError, SlideError
from nucfast.metrics import evaluate
from nucfast.nuclei import FEATURES, Nuclei
from nucfast.ops import match
from nucfast.output import FORMATS
from nucfast.pipeline import InferConfig, infer, run, segment
from nucfast.pipeline.grid import Window
from nucfast.pipeline.prepare import fingerprint
from nucfast.pipeline.slide_run import Plan
from nucfast.slide import SlideInput, open_slide, write_slide
from nucfast.testing import assert_nuclei_equal, synthetic_slide


@pytest.fixture(scope="module")
def made():
    return synthetic_slide(900, 700, nuclei_per_mm2=4000, seed=5)


@pytest.fixture(scope="module")
def slide(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "made.svs"
    write_slide(path, made.image, mpp=made.mpp)
    return path


@pytest.fixture(scope="module")
def results(slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    report = infer(slide, out, formats=tuple(FORMATS), region_px=512)
    assert report.exit_code == 0
    return out / "made.svs"


@pytest.fixture(scope="module")
def engine():
    return create_engine(load_bundle("he-fast"))


def test_finds_most_of_the_made_nuclei(made, results):
    nuclei = Nuclei.read(results / "nuclei.parquet")
    scores = evaluate([made.labels], [nuclei.to_labels(made.labels.shape)], radius_px=None)
    assert scores.f1_50 > 0.6


def test_all_formats_hold_the_same_nuclei(results):
    nuclei = Nuclei.read(results / "nuclei.parquet")
    assert len(nuclei) > 100
    frame = geopandas.read_parquet(results / "nuclei.parquet")
    assert frame.crs is None
    assert frame.geometry.is_valid.all()
    assert_array_equal(frame["id"], nuclei.id)
    assert set(FEATURES) <= set(frame.columns)
    document = json.loads((results / "nuclei.geojson").read_bytes())
    assert len(document["features"]) == len(nuclei)
    for feature in document["features"]:
        uuid.UUID(feature["id"])
        ring = shapely.Polygon(feature["geometry"]["coordinates"][0])
        rounded = shapely.set_precision(ring, 0.01)
        assert ring.is_valid
        assert rounded.geom_type == "Polygon"
        assert feature["properties"]["objectType"] == "detection"
        assert set(feature["properties"]["classification"]) == {"name", "color"}
        assert feature["properties"]["measurements"]["Area um^2"] > 0
    assert (results / "nuclei.csv").read_text().count("\n") == len(nuclei) + 1
    with Image.open(results / "overlay.png") as overlay:
        assert overlay.size == (900, 700)
    assert not list(results.glob(".*"))


def test_run_file_says_how_the_rows_were_made(results):
    run = json.loads((results / "run.json").read_text())
    assert run["slide"]["mpp"] == 0.5
    assert run["model"]["name"] == "he-fast"
    assert run["report"]["nuclei"] == len(Nuclei.read(results / "nuclei.parquet"))
    manifest = json.loads((results.parent / "manifest.json").read_text())
    assert {row["stage"] for row in manifest["stages"]} >= {"read", "network", "decode", "write"}


def test_segment_gives_the_rows_of_infer(slide, results, engine):
    rows = Nuclei.read(results / "nuclei.parquet")
    found = segment(slide, engine=engine, region_px=512)
    assert_nuclei_equal(found, rows)
    with open_slide(slide) as opened:
        image = opened.read(0, 0, *opened.dimensions, mpp=0.5)
    by_array = nucfast.segment(image, engine=engine, region_px=512)
    assert_array_equal(by_array.id, rows.id)


def test_a_finished_slide_is_skipped_and_never_mixed(slide, tmp_path):
    assert infer(slide, tmp_path, formats=("csv",)).slides[0].status == "done"
    before = (tmp_path / "made.svs" / "run.json").stat().st_mtime_ns
    assert infer(slide, tmp_path, formats=("csv",)).slides[0].status == "skipped"
    assert (tmp_path / "made.svs" / "run.json").stat().st_mtime_ns == before
    other = infer(slide, tmp_path, formats=("csv",), region_px=300)
    assert other.exit_code == 1
    assert "--overwrite" in other.slides[0].error
    assert infer(slide, tmp_path, formats=("csv",), region_px=300, overwrite=True).exit_code == 0


def test_a_finished_slide_has_all_its_files(slide, tmp_path):
    settings = {"formats": ("csv",), "overlay": False, "region_px": 512}
    folder = tmp_path / "made.svs"
    assert infer(slide, tmp_path, **settings).exit_code == 0
    more = infer(slide, tmp_path, formats=("csv", "geojson"), region_px=512).slides[0]
    assert more.error == (
        f"{slide}: {folder} was finished without nuclei.geojson, overlay.png; "
        "pass --overwrite to do the slide again, or another folder with -o"
    )
    whole = (folder / "nuclei.csv").read_text()
    (folder / "nuclei.csv").write_text(whole[:-100])
    assert "nuclei.csv is missing or has changed" in infer(slide, tmp_path, **settings).slides[0].error
    (folder / "nuclei.csv").unlink()
    assert "nuclei.csv is missing or has changed" in infer(slide, tmp_path, **settings).slides[0].error
    assert infer(slide, tmp_path, overwrite=True, **settings).slides[0].status == "done"
    assert (folder / "nuclei.csv").read_text() == whole


@pytest.mark.skipif(os.name != "posix", reason="file names are text")
def test_names_of_files_may_be_no_utf8(slide, tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.svs")
    shutil.copy(slide, path)
    settings = {"formats": tuple(FORMATS), "region_px": 512}
    events = []
    infer(path, tmp_path / "out", shard=(1, 2), on_event=events.append, **settings)
    report = infer(path, tmp_path / "out", on_event=events.append, **settings).slides[0]
    assert (report.status, report.slide) == ("done", f"{tmp_path}/a\ufffd.svs")
    json.dumps(events, ensure_ascii=False).encode()
    folder = tmp_path / "out" / path.name
    copy = shutil.copy(folder / "nuclei.parquet", tmp_path / "nuclei.parquet")  # Arrow's paths are UTF-8
    assert Nuclei.read(copy).meta["slide"]["name"] == "a\ufffd.svs"
    assert json.loads((folder / "nuclei.geojson").read_bytes())["features"]


def test_another_decoder_is_another_result(slide, tmp_path):
    bundle = load_bundle("he-fast")
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    assert infer(slide, tmp_path / "out", model=str(copy), formats=("csv",)).exit_code == 0
    content = json.loads((copy / "bundle.json").read_text())
    content["decoder"]["min_area_um2"] = 30.0
    (copy / "bundle.json").write_text(json.dumps(content))
    changed = infer(slide, tmp_path / "out", model=str(copy), formats=("csv",))
    assert changed.exit_code == 1
    assert "--overwrite" in changed.slides[0].error


def test_another_part_of_a_slide_of_several_files_is_another_slide(engine, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a.mrxs", "a/Data0001.dat"):
        (tmp_path / name).write_bytes(b"x")
    entry, layout = SlideInput(tmp_path / "a.mrxs", "a.mrxs", None), Plan(0.5, 1.0, Window(0, 0, 9, 9), ())
    first = fingerprint(entry, InferConfig(), engine, layout)
    assert fingerprint(entry, InferConfig(), engine, layout) == first
    (tmp_path / "a/Data0001.dat").write_bytes(b"xy")
    assert fingerprint(entry, InferConfig(), engine, layout) != first
    (tmp_path / "a.mrxs").unlink()  # while it is read
    with pytest.raises(SlideError, match="cannot be read"):
        fingerprint(entry, InferConfig(), engine, layout)


def test_an_interrupted_run_goes_on(slide, results, tmp_path):
    def interrupt(event):
        if event["event"] == "region":
            raise KeyboardInterrupt

    settings = {"region_px": 512, "formats": tuple(FORMATS)}
    with pytest.raises(KeyboardInterrupt):
        infer(slide, tmp_path, on_event=interrupt, **settings)
    folder = tmp_path / "made.svs"
    assert not (folder / "run.json").exists()
    assert not list(folder.glob("nuclei.*"))
    left = len(list((folder / ".nucfast-work").glob("*/*.part")))
    assert left >= 1
    events = []
    assert infer(slide, tmp_path, on_event=events.append, **settings).exit_code == 0
    started = next(event for event in events if event["event"] == "slide")
    assert started["done"] == left
    for name in FORMATS.values():
        assert (folder / name).read_bytes() == (results / name).read_bytes(), name


def test_bad_inputs_stop_nothing_else(slide, slides_dir, tmp_path, monkeypatch):
    areas, held = [], []
    real = run.slide_area

    def slide_area(*args):
        area = real(*args)
        areas.append(weakref.ref(area))
        return area

    monkeypatch.setattr(run, "slide_area", slide_area)
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(slide, folder / "good.svs")
    shutil.copy(slides_dir / "broken.svs", folder / "broken.svs")
    (folder / "notes.txt").write_text("not a slide")
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(folder / "plain.png")
    report = infer(
        folder,
        tmp_path / "out",
        formats=("geojson.gz",),
        on_event=lambda event: held.append(sum(area() is not None for area in areas)),
    )
    assert report.exit_code == 1
    assert (max(held), held[-2]) == (1, 0)  # before the end: what is known of a slide goes with it
    by_name = {entry.slide.rsplit("/", 1)[1]: entry for entry in report.slides}
    assert by_name["good.svs"].status == "done"
    for name in ("broken.svs", "notes.txt", "plain.png"):
        assert by_name[name].status == "failed"
        assert name in by_name[name].error
        assert "\n" not in by_name[name].error
    assert "--mpp" in by_name["plain.png"].error
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sum(entry["status"] == "failed" and entry["error"] != "" for entry in manifest["slides"]) == 3
    again = infer(folder / "plain.png", tmp_path / "out2", mpp=0.5, formats=("geojson.gz",))
    assert again.exit_code == 0
    assert again.slides[0].nuclei == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ("shapefile",)}, "shapefile"),
        ({"model": "no-such"}, "no-such"),
        ({"engine": "abacus"}, "abacus"),
        ({"mpp": 353.0}, "um per pixel"),
        ({"region_px": 1}, "region_px"),
        ({"shard": (1, 2), "overwrite": True}, "overwrite: not with shard"),
    ],
)
def test_wrong_settings_are_refused_before_work_begins(slide, tmp_path, settings, message):
    with pytest.raises((NucfastError, ValueError), match=message):
        infer(slide, tmp_path / "out", **settings)


def test_output_that_cannot_be_made(slide, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        infer(slide, tmp_path / "file")
    (tmp_path / slide.name).write_text("where the slide's results would go")
    (failed,) = infer(slide, tmp_path).failed
    assert f"{tmp_path / slide.name / 'run.json'}: cannot be read" in failed.error


def test_regions_do_not_change_what_the_real_network_finds(engine):
    """Seams: the margin holds all that the network sees, and in int8 a tile's shape changes no sum."""
    image = synthetic_slide(3000, 2000, nuclei_per_mm2=4000, seed=1).image
    whole = segment(image, engine=engine, region_px=4096)
    parts = segment(image, engine=engine, region_px=700)
    assert len(whole) > 1000
    if engine.precision == "int8":
        assert_nuclei_equal(parts[np.argsort(parts.id)], whole)
    else:
        same = match(whole.to_labels((2000, 3000)), parts.to_labels((2000, 3000)), iou_threshold=0.9)
        assert same.tp >= 0.999 * max(len(whole), len(parts))
