"""The resolution of a slide: what is believed, in which order, and what is refused."""

import logging
import math

import numpy as np
import pytest
import tifffile

from nucfast.errors import SlideError
from nucfast.slide import open_slide
from nucfast.slide.mpp import (
    Candidate,
    aperio_candidates,
    aperio_fields,
    ome_candidates,
    openslide_candidates,
    resolve_mpp,
    tiff_tag_candidates,
)

IMAGE = np.full((100, 120, 3), 200, np.uint8)


def ome_file(path, *, tile=(64, 64), axes="YXS", **metadata):
    tifffile.imwrite(path, IMAGE, ome=True, photometric="rgb", tile=tile, metadata={"axes": axes, **metadata})


def plain_file(path, *, resolution=None, unit="inch", description=None, tile=(64, 64)):
    tifffile.imwrite(
        path,
        IMAGE,
        photometric="rgb",
        tile=tile,
        resolution=resolution,
        resolutionunit=unit,
        description=description,
        metadata=None,
    )


@pytest.mark.parametrize("tile", [(64, 64), None])
@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [(0.25, "µm", 0.25), (0.5, None, 0.5), (250, "nm", 0.25), (0.0005, "mm", 0.5), (5e-5, "cm", 0.5)],
)
def test_ome_physical_size(tmp_path, size, unit, mpp, tile):
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    ome_file(tmp_path / "a.ome.tif", tile=tile, PhysicalSizeX=size, PhysicalSizeY=size, **units)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert slide.mpp == pytest.approx(mpp)
        assert slide.mpp_source == "OME PhysicalSizeX"
        assert slide.read(0, 0, 9, 9, 0.5)[3, 3].tolist() == [200, 200, 200]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "resolution unknown"),
        (
            {"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0},
            "OME PhysicalSizeX: 1 um per pixel is what writers put",
        ),
        ({"PhysicalSizeX": 264.6, "PhysicalSizeY": 264.6}, "264.6 um per pixel is outside 0.05 to 20"),
        ({"PhysicalSizeX": 2, "PhysicalSizeXUnit": "pixel"}, "2 pixel is not a length"),
    ],
)
def test_ome_that_says_nothing(tmp_path, metadata, reason):
    path = tmp_path / "a.ome.tif"
    ome_file(path, **metadata)
    with pytest.raises(
        SlideError, match=r"a.ome.tif: resolution unknown.*; pass --mpp \(0.25 for 40x"
    ) as error:
        open_slide(path)
    assert reason in str(error.value)
    assert open_slide(path, mpp=0.3).mpp_source == "flag"


def test_ome_of_one_size_axis_and_magnification():
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument>'
        '<Objective NominalMagnification="20"/></Instrument>'
        '<Image><Pixels SizeX="9" SizeY="9" PhysicalSizeX="9"/></Image>'
        '<Image><Pixels SizeX="120" SizeY="100" PhysicalSizeY="0.4"/></Image></OME>'
    )
    candidates, power = ome_candidates(xml, width=120, height=100)
    assert [(c.x, c.y) for c in candidates] == [(0.4, 0.4)]
    assert power == 20
    assert ome_candidates("<OME>", width=1, height=1)[0][0].rejection().startswith("not valid XML")


def test_unit_angstrom_and_metres():
    for size, unit in [("2500", "Å"), ("2.5e-7", "m"), ("0.25", "\u03bcm")]:
        xml = f'<OME><Pixels SizeX="1" SizeY="1" PhysicalSizeX="{size}" PhysicalSizeXUnit="{unit}"/></OME>'
        assert ome_candidates(xml, width=1, height=1)[0][0].x == pytest.approx(0.25)


def test_ome_pyramid_in_subifds_is_read(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(
            IMAGE,
            tile=(64, 64),
            photometric="rgb",
            subifds=1,
            metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
        )
        tif.write(IMAGE[::4, ::4], tile=(64, 64), photometric="rgb", subfiletype=1)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 4]


def test_ome_planar(tmp_path):
    path = tmp_path / "a.ome.tif"
    image = np.arange(100 * 120 * 3, dtype=np.uint32).reshape(3, 100, 120).astype(np.uint8)
    tifffile.imwrite(
        path,
        image,
        ome=True,
        photometric="rgb",
        planarconfig="separate",
        tile=(32, 32),
        metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 120, 100, 0.5), np.moveaxis(image, 0, -1))


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_tiff_resolution_tag(tmp_path, tile):
    for name, resolution, unit in [("cm", 1e4 / 0.25, "centimeter"), ("inch", 25400 / 0.25, "inch")]:
        path = tmp_path / f"{name}.tif"
        plain_file(path, resolution=(resolution, resolution), unit=unit, tile=tile)
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx(0.25, rel=1e-6)
            assert slide.mpp_source == "TIFF resolution tag"


@pytest.mark.parametrize(
    ("resolution", "unit", "reason"),
    [
        ((72, 72), "inch", "353 um per pixel is outside"),
        ((96, 96), "inch", "265 um per pixel is outside"),
        ((300, 300), "inch", "84.7 um per pixel is outside"),
        ((10000, 10000), "centimeter", "1 um per pixel is what writers put"),
        ((40000, 40000), "none", "no unit"),
        ((0, 0), "inch", "no unit"),
        (None, "inch", ""),
    ],
)
def test_tiff_tags_that_are_no_resolution(tmp_path, resolution, unit, reason):
    plain_file(tmp_path / "a.tif", resolution=resolution, unit=unit)
    with pytest.raises(SlideError, match=r"a.tif: resolution unknown.*; pass --mpp") as error:
        open_slide(tmp_path / "a.tif")
    assert reason.split()[0:1] == [] or reason.split()[1] in str(error.value)


def test_aperio_beats_the_tag_and_the_flag_beats_all(tmp_path):
    path = tmp_path / "a.svs"
    plain_file(
        path,
        resolution=(1e4 / 0.3, 1e4 / 0.3),
        unit="centimeter",
        description="Aperio x|AppMag = 40|MPP = 0.2527",
    )
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.2527, "openslide.mpp-x")
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.5, "flag")


@pytest.mark.parametrize(("power", "mpp"), [(40, 0.25), (20, 0.5)])
def test_objective_power_warns(tmp_path, caplog, power, mpp):
    plain_file(tmp_path / "a.svs", description=f"Aperio x|AppMag = {power}")
    with caplog.at_level(logging.WARNING, logger="nucfast"), open_slide(tmp_path / "a.svs") as slide:
        assert slide.mpp == mpp
        assert slide.mpp_source == f"objective power {power}x"
    assert "pass --mpp if it is wrong" in caplog.text


def test_aperio_fields():
    fields = aperio_fields("Aperio Image Library v1\r\n1x1 [0,0]|AppMag = 20|MPP = 0.4990|Filename = a=b|odd")
    assert fields == {"AppMag": "20", "MPP": "0.4990", "Filename": "a=b"}
    assert [candidate.x for candidate in aperio_candidates(fields)] == [0.499]
    assert aperio_fields("ImageJ=1|MPP = 0.5") == {}
    assert aperio_candidates({"MPP": "unknown"}) == []


def test_openslide_properties():
    assert openslide_candidates({}) == []
    assert openslide_candidates({"openslide.mpp-x": "0.25"}) == [Candidate("openslide.mpp-x", 0.25)]
    assert openslide_candidates({"openslide.mpp-y": "0.25"}) == [Candidate("openslide.mpp-y", 0.25)]
    both = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}
    assert openslide_candidates(both) == [Candidate("openslide.mpp-x", 0.25, 0.26)]


def test_anisotropic_pixels():
    close = resolve_mpp("a.svs", flag=None, candidates=[Candidate("tag", 0.25, 0.252)])
    assert close.mpp == pytest.approx(math.sqrt(0.25 * 0.252))
    with pytest.raises(
        SlideError, match=r"a.svs: pixels are not square \(0.25 x 0.3 um, tag\); .*pass --mpp"
    ):
        resolve_mpp("a.svs", flag=None, candidates=[Candidate("tag", 0.25, 0.3)])
    assert resolve_mpp("a.svs", flag=0.25, candidates=[Candidate("tag", 0.25, 0.3)]).source == "flag"


def test_the_first_credible_candidate_wins():
    candidates = [Candidate("a", 0.0), Candidate("b", math.nan), Candidate("c", 0.4), Candidate("d", 0.5)]
    assert resolve_mpp("x", flag=None, candidates=candidates).source == "c"
    # A scanner that writes 1.0 into its own field means it.
    assert resolve_mpp("x", flag=None, candidates=[Candidate("Aperio MPP", 1.0)]).mpp == 1.0
    assert tiff_tag_candidates(10000, 10000, 3)[0].rejection() is not None


@pytest.mark.parametrize("power", [0.0, 1000.0, None])
def test_no_credible_power(power):
    with pytest.raises(SlideError, match="x: resolution unknown; pass --mpp"):
        resolve_mpp("x", flag=None, candidates=[], objective_power=power)
