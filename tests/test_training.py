"""Targets, patches and losses on known input; a whole tiny run that goes on and becomes a bundle."""

import csv
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

pytest.importorskip("torch", reason="training needs PyTorch")

import torch

from nucfast.ops import split_instances
from nucfast.testing import synthetic_slide
from nucfast_export.run import export_run
from nucfast_training.augmentation import jitter
from nucfast_training.data import UNCLASSIFIED, Patches, read_set
from nucfast_training.losses import dice_loss, heads_loss
from nucfast_training.targets import peaked_distance
from nucfast_training.train import train

RECIPE = {
    "name": "tiny",
    "mpp": 0.5,
    "seed": 1,
    "network": {"kind": "fast_unet", "widths": [8, 8, 8, 8], "head_width": 8, "classes": 4},
    "patches": {"size_px": 64, "batch": 4, "zoom": 0.2, "stain": 1.0},
    "optimiser": {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_steps": 2, "ema": 0.5, "steps": 12},
    "loss": {"nucleus": 1.0, "distance": 1.0, "class": 0.3},
    "classes": {
        "scheme": "tiny-4",
        "names": ["epithelial", "inflammatory", "spindle", "other"],
        "colors": [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]],
        "raw": {"1": 1, "2": 2, "3": 3, "4": 4},
        "weights": [1.0, 1.0, 1.0, 1.0],
    },
    "sets": [{"name": "made", "weight": 1.0}],
    "bundle": {
        "version": "1",
        "description": "tiny",
        "licence": "none",
        "weights": "fp32",
        "tile_px": 256,
        "stride_px": 16,
        "margin_px": 32,
        "halo_px": 32,
        "decoder": {"name": "climb", "nucleus_threshold": 128, "min_rise": 30, "min_area_um2": 8.0},
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    folder = root / "made"
    for name in ("images", "labels", "types"):
        (folder / name).mkdir(parents=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "image", "mpp"])
        for split, seed in (("train", 0), ("val", 1)):
            made = synthetic_slide(200, 160, nuclei_per_mm2=5000, seed=seed)
            writer.writerow([split, split, f"images/{split}.png", made.mpp])
            Image.fromarray(made.image).save(folder / "images" / f"{split}.png")
            Image.fromarray(made.labels.astype(np.uint16)).save(folder / "labels" / f"{split}.png")
            kinds = np.concatenate([[0], made.class_ids]).astype(np.uint8)[made.labels]
            Image.fromarray(kinds).save(folder / "types" / f"{split}.png")
    return root


def test_peaked_distance_has_one_summit_per_nucleus():
    for half_axes in [(6, 6), (12, 5), (30, 6), (40, 9)]:
        labels = np.zeros((60, 100), np.int32)
        rows, cols = np.mgrid[:60, :100]
        labels[((cols - 45) / half_axes[0]) ** 2 + ((rows - 28) / half_axes[1]) ** 2 <= 1] = 7
        distance = peaked_distance(labels)
        assert_array_equal(distance > 0, labels > 0)
        assert distance.max() == distance[28, 45] >= 250
        assert split_instances(distance, labels > 0, min_rise=5).max() == 1


def test_sample_has_what_the_files_hold(data, tmp_path):
    (sample,) = read_set(data / "made", "train", mpp=None, class_map={1: 1, 2: 2, 3: 3, 4: 4}, cache=tmp_path)
    assert sample.image.shape == (160, 200, 3)
    assert_array_equal(sample.nucleus > 0, sample.labels > 0)
    assert_array_equal(sample.kind == UNCLASSIFIED, sample.labels == 0)
    assert len(list(tmp_path.iterdir())) == 1
    rng = np.random.default_rng(0)
    image, target = Patches([[sample]], [1.0], 0.5, 64, 0.3).draw(rng)
    assert image.shape == target.shape == (64, 64, 3)
    # Where the warped nucleus map is surely inside, so are the other two targets.
    surely = target[..., 0] == 255
    assert (target[surely, 2] != UNCLASSIFIED).mean() > 0.95


def test_jitter_changes_colour_only_when_asked():
    image = synthetic_slide(64, 64, seed=0).image
    assert_array_equal(jitter(image, np.random.default_rng(0), strength=0.0), image)
    changed = jitter(image, np.random.default_rng(0), strength=1.0)
    assert changed.shape == image.shape
    assert not np.array_equal(changed, image)


def test_losses_in_closed_form():
    certain = torch.full((1, 1, 4, 4), 50.0)
    assert float(dice_loss(certain, torch.ones(1, 1, 4, 4))) == pytest.approx(0.0, abs=1e-6)
    assert float(dice_loss(-certain, torch.ones(1, 1, 4, 4))) == pytest.approx(1.0 - 1.0 / 17.0)
    heads = {name: torch.zeros(1, 1, 4, 4) for name in ("nucleus", "distance")}
    target = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    target[..., 2] = UNCLASSIFIED
    losses = heads_loss(heads | {"class": torch.zeros(1, 4, 2, 2)}, target, torch.ones(4))
    assert "class" not in losses  # nothing is classified
    assert float(losses["distance"]) == pytest.approx(2.0 * np.log(2.0))
    target[..., 2] = 1
    losses = heads_loss(heads | {"class": torch.zeros(1, 4, 2, 2)}, target, torch.ones(4))
    assert float(losses["class"]) == pytest.approx(np.log(4.0), rel=1e-5)


def test_a_run_learns_goes_on_and_becomes_a_bundle(data, tmp_path):
    run = tmp_path / "run"
    train(RECIPE, data=data, out=run, device="cpu", max_seconds=float("inf"))
    first = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][-1]
    assert first["step"] == 12
    longer = RECIPE | {"optimiser": RECIPE["optimiser"] | {"steps": 60}}
    train(longer, data=data, out=run, device="cpu", max_seconds=float("inf"))
    last = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][-1]
    assert last["step"] == 60
    assert last["val"]["nucleus"] < first["val"]["nucleus"]
    report = export_run(run, tmp_path / "bundle")
    assert report.bundle.name == "tiny"
    assert [entry.name for entry in report.bundle.classes] == RECIPE["classes"]["names"]
