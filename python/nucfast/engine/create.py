"""Which engine runs a bundle: the rule, in one place.

====================  ============  ===================================================================
``engine``            ``device``    what runs
====================  ============  ===================================================================
auto                  auto          ONNX Runtime on the GPUs if its CUDA provider is installed and there
                                    is one, else OpenVINO on the CPU
auto                  cpu           OpenVINO
auto                  cuda, cuda:i  ONNX Runtime; an error if CUDA cannot be used
openvino              auto, cpu     OpenVINO on the CPU
onnxruntime           auto          ONNX Runtime on the GPUs as above, else on the CPU
onnxruntime           cpu, cuda     ONNX Runtime there; an error if it cannot
onnxruntime-tensorrt  auto, cuda    ONNX Runtime with TensorRT 10, built for the device at first use and
                                    cached
tensorrt              auto, cuda    TensorRT, likewise
tensorrt-rtx          auto, cuda    TensorRT-RTX, likewise
pytorch               any           PyTorch, on the GPUs if it sees one; for development, and never what
                                    "auto" picks
====================  ============  ===================================================================

``precision`` "auto":

* on a CPU: int8 if the bundle has an int8 file (none is written that loses accuracy beyond the tolerance) and
  the processor has int8 dot products, or AVX2 and the file is overflow-free, as all are that this version
  writes; else, with OpenVINO, bf16 if the processor computes in it and faster than in fp32; else fp32.
* on a GPU: fp16 if the bundle has an fp16 file; else TF32 with ONNX Runtime on a GPU that has it; else fp32.

A file counts if the engine can load it: an ONNX file, or one of its own format (and version, of TensorRT).

``device`` "cuda:0,1" is one engine on each of these GPUs; every batch is shared out among them. "cuda", and
"auto" where it means GPUs, is all that are visible and of the first one's model. What was asked for by name
is obeyed or refused, never replaced.
"""

from __future__ import annotations

import re
from types import ModuleType

from nucfast.engine.base import Engine
from nucfast.engine.bundle import Bundle
from nucfast.engine.cuda import all_devices
from nucfast.engine.onnxruntime_engine import OnnxRuntimeEngine, cuda_available
from nucfast.engine.openvino_engine import OpenVinoEngine, cpu_has_bf16
from nucfast.engine.parallel import ParallelEngine
from nucfast.engine.processor import bf16_pays, has_int8
from nucfast.engine.tensorrt_engine import TensorRtEngine
from nucfast.engine.threads import resolve_threads
from nucfast.errors import EngineError, require

ENGINES = ("auto", "openvino", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx", "pytorch")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


def create_engine(
    bundle: Bundle,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Load a bundle's network into an engine; the table in this module's docstring says which.

    Args:
        bundle: from ``load_bundle``.
        engine: one of ``ENGINES``.
        device: "auto", "cpu", "cuda", "cuda:<index>" or "cuda:<index>,<index>".
        precision: one of ``PRECISIONS``.
        threads: threads of computation on the CPU; None: all that this process may use.

    Returns:
        An engine whose ``description`` says what was picked.

    Raises:
        ValueError: ``threads`` is less than 1.
        MissingExtraError: the engine is not installed.
        EngineError: the engine, device or precision asked for is not known or not there.
        BundleError: the network cannot be loaded.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if precision not in PRECISIONS:
        raise EngineError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    check_device_name(device)
    threads = resolve_threads(threads)

    if engine == "openvino" and device.startswith("cuda"):
        raise EngineError(
            f"engine openvino runs on the CPU only, not on {device}; use engine onnxruntime or auto"
        )
    if "tensorrt" in engine and device == "cpu":
        raise EngineError(f"engine {engine} runs on NVIDIA GPUs only; use engine openvino or auto")
    if device == "auto":
        device = "cuda" if _has_gpu(engine) else "cpu"
    if device == "cuda":
        device = all_devices()
    if "," in device:
        indices = dict.fromkeys(int(index) for index in device.removeprefix("cuda:").split(","))
        return ParallelEngine(
            [
                create_engine(bundle, engine=engine, device=f"cuda:{i}", precision=precision, threads=threads)
                for i in indices
            ]
        )

    if precision == "auto" and device != "cpu" and bundle.variant("onnx", "fp16") is not None:
        precision = "fp16"
    if engine == "pytorch":
        # Of another package, which imports this one.
        made: Engine = _pytorch("nucfast_export.torch_engine").create_torch_engine(
            bundle, device=device, precision=precision, threads=threads
        )
        return made
    if device == "cpu":
        own = bundle.variant("openvino", "int8") if engine != "onnxruntime" else None
        quantised = own or bundle.variant("onnx", "int8")
        fits = quantised is not None and bool(quantised.details.get("overflow_free"))
        if precision == "auto" and quantised is not None and has_int8(overflow_free=fits):
            precision = "int8"
        if engine == "onnxruntime":
            return OnnxRuntimeEngine(bundle, device=device, precision=precision, threads=threads)
        if precision == "auto":
            precision = "bf16" if cpu_has_bf16() and bf16_pays() else "fp32"
        return OpenVinoEngine(bundle, precision=precision, threads=threads)
    if engine.startswith("tensorrt"):
        return TensorRtEngine(bundle, library=engine, device=device, precision=precision, threads=threads)
    tensorrt = engine == "onnxruntime-tensorrt"
    return OnnxRuntimeEngine(bundle, device=device, precision=precision, threads=threads, tensorrt=tensorrt)


def check_device_name(device: str) -> None:
    """Raise EngineError unless ``device`` is one that ``create_engine`` knows, whether or not it is there."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+(,\d+)*)?", device):
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:<index>, got {device!r}")


def _has_gpu(engine: str) -> bool:
    """Whether this engine runs on a GPU where nothing else is asked for."""
    if engine == "pytorch":
        return bool(_pytorch("torch").cuda.is_available())
    return "tensorrt" in engine or (engine != "openvino" and cuda_available())


def _pytorch(module: str) -> ModuleType:
    for name in ("torch", "onnx", "safetensors", module):
        found = require(name, extra="train", purpose="engine pytorch")
    return found
