"""Static quantisation to int8: uint8 activations and int8 weights, scales measured on real tiles."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from nucfast.errors import require
from nucfast_export.graph import _Graph, plain_outputs, store_weights_as_fp32

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
        tiles: (1, h, w, 3) uint8 each, from the training data: they set the range of every activation.
        widest: the range of an activation is the widest of the tiles' ranges, not their mean. The mean is
            better where tiles are alike, since a single bright spot sets the widest and costs all other tiles
            levels; it cuts what only one kind of tile has, where there are several.
        symmetric: int8 activations around zero, biases in floating point, as TensorRT wants them. CPUs are
            slow with that.

    Returns:
        A graph of QuantizeLinear and DequantizeLinear around the operators, one scale per channel of weights.

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
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _keep_logits(model: onnx.ModelProto) -> None:
    """Take the quantisation off what the last convolutions give: eight bits of logit are too few."""
    graph = _Graph(model)
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


def _leads_to_probability(graph: _Graph, node: NodeProto) -> bool:
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
