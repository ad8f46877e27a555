"""Regions of interest: what is inside, in every notation, and what a run makes of it."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from nucfast.errors import NucfastError
from nucfast.nuclei import Nuclei
from nucfast.pipeline import infer
from nucfast.pipeline.area import Area, Shape, read_shape, read_tissue_mask
from nucfast.slide import TissueMask, open_slide, write_slide
from nucfast.testing import synthetic_slide

WITH_HOLE = shapely.Polygon(
    [(10, 10), (90, 15), (80, 90), (20, 80)], [[(30, 30), (60, 30), (60, 60), (30, 60)]]
)
LEAF = shapely.Polygon([(100, 0), (140, 0), (120, 50)])
OVERLAPPING = shapely.Polygon([(70, 10), (130, 10), (130, 60), (70, 60)])


@pytest.fixture(scope="module")
def blank():
    return open_slide(np.full((200, 300, 3), 255, np.uint8), mpp=0.5)


def shape_of(tmp_path, slide, *polygons, suffix="wkt"):
    path = tmp_path / f"roi.{suffix}"
    if suffix == "wkt":
        path.write_text(shapely.MultiPolygon(polygons).wkt if len(polygons) > 1 else polygons[0].wkt)
    else:
        features = [{"type": "Feature", "geometry": shapely.geometry.mapping(entry)} for entry in polygons]
        document = {"type": "FeatureCollection", "features": features}
        path.write_text(json.dumps(document if suffix == "geojson" else features))
    return read_shape(path, slide)


@pytest.mark.parametrize("suffix", ["wkt", "geojson", "json"])
def test_inside_is_what_shapely_says(tmp_path, blank, suffix):
    polygons = (WITH_HOLE, LEAF, OVERLAPPING) if suffix != "wkt" else (WITH_HOLE, LEAF)
    shape = shape_of(tmp_path, blank, *polygons, suffix=suffix)
    x, y = np.random.default_rng(0).uniform(-10, 150, (2, 5000))
    assert_array_equal(shape.contains(x, y), shapely.contains_xy(shapely.unary_union(polygons), x, y))


@settings(max_examples=300, deadline=None)
@given(st.integers(-20, 150), st.integers(-20, 110), st.integers(1, 80), st.integers(1, 80))
def test_rectangles_that_hold_some_are_never_missed(x, y, width, height):
    shape = Shape(tuple(polygon for entry in (WITH_HOLE, LEAF) for polygon in as_shape(entry).polygons))
    box = shapely.box(x, y, x + width, y + height)
    union = shapely.unary_union([WITH_HOLE, LEAF])
    found = shape.any_in(x, y, x + width, y + height)
    if union.intersection(box).area > 0:
        assert found
    if not union.intersects(box):
        assert not found
    assert shape.all_in(x, y, x + width, y + height) <= union.covers(box)


def as_shape(polygon):
    from nucfast.pipeline.area import _polygon

    rings = [list(ring.coords) for ring in (polygon.exterior, *polygon.interiors)]
    return Shape((_polygon(rings, np.zeros(2)),))


@pytest.mark.parametrize(
    "text",
    ["", "POINT (1 2)", "POLYGON ((1 2, 3 4", "{}", '{"type": "Point"}', "[1]", "POLYGON ((0 0, 1 1))", "[]"],
)
def test_files_without_polygons(tmp_path, blank, text):
    path = tmp_path / "roi"
    path.write_text(text)
    with pytest.raises(NucfastError, match="roi: expected polygons"):
        read_shape(path, blank)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("POLYGON EMPTY", "an empty polygon"),
        ("MULTIPOLYGON EMPTY", "an empty polygon"),
        ('{"type": "Polygon", "coordinates": []}', "an empty polygon"),
        ('{"type": "Feature", "geometry": null}', "none in it, and points and lines do not count"),
        ('{"type": "Point", "coordinates": [1, 2]}', "none in it, and points and lines do not count"),
        ('{"type": "Circle"}', "Circle is no polygon"),
    ],
)
def test_why_there_is_no_polygon(tmp_path, blank, text, reason):
    (tmp_path / "roi").write_text(text)
    with pytest.raises(NucfastError, match=rf"roi: expected .* \({reason}\); export the annotations again"):
        read_shape(tmp_path / "roi", blank)


def test_points_and_lines_beside_polygons_are_passed_over(tmp_path, blank):
    shapes = [shapely.Point(1, 2), shapely.LineString([(0, 0), (9, 9)]), shapely.MultiPoint([(1, 2)]), LEAF]
    features = [{"type": "Feature", "geometry": shapely.geometry.mapping(shape)} for shape in shapes]
    features.append({"type": "Feature", "geometry": None})
    (tmp_path / "roi").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert len(read_shape(tmp_path / "roi", blank).polygons) == 1


def test_wkt_with_a_reference_system(tmp_path, blank):
    (tmp_path / "roi").write_text(f"SRID=0; {LEAF.wkt}")
    assert len(read_shape(tmp_path / "roi", blank).polygons) == 1


def test_polygons_beside_the_slide_are_warned_of(tmp_path, blank, caplog):
    shape_of(tmp_path, blank, LEAF)
    assert not caplog.text
    shape_of(tmp_path, blank, shapely.box(301, 0, 400, 100))
    assert "roi.wkt: lies wholly outside array of 300 x 200 px" in caplog.text


def test_tissue_mask_of_an_image(tmp_path, blank):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    area = Area(read_tissue_mask(tmp_path / "mask.png", blank))
    assert area.any_in(95, 40, 10, 20)
    assert not area.any_in(0, 0, 99, 200)
    assert area.contains(np.array([99.0, 101.0]), np.array([60.0, 60.0])).tolist() == [False, True]
    Image.fromarray(mask[:10]).save(tmp_path / "mask.png")
    with pytest.raises(NucfastError, match=r"mask.png: expected a picture of the whole slide"):
        read_tissue_mask(tmp_path / "mask.png", blank)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_large_tissue_masks_are_reduced_without_losing_any(tmp_path, blank, monkeypatch, suffix):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit does not apply
    monkeypatch.setattr("nucfast.pipeline.area._MAX_MASK_PX", 1500)
    mask = np.zeros((100, 150), np.uint8)
    mask[40:48, 80:88] = 255
    if suffix != "jpg":
        mask[99, 149] = 1
    path = tmp_path / f"mask.{suffix}"
    Image.fromarray(mask).save(path)
    found = read_tissue_mask(path, blank)
    assert found.mask.shape == (25, 38)
    assert found.scale == 8
    assert found.mask[10:12, 20:22].all()
    assert found.mask[24, 37] == (suffix != "jpg")
    monkeypatch.setattr("nucfast.pipeline.area.MAX_WHOLE_PX", 14_999)
    with pytest.raises(
        NucfastError, match=rf"mask.{suffix}: expected .* at most 0 million .*; save it smaller"
    ):
        read_tissue_mask(path, blank)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0\xff\xff\0\0"])
def test_files_that_are_no_picture_of_tissue(tmp_path, blank, content):
    (tmp_path / "mask").write_bytes(content)
    with pytest.raises(NucfastError, match="mask: expected a PNG, JPEG, BMP, WebP or TIFF image of the"):
        read_tissue_mask(tmp_path / "mask", blank)


def test_area_is_the_intersection():
    mask = np.ones((10, 10), bool)
    mask[:, 5:] = False
    area = Area(TissueMask(mask, 20.0), as_shape(WITH_HOLE), as_shape(LEAF))
    assert area.any_in(15, 15, 10, 10)
    assert not area.any_in(110, 5, 10, 10)


def test_a_run_finds_the_same_nuclei_inside_as_without_limits(tmp_path):
    made = synthetic_slide(900, 700, nuclei_per_mm2=4000, seed=5)
    slide = tmp_path / "made.svs"
    write_slide(slide, made.image, mpp=0.5)
    roi = shapely.Polygon([(100, 50), (800, 100), (700, 600), (400, 300), (150, 500)])
    hole = shapely.box(420, 150, 560, 280)
    (tmp_path / "roi.wkt").write_text(roi.wkt)
    (tmp_path / "hole.wkt").write_text(hole.wkt)
    common = {"formats": ("geoparquet",), "overlay": False, "region_px": 256}
    infer(slide, tmp_path / "all", tissue_only=False, **common)
    report = infer(
        slide,
        tmp_path / "some",
        tissue_only=False,
        roi=tmp_path / "roi.wkt",
        exclude=tmp_path / "hole.wkt",
        **common,
    )
    assert report.slides[0].regions < 12
    everywhere, inside = (
        Nuclei.read(tmp_path / name / "made.svs" / "nuclei.parquet") for name in ("all", "some")
    )
    wanted = shapely.contains_xy(roi.difference(hole), everywhere.x, everywhere.y)
    assert 50 < wanted.sum() < len(everywhere)
    assert_array_equal(inside.id, everywhere.id[wanted])
    assert_array_equal(inside.vertices, everywhere[wanted].vertices)
    planned = infer(slide, tmp_path / "none", dry_run=True, roi=tmp_path / "roi.wkt", **common)
    assert planned.slides[0].status == "planned"
    assert planned.slides[0].analysed_mm2 > 0
    assert not (tmp_path / "none").exists()
