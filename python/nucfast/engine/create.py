"""Which engine runs a bundle: the rule, in one place.

===========  =============  ==========================================================================
``engine``   ``device``     what runs
===========  =============  ==========================================================================
auto         auto           ONNX Runtime on cuda:0 if its CUDA provider is installed and a device is
                            there, else OpenVINO on the CPU
auto         cpu            OpenVINO
auto         cuda, cuda:i   ONNX Runtime; an error if CUDA cannot be used
openvino     auto, cpu      OpenVINO on the CPU
openvino     cuda           an error
onnxruntime  auto           ONNX Runtime on cuda:0 as above, else on the CPU
onnxruntime  cpu, cuda      ONNX Runtime there; an error if it cannot
===========  =============  ==========================================================================

``precision`` "auto": OpenVINO computes in bf16 on a CPU with bf16 instructions, ONNX Runtime in TF32 on a GPU
that has it, everything else in fp32. What was asked for by name is obeyed or refused, never replaced.
"""

from __future__ import annotations

import re

from nucfast.engine.base import Engine
from nucfast.engine.bundle import Bundle
from nucfast.engine.onnxruntime_engine import OnnxRuntimeEngine, cuda_available
from nucfast.engine.openvino_engine import OpenVinoEngine, cpu_has_bf16
from nucfast.engine.threads import resolve_threads
from nucfast.errors import EngineError

ENGINES = ("auto", "openvino", "onnxruntime")
PRECISIONS = ("auto", "fp32", "bf16")


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
        engine: "auto", "openvino" or "onnxruntime".
        device: "auto", "cpu", "cuda" (the same as "cuda:0") or "cuda:<index>".
        precision: "auto", "fp32" or "bf16".
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
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:<index>, got {device!r}")
    threads = resolve_threads(threads)

    if engine == "openvino" and device.startswith("cuda"):
        raise EngineError(
            f"engine openvino runs on the CPU only, not on {device}; use engine onnxruntime or auto"
        )
    if device == "cuda":
        device = "cuda:0"
    if device == "auto":
        device = "cuda:0" if engine != "openvino" and cuda_available() else "cpu"
    if engine == "openvino" or (engine == "auto" and device == "cpu"):
        if precision == "auto":
            precision = "bf16" if cpu_has_bf16() else "fp32"
        return OpenVinoEngine(bundle, precision=precision, threads=threads)
    return OnnxRuntimeEngine(bundle, device=device, precision=precision, threads=threads)
