"""What every engine has in common: the protocol, the check of its input, its output buffers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.bundle import MANIFEST, MODEL, Bundle
from nucfast.errors import BundleError, EngineError

Maps = dict[str, NDArray[np.uint8]]

# ONNX Runtime's: "/path/file.cc:12 void onnxruntime::Function(int, const T&) ", before what happened.
_SIGNATURE = re.compile(r"/\S+:\d+ .*?\) (?=[A-Z])")
_LONGEST = 300


class Engine(Protocol):
    """Runs a bundle's network.

    Attributes:
        bundle: what it runs.
        name: "openvino", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx", "pytorch".
        device: "cpu", "cuda:0".
        precision: the arithmetic in use: "fp32", "tf32", "bf16", "fp16", "int8".
        threads: processor threads it computes with.
        description: all of that in one line, for people.
    """

    bundle: Bundle
    name: str
    device: str
    precision: str
    threads: int
    description: str

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """The network's outputs for a batch of tiles; any number of threads may call this at once.

        Args:
            tiles: (N, height, width, 3) uint8 RGB at the bundle's mpp; height and width are multiples of its
                ``stride_px``, N may be 0.
            out: buffers to fill, one per output, instead of new arrays. Reusing them saves the cost of
                touching fresh memory.

        Returns:
            By output name: (N, height / stride, width / stride, channels) uint8.

        Raises:
            TypeError: an array is not uint8.
            ValueError: a shape differs from the above.
            EngineError: the engine failed, for want of memory for instance.
        """
        ...


def check_tiles(tiles: NDArray[np.uint8], bundle: Bundle) -> None:
    """Refuse what no network of this bundle can take: see ``Engine.run``."""
    if not isinstance(tiles, np.ndarray) or tiles.dtype != np.uint8:
        got = tiles.dtype if isinstance(tiles, np.ndarray) else type(tiles).__name__
        raise TypeError(f"tiles: expected a uint8 array, got {got}")
    if tiles.ndim != 4 or tiles.shape[3] != 3:
        raise ValueError(f"tiles: expected (N, height, width, 3), got {tiles.shape}")
    height, width = tiles.shape[1:3]
    stride = bundle.stride_px
    if height == 0 or width == 0 or height % stride or width % stride:
        raise ValueError(f"tiles: expected height and width in multiples of {stride}, got {height} x {width}")


def output_buffers(
    tiles: NDArray[np.uint8], bundle: Bundle, out: Mapping[str, NDArray[np.uint8]] | None
) -> Maps:
    """One array per output for these tiles: those of ``out`` once checked, else new ones."""
    count, height, width, _ = tiles.shape
    shapes = {
        spec.name: (count, height // spec.stride, width // spec.stride, spec.channels)
        for spec in bundle.outputs
    }
    if out is None:
        return {name: np.empty(shape, np.uint8) for name, shape in shapes.items()}
    if out.keys() != shapes.keys():
        raise ValueError(f"out: expected the outputs {sorted(shapes)}, got {sorted(out)}")
    for name, shape in shapes.items():
        if out[name].dtype != np.uint8:
            raise TypeError(f"out[{name!r}]: expected uint8, got {out[name].dtype}")
        if out[name].shape != shape:
            raise ValueError(f"out[{name!r}]: expected shape {shape}, got {out[name].shape}")
        if not out[name].flags.writeable:
            raise ValueError(f"out[{name!r}]: expected a writable array, got a read-only one")
    return dict(out)


def store(result: NDArray[np.uint8], target: NDArray[np.uint8], name: str, bundle: Bundle) -> None:
    """Copy what the network gave for one output into its buffer.

    Raises:
        BundleError: the network does not compute what ``bundle.json`` promises.
    """
    promised_shape(result.shape, target.shape, name, bundle, MODEL)
    np.copyto(target, result)


def promised_shape(
    got: tuple[int, ...], expected: tuple[int, ...], name: str, bundle: Bundle, file: str
) -> None:
    """Raise BundleError if an output does not have the shape that ``bundle.json`` promises."""
    if got != expected:
        raise BundleError(
            f"{bundle.label()}: output {name!r} of {file} is {got} where {MANIFEST} promises {expected}: "
            f"{bundle.remedy(file)}"
        )


def check_graph(
    bundle: Bundle, inputs: Mapping[str, str], outputs: Mapping[str, str], file: str, *, uint8_name: str
) -> None:
    """Hold the inputs and outputs of a loaded file (type by name) against the bundle.

    Raises:
        BundleError: they differ.
    """
    if dict(inputs) != {bundle.input_name: uint8_name}:
        raise BundleError(
            f"{bundle.label()}: {file} takes {dict(inputs)} where {MANIFEST} promises "
            f"{bundle.input_name!r} in uint8: {bundle.remedy(file)}"
        )
    for spec in bundle.outputs:
        if outputs.get(spec.name) != uint8_name:
            raise BundleError(
                f"{bundle.label()}: {file} gives {dict(outputs)} where {MANIFEST} promises "
                f"{spec.name!r} in uint8: {bundle.remedy(file)}"
            )


def model_for(bundle: Bundle, precision: str, *, engine: str) -> str:
    """The ONNX file that computes in this precision.

    Raises:
        EngineError: the bundle has none.
    """
    if precision == "fp32":
        return MODEL
    variant = bundle.variant("onnx", precision)
    if variant is None:
        raise EngineError(
            f"precision {precision}: {bundle.label()} has no file for it that {engine} runs: make one with  "
            f"{bundle.export_command('onnx', precision)}"
        )
    return variant.file


def readable(text: str) -> str:
    """A library's message in one line, without C++ signatures; of a long one the end, which says why."""
    line = _SIGNATURE.sub("", " ".join(text.split()))
    return line if len(line) <= _LONGEST else f"...{line[-_LONGEST:]}"


def unreadable_model(bundle: Bundle, error: Exception, file: str = MODEL) -> BundleError:
    """The error for a file that an engine refuses, cut to the line with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO puts a hint for its developers behind the operators that it does not know.
    named = [line for line in lines if "No conversion rule found" in line]
    reason = (named or lines[-1:] or [type(error).__name__])[0].removeprefix("-- ")
    return BundleError(
        f"{bundle.label()}: {file} cannot be loaded ({readable(reason)}): {bundle.remedy(file)}"
    )


def too_large(bundle: Bundle, engine: str, shape: tuple[int, ...], *, largest_px: int) -> EngineError:
    """The error for a batch of tiles larger than what TensorRT has built for."""
    return EngineError(
        f"{bundle.label()}: {engine} was built for tiles of up to {largest_px} px, "
        f"got {shape[1]} x {shape[2]}: use smaller tiles or engine onnxruntime"
    )
