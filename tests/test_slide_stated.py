"""The sizes that compressed tiles state, and what must become of tiles that state another."""

import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from nucfast.errors import SlideError
from nucfast.slide import open_slide
from nucfast.slide.stated import check_size, jpeg2000_size, jpeg_size, png_size, webp_size

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
JPEG = imagecodecs.jpeg8_encode(IMAGE)
TABLES = b"\xff\xd8" + b"\xff\xdb\0\x03\0" + b"\xff\xd9"


@pytest.mark.parametrize(
    ("size_of", "data"),
    [
        (jpeg_size, JPEG),
        (jpeg_size, JPEG[:2] + b"\xff\xff\xfe\0\x04\xff\xc0 between \xff\0\xff\xd0" + JPEG[2:]),
        (jpeg_size, imagecodecs.jpeg8_encode(IMAGE, lossless=True)),
        (jpeg2000_size, imagecodecs.jpeg2k_encode(IMAGE, codecformat="j2k")),
        (jpeg2000_size, imagecodecs.jpeg2k_encode(IMAGE, codecformat="jp2")),
        (webp_size, imagecodecs.webp_encode(IMAGE, lossless=False)),
        (webp_size, imagecodecs.webp_encode(IMAGE, lossless=True)),
        (webp_size, imagecodecs.webp_encode(np.dstack([IMAGE, IMAGE[..., 0]]), lossless=False)),
        (png_size, imagecodecs.png_encode(IMAGE)),
    ],
)
def test_sizes_are_found_before_decoding(size_of, data):
    assert size_of(data) == (61, 37)
    for length in range(30):
        assert size_of(data[:length]) in (None, (61, 37))
    assert size_of(b"") is size_of(TABLES) is size_of(bytes(99)) is None


def test_two_frame_headers_or_too_many_components_are_no_size():
    at = JPEG.index(b"\xff\xc0")
    assert jpeg_size(JPEG[:at] + JPEG[at : at + 19] + JPEG[at:]) is None
    data = imagecodecs.jpeg2k_encode(IMAGE, codecformat="j2k")
    assert jpeg2000_size(data[:40] + struct.pack(">H", 16384) + data[42:]) is None


def test_size_is_checked_where_the_codec_states_one():
    check_size(JPEG, 7, 61, 37)
    check_size(JPEG, 7, 64, 64)  # a tile at the edge that is stored smaller
    check_size(JPEG, 8, 1, 1)
    with pytest.raises(ValueError, match="it states 61 x 37 pixels, expected 60 x 37"):
        check_size(JPEG, 7, 60, 37)
    with pytest.raises(ValueError, match="it states no size, expected 61 x 37"):
        check_size(TABLES, 7, 61, 37)


@pytest.mark.parametrize("tile", [(64, 64), None])
@pytest.mark.parametrize("scale", [1, 2])
def test_tiles_and_strips_larger_than_they_should_be_are_not_decoded(tmp_path, tile, scale):
    path = tmp_path / "a.tif"
    strips = {"tile": tile} if tile else {"rowsperstrip": 64}
    image = np.asarray(Image.fromarray(IMAGE).resize((128, 128)))
    tifffile.imwrite(path, image, photometric="rgb", compression="jpeg", **strips)
    data = path.read_bytes()
    at = data.rindex(b"\xff\xc0") + 5
    path.write_bytes(data[:at] + struct.pack(">HH", 9999, 9999) + data[at + 4 :])
    with (
        pytest.raises(SlideError, match=r"a.tif: .*it states 9999 x 9999 pixels, expected .*; copy"),
        open_slide(path, mpp=0.5) as slide,
    ):
        slide.read(0, 0, 128 // scale, 128 // scale, 0.5 * scale)


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_jpeg_tables_hold_no_image(tmp_path, tile):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.zeros((128, 128, 3), np.uint8),
        photometric="rgb",
        compression="jpeg",
        tile=tile,
        extratags=[(347, 7, len(JPEG), JPEG, True)],
    )
    with pytest.raises(SlideError, match=r"a.tif: damaged TIFF, its JPEG tables hold an image; copy or"):
        open_slide(path, mpp=0.5)
