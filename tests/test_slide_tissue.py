"""Tissue masks: glass is dropped, tissue never."""

import numpy as np
import pytest
from PIL import Image

from nucfast.slide import TissueMask, open_slide, tissue_mask

PINK, PALE, PURPLE = (225, 160, 195), (236, 222, 233), (110, 70, 140)


def glass(height, width, *, value=241, noise=2):
    random = np.random.default_rng(1)
    return (value + random.integers(-noise, noise + 1, (height, width, 1)) + np.zeros((1, 1, 3), int)).astype(
        np.uint8
    )


def mask_of(image, mpp=2.0):
    with open_slide(image, mpp=mpp) as slide:
        return tissue_mask(slide)


@pytest.mark.parametrize("value", [255, 245, 230])
@pytest.mark.parametrize("shape", [(300, 300), (900, 700), (1, 1)])
def test_a_blank_slide_has_no_tissue(value, shape):
    mask = mask_of(glass(*shape, value=value, noise=0 if value == 255 else 3))
    assert not mask.mask.any()
    assert mask.fraction == 0
    assert not mask.any_in(0, 0, 10_000, 10_000)


@pytest.mark.parametrize("color", [PINK, PALE, PURPLE, (0, 0, 0), (30, 60, 30)])
@pytest.mark.parametrize("side", [200, 800])
def test_an_image_full_of_tissue_is_all_tissue(color, side):
    image = np.full((side, side, 3), color, np.uint8)
    assert mask_of(image).mask.all()


@pytest.mark.parametrize("color", [PINK, PALE, PURPLE])
@pytest.mark.parametrize("value", [255, 241, 228])
def test_tissue_on_glass(color, value):
    image = glass(1000, 1000, value=value, noise=0)
    image[253:501, 127:375] = np.minimum(color, value - 12)
    mask = mask_of(image)
    assert mask.scale == 4
    assert mask.mask[63:126, 31:94].all()
    assert mask.fraction < 0.1
    assert mask.any_in(0, 0, 150, 275)
    assert mask.any_in(350, 475, 1, 1)
    assert not mask.any_in(0, 0, 100, 225)
    assert not mask.any_in(750, 750, 250, 250)


def test_dark_folds_do_not_hide_pale_tissue():
    image = glass(1000, 1000)
    image[:500, :500] = PURPLE
    image[625:875, 625:875] = PALE
    assert mask_of(image).mask[160:216, 160:216].all()


def test_single_cells_stay_and_dust_goes():
    image = glass(1000, 1000)
    image[500:508, 500:508] = PURPLE  # a cell of 16 um
    image[128:130, 128:130] = 90  # a grain of 4 um
    mask = mask_of(image)
    assert mask.any_in(500, 500, 8, 8)
    assert not mask.any_in(100, 100, 100, 100)


def test_small_holes_are_closed_and_large_ones_stay():
    image = glass(1250, 1250)
    image[125:1125, 125:1125] = PINK
    image[250:275, 250:275] = 241  # 50 um
    image[500:875, 500:875] = 241  # 750 um
    mask = mask_of(image)
    assert mask.mask[62:69, 62:69].all()
    assert not mask.any_in(575, 575, 200, 200)


def test_white_around_the_scan_is_not_the_glass():
    image = np.full((1000, 1000, 3), 255, np.uint8)
    image[:750, :750] = glass(750, 750, value=236)
    image[250:375, 250:375] = PINK
    mask = mask_of(image)
    assert mask.any_in(250, 250, 125, 125)
    assert not mask.any_in(500, 500, 200, 200)


def test_fluorescence_and_gray_images_are_kept():
    dark = np.zeros((800, 800), np.uint8)
    dark[100:140, 100:140] = 255
    assert mask_of(dark).mask.all()


def test_edges_of_the_slide_are_not_lost():
    image = glass(801, 805)
    image[:, :10] = PINK
    image[796:, :] = PINK
    mask = mask_of(image)
    assert mask.mask[:, 0].all()
    assert mask.mask[-1].all()
    assert mask.mask.shape == (201, 202)


def test_without_mpp_and_with_coarse_mpp():
    image = np.full((320, 330, 3), PINK, np.uint8)
    with open_slide(image) as slide:
        assert tissue_mask(slide).scale == 16
    assert mask_of(image, mpp=20.0).mask.shape == (320, 330)


def test_memory_is_bounded_for_any_mpp(monkeypatch):
    monkeypatch.setattr("nucfast.slide.tissue._MAX_MASK_PX", 100)
    mask = mask_of(np.full((320, 320, 3), PINK, np.uint8), mpp=8.0)
    assert mask.mask.size <= 121


def test_bad_mpp():
    with (
        open_slide(np.zeros((9, 9), np.uint8)) as slide,
        pytest.raises(ValueError, match="mpp: expected a positive"),
    ):
        tissue_mask(slide, mpp=0)


def test_any_in_takes_any_rectangle():
    mask = TissueMask(np.eye(4, dtype=bool), 10.0)
    assert mask.any_in(-100, -100, 101, 101)
    assert not mask.any_in(-100, -100, 100, 100)
    assert mask.any_in(39.9, 39.9, 100, 100)
    assert not mask.any_in(40, 40, 100, 100)
    assert not mask.any_in(20, 0, 20, 20)
    assert not mask.any_in(5, 5, 0, 0)
    assert mask.fraction == 0.25


def test_real_slide(slides_dir):
    with open_slide(slides_dir / "CMU-1-Small-Region.svs") as slide:
        mask = tissue_mask(slide)
    assert 0.35 < mask.fraction < 0.6
    assert mask.any_in(1200, 1200, 100, 100)  # epidermis
    assert mask.any_in(200, 1080, 100, 60)  # the thin strand on the left
    assert not mask.any_in(100, 2000, 300, 800)  # glass


@pytest.mark.parametrize("name", ["consep", "monuseg", "tnbc"])
def test_data_sets_are_all_tissue(data_dir, name):
    for path in sorted((data_dir / name / "images").iterdir())[::9]:
        with open_slide(path, mpp=0.25) as slide:
            assert tissue_mask(slide).mask.all(), path


def test_every_nucleus_of_a_mosaic_is_kept(data_dir):
    """Crops side by side on glass: large enough that the rule for small images does not apply."""
    folder = data_dir / "consep"
    canvas, truth = glass(1300, 4300), np.zeros((1300, 4300), bool)
    for index, path in enumerate(sorted((folder / "images").iterdir())[:2]):
        part = np.s_[211:1211, 307 + 2300 * index : 1307 + 2300 * index]
        canvas[part] = np.asarray(Image.open(path).convert("RGB"))
        truth[part] = np.asarray(Image.open(folder / "labels" / f"{path.stem}.png")) > 0
    mask = mask_of(canvas, mpp=0.25)
    rows, cols = np.nonzero(truth)
    assert mask.mask[rows // 32, cols // 32].all()
    assert mask.fraction < 0.6
