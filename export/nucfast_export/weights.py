"""Half the size of a file: weights stored as float16, computed with as float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Below this a tensor weighs nothing in the file: biases and normalisation stay exact.
MIN_ELEMENTS = 1024


def store_weights_as_fp16(model: onnx.ModelProto) -> None:
    """Store large float32 initialisers as float16, each followed by a Cast to float32, in place.

    Engines fold the casts when they load the model, so it runs at the same speed and with the same
    arithmetic; only the weights are rounded, to 11 bits.

    Raises:
        ValueError: a weight is beyond the range of float16.
    """
    graph = model.graph
    stored: list[onnx.TensorProto] = []
    casts: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < MIN_ELEMENTS:
            stored.append(tensor)
            continue
        weights = numpy_helper.to_array(tensor)
        if not np.all(np.abs(weights) <= np.finfo(np.float16).max):
            raise ValueError(
                f"weights: {tensor.name!r} has values beyond float16; export with weights='fp32'"
            )
        name = f"{tensor.name}.fp16"
        stored.append(numpy_helper.from_array(weights.astype(np.float16), name))
        casts.append(
            helper.make_node("Cast", [name], [tensor.name], name=f"{name}.cast", to=TensorProto.FLOAT)
        )
    nodes = list(graph.node)
    del graph.initializer[:]
    del graph.node[:]
    graph.initializer.extend(stored)
    graph.node.extend([*casts, *nodes])
