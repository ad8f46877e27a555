"""ONNX Runtime on the CPU and on NVIDIA GPUs."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.base import (
    Maps,
    bundle_label,
    check_graph,
    check_tiles,
    model_for,
    output_buffers,
    store,
    unreadable_model,
)
from nucfast.engine.bundle import Bundle
from nucfast.errors import EngineError, require

GPU_INSTALL = "pip uninstall -y onnxruntime && pip install 'nucfast[gpu]'"

# Distributions that all install the one module ``onnxruntime`` and overwrite each other's files.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_CUDA = "CUDAExecutionProvider"
_TF32_COMPUTE_CAPABILITY = 8  # Ampere


def onnxruntime_packages() -> dict[str, str]:
    """Version by name of the installed distributions that bring the module ``onnxruntime``.

    More than one means that they have overwritten each other: which of them runs depends on the order of
    installation.
    """
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def onnxruntime_clash() -> str | None:
    """What is wrong and what to do if variants of ONNX Runtime are installed over each other; else None."""
    packages = onnxruntime_packages()
    if len(packages) < 2:
        return None
    listed = " and ".join(f"{name} {version}" for name, version in packages.items())
    names = " ".join(packages)
    extra = "gpu" if "onnxruntime-gpu" in packages else "cpu"
    return (
        f"{listed} overwrite each other: "
        f"run  pip uninstall -y {names}  and then  pip install 'nucfast[{extra}]'"
    )


def cuda_device_count() -> int:
    """CUDA devices the driver shows to this process (honours CUDA_VISIBLE_DEVICES); 0 without a driver."""
    driver = _cuda_driver()
    if driver is None:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def cuda_available() -> bool:
    """Whether the installed ONNX Runtime can use CUDA and there is a device."""
    if cuda_device_count() == 0 or importlib.util.find_spec("onnxruntime") is None:
        return False
    runtime = require("onnxruntime", extra="gpu", purpose="device cuda")
    return _CUDA in runtime.get_available_providers()


def _cuda_driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _has_tf32(index: int) -> bool:
    driver = _cuda_driver()
    if driver is None:
        return False
    device, major = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuDeviceGet(ctypes.byref(device), index) != 0:
        return False
    attribute = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    known = driver.cuDeviceGetAttribute(ctypes.byref(major), attribute, device) == 0
    return known and major.value >= _TF32_COMPUTE_CAPABILITY


def _check_cuda(runtime: ModuleType, index: int) -> None:
    """Raise EngineError unless CUDA device ``index`` can be used."""
    if _CUDA not in runtime.get_available_providers():
        clash = onnxruntime_clash()
        what = clash if clash is not None else f"run  {GPU_INSTALL}"
        raise EngineError(f"device cuda: the installed ONNX Runtime has no CUDA support: {what}")
    count = cuda_device_count()
    if index >= count:
        found = "no CUDA device is visible" if count == 0 else f"there are {count} CUDA devices, from 0"
        raise EngineError(
            f"device cuda:{index}: {found}; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use device cpu"
        )
    # The CUDA and cuDNN libraries of the pip packages are on no search path.
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()


class OnnxRuntimeEngine:
    """Runs a bundle with ONNX Runtime; see ``nucfast.engine.Engine``.

    Args:
        device: "cpu" or "cuda:<index>".
        precision: "fp32"; "int8" on the CPU; "fp16" on a GPU; or "auto": fp32, which on a GPU of the Ampere
            generation or later lets convolutions round their inputs to TF32 (11 bits).
        threads: threads of the CPU's computation; several callers share them.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: the device or precision is not there.
        BundleError: the model cannot be loaded.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, device: str, precision: str, threads: int) -> None:
        on_gpu = device != "cpu"
        offered = ("fp32", "fp16") if on_gpu else ("fp32", "int8")
        if precision not in ("auto", *offered):
            raise EngineError(
                f"precision {precision}: ONNX Runtime has {' and '.join(offered)} on {device}; "
                "use one of these or auto"
            )
        runtime = require(
            "onnxruntime",
            extra="gpu" if on_gpu else "cpu",
            purpose=f"device {device}" if on_gpu else "engine onnxruntime",
        )
        self.bundle = bundle
        self.device = device
        self.precision = precision if precision != "auto" else "fp32"
        self._file = model_for(bundle, self.precision, engine="ONNX Runtime")
        self.threads = threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if on_gpu:
            index = int(device.removeprefix("cuda:"))
            _check_cuda(runtime, index)
            tf32 = precision == "auto" and _has_tf32(index)
            if tf32:
                self.precision = "tf32"
            # The default search times every algorithm again for each new batch size, the last one included.
            search = {"cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, (_CUDA, {"device_id": index, "use_tf32": int(tf32), **search}))
        self._session = self._load(runtime, providers)
        self._check_ports()
        if on_gpu and self._session.get_providers()[0] != _CUDA:
            # ONNX Runtime falls back to the CPU by itself; that is never what was asked for.
            raise EngineError(
                f"device {device}: ONNX Runtime could not load its CUDA libraries: run  {GPU_INSTALL}"
            )
        release = ".".join(runtime.__version__.split(".")[:2])
        where = device.replace("cpu", "CPU").replace("cuda", "CUDA")
        count = f", {threads} thread{'' if threads == 1 else 's'}" if not on_gpu else ""
        self.description = f"ONNX Runtime {release} on {where}, {self.precision}{count}"

    def _load(self, runtime: ModuleType, providers: list[Any]) -> Any:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # errors; they are raised as well
        # Spinning threads take the core from the pipeline's other stages and win nothing here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = self.bundle.read_file(self._file)
        try:
            return runtime.InferenceSession(content, options, providers=providers)
        # The binding's exceptions have no common base but this.
        except Exception as error:
            raise unreadable_model(self.bundle, error, self._file) from error

    def _check_ports(self) -> None:
        inputs = {port.name: port.type for port in self._session.get_inputs()}
        outputs = {port.name: port.type for port in self._session.get_outputs()}
        check_graph(self.bundle, inputs, outputs, uint8_name="tensor(uint8)")

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """See ``nucfast.engine.Engine.run``."""
        check_tiles(tiles, self.bundle)
        maps = output_buffers(tiles, self.bundle, out)
        # A GPU wants the batch at once; on the CPU a tile at a time stays in cache and keeps memory flat.
        step = 1 if self.device == "cpu" else max(1, len(tiles))
        for start in range(0, len(tiles), step):
            part = np.ascontiguousarray(tiles[start : start + step])
            try:
                results = self._session.run(list(maps), {self.bundle.input_name: part})
            except Exception as error:
                lines = str(error).splitlines() or ["no reason given"]
                raise EngineError(
                    f"{bundle_label(self.bundle)}: ONNX Runtime failed: {lines[0][:200]}"
                ) from error
            for result, (name, target) in zip(results, maps.items(), strict=True):
                store(result, target[start : start + step], name, self.bundle)
        return maps
