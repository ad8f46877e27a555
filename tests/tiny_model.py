"""A network of one convolution, written by hand as ONNX: everything an engine needs, without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nucfast.engine import Bundle, ClassScheme, DecoderSpec, OutputSpec, write_bundle
from nucfast.nuclei import NucleusClass

STRIDE_PX = 4


def tiny_spec(**changes) -> Bundle:
    settings = {
        "name": "tiny",
        "version": "1.0",
        "description": "one convolution, for tests",
        "mpp": 0.5,
        "tile_px": 64,
        "stride_px": STRIDE_PX,
        "margin_px": 8,
        "halo_px": 16,
        "outputs": (
            OutputSpec("nucleus", "probability", 1, 1),
            OutputSpec("distance", "distance to the nucleus edge, 1 at its centre", 1, 1),
            OutputSpec("class", "probability of each class inside nuclei", 4, 2),
        ),
        "classes": tuple(
            NucleusClass(i + 1, name, (10 * i, 20, 255))
            for i, name in enumerate(["epithelial", "inflammatory", "spindle", "other"])
        ),
        "class_scheme": ClassScheme("consep", {1: 4, 2: 2, 3: 1, 4: 1, 5: 3, 6: 3, 7: 3}),
        "decoder": DecoderSpec("climb", 128, 20, 8.0, extra={"smooth": True, "sigma": 1.5}),
        "licence": "CC0-1.0",
        "training": {"data": ["none"], "recipe": None},
        "accuracy": ({"data": "consep", "split": "val", "convention": "binary", "pq": 0.5},),
    }
    return Bundle(**(settings | changes))


def tiny_onnx(*, seed: int = 0, input_type: int = TensorProto.UINT8) -> bytes:
    """3x3 convolution of stride 2 to 12 channels; 4 + 4 become pixels, 4 become classes."""
    random = np.random.default_rng(seed)
    constants = {
        "weight": random.normal(0, 1, (12, 3, 3, 3)).astype(np.float32),
        "bias": random.normal(0, 1, 12).astype(np.float32),
        "scale": np.float32(1 / 255),
        "full": np.float32(255),
        "split": np.array([4, 4, 4], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["x"]),
        helper.make_node("Conv", ["x", "weight", "bias"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Split", ["y", "split"], ["y0", "y1", "c"], axis=1),
        helper.make_node("DepthToSpace", ["y0"], ["n"], blocksize=2, mode="CRD"),
        helper.make_node("DepthToSpace", ["y1"], ["d"], blocksize=2, mode="CRD"),
        helper.make_node("Sigmoid", ["n"], ["nucleus_p"]),
        helper.make_node("Sigmoid", ["d"], ["distance_p"]),
        helper.make_node("Softmax", ["c"], ["class_p"], axis=1),
    ]
    outputs = []
    for name, channels in (("nucleus", 1), ("distance", 1), ("class", 4)):
        nodes += [
            helper.make_node("Mul", [f"{name}_p", "full"], [f"{name}_s"]),
            helper.make_node("Round", [f"{name}_s"], [f"{name}_r"]),
            helper.make_node("Transpose", [f"{name}_r"], [f"{name}_t"], perm=[0, 2, 3, 1]),
            helper.make_node("Cast", [f"{name}_t"], [name], to=TensorProto.UINT8),
        ]
        shape = ["batch", f"{name}_h", f"{name}_w", channels]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", input_type, ["batch", "h", "w", 3])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def write_tiny(directory: Path, **changes) -> Bundle:
    return write_bundle(directory, tiny_spec(**changes), {"model.onnx": tiny_onnx()})
