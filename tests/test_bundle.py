from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nucfast.engine import bundle as bundle_module
from nucfast.engine import load_bundle, shipped_names, write_bundle
from nucfast.engine.bundle import MANIFEST, MODEL, Bundle, ClassScheme, DecoderSpec, OutputSpec, Variant
from nucfast.engine.weights import with_half_weights
from nucfast.errors import BundleError
from nucfast.nuclei import NucleusClass
from tiny_model import tiny_onnx, tiny_spec

CONTENT = bytes(range(256)) * 64  # engines read models, bundles only carry them


@pytest.fixture
def directory(tmp_path) -> Path:
    write_bundle(tmp_path / "tiny", tiny_spec(), {MODEL: CONTENT})
    return tmp_path / "tiny"


def manifest(directory: Path) -> dict:
    return json.loads((directory / MANIFEST).read_text())


def rewrite(directory: Path, data: object) -> None:
    (directory / MANIFEST).write_text(json.dumps(data))


def zipped(directory: Path, *, inside: str = "", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path = directory.parent / "tiny.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(directory.iterdir()):
            archive.write(file, inside + file.name)
    return path


def test_round_trip(directory):
    expected = dataclasses.replace(tiny_spec(), path=directory, files=manifest(directory)["files"])
    assert load_bundle(directory) == expected
    assert load_bundle(str(directory)).model_bytes() == CONTENT


def test_json_is_as_documented(directory):
    data = manifest(directory)
    assert data["schema"] == 1
    assert data["input"] == {"name": "image", "layout": "NHWC", "dtype": "uint8", "channels": "RGB"}
    assert data["outputs"][2] == {
        "name": "class",
        "meaning": "probability of each class inside nuclei",
        "dtype": "uint8",
        "channels": 4,
        "stride": 2,
        "scale": 1 / 255,
    }
    assert data["classes"][1] == {"id": 2, "name": "inflammatory", "color": [10, 20, 255]}
    assert data["class_scheme"]["raw"]["7"] == 3
    assert data["decoder"]["sigma"] == 1.5
    assert set(data["files"]) == {MODEL}


def test_without_classes(tmp_path):
    spec = tiny_spec(outputs=tiny_spec().outputs[:2], classes=(), class_scheme=None)
    written = write_bundle(tmp_path / "plain", spec, {MODEL: CONTENT})
    assert written.classes == ()
    assert written.class_scheme is None


@pytest.mark.parametrize("inside", ["", "tiny/", "a/b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_is_read_in_place(directory, inside, compression):
    path = zipped(directory, inside=inside, compression=compression)
    bundle = load_bundle(path)
    assert bundle == dataclasses.replace(load_bundle(directory), path=path)
    shutil.rmtree(directory)
    assert bundle.model_bytes() == CONTENT


def test_pickle(directory):
    path = zipped(directory)
    assert pickle.loads(pickle.dumps(load_bundle(path))).model_bytes() == CONTENT


def test_shipped_bundles_are_found_by_name(directory, tmp_path, monkeypatch):
    root = tmp_path / "shipped"
    root.mkdir()
    monkeypatch.setattr(bundle_module, "_shipped_root", lambda: root)
    assert shipped_names() == []
    shutil.copytree(directory, root / "tiny")
    (root / "no-bundle").mkdir()
    assert shipped_names() == ["tiny"]
    monkeypatch.chdir(tmp_path)
    assert load_bundle("tiny").path == root / "tiny"
    assert load_bundle("./tiny").path == Path("tiny")
    assert load_bundle(Path("tiny")).path == Path("tiny")
    with pytest.raises(BundleError, match=r"model 'missing': no such bundle \(shipped: tiny;"):
        load_bundle("missing")


def test_what_is_shipped_loads():
    assert "he-fast" in shipped_names()
    for name in shipped_names():
        assert load_bundle(name).name == name


def test_damaged_model(directory):
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    (directory / MODEL).write_bytes(damaged)
    with pytest.raises(
        BundleError,
        match=r"tiny: model.onnx is damaged .*: get it again, or .* nucfast export RUN -o FOLDER$",
    ):
        load_bundle(directory)


def test_model_damaged_after_loading(directory):
    bundle = load_bundle(directory)
    (directory / MODEL).write_bytes(b"")
    with pytest.raises(BundleError, match=r"model.onnx is damaged"):
        bundle.model_bytes()


def test_missing_files(directory, tmp_path):
    (directory / MODEL).unlink()
    with pytest.raises(BundleError, match=r"tiny: model.onnx is missing: .* nucfast export RUN -o FOLDER$"):
        load_bundle(directory)
    path = zipped(directory)
    with pytest.raises(
        BundleError, match=r"tiny.zip: model.onnx is missing: .* nucfast export RUN -o FOLDER$"
    ):
        load_bundle(path)
    (tmp_path / "empty").mkdir()
    message = r"empty: no bundle.json in it, so it is not a model bundle: .* nucfast export RUN -o FOLDER$"
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path / "empty")


def test_what_cannot_be_looked_at(tmp_path):
    with pytest.raises(BundleError, match=r"a: cannot be read as a model bundle, .*File name too long"):
        load_bundle(tmp_path / ("a" * 300))


def test_what_may_never_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match=r"pipe: cannot be read .*\(neither a file nor a folder\)"):
        load_bundle(tmp_path / "pipe")


def test_network_without_its_manifest(directory):
    with pytest.raises(BundleError, match=r"model.onnx: a network alone is no model bundle.* export RUN"):
        load_bundle(directory / MODEL)
    (directory / MODEL).rename(directory / "Model.ONNX")
    with pytest.raises(BundleError, match=r"Model.ONNX: a network alone is no model bundle.* export RUN"):
        load_bundle(directory / "Model.ONNX")
    (directory / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"tiny: no bundle.json in it, .* nucfast export RUN -o FOLDER$"):
        load_bundle(directory)


@pytest.mark.parametrize("cut", [0, 10, len(CONTENT) - 1])
def test_truncated_model(directory, cut):
    (directory / MODEL).write_bytes(CONTENT[:cut])
    with pytest.raises(BundleError, match=r"tiny: model.onnx is damaged \(its sha256 differs"):
        load_bundle(directory)


def test_wrong_checksum(directory):
    data = manifest(directory)
    rewrite(directory, data | {"files": {MODEL: "0" * 64}})
    with pytest.raises(BundleError, match=r"tiny: model.onnx is damaged \(its sha256 differs"):
        load_bundle(directory)


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_truncated_zip(directory, cut):
    path = zipped(directory)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BundleError, match=r"tiny.zip: .*: get it again, or .* nucfast export RUN -o FOLDER$"):
        load_bundle(path)


def test_zip_with_flipped_bytes(directory):
    path = zipped(directory)
    intact = path.read_bytes()
    for position in range(0, len(intact), 61):
        content = bytearray(intact)
        content[position] ^= 0xFF
        path.write_bytes(content)
        try:
            load_bundle(path)  # timestamps and the like may change unnoticed
        except BundleError as error:
            assert "tiny.zip" in str(error)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"schema": NaN}', "[" * 100_000])
def test_not_a_manifest(directory, text):
    (directory / MANIFEST).write_text(text)
    with pytest.raises(
        BundleError, match=r"tiny: bundle.json: (not valid JSON|the file: expected an object)"
    ):
        load_bundle(directory)


def test_manifest_not_utf8(directory):
    (directory / MANIFEST).write_bytes(b'{"name": "\xff"}')
    with pytest.raises(BundleError, match="not valid JSON"):
        load_bundle(directory)


def test_later_schema_asks_for_an_upgrade(directory):
    rewrite(directory, {"schema": 2, "everything": "else differs"})
    with pytest.raises(
        BundleError, match=r"schema 2 is from a later release .* pip install --upgrade nucfast"
    ):
        load_bundle(directory)


class TestRemedies:
    """Every error is one line that ends with the command that mends this bundle."""

    VARIANTS = (Variant("model-int8.onnx", "onnx", "int8"), Variant("model-int8.xml", "openvino", "int8"))
    FILES = ("model-int8.onnx", "model-int8.xml", "model-int8.bin")

    @pytest.fixture
    def directory(self, tmp_path):
        files = {MODEL: CONTENT, **{name: name.encode() for name in self.FILES}}
        write_bundle(tmp_path / "tiny", tiny_spec(variants=self.VARIANTS), files)
        return tmp_path / "tiny"

    @pytest.mark.parametrize("name", FILES)
    def test_of_a_further_file(self, directory, name):
        format = "onnx" if name.endswith("onnx") else "openvino"
        command = rf"nucfast export {directory} --to {format} --precision int8 --data DATASET"
        (directory / name).write_bytes(b"other")
        with pytest.raises(BundleError, match=rf"tiny: {name} is damaged .*: write it anew with  {command}$"):
            load_bundle(directory)
        # The command can load it.
        left = load_bundle(directory, without=(format, "int8"))
        assert left.variants == tuple(item for item in self.VARIANTS if item.format != format)
        assert name not in left.files
        path = zipped(directory)
        with pytest.raises(BundleError, match=r"tiny.zip: .*tiny.zip --to .* --data DATASET -o FOLDER$"):
            load_bundle(path)

    def test_what_is_not_there_is_not_left_out(self, directory):
        assert load_bundle(directory, without=("onnx", "fp16")) == load_bundle(directory)

    def damage(self, directory, kind):
        if kind in (MODEL, *self.FILES):
            (directory / kind).write_bytes(b"other")
        elif kind == "JSON":
            (directory / MANIFEST).write_text("{")
        elif kind == "key":
            rewrite(directory, manifest(directory) | {"line\nbreak": 1, "tile_px": "many"})
        elif kind == "long":
            rewrite(directory, manifest(directory) | {"files": {MODEL: "0" * 64, "a\n/b": "0" * 64}})
        elif kind == "old":
            rewrite(directory, manifest(directory) | {"schema": 0})
        else:
            (directory / kind.removeprefix("no ")).unlink()

    KINDS = (MODEL, *FILES, "JSON", "key", "long", "old", f"no {MODEL}", f"no {MANIFEST}")

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_a_shipped_bundle(self, directory, monkeypatch, kind):
        monkeypatch.setattr(bundle_module, "_shipped_root", lambda: directory.parent)
        self.damage(directory, kind)
        for given in ("tiny", directory):
            with pytest.raises(BundleError) as caught:
                load_bundle(given)
            assert str(caught.value).endswith(": run  pip install --force-reinstall nucfast")
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_another(self, directory, kind):
        self.damage(directory, kind)
        with pytest.raises(BundleError) as caught:
            load_bundle(directory)
        command = "nucfast export RUN -o FOLDER"
        if kind in self.FILES:
            command = f"nucfast export {directory} --to "
        assert command in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unknown_keys_are_ignored(directory):
    rewrite(directory, manifest(directory) | {"note": "for people"})
    load_bundle(directory)


def leaves(data, path=()):
    """The path of every value, containers included."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def changed(data, path, change):
    """A copy of the JSON in which ``change(parent, key)`` was done to the value at ``path``."""
    data = copy.deepcopy(data)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return data


def put(value):
    return lambda parent, key: parent.__setitem__(key, value)


def delete(parent, key):
    del parent[key]


# Their content is for people, or for one decoder only.
FREE = [("training", "data"), ("training", "recipe"), ("accuracy", 0)]
FREE += [("decoder", "smooth"), ("decoder", "sigma")]


def test_every_key_is_required_and_typed(directory):
    intact = manifest(directory)
    wrong = []
    for path in leaves(intact):
        if any(path[: len(free)] == free for free in FREE):
            continue
        optional = path == ("class_scheme",) or path[:-1] == ("class_scheme", "raw")
        changes = [put([[]])] if path == ("training",) else [put({"wrong": []}), put([[]])]
        if isinstance(path[-1], str) and not optional:
            changes.append(delete)
        for change in changes:
            rewrite(directory, changed(intact, path, change))
            try:
                load_bundle(directory)
                wrong.append((path, "no error"))
            except BundleError as error:
                where, _, what = str(error).partition(": bundle.json: ")
                # It names the file, and the key or what holds it.
                named = any(str(key) in what for key in path[-2:])
                if where != str(directory) or not named or not what.endswith("export RUN -o FOLDER"):
                    wrong.append((path, str(error)))
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("name",), "a/b", r"name: expected a plain name without '/', got 'a/b'"),
        (("name",), "..", r"name: expected a plain name without '/', got '..'"),
        (("name",), "a\nb", r"name: expected a plain name without '/', got 'a\\nb'"),
        (("mpp",), 0, r"mpp: expected um per pixel, 0.05 to 20, got 0"),
        (("mpp",), 353.0, r"mpp: expected um per pixel"),
        (("mpp",), 10**400, r"mpp: expected a number, got 1000"),
        (("mpp",), "0.5", r"mpp: expected a number, got '0.5'"),
        (("tile_px",), 62, r"tile_px: expected a multiple of stride_px = 4, got 62"),
        (("tile_px",), 16, r"tile_px: expected more than 2 \* margin_px, in whole strides, got 16"),
        (("tile_px",), 64.0, r"tile_px: expected an integer, got 64.0"),
        (("input", "layout"), "NCHW", r"input.layout: expected 'NHWC', got 'NCHW'"),
        (("outputs",), [], r"outputs: expected at least one"),
        (("outputs", 0, "dtype"), "float32", r"outputs\[0\].dtype: expected 'uint8', got 'float32'"),
        (("outputs", 0, "stride"), 3, r"outputs.nucleus.stride: expected a divisor of stride_px, got 3"),
        (("outputs", 1, "name"), "nucleus", r"outputs: expected different names"),
        (("outputs", 2, "channels"), 3, r"classes: expected 3, one per channel of output 'class'"),
        (("classes", 0, "id"), 2, r"classes: expected different ids"),
        (("classes", 0, "id"), 0, r"classes\[0\].id: expected 1..255, got 0"),
        (("classes", 3, "color"), [0, 0, 256], r"classes\[3\].color: expected three integers of 0..255"),
        (("classes", 3, "color"), [0, 0], r"classes\[3\].color: expected three integers"),
        (("class_scheme", "raw"), {"1": 9}, r"class_scheme.raw.1: expected 0 or one of the ids"),
        (("class_scheme", "raw"), {"one": 1}, r"class_scheme.raw.one: expected an integer as key"),
        (("decoder", "nucleus_threshold"), 0, r"decoder.nucleus_threshold: expected 1 to 255, got 0"),
        (("decoder", "min_area_um2"), -1, r"decoder.min_area_um2: expected 0 or more, got -1"),
        (
            ("variants",),
            [{"file": MODEL, "format": "openvino", "precision": "fp32"}],
            r"variants\[0\].file: expected one of the files \['model.onnx'\], got 'model.onnx.bin'",
        ),
        (("outputs", 0, "channels"), 10**12, r"outputs\[0\].channels: expected 1 to 256"),
        (("files",), {}, r"files: expected 'model.onnx' among them"),
        (("files", MODEL), "0123", r"files.model.onnx: expected a sha256"),
        (("files", "../outside"), "0" * 64, r"files: expected plain file names, got '../outside'"),
    ],
)
def test_nonsense_is_refused(directory, path, value, message):
    rewrite(directory, changed(manifest(directory), path, put(value)))
    with pytest.raises(BundleError, match=rf"tiny: bundle.json: {message}"):
        load_bundle(directory)


def test_constructors_check_too():
    with pytest.raises(ValueError, match="mpp: expected um per pixel"):
        tiny_spec(mpp=353.0)
    with pytest.raises(ValueError, match="channels: expected 1 to 256"):
        OutputSpec("x", "", 0, 1)
    with pytest.raises(ValueError, match=r"id: expected 1\.\.255"):
        NucleusClass(256, "x", (0, 0, 0))
    with pytest.raises(ValueError, match="min_rise: expected 0 to 255"):
        DecoderSpec("climb", 128, 300, 8.0)
    with pytest.raises(ValueError, match="class_scheme"):
        tiny_spec(class_scheme=ClassScheme("x", {1: 77}))


def test_output_by_name():
    assert tiny_spec().output("class").stride == 2
    with pytest.raises(KeyError):
        tiny_spec().output("missing")


def test_unwritten_bundle_has_no_files():
    with pytest.raises(ValueError, match="name: expected one of"):
        tiny_spec().model_bytes()


def test_write_refuses_to_destroy(directory, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BundleError, match="photos: exists and is not a bundle"):
        write_bundle(tmp_path / "photos", tiny_spec(), {MODEL: b""}, overwrite=True)
    with pytest.raises(BundleError, match="tiny: exists already"):
        write_bundle(directory, tiny_spec(), {MODEL: b""})
    assert load_bundle(directory).model_bytes() == CONTENT
    assert (tmp_path / "photos" / "cat.jpg").exists()


@pytest.mark.parametrize("place", ["tiny", "link", "."])
def test_overwrite_replaces_the_files_of_the_bundle_and_no_others(tmp_path, monkeypatch, place):
    """In their own folder, be it through a link or from within."""
    directory = tmp_path / "tiny"
    write_bundle(directory, tiny_spec(), {MODEL: CONTENT, "old.txt": b"old"})
    (directory / "notes.txt").write_text("the user's")
    (tmp_path / "link").symlink_to("tiny")
    monkeypatch.chdir(directory if place == "." else tmp_path)
    files = {MODEL: b"new", "labels.txt": b"a\nb\n"}
    bundle = write_bundle(place, tiny_spec(version="2"), files, overwrite=True)
    assert bundle.version == "2"
    assert bundle.read_file("labels.txt") == b"a\nb\n"
    assert load_bundle(directory).model_bytes() == b"new"
    assert sorted(path.name for path in directory.iterdir()) == [MANIFEST, "labels.txt", MODEL, "notes.txt"]
    assert {path.name: path.is_symlink() for path in tmp_path.iterdir()} == {"tiny": False, "link": True}


def test_an_interrupt_leaves_the_old_bundle(directory, monkeypatch):
    before = sorted(directory.iterdir())

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(directory, tiny_spec(version="2"), {MODEL: b"new"}, overwrite=True)
    assert load_bundle(directory).model_bytes() == CONTENT
    assert sorted(directory.iterdir()) == before


def test_write_checks_names(tmp_path):
    with pytest.raises(ValueError, match=r"files: expected 'model.onnx' among them"):
        write_bundle(tmp_path / "x", tiny_spec(), {})
    with pytest.raises(ValueError, match="files: expected plain file names"):
        write_bundle(tmp_path / "x", tiny_spec(), {MODEL: b"", "a/b": b""})
    assert list(tmp_path.iterdir()) == []


def test_unwritable_parent(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        BundleError, match=r"cannot be written, .*file is no folder to write to; give another"
    ):
        write_bundle(tmp_path / "file" / "bundle", tiny_spec(), {MODEL: b""})


def test_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        BundleError, match=r"cannot write the bundle: No space left on device; make room, or give"
    ):
        write_bundle(tmp_path / "bundle", tiny_spec(), {MODEL: b""})
    assert list(tmp_path.iterdir()) == []


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_spec().mpp = 1.0
    assert isinstance(tiny_spec(), Bundle)


class TestSharedWeights:
    """A file that takes its weights from another is whole again when an engine reads it."""

    @pytest.fixture(params=["he-accurate", "he-fast", "he-open", "micro-fast"])
    def shipped(self, request):
        return load_bundle(request.param)

    def test_the_whole_is_a_model(self, shipped):
        onnx = pytest.importorskip("onnx")
        variant = shipped.variant("onnx", "fp16")
        assert variant.details["weights_of"] == "model.onnx"
        assert len(shipped.read_file(variant.file)) < 50_000
        whole = onnx.load_from_string(shipped.onnx_bytes(variant.file))
        onnx.checker.check_model(whole)
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
        assert len(weights) == len(whole.graph.initializer)
        for node in whole.graph.node:
            if node.op_type == "Conv":
                assert weights[node.input[1]].dtype == np.float16

    def test_other_files_are_as_they_are(self, shipped):
        for name in ("model.onnx", "model-int8.onnx"):
            assert shipped.onnx_bytes(name) == shipped.read_file(name)

    def test_what_is_added(self):
        """Fields of every kind are passed over; of the initialisers only those in fp16 are taken."""
        half = b"\x08\x01\x10\x0a\x42\x01w\x4a\x02\x00\x3c"  # dims 1, FLOAT16, name, raw_data
        single = b"\x08\x01\x10\x01\x42\x01v\x4a\x04\x00\x00\x80\x3f"
        graph = b"\x2a" + bytes([len(half)]) + half + b"\x2a" + bytes([len(single)]) + single
        long = b"\x12\xc8\x01" + 200 * b"n"  # the graph's name, whose length takes two bytes
        size = len(long + graph)
        fixed = b"\x08\x0a\x39" + bytes(8) + b"\x3d" + bytes(4)
        source = fixed + b"\x3a" + bytes([size & 127 | 128, size >> 7]) + long + graph
        added = with_half_weights(b"model", source)
        assert added == b"model\x3a" + bytes([2 + len(half)]) + b"\x2a" + bytes([len(half)]) + half

    @pytest.mark.parametrize(
        "source", [b"\x3a\x05\x00", b"\x3a", b"\x3b\x00", b"\x08" + 11 * b"\xff", b"\x3d\x00"]
    )
    def test_what_is_no_message(self, source):
        with pytest.raises(ValueError, match="source: "):
            with_half_weights(b"", source)

    @pytest.mark.parametrize("given", ["other.onnx", 3, "labels.txt"])
    def test_weights_of_what_is_not_there(self, tmp_path, given):
        variant = Variant("model-fp16.onnx", "onnx", "fp16", {"weights_of": given})
        files = {"model.onnx": tiny_onnx(), "model-fp16.onnx": b"", "labels.txt": b"\x3b"}
        bundle = write_bundle(tmp_path / "tiny", tiny_spec(variants=(variant,)), files)
        with pytest.raises(
            BundleError,
            match=r"model-fp16\.onnx takes weights from .* nucfast export .*/tiny --to onnx --precision fp16",
        ):
            bundle.onnx_bytes("model-fp16.onnx")
