"""The table of results: selection, joining, conversions, and its checks."""

import gzip
import importlib.util
import json
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucfast.errors import OutputError
from nucfast.nuclei import FEATURES, Nuclei, NucleusClass
from nucfast.testing import assert_nuclei_equal

CLASSES = (
    NucleusClass(1, "epithelial", (230, 60, 50)),
    NucleusClass(2, "inflammatory", (60, 120, 230)),
    NucleusClass(7, "spindle", (40, 170, 80)),
)


def make_nuclei(count, *, seed=0, mpp=0.25):
    """Nuclei with polygons of 3 to 12 corners on half pixels, all classes and none, and some NaN."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(3, 13, count)
    offsets = np.concatenate([[0], np.cumsum(corners + 1)]).astype(np.int64)
    centre = rng.integers(20, 5000, (count, 2)).astype(np.float64)
    rings = []
    for (x, y), n in zip(centre, corners, strict=True):
        angle = 2 * np.pi * np.arange(n) / n
        ring = np.round(2 * np.stack([x + 9 * np.cos(angle), y + 7 * np.sin(angle)], axis=1)) / 2
        rings.append(np.vstack([ring, ring[:1]]))
    features = {name: rng.uniform(0, 90, count).astype(np.float32) for name in FEATURES}
    if count:
        features["solidity"][::3] = np.nan
    return Nuclei(
        id=rng.permutation(count).astype(np.int64) << 33,
        x=centre[:, 0] + 1 / 3,
        y=centre[:, 1] - 1 / 7,
        bbox=np.hstack([centre - 9, centre + 9]),
        class_id=rng.choice(np.array([0, 1, 2, 7], np.uint8), count),
        probability=rng.random(count, np.float32),
        class_probability=rng.random(count, np.float32),
        features=features,
        vertices=np.concatenate([np.empty((0, 2)), *rings]),
        offsets=offsets,
        classes=CLASSES,
        mpp=mpp,
        meta={"model": {"name": "he-fast", "version": "1"}, "slide": {"name": "a.svs", "mpp_source": "flag"}},
    )


def test_rows_are_picked_by_slice_mask_and_index():
    nuclei = make_nuclei(20)
    polygons = nuclei.polygons()
    order = np.array([7, 3, 3, 19])
    picked = nuclei[order]
    assert len(picked) == 4
    np.testing.assert_array_equal(picked.id, nuclei.id[order])
    np.testing.assert_array_equal(picked.features["area_um2"], nuclei.features["area_um2"][order])
    for ring, row in zip(picked.polygons(), order, strict=True):
        np.testing.assert_array_equal(ring, polygons[row])
    mask = nuclei.class_id == 2
    assert_nuclei_equal(nuclei[mask], nuclei[np.flatnonzero(mask)])
    assert_nuclei_equal(nuclei[4:15:2], nuclei[np.arange(4, 15, 2)])
    assert_nuclei_equal(nuclei[[]], nuclei[:0])
    assert len(nuclei[np.zeros(20, bool)]) == 0


def test_an_index_of_another_kind_is_an_error():
    nuclei = make_nuclei(3)
    with pytest.raises(TypeError, match="index: expected a slice, mask or index array"):
        nuclei[1]
    with pytest.raises(TypeError, match="index"):
        nuclei[np.array([0.0, 1.0])]
    with pytest.raises(ValueError, match="index: expected a mask of 3 rows, got 2"):
        nuclei[np.array([True, False])]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=5))
def test_concat_undoes_cutting(cuts):
    nuclei = make_nuclei(40)
    edges = [0, *sorted(cuts), 40]
    parts = [nuclei[a:b] for a, b in pairwise(edges)]
    assert_nuclei_equal(Nuclei.concat(parts), nuclei, meta=True)


def test_concat_refuses_tables_of_another_kind():
    nuclei = make_nuclei(3)
    with pytest.raises(ValueError, match=r"mpp: expected 0\.25, got 0\.5"):
        Nuclei.concat([nuclei, make_nuclei(3, mpp=0.5)])
    with pytest.raises(ValueError, match="features: expected"):
        Nuclei.concat([nuclei, replace(nuclei, features={})])
    with pytest.raises(ValueError, match="parts: expected at least one"):
        Nuclei.concat([])


def test_empty_has_every_column():
    empty = Nuclei.empty(classes=CLASSES, mpp=0.5)
    assert len(empty) == 0
    assert list(empty.features) == list(FEATURES)
    assert empty.polygons() == []
    assert empty.counts() == {"epithelial": 0, "inflammatory": 0, "spindle": 0}
    assert_nuclei_equal(Nuclei.concat([empty, empty]), empty)
    assert len(empty[:]) == 0
    assert len(empty.to_pandas()) == len(empty.to_geopandas()) == 0
    assert_nuclei_equal(Nuclei.from_arrow(empty.to_arrow()), empty)


def test_counts_and_codes():
    nuclei = replace(make_nuclei(4), class_id=np.array([7, 0, 7, 1], np.uint8))
    assert nuclei.counts() == {"epithelial": 1, "inflammatory": 0, "spindle": 2, "unclassified": 1}
    np.testing.assert_array_equal(nuclei.class_codes(), [2, -1, 2, 0])
    assert "4 at 0.25 um/px" in repr(nuclei)


@pytest.mark.parametrize("name", [field.name for field in fields(Nuclei)][:7])
def test_columns_are_checked_and_named(name):
    nuclei = make_nuclei(3)
    with pytest.raises(TypeError, match=f"{name}: expected .*, got complex128"):
        replace(nuclei, **{name: getattr(nuclei, name).astype(complex)})
    if name != "id":  # its length is what the others are held to
        with pytest.raises(ValueError, match=f"{name}: expected shape"):
            replace(nuclei, **{name: getattr(nuclei, name)[:-1].copy()})
    with pytest.raises(TypeError, match=f"{name}: expected .*, got list"):
        replace(nuclei, **{name: getattr(nuclei, name).tolist()})


def test_the_rest_is_checked_too():
    nuclei = make_nuclei(3)
    with pytest.raises(TypeError, match=r"features\['area'\]: expected float32, got float64"):
        replace(nuclei, features={"area": np.zeros(3)})
    with pytest.raises(TypeError, match="offsets: expected int64, got int32"):
        replace(nuclei, offsets=nuclei.offsets.astype(np.int32))
    with pytest.raises(ValueError, match="vertices: expected shape"):
        replace(nuclei, vertices=nuclei.vertices[:-1])
    with pytest.raises(ValueError, match="vertices: expected closed rings"):
        replace(nuclei, vertices=nuclei.vertices + np.arange(len(nuclei.vertices))[:, None])
    with pytest.raises(ValueError, match="offsets: expected 0 first"):
        replace(nuclei, offsets=nuclei.offsets[[0, 2, 1, 3]])
    with pytest.raises(ValueError, match=r"class_id: expected 0 or an id of classes, got \[9\]"):
        replace(nuclei, class_id=np.array([1, 9, 0], np.uint8))
    with pytest.raises(ValueError, match="mpp: expected a positive number, got 0"):
        replace(nuclei, mpp=0.0)
    with pytest.raises(ValueError, match="classes: expected each name once"):
        replace(nuclei, classes=(*CLASSES, NucleusClass(9, "spindle", (0, 0, 0))))


def test_a_class_is_checked():
    with pytest.raises(ValueError, match=r"id: expected 1\.\.255, got 0"):
        NucleusClass(0, "background", (0, 0, 0))
    with pytest.raises(ValueError, match="color: expected three integers"):
        NucleusClass(1, "a", (0, 0, 256))
    assert NucleusClass(1, "a", [1, 2, 3]).color == (1, 2, 3)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_arrow_round_trip_is_exact(count):
    nuclei = make_nuclei(count)
    table = nuclei.to_arrow()
    assert_nuclei_equal(Nuclei.from_arrow(table), nuclei, meta=True)
    if count > 10:
        sliced = pa.concat_tables([table.slice(3, 20), table.slice(23)])  # chunks that start in mid-buffer
        assert_nuclei_equal(Nuclei.from_arrow(sliced), nuclei[3:])


def test_wkb_is_what_shapely_writes():
    shapely = pytest.importorskip("shapely")
    nuclei = make_nuclei(20)
    expected = shapely.to_wkb(shapely.polygons([shapely.linearrings(ring) for ring in nuclei.polygons()]))
    assert nuclei.to_arrow()["geometry"].to_pylist() == list(expected)


def test_pandas_is_not_imported_unasked(tmp_path):
    pq.write_table(make_nuclei(20).to_arrow(), tmp_path / "some.parquet")
    code = """if True:
        import sys
        from nucfast.nuclei import Nuclei
        from nucfast.output import SlideInfo, open_writer
        nuclei = Nuclei.read(sys.argv[1])
        info = SlideInfo("made", 100, 100, 0.25)
        for name in ("geoparquet", "geojson.gz", "csv"):
            with open_writer(name, sys.argv[1] + "." + name, slide_info=info, classes=nuclei.classes) as out:
                out.write(nuclei)
        assert len(nuclei) == 20
        assert "pyarrow" in sys.modules and "pandas" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "some.parquet")], check=True)


def test_a_foreign_table_is_refused():
    with pytest.raises(OutputError, match="table: expected one that nucfast wrote"):
        Nuclei.from_arrow(pa.table({"id": [1]}))
    table = make_nuclei(5).to_arrow()
    for wrong in (b"", b"\x01" * 40):
        geometry = pa.array([wrong] * 5, pa.binary())
        with pytest.raises(OutputError, match="geometry that is not"):
            Nuclei.from_arrow(table.set_column(1, "geometry", geometry))
    with pytest.raises(OutputError, match="table: expected one that nucfast wrote"):
        Nuclei.from_arrow(table.set_column(5, "class", table["class"].cast(pa.string())))


def test_pandas_and_geopandas():
    nuclei = make_nuclei(12)
    frame = nuclei.to_pandas()
    assert list(frame) == ["id", "x", "y", "class", "probability", "class_probability", *FEATURES]
    names = {0: None} | {entry.id: entry.name for entry in nuclei.classes}
    assert [None if value != value else value for value in frame["class"]] == [
        names[i] for i in nuclei.class_id.tolist()
    ]
    geo = nuclei.to_geopandas()
    assert geo.crs is None
    assert geo.geometry.is_valid.all()
    np.testing.assert_array_equal(np.asarray(geo.geometry[3].exterior.coords), nuclei.polygons()[3])


def test_geojson_document(tmp_path):
    nuclei = make_nuclei(5)
    data = nuclei.to_geojson(tmp_path / "a.geojson.gz")
    assert len(json.loads(data)["features"]) == 5
    assert gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()) == data
    assert nuclei.to_geojson(tmp_path / "a.geojson") == (tmp_path / "a.geojson").read_bytes() == data
    assert json.loads(Nuclei.empty(classes=CLASSES, mpp=1).to_geojson())["features"] == []


def test_labels_are_drawn_by_pixel_centres():
    if importlib.util.find_spec("nucfast._core") is None or not hasattr(
        importlib.import_module("nucfast._core"), "rasterize"
    ):
        pytest.skip("this build of the extension has no rasterize")
    square = np.array([[1, 1], [5, 1], [5, 3], [1, 3], [1, 1]], np.float64)
    nuclei = replace(make_nuclei(2), vertices=np.vstack([square, square + 2]), offsets=np.array([0, 5, 10]))
    labels = nuclei.to_labels((6, 8))
    expected = np.zeros((6, 8), np.int32)
    expected[3:5, 3:7] = 2
    expected[1:3, 1:5] = 1
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int32
    finer = nuclei.to_labels((12, 16), downsample=0.5)
    np.testing.assert_array_equal(finer, expected.repeat(2, axis=0).repeat(2, axis=1))
    with pytest.raises(ValueError, match="downsample: expected a positive number, got 0"):
        nuclei.to_labels((3, 4), downsample=0)
