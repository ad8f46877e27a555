"""Augmentations: what each does to known pixels, and against SciPy."""

import colorsys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("torch", reason="training needs PyTorch")
pytest.importorskip("cv2", reason="training needs OpenCV")

from scipy import ndimage

from nucfast.testing import synthetic_slide
from nucfast_training.augmentation import AUGMENTATIONS, augment, jitter

MADE = synthetic_slide(96, 80, nuclei_per_mm2=4000, seed=0)
PLANES = {"image": MADE.image, "labels": MADE.labels.astype(np.uint16)}
GREY = {"image": np.full((64, 64, 3), 128, np.uint8)}


def changed(name, seed, planes=PLANES):
    return augment(planes, np.random.default_rng(seed), {name: 1.0})


def draws(seed):
    """What an augmentation draws next, once ``augment`` has decided for it."""
    rng = np.random.default_rng(seed)
    rng.random()
    return rng


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_keep_image_and_targets_together(name):
    made = synthetic_slide(64, 64, seed=0)
    planes = {"image": made.image, "labels": made.labels.astype(np.uint16)}
    changed = augment(planes, np.random.default_rng(1), {name: 1.0})
    assert changed["image"].shape == made.image.shape
    assert changed["image"].dtype == np.uint8
    assert not np.array_equal(changed["image"], made.image)
    assert set(np.unique(changed["labels"])) <= set(np.unique(made.labels))
    # Nuclei stay darker than what surrounds them.
    inside = changed["labels"] > 0
    assert changed["image"][inside].mean() < changed["image"][~inside].mean() - 10
    assert augment(planes, np.random.default_rng(1), {name: 0.0})["image"] is not changed["image"]


def test_jitter_changes_colour_only_when_asked():
    image = synthetic_slide(64, 64, seed=0).image
    assert_array_equal(jitter(image, np.random.default_rng(0), strength=0.0), image)
    changed = jitter(image, np.random.default_rng(0), strength=1.0)
    assert changed.shape == image.shape
    assert not np.array_equal(changed, image)


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        (
            "flip",
            [
                lambda r, c, h, w: (h - 1 - r, c),
                lambda r, c, h, w: (r, w - 1 - c),
                lambda r, c, h, w: (h - 1 - r, w - 1 - c),
            ],
        ),
        (
            "rot90",
            [
                lambda r, c, h, w: (c, w - 1 - r),
                lambda r, c, h, w: (h - 1 - r, w - 1 - c),
                lambda r, c, h, w: (h - 1 - c, r),
            ],
        ),
    ],
)
def test_mirrors_and_turns_move_whole_pixels(name, ways):
    seen = set()
    for seed in range(20):
        out = changed(name, seed)
        rows, cols = np.indices(out["labels"].shape)
        for number, way in enumerate(ways):
            at = way(rows, cols, *PLANES["labels"].shape)
            fits = at[0].max() < PLANES["labels"].shape[0] and at[1].max() < PLANES["labels"].shape[1]
            if fits and np.array_equal(out["labels"], PLANES["labels"][at]):
                assert_array_equal(out["image"], PLANES["image"][at])
                seen.add(number)
                break
        else:
            pytest.fail(f"seed {seed} is none of the ways")
    assert len(seen) == len(ways)


def warped(coordinates):
    channels = [
        ndimage.map_coordinates(PLANES["image"][..., i].astype(float), coordinates, order=1, mode="mirror")
        for i in range(3)
    ]
    labels = ndimage.map_coordinates(PLANES["labels"], coordinates, order=0, mode="mirror")
    return np.stack(channels, axis=-1), labels


def check_warp(out, coordinates):
    image, labels = warped(coordinates)
    assert np.abs(out["image"] - image).mean() < 1.0  # OpenCV interpolates at 1/32 px
    assert (out["labels"] != labels).mean() < 0.01


def test_shift_scale_rotate_is_that_of_scipy():
    height, width = PLANES["labels"].shape
    for seed in range(5):
        rng = draws(seed)
        angle, scale = np.deg2rad(rng.uniform(-45, 45)), rng.uniform(0.8, 1.2)
        shift = rng.uniform(-0.0625, 0.0625, 2) * [width, height]
        rows, cols = np.indices((height, width), float)
        x, y = cols - shift[0] - (width - 1) / 2, rows - shift[1] - (height - 1) / 2
        # Counter-clockwise as seen, with rows downwards.
        from_x = (np.cos(angle) * x - np.sin(angle) * y) / scale + (width - 1) / 2
        from_y = (np.sin(angle) * x + np.cos(angle) * y) / scale + (height - 1) / 2
        check_warp(changed("shift_scale_rotate", seed), [from_y, from_x])


def test_elastic_is_that_of_scipy():
    height, width = PLANES["labels"].shape
    for seed in range(3):
        rng = draws(seed)
        field = [
            ndimage.gaussian_filter(rng.standard_normal((height, width)), 16.0, mode="mirror") for _ in "xy"
        ]
        dx, dy = (4.0 * part / np.abs(part).max() for part in field)
        rows, cols = np.indices((height, width), float)
        check_warp(changed("elastic", seed), [rows + dy, cols + dx])


def test_brightness_and_contrast_are_one_line_for_all_channels():
    for seed in range(5):
        rng = draws(seed)
        expected = np.clip(PLANES["image"] * rng.uniform(0.8, 1.2) + 255 * rng.uniform(-0.2, 0.2), 0, 255)
        assert_allclose(changed("brightness_contrast", seed)["image"], expected, atol=0.5)


def test_hue_and_saturation_change_alike_everywhere():
    pixels = np.array([[[180, 90, 150], [90, 60, 140], [200, 160, 190], [120, 60, 60]]], np.uint8)
    for seed in range(5):
        rng = draws(seed)
        turn, factor = rng.uniform(-7, 7) * 2 / 360, rng.uniform(0.8, 1.2)
        out = changed("hue_saturation", seed, {"image": pixels})["image"]
        for before, after in zip(pixels[0] / 255, out[0] / 255, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            expected = colorsys.hsv_to_rgb((hue + turn) % 1.0, min(1.0, saturation * factor), value)
            assert_allclose(after, expected, atol=4 / 255)  # OpenCV's hue has steps of two degrees


def test_blur_is_that_of_scipy():
    for seed in range(3):
        sigma = draws(seed).uniform(0.3, 1.2)
        reach = round(3 * sigma + 0.5)
        expected = ndimage.gaussian_filter(
            PLANES["image"].astype(float), (sigma, sigma, 0), mode="mirror", truncate=reach / sigma
        )
        assert np.abs(changed("blur", seed)["image"] - expected).mean() < 0.7


def test_noise_has_the_strength_it_drew():
    for seed in range(5):
        sigma = draws(seed).uniform(1.0, 10.0)
        apart = changed("noise", seed, GREY)["image"].astype(float) - 128
        assert apart.std() == pytest.approx(np.hypot(sigma, 12**-0.5), rel=0.03)
        assert abs(apart.mean()) < 0.1 * sigma
