"""The model bundle: the only contract between training and runtime.

A bundle is a directory, or a zip of one, holding ``model.onnx`` and ``bundle.json``. The JSON says what
goes into the network (uint8 NHWC RGB at ``mpp``), what comes out of it, how a decoder turns that into nuclei,
and the SHA-256 of every file. Beside ``model.onnx``, which every bundle has and which computes in fp32, it
may hold the same network made for one precision or one library: its ``variants``. ``SCHEMA`` grows when a
reader of the previous one would misread a bundle; keys that a reader does not know are ignored, so
information that changes no result can be added without that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from nucfast.engine.weights import with_half_weights
from nucfast.errors import BundleError
from nucfast.nuclei import NucleusClass
from nucfast.slide.mpp import MAX_MPP, MIN_MPP, is_credible

SCHEMA = 1
MANIFEST = "bundle.json"
MODEL = "model.onnx"

_INPUT = {"layout": "NHWC", "dtype": "uint8", "channels": "RGB"}
_MAX_CHANNELS = 256  # as many classes as a byte has values
_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a number"}


def _expect(condition: bool, key: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{key}: expected {expected}, got {_describe(got)}")


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of the network: (N, height / stride, width / stride, channels) uint8.

    Attributes:
        name: its name in the ONNX graph and in what ``Engine.run`` returns.
        meaning: what it holds, in words.
        channels: size of the last axis.
        stride: input pixels per output pixel, along both axes.
        scale: a stored value times this is the quantity itself.
    """

    name: str
    meaning: str
    channels: int
    stride: int
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        _expect(self.name != "", "name", "a name", self.name)
        _expect(1 <= self.channels <= _MAX_CHANNELS, "channels", f"1 to {_MAX_CHANNELS}", self.channels)
        _expect(self.stride >= 1, "stride", "1 or more", self.stride)
        _expect(self.scale > 0, "scale", "a number above 0", self.scale)


@dataclass(frozen=True, slots=True)
class ClassScheme:
    """How the class ids of a data set map to those of the bundle; 0 drops the nucleus from scoring."""

    name: str
    raw: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """How outputs become nuclei.

    Attributes:
        name: the algorithm.
        nucleus_threshold: a pixel belongs to a nucleus where the "nucleus" output is at least this (1..255).
        peak_share: a pixel belongs to a nucleus only where the "nucleus" output is also at least this share
            (0..1) of its highest value in that nucleus: with a low ``nucleus_threshold``, faint nuclei are
            found and clear ones are not widened.
        min_rise: two summits of the "distance" output are two nuclei if the lower one rises at least this
            much (0..255) above the saddle between them.
        min_area_um2: smaller objects are dropped.
        max_hole_um2: holes up to this size are filled; 0 keeps all.
        extra: parameters that only this decoder knows.
    """

    name: str
    nucleus_threshold: int
    min_rise: int
    min_area_um2: float
    max_hole_um2: float = 0.0
    peak_share: float = 0.0
    extra: Mapping[str, float | int | bool | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _expect(self.name != "", "name", "a name", self.name)
        _expect(1 <= self.nucleus_threshold <= 255, "nucleus_threshold", "1 to 255", self.nucleus_threshold)
        _expect(0 <= self.peak_share <= 1, "peak_share", "0 to 1", self.peak_share)
        _expect(0 <= self.min_rise <= 255, "min_rise", "0 to 255", self.min_rise)
        _expect(self.min_area_um2 >= 0, "min_area_um2", "0 or more", self.min_area_um2)
        _expect(self.max_hole_um2 >= 0, "max_hole_um2", "0 or more", self.max_hole_um2)


VARIANT_PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class Variant:
    """A further file of the network, made from ``model.onnx`` and compared with it.

    Attributes:
        file: its name in the bundle.
        format: "onnx"; "openvino" (the XML; the weights have the same name with ``.bin``); "tensorrt" and
            "tensorrt-rtx" (an engine, which only the library of ``details["library"]`` can load).
        precision: "fp32", "fp16", "bf16" or "int8".
        details: what it was made with, and how far its maps and scores are from those of ``model.onnx``.
            ``weights_of`` names the ONNX file whose fp16 initialisers belong to it (see ``onnx_bytes``);
            ``overflow_free`` says of an int8 file that sums of two products fit into 16 bits.
    """

    file: str
    format: str
    precision: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _expect(self.precision in VARIANT_PRECISIONS, "precision", str(VARIANT_PRECISIONS), self.precision)

    @property
    def files(self) -> tuple[str, ...]:
        """All that belong to it."""
        weights = (self.file.removesuffix(".xml") + ".bin",) if self.format == "openvino" else ()
        return (self.file, *weights)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model and everything needed to run it; made by ``load_bundle``, written by ``write_bundle``.

    Attributes:
        name: how commands call it; without "/".
        version: of the model, not of nucfast.
        description: what it finds, in one line.
        mpp: micrometres per pixel the network expects.
        tile_px: side of the square tile to feed it, a multiple of ``stride_px``.
        stride_px: both sides of a tile must be multiples of this.
        margin_px: width of the tile's rim whose outputs lack context and are thrown away.
        halo_px: how far a region reaches beyond its own square; where a nucleus reaches further, the region
            is done again with a larger halo.
        context_px: how far from a pixel lies what has any influence on its maps; None: not known. Where the
            margin holds all of it, neighbouring regions need not compute twice what they share.
        outputs: what the network gives.
        classes: of nuclei, one per channel of the output "class"; one at most without that output.
        class_scheme: the classes of the data set it learned from; None: it tells none apart.
        decoder: how outputs become nuclei.
        licence: of the weights.
        training: how it was trained: the recipe and the names of the data sets.
        accuracy: measured scores: a data set, a split, the convention and figures each.
        input_name: the graph's input, (N, height, width, 3) uint8 RGB.
        variants: the further files of the network.
        path: the directory or zip it came from; None before it is written.
        files: SHA-256 of each file; empty before it is written.

    Raises:
        ValueError: values that contradict each other or make no sense.
    """

    name: str
    version: str
    description: str
    mpp: float
    tile_px: int
    stride_px: int
    margin_px: int
    halo_px: int
    outputs: tuple[OutputSpec, ...]
    classes: tuple[NucleusClass, ...]
    class_scheme: ClassScheme | None
    decoder: DecoderSpec
    licence: str
    training: Mapping[str, Any] = field(default_factory=dict)
    accuracy: tuple[Mapping[str, Any], ...] = ()
    input_name: str = "image"
    context_px: int | None = None
    variants: tuple[Variant, ...] = ()
    path: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # It names folders and stands in messages of one line.
        plain = self.name not in {"", ".", ".."} and "/" not in self.name and self.name.isprintable()
        _expect(plain, "name", "a plain name without '/'", self.name)
        _expect(is_credible(self.mpp), "mpp", f"um per pixel, {MIN_MPP:g} to {MAX_MPP:g}", self.mpp)
        _expect(self.stride_px >= 1, "stride_px", "1 or more", self.stride_px)
        _expect(self.margin_px >= 0, "margin_px", "0 or more", self.margin_px)
        _expect(self.halo_px >= 0, "halo_px", "0 or more", self.halo_px)
        _expect((self.context_px or 0) >= 0, "context_px", "0 or more", self.context_px)
        multiple = self.tile_px >= 1 and self.tile_px % self.stride_px == 0
        _expect(multiple, "tile_px", f"a multiple of stride_px = {self.stride_px}", self.tile_px)
        # What is kept of a tile starts and ends at whole strides.
        rims = 2 * -(-self.margin_px // self.stride_px) * self.stride_px
        _expect(self.tile_px > rims, "tile_px", "more than 2 * margin_px, in whole strides", self.tile_px)
        names = [output.name for output in self.outputs]
        _expect(len(names) > 0, "outputs", "at least one", self.outputs)
        _expect(len(set(names)) == len(names), "outputs", "different names", names)
        for spec in self.outputs:
            _expect(
                self.stride_px % spec.stride == 0,
                f"outputs.{spec.name}.stride",
                "a divisor of stride_px",
                spec.stride,
            )
        ids = [spec.id for spec in self.classes]
        _expect(len(set(ids)) == len(ids), "classes", "different ids", ids)
        if "class" in names:
            channels = self.output("class").channels
            _expect(channels == len(ids), "classes", f"{channels}, one per channel of output 'class'", ids)
        else:
            _expect(len(ids) <= 1, "classes", "at most one without an output 'class'", ids)
        if self.class_scheme is not None:
            for raw, known in self.class_scheme.raw.items():
                _expect(known in {0, *ids}, f"class_scheme.raw.{raw}", f"0 or one of the ids {ids}", known)

    def output(self, name: str) -> OutputSpec:
        """The output of this name.

        Raises:
            KeyError: the bundle has none.
        """
        for output in self.outputs:
            if output.name == name:
                return output
        raise KeyError(name)

    def without(self, format: str, precision: str) -> Bundle:
        """The same without its file of this format and precision."""
        gone = self.variant(format, precision)
        if gone is None:
            return self
        return replace(
            self,
            variants=tuple(item for item in self.variants if item is not gone),
            files={name: value for name, value in self.files.items() if name not in gone.files},
        )

    def variant(self, format: str, precision: str) -> Variant | None:
        """The file of this format and precision, if there is one."""
        return next(
            (item for item in self.variants if (item.format, item.precision) == (format, precision)), None
        )

    def label(self) -> str:
        """How errors name it: where it is, else its name."""
        return str(self.path if self.path is not None else self.name)

    def export_command(self, format: str, precision: str) -> str:
        """What writes its file of this format and precision."""
        where = "" if self.path is None or self.path.is_dir() else " -o FOLDER"  # a zip is not written to
        source = shlex.quote(self.label())
        return f"nucfast export {source} --to {format} --precision {precision} --data DATASET{where}"

    def remedy(self, file: str = MODEL) -> str:
        """The end of an error about one of its files: the command that mends it."""
        if self.path is None or _is_shipped(self.path):
            return _remedy(self.path)
        for item in self.variants:
            if file in item.files:
                return f"write it anew with  {self.export_command(item.format, item.precision)}"
        return _remedy(self.path)

    def read_file(self, name: str) -> bytes:
        """The content of one of its files.

        Raises:
            BundleError: the file is missing, or is not the one that ``bundle.json`` describes.
            ValueError: the bundle has not been written yet, or lists no such file.
        """
        if self.path is None or name not in self.files:
            raise ValueError(f"name: expected one of {sorted(self.files)}, got {name!r}")
        with _opened(self.path) as source:
            content = source.read(name, self.remedy(name))
        if hashlib.sha256(content).hexdigest() != self.files[name]:
            raise BundleError(
                f"{self.path}: {name} is damaged (its sha256 differs from the one in {MANIFEST}): "
                f"{self.remedy(name)}"
            )
        return content

    def onnx_bytes(self, name: str) -> bytes:
        """An ONNX file's content, with the weights that its variant takes from another file.

        Raises:
            BundleError: as ``read_file``, or it takes weights from what is no ONNX file of the bundle.
            ValueError: as ``read_file``.
        """
        content = self.read_file(name)
        details = next((variant.details for variant in self.variants if variant.file == name), {})
        source = details.get("weights_of")
        if source is None:
            return content
        try:
            return with_half_weights(content, self.read_file(source))
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"{self.path}: {name} takes weights from {source!r}, which cannot be read ({error}): "
                f"{self.remedy(name)}"
            ) from error

    def model_bytes(self) -> bytes:
        """The ONNX file's content, checked against its SHA-256."""
        return self.read_file(MODEL)


def load_bundle(name_or_path: str | Path, *, without: tuple[str, str] | None = None) -> Bundle:
    """Load a bundle and check every one of its files.

    Args:
        name_or_path: the name of a shipped bundle, a directory, or a zip of one, which is read in place.
            A plain name means the shipped bundle where there is one; "./name" is always a path.
        without: format and precision of a file that is about to be replaced: it is left out, so that a
            damaged one can be.

    Raises:
        BundleError: there is no such bundle, or it is damaged, incomplete or from a later release.
    """
    path = Path(name_or_path)
    # "./name" is always a path.
    if isinstance(name_or_path, str) and name_or_path in shipped_names():
        path = _shipped_root() / name_or_path
    try:
        there, is_file = path.exists(), path.is_file()
    except OSError:
        there, is_file = True, False  # to open it fails as well, and says why
    if not there:
        known = ", ".join(shipped_names()) or "none"
        raise BundleError(
            f"model {str(name_or_path)!r}: no such bundle (shipped: {known}; or give the path of a bundle, "
            "a directory or .zip)"
        )
    if path.suffix.lower() == ".onnx" and is_file:
        raise BundleError(
            f"{path}: a network alone is no model bundle, {MANIFEST} says what goes in and what comes out: "
            "give the directory that holds both, or write one with  nucfast export RUN -o FOLDER"
        )
    with _opened(path) as source:
        manifest = source.read(MANIFEST, _remedy(path))
    bundle = _parse(manifest, path)
    if without is not None:
        bundle = bundle.without(*without)
    for name in bundle.files:
        bundle.read_file(name)
    return bundle


def shipped_names() -> list[str]:
    """The names of the bundles that come with the package, sorted, whether or not they are intact."""
    root = _shipped_root()
    return sorted({found.parent.name for file in (MANIFEST, MODEL) for found in root.glob(f"*/{file}")})


def write_bundle(
    directory: str | Path, bundle: Bundle, files: Mapping[str, bytes], *, overwrite: bool = False
) -> Bundle:
    """Write a bundle; a new one appears by rename, complete or not at all.

    Args:
        directory: where; its parent is made if need be.
        bundle: what ``bundle.json`` will say; its ``path`` and ``files`` are not used.
        files: the content of each file by its name; "model.onnx" is required.
        overwrite: replace the files of the bundle that is already there, each by rename and ``bundle.json``
            last; whatever else is in its folder stays.

    Returns:
        The bundle, as ``load_bundle`` returns it.

    Raises:
        ValueError: "model.onnx" is not in ``files``, or a name is not a plain file name.
        BundleError: ``directory`` exists and is no bundle, or is one and ``overwrite`` is not set; or it
            cannot be written.
    """
    _check_names(files)
    directory = Path(directory)
    check_target(directory, overwrite=overwrite)
    for variant in bundle.variants:
        for name in variant.files:
            _expect(name in files, "variants", "files that are written", name)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = json.dumps(_to_json(replace(bundle, files=hashes)), indent=2, allow_nan=False) + "\n"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # What is there may be a link, a mount or where the user stands: then only its own disk will do.
        there = directory if directory.exists() else directory.parent
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=there) as scratch:
            made = Path(scratch) / "bundle"
            made.mkdir()
            for name, content in files.items():
                (made / name).write_bytes(content)
            (made / MANIFEST).write_text(text, encoding="utf-8")
            if there == directory:
                _replace_files(directory, made)
            else:
                made.rename(directory)
    except OSError as error:
        raise BundleError(
            f"{directory}: cannot write the bundle: {error.strerror or error}; make room, or give another "
            "directory"
        ) from error
    return load_bundle(directory)


def _replace_files(directory: Path, made: Path) -> None:
    old: Mapping[str, str] = {}
    with suppress(BundleError):
        old = _parse((directory / MANIFEST).read_bytes(), directory).files
    new = sorted(made.iterdir(), key=lambda path: path.name == MANIFEST)
    for path in new:
        path.replace(directory / path.name)
    for name in old.keys() - {path.name for path in new}:
        (directory / name).unlink(missing_ok=True)


def check_target(directory: Path, *, overwrite: bool) -> None:
    """Raise BundleError if a bundle cannot be written there, or would destroy something."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise BundleError(
            f"{directory}: cannot be written, {there} is no folder to write to; give another directory"
        )
    if there != directory:
        return
    if not (directory / MANIFEST).is_file():
        raise BundleError(f"{directory}: exists and is not a bundle; give another directory")
    if not overwrite:
        raise BundleError(f"{directory}: exists already; give another folder, or remove it")


# Weights hardly shrink; what unpacks to more than this many times its size is made to fill the memory.
_MAX_ZIP_RATIO = 100


class _Source:
    """Reads files of a bundle by name from its directory or from its zip."""

    def __init__(self, path: Path, archive: zipfile.ZipFile | None) -> None:
        self.path = path
        self._archive = archive
        self._prefix = self._find_prefix(archive) if archive is not None else ""

    def read(self, name: str, remedy: str) -> bytes:
        try:
            if self._archive is not None:
                info = self._archive.getinfo(self._prefix + name)
                if info.file_size > _MAX_ZIP_RATIO * max(info.compress_size, 4096):
                    raise BundleError(
                        f"{self.path}: {name} unpacks to {info.file_size} bytes; not a bundle: {remedy}"
                    )
                return self._archive.read(info)
            return (self.path / name).read_bytes()
        except (FileNotFoundError, KeyError):
            what = f"no {MANIFEST} in it, so it is not a model bundle"
            if name != MANIFEST:
                what = f"{name} is missing"
            raise BundleError(f"{self.path}: {what}: {remedy}") from None

    @staticmethod
    def _find_prefix(archive: zipfile.ZipFile) -> str:
        """The folder inside the zip, with a slash: zipping a directory and zipping its content both work."""
        found = [name for name in archive.namelist() if PurePosixPath(name).name == MANIFEST]
        return found[0].removesuffix(MANIFEST) if len(found) == 1 else ""


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    try:
        if path.is_dir():
            yield _Source(path, None)
        elif path.exists() and not path.is_file():  # a device or a pipe may never end
            raise OSError("neither a file nor a folder")
        else:
            with zipfile.ZipFile(path) as archive:
                yield _Source(path, archive)
    # What zipfile raises for damaged, truncated, encrypted and exotic archives.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        expected = "a directory or a zip holding bundle.json"
        raise BundleError(
            f"{path}: cannot be read as a model bundle, {expected} ({error}): {_remedy(path)}"
        ) from error


def _shipped_root() -> Path:
    return Path(str(resources.files("nucfast.bundles")))


def _is_shipped(path: Path) -> bool:
    return path.resolve().parent == _shipped_root().resolve()


def _remedy(path: Path | None) -> str:
    if path is not None and _is_shipped(path):
        return "run  pip install --force-reinstall nucfast"
    return "get it again, or write it with  nucfast export RUN -o FOLDER"


def _check_names(files: Mapping[str, object]) -> None:
    _expect(MODEL in files, "files", f"{MODEL!r} among them", sorted(files))
    for name in files:
        # A name with a directory in it could leave the bundle.
        plain = name not in {"", ".", "..", MANIFEST} and not set(name) & set("/\\\0")
        _expect(plain, "files", "plain file names", name)


def _to_json(bundle: Bundle) -> dict[str, Any]:
    scheme, decoder = bundle.class_scheme, bundle.decoder
    return {
        "schema": SCHEMA,
        **{name: getattr(bundle, name) for name in ("name", "version", "description", "mpp")},
        **{name: getattr(bundle, name) for name in ("tile_px", "stride_px", "margin_px", "halo_px")},
        **({} if bundle.context_px is None else {"context_px": bundle.context_px}),
        "input": {"name": bundle.input_name, **_INPUT},
        "outputs": [
            {
                "name": output.name,
                "meaning": output.meaning,
                "dtype": "uint8",
                "channels": output.channels,
                "stride": output.stride,
                "scale": output.scale,
            }
            for output in bundle.outputs
        ],
        "classes": [{"id": spec.id, "name": spec.name, "color": list(spec.color)} for spec in bundle.classes],
        "class_scheme": None
        if scheme is None
        else {"name": scheme.name, "raw": {str(raw): known for raw, known in scheme.raw.items()}},
        "decoder": {
            "name": decoder.name,
            "nucleus_threshold": decoder.nucleus_threshold,
            "min_rise": decoder.min_rise,
            "min_area_um2": decoder.min_area_um2,
            "max_hole_um2": decoder.max_hole_um2,
            "peak_share": decoder.peak_share,
            **decoder.extra,
        },
        "training": dict(bundle.training),
        "licence": bundle.licence,
        "accuracy": [dict(row) for row in bundle.accuracy],
        **({"variants": [_variant_json(item) for item in bundle.variants]} if bundle.variants else {}),
        "files": dict(bundle.files),
    }


def _variant_json(item: Variant) -> dict[str, Any]:
    return {"file": item.file, "format": item.format, "precision": item.precision, **item.details}


def _parse(content: bytes, path: Path) -> Bundle:
    where = f"{path}: {MANIFEST}"
    try:
        data = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not valid JSON ({error}): {_remedy(path)}") from error
    try:
        top = _Object(data, "")
        schema = top.integer("schema")
        if schema > SCHEMA:
            raise BundleError(
                f"{where}: schema {schema} is from a later release and this nucfast reads {SCHEMA}: "
                "run  pip install --upgrade nucfast"
            )
        _expect(schema == SCHEMA, "schema", str(SCHEMA), schema)
        return _from_json(top, path)
    except ValueError as error:
        # Keys of the file may hold line breaks.
        raise BundleError(f"{where}: {' '.join(str(error).split())}: {_remedy(path)}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class _Object:
    """A JSON object whose getters name the key in their errors."""

    def __init__(self, data: object, key: str) -> None:
        if not isinstance(data, dict):
            raise ValueError(f"{key or 'the file'}: expected an object, got {_describe(data)}")
        self.data: dict[str, Any] = data
        self.key = key

    def path(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def _get(self, name: str, kind: type) -> Any:
        if name not in self.data:
            raise ValueError(f"{self.path(name)}: expected {_JSON_NAMES[kind]}, but the key is missing")
        value = self.data[name]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise ValueError(f"{self.path(name)}: expected {_JSON_NAMES[kind]}, got {_describe(value)}")
        return value

    def string(self, name: str) -> str:
        return str(self._get(name, str))

    def integer(self, name: str) -> int:
        return int(self._get(name, int))

    def number(self, name: str) -> float:
        value = self._get(name, float)
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{self.path(name)}: expected a number, got {_describe(value)}") from None

    def items(self, name: str) -> list[Any]:
        return list(self._get(name, list))

    def mapping(self, name: str) -> dict[str, Any]:
        return dict(self._get(name, dict))

    def child(self, name: str) -> _Object:
        return _Object(self.mapping(name), self.path(name))

    def children(self, name: str) -> list[_Object]:
        return [_Object(item, f"{self.path(name)}[{index}]") for index, item in enumerate(self.items(name))]

    def constant(self, name: str, expected: str) -> None:
        value = self.string(name)
        _expect(value == expected, self.path(name), repr(expected), value)

    @contextmanager
    def build(self) -> Iterator[None]:
        """Puts this object's key before the errors of the dataclass made from it."""
        try:
            yield
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith(self.key) else f"{self.key}.{message}") from error


def _describe(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _from_json(top: _Object, path: Path) -> Bundle:
    inputs = top.child("input")
    for name, expected in _INPUT.items():
        inputs.constant(name, expected)
    files = top.mapping("files")
    for name, value in files.items():
        is_hash = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
        _expect(is_hash, f"files.{name}", "a sha256 of 64 hexadecimal digits", value)
    _check_names(files)
    return Bundle(
        name=top.string("name"),
        version=top.string("version"),
        description=top.string("description"),
        mpp=top.number("mpp"),
        tile_px=top.integer("tile_px"),
        stride_px=top.integer("stride_px"),
        margin_px=top.integer("margin_px"),
        halo_px=top.integer("halo_px"),
        outputs=tuple(_output(item) for item in top.children("outputs")),
        classes=tuple(_class(item) for item in top.children("classes")),
        class_scheme=None if top.data.get("class_scheme") is None else _scheme(top.child("class_scheme")),
        decoder=_decoder(top.child("decoder")),
        licence=top.string("licence"),
        training=top.mapping("training"),
        accuracy=tuple(item.data for item in top.children("accuracy")),
        input_name=inputs.string("name"),
        context_px=top.integer("context_px") if "context_px" in top.data else None,
        # Bundles written before there were variants have no such key.
        variants=tuple(_variant(item, files) for item in top.children("variants"))
        if "variants" in top.data
        else (),
        path=path,
        files=files,
    )


def _output(item: _Object) -> OutputSpec:
    item.constant("dtype", "uint8")
    with item.build():
        return OutputSpec(
            name=item.string("name"),
            meaning=item.string("meaning"),
            channels=item.integer("channels"),
            stride=item.integer("stride"),
            scale=item.number("scale"),
        )


def _variant(item: _Object, files: Mapping[str, str]) -> Variant:
    known = {"file", "format", "precision"}
    with item.build():
        variant = Variant(
            file=item.string("file"),
            format=item.string("format"),
            precision=item.string("precision"),
            details={name: value for name, value in item.data.items() if name not in known},
        )
    for name in variant.files:
        _expect(name in files, item.path("file"), f"one of the files {sorted(files)}", name)
    return variant


def _class(item: _Object) -> NucleusClass:
    color = item.items("color")
    valid = len(color) == 3 and all(isinstance(value, int) and not isinstance(value, bool) for value in color)
    _expect(valid, item.path("color"), "three integers", color)
    with item.build():
        return NucleusClass(
            id=item.integer("id"), name=item.string("name"), color=(color[0], color[1], color[2])
        )


def _scheme(item: _Object) -> ClassScheme:
    table = item.child("raw")
    for raw in table.data:
        _expect(raw.isascii() and raw.isdigit(), table.path(raw), "an integer as key", raw)
    return ClassScheme(name=item.string("name"), raw={int(raw): table.integer(raw) for raw in table.data})


def _decoder(item: _Object) -> DecoderSpec:
    known = {spec.name for spec in fields(DecoderSpec)}
    extra = {name: value for name, value in item.data.items() if name not in known}
    for name, value in extra.items():
        _expect(
            isinstance(value, int | float | str), item.path(name), "a number, a string or a boolean", value
        )
    with item.build():
        return DecoderSpec(
            name=item.string("name"),
            nucleus_threshold=item.integer("nucleus_threshold"),
            min_rise=item.integer("min_rise"),
            min_area_um2=item.number("min_area_um2"),
            max_hole_um2=item.number("max_hole_um2"),
            peak_share=item.number("peak_share"),
            extra=extra,
        )
