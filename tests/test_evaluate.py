"""Data sets that are not as they must be, before the network has run."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nucfast.engine import ClassScheme
from nucfast.errors import DatasetError
from nucfast.pipeline import evaluate_dataset
from nucfast.pipeline.evaluate import dataset_rows


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels/a.png", np.zeros((8, 9), np.uint8), r"labels/a.png: expected ids of shape \(8, 10\) as the"),
        ("labels/a.png", np.zeros((8, 10, 3), np.uint8), r"expected ids of shape .* got \(8, 10, 3\)"),
        ("types/a.png", np.zeros((9, 10), np.uint8), r"types/a.png: expected ids of shape \(8, 10\)"),
        ("types/a.png", np.full((8, 10), 300, np.uint16), r"class ids \[300\] are not in .* scheme 'x'"),
    ],
)
def test_files_that_do_not_fit(tmp_path, file, content, message):
    for folder in ("images", "labels", "types"):
        (tmp_path / folder).mkdir()
    (tmp_path / "manifest.csv").write_text("id,split,image\na,val,images/a.png\n")
    Image.fromarray(np.full((8, 10, 3), 240, np.uint8)).save(tmp_path / "images" / "a.png")
    for folder in ("labels", "types"):
        Image.fromarray(np.zeros((8, 10), np.uint8)).save(tmp_path / folder / "a.png")
    Image.fromarray(content).save(tmp_path / file)
    bundle = SimpleNamespace(mpp=0.5, class_scheme=ClassScheme("x", {1: 1}))
    with pytest.raises(DatasetError, match=message):
        evaluate_dataset(tmp_path, engine=SimpleNamespace(bundle=bundle))


@pytest.mark.parametrize("mpp", ["0", "-0.5", "nan", "half", "1000"])
def test_a_resolution_that_is_none(tmp_path, mpp):
    (tmp_path / "manifest.csv").write_text(f"id,split,image,mpp\na,val,a.png,{mpp}\n")
    bundle = SimpleNamespace(mpp=0.5, class_scheme=None)
    with pytest.raises(DatasetError, match=rf"manifest.csv: a: mpp: expected um per pixel, .* got '{mpp}'"):
        evaluate_dataset(tmp_path, engine=SimpleNamespace(bundle=bundle))


def test_a_manifest_as_spreadsheets_write_it(tmp_path):
    text = "id,split,image,mpp\na,val\n"
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8-sig")
    assert dataset_rows(tmp_path, "val", {}) == [{"id": "a", "split": "val", "image": "", "mpp": ""}]
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-16")
    with pytest.raises(
        DatasetError, match=r"manifest.csv: cannot be read .*; a data set needs it, as CSV in"
    ):
        dataset_rows(tmp_path, "val", {})


def test_what_leaves_no_image_is_named(tmp_path):
    (tmp_path / "manifest.csv").write_text("id,split,image,kind\na,val,a.png,x\nb,train,b.png,y\n")
    assert [row["id"] for row in dataset_rows(tmp_path, "val", {"kind": "x"})] == ["a"]
    for split, where, message in (
        ("test", {}, "no image of split 'test'; it has train, val"),
        ("val", {"kind": "z"}, "no image of kind 'z'; it has x, y"),
        ("val", {"kind": "y"}, "no image has split 'val', kind 'y' all at once"),
    ):
        with pytest.raises(DatasetError, match=message):
            dataset_rows(tmp_path, split, where)


def test_an_image_of_ids_that_is_damaged(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "manifest.csv").write_text("id,split,image\na,val,a.png\n")
    Image.fromarray(np.full((8, 10, 3), 240, np.uint8)).save(tmp_path / "a.png")
    path = tmp_path / "labels" / "a.png"
    Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)).save(path)
    path.write_bytes(path.read_bytes().replace(b"\0\0\0\x0dIHDR", b"\0\0\0\x05IHDR"))
    bundle = SimpleNamespace(mpp=0.5, class_scheme=None)
    with pytest.raises(DatasetError, match=r"a.png: expected an image of ids, got Truncated IHDR"):
        evaluate_dataset(tmp_path, engine=SimpleNamespace(bundle=bundle))
