"""Slides written here open everywhere, in the right colours and size."""

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from nucfast.errors import OutputError
from nucfast.slide import open_slide, write_slide


def picture(height, width):
    rows, cols = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 255 // height, cols * 255 // width, (rows + cols) // 2 % 256], axis=2).astype(
        np.uint8
    )
    image[: height // 4, : width // 4] = 180, 60, 140
    return image


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_openslide_reads_what_was_written(tmp_path, subsampling):
    image = picture(700, 1100)
    path = tmp_path / "a.svs"
    write_slide(path, image, mpp=0.5, subsampling=subsampling)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.properties["openslide.mpp-x"] == "0.5"
        assert slide.properties["openslide.mpp-y"] == "0.5"
        assert slide.properties["openslide.objective-power"] == "20"
        assert slide.level_dimensions == ((1100, 700), (275, 175))
        assert "thumbnail" in slide.associated_images
        out = np.asarray(slide.read_region((0, 0), 0, (1100, 700)).convert("RGB")).astype(int)
        small = np.asarray(slide.read_region((0, 0), 1, (275, 175)).convert("RGB")).astype(int)
    assert np.abs(out - image).mean() < 2
    assert np.abs(out[20:160, 20:250] - [180, 60, 140]).max() <= 4
    assert np.abs(small - np.asarray(Image.fromarray(image).reduce(4))).mean() < 3
    assert [file.name for file in tmp_path.iterdir()] == ["a.svs"]


def test_both_readers_agree(tmp_path):
    from nucfast.slide.vendor import OpenSlideSlide

    path = tmp_path / "a.svs"
    write_slide(path, picture(701, 1103), mpp=0.2527, subsampling="4:4:4")
    with open_slide(path) as slide, OpenSlideSlide(path, mpp=None) as other:
        assert slide.mpp == other.mpp == 0.2527
        assert slide.mpp_source == "Aperio MPP"
        assert slide.levels == other.levels
        assert [level.downsample for level in slide.levels] == [1, 4]
        np.testing.assert_array_equal(slide.read(0, 0, 1103, 701, None), other.read(0, 0, 1103, 701, None))
        a, b = (s.read(0, 0, 275, 175, 4 * 0.2527).astype(int) for s in (slide, other))
        assert np.abs(a - b).max() <= 1


def test_tifffile_sees_the_levels_of_an_svs(tmp_path):
    write_slide(tmp_path / "a.svs", picture(600, 2200), mpp=0.25, tile_px=128)
    with tifffile.TiffFile(tmp_path / "a.svs") as tif:
        assert tif.is_svs
        assert [level.shape for level in tif.series[0].levels] == [
            (600, 2200, 3),
            (150, 550, 3),
            (38, 138, 3),
        ]


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (255, 257), (256, 256), (513, 100)])
def test_any_size(tmp_path, shape):
    image = np.full((*shape, 3), (180, 60, 140), np.uint8)
    write_slide(tmp_path / "a.svs", image, mpp=1.0)
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.mpp == 1.0
        assert slide.dimensions == shape[::-1]
        assert np.abs(slide.read(0, 0, shape[1], shape[0], None).astype(int) - image).max() <= 4


def test_levels_are_those_asked_for(tmp_path):
    write_slide(tmp_path / "a.tif", picture(500, 600), mpp=0.5, tile_px=64, levels=(1, 2, 8))
    with open_slide(tmp_path / "a.tif") as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 8]
    write_slide(tmp_path / "b.tif", picture(500, 600), mpp=0.5, tile_px=64, levels=[1])
    with open_slide(tmp_path / "b.tif") as slide:
        assert len(slide.levels) == 1


def test_a_function_is_read_tile_by_tile(tmp_path):
    image = picture(300, 500)
    calls = []

    def read(x, y, width, height):
        calls.append((x, y, width, height))
        return image[y : y + height, x : x + width]

    write_slide(tmp_path / "a.svs", read, size=(500, 300), mpp=0.5, tile_px=128)
    write_slide(tmp_path / "b.svs", image, mpp=0.5, tile_px=128)
    assert len(calls) == 12
    assert calls[-1] == (384, 256, 116, 44)
    assert (tmp_path / "a.svs").read_bytes() == (tmp_path / "b.svs").read_bytes()


def test_a_slide_is_copied(tmp_path):
    image = picture(300, 500)
    with open_slide(image, mpp=0.5) as slide:
        write_slide(tmp_path / "a.svs", slide, mpp=0.5)
    write_slide(tmp_path / "b.svs", image, mpp=0.5)
    assert (tmp_path / "a.svs").read_bytes() == (tmp_path / "b.svs").read_bytes()


def test_nothing_stays_after_an_error(tmp_path):
    def read(x, y, width, height):
        if y:
            raise RuntimeError("no more pixels")
        return np.zeros((height, width, 3), np.uint8)

    with pytest.raises(RuntimeError, match="no more pixels"):
        write_slide(tmp_path / "a.svs", read, size=(1000, 1000), mpp=0.5)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place(tmp_path):
    with pytest.raises(
        OutputError, match=r"gone/a.svs: cannot be written \(No such file.*\); check the folder"
    ):
        write_slide(tmp_path / "gone" / "a.svs", picture(20, 20), mpp=0.5)


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (np.zeros((9, 9, 3)), {}, TypeError, "image: expected uint8, got float64"),
        (np.zeros((9, 9), np.uint8), {}, ValueError, r"image: expected shape \(H, W, 3\)"),
        ("text", {}, TypeError, "image: expected an array, a slide or a function, got str"),
        (lambda *_: None, {}, ValueError, "size: expected .* got None"),
        (picture(9, 9), {"size": (8, 9)}, ValueError, r"size: expected \(9, 9\) or None, got \(8, 9\)"),
        (picture(9, 9), {"mpp": 0}, ValueError, "mpp: expected a positive number"),
        (picture(9, 9), {"tile_px": 100}, ValueError, "tile_px: expected a positive multiple of 16, got 100"),
        (picture(9, 9), {"quality": 0}, ValueError, "quality: expected 1 to 100, got 0"),
        (
            picture(9, 9),
            {"subsampling": "420"},
            ValueError,
            "subsampling: expected one of 4:4:4, 4:2:2, 4:2:0",
        ),
        (picture(9, 9), {"levels": [2, 4]}, ValueError, "levels: expected 1 and then multiples"),
        (picture(9, 9), {"levels": [1, 3]}, ValueError, "levels: expected 1 and then multiples"),
        (picture(9, 9), {"levels": []}, ValueError, "levels: expected 1 and then multiples"),
    ],
)
def test_bad_arguments(tmp_path, image, options, error, message):
    with pytest.raises(error, match=message):
        write_slide(tmp_path / "a.svs", image, **{"mpp": 0.5, **options})
    assert list(tmp_path.iterdir()) == []
