"""The writers: what other programs must find in the files, and when the files appear."""

import csv
import gc
import gzip
import json
import resource
import uuid
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import reference
from nucfast.errors import OutputError, SlideError
from nucfast.nuclei import FEATURES, Nuclei
from nucfast.output import FORMATS, SlideInfo, open_writer, write_overlay
from nucfast.output.geojson import document, measurement_name
from nucfast.output.overlay import COLORBLIND_SAFE
from nucfast.slide import open_slide
from nucfast.testing import assert_nuclei_equal
from test_nuclei import CLASSES, make_nuclei

INFO = SlideInfo("a.svs", 5200, 5100, 0.25, "openslide.mpp-x", (100, 200, 5000, 4000))
META = {"model": {"name": "he-fast", "version": "1", "licence": "CC-BY-NC-SA-4.0"}}


def write(path, format, batches, **changes):
    options = {"slide_info": INFO, "classes": CLASSES, "meta": META} | changes
    with open_writer(format, path, **options) as writer:
        for batch in batches:
            writer.write(batch)
    return path


def cut(nuclei, step):
    return [nuclei[start : start + step] for start in range(0, len(nuclei), step)]


# All formats


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_the_bytes_do_not_depend_on_run_or_batches(tmp_path, format, count):
    nuclei = make_nuclei(count)
    first = write(tmp_path / "1", format, [nuclei]).read_bytes()
    assert write(tmp_path / "2", format, [nuclei]).read_bytes() == first
    batched = write(tmp_path / "3", format, [nuclei[:0], *cut(nuclei, 77)]).read_bytes()
    if format == "geojson.gz":  # the compressor may cut its blocks elsewhere
        first, batched = gzip.decompress(first), gzip.decompress(batched)
    assert batched == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_failed_run_leaves_the_old_file(tmp_path, format):
    path = tmp_path / FORMATS[format]
    path.write_bytes(b"old")
    with pytest.raises(KeyError), open_writer(format, path, slide_info=INFO, classes=CLASSES) as writer:
        writer.write(make_nuclei(10))
        assert path.read_bytes() == b"old"
        raise KeyError
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
    with pytest.raises(ValueError, match="expected an open writer"):
        writer.write(make_nuclei(1))
    writer.close()
    writer.abort()
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, format):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    nuclei = make_nuclei(3000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match=r"x: cannot be written: .*File too large"):
            write(path, format, cut(nuclei, 500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gc.collect()  # what the libraries left must not complain when it goes
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("format", FORMATS)
def test_a_batch_of_another_kind_is_refused_but_does_not_end_the_file(tmp_path, format):
    path = tmp_path / "x"
    with open_writer(format, path, slide_info=INFO, classes=CLASSES) as writer:
        with pytest.raises(ValueError, match=r"mpp: expected 0\.25, got 0\.5"):
            writer.write(make_nuclei(2, mpp=0.5))
        with pytest.raises(ValueError, match="classes: expected"):
            writer.write(Nuclei.empty(classes=CLASSES[:1], mpp=0.25))
        writer.write(make_nuclei(2))
        assert writer.rows == 2
    assert path.exists()


def test_unknown_format_and_place(tmp_path):
    with pytest.raises(ValueError, match=r"format: expected one of geoparquet, .*, got 'shp'"):
        open_writer("shp", tmp_path / "x", slide_info=INFO, classes=CLASSES)
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        open_writer("csv", tmp_path / "no" / "x", slide_info=INFO, classes=CLASSES)


# GeoJSON


@pytest.mark.parametrize("format", ["geojson", "geojson.gz"])
def test_geojson_is_what_qupath_reads(tmp_path, format):
    nuclei = make_nuclei(50)
    nuclei = replace(nuclei, vertices=nuclei.vertices + np.array([1 / 3, 2 / 7]))
    data = write(tmp_path / "x", format, cut(nuclei, 20)).read_bytes()
    text = gzip.decompress(data) if format == "geojson.gz" else data
    collection = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert collection["type"] == "FeatureCollection"
    assert collection["nucfast"]["slide"]["mpp_source"] == "openslide.mpp-x"
    assert collection["nucfast"]["mpp"] == 0.25
    assert len(collection["features"]) == 50
    for i, feature in enumerate(collection["features"]):
        assert feature["type"] == "Feature"
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert np.array_equal(ring, np.round(ring, 2))
        assert np.abs(nuclei.polygons()[i] - (100, 200) - ring).max() <= 0.00501
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        scheme = {entry.id: {"name": entry.name, "color": list(entry.color)} for entry in CLASSES}
        assert properties.get("classification") == scheme.get(int(nuclei.class_id[i]))
        measurements = properties["measurements"]
        assert measurements["Area um^2"] == pytest.approx(float(nuclei.features["area_um2"][i]), abs=1e-4)
        assert ("Solidity" in measurements) == (i % 3 != 0)  # NaN is left out
        assert all(np.isfinite(value) for value in measurements.values())
    empty = write(tmp_path / "y", "geojson", []).read_bytes()
    assert json.loads(empty)["features"] == []


def test_geojson_rings_survive_the_rounding_of_qupath(tmp_path):
    shapely = pytest.importorskip("shapely")
    nuclei = make_nuclei(200)
    nuclei = replace(nuclei, vertices=nuclei.vertices * 0.37)
    features = json.loads(write(tmp_path / "x", "geojson", [nuclei]).read_bytes())["features"]
    polygons = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    assert shapely.is_valid(polygons).all()
    snapped = shapely.set_precision(polygons, 0.01)
    np.testing.assert_allclose(shapely.area(snapped), shapely.area(polygons), rtol=1e-9)
    assert not shapely.is_empty(snapped).any()


@settings(max_examples=50, deadline=None)
@given(data=st.data(), scale=st.sampled_from([0.37, 1.0, 1e4, 1e13, 1e22]))
def test_geojson_features_are_those_of_the_reference(data, scale):
    nuclei = make_nuclei(12)
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    shift = random.normal(size=2) * data.draw(st.sampled_from([0.0, 1e-3, 3.0, 1e5]))
    values = {
        name: (random.normal(size=12) * 10.0 ** random.integers(-6, 7, 12)).astype(np.float32)
        for name in nuclei.features
    }
    values["solidity"][:3] = np.nan, np.inf, -0.00001
    nuclei = replace(
        nuclei, id=random.integers(0, 2**63, 12), features=values, vertices=(nuclei.vertices + shift) * scale
    )
    slide = replace(INFO, name=data.draw(st.sampled_from(["a.svs", "b/ä.svs", ""])))
    expected = reference.geojson_features(nuclei, slide.name, slide.origin, measurement_name)
    found = document(replace(nuclei, meta={"slide": asdict(slide)})).splitlines()[1:-1]
    found = [line.removesuffix(b",") for line in found]
    if scale > 1e12:  # orjson writes other exponents
        found, expected = [json.loads(line) for line in found], [json.loads(line) for line in expected]
    assert found == expected


def test_uuids_are_valid_distinct_and_of_the_slide():
    nuclei = make_nuclei(2000)
    nuclei = replace(nuclei, id=np.arange(2000, dtype=np.int64) * (1 << 32) + 5)

    def uuids(rows, name):
        part = replace(nuclei[rows], meta={"slide": {"name": name}})
        return [feature["id"] for feature in json.loads(document(part))["features"]]

    texts = uuids(slice(None), "a.svs")
    assert len(set(texts)) == len(texts)
    for text in texts[:100]:
        value = uuid.UUID(text)
        assert (str(value), value.version, value.variant) == (text, 8, uuid.RFC_4122)
    assert uuids(slice(7, 8), "a.svs") == texts[7:8]
    assert not set(texts) & set(uuids(slice(None), "b.svs"))
    bits = np.array([[int(c, 16) for c in text.replace("-", "")] for text in texts])
    spread = [len(set(column)) for column in bits.T]
    assert [i for i, n in enumerate(spread) if n < 16] == [12, 16]  # version and variant only


def test_measurement_names():
    assert [
        measurement_name(name) for name in ("area_um2", "major_axis_um", "orientation_rad", "solidity")
    ] == [
        "Area um^2",
        "Major axis um",
        "Orientation rad",
        "Solidity",
    ]


# GeoParquet


def test_geoparquet_round_trip_is_exact(tmp_path):
    nuclei = make_nuclei(120)
    path = write(tmp_path / "x.parquet", "geoparquet", cut(nuclei, 50))
    back = Nuclei.read(path)
    assert_nuclei_equal(back, nuclei)
    assert back.meta["model"] == META["model"]
    assert SlideInfo.of_nuclei(back) == INFO
    assert back.meta["nucfast_version"]
    empty = write(tmp_path / "y.parquet", "geoparquet", [])
    assert_nuclei_equal(Nuclei.read(empty), Nuclei.empty(classes=CLASSES, mpp=0.25))


def test_geoparquet_row_groups_do_not_depend_on_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("nucfast.output.geoparquet._ROW_GROUP_ROWS", 100)
    nuclei = make_nuclei(430)
    path = write(tmp_path / "x", "geoparquet", [nuclei[:330], *cut(nuclei[330:], 7)])
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100] * 4 + [30]
    batches = list(Nuclei.read_batches(path))
    assert [len(batch) for batch in batches] == [0, 100, 100, 100, 100, 30]
    assert_nuclei_equal(Nuclei.concat(batches), nuclei)
    assert write(tmp_path / "y", "geoparquet", [nuclei]).read_bytes() == path.read_bytes()


def test_geoparquet_opens_in_geopandas(tmp_path):
    geopandas = pytest.importorskip("geopandas")
    nuclei = make_nuclei(60)
    path = write(tmp_path / "x.parquet", "geoparquet", [nuclei])
    frame = geopandas.read_parquet(path)
    assert frame.crs is None
    assert len(frame) == 60
    np.testing.assert_array_equal(np.asarray(frame.geometry[5].exterior.coords), nuclei.polygons()[5])
    assert frame["class"].dtype == "category"
    box = (0, 0, 2500, 5000)
    near = geopandas.read_parquet(path, bbox=box)  # uses the covering
    inside = (nuclei.bbox[:, 0] <= 2500) & (nuclei.bbox[:, 1] <= 5000)
    assert sorted(near["id"]) == sorted(nuclei.id[inside])
    geo = json.loads(pq.read_schema(path).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"]["geometry"]
    assert "crs" in column
    assert column["crs"] is None
    assert column["encoding"] == "WKB"
    assert column["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]


def test_what_is_no_result_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(OutputError, match=r"x\.parquet: expected a GeoParquet file that nucfast wrote"):
        Nuclei.read(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(OutputError, match=r"x\.parquet: expected a GeoParquet file that nucfast wrote"):
        Nuclei.read(path)


# CSV


def test_csv_has_units_in_its_header(tmp_path):
    nuclei = make_nuclei(30)
    path = write(tmp_path / "x.csv", "csv", cut(nuclei, 11))
    first = path.read_text().splitlines()[0]
    assert first == ",".join(
        ["id", "class", "probability", "class_probability", "x_px", "y_px", "x_um", "y_um", *FEATURES]
    )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    names = {0: ""} | {entry.id: entry.name for entry in nuclei.classes}
    for i, row in enumerate(rows):
        assert int(row["id"]) == nuclei.id[i]
        assert row["class"] == names[int(nuclei.class_id[i])]
        assert float(row["x_px"]) == pytest.approx(nuclei.x[i], abs=1e-4)
        assert float(row["y_um"]) == pytest.approx(nuclei.y[i] * 0.25, abs=1e-4)
        assert (row["solidity"] == "") == (i % 3 == 0)
    assert write(tmp_path / "y.csv", "csv", []).read_text() == first + "\n"


# Overlay


def white_slide():
    return open_slide(np.full((200, 400, 3), 255, np.uint8), mpp=0.25)


def squares(*corners, side=40.0):
    square = np.array([[0, 0], [side, 0], [side, side], [0, side], [0, 0]])
    corner = np.array(corners, np.float64)
    count = len(corners)
    return replace(
        make_nuclei(count),
        vertices=np.concatenate([square + c for c in corner]),
        offsets=np.arange(count + 1) * 5,
        bbox=np.hstack([corner, corner + side]),
        class_id=np.array([1, 7, 0, 2][:count], np.uint8),
    )


def test_overlay_draws_outlines_and_a_legend(tmp_path):
    slide, path = white_slide(), tmp_path / "x.png"
    write_overlay(path, slide, squares((300, 20), (340, 120)))
    picture = np.asarray(Image.open(path))
    assert picture.shape == (200, 400, 3)
    assert tuple(picture[40, 300]) != (255, 255, 255)
    assert np.abs(picture[40, 299:301].astype(int).mean(0) - CLASSES[0].color).max() < 70
    assert (picture[25:55, 305:335] == 255).all()  # the inside stays visible
    assert (picture[:, 200:290] == 255).all()
    assert (picture[:100, :200] != 255).any()  # the legend
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]


def test_overlay_is_white_where_the_slide_cannot_be_read(tmp_path, monkeypatch):
    slide = open_slide(np.full((900, 640, 3), 200, np.uint8), mpp=0.25)
    read = slide.read_scaled

    def damaged(x, y, width, height, scale):
        if x < 100 and y < 100:
            raise SlideError("tile 0 cannot be decoded")
        return read(x, y, width, height, scale)

    monkeypatch.setattr(slide, "read_scaled", damaged)
    write_overlay(tmp_path / "overlay.png", slide, [])
    picture = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert (picture[:100, :100] == 255).all()
    assert (picture[130:] == 200).all()
    assert (picture[:, 130:] == 200).all()


def test_overlay_takes_batches_and_fits_large_slides(tmp_path):
    slide = white_slide()
    nuclei = squares((300, 20), (340, 120), (200, 100))
    write_overlay(tmp_path / "1.png", slide, nuclei, max_px=100, palette=COLORBLIND_SAFE)
    write_overlay(
        tmp_path / "2.png", slide, (nuclei[i : i + 1] for i in range(3)), max_px=100, palette=COLORBLIND_SAFE
    )
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    write_overlay(tmp_path / "3.png", slide, squares((300, 20), side=8.0), max_px=100)
    tiny = np.asarray(Image.open(tmp_path / "3.png"))
    assert np.abs(tiny[6, 76].astype(int) - CLASSES[0].color).max() < 30  # filled, not outlined
    write_overlay(tmp_path / "4.png", slide, [])
    write_overlay(tmp_path / "5.png", slide, Nuclei.empty(classes=CLASSES, mpp=0.25))
    assert (np.asarray(Image.open(tmp_path / "4.png")) == 255).all()
    with pytest.raises(ValueError, match="palette: expected 3 colours, got 1"):
        write_overlay(tmp_path / "6.png", slide, nuclei, palette=[(0, 0, 0)])
    assert not (tmp_path / "6.png").exists()


def test_slide_info_origin():
    assert INFO.origin == (100, 200)
    assert SlideInfo("s", 1, 1, 1.0).origin == (0, 0)
