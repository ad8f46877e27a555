"""Rewrites of an exported graph that change no value: what engines run fast, what TensorRT accepts."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

# The runtimes compute channels in vectors of 16 and what is left over one by one.
VECTOR_CHANNELS = 16
LEVEL = np.float32(1 / 255)


class Graph:
    """The nodes of a graph with who makes and who uses each tensor; rebuilt after every edit."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.outputs = {port.name for port in model.graph.output}
        self.index()

    def index(self) -> None:
        """Look at the graph again, after an edit by other means than ``replace`` and ``constant``."""
        self.users: dict[str, list[NodeProto]] = defaultdict(list)
        self.maker: dict[str, NodeProto] = {}
        for node in self.graph.node:
            for name in node.input:
                self.users[name].append(node)
            for name in node.output:
                self.maker[name] = node
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer} | {
            node.output[0]: numpy_helper.to_array(node.attribute[0].t)
            for node in self.graph.node
            if node.op_type == "Constant" and node.attribute[0].name == "value"
        }

    def next(self, node: NodeProto, *operators: str) -> NodeProto | None:
        """The only user of a node's only output, if it is one of these operators."""
        users = self.users[node.output[0]]
        if len(users) != 1 or node.output[0] in self.outputs or users[0].op_type not in operators:
            return None
        return users[0]

    def replace(self, old: list[NodeProto], new: list[NodeProto]) -> None:
        """Put nodes in the place of the first of others."""
        place = min(list(self.graph.node).index(node) for node in old)
        for node in old:
            self.graph.node.remove(node)
        for offset, node in enumerate(new):
            self.graph.node.insert(place + offset, node)
        self.index()

    def constant(self, name: str, value: np.ndarray) -> str:
        """Store a constant, unless there is one of this name; its name."""
        if name not in self.constants:
            self.graph.initializer.append(numpy_helper.from_array(value, name))
            self.constants[name] = value
        return name

    def quantize(self, source: str, target: str) -> NodeProto:
        """A node that writes probabilities as bytes; it is not yet in the graph."""
        scale = self.constant("nucfast.level", np.asarray(LEVEL))
        zero = self.constant("nucfast.zero", np.asarray(np.uint8(0)))
        return helper.make_node("QuantizeLinear", [source, scale, zero], [target], name=f"{target}.levels")


def fuse_rounding(model: onnx.ModelProto) -> None:
    """Write ``round(255 * probability)`` as one QuantizeLinear, in place.

    The runtimes fuse it into what comes before, and everything behind it moves bytes instead of floats.
    Where pixels are shuffled out of the channels of a convolution, the sigmoid comes before the shuffle, and
    the channels are filled up with zeros.
    """
    graph = Graph(model)
    for node in list(model.graph.node):
        if node.op_type in {"Sigmoid", "Softmax"}:
            _fuse_levels(graph, node)
    for node in list(model.graph.node):
        if node.op_type == "DepthToSpace":
            _shuffle_bytes(graph, node)
    del model.graph.value_info[:]  # shapes that no longer hold; engines infer them anyway
    _drop_unused(model)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants that no node reads any more: ONNX Runtime warns of each."""
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _fuse_levels(graph: Graph, activation: NodeProto) -> None:
    times = graph.next(activation, "Mul")
    if times is None or not any(
        np.all(graph.constants.get(name, np.zeros(1)) == 255) for name in times.input
    ):
        return
    rounded = graph.next(times, "Round")
    after = graph.next(rounded, "Transpose", "Cast") if rounded is not None else None
    transpose = after if after is not None and after.op_type == "Transpose" else None
    cast = graph.next(transpose, "Cast") if transpose is not None else after
    if rounded is None or cast is None or cast.attribute[0].i != TensorProto.UINT8:
        return
    old = [times, rounded, *([transpose] if transpose is not None else []), cast]
    if transpose is None:
        graph.replace(old, [graph.quantize(activation.output[0], cast.output[0])])
        return
    levels = f"{cast.output[0]}.nchw"
    moved = helper.make_node("Transpose", [levels], [cast.output[0]], name=f"{cast.output[0]}.nhwc")
    moved.attribute.extend(transpose.attribute)
    graph.replace(old, [graph.quantize(activation.output[0], levels), moved])


def _shuffle_bytes(graph: Graph, shuffle: NodeProto) -> None:
    """From conv, DepthToSpace, slices, Sigmoid, levels: Sigmoid and levels first, then shuffle each slice."""
    attributes = {item.name: helper.get_attribute_value(item) for item in shuffle.attribute}
    block = attributes["blocksize"] ** 2
    conv = graph.maker.get(shuffle.input[0])
    slices = graph.users[shuffle.output[0]]
    if conv is None or not _can_grow(graph, conv) or attributes.get("mode") != b"CRD":
        return
    parts = []
    for part in slices:
        span = _channel_slice(graph, part)
        sigmoid = graph.next(part, "Sigmoid")
        levels = graph.next(sigmoid, "QuantizeLinear") if sigmoid is not None else None
        if span is None or sigmoid is None or levels is None:
            return
        parts.append((part, span, sigmoid, levels))
    _fill_vectors(graph, conv)
    stem = shuffle.input[0]
    new = [
        helper.make_node("Sigmoid", [stem], [f"{stem}.sigmoid"], name=f"{stem}.sigmoid"),
        graph.quantize(f"{stem}.sigmoid", f"{stem}.levels"),
    ]
    axis = graph.constant("nucfast.channel_axis", np.array([1], np.int64))
    for _, (begin, end), _, levels in parts:
        name = levels.output[0]
        first = graph.constant(f"{name}.begin", np.array([begin * block], np.int64))
        last = graph.constant(f"{name}.end", np.array([end * block], np.int64))
        cut = helper.make_node("Slice", [f"{stem}.levels", first, last, axis], [f"{name}.cut"])
        pixels = helper.make_node("DepthToSpace", [f"{name}.cut"], [name])
        pixels.attribute.extend(shuffle.attribute)
        new += [cut, pixels]
    graph.replace([shuffle, *(node for part, _, s, levels in parts for node in (part, s, levels))], new)


def _can_grow(graph: Graph, conv: NodeProto) -> bool:
    """Whether nobody else uses the convolution's output, weights or bias."""
    parameters = list(conv.input[1:])
    return (
        conv.op_type == "Conv"
        and len(graph.users[conv.output[0]]) == 1
        and all(name in graph.constants and len(graph.users[name]) == 1 for name in parameters)
    )


def _fill_vectors(graph: Graph, conv: NodeProto) -> None:
    """Add channels of zeros, up to a multiple of what the runtimes compute at once."""
    for tensor in graph.graph.initializer:
        if tensor.name in conv.input[1:]:
            value = numpy_helper.to_array(tensor)
            extra = np.zeros((-len(value) % VECTOR_CHANNELS, *value.shape[1:]), value.dtype)
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate([value, extra]), tensor.name))
    graph.index()


def _channel_slice(graph: Graph, node: NodeProto) -> tuple[int, int] | None:
    if node.op_type != "Slice" or len(node.input) < 4:
        return None
    values = [graph.constants.get(name) for name in node.input[1:]]
    if any(value is None or value.size != 1 for value in values):
        return None
    begin, end, axis, *step = (int(value.reshape(())) for value in values if value is not None)
    return (begin, end) if axis == 1 and step in ([], [1]) else None


def plain_outputs(model: onnx.ModelProto) -> None:
    """Undo ``fuse_rounding`` for TensorRT, in place: bytes exist at the graph's inputs and outputs only."""
    graph = Graph(model)
    for node in list(model.graph.node):
        if node.op_type == "QuantizeLinear" and node.input[1] == "nucfast.level":
            name = node.output[0]
            full = graph.constant("nucfast.full", np.asarray(np.float32(255)))
            times = helper.make_node("Mul", [node.input[0], full], [f"{name}.times"])
            graph.replace([node], [times, helper.make_node("Round", [f"{name}.times"], [name])])
    for port in model.graph.output:
        last = graph.maker[port.name]
        if last.op_type == "Cast":
            continue
        last.output[0] = f"{port.name}.float"
        model.graph.node.append(
            helper.make_node("Cast", [f"{port.name}.float"], [port.name], to=TensorProto.UINT8)
        )
        graph.index()
    _drop_unused(model)


def share_weights(half: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Leave out of a network in fp16 what ``source`` stores in fp16 already, under the names it has there."""
    stored = {
        (*tensor.dims, numpy_helper.to_array(tensor).tobytes()): tensor.name
        for tensor in source.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT16
    }
    names = {}
    for tensor in list(half.graph.initializer):
        name = stored.get((*tensor.dims, numpy_helper.to_array(tensor).tobytes()))
        if name is not None and tensor.data_type == onnx.TensorProto.FLOAT16:
            names[tensor.name] = name
            half.graph.initializer.remove(tensor)
    for node in half.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def store_weights_as_fp32(model: onnx.ModelProto) -> None:
    """Undo ``store_weights_as_fp16`` in place: quantisers look for weights, not for casts of them."""
    graph = Graph(model)
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.input[0] in graph.constants:
            half = node.input[0]
            value = graph.constants[half].astype(np.float32)
            model.graph.node.remove(node)
            for tensor in model.graph.initializer:
                if tensor.name == half:
                    tensor.CopyFrom(numpy_helper.from_array(value, node.output[0]))
    graph.index()
