"""Whatever a file holds, opening it gives pixels or an error that names it: no crash, no hang, no bomb."""

import json
import resource
import shutil
import warnings
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hostile
from nucfast.engine import load_bundle
from nucfast.errors import BundleError

EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "set"]), st.floats(0, 1), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return hostile.seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@settings(max_examples=150, deadline=None)
@given(number=st.integers(0, 9), edits=EDITS, suffix=st.sampled_from([".tif", ".svs", ".png", ".ndpi", ""]))
def test_damaged_and_mislabelled_slides(seeds, folder, number, edits, suffix):
    path = folder / f"slide{suffix}"
    path.write_bytes(hostile.damaged(seeds[number], edits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged files
        hostile.check_slide(path)


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=400),
    magic=st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0+", b"\x89PNG\r\n\x1a\n", b""]),
)
def test_noise_behind_any_magic(folder, data, magic):
    path = folder / "noise.tif"
    path.write_bytes(magic + data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hostile.check_slide(path)


@pytest.mark.parametrize("name", sorted(hostile.bombs()))
def test_bombs_are_refused_in_little_memory(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(hostile.bombs()[name])
    hostile.forget_peak()
    before = hostile.peak_kb()
    assert hostile.check_slide(path) != "read"
    assert hostile.peak_kb() - before < 100_000


@pytest.fixture(scope="module")
def bundle_files(tmp_path_factory):
    return hostile.bundle_files(tmp_path_factory.mktemp("bundle") / "tiny")


@settings(max_examples=100, deadline=None)
@given(edits=EDITS, target=st.sampled_from(["bundle.json", "model.onnx"]))
def test_damaged_bundles(bundle_files, folder, edits, target):
    path = folder / "bundle"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in bundle_files.items():
        (path / name).write_bytes(hostile.damaged(data, edits) if name == target else data)
    hostile.check_bundle(path)


@settings(max_examples=100, deadline=None)
@given(edits=EDITS, target=st.sampled_from(["bundle.json", "model.onnx", None]))
def test_damaged_zipped_bundles(bundle_files, folder, edits, target):
    path = folder / "bundle.zip"
    path.write_bytes(hostile.damaged_bundle(bundle_files, edits, target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hostile.check_bundle(path)


def test_a_zip_bomb_is_no_bundle(bundle_files, tmp_path):
    description = json.loads(bundle_files["bundle.json"])
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle.json", json.dumps(description))
        with archive.open("model.onnx", "w", force_zip64=True) as file:
            for _ in range(128):
                file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=r"bomb\.zip"):
        load_bundle(path).model_bytes()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
