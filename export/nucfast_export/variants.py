"""Further files for a bundle: int8, fp16, OpenVINO and TensorRT; written only if checked on real images."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from nucfast.engine.base import Engine, Maps, unreadable_model
from nucfast.engine.bundle import MODEL, Bundle, Variant, check_target, write_bundle
from nucfast.engine.create import create_engine
from nucfast.engine.cuda import cuda_device_count
from nucfast.engine.openvino_engine import cpu_has_bf16, import_openvino
from nucfast.engine.parity import Difference, difference
from nucfast.engine.tensorrt_engine import build_engine, import_tensorrt, largest_batch
from nucfast.errors import NucfastError, require
from nucfast.metrics import Scores
from nucfast.pipeline.decode import check_decoder
from nucfast_export.export import ExportError, first_line
from nucfast_export.graph import fuse_rounding, plain_outputs, share_weights, store_weights_as_fp32
from nucfast_export.images import read_tiles, score
from nucfast_export.quantize import quantize

FORMATS = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16", "int8"),
}
# Mean difference of a map from that of model.onnx in fp32, in grey levels of 0..255; classes in nuclei.
MAX_MEAN = {"fp32": 0.05, "fp16": 0.5, "bf16": 1.0, "int8": 2.0}
# What a file may cost, on the validation images: PQ and AJI, each.
MAX_LOSS = 0.005
CALIBRATION_TILES = 16  # of each data set
CHECK_TILES = 4


@dataclass(frozen=True, slots=True)
class VariantReport:
    """What was added to a bundle.

    Attributes:
        bundle: the bundle as written.
        variant: the file that was added.
        differences: engine by engine, output by output, against ``model.onnx`` in fp32.
        before: scores of ``model.onnx`` in fp32 on the validation images.
        after: those of the new file.
    """

    bundle: Bundle
    variant: Variant
    differences: tuple[Difference, ...]
    before: Scores
    after: Scores


def add_variant(
    bundle: Bundle,
    directory: Path,
    *,
    format: str,
    precision: str,
    data: Path,
    calibrate: Sequence[Path] = (),
    tile_px: int | None = None,
    batch: int | None = None,
) -> VariantReport:
    """Make a file for one precision and library, compare it with ``model.onnx``, write it with the bundle.

    For int8 the ranges of activations are means over tiles, and where that loses too much the widest.

    Args:
        bundle: what to start from.
        directory: where to write the bundle with the file; the bundle's own directory adds it there.
        format: a key of ``FORMATS``.
        precision: one of its values.
        data: as for ``read_tiles``; its images of the split "val" are what is compared.
        calibrate: the same, whose images of the split "train" set the ranges of int8; none: ``data``.
        tile_px: largest tile of a TensorRT engine; None: the bundle's.
        batch: largest batch of a TensorRT engine, and the one it is tuned for; None: what fits its buffers.

    Raises:
        ExportError: as ``check_variant``, or the file differs too much; nothing is written.
        MissingExtraError: a library is not installed.
        NucfastError: the data set or the bundle cannot be read, or the bundle cannot be written.
    """
    check_variant(bundle, format=format, precision=precision, tile_px=tile_px)
    check_target(directory, overwrite=directory == bundle.path)
    tile_px = tile_px or bundle.tile_px
    batch = batch or largest_batch(tile_px)
    details: dict[str, Any] = {"library": _library(format)} if format != "onnx" else {}
    if format.startswith("tensorrt"):
        details |= {"tile_px": str(tile_px), "batch": str(batch)}
    elif precision == "int8":
        details |= {"overflow_free": True}
    elif precision == "fp16" and format == "onnx":
        details |= {"weights_of": MODEL}
    # First of all, for what neither can be read nor run is refused here, in a line.
    reference = create_engine(bundle, engine="onnxruntime", device="cpu", precision="fp32")
    tiles = read_tiles(data, "val", bundle, CHECK_TILES)
    make = partial(_make, bundle, format, precision, calibrate or (data,), tile_px, batch)
    check = partial(_check, reference, format, precision, details, data, tiles)
    try:
        report, files = check(make())
    except ExportError:
        if precision != "int8":
            raise
        report, files = check(make(widest=True))
    return replace(
        report, bundle=write_bundle(directory, report.bundle, files, overwrite=directory == bundle.path)
    )


def check_variant(bundle: Bundle, *, format: str, precision: str, tile_px: int | None = None) -> None:
    """Find out before the work whether this machine can make a file and run it; the arguments are as above.

    Raises:
        ExportError: the format does not have the precision, the size of tiles does not fit, or what the file
            is for is not here.
        BundleError: this release cannot decode the bundle.
        MissingExtraError: its library is not installed.
    """
    if precision not in FORMATS[format]:
        hint = "; OpenVINO computes model.onnx in bf16 as it is" if precision == "bf16" else ""
        raise ExportError(f"precision: {format} has {', '.join(FORMATS[format])}, got {precision}{hint}")
    if (format, precision) == ("onnx", "fp32"):
        raise ExportError(f"{bundle.name}: {MODEL} is the fp32 ONNX file; nothing to add")
    if tile_px is not None and tile_px % bundle.stride_px:
        raise ExportError(
            f"tile_px: expected a multiple of {bundle.stride_px}, the stride of {bundle.name}, got {tile_px}"
        )
    check_decoder(bundle)  # or it cannot be scored
    if precision == "bf16" and not cpu_has_bf16():
        raise ExportError(
            "precision bf16: this CPU has no bf16 instructions, so the file cannot be checked here: run the "
            "command on one with AVX512-BF16 or AMX"
        )
    if format.startswith("tensorrt"):
        import_tensorrt(format)
        if cuda_device_count() == 0:
            raise ExportError(
                f"{format}: an engine is checked on the NVIDIA GPU it is for, and none is visible here (see "
                "nvidia-smi and CUDA_VISIBLE_DEVICES): run the command where it is to run"
            )


def _check(
    reference: Engine,
    format: str,
    precision: str,
    details: dict[str, Any],
    data: Path,
    tiles: Sequence[NDArray[np.uint8]],
    made: Mapping[str, bytes],
) -> tuple[VariantReport, dict[str, bytes]]:
    """What adding the new files gives, not yet written, and all files; ExportError if it differs too much."""
    bundle, file = reference.bundle, next(iter(made))
    variant = Variant(file, format, precision, details)
    others = tuple(item for item in bundle.variants if (item.format, item.precision) != (format, precision))
    files = {name: bundle.read_file(name) for name in bundle.files} | made
    with tempfile.TemporaryDirectory() as scratch:
        trial = write_bundle(Path(scratch) / bundle.name, replace(bundle, variants=(*others, variant)), files)
        engines = _engines(trial, format, precision, Path(scratch))
        differences = _compare(reference, engines, tiles)
        for row in differences:
            if row.mean > MAX_MEAN[precision]:
                raise ExportError(
                    f"{bundle.name}: {file} not written: {row.engine} differs from {MODEL} in output "
                    f"{row.output!r} by {row.mean:.3f} grey levels in the mean; "
                    f"allowed: {MAX_MEAN[precision]}"
                )
        before = score(data, engine=reference)
        after = score(data, engine=engines[0])
    lost = {"PQ": before.pq - after.pq, "AJI": before.aji - after.aji}
    for name, loss in lost.items():
        if loss > MAX_LOSS:
            raise ExportError(
                f"{bundle.name}: {file} not written: it loses {loss:.4f} {name} on {data.resolve().name}; "
                f"allowed: {MAX_LOSS}"
            )
    checked = {
        "data": data.resolve().name,
        "split": "val",
        "pq_change": round(-lost["PQ"], 5),
        "aji_change": round(-lost["AJI"], 5),
        "largest": max(row.largest for row in differences),
        "mean": round(max(row.mean for row in differences), 4),
    }
    variant = replace(variant, details=details | {"checked": checked})
    extended = replace(bundle, variants=(*others, variant))
    return VariantReport(extended, variant, tuple(differences), before, after), files


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with fp16 weights and arithmetic; pixels and maps stay uint8."""
    converter = require("onnxruntime.transformers.float16", extra="cpu", purpose="precision fp16")
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    store_weights_as_fp32(plain)
    plain_outputs(plain)
    converted: onnx.ModelProto = converter.convert_float_to_float16(plain, op_block_list=[])
    onnx.checker.check_model(converted, full_check=True)
    return converted


def _make(
    bundle: Bundle,
    format: str,
    precision: str,
    calibrate: Sequence[Path],
    tile_px: int,
    batch: int,
    *,
    widest: bool = False,
) -> dict[str, bytes]:
    """The new files by name, the one that is loaded first."""
    sources = calibrate if precision == "int8" else ()
    tiles = [tile for data in sources for tile in read_tiles(data, "train", bundle, CALIBRATION_TILES)]
    try:
        return _converted(bundle, format, precision, tiles, tile_px, batch, widest=widest)
    except NucfastError:
        raise
    # Converters raise whatever their own passes raise.
    except Exception as error:
        raise ExportError(
            f"{bundle.name}: no {format} file in {precision} can be made of {MODEL} "
            f"({first_line(error)}): use one that the bundle has, or another network"
        ) from error


def _converted(
    bundle: Bundle,
    format: str,
    precision: str,
    tiles: Sequence[NDArray[np.uint8]],
    tile_px: int,
    batch: int,
    *,
    widest: bool,
) -> dict[str, bytes]:
    for_gpu = format.startswith("tensorrt")
    model = onnx.load_from_string(bundle.model_bytes())
    fuse_rounding(model)  # bundles of earlier releases are not written that way
    if precision == "int8":
        model = quantize(model, tiles, widest=widest, symmetric=for_gpu)
    elif precision == "fp16":
        model = half(model)
        if format == "onnx":
            share_weights(model, onnx.load_from_string(bundle.model_bytes()))
    elif for_gpu:
        plain_outputs(model)
    content = model.SerializeToString(deterministic=True)
    name = f"model-{precision}"
    if format == "onnx":
        return {f"{name}.onnx": content}
    if format == "openvino":
        openvino = import_openvino()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}.xml"
            try:
                network = openvino.Core().read_model(content)
            except RuntimeError as error:
                raise unreadable_model(bundle, error) from error
            openvino.save_model(network, path, compress_to_fp16=False)
            return {file.name: file.read_bytes() for file in (path, path.with_suffix(".bin"))}
    engine = build_engine(content, bundle, library=format, tile_px=tile_px, batch=batch, file=f"{name}.onnx")
    return {f"{name}.{format}": engine}


def _library(format: str) -> str:
    module = import_openvino() if format == "openvino" else import_tensorrt(format)
    return f"{format} {module.__version__}"


def _engines(trial: Bundle, format: str, precision: str, scratch: Path) -> list[Engine]:
    """What runs the new file here; the first is the one to score."""
    if format == "onnx" and precision == "int8":
        names = ("openvino", "onnxruntime")
        return [create_engine(trial, engine=name, device="cpu", precision="int8") for name in names]
    if format == "onnx":
        # Meant for GPUs; its rounding is the same when the CPU runs it in place of model.onnx.
        content = trial.onnx_bytes(f"model-{precision}.onnx")
        same = write_bundle(scratch / "half", replace(trial, variants=()), {MODEL: content})
        return [create_engine(same, engine="onnxruntime", device="cpu", precision="fp32")]
    device = "cpu" if format == "openvino" else "cuda:0"
    return [create_engine(trial, engine=format, device=device, precision=precision)]


def _inside(maps: Maps, *, bundle: Bundle) -> NDArray[np.bool_]:
    """Which pixels of the class map lie in nuclei."""
    step = bundle.output("class").stride // bundle.output("nucleus").stride
    inside: NDArray[np.bool_] = maps["nucleus"][:, ::step, ::step, 0] >= 128
    return inside


def _compare(
    reference: Engine, engines: Sequence[Engine], tiles: Sequence[NDArray[np.uint8]]
) -> list[Difference]:
    expected = [reference.run(tile) for tile in tiles]
    rows = []
    for engine in engines:
        got = [engine.run(tile) for tile in tiles]
        for name in expected[0]:
            # Classes are learned, and mean anything, only inside nuclei; an image may hold none.
            parts = [_inside(maps, bundle=reference.bundle) if name == "class" else ... for maps in expected]
            if name == "class" and not any(part.any() for part in parts):
                parts = [...] * len(parts)
            values, wanted = (
                np.concatenate([maps[name][part].ravel() for maps, part in zip(runs, parts, strict=True)])
                for runs in (got, expected)
            )
            rows.append(difference(engine.description, name, values, wanted))
    return rows
