"""PyTorch network to model bundle, written only if every engine agrees with the network."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from nucfast.engine.bundle import MODEL, Bundle, check_target, write_bundle
from nucfast.engine.create import create_engine
from nucfast.engine.parity import Difference, difference
from nucfast.errors import NucfastError
from nucfast_export.context import context_px
from nucfast_export.graph import fuse_rounding
from nucfast_export.weights import store_weights_as_fp16
from nucfast_export.wrapper import ExportNetwork

# The version that the dynamo exporter writes without converting its graph afterwards.
OPSET = 18


class Limits(NamedTuple):
    """How far an export may differ from its network."""

    mean: float  # grey levels
    share_above_1: float  # of the values


# A network and its export may differ in the order of sums, so a value next to a rounding boundary may move by
# one grey level; two levels mean a mistake, but for the odd value where a network is extremely steep.
EXACT = Limits(mean=0.05, share_above_1=0.001)
# Weights of 11 bits shift all of that a little, most where nothing decides: the class of what is no nucleus.
ROUNDED = Limits(mean=0.2, share_above_1=0.02)

Exporter = Literal["auto", "dynamo", "torchscript"]


class ExportError(NucfastError):
    """A network cannot be exported, or its export computes something else."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, how, and how far it differs from the network in PyTorch.

    Attributes:
        bundle: the bundle as written.
        exporter: "dynamo" or "torchscript".
        fallback_reason: why "auto" did not use "dynamo"; None if it did, or if nothing fell back.
        opset: the ONNX operator set.
        differences: engine by engine, output by output, against PyTorch in fp32.
    """

    bundle: Bundle
    exporter: str
    fallback_reason: str | None
    opset: int
    differences: tuple[Difference, ...]


def export_bundle(
    network: nn.Module,
    directory: str | Path,
    bundle: Bundle,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    weights: Literal["fp32", "fp16"] = "fp32",
    exporter: Exporter = "auto",
    tiles: Sequence[NDArray[np.uint8]] = (),
    overwrite: bool = False,
) -> ExportReport:
    """Export a network, compare the file with it in ONNX Runtime and OpenVINO, and write the bundle.

    Args:
        network: (N, 3, H, W) float32, ``(pixel / 255 - mean) / std``, to a dict of logits by output name:
            (N, channels, H / stride, W / stride) as ``bundle.outputs`` says. All outputs are stored as 255 *
            sigmoid, "class" as 255 * softmax. It is not modified, but left in evaluation mode on its device.
        directory: where to write the bundle.
        bundle: what ``bundle.json`` will say.
        mean: subtracted from each channel, in units of 0..1; becomes part of the graph.
        std: divides each channel; becomes part of the graph.
        weights: how the file stores them. "fp16" halves it; the arithmetic stays fp32 (or bf16).
        exporter: "auto": ``torch.export``-based, and TorchScript if that fails; the report says which.
        tiles: further batches for the comparison, (N, h, w, 3) uint8; real images belong here.
        overwrite: replace the bundle that is already there.

    Returns:
        The report; its bundle is loaded from what was written.

    Raises:
        ExportError: the export fails, or an engine differs from PyTorch by more than one grey level in more
            of the values, or by more levels in the mean, than ``EXACT`` allows, or ``ROUNDED`` where the
            weights are stored in half precision.
        BundleError: the bundle cannot be written.
        MissingExtraError: onnxruntime is not installed.
    """
    check_target(Path(directory), overwrite=overwrite)  # before the work, not after it
    was_on = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    names = [spec.name for spec in bundle.outputs]
    wrapper = ExportNetwork(network, names, mean=mean, std=std).eval().cpu()
    try:
        model, used, reason = _to_onnx(wrapper, bundle, exporter)
        _tidy(model)
        fuse_rounding(model)
        bundle = replace(bundle, context_px=context_px(model, bundle))
        batches = [*_test_batches(bundle), *tiles]
        content, differences = _compared(wrapper, model, bundle, batches, EXACT)
        if weights == "fp16":
            try:
                store_weights_as_fp16(model)
            except ValueError as error:
                raise ExportError(f"{bundle.name}: {error}") from error
            content, differences = _compared(wrapper, model, bundle, batches, ROUNDED)
    finally:
        network.to(was_on)
    written = write_bundle(directory, bundle, {MODEL: content}, overwrite=overwrite)
    return ExportReport(written, used, reason, OPSET, tuple(differences))


def _to_onnx(
    wrapper: ExportNetwork, bundle: Bundle, exporter: Exporter
) -> tuple[onnx.ModelProto, str, str | None]:
    """The graph, the exporter used, and why not the first choice."""
    paths: dict[str, Callable[[ExportNetwork, Bundle], onnx.ModelProto]] = {
        "dynamo": _dynamo,
        "torchscript": _torchscript,
    }
    if exporter != "auto" and exporter not in paths:
        raise ValueError(f"exporter: expected auto, dynamo or torchscript, got {exporter!r}")
    reason = None
    for name in ("dynamo", "torchscript") if exporter == "auto" else (exporter,):
        try:
            with torch.no_grad(), _quiet():
                return paths[name](wrapper, bundle), name, reason
        # Exporters raise whatever the network's own code or their own passes raise.
        except Exception as error:
            reason = f"{name}: {first_line(error)}"
            failure = error
    raise ExportError(f"{bundle.name}: the network cannot be exported to ONNX ({reason})") from failure


def first_line(error: Exception) -> str:
    """What kind of error it is, and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _example(bundle: Bundle) -> torch.Tensor:
    # Different sizes on every axis, so that no exporter takes two of them for one.
    shape = (2, 4 * bundle.stride_px, 6 * bundle.stride_px, 3)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _dynamo(wrapper: ExportNetwork, bundle: Bundle) -> onnx.ModelProto:
    # Multiples of the stride: without saying so, skip connections force a guard that the export refuses.
    height = bundle.stride_px * torch.export.Dim("height")
    width = bundle.stride_px * torch.export.Dim("width")
    program = torch.onnx.export(
        wrapper,
        (_example(bundle),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch"), 1: height, 2: width},),
        input_names=[bundle.input_name],
        output_names=list(wrapper.names),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _torchscript(wrapper: ExportNetwork, bundle: Bundle) -> onnx.ModelProto:
    axes = {name: {0: "batch", 1: f"{name}_height", 2: f"{name}_width"} for name in wrapper.names}
    axes[bundle.input_name] = {0: "batch", 1: "height", 2: "width"}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL
        torch.onnx.export(
            wrapper,
            (_example(bundle),),
            path,
            dynamo=False,
            dynamic_axes=axes,
            input_names=[bundle.input_name],
            output_names=list(wrapper.names),
            opset_version=OPSET,
        )
        return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops the exporters' deprecation warnings and notes on absent packages: nobody here can act on them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tidy(model: onnx.ModelProto) -> None:
    """Remove what exporters leave in the file, source paths of this machine among it, and name the axes."""
    for item in (model, model.graph):
        item.doc_string = ""
        del item.metadata_props[:]
    graph = model.graph
    for group in (graph.node, graph.initializer, graph.value_info, graph.input, graph.output):
        for item in group:
            item.doc_string = ""
            del item.metadata_props[:]
    del graph.value_info[:]  # stale once weights are edited; engines infer it anyway
    for axis, name in enumerate(("batch", "height", "width")):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for port in graph.output:
        for axis, name in enumerate(("batch", f"{port.name}_height", f"{port.name}_width")):
            port.type.tensor_type.shape.dim[axis].dim_param = name


def _check(model: onnx.ModelProto, bundle: Bundle) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{bundle.name}: the exporter wrote invalid ONNX: {error}") from error
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        raise ExportError(
            f"{bundle.name}: a batch normalisation could not be folded into a convolution before it; "
            "put every nn.BatchNorm2d right behind an nn.Conv2d"
        )


def _test_batches(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """Noise and blobs in the colours of a stained section, in two shapes that the example did not have."""
    random = np.random.default_rng(1)
    eosin, haematoxylin = np.array([226.0, 170.0, 200.0]), np.array([92.0, 60.0, 130.0])
    batches = []
    for count, height, width in ((1, 256, 256), (3, 512, 320)):
        height, width = (-(-side // bundle.stride_px) * bundle.stride_px for side in (height, width))
        noise = random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        coarse = random.random((count, -(-height // 8), -(-width // 8), 1))
        blobs = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        section = np.where(blobs > 0.75, haematoxylin, eosin) + random.normal(0, 12, noise.shape)
        stained = np.clip(section, 0, 255).astype(np.uint8)
        batches += [noise, stained] if count == 1 else [np.concatenate([noise[:1], stained[1:]])]
    return batches


def _compared(
    wrapper: ExportNetwork,
    model: onnx.ModelProto,
    bundle: Bundle,
    batches: Sequence[NDArray[np.uint8]],
    limits: Limits,
) -> tuple[bytes, list[Difference]]:
    """The file of a graph that differs from the network by no more than the limits, and by how much."""
    _check(model, bundle)
    content = model.SerializeToString(deterministic=True)
    with tempfile.TemporaryDirectory() as scratch:
        trial = write_bundle(Path(scratch) / "bundle", bundle, {MODEL: content})
        differences = _compare(wrapper, trial, batches)
    for row in differences:
        if row.share_above_1 > limits.share_above_1 or row.mean > limits.mean:
            raise ExportError(
                f"{bundle.name}: not written: {row.engine} differs from PyTorch in output {row.output!r} by "
                f"{row.mean:.3f} grey levels in the mean, by more than 1 in {row.share_above_1:.2%} of the "
                f"values, by {row.largest} at most; allowed: {limits.mean} and {limits.share_above_1:.2%}"
            )
    return content, differences


def _compare(
    wrapper: ExportNetwork, bundle: Bundle, batches: Sequence[NDArray[np.uint8]]
) -> list[Difference]:
    engines = [
        create_engine(bundle, engine=name, device="cpu", precision="fp32")
        for name in ("onnxruntime", "openvino")
    ]
    expected: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in wrapper.names}
    got: dict[tuple[str, str], list[NDArray[np.uint8]]] = {}
    for batch in batches:
        with torch.no_grad():
            results = wrapper(torch.from_numpy(np.ascontiguousarray(batch)))
        for name, result in zip(wrapper.names, results, strict=True):
            expected[name].append(result.numpy().ravel())
        for engine in engines:
            for name, values in engine.run(batch).items():
                got.setdefault((engine.description, name), []).append(values.ravel())
    return [
        difference(label, name, np.concatenate(values), np.concatenate(expected[name]))
        for (label, name), values in got.items()
    ]
