"""PanNuke's official layout, on a small fold."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("torch", reason="training needs PyTorch")

from nucfast.errors import DatasetError
from nucfast_training.errors import RecipeError
from nucfast_training.pannuke import merge_masks, read_pannuke
from nucfast_training.recipe import load_recipe
from nucfast_training.smoke import make_data


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("pannuke-unet-sharp")


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_data(recipe, root)
    return root / "pannuke"


def test_masks_become_instances_and_classes():
    masks = np.zeros((2, 4, 5))
    masks[0, :2, 0] = 3.0
    masks[0, 2, 1] = 3.0  # the same id in another channel is another nucleus
    masks[1, :, 4] = 8.0
    masks[1, 0, 0] = 7.0
    labels, kinds = merge_masks(masks)
    assert_array_equal(kinds, [[1, 1, 2, 0], [1, 5, 5, 5]])
    assert len(np.unique(labels[labels > 0])) == 4
    assert labels[0, 0] == labels[0, 1] != labels[0, 2]
    assert_array_equal(labels > 0, kinds > 0)


def test_reads_the_folds_of_a_split(folder, recipe):
    entry = recipe.sets[0]
    train, val = (read_pannuke(folder, split, entry, recipe) for split in ("train", "val"))
    assert [sample.name for sample in train] == ["fold1/0", "fold1/1", "fold2/0", "fold2/1"]
    assert [sample.name for sample in val] == ["fold3/0", "fold3/1"]
    masks = np.load(folder / "Fold 2" / "masks" / "fold2" / "masks.npy")
    images = np.load(folder / "Fold 2" / "images" / "fold2" / "images.npy")
    assert_array_equal(train[2].image, images[0].astype(np.uint8))
    expected = (masks[0, ..., :5] > 0) @ np.arange(1, 6)
    assert_array_equal(train[2].targets["semantic"], expected)
    assert train[2].mpp == 0.25
    assert len(read_pannuke(folder, "train", entry, recipe, limit=3)) == 3


def test_wrong_layouts_are_named(folder, recipe, tmp_path):
    entry = recipe.sets[0]
    with pytest.raises(DatasetError, match=r"images.npy: expected an array of PanNuke's official layout"):
        read_pannuke(tmp_path, "train", entry, recipe)
    with pytest.raises(RecipeError, match="folds: expected folds for 'test'"):
        read_pannuke(folder, "test", entry, recipe)
    for kind in ("images", "masks"):
        place = tmp_path / "Fold 1" / kind / "fold1"
        place.mkdir(parents=True)
        np.save(place / f"{kind}.npy", np.zeros((1, 8, 8, 3)))
    with pytest.raises(DatasetError, match=r"masks.npy: expected shape \(1, 8, 8, 6\), got \(1, 8, 8, 3\)"):
        read_pannuke(tmp_path, "train", entry, recipe)
