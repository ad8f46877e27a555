"""Targets and patches on known input; tiny runs that learn, go on, fail with a reason, and become bundles."""

import csv
import json
import math
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

pytest.importorskip("torch", reason="training needs PyTorch")

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from nucfast.engine import create_engine, load_bundle
from nucfast.errors import DatasetError
from nucfast.ops import normalize_stain, split_instances
from nucfast.testing import synthetic_slide
from nucfast_export.run import export_run, load_bundle_network
from nucfast_export.torch_engine import TorchEngine
from nucfast_training import run as run_module
from nucfast_training import train as train_module
from nucfast_training.augmentation import AUGMENTATIONS
from nucfast_training.data import Sample, read_sets
from nucfast_training.errors import RecipeError, TrainingError
from nucfast_training.freeze import prepare
from nucfast_training.networks import build_network
from nucfast_training.networks.fast_unet import FastUNet
from nucfast_training.patches import Patches
from nucfast_training.recipe import Recipe, load_recipe, merge, recipe_names
from nucfast_training.run import run_recipe
from nucfast_training.shrink import load_wide, shrink
from nucfast_training.start import calibrate_norms, load_from_bundle, load_grown
from nucfast_training.targets import TARGETS, UNCLASSIFIED, peaked_distance
from nucfast_training.teacher import soften
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


def test_targets():
    labels = np.array([[0, 5, 5, 9]], np.int32)  # gaps between ids are allowed
    kinds = np.array([[2, 2, 2, 0]], np.uint8)
    made = {
        name: target.make(labels, kinds).tolist()[0] for name, target in TARGETS.items() if name != "distance"
    }
    assert made == {
        "nucleus": [0, 255, 255, 255],
        "class": [UNCLASSIFIED, 1, 1, UNCLASSIFIED],
        "semantic": [0, 2, 2, UNCLASSIFIED],
    }


def with_changes(**tables):
    return Recipe.of(merge(RECIPE, tables))


def read(recipe, data, tmp_path, split="train"):
    return read_sets(recipe, data, split, cache=tmp_path / "cache")


def test_sample_has_what_the_files_hold(data, tmp_path):
    recipe = with_changes()
    ((sample,),) = read(recipe, data, tmp_path)
    assert sample.image.shape == (160, 200, 3)
    assert_array_equal(sample.targets["nucleus"] > 0, sample.labels > 0)
    assert_array_equal(sample.targets["class"] == UNCLASSIFIED, sample.labels == 0)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    images, targets = Patches([[sample]], recipe).batch(3)
    assert images.shape == (4, 64, 64, 3)
    assert {name: plane.shape for name, plane in targets.items()} == dict.fromkeys(
        RECIPE["loss"], (4, 64, 64)
    )
    # Where the warped nucleus map is surely inside, so is the class.
    surely = targets["nucleus"] == 255
    assert (targets["class"][surely] != UNCLASSIFIED).mean() > 0.95


def test_a_map_of_the_cache_is_whole_or_absent(data, tmp_path, monkeypatch):
    def die(self, path, *_):
        path.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", die)
        read(with_changes(), data, tmp_path)
    ((sample,),) = read(with_changes(), data, tmp_path)
    assert sample.targets["distance"].max() == 255


def test_batches_depend_on_their_number_alone(data, tmp_path):
    recipe = with_changes(augmentation=dict.fromkeys(AUGMENTATIONS, 0.5))
    patches = Patches(read(recipe, data, tmp_path), recipe)
    first, second = patches.batch(7), patches.batch(7)
    assert_array_equal(first[0], second[0])
    assert not np.array_equal(first[0], patches.batch(8)[0])


def test_crops_cover_the_image_once_an_epoch(data, tmp_path):
    recipe = with_changes(patches={"sampling": "crops", "stain": 0.0, "batch": 3})
    sets = read(recipe, data, tmp_path)
    patches = Patches(sets, recipe)
    assert patches.per_epoch == 12  # 160 x 200 in crops of 64
    (sample,) = sets[0]
    corner = next(planes for planes in patches.fixed(0))
    assert_array_equal(corner["image"], sample.image[:64, :64])
    assert_array_equal(corner["labels"], sample.labels[:64, :64])
    assert_array_equal(patches.fixed(0)[-1]["image"], sample.image[-64:, -64:])
    epoch = np.concatenate([patches.batch(i)[0] for i in range(4)])
    assert sorted(crop.tobytes() for crop in epoch) == sorted(p["image"].tobytes() for p in patches.fixed(0))


def test_whole_images_are_resized(data, tmp_path):
    recipe = with_changes(patches={"sampling": "whole", "stain": 0.0})
    sets = read(recipe, data, tmp_path)
    (planes,) = Patches(sets, recipe).fixed(0)
    assert planes["image"].shape == (64, 64, 3)
    (sample,) = sets[0]
    assert planes["image"].mean() == pytest.approx(sample.image.mean(), abs=2)
    assert (planes["labels"] > 0).mean() == pytest.approx((sample.labels > 0).mean(), abs=0.02)


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_learns_goes_on_and_becomes_a_bundle(data, tmp_path):
    run = tmp_path / "run"
    train(Recipe.of(RECIPE), data=data, out=run, device="cpu")
    first = records(run)[-1]
    assert first["step"] == 12
    report = train(with_changes(optimiser={"steps": 60}), data=data, out=run, device="cpu")
    last = records(run)[-1]
    assert report.steps == last["step"] == 60
    assert last["val"]["nucleus"] < first["val"]["nucleus"]
    assert report.best == pytest.approx(min(r["val"]["loss"] for r in records(run) if "val" in r), abs=1e-4)
    for name in ("learning-curve.png", "predictions.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 64
    exported = export_run(run, tmp_path / "bundle")
    assert exported.bundle.name == "tiny"
    assert [entry.name for entry in exported.bundle.classes] == RECIPE["classes"]["names"]
    other = merge(RECIPE, {"network": RECIPE["network"] | {"head_width": 12}})
    with pytest.raises(RecipeError, match=r"holds a run with another network.head_width"):
        train(Recipe.of(other), data=data, out=run, device="cpu")


FCN = {"kind": "fcn", "widths": [4, 4, 4, 4], "heads": {"nucleus": 1}}


def binary(**tables):
    base = {key: value for key, value in RECIPE.items() if key != "classes"} | {
        "network": FCN,
        "loss": {"nucleus": 1.0},
    }
    base["optimiser"] = {"learning_rate": 1e-3, "steps": 6, "kind": "adam", "schedule": "constant"}
    return Recipe.of(merge(base, {"validation": {"every_steps": 2, "patches": 2}, **tables}))


@pytest.fixture
def interruptible():
    """SIGINT as Python sets it up; what runs the tests may have left it to the system."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("during", "step"), [("_losses", 2), ("_update_average", 3), ("_validate", 4)])
def test_a_run_that_goes_on_ends_where_an_uninterrupted_one_does(data, tmp_path, monkeypatch, during, step):
    network = {"kind": "unet", "widths": [4, 4, 4], "heads": {"nucleus": 1}, "batch_norm": True}
    recipe = binary(network=network, optimiser={"ema": 0.5})
    work = getattr(train_module._Run, during)

    def interrupt(self, *args):
        done = work(self, *args)
        if self.step == step:
            signal.raise_signal(signal.SIGINT)
        return done

    train(recipe, data=data, out=tmp_path / "whole", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(train_module._Run, during, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data=data, out=tmp_path / "parts", device="cpu")
    messages = []
    train(recipe, data=data, out=tmp_path / "parts", device="cpu", on_event=messages.append)
    ended = step if during == "_validate" else step + 1
    assert {"event": "message", "message": f"goes on from step {ended}"} in messages
    parts, whole = (
        [(record["step"], record["val"]) for record in records(tmp_path / run) if "val" in record]
        for run in ("parts", "whole")
    )
    assert parts == whole
    last = [load_file(tmp_path / run / "last.safetensors") for run in ("parts", "whole")]
    for name, value in last[1].items():
        assert_array_equal(last[0][name], value)


def test_a_killed_run_logs_each_step_once(data, tmp_path):
    train(binary(optimiser={"steps": 2}), data=data, out=tmp_path, device="cpu")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "seconds": 1.0, "train": {"loss": 9.0}}\n{"step": 2, "val": {"loss": 0.1}')
    train(binary(), data=data, out=tmp_path, device="cpu")
    steps = [record["step"] for record in records(tmp_path) if "train" in record]
    assert steps == [2, 4, 6]


def test_two_trainings_do_not_share_a_folder(data, tmp_path):
    def second(event):
        if event["event"] == "start":
            with pytest.raises(TrainingError, match=r"another training is at work here; give another --out"):
                train(binary(), data=data, out=tmp_path, device="cpu")

    train(binary(), data=data, out=tmp_path, device="cpu", on_event=second)
    assert train(binary(), data=data, out=tmp_path, device="cpu").stopped == "done"


def test_dropout_goes_on_as_well(data, tmp_path):
    network = {"kind": "unet", "widths": [4, 4, 4], "heads": {"nucleus": 1}, "dropout": 0.5}
    train(binary(network=network), data=data, out=tmp_path / "whole", device="cpu")
    train(binary(network=network, optimiser={"steps": 2}), data=data, out=tmp_path / "parts", device="cpu")
    torch.rand(7)
    train(binary(network=network), data=data, out=tmp_path / "parts", device="cpu")
    assert records(tmp_path / "parts")[-1]["val"] == records(tmp_path / "whole")[-1]["val"]


def test_other_settings_or_images_are_never_taken_for_the_same_run(data, tmp_path):
    out = tmp_path / "run"
    train(binary(), data=data, out=out, device="cpu")
    assert train(binary(), data=data, out=out, device="cpu").stopped == "done"  # the same again is no error
    other = tmp_path / "other"
    shutil.copytree(data, other)
    image = Image.open(other / "made" / "images" / "train.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.save(other / "made" / "images" / "train.png")
    with pytest.raises(RecipeError, match=r"run: holds a run that is finished, with other training images"):
        train(binary(), data=other, out=out, device="cpu")
    judged = tmp_path / "judged"
    shutil.copytree(data, judged)
    labels = judged / "made" / "labels" / "val.png"
    Image.open(labels).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(labels)
    with pytest.raises(RecipeError, match=r"is finished, with other validation images; give another --out"):
        train(binary(), data=judged, out=out, device="cpu")
    with pytest.raises(RecipeError, match=r"is finished, with other patches.stain; give another --out"):
        train(binary(patches={"stain": 0.5}), data=data, out=out, device="cpu")
    with pytest.raises(RecipeError, match=r"holds a run with another name; give another --out"):
        train(binary(name="other"), data=data, out=out, device="cpu")
    with pytest.raises(RecipeError, match=r"holds a run with another optimiser.kind; give another --out"):
        train(binary(optimiser={"kind": "sgd", "steps": 12}), data=data, out=out, device="cpu")
    messages = []
    longer = binary(patches={"stain": 0.5}, optimiser={"steps": 8, "weight_decay": 0.5})
    report = train(longer, data=other, out=out, device="cpu", on_event=messages.append)
    assert report.steps == 8
    text = next(event["message"] for event in messages if event["event"] == "message")
    assert text == "goes on from step 6, with other optimiser.steps, optimiser.weight_decay, patches.stain"
    # The best so far was measured on other patches.
    whole = [record for record in records(out) if "val" in record]
    assert (whole[-1]["step"], whole[-1]["best"]) == (8, True)
    # Classes alone may differ as well.
    classed = Recipe.of(merge(RECIPE, {"optimiser": {"steps": 1}, "validation": {"patches": 1}}))
    train(classed, data=data, out=tmp_path / "classed", device="cpu")
    recoloured = tmp_path / "recoloured"
    shutil.copytree(data, recoloured)
    types = recoloured / "made" / "types" / "train.png"
    Image.fromarray((np.asarray(Image.open(types)) > 0).astype(np.uint8)).save(types)
    with pytest.raises(RecipeError, match=r"is finished, with other training images"):
        train(classed, data=recoloured, out=tmp_path / "classed", device="cpu")


def test_a_full_disk_leaves_the_last_checkpoint(data, tmp_path, monkeypatch):
    train(binary(), data=data, out=tmp_path, device="cpu")
    stored = (tmp_path / "last.safetensors").read_bytes()

    def full(tensors, path, header):
        path.write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(train_module, "save_file", full)
    longer = binary(optimiser={"steps": 8})
    with pytest.raises(TrainingError, match=r"safetensors: cannot be written .*No space left.*: make room"):
        train(longer, data=data, out=tmp_path, device="cpu")
    assert (tmp_path / "last.safetensors").read_bytes() == stored
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    train(binary(), data=data, out=tmp_path, device="cpu")
    stored = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").write_bytes(stored[: len(stored) // 2])
    with pytest.raises(RecipeError, match=r"last.safetensors: is damaged .*; remove it to begin anew"):
        train(binary(), data=data, out=tmp_path, device="cpu")
    shutil.copy(tmp_path / "weights.safetensors", tmp_path / "last.safetensors")
    with pytest.raises(RecipeError, match=r"last.safetensors: is damaged \('progress'\); remove it"):
        train(binary(), data=data, out=tmp_path, device="cpu")


def test_tensorboard_gets_the_log(data, tmp_path):
    pytest.importorskip("tensorboard")
    train(binary(), data=data, out=tmp_path, device="cpu", tensorboard=True)
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"val/jaccard" in content


def test_patience_and_time_end_a_run(data, tmp_path):
    recipe = binary(
        optimiser={"learning_rate": 1e-12, "steps": 100},
        validation={"patience": 2, "metric": "recall", "every_steps": 2, "patches": 2},
    )
    report = train(recipe, data=data, out=tmp_path / "patience", device="cpu")
    assert (report.stopped, report.steps) == ("patience", 6)  # one that is best, two that are not better
    report = train(binary(), data=data, out=tmp_path / "time", device="cpu", max_seconds=0.0)
    assert (report.stopped, report.steps) == ("time", 0)
    assert (tmp_path / "time" / "weights.safetensors").exists()


def test_the_last_weights_are_kept_where_the_recipe_says_so(data, tmp_path):
    for keep in ("best", "last"):
        recipe = with_changes(validation={"keep": keep, "metric": "recall", "every_steps": 4, "patches": 2})
        train(recipe, data=data, out=tmp_path / keep, device="cpu")
        ranks = [record["val"]["recall"] for record in records(tmp_path / keep) if "val" in record]
        with safe_open(tmp_path / keep / "weights.safetensors", "pt") as file:
            step = int(file.metadata()["step"])
        assert len(ranks) == 3
        assert step == (12 if keep == "last" else 4 * (1 + ranks.index(max(ranks))))


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(data, tmp_path):
    run = tmp_path / "run"
    train(binary(), data=data, out=run, device="cpu")
    good = (run / "weights.safetensors").read_bytes()
    hot = binary(optimiser={"learning_rate": 1e30, "kind": "sgd", "clip": 0.0, "steps": 100})
    shutil.copytree(run, tmp_path / "hot")
    (tmp_path / "hot" / "last.safetensors").unlink()
    message = (
        r"loss is (nan|inf) at step \d+: lower optimiser.learning_rate \(1e\+30\); .*weights.safetensors"
    )
    with pytest.raises(TrainingError, match=message):
        train(hot, data=data, out=tmp_path / "hot", device="cpu")
    assert (tmp_path / "hot" / "weights.safetensors").read_bytes() == good


@pytest.mark.parametrize("place", ["heads_loss", "on a CPU", "_batch", "calibrate_norms", "soften"])
def test_out_of_memory_names_the_setting(data, tmp_path, monkeypatch, place):
    def exhaust(*args, **kwargs):
        if place == "on a CPU":
            torch.empty(1 << 50)
        if place == "_batch":
            np.empty(1 << 50)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_module, "heads_loss" if place == "on a CPU" else place, exhaust)
    recipe = with_changes(teacher={"bundle": "he-fast"} if place == "soften" else {})
    if place == "calibrate_norms":
        train(with_changes(optimiser={"steps": 1}), data=data, out=tmp_path / "small", device="cpu")
        recipe = with_changes(start={"grow": str(tmp_path / "small")})
    with pytest.raises(
        TrainingError, match=r"cpu: out of memory at step 0 with patches.batch = 4 of 64 px: lower"
    ):
        train(recipe, data=data, out=tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"network": RECIPE["network"] | {"classes": 3}},
            "network: its head 'class' has 3 channels, but classes.names has 4 classes: change",
        ),
        (
            {"network": FCN | {"heads": {"semantic": 4}}, "loss": {"semantic": 1.0}},
            "its head 'semantic' has 4 channels, but classes.names has 4 classes and the background",
        ),
        (
            {"network": FCN, "loss": {"nucleus": 1.0, "distance": 1.0}},
            r"loss.distance: this network has no such head \(it has nucleus\)",
        ),
    ],
)
def test_heads_that_do_not_fit_the_classes(data, tmp_path, tables, message):
    with pytest.raises(RecipeError, match=message):
        train(with_changes(**tables), data=data, out=tmp_path, device="cpu")


def test_what_is_frozen_stays_as_it_is():
    kind = {"kind": "unet", "widths": [4, 4, 4], "heads": {"nucleus": 1}, "batch_norm": True}
    recipe = binary(
        network=kind,
        start={"encoder": "weights.pth"},
        freeze={"parts": ["encoder."], "until_epoch": 5.0, "batch_norm_from_epoch": 5.0},
    )
    network = build_network(recipe.table)
    image = torch.rand(2, 3, 64, 64)

    def learned(epoch):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        prepare(network, recipe, epoch)
        network.zero_grad()
        network(image)["nucleus"].square().mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}

    first = learned(0.0)
    assert first
    assert not any(name.startswith("encoder.") for name in first)
    assert any("running_mean" in name for name in first)  # of the decoder
    later = learned(5.0)
    assert any(name.startswith("encoder.") for name in later)
    assert not any("running" in name or "num_batches" in name for name in later)
    norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert not {name.rpartition(".")[0] for name in later} & norms


def test_settings_that_do_not_fit(data, tmp_path):
    with pytest.raises(
        RecipeError, match=r"patches.size_px: expected a multiple of 16 for this network, got 60"
    ):
        train(binary(patches={"size_px": 60}), data=data, out=tmp_path / "a", device="cpu")
    with pytest.raises(
        RecipeError, match=r"freeze.parts: no parameter begins with 'encodr'; expected 'body' or scores"
    ):
        train(binary(freeze={"parts": ["encodr"]}), data=data, out=tmp_path / "b", device="cpu")
    with pytest.raises(
        RecipeError, match=r"bundle: .* describes no bundle \(ValueError: tile_px.*: mend \[bundle\]"
    ):
        train(binary(bundle={"tile_px": 1001}), data=data, out=tmp_path / "e", device="cpu")
    with pytest.raises(TrainingError, match=r"--device tpu"):
        train(binary(), data=data, out=tmp_path / "c", device="tpu")
    with pytest.raises(DatasetError, match=r"absent: no such folder"):
        train(binary(sets=[{"name": "absent"}]), data=data, out=tmp_path / "d", device="cpu")


def test_bad_sets_are_named(data, tmp_path):
    def broken(change):
        root = tmp_path / change.__name__
        shutil.copytree(data, root)
        change(root / "made")
        return root

    def no_nucleus(folder):
        Image.fromarray(np.zeros((160, 200), np.uint16)).save(folder / "labels" / "train.png")

    def other_size(folder):
        Image.fromarray(np.ones((160, 201), np.uint16)).save(folder / "labels" / "train.png")

    def strange_class(folder):
        Image.fromarray(np.full((160, 200), 9, np.uint8)).save(folder / "types" / "train.png")

    def sixteen_bits(folder):
        Image.fromarray(np.full((160, 200), 4080, np.uint16)).save(folder / "images" / "train.png")

    def no_number(folder):
        manifest = folder / "manifest.csv"
        manifest.write_text("id,split,image,mpp\ntrain,train,images/train.png,n/a\n")

    def no_image(folder):
        (folder / "images" / "train.png").unlink()

    def no_split(folder):
        (folder / "manifest.csv").write_text("id,split,image\na,test,a.png\n")

    for change, message in (
        (no_nucleus, "labels/train.png: holds no nucleus"),
        (
            other_size,
            r"labels/train.png: expected ids of shape \(160, 200\) as the image has, got \(160, 201\)",
        ),
        (strange_class, r"types/train.png: class id 9 is not in the recipe's classes.raw \(1, 2, 3, 4\)"),
        (sixteen_bits, r"images/train.png: expected 8 bits per channel, got 'I;16': scale it"),
        (no_number, r"manifest.csv: train: mpp: expected um per pixel, .* or nothing, got 'n/a'"),
        (no_image, r"images/train.png: cannot be read as an image"),
        (no_split, "made: no image of split 'train'"),
    ):
        with pytest.raises(DatasetError, match=message):
            read(with_changes(), broken(change), tmp_path)


def test_stain_normalisation_is_that_of_the_library(data, tmp_path):
    recipe = with_changes(patches={"sampling": "crops", "normalise": "macenko"})
    sets = read(recipe, data, tmp_path)
    (sample,) = sets[0]
    white = replace(sample, image=np.full_like(sample.image, 255))
    found = [planes["image"] for planes in Patches([[sample, white]], recipe).fixed(0)]
    assert_array_equal(found[0], normalize_stain(sample.image)[:64, :64])
    assert (found[-1] == 255).all()  # nothing to normalise


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_runs_on_synthetic_sets(tmp_path, name):
    network = load_recipe(name).network
    narrow = []  # it is the recipe that is tried
    if network["kind"] in {"unet", "segnet", "linknet"}:
        narrow = [f"network.widths={[16] * len(network.get('widths', range(5)))}"]
    elif network["kind"] == "unet_sharp":
        narrow = ["network.width=4", "network.bridge=8", "network.depths=[1, 1, 1, 1]"]
    reports = run_recipe(name, changes=narrow, out=tmp_path, device="cpu", smoke=True)
    assert {report.steps for report in reports} == ({0} if network["kind"] == "ensemble" else {4})
    assert all(math.isfinite(report.best) for report in reports)
    sweep = load_recipe(name).sweep
    if sweep:
        rows = json.loads((tmp_path / "sweep.json").read_text())
        assert list(rows) == list(sweep)


def test_a_sweep_goes_on_after_a_variant_that_fails(data, tmp_path, monkeypatch):
    table = merge(binary().table, {"sweep": {"hot": {"optimiser.learning_rate": 1e30}, "ok": {}}})
    table = merge(table, {"optimiser": {"kind": "sgd", "clip": 0.0}})
    monkeypatch.setattr(run_module, "load_recipe", lambda name, changes: Recipe.of(table))
    events = []
    (report,) = run_recipe("it", data=data, out=tmp_path, device="cpu", on_event=events.append)
    assert report.out == tmp_path / "ok"
    for seconds in (math.nan, -1.0):
        with pytest.raises(TrainingError, match=r"--max-seconds: expected a number from 0 on, got (nan|-1)"):
            run_recipe("it", data=data, out=tmp_path, device="cpu", max_seconds=seconds)
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert "lower optimiser.learning_rate" in rows["hot"]["error"]
    assert rows["ok"]["steps"] == 6
    (failure,) = (event for event in events if event["event"] == "failed")
    assert failure["message"].startswith("hot: the loss is")


def test_an_ensemble_takes_its_members_from_their_runs(data, tmp_path):
    for i in (0, 1):
        train(binary(seed=i, optimiser={"steps": 1}), data=data, out=tmp_path / f"member{i}", device="cpu")
    runs = [str(tmp_path / f"member{i}") for i in (0, 1)]
    tables = {"network": {"kind": "ensemble", "members": [FCN, FCN]}, "optimiser": {"steps": 0}}
    train(binary(start={"runs": runs}, **tables), data=data, out=tmp_path / "both", device="cpu")
    both = load_file(tmp_path / "both" / "weights.safetensors")
    for i, run in enumerate(runs):
        for name, value in load_file(f"{run}/weights.safetensors").items():
            torch.testing.assert_close(both[f"members.{i}.{name}"], value)
    with pytest.raises(RecipeError, match=r"start.runs: expected 2, one per member, got 1"):
        train(binary(start={"runs": runs[:1]}, **tables), data=data, out=tmp_path / "one", device="cpu")


def test_a_grown_network_starts_where_the_small_one_ended(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    small = FastUNet(widths=(4, 8, 8, 12), head_width=4)
    for _ in range(3):
        small(torch.rand(2, 3, 64, 64))  # batch normalisation sees something
    save_file(small.state_dict(), tmp_path / "weights.safetensors")
    large = FastUNet(widths=(8, 12, 16, 12), blocks=(1, 2, 3), decoder_blocks=(0, 1, 1), head_width=12)
    load_grown(large, tmp_path)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = large.eval()(image), small.eval()(image)
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits)
    shallow = FastUNet(widths=(8, 12, 16, 12), blocks=(1, 0, 1), head_width=12)
    load_grown(shallow, tmp_path)
    assert_array_equal(shallow.encode8[0].weight[:8, :8] != 0, True)
    # Copies of a channel go their own ways: what reads them differs.
    assert not torch.equal(large.decode2[0].weight[:, :4], large.decode2[0].weight[:, 4:])
    with pytest.raises(RecipeError, match=r"start.grow: .* is not of a smaller network of this kind"):
        load_grown(FastUNet(widths=(4, 8, 8, 8)), tmp_path)
    with pytest.raises(RecipeError, match=r"start.grow: .* cannot be read"):
        load_grown(small, tmp_path / "none")


def test_a_shrunk_network_is_the_one_that_was_grown(data, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    plain = {"widths": [4, 8, 8, 12], "head_width": 8, "decoder_blocks": [0, 0, 1]}
    narrow = {"widths": [4, 6, 8, 10], "inner": [4, 4, 6], "decoder_widths": [4, 6], "head_width": 4}
    small, wide = FastUNet(**plain | narrow), FastUNet(**plain)
    for _ in range(3):
        small(torch.rand(2, 3, 64, 64))
    small_run, wide_run = tmp_path / "small", tmp_path / "wide"
    for folder, network in ((small_run, small), (wide_run, wide)):
        folder.mkdir()
        if network is wide:
            load_grown(wide, small_run)
        recipe = {"recipe": json.dumps({"network": {"kind": "fast_unet", **plain}})}
        save_file(network.state_dict(), folder / "weights.safetensors", metadata=recipe)
    shrunk = FastUNet(**plain | narrow)
    shrink(shrunk, load_wide(shrunk, wide_run), [torch.rand(4, 3, 64, 64)])
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = shrunk.eval()(image), small.eval()(image)
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, rtol=0.0, atol=0.01)
        assert logits.std() > 0.04
    for other in (FastUNet(**plain | {"widths": (4, 8, 10, 12)}), FastUNet(**plain, blocks=(1, 0, 1))):
        with pytest.raises(
            RecipeError, match=r"start.shrink: .* is not of a network of this kind that is wider"
        ):
            load_wide(other, wide_run)
    with pytest.raises(RecipeError, match=r"start.shrink: .* cannot be read"):
        load_wide(shrunk, tmp_path / "none")

    said = []
    tables = {"network": RECIPE["network"] | plain | narrow, "start": {"shrink": str(wide_run)}}
    train(with_changes(**tables), data=data, out=tmp_path / "run", device="cpu", on_event=said.append)
    assert f"weights of {wide_run}, whose network was shrunk to this one" in [
        event["message"] for event in said if event["event"] == "message"
    ]


def test_a_refined_network_knows_what_the_coarse_one_did(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    coarse = FastUNet(widths=(4, 8, 8, 12), head_width=4)
    for _ in range(3):
        coarse(torch.rand(2, 3, 64, 64))
    save_file(coarse.state_dict(), tmp_path / "weights.safetensors")
    sizes = {"widths": (6, 8, 8, 8, 12), "blocks": (1,) * 4, "decoder_blocks": (0, 0, 1, 1)}
    fine = FastUNet(**sizes, head_width=8, class_stride=8)
    load_grown(fine, tmp_path, finer=True)
    image = torch.rand(1, 3, 64, 96)
    enlarged = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    with torch.no_grad():
        found, expected = fine.eval()(enlarged), coarse.eval()(image)
        torch.testing.assert_close(found["class"], expected["class"], rtol=1e-4, atol=1e-4)
        calibrate_norms(fine, [enlarged])
        again, training = fine.eval()(enlarged), fine.train()(enlarged)
    for name in found:
        torch.testing.assert_close(again[name], found[name], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(training[name], found[name], rtol=1e-2, atol=1e-2)
    assert found["nucleus"].shape == (1, 1, 128, 192)
    with pytest.raises(RecipeError, match=r"start.refine: .* is not of a smaller network of this kind"):
        load_grown(coarse, tmp_path, finer=True)


def test_a_teacher_softens_targets_where_it_sees_nuclei(tmp_path):
    made = synthetic_slide(200, 168, nuclei_per_mm2=4000, seed=5)
    targets = {head: TARGETS[head].make(made.labels, made.class_ids) for head in ("nucleus", "distance")}
    kinds = np.zeros(made.labels.shape, np.uint8)
    sample = Sample("made", made.image, made.labels, targets | {"class": kinds}, mpp=made.mpp)
    for _ in range(2):  # the second time from the cache
        ((softened,),) = soften([[sample]], "he-fast", 0.5, cache=tmp_path)
        for head, target in targets.items():
            known = 2 * softened.targets[head].astype(float) - target
            assert known.min() > -2
            assert known.max() < 257
            inside = known[made.labels > 0].mean()
            assert inside > 2 * known[made.labels == 0].mean()
        assert_array_equal(softened.targets["class"], kinds)
    ((same,),) = soften([[sample]], "he-fast", 0.0, cache=tmp_path)
    assert_array_equal(same.targets["nucleus"], targets["nucleus"])
    unknown = replace(sample, targets={"class": np.full_like(kinds, UNCLASSIFIED)})
    names = [entry.name for entry in load_bundle("he-fast").classes]
    ((taught,),) = soften([[unknown]], "he-fast", 0.5, cache=tmp_path, classes=names)
    found = taught.targets["class"]
    assert (found[made.labels == 0] == UNCLASSIFIED).all()
    sure = [np.unique(found[made.labels == label]) for label in range(1, made.labels.max() + 1)]
    assert all(len(classes) == 1 for classes in sure)
    assert {int(classes[0]) for classes in sure} <= {0, 1, 2, 3, UNCLASSIFIED}
    assert any(classes[0] != UNCLASSIFIED for classes in sure)
    ((other,),) = soften([[unknown]], "he-fast", 0.5, cache=tmp_path, classes=["tumour"])
    assert (other.targets["class"] == UNCLASSIFIED).all()
    with pytest.raises(RecipeError, match=r"teacher.share: expected 0 to 1"):
        Recipe.of(RECIPE | {"teacher": {"bundle": "he-fast", "share": 2.0}})


def test_a_run_or_the_network_of_a_bundle_can_be_the_teacher(data, tmp_path):
    train(Recipe.of(RECIPE), data=data, out=tmp_path / "run", device="cpu")
    made = synthetic_slide(120, 136, seed=5)
    targets = {"nucleus": TARGETS["nucleus"].make(made.labels, made.class_ids)}
    sample = Sample("made", made.image, made.labels, targets, mpp=made.mpp)
    export_run(tmp_path / "run", tmp_path / "bundle")
    by = [
        soften([[sample]], str(tmp_path / folder), 1.0, cache=tmp_path / "cache")[0][0].targets["nucleus"]
        for folder in ("run", "bundle")
    ]
    assert len(list((tmp_path / "cache").iterdir())) == 2  # neither takes what the other has found
    assert np.abs(by[0].astype(int) - by[1]).mean() < 1
    assert not np.array_equal(by[0], targets["nucleus"])


def test_a_bundles_network_computes_what_the_bundle_does():
    bundle = load_bundle("he-fast")
    tiles = synthetic_slide(128, 160, seed=4).image[None]
    expected = create_engine(bundle, precision="fp32").run(tiles)
    found = TorchEngine(load_bundle_network(bundle), bundle).run(tiles)
    for name, maps in expected.items():
        assert np.abs(maps.astype(int) - found[name]).max() <= 1


def test_a_bundles_network_trains_on_from_what_it_computes():
    bundle = load_bundle("he-fast")
    network = build_network(bundle.training["recipe"])
    load_from_bundle(network, bundle)
    images = torch.from_numpy(synthetic_slide(256, 192, seed=3).image[None]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        before = network.eval()(images)
        calibrate_norms(network, [images])
        after, training = network.eval()(images), network.train()(images)
    for name, logits in before.items():
        torch.testing.assert_close(after[name], logits, rtol=1e-3, atol=1e-3)
        assert (training[name] - logits).abs().mean() < 0.05
