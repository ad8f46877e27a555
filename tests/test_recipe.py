"""Recipes: the shipped ones load, mistakes are named, changes and sweeps do what they say."""

import pytest

pytest.importorskip("torch", reason="training needs PyTorch")

from nucfast_training.errors import RecipeError
from nucfast_training.networks import build_network, check_heads
from nucfast_training.recipe import load_recipe, recipe_names
from nucfast_training.smoke import made_small

TEXT = """
name = "mine"
mpp = 0.5
seed = 1
[network]
kind = "unet"
widths = [4, 8]
heads = { nucleus = 1 }
[patches]
size_px = 64
batch = 2
[optimiser]
learning_rate = 1e-3
steps = 2
[loss]
nucleus = 1.0
[[sets]]
name = "made"
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_whole(name):
    recipe = load_recipe(name)
    assert recipe.name == ("fine-tuned" if name == "fine-tune" else name)
    for variant in recipe.variants().values():
        assert not variant.sweep
        with_bundle = {"version", "description", "licence", "tile_px", "stride_px", "margin_px", "decoder"}
        assert with_bundle <= set(variant.bundle)


def test_changes(path):
    changed = load_recipe(
        path,
        [
            "optimiser.learning_rate=1e-4",
            "sets.0.weight=2",
            "optimiser.kind=sgd",
            "loss.nucleus={ bce = 1,\n  dice = 2 }",
        ],
    )
    assert changed.loss == {"nucleus": {"bce": 1.0, "dice": 2.0}}
    assert changed.optimiser.learning_rate == 1e-4
    assert changed.optimiser.kind == "sgd"
    assert changed.sets[0].weight == 2.0
    assert changed.table["optimiser"]["learning_rate"] == 1e-4  # what checkpoints store


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "optimiser.learning_rat=1",
            r"mine.toml: optimiser.learning_rat: unknown; expected one of .*learning_rate",
        ),
        ("optimiser.learning_rate=fast", "optimiser.learning_rate: expected a number, got 'fast'"),
        ("optimiser.learning_rate=0", "optimiser.learning_rate: expected a number above 0, got 0"),
        ("sets.0.mpp=nan", "sets.0.mpp: expected a finite number, got nan"),
        ("mpp=1e9", r"mpp: expected um per pixel, .*, got 1e\+09"),
        ("sets.0.mpp=0.001", "sets.0.mpp: expected um per pixel, .*, got 0.001"),
        ("sets.0.mpp=-1", "sets.0.mpp: expected a number from 0 on, got -1"),
        ("sets.0.weight=0", "sets: expected at least one with a weight above 0"),
        ("validation.every_steps=0", "validation.every_steps: expected a number above 0, got 0"),
        ("patches.zoom=-1", "patches.zoom: expected a number from 0 on, got -1"),
        ("seed=9999999999999999999", r"seed: expected a number below 9.2.*, got 1e\+19"),
        ("seed=-1", "seed: expected a number from 0 on, got -1"),
        ("optimiser.kind=adamax", "optimiser.kind: expected one of adamw, adam, .*, got 'adamax'"),
        ("optimiser.epochs=2", "optimiser: expected steps or epochs above 0, and not both"),
        ("patches.batch=true", "patches.batch: expected an integer, got True"),
        ("patches.sampling=all", "patches.sampling: expected one of random, crops, whole, got 'all'"),
        ("loss.nucleus={ huber = 1.0 }", "loss.nucleus.huber: expected one of bce, .*"),
        ("loss.nucleus={ cross_entropy = 1.0 }", "loss.nucleus.cross_entropy: does not fit this head"),
        ("loss.nucleus={ bce = -1.0 }", "loss.nucleus.bce: expected a number from 0 on, got -1"),
        ("loss.nucleus={}", "loss.nucleus: expected a weight above 0"),
        ("loss.halo=1.0", "loss.halo: expected one of nucleus, distance, class, semantic"),
        ("loss.class=1.0", "classes: missing"),
        ("augmentation.twist=0.5", "augmentation.twist: expected one of flip, .*"),
        ("augmentation.flip=7", "augmentation.flip: expected 0 to 1, got 7"),
        ("patches.zoom=1e9", "patches.zoom: expected 0 to 1, got 1000000000"),
        ("validation.metric=beauty", "validation.metric: expected one of loss, jaccard, .*"),
        ("sets.3.weight=1", "sets.3.weight: expected an index below 1, got '3'"),
        ("name.first=1", "name.first: name is not a table"),
        ("seed", "--set seed: expected KEY=VALUE"),
        ("start.bundle=no-such", "no-such"),
        ("start.bundle=5", "start.bundle: expected a string, got 5"),
        ("optimiser.learning_rate=1e300", r"optimiser.learning_rate: expected a number below 1e\+38"),
        ("table.seed=2", r"table: unknown; expected one of name, .*, bundle$"),
    ],
)
def test_mistakes_are_named(path, change, message):
    from nucfast.errors import NucfastError

    with pytest.raises(NucfastError, match=message):
        load_recipe(path, [change])


def test_class_ids_have_no_gaps():
    names = "classes.names=['a', 'b', 'c', 'd']"
    with pytest.raises(
        RecipeError, match=r"classes.raw: expected every id from 1 to 4 without gaps, got \[1, 2, 4\]"
    ):
        load_recipe("he-fast", [names, "classes.raw={ 1 = 1, 2 = 2, 3 = 4 }"])
    with pytest.raises(RecipeError, match=r"classes.raw: expected ids 0 to 4, got \[1, 5\]"):
        load_recipe("he-fast", [names, "classes.raw={ 1 = 1, 2 = 5 }"])


def test_classes_that_no_file_or_bundle_can_have():
    for change, message in (
        (
            "classes.raw={ a = 1, b = 2, c = 3, d = 4 }",
            "classes.raw: expected class ids .* as keys, got a, b",
        ),
        ("classes.colors=[[1], [2], [3], [4]]", r"classes.colors: expected \[red, green, blue\] of 0 to 255"),
        ("classes.weights=[1, 1, 1, -1]", "classes.weights: expected numbers from 0 on"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe("he-fast", [change])


def test_absent_and_broken_files(tmp_path):
    with pytest.raises(RecipeError, match=r"no-such: no such recipe .*he-fast"):
        load_recipe("no-such")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(RecipeError, match=r"broken.toml: cannot be read as TOML"):
        load_recipe(tmp_path / "broken.toml")
    (tmp_path / "loop.toml").write_text('extends = "loop"')
    with pytest.raises(RecipeError, match=r"loop.toml: extends loop.toml, which extends it in turn"):
        load_recipe(tmp_path / "loop.toml")


def test_extends_replaces_what_must_be_whole_and_merges_the_rest(path, tmp_path):
    child = tmp_path / "child.toml"
    child.write_text(
        'extends = "mine"\nname = "child"\n[network]\nkind = "fcn"\nheads = { nucleus = 1 }\n'
        "[optimiser]\nsteps = 7\n"
    )
    recipe = load_recipe(child)
    assert recipe.network == {"kind": "fcn", "heads": {"nucleus": 1}}
    assert (recipe.optimiser.steps, recipe.optimiser.learning_rate) == (7, 1e-3)


def test_sweep():
    recipe = load_recipe("consep-unet-rates")
    rates = {name: variant.optimiser.learning_rate for name, variant in recipe.variants().items()}
    assert rates == {"1e-2": 1e-2, "1e-4": 1e-4, "1e-5": 1e-5}
    assert recipe.variants()["1e-4"].name == "consep-unet-rates-1e-4"


def test_fine_tuning_takes_network_and_classes_of_the_bundle():
    recipe = load_recipe("fine-tune")
    assert recipe.network["kind"] == "fast_unet"
    assert recipe.classes is not None
    assert recipe.classes.names == ["epithelial", "inflammatory", "spindle", "other"]
    assert recipe.name == "fine-tuned"
    assert [entry.layout for entry in recipe.sets] == ["annotations"]
    assert recipe.patches.stain == 0.5  # not the bundle's
    assert recipe.bundle["description"].startswith("he-fast ")
    assert recipe.bundle["description"].endswith(", taught further")
    assert recipe.bundle["licence"] == "CC-BY-NC-SA-4.0"


def test_networks_refuse_strange_settings(path):
    with pytest.raises(RecipeError, match=r"network: unet does not take these settings \(.*'depth'"):
        build_network(load_recipe(path, ["network.depth=3"]).table)
    with pytest.raises(RecipeError, match=r"network.kind: expected one of .*fast_unet.*, got 'unit'"):
        build_network(load_recipe(path, ["network.kind=unit"]).table)
    with pytest.raises(RecipeError, match=r"network: unet does not take these settings \(.*negative"):
        build_network(load_recipe(path, ["network.widths=[-4, 4]"]).table)
    recipe = load_recipe(path, ["network={ kind = 'fcn', widths = [4], heads = { nucleus = 1 } }"])
    with pytest.raises(RecipeError, match=r"network: fcn does not run with these settings"):
        check_heads(build_network(recipe.table), recipe)


def test_smoke_changes_the_size_and_the_name(path):
    small = made_small(load_recipe(path))
    assert (small.optimiser.steps, small.patches.batch) == (4, 2)
    assert small.network == load_recipe(path).network
    assert small.name == "mine-smoke"  # no real run goes on from its checkpoint
