"""Patches made by PyTorch are those that NumPy and OpenCV make."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("torch", reason="training needs PyTorch")

import cv2
import torch

from nucfast.testing import synthetic_slide
from nucfast_training import train as train_module
from nucfast_training.augmentation import Jitter, jitter
from nucfast_training.data import make_sample
from nucfast_training.device_patches import DevicePatches, jitter_all, makes_here
from nucfast_training.patches import Patches
from nucfast_training.recipe import load_recipe
from nucfast_training.train import train

CPU = torch.device("cpu")
PLAIN = Jitter(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), 0.0, 0.0, 0.0, 0, 7)


def made_sets(recipe):
    """Two sets of made images, of different sizes and resolutions; only the first has classes."""
    sets = []
    for seed, side, mpp in ((0, 300, 0.25), (1, 180, 0.5)):
        slide = synthetic_slide(side, side - 20, seed=seed)
        kinds = np.where(slide.labels > 0, 1 + slide.labels % 4, 0).astype(np.uint8) * (seed == 0)
        sets.append([make_sample(f"made/{seed}", slide.image, slide.labels, kinds, mpp, recipe, None)])
    return sets


def small(*changes):
    plain = ["sets=[{name='a'}, {name='b'}]", "patches.batch=8", "patches.size_px=64", "teacher.bundle="]
    return load_recipe("he-fast", [*plain, *changes])


def test_batches_are_those_of_the_processor():
    recipe = small("patches.stain=0.0")
    sets = made_sets(recipe)
    images, targets = Patches(sets, recipe).batch(5)
    found, found_targets = DevicePatches(sets, recipe, CPU).batch_on_device(5)
    assert found.dtype == torch.uint8
    # OpenCV places pixels on a grid of 1/32.
    assert np.abs(images.astype(int) - found.numpy()).mean() < 0.5
    for head in recipe.loss:
        assert (targets[head] != found_targets[head].numpy()).mean() < 0.02
    assert_array_equal(found, DevicePatches(sets, recipe, CPU).batch_on_device(5)[0])


def test_jittered_batches_look_like_those_of_the_processor():
    recipe = small()
    sets = made_sets(recipe)
    images, _ = Patches(sets, recipe).batch(2)
    found = DevicePatches(sets, recipe, CPU).batch_on_device(2)[0].numpy()
    drawn = np.abs(images.astype(int) - found).mean(axis=(1, 2, 3))
    assert np.median(drawn) < 3
    assert drawn.max() < 8  # noise is drawn anew
    shuffled = np.abs(images.astype(int) - found[::-1]).mean(axis=(1, 2, 3))
    assert np.median(shuffled) > 20


@pytest.mark.parametrize(
    ("change", "limit"),
    [({"blur": 0.9}, 0.05), ({"sharpen": 0.8}, 0.05), ({"quality": 40}, 2.0), ({"quality": 90}, 1.5)],
)
def test_each_change_is_that_of_opencv(monkeypatch, change, limit):
    image = synthetic_slide(96, 96, seed=3).image
    draw = replace(PLAIN, **change)
    monkeypatch.setattr(Jitter, "draw", lambda rng, strength: draw)
    expected = jitter(image, np.random.default_rng(0), strength=1.0).astype(int)
    found = jitter_all(torch.from_numpy(image)[None], [draw])[0].numpy()
    assert np.abs(expected - found).mean() < limit
    assert np.abs(expected - image).mean() > 2 * np.abs(expected - found).mean()


def test_noise_has_the_drawn_strength():
    image = np.full((128, 128, 3), 120, np.uint8)
    found = jitter_all(torch.from_numpy(image)[None], [replace(PLAIN, noise=5.0)])[0].numpy()
    assert found.astype(float).std() == pytest.approx(5.0, abs=0.2)
    assert found.mean() == pytest.approx(119.5, abs=0.2)  # cut, not rounded, as by the processor


def test_jpeg_is_of_rgb():
    # Chroma is halved: single red pixels on grey lose colour, single white ones keep their brightness.
    image = np.full((32, 32, 3), 128, np.uint8)
    image[::4, ::4] = [255, 0, 0]
    draw = replace(PLAIN, quality=90)
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    expected = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    found = jitter_all(torch.from_numpy(image)[None], [draw])[0].numpy()
    assert np.abs(expected.astype(int) - found).mean() < 4


def test_only_random_patches_without_further_augmentation_are_made_there():
    assert makes_here(small())
    assert not makes_here(small("patches.sampling=crops"))
    assert not makes_here(small("augmentation={flip=0.5}"))


def test_a_network_learns_from_them(monkeypatch, tmp_path):
    # On a GPU alone otherwise; the loop is the same.
    recipe = small(
        "network={kind='fast_unet', widths=[8, 8, 8, 8], blocks=[1, 0, 1], head_width=8, classes=4}",
        "optimiser.steps=30",
        "optimiser.learning_rate=1e-2",
        "optimiser.warmup_steps=1",
        "optimiser.ema=0.5",
        "validation.patches=4",
    )
    sets = made_sets(recipe)
    monkeypatch.setattr(train_module, "read_sets", lambda *args, **kwargs: sets)
    monkeypatch.setattr(train_module, "Patches", lambda sets, recipe: DevicePatches(sets, recipe, CPU))
    events = []
    train(recipe, data=tmp_path, out=tmp_path / "run", device="cpu", on_event=events.append)
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
