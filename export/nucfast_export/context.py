"""How much of an image has any influence on one pixel of a network's maps."""

from __future__ import annotations

from typing import Any

import onnx
from onnx.numpy_helper import to_array

from nucfast.engine import Bundle

# A value depends on those of the same place.
_POINTWISE = {
    *("Cast", "QuantizeLinear", "DequantizeLinear", "Identity"),
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Clip", "Round", "Floor"),
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"),
}

_Place = tuple[tuple[int, int], tuple[int, int]]  # first and last row, first and last column


def context_px(model: onnx.ModelProto, bundle: Bundle) -> int | None:
    """How far around a square of the network's stride, one of its grid, lies what its maps depend on.

    Args:
        model: from (N, height, width, 3) to maps (N, h, w, channels).
        bundle: strides of the network and of its outputs.

    Returns:
        Pixels; None if the graph has operators of whose reach nothing is known here, or that see all of it.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    side = bundle.stride_px
    seen = {output.name: ((0, side // output.stride - 1),) * 2 for output in bundle.outputs}
    for node in reversed(graph.node):
        results = [seen[name] for name in node.output if name in seen]
        if not results:
            continue
        given = _given(node, _joined(results), constants)
        if given is None:
            return None
        for name in node.input if node.op_type in _POINTWISE | {"Concat"} else node.input[:1]:
            seen[name] = _joined([given, seen.get(name, given)])
    axes = seen[bundle.input_name]
    return max(0, *(-first for first, _ in axes), *(last - (side - 1) for _, last in axes))


def _joined(places: list[_Place]) -> _Place:
    """The smallest place that holds all of them."""
    rows, cols = (
        (min(first for first, _ in axis), max(last for _, last in axis)) for axis in zip(*places, strict=True)
    )
    return rows, cols


def _given(node: onnx.NodeProto, place: _Place, constants: dict[str, onnx.TensorProto]) -> _Place | None:
    """Where the values lie that a node needs for those at a place; None: not known."""
    settings: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kind = node.op_type
    if kind in _POINTWISE or (kind in {"Softmax", "Concat"} and settings.get("axis") == 1):
        return place
    if kind == "Transpose" and settings["perm"] in ([0, 3, 1, 2], [0, 2, 3, 1]):
        return place
    if kind == "Slice" and node.input[3] in constants and to_array(constants[node.input[3]]).tolist() == [1]:
        return place
    if kind == "DepthToSpace":
        return _reduced(place, [settings["blocksize"]] * 2, around=0)
    if kind == "Resize" and len(node.input) > 2 and node.input[2] in constants:
        factors = to_array(constants[node.input[2]]).tolist()[2:]
        if any(factor != int(factor) or factor < 1 for factor in factors):
            return None
        repeats = (
            settings.get("mode") == b"nearest"
            and settings.get("coordinate_transformation_mode") == b"asymmetric"
            and settings.get("nearest_mode") == b"floor"
        )
        if repeats or settings.get("mode") in {b"nearest", b"linear"}:
            return _reduced(place, [int(factor) for factor in factors], around=0 if repeats else 1)
    if kind in {"Conv", "MaxPool", "AveragePool"} and settings.get("auto_pad", b"NOTSET") == b"NOTSET":
        sizes, pads = settings.get("kernel_shape"), settings.get("pads", [0, 0])
        strides, dilations = settings.get("strides", [1, 1]), settings.get("dilations", [1, 1])
        if sizes is not None:
            rows, cols = (
                (first * strides[i] - pads[i], last * strides[i] - pads[i] + (sizes[i] - 1) * dilations[i])
                for i, (first, last) in enumerate(place)
            )
            return rows, cols
    return None


def _reduced(place: _Place, factors: list[int], *, around: int) -> _Place:
    """What lies under a place of an enlarged map, and so many values around it."""
    rows, cols = (
        (first // factor - around, last // factor + around)
        for (first, last), factor in zip(place, factors, strict=True)
    )
    return rows, cols
