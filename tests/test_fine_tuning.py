"""A shipped bundle taught with annotated images: weights come back, annotations are read, mistakes named."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

pytest.importorskip("torch", reason="training needs PyTorch")

import torch
from safetensors.torch import load_file, save_file

from nucfast.engine import create_engine, load_bundle
from nucfast.errors import DatasetError
from nucfast.ops import contours
from nucfast.testing import synthetic_slide
from nucfast_export.flips import FlipMean
from nucfast_export.images import read_tiles, score
from nucfast_training.annotations import read_annotations, read_geojson
from nucfast_training.errors import RecipeError
from nucfast_training.networks import build_network
from nucfast_training.networks.unet_sharp import ResNeXt
from nucfast_training.recipe import load_recipe
from nucfast_training.start import load_encoder, load_from_bundle
from nucfast_training.train import train

CHANGES = [
    "sets.0.mpp=0.5",
    "patches.size_px=64",
    "patches.batch=2",
    "optimiser.steps=3",
    "validation.patches=2",
]


def feature(ring, name=None, **more):
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
        **more,
    }


def square(left, top, side=4):
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]


def annotate(folder, name, made):
    rings = contours(made.labels)
    features = [
        feature(rings.points[begin:end].tolist(), made.classes[made.class_ids[number - 1] - 1].name)
        for number, begin, end in zip(rings.labels.tolist(), rings.offsets, rings.offsets[1:], strict=False)
    ]
    Image.fromarray(made.image).save(folder / f"{name}.png")
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.fixture(scope="module")
def slides():
    return [synthetic_slide(160, 144, nuclei_per_mm2=4000, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def folder(slides, tmp_path_factory):
    root = tmp_path_factory.mktemp("annotated")
    for i, made in enumerate(slides):
        annotate(root, f"case {i}", made)
    return root


@pytest.fixture
def recipe():
    return load_recipe("fine-tune", CHANGES)


@pytest.mark.parametrize("name", ["he-fast", "he-accurate"])
def test_the_network_computes_what_the_bundle_does(name):
    bundle = load_bundle(name)
    network = build_network(bundle.training["recipe"])
    assert load_from_bundle(network, bundle) == []
    if bundle.training["recipe"]["bundle"].get("flips"):
        network = FlipMean(network)
    tile = synthetic_slide(192, 128, seed=4).image[None]
    with torch.no_grad():
        heads = network.eval()(torch.from_numpy(tile).permute(0, 3, 1, 2).float() / 255)
    maps = create_engine(bundle, device="cpu", precision="fp32").run(tile)
    for name, logits in heads.items():
        chance = torch.softmax(logits, 1) if name == "class" else torch.sigmoid(logits)
        apart = np.abs(maps[name] - 255 * chance.permute(0, 2, 3, 1).numpy())
        assert apart.mean() < 0.3  # rounding to whole grey levels costs 0.25
        assert apart.max() < 2


def test_heads_for_other_classes_start_anew(recipe):
    bundle = load_bundle("he-fast")
    network = build_network({"network": recipe.network | {"classes": 2}})
    assert load_from_bundle(network, bundle) == ["kinds"]
    with pytest.raises(
        RecipeError, match=r"start.bundle: he-fast holds no weights of shape .* for 'encode2.0'"
    ):
        load_from_bundle(build_network({"network": recipe.network | {"widths": [8, 8, 8, 8]}}), bundle)


def test_annotations_give_the_labels_they_were_made_from(folder, slides, recipe, tmp_path):
    entry = recipe.sets[0]
    train_set = read_annotations(folder, "train", entry, recipe, cache=tmp_path)
    val_set = read_annotations(folder, "val", entry, recipe, cache=tmp_path)
    assert [sample.name for sample in train_set + val_set] == ["case 0.png", "case 2.png", "case 1.png"]
    made = slides[0]
    kinds = np.concatenate([[0], made.class_ids])[made.labels]
    assert_array_equal(train_set[0].targets["nucleus"] > 0, made.labels > 0)
    assert_array_equal(train_set[0].targets["class"][made.labels > 0] + 1, kinds[made.labels > 0])


def test_geojson_as_qupath_writes_it(recipe, tmp_path):
    entry = recipe.sets[0]
    cell = feature(
        square(0, 0, 20), "Inflammatory", nucleusGeometry={"type": "Polygon", "coordinates": [square(2, 3)]}
    )
    parts = {"type": "MultiPolygon", "coordinates": [[square(30, 3)], [square(40, 3)]]}
    several = {"type": "Feature", "geometry": parts, "properties": {"classification": {"names": ["Tumor"]}}}
    path = tmp_path / "a.geojson.gz"
    path.write_bytes(gzip.compress(json.dumps([cell, several, feature(square(10, 20))]).encode()))
    mapped = load_recipe("fine-tune", [*CHANGES, "sets.0.classes={ tumor = 'epithelial' }"])
    labels, kinds = read_geojson(path, (32, 64), mapped.sets[0], mapped)
    assert labels.max() == 4
    assert [int((labels == i).sum()) for i in range(1, 5)] == [16] * 4
    assert kinds[5, 3] == 2  # its nucleus, not the cell
    assert (kinds[5, 31], kinds[5, 41], kinds[21, 11]) == (1, 1, 0)
    with pytest.raises(
        DatasetError, match=r"class 'Tumor' is not in the scheme 'consep-4' .*--set 'sets.0.classes"
    ):
        read_geojson(path, (32, 64), entry, recipe)
    misspelt = load_recipe("fine-tune", [*CHANGES, "sets.0.classes={ tumor = 'epithelia' }"])
    with pytest.raises(DatasetError, match=r"'Tumor', which sets.classes maps to 'epithelia', is not in"):
        read_geojson(path, (32, 64), misspelt.sets[0], misspelt)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as GeoJSON"),
        ("3", "expected a FeatureCollection"),
        ({"type": "FeatureCollection", "features": []}, "holds no nucleus"),
        ([{"type": "Feature"}], "feature 0: expected an object with a geometry"),
        (
            [{"geometry": {"type": "Point", "coordinates": [1, 2]}}],
            "feature 0: expected a Polygon .*got 'Point'",
        ),
        ([feature([[0, 0], [1, 1]])], "at least three finite points, got 2"),
        ([feature([1, 2, 3])], "expected rings of"),
        ([feature([[1], [2], [3]])], "expected rings of"),
        ([feature([[10**400, 2], [2, 3], [3, 4]])], "expected rings of"),
        ([{"geometry": {"type": "MultiPolygon", "coordinates": 5}}], "expected rings of"),
        pytest.param("[" * 100_000, "cannot be read as GeoJSON", id="nested too deep"),
        pytest.param(
            gzip.compress(b"[1]")[:10] + b"\xff\xff", "cannot be read as GeoJSON", id="damaged gzip"
        ),
        (
            [feature(square(900, 3))],
            r"reaches from \(900, 3\) to \(904, 7\), but the image is 64 x 32 pixels",
        ),
        ([feature(square(3.1, 3.1, 0.2))], "no outline covers a pixel"),
        (
            [feature(square(3, 3)) | {"properties": {"classification": {"name": 7}}}],
            r"feature 0: expected a classification with a name, got \{'name': 7\}",
        ),
        (
            [feature(square(3, 3)) | {"properties": ["tumor"]}],
            r"feature 0: expected a classification with a name, got \['tumor'\]",
        ),
    ],
)
def test_wrong_annotations_are_named(recipe, tmp_path, content, message):
    packed = isinstance(content, bytes)
    path = tmp_path / ("case.geojson.gz" if packed else "case.geojson")
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=rf"{path.name}: .*{message}"):
        read_geojson(path, (32, 64), recipe.sets[0], recipe)


def test_what_looks_like_a_mistake_is_said(folder, slides, recipe, tmp_path, caplog):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Image.fromarray(slides[0].image).save(tmp_path / "forgotten.png")
    half = {"features": [feature((np.array(square(3, 3)) / 2).tolist())]}
    (tmp_path / "case 0.geojson").write_text(json.dumps(half))
    read_annotations(tmp_path, "train", recipe.sets[0], recipe, cache=tmp_path / "cache")
    left_out, too_small = (record.getMessage() for record in caplog.records)
    assert "left out, no annotation: forgotten.png" in left_out
    assert "case 0.geojson: reaches to (4, 4) of 160 x 144 pixels: was it exported from" in too_small


def test_a_model_without_classes_ignores_them(folder, tmp_path):
    recipe = load_recipe("fine-tune", [*CHANGES, "start.bundle=he-open"])
    path = tmp_path / "case.geojson"
    path.write_text(json.dumps([feature(square(3, 3), "Tumor")]))
    labels, kinds = read_geojson(path, (32, 64), recipe.sets[0], recipe)
    assert labels.max() == 1
    assert not kinds.any()


def test_wrong_folders_are_named(folder, recipe, slides, tmp_path, monkeypatch):
    entry = recipe.sets[0]
    with (
        monkeypatch.context() as patch,
        pytest.raises(DatasetError, match=r"cannot be read as an image \(Image size"),
    ):
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        read_annotations(folder, "train", entry, recipe, cache=tmp_path)
    with pytest.raises(DatasetError, match=r"expected at least two images .* got 0 of 0 images"):
        read_annotations(tmp_path, "train", entry, recipe, cache=tmp_path)
    unscaled = load_recipe("fine-tune")
    with pytest.raises(DatasetError, match=r"resolution is not known: .* --set sets.0.mpp=0.25"):
        read_annotations(folder, "train", unscaled.sets[0], unscaled, cache=tmp_path)


def test_label_images_serve_as_well(slides, recipe, tmp_path):
    (tmp_path / "labels").mkdir()
    for i, made in enumerate(slides[:2]):
        Image.fromarray(made.image).save(tmp_path / f"{i}.png")
        Image.fromarray(3 * made.labels.astype(np.uint16)).save(tmp_path / "labels" / f"{i}.png")  # with gaps
    (sample,) = read_annotations(tmp_path, "train", recipe.sets[0], recipe, cache=tmp_path)
    assert_array_equal(sample.targets["nucleus"] > 0, slides[0].labels > 0)
    assert (sample.targets["class"] == 255).all()
    # Class ids are those of the recipe, whatever ids the files had that the bundle has learned from.
    (tmp_path / "types").mkdir()
    kinds = np.concatenate([[0], slides[0].class_ids]).astype(np.uint8)[slides[0].labels]
    Image.fromarray(kinds).save(tmp_path / "types" / "0.png")
    (sample,) = read_annotations(tmp_path, "train", recipe.sets[0], recipe, cache=tmp_path)
    assert_array_equal(sample.targets["class"][kinds > 0] + 1, kinds[kinds > 0])
    Image.fromarray(np.where(kinds > 0, np.uint8(5), kinds)).save(tmp_path / "types" / "0.png")
    with pytest.raises(
        DatasetError, match=r"types/0.png: class id 5 is none of the recipe's classes \(1 = epithelial, 2 ="
    ):
        read_annotations(tmp_path, "train", recipe.sets[0], recipe, cache=tmp_path)
    Image.fromarray(255 * (slides[0].labels > 0).astype(np.uint8)).save(tmp_path / "labels" / "0.png")
    with pytest.raises(DatasetError, match=r"labels/0.png: expected another id for each .* got 255 alone in"):
        read_annotations(tmp_path, "train", recipe.sets[0], recipe, cache=tmp_path)
    Image.fromarray(slides[0].labels[1:].astype(np.uint16)).save(tmp_path / "labels" / "0.png")
    with pytest.raises(DatasetError, match=r"labels/0.png: expected ids of shape \(144, 160\)"):
        read_annotations(tmp_path, "train", recipe.sets[0], recipe, cache=tmp_path)


@pytest.mark.parametrize("parts", ["['body']", "[]"])
def test_head_only_or_all_of_it(folder, tmp_path, parts):
    recipe = load_recipe("fine-tune", [*CHANGES, f"freeze.parts={parts}"])
    before = build_network(recipe.network and {"network": recipe.network})
    load_from_bundle(before, load_bundle("he-fast"))
    train(recipe, data=folder, out=tmp_path, device="cpu")
    after = load_file(tmp_path / "weights.safetensors")
    changed = {
        name.split(".")[0]
        for name, value in before.state_dict().items()
        if not torch.equal(value, after[name])
    }
    heads = {"maps", "kinds"}
    assert changed == heads if parts == "['body']" else changed > heads
    statistics = [name for name in after if "running" in name]
    assert all(torch.equal(after[name], before.state_dict()[name]) for name in statistics)


def test_annotated_images_serve_to_check_the_export(folder, recipe, tmp_path):
    """No data set is asked for: the folder, its every fifth image for validation."""
    bundle = replace(load_bundle("he-fast"), training={"recipe": recipe.table})
    (tile,) = read_tiles(folder, "val", bundle, 4)
    assert tile.shape == (1, 144, 160, 3)
    assert score(folder, engine=create_engine(bundle, device="cpu", precision="fp32")).pq > 0.5
    with pytest.raises(DatasetError, match="expected at least two images with an annotation"):
        read_tiles(tmp_path, "val", bundle, 4)


def test_encoder_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    small = {"kind": "unet_sharp", "width": 4, "bridge": 8, "depths": [1, 1, 1, 1], "heads": {"nucleus": 1}}
    network = build_network({"network": small})
    stored = ResNeXt((1, 1, 1, 1)).state_dict() | {"fc.weight": torch.zeros(5, 2048)}
    stored = {name: value for name, value in stored.items() if "num_batches" not in name}
    save_file(stored, tmp_path / "encoder.safetensors")
    torch.save(stored, tmp_path / "encoder.pth")
    for name in ("encoder.safetensors", "encoder.pth"):
        load_encoder(network, tmp_path / name)
        torch.testing.assert_close(network.encoder.layer2[0].conv2.weight, stored["layer2.0.conv2.weight"])
    del stored["layer1.0.bn1.weight"]
    save_file(stored, tmp_path / "part.safetensors")
    with pytest.raises(
        RecipeError, match=r"part.safetensors is not this encoder's: 1 parameters missing .*layer1.0.bn1"
    ):
        load_encoder(network, tmp_path / "part.safetensors")
    with pytest.raises(RecipeError, match=r"none.pth cannot be read as weights"):
        load_encoder(network, tmp_path / "none.pth")
    with pytest.raises(RecipeError, match=r"this network has no encoder"):
        load_encoder(
            build_network({"network": {"kind": "fcn", "heads": {"nucleus": 1}}}), tmp_path / "encoder.pth"
        )
