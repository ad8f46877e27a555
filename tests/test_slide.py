"""Slides: what every backend shares, and opening each kind of file."""

import os
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

import reference
from nucfast.errors import SlideError
from nucfast.slide import Slide, find_slides, open_slide, tissue_mask, write_slide
from nucfast.slide.base import DAMAGE_PX, make_levels
from nucfast.slide.jpeg import reduced_jpeg
from nucfast.slide.mpp import Resolution
from nucfast.slide.tiff import TiffSlide
from nucfast.slide.vendor import OpenSlideSlide


def smooth(height, width, *, period=5):
    """Colours that vary over a few pixels, as a slide's do; noise would test the filter and not the phase."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (height // period + 2, width // period + 2, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


class PyramidSlide(Slide):
    """Levels in memory, with a record of what was read."""

    def __init__(self, levels, *, mpp=0.25):
        super().__init__(
            path=None,
            levels=make_levels([(level.shape[1], level.shape[0]) for level in levels]),
            resolution=Resolution(mpp, "flag"),
            properties={},
        )
        self.pixels = levels
        self.reads = []

    def _release(self):
        self.pixels = []

    def read_level(self, level, x, y, width, height):
        extent = self.levels[level]
        assert 0 <= x < x + width <= extent.width
        assert 0 <= y < y + height <= extent.height
        self.reads.append((level, width, height))
        return self.pixels[level][y : y + height, x : x + width].copy()


def pyramid(image, factors=(1, 4, 16)):
    return [np.asarray(Image.fromarray(image).reduce(factor)) if factor > 1 else image for factor in factors]


# --- reading ---


def test_import_stays_light():
    code = (
        "import sys, nucfast.slide\n"
        "print(sorted({'openslide', 'tifffile', 'imagecodecs', 'PIL', 'torch', 'cv2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_read_at_scale_one_is_the_array_with_white_outside():
    image = smooth(30, 40)
    with open_slide(image, mpp=0.5) as slide:
        assert slide.dimensions == (40, 30)
        assert slide.bounds == (0, 0, 40, 30)
        assert (slide.mpp, slide.mpp_source, slide.name, slide.path) == (0.5, "flag", "array", None)
        out = slide.read(-3, -5, 50, 60, 0.5)
    expected = np.full((60, 50, 3), 255, np.uint8)
    expected[5:35, 3:43] = image
    assert_array_equal(out, expected)
    assert out.flags.writeable


def test_read_far_outside_is_white_and_reads_nothing():
    slide = PyramidSlide([smooth(20, 20)])
    for x, y in [(1e9, 0), (-1e9, 3), (0, 20), (-10, 0)]:
        assert slide.read(x, y, 10, 7, 0.25).shape == (7, 10, 3)
        assert (slide.read(x, y, 10, 7, 0.25) == 255).all()
    assert slide.reads == []
    assert slide.read(0, 0, 0, 5, 0.25).shape == (5, 0, 3)


def test_reading_never_aliases_the_array():
    image = smooth(8, 8)
    before = image.copy()
    slide = open_slide(image, mpp=0.5)
    slide.read(0, 0, 8, 8, 0.5)[...] = 0
    assert_array_equal(image, before)


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_integer_scale_is_the_exact_average(factor):
    image = smooth(40, 50)
    slide = open_slide(image, mpp=0.25)
    out = slide.read(-factor, 1, 9, 5, 0.25 * factor)
    expected = reference.area_average(image, -factor, 1, 9, 5, factor)
    assert np.abs(out - expected).max() < 0.6  # Pillow multiplies by a rounded reciprocal


@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(1.002, 1), (1.02, 1), (1.3, 1.5), (1.6, 1.5), (1.98, 1.5), (2.057, 1.5), (3.4, 3)],
)
def test_other_scales_are_near_the_average(scale, tolerance):
    image = smooth(60, 60)
    out = open_slide(image, mpp=0.25).read(5.3, 4.8, 12, 11, 0.25 * scale)
    expected = reference.area_average(image, 5.3, 4.8, 12, 11, scale)
    assert np.abs(out - expected).mean() < tolerance


def test_a_scale_within_three_percent_of_one_is_not_snapped():
    """A bright column at the far end must land where the scale says, not where a copy would leave it."""
    image = np.zeros((4, 1000, 3), np.uint8)
    image[:, 900] = 255
    out = open_slide(image, mpp=0.5).read(0, 0, 980, 4, 0.51)
    assert abs(int(out[1, :, 0].argmax()) - 900.5 / 1.02) <= 1


def test_upsampling_interpolates():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:] = 200
    out = open_slide(image, mpp=0.5).read(1, 1, 8, 4, 0.125)[0, :, 0].astype(int)
    assert (np.diff(out) >= 0).all()
    assert len(set(out.tolist())) > 4
    assert abs(out[3] + out[4] - 200) <= 1


@settings(max_examples=40, deadline=None)
@given(
    x=st.integers(-20, 60),
    y=st.integers(-20, 60),
    scale=st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12]),
    cut=st.tuples(st.integers(1, 29), st.integers(1, 23)),
)
def test_windows_agree_exactly_at_integer_scales(x, y, scale, cut):
    slide = PyramidSlide(pyramid(smooth(140, 180), (1, 4)))
    whole = slide.read(x, y, 30, 24, 0.25 * scale)
    assert_array_equal(whole, assembled(slide, x, y, 30, 24, scale, cut))


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(-20, 60),
    y=st.floats(-20, 60),
    scale=st.floats(0.3, 9),
    cut=st.tuples(st.integers(1, 29), st.integers(1, 23)),
)
def test_windows_agree_within_a_grey_level_at_any_scale(x, y, scale, cut):
    slide = PyramidSlide(pyramid(smooth(140, 180), (1, 4)))
    whole = slide.read(x, y, 30, 24, 0.25 * scale).astype(int)
    assert np.abs(whole - assembled(slide, x, y, 30, 24, scale, cut)).max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    col=st.integers(-9, 150),
    row=st.integers(-9, 150),
    ratio=st.sampled_from([0.5 / 0.23, 0.5 / 0.2425, 0.5 / 0.26, 0.5 / 0.45, 0.7]),
    source_px=st.sampled_from([7, 40, 256]),
    cut=st.tuples(st.integers(1, 39), st.integers(1, 33)),
)
def test_windows_on_the_grid_agree_exactly_at_any_scale(col, row, ratio, source_px, cut):
    """The pipeline's windows: what they hold does not depend on how the slide is cut."""
    slide = PyramidSlide(pyramid(smooth(340, 380), (1, 4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nucfast.slide.base.MAX_SOURCE_PX", 4 * source_px)  # large areas are read in parts
        patch.setattr("nucfast.slide.base.GRID_SOURCE_PX", source_px)
        whole = slide.read_scaled(col * ratio, row * ratio, 40, 34, ratio)
        assert_array_equal(whole, assembled(slide, col * ratio, row * ratio, 40, 34, ratio, cut))


@pytest.mark.parametrize("mpp", [0.23, 0.2425])
def test_other_resolutions_are_averaged_by_area(slides_dir, mpp):
    """Against exact averages over the area of each pixel, by integrals; plain interpolation is far off."""
    with open_slide(slides_dir / "CMU-1-Small-Region.svs") as real:
        image = real.read(900, 900, 600, 500, None)
    scale = 0.5 / mpp
    height, width = int(500 / scale), int(600 / scale)

    def integrals(values, count):
        sums = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
        at = np.arange(count + 1) * scale
        low = np.minimum(at.astype(int), len(values) - 1)
        return np.diff(sums[low] + (at - low)[:, None, None] * values[low], axis=0) / scale

    exact = integrals(image.astype(float), height).swapaxes(0, 1)
    exact = integrals(exact, width).swapaxes(0, 1)
    found = open_slide(image, mpp=mpp).read(0, 0, width, height, 0.5).astype(float)
    nearest = image[(np.arange(height) * scale + scale / 2).astype(int)][
        :, (np.arange(width) * scale + scale / 2).astype(int)
    ]
    error = np.abs(found - exact)[2:-2, 2:-2].mean()
    assert error < 1.5
    assert error < 0.25 * np.abs(nearest - exact)[2:-2, 2:-2].mean()
    assert abs(found.mean() - exact.mean()) < 0.2


def assembled(slide, x, y, width, height, scale, cut):
    col, row = cut
    parts = [
        [
            slide.read_scaled(x + left * scale, y + top * scale, right - left, bottom - top, scale)
            for left, right in [(0, col), (col, width)]
        ]
        for top, bottom in [(0, row), (row, height)]
    ]
    return np.concatenate([np.concatenate(line, axis=1) for line in parts])


@pytest.mark.parametrize("scale", [1.0, 1.37, 3.0])
def test_windows_larger_than_a_block_have_no_seams(monkeypatch, scale):
    slide = PyramidSlide([smooth(90, 120)])
    whole = slide.read(-4, 3, 60, 50, 0.25 * scale).astype(int)
    monkeypatch.setattr("nucfast.slide.base.MAX_SOURCE_PX", 25)
    slide.reads.clear()
    blocks = slide.read(-4, 3, 60, 50, 0.25 * scale)
    assert max(max(width, height) for _, width, height in slide.reads) <= 25 + 8
    assert np.abs(whole - blocks).max() <= (0 if scale.is_integer() else 1)


@pytest.mark.parametrize(
    ("scale", "level"), [(0.5, 0), (1, 0), (3.9, 0), (3.97, 1), (4, 1), (15, 1), (16, 2), (100, 2)]
)
def test_the_coarsest_level_with_the_detail_is_read(scale, level):
    slide = PyramidSlide(pyramid(smooth(320, 320)))
    slide.read(0, 0, 2, 2, 0.25 * scale)
    assert {read[0] for read in slide.reads} == {level}


def test_levels_hold_the_same_picture():
    image = smooth(203, 199, period=100)
    fine, coarse = PyramidSlide([image]), PyramidSlide(pyramid(image))
    for scale in (4.0, 5.5, 16.0):
        a, b = (slide.read(16, 32, 9, 9, 0.25 * scale).astype(int) for slide in (fine, coarse))
        assert np.abs(a - b).max() <= (1 if scale.is_integer() else 3)


def test_rounded_level_sizes_keep_integer_downsamples():
    levels = make_levels([(2221, 2967), (555, 741), (300, 401), (139, 186)])
    assert [levels[index].downsample for index in (0, 1, 3)] == [1, 4, 16]
    assert levels[2].downsample == pytest.approx((2221 / 300 + 2967 / 401) / 2)
    assert make_levels([(199, 203), (13, 13)])[1].downsample == 16


def test_thumbnail_keeps_the_shape_and_never_enlarges():
    slide = PyramidSlide(pyramid(smooth(160, 320)))
    assert slide.thumbnail(100).shape == (50, 100, 3)
    assert {read[0] for read in slide.reads} == {0}
    assert slide.thumbnail(1000).shape == (160, 320, 3)
    assert PyramidSlide([smooth(1, 300)]).thumbnail(10).shape == (1, 10, 3)
    with pytest.raises(ValueError, match="max_px: expected at least 1, got 0"):
        slide.thumbnail(0)


def test_reads_from_many_threads_agree(slides_dir):
    with open_slide(slides_dir / "CMU-1-Small-Region.svs") as slide:
        windows = [(50 * i, 37 * i) for i in range(24)]
        expected = [slide.read(x, y, 100, 100, 0.6) for x, y in windows]
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda at: slide.read(*at, 100, 100, 0.6), windows))
    for a, b in zip(expected, results, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, -1, 5, 0.5), "width, height: expected 0 or more pixels, got -1, 5"),
        ((0, 0, 5, 5, 0), "mpp: expected a positive number, got 0"),
        ((0, 0, 5, 5, float("nan")), "mpp: expected a positive number, got nan"),
        ((float("inf"), 0, 5, 5, 0.5), "x, y: expected finite numbers, got inf, 0"),
    ],
)
def test_bad_reads(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_slide(smooth(9, 9), mpp=0.5).read(*arguments)


# --- arrays ---


def test_array_without_mpp():
    slide = open_slide(smooth(20, 30))
    assert slide.mpp is None
    assert slide.read(0, 0, 30, 20, None).shape == (20, 30, 3)
    assert slide.thumbnail(15).shape == (10, 15, 3)
    with pytest.raises(SlideError, match=r"array: resolution unknown; pass mpp .*0.25 for 40x"):
        slide.read(0, 0, 5, 5, 0.5)


def test_gray_and_transparent_arrays_become_rgb():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert_array_equal(open_slide(gray).read(0, 0, 4, 3, None), np.repeat(gray[..., None], 3, axis=2))
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = 10, 20, 30, 255
    rgba[0, 1] = 10, 20, 30, 128
    out = open_slide(rgba).read(0, 0, 2, 2, None)
    assert out[0, 0].tolist() == [10, 20, 30]
    assert out[0, 1].tolist() == [132, 137, 142]
    assert out[1, 1].tolist() == [255, 255, 255]


def test_arrays_may_be_views_and_read_only():
    image = smooth(20, 30)
    image.flags.writeable = False
    view = image[::-2, ::3]
    assert_array_equal(open_slide(view).read(0, 0, 10, 10, None), view)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((3, 3, 3)), TypeError, "source: expected uint8, got float64"),
        (np.zeros((3, 3), np.uint16), TypeError, "source: expected uint8, got uint16"),
        ([[1]], TypeError, "source: expected a path or a uint8 array, got list"),
        (np.zeros((3, 3, 2), np.uint8), ValueError, r"source: expected shape .* got \(3, 3, 2\)"),
        (np.zeros((0, 3, 3), np.uint8), ValueError, r"source: expected shape .* got \(0, 3, 3\)"),
    ],
)
def test_bad_arrays(array, error, message):
    with pytest.raises(error, match=message):
        open_slide(array)


def test_bad_flag():
    with pytest.raises(ValueError, match="mpp: expected a positive number of um per pixel, got -1"):
        open_slide(smooth(3, 3), mpp=-1)


# --- plain images ---


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
def test_plain_images(tmp_path, suffix):
    image = smooth(31, 45)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(image).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    with open_slide(path, mpp=0.5) as slide:
        assert slide.dimensions == (45, 31)
        assert slide.name == path.name
        assert_array_equal(slide.read(0, 0, 45, 31, 0.5), image)


def test_jpeg(tmp_path):
    image = smooth(64, 64)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    out = open_slide(tmp_path / "a.jpg", mpp=0.25).read(0, 0, 64, 64, None)
    assert np.abs(out.astype(int) - image).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_modes_of_png(tmp_path, mode):
    image = Image.fromarray(smooth(20, 30)).convert(mode)
    image.save(tmp_path / "a.png")
    assert_array_equal(open_slide(tmp_path / "a.png", mpp=1).read(0, 0, 30, 20, None), image.convert("RGB"))


def test_transparent_palette(tmp_path):
    image = Image.fromarray(smooth(20, 30)).convert("P")
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    out = open_slide(tmp_path / "a.png", mpp=1).read(0, 0, 30, 20, None)
    assert out[0, 0].tolist() == [255, 255, 255]


def png16(path, mode):
    """A 16-bit PNG; Pillow writes no RGB ones."""
    import imagecodecs

    shape = (8, 9) if mode == "gray" else (8, 9, 3)
    path.write_bytes(imagecodecs.png_encode(np.full(shape, 40000, np.uint16)))


@pytest.mark.parametrize("mode", ["gray", "rgb"])
def test_16_bit_png_is_refused(tmp_path, mode):
    path = tmp_path / "deep.png"
    png16(path, mode)
    with pytest.raises(SlideError, match=r"deep.png: .*bits per channel.*; convert it to 8-bit RGB"):
        open_slide(path, mpp=0.5)


def test_cmyk_is_refused(tmp_path):
    Image.new("CMYK", (9, 9)).save(tmp_path / "a.jpg")
    with pytest.raises(SlideError, match=r"a.jpg: CMYK colours.*; convert it to 8-bit RGB"):
        open_slide(tmp_path / "a.jpg", mpp=0.5)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_print_resolution_is_not_mpp(tmp_path, suffix):
    # 50800 dpi would be 0.5 um; it still is a print resolution.
    for dpi in (72, 300, 50800):
        path = tmp_path / f"{dpi}{suffix}"
        Image.fromarray(smooth(9, 9)).save(path, dpi=(dpi, dpi))
        with pytest.raises(
            SlideError, match=rf"resolution unknown \(.*{dpi} dpi is no mpp\); pass --mpp \(0.25"
        ):
            open_slide(path)


def test_bombs_do_not_open(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (30000, 20000)).save(path)
    with pytest.raises(
        SlideError, match=r"a.png: 30000 x 20000 pixels in one piece .* convert it to a tiled"
    ):
        open_slide(path, mpp=0.5)


def test_pillows_own_limit_does_not_apply(tmp_path, monkeypatch):
    Image.fromarray(smooth(30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_slide(tmp_path / "a.png", mpp=0.5).dimensions == (30, 30)


# --- damaged and foreign files ---


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert ";" in text
    return text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.txt", b"not a slide at all", "not a slide or image"),
        ("broken.svs", b"IJrEr1vVVJCw" * 80, "not a slide or image"),
        ("empty.svs", b"", "empty file"),
        ("head.tif", b"II*\0\x08\0\0\0", "truncated TIFF"),
        ("head.svs", b"II*\0\xff\xff\0\0" + bytes(50), "truncated TIFF"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        ("noise.jpg", b"\xff\xd8\xff" + bytes(100), "damaged JPEG"),
        ("noise.webp", b"RIFF\0\0\0\0WEBP" + bytes(20), "damaged WEBP"),
        ("x.mrxs", b"", "empty file"),
    ],
)
def test_files_that_are_no_slides(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SlideError) as error:
        open_slide(path, mpp=0.5)
    assert one_line(error).startswith(f"{path}: {reason}")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(SlideError, match=r"gone.svs: no such file; check the path"):
        open_slide(tmp_path / "gone.svs")
    with pytest.raises(SlideError, match=r": no slide in this folder; name the folder or the file"):
        open_slide(tmp_path)
    (tmp_path / "a.svs").touch()
    with pytest.raises(SlideError, match=r": is a folder; name a file in it"):
        open_slide(tmp_path)


def test_a_pipe_does_not_hang(tmp_path):
    for name in ("a.svs", "a.dcm", "a.vms"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(SlideError, match=rf"{name}: is no file but a device, pipe or socket; name a"):
            open_slide(tmp_path / name)
    assert len(find_slides([tmp_path])) == 3


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
def test_truncated_images(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(smooth(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SlideError) as error:
        open_slide(path, mpp=0.5)
    assert one_line(error).startswith(f"{path}: ")


# --- TIFF ---

TILE = (64, 48)


def write_pyramid(path, image, *, subifds=True, **options):
    """A pyramid 1, 2, 6 as tifffile's writer lays it out; returns the levels."""
    levels = [image, image[::2, ::2], image[::6, ::6]]
    with tifffile.TiffWriter(path, ome=options.pop("ome", False)) as tif:
        tif.write(levels[0], tile=TILE, subifds=2 if subifds else 0, **options)
        options.pop("metadata", None)
        for level in levels[1:]:
            tif.write(level, tile=TILE, subfiletype=1, metadata=None, **options)
    return levels


@pytest.mark.parametrize("subifds", [True, False])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "webp", "jpeg2000"])
def test_tiled_pyramid(tmp_path, compression, subifds):
    path = tmp_path / "a.tif"
    lossless = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    levels = write_pyramid(
        path, smooth(301, 250), subifds=subifds, compression=compression, photometric="rgb", **lossless
    )
    with open_slide(path, mpp=0.5) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(250, 301), (125, 151), (42, 51)]
        assert [level.downsample for level in slide.levels] == [1, 2, 6]
        for index, level in enumerate(levels):
            height, width, _ = level.shape
            assert_array_equal(slide.read_level(index, 0, 0, width, height), level)
            assert_array_equal(slide.read_level(index, 7, 9, 33, 41), level[9:50, 7:40])


def test_planar_gray_and_inverted(tmp_path):
    image = smooth(100, 130)
    tifffile.imwrite(
        tmp_path / "planar.tif",
        np.moveaxis(image, -1, 0),
        photometric="rgb",
        planarconfig="separate",
        tile=TILE,
    )
    tifffile.imwrite(
        tmp_path / "strips.tif", np.moveaxis(image, -1, 0), photometric="rgb", planarconfig="separate"
    )
    tifffile.imwrite(tmp_path / "gray.tif", image[..., 0], tile=TILE)
    tifffile.imwrite(tmp_path / "white.tif", image[..., 0], tile=TILE, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "strip-white.tif", image[..., 0], photometric="miniswhite")
    gray = np.repeat(image[..., :1], 3, axis=2)
    expected = {
        "planar": image,
        "strips": image,
        "gray": gray,
        "white": 255 - gray,
        "strip-white": 255 - gray,
    }
    for name, pixels in expected.items():
        with open_slide(tmp_path / f"{name}.tif", mpp=0.5) as slide:
            assert_array_equal(slide.read(0, 0, 130, 100, None), pixels, err_msg=name)


@pytest.mark.parametrize("tile", [TILE, None])
def test_alpha_in_tiff(tmp_path, tile):
    rgba = np.zeros((80, 90, 4), np.uint8)
    rgba[:40] = 100, 0, 50, 128
    for kind, expected in [
        ("unassalpha", [177, 127, 152]),
        ("assocalpha", [227, 127, 177]),
        ("unspecified", [100, 0, 50]),
    ]:
        path = tmp_path / f"{kind}.tif"
        tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=[kind], tile=tile)
        with open_slide(path, mpp=0.5) as slide:
            out = slide.read(0, 0, 90, 80, None)
        assert out[0, 0].tolist() == expected
        assert out[79, 0].tolist() == ([0, 0, 0] if kind == "unspecified" else [255, 255, 255])


@pytest.mark.parametrize(("stored", "photometric"), [("rgb", 2), ("ycbcr", 6)])
def test_jpeg_tiles_have_the_right_colours(tmp_path, stored, photometric):
    image = smooth(200, 200)
    image[:100] = 200, 30, 120
    path = tmp_path / "a.tif"
    args = {"level": 95, "outcolorspace": stored}
    tifffile.imwrite(
        path,
        image,
        tile=(64, 64),
        photometric="rgb",
        compression="jpeg",
        compressionargs=args,
        subsampling=(1, 1),
    )
    with tifffile.TiffFile(path) as tif:
        assert tif.pages[0].photometric == photometric
    out = open_slide(path, mpp=0.5).read(0, 0, 200, 200, None)
    assert np.abs(out[:64].astype(int) - image[:64]).max() <= 4


@pytest.mark.parametrize("stored", ["rgb", "ycbcr"])
@pytest.mark.parametrize("factor", [2, 4, 6, 8, 16])
def test_reduced_jpeg_tiles_are_near_the_average(tmp_path, stored, factor):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        smooth(400, 480, period=200),
        tile=(96, 96),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 90, "outcolorspace": stored},
        subsampling=(2, 2) if stored == "ycbcr" else (1, 1),
    )
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        data = path.read_bytes()[page.dataoffsets[0] :][: page.databytecounts[0]]
        tile = reduced_jpeg(page).decode(data, factor)
    assert tile.shape == (96 // factor, 96 // factor, 3)
    with open_slide(path, mpp=0.25) as slide:
        whole = slide.read(0, 0, 480, 400, None)
        out = slide.read(0, 0, 480 // factor, 400 // factor, 0.25 * factor)
        expected = np.asarray(Image.fromarray(whole).reduce(factor))[: 400 // factor, : 480 // factor]
        assert np.abs(out.astype(int) - expected).mean() < 1
        # The same pixels from another window, and beside the slide what the plain way gives.
        around = slide.read(-2 * factor, -3 * factor, 480 // factor + 5, 400 // factor + 7, 0.25 * factor)
        assert_array_equal(around[3 : 3 + out.shape[0], 2 : 2 + out.shape[1]], out)
        assert (around[:3] == 255).all()
        assert (around[:, -3:] == 255).all()


def write_aperio_jpeg2000(path, image, compression):
    """A slide in Aperio's layout: 33003 stores YCbCr as it is, 33005 has the codec transform the colours."""

    def tiles():
        for y in range(0, image.shape[0], 128):
            for x in range(0, image.shape[1], 128):
                tile = image[y : y + 128, x : x + 128]
                tile = np.pad(tile, ((0, 128 - tile.shape[0]), (0, 128 - tile.shape[1]), (0, 0)), mode="edge")
                if compression == 33003:
                    tile = np.asarray(Image.fromarray(tile).convert("YCbCr"))
                yield imagecodecs.jpeg2k_encode(
                    tile, level=45, codecformat="j2k", reversible=False, mct=compression == 33005
                )

    height, width, _ = image.shape
    tifffile.imwrite(
        path,
        tiles(),
        shape=image.shape,
        dtype=np.uint8,
        tile=(128, 128),
        photometric="rgb",
        compression=compression,
        description=f"Aperio Image Library v11\r\n{width}x{height} [0,0 {width}x{height}] (128x128) "
        "J2K/KDU Q=70|AppMag = 40|MPP = 0.2527",
        metadata=None,
        software=False,
    )


@pytest.mark.parametrize("compression", [33003, 33005])
def test_aperio_jpeg2000_equals_openslide(tmp_path, slides_dir, compression):
    with open_slide(slides_dir / "CMU-1-Small-Region.svs") as real:
        image = real.read(900, 900, 300, 270, None)
    path = tmp_path / "a.svs"
    write_aperio_jpeg2000(path, image, compression)
    with openslide.OpenSlide(path) as theirs, open_slide(path) as ours:
        assert theirs.properties["openslide.vendor"] == "aperio"
        assert isinstance(ours, TiffSlide)
        assert (ours.mpp, ours.dimensions) == (0.2527, theirs.dimensions)
        expected = np.asarray(theirs.read_region((0, 0), 0, (300, 270)).convert("RGB"))
        whole = ours.read(0, 0, 300, 270, None)
        assert np.abs(whole.astype(int) - expected).max() <= (1 if compression == 33003 else 0)
        assert np.abs(whole.astype(int) - image).mean() < 3
        half = ours.read(0, 0, 150, 135, 2 * ours.mpp)
        assert_array_equal(half, np.asarray(Image.fromarray(whole).reduce(2)))


def test_aperio_jpeg2000_with_smaller_colours_is_left_to_openslide(tmp_path):
    path = tmp_path / "a.svs"
    write_aperio_jpeg2000(path, smooth(100, 100), 33003)
    data = path.read_bytes()
    full, halved = b"\0\3" + 3 * b"\x07\1\1", b"\0\3\x07\1\1" + 2 * b"\x07\2\1"
    assert data.count(full) == 1
    path.write_bytes(data.replace(full, halved))
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideSlide)


def test_damaged_aperio_jpeg2000_is_an_error_when_read(tmp_path):
    path = tmp_path / "a.svs"
    write_aperio_jpeg2000(path, smooth(100, 300), 33005)
    data = bytearray(path.read_bytes())
    second = data.index(b"\xff\x4f\xff\x51", data.index(b"\xff\x4f\xff\x51") + 4)
    data[second + 4 : second + 300] = bytes(296)
    path.write_bytes(data)
    with open_slide(path) as slide:
        slide.read(0, 0, 100, 100, None)
        with pytest.raises(SlideError, match=r"a.svs: tile 1 cannot be decoded .* copy the file again"):
            slide.read(0, 0, 200, 100, None)


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_averages_of_tiles_equal_those_of_the_whole(tmp_path, factor):
    path, image = tmp_path / "a.tif", smooth(131, 170)
    tifffile.imwrite(path, image, tile=TILE, photometric="rgb", compression="zlib")
    with open_slide(path, mpp=0.25) as slide, open_slide(image, mpp=0.25) as plain:
        for x, y in [(0, 0), (6 * factor, 7 * factor), (-factor, -2 * factor), (1, 3)]:
            window = (x, y, 200 // factor, 150 // factor, 0.25 * factor)
            assert_array_equal(slide.read(*window), plain.read(*window))


def test_missing_tile_is_white(tmp_path):
    path = tmp_path / "a.tif"
    image = smooth(128, 128)
    image[:64, 64:] = 0
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tif:
        sizes = list(tif.pages[0].databytecounts)
        tif.pages[0].tags["TileByteCounts"].overwrite([sizes[0], 0, *sizes[2:]])
    out = open_slide(path, mpp=0.5).read(0, 0, 128, 128, None)
    image[:64, 64:] = 255
    assert_array_equal(out, image)


def test_time_goes_by_what_is_stored_and_not_by_the_size(tmp_path):
    """200,000 pixels on each side, of which one tile is stored."""
    path, image, side = tmp_path / "sparse.tif", smooth(1024, 1024, period=500) // 2, 200_000
    across = -(-side // 1024)
    tifffile.imwrite(
        path,
        (zlib.compress(image) if index == 7 * across + 5 else b"" for index in range(across**2)),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(1024, 1024),
        photometric="rgb",
        compression="zlib",
        metadata=None,
    )
    began = time.process_time()
    with open_slide(path, mpp=0.25) as slide:
        for scale in (203.3, 200.0, 256.0):  # all ways of averaging
            width = int(side / scale)
            out = slide.read_scaled(0, 0, width, width, scale)
            dark = np.argwhere(out.min(axis=2) < 250)
            assert np.abs(dark.min(axis=0) * scale - (7 * 1024, 5 * 1024)).max() < 2 * scale
            assert np.abs((dark.max(axis=0) + 1) * scale - (8 * 1024, 6 * 1024)).max() < 2 * scale
        assert tissue_mask(slide, mpp=50).any_in(5 * 1024, 7 * 1024, 1024, 1024)
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("array", "options", "reason"),
    [
        (np.zeros((90, 90), np.uint16), {}, "16-bit integer pixels"),
        (np.zeros((90, 90, 3), np.uint16), {"photometric": "rgb", "tile": TILE}, "16-bit integer pixels"),
        (np.zeros((90, 90), np.float32), {}, "32-bit float pixels"),
        (np.zeros((90, 90), bool), {}, "1-bit integer pixels"),
        (
            np.zeros((90, 90, 4), np.uint8),
            {"photometric": "separated"},
            "CMYK colours with 4 samples per pixel",
        ),
        (np.zeros((5, 90, 90), np.uint8), {"photometric": "minisblack"}, "5 images of 90 x 90"),
        (
            np.zeros((90, 90, 5), np.uint8),
            {"photometric": "minisblack", "planarconfig": "contig"},
            "with 5 samples",
        ),
        (
            np.zeros((90, 90), np.uint8),
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "palette colours",
        ),
        *(
            (
                np.zeros((90, 90, 3), np.uint8),
                {"photometric": "rgb", "tile": TILE, "compression": name},
                f"pixels compressed as {name}",
            )
            for name in ("JPEGXL", "JPEGXR", "LERC")
        ),
    ],
)
def test_unsupported_tiff(tmp_path, array, options, reason):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, **options)
    with pytest.raises(
        SlideError, match=rf"a.tif: .*{reason}.*; (convert it to|export one plane as) 8-bit RGB"
    ):
        open_slide(path, mpp=0.5)


def test_strips_too_large_for_one_piece(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", smooth(100, 100))
    monkeypatch.setattr("nucfast.slide.raster.MAX_WHOLE_PX", 9999)
    with pytest.raises(SlideError, match=r"a.tif: 100 x 100 pixels in one piece .* tiled, pyramidal TIFF"):
        open_slide(tmp_path / "a.tif", mpp=0.5)


def test_truncated_tiled_tiff_is_refused_at_once(tmp_path):
    """Writers put the directory first, so half a file opens and would fail hours later."""
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, smooth(300, 300), tile=(64, 64), photometric="rgb")
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(SlideError, match=r"cut.tif: truncated, .*; copy it again"):
        open_slide(path, mpp=0.5)


def test_damaged_tile_is_an_error_when_read(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth(300, 300), tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as tif:
        at = tif.pages[0].dataoffsets[3]
    data = bytearray(path.read_bytes())
    data[at : at + 20] = bytes(20)
    path.write_bytes(bytes(data))
    with open_slide(path, mpp=0.5) as slide:
        slide.read(0, 0, 150, 300, None)
        with pytest.raises(SlideError, match=r"a.tif: tile 3 cannot be decoded .*; copy the file again"):
            slide.read(0, 0, 300, 300, None)


def test_reading_around_damage(tmp_path, caplog):
    path, picture = tmp_path / "a.tif", smooth(300, 300)
    tifffile.imwrite(path, picture, tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as tif:
        at = tif.pages[0].dataoffsets[7]  # rows 64 to 128, columns 128 to 192
    data = bytearray(path.read_bytes())
    data[at : at + 20] = bytes(20)
    path.write_bytes(bytes(data))
    with open_slide(path, mpp=0.5) as slide:
        seen = slide.read_around_damage(0, 0, 300, 300, 1.0, fill=7)
        mask = tissue_mask(slide, mpp=0.5).mask
    changed = (seen != picture).any(axis=2)
    assert (seen[64:128, 128:192] == 7).all()
    assert (seen[changed] == 7).all()
    rows, cols = np.nonzero(changed)
    assert (rows.min(), cols.min()) >= (64 - DAMAGE_PX, 128 - DAMAGE_PX)
    assert (rows.max(), cols.max()) <= (128 + DAMAGE_PX, 192 + DAMAGE_PX)
    assert mask[64:128, 128:192].all()
    (record,) = caplog.records
    assert "a.tif: tile 7 cannot be decoded" in record.message


def test_damage_costs_openslide_one_place(tmp_path):
    path = tmp_path / "a.svs"
    write_slide(path, smooth(700, 700), mpp=0.5)
    data = path.read_bytes()
    first = data.index(b"\xff\xd8")
    path.write_bytes(data[:first] + bytes(100) + data[first + 100 :])
    with OpenSlideSlide(path, mpp=None) as slide:
        expected = slide.read_level(0, 600, 600, 50, 50)
        with pytest.raises(SlideError, match=r"a\.svs: cannot read at \(0, 0\)"):
            slide.read_level(0, 0, 0, 50, 50)
        assert_array_equal(slide.read_level(0, 600, 600, 50, 50), expected)


def test_reading_a_closed_slide(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", smooth(300, 300), tile=(64, 64), photometric="rgb")
    for source in (tmp_path / "a.tif", smooth(9, 9)):
        slide = open_slide(source, mpp=0.5)
        slide.close()
        slide.close()
        with pytest.raises(SlideError, match=r"(a.tif|array): the slide is closed; open it again"):
            slide.read(0, 0, 9, 9, None)


# --- vendor formats ---


class FakeOpenSlide:
    """A MIRAX slide as OpenSlide shows it: transparent where nothing was scanned, bounds, two levels."""

    level_dimensions = ((400, 300), (100, 75))
    level_downsamples = (1.0, 4.0)

    def __init__(self, path):
        self.closed = False
        self.properties = {
            "openslide.vendor": "mirax",
            "openslide.mpp-x": "0.25",
            "openslide.mpp-y": "0.25",
            **{f"openslide.bounds-{key}": str(value) for key, value in BOUNDS.items()},
        }

    @staticmethod
    def detect_format(path):
        return "mirax"

    def read_region(self, location, level, size):
        if location[1] >= 200:
            raise openslide.OpenSlideError("cannot decode")
        factor = int(self.level_downsamples[level])
        x = location[0] + factor * np.arange(size[0])
        out = np.zeros((size[1], size[0], 4), np.uint8)
        out[:, x >= BOUNDS["x"]] = 180, 60, 140, 255
        return Image.fromarray(out)

    def close(self):
        self.closed = True


BOUNDS = {"x": 100, "y": 0, "width": 300, "height": 300}


def test_vendor_slide(tmp_path, monkeypatch):
    monkeypatch.setattr(openslide, "OpenSlide", FakeOpenSlide)
    path = tmp_path / "a.mrxs"
    Image.fromarray(smooth(20, 20)).save(path, format="JPEG")  # which is what a MIRAX file looks like
    with open_slide(path) as slide:
        assert slide.bounds == (100, 0, 300, 300)
        assert (slide.mpp, slide.mpp_source) == (0.25, "openslide.mpp-x")
        assert [level.downsample for level in slide.levels] == [1, 4]
        for mpp, step in [(0.25, 1), (1.0, 4)]:
            out = slide.read(80, 0, 40 // step, 8, mpp)
            assert (out[:, : 20 // step] == 255).all()
            assert (out[:, 20 // step :] == (180, 60, 140)).all()
        with pytest.raises(
            SlideError, match=r"a.mrxs: cannot read at .*cannot decode.*; copy the file again"
        ):
            slide.read(0, 200, 10, 10, None)
        handle = slide._handle
    assert handle.closed


def test_damaged_vendor_slide(tmp_path, monkeypatch):
    def refuse(path):
        raise openslide.OpenSlideError("index missing")

    refuse.detect_format = FakeOpenSlide.detect_format
    monkeypatch.setattr(openslide, "OpenSlide", refuse)
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(
        SlideError, match=r"a.mrxs: damaged slide \(index missing\); copy it again, with all files"
    ):
        open_slide(tmp_path / "a.mrxs")


def test_mirax_without_its_folder(tmp_path):
    Image.fromarray(smooth(20, 20)).save(tmp_path / "a.mrxs", format="JPEG")
    with pytest.raises(SlideError, match=r"a.mrxs: MIRAX file without its folder a/; copy both"):
        open_slide(tmp_path / "a.mrxs", mpp=0.5)


# --- real slides ---


def test_real_slide(slides_dir):
    with open_slide(slides_dir / "CMU-1-Small-Region.svs") as slide:
        assert slide.dimensions == (2220, 2967)
        assert slide.mpp == pytest.approx(0.499)
        assert slide.mpp_source == "Aperio MPP"
        assert slide.properties["aperio.AppMag"] == "20"
        assert slide.read(2200, 2950, 40, 40, 0.499)[30, 30].tolist() == [255, 255, 255]


def test_real_slide_equals_openslide(slides_dir):
    path = slides_dir / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide, OpenSlideSlide(path, mpp=None) as other:
        assert other.mpp_source == "openslide.mpp-x"
        assert slide.dimensions == other.dimensions
        assert_array_equal(slide.read(1001, 903, 700, 500, None), other.read(1001, 903, 700, 500, None))
        assert_array_equal(slide.read(2100, 2900, 300, 90, 0.5), other.read(2100, 2900, 300, 90, 0.5))


def test_invalid_real_slide(slides_dir):
    with pytest.raises(SlideError) as error:
        open_slide(slides_dir / "broken.svs")
    assert "broken.svs: not a slide or image" in one_line(error)


def test_truncated_real_slide(slides_dir, tmp_path):
    whole = (slides_dir / "CMU-1-Small-Region.svs").read_bytes()
    path = tmp_path / "cut.svs"
    for share in (0.001, 0.3, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(SlideError) as error:
            open_slide(path)
        assert one_line(error).startswith(f"{path}: ")


def test_data_set_images_need_the_flag(data_dir):
    path = sorted((data_dir / "consep" / "images").iterdir())[0]
    with pytest.raises(SlideError, match=r"resolution unknown.*; pass --mpp"):
        open_slide(path)
    with open_slide(path, mpp=0.25) as slide:
        assert slide.read(0, 0, 500, 500, 0.5).shape == (500, 500, 3)
