"""Static quantisation to int8: uint8 activations and int8 weights, scales measured on real tiles."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from nucfast.errors import require
from nucfast_export.graph import Graph, plain_outputs, store_weights_as_fp32

_MAX_PAIR = 128  # 255 * 128 fits into 16 bits

# Relu belongs to them: without it, its input is quantised as well, and OpenVINO fuses nothing.
OPERATORS = ("Conv", "Relu", "Add", "Resize")


def quantize(
    model: onnx.ModelProto,
    tiles: Sequence[NDArray[np.uint8]],
    *,
    widest: bool = False,
    symmetric: bool = False,
) -> onnx.ModelProto:
    """Quantise a network's convolutions, skips and upsamplings; the logits stay in floating point.

    Args:
        model: from ``export_bundle``; not modified.
        tiles: (1, h, w, 3) uint8 each, from the training data: they set the range of every activation, and
            the means by which biases make up for rounded weights.
        widest: the range of an activation is the widest of the tiles' ranges, not their mean. The mean is
            better where tiles are alike, since a single bright spot sets the widest and costs all other tiles
            levels; it cuts what only one kind of tile has, where there are several.
        symmetric: int8 activations around zero, biases in floating point, as TensorRT wants them. CPUs are
            slow with that.

    Returns:
        A graph of QuantizeLinear and DequantizeLinear around the operators, one scale per channel of weights.
        Unless symmetric, no sum of two products overflows 16 bits.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    tools = require("onnxruntime.quantization", extra="cpu", purpose="quantisation")
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    store_weights_as_fp32(plain)
    if symmetric:
        plain_outputs(plain)
    for index, node in enumerate(plain.graph.node):
        node.name = node.name or f"node_{index}"
    input_name = plain.graph.input[0].name

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.tiles: Iterator[NDArray[np.uint8]] = iter(tiles)

        def get_next(self) -> dict[str, Any] | None:
            tile = next(self.tiles, None)
            return None if tile is None else {input_name: np.ascontiguousarray(tile)}

    options: dict[str, Any] = {"CalibMovingAverage": not widest}
    if symmetric:
        options |= {"ActivationSymmetric": True, "QuantizeBias": False}
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # advice for other kinds of networks
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source, target = Path(scratch) / "fp32.onnx", Path(scratch) / "int8.onnx"
            onnx.save(plain, source)
            tools.quantize_static(
                source,
                target,
                Reader(),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                activation_type=tools.QuantType.QInt8 if symmetric else tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                op_types_to_quantize=list(OPERATORS),
                extra_options=options,
            )
            quantized = onnx.load(target)
    finally:
        root.setLevel(level)
    _keep_logits(quantized)
    if not symmetric:
        _refit(quantized, plain, _input_means(plain, tiles))
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _refit(model: onnx.ModelProto, plain: onnx.ModelProto, means: Mapping[str, NDArray[np.float32]]) -> None:
    """Scale weights so that no sum of two products overflows, and make biases up for what rounding adds.

    Processors without int8 dot products (x86 before VNNI) multiply two uint8 with two int8 and sum the
    products in 16 bits, which saturate: 255 * (v + w) must stay below 32768. Neighbours are input channels 2k
    and 2k + 1 of one output channel.

    What rounded weights add to an output channel in the mean is taken off its bias (Nagel et al.: Data-free
    quantization through weight equalization and bias correction, ICCV 2019).

    Args:
        model: what was made of ``plain``; changed.
        plain: the network in fp32.
        means: (channels,) of each convolution's input, by the node's name.
    """
    graph = Graph(model)
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    exact = Graph(plain).constants
    column = (-1, 1, 1, 1)  # of output channels

    def store(name: str, value: NDArray[Any]) -> None:
        values[name].CopyFrom(numpy_helper.from_array(value, name))

    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        weights, *biases = (graph.maker[name] for name in conv.input[1:])
        levels, scale = (graph.constants[name] for name in weights.input[:2])
        source = exact[weights.input[0].removesuffix("_quantized")]
        factor = np.ones_like(scale)
        # Again, since what is rounded up may be above the limit.
        while ((largest := largest_pair(levels)) > _MAX_PAIR).any():
            factor *= np.maximum(1.0, largest / _MAX_PAIR)
            levels = np.clip(np.round(source / (scale * factor).reshape(column)), -127, 127).astype(np.int8)
        store(weights.input[0], levels)
        store(weights.input[1], scale * factor)
        added = (levels * (scale * factor).reshape(column) - source).sum(axis=(2, 3))
        # Of a grouped convolution each share of the output channels reads its own share of the inputs.
        groups = len(means[conv.name]) // source.shape[1]
        read = means[conv.name].reshape(groups, -1).repeat(len(source) // groups, axis=0)
        shift = (added * read).sum(axis=1)
        for bias in biases:
            level, step = (graph.constants[name] for name in bias.input[:2])
            level = np.round(np.round(level / factor) - shift / (step * factor)).astype(level.dtype)
            store(bias.input[0], level)
            store(bias.input[1], step * factor)


def _input_means(
    plain: onnx.ModelProto, tiles: Sequence[NDArray[np.generic]]
) -> dict[str, NDArray[np.float32]]:
    """(channels,) of what each convolution reads, over all tiles and pixels, by the node's name."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(plain)
    port = plain.graph.input[0].name
    inputs = {node.name: node.input[0] for node in plain.graph.node if node.op_type == "Conv"}
    read = set(inputs.values())
    made = sorted(read - {port})
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    sums = dict.fromkeys(read, np.float32(0))
    for tile in tiles:
        values = dict(zip(made, session.run(made, {port: tile}), strict=True)) if made else {}
        for name in read:
            sums[name] = sums[name] + values.get(name, tile).mean(axis=(0, 2, 3))
    return {node: sums[name] / len(tiles) for node, name in inputs.items()}


def largest_pair(levels: NDArray[np.int8]) -> NDArray[np.int32]:
    """Of (out, in, ...) weights the largest sum, by magnitude, of two neighbours of one sign; (out,)."""
    largest = np.zeros(len(levels), np.int32)
    for sign in (1, -1):
        part = np.maximum(sign * levels.astype(np.int32), 0)
        if levels.shape[1] % 4:  # filled up to four, or mixed with other places: any two may be neighbours
            pairs = np.sort(part.reshape(len(part), -1), axis=1)[:, -2:].sum(axis=1, keepdims=True)
        else:
            pairs = (part[:, 0::2] + part[:, 1::2]).reshape(len(part), -1)
        largest = np.maximum(largest, pairs.max(axis=1))
    return largest


def _keep_logits(model: onnx.ModelProto) -> None:
    """Take the quantisation off what the last convolutions give: eight bits of logit are too few."""
    graph = Graph(model)
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        ahead = [user for user in graph.users[conv.output[0]] if user.op_type == "QuantizeLinear"]
        for levels in ahead:
            back = graph.users[levels.output[0]]
            if not all(_leads_to_probability(graph, node) for node in back):
                continue
            for node in back:
                for user in graph.users[node.output[0]]:
                    for index, name in enumerate(user.input):
                        if name == node.output[0]:
                            user.input[index] = conv.output[0]
                model.graph.node.remove(node)
            model.graph.node.remove(levels)
            graph.index()


def _leads_to_probability(graph: Graph, node: NodeProto) -> bool:
    """Whether all that follows a node moves values about until a sigmoid or softmax takes them."""
    return all(
        user.op_type in {"Sigmoid", "Softmax"}
        or (
            user.op_type in {"DepthToSpace", "Slice", "Split", "Transpose", "Reshape"}
            and _leads_to_probability(graph, user)
        )
        for output in node.output
        for user in graph.users[output]
    )
