"""TensorRT and TensorRT-RTX on NVIDIA GPUs: one adapter, since they share their interface.

Networks are strongly typed (the only kind since TensorRT 11), so the precision is that of the ONNX file. An
engine is built for one device at first use and cached, or comes with the bundle: TensorRT-RTX builds on
machines without a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.base import Maps, bundle_label, check_tiles, model_for, output_buffers, unreadable_model
from nucfast.engine.bundle import Bundle
from nucfast.engine.cache import cache_folder, cached_engine
from nucfast.errors import EngineError, MissingExtraError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
MAX_BATCH = 16


def import_tensorrt(library: str) -> ModuleType:
    """Import "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(MODULES[library])
    except ImportError as error:
        raise MissingExtraError(
            f"engine {library} needs the package {MODULES[library]!r}: run  pip install 'nucfast[{library}]'"
        ) from error


def build_engine(
    content: bytes, bundle: Bundle, *, library: str, tile_px: int, batch: int = MAX_BATCH, file: str
) -> bytes:
    """Build an engine from an ONNX file, tuned for batches of ``batch`` tiles and fit for anything smaller.

    TensorRT builds for the GPU of this machine; TensorRT-RTX for every GPU it knows, with or without one.

    Raises:
        MissingExtraError: the library is not installed.
        BundleError: the library cannot run the network; the message holds its reason.
        EngineError: TensorRT finds no GPU.
    """
    runtime = import_tensorrt(library)
    logger = _logger(runtime)
    if library == "tensorrt" and _Cuda.count() == 0:
        raise EngineError("engine tensorrt: no CUDA device is visible; check nvidia-smi")
    builder = runtime.Builder(logger)
    # TensorRT 10 has other kinds of networks too; later ones have this kind only.
    flags = getattr(runtime, "NetworkDefinitionCreationFlag", None)
    strongly = getattr(flags, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = runtime.OnnxParser(network, logger)
    if not parser.parse(content):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise unreadable_model(bundle, ValueError(reasons[-1] if reasons else "no reason given"), file)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    least = (1, bundle.stride_px, bundle.stride_px, 3)
    largest = (batch, tile_px, tile_px, 3)
    profile.set_shape(bundle.input_name, least, largest, largest)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise unreadable_model(bundle, ValueError(f"{library} cannot build it: {logger.last}"), file)
    return bytes(engine)


def _logger(runtime: ModuleType) -> Any:
    class Logger(runtime.ILogger):  # type: ignore[misc, name-defined]
        """Keeps the last error for the exception's message and prints nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity <= runtime.ILogger.Severity.ERROR:
                self.last = message

    return Logger()


class TensorRtEngine:
    """Runs a bundle with TensorRT or TensorRT-RTX; see ``nucfast.engine.Engine``.

    Batches go through page-locked buffers and one stream; callers in several threads take turns.

    Raises:
        MissingExtraError: the library is not installed.
        EngineError: there is no such device, or its engine cannot be kept in the cache.
        BundleError: the network cannot be built or loaded.
    """

    def __init__(self, bundle: Bundle, *, library: str, device: str, precision: str, threads: int) -> None:
        if precision == "bf16":
            raise EngineError(f"precision bf16: engine {library} has fp32, fp16 and int8; use one of these")
        runtime = import_tensorrt(library)
        self._cuda = _Cuda(int(device.removeprefix("cuda:")), library)
        self.bundle = bundle
        self.name = library
        self.device = device
        self.precision = precision if precision != "auto" else "fp32"
        self.threads = threads
        content, file = self._engine_bytes(runtime)
        self._logger = _logger(runtime)
        self._runtime = runtime.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f"{bundle_label(bundle)}: {file} cannot be loaded by {library} {runtime.__version__} on "
                f"{device} ({self._logger.last}): export it again with this version"
            )
        self._context = self._engine.create_execution_context()
        self._lock = threading.Lock()
        release = ".".join(runtime.__version__.split(".")[:2])
        self.description = f"{library} {release} on {self._cuda.name}, {self.precision}"

    def _engine_bytes(self, runtime: ModuleType) -> tuple[bytes, str]:
        """The engine that came with the bundle if this library wrote it; else the cached or a new one."""
        bundle, library = self.bundle, self.name
        shipped = bundle.variant(library, self.precision)
        if shipped is not None and shipped.details.get("library") == f"{library} {runtime.__version__}":
            return bundle.read_file(shipped.file), shipped.file
        if self.precision == "int8":
            # The CPU's int8 file is of another kind: TensorRT wants scales around zero.
            raise EngineError(
                f"precision int8: {bundle_label(bundle)} has no engine of {library} {runtime.__version__}: "
                f"make one with  nucfast export {bundle_label(bundle)} --to {library} --precision int8 "
                "--data DATASET"
            )
        file = model_for(bundle, self.precision, engine=library)
        slot = {
            "network": bundle.name,
            "library": library,
            "device": self._cuda.name,
            "precision": self.precision,
            "shape": f"{MAX_BATCH}x{bundle.tile_px}",
        }
        made_with = {"sha256_of_model": bundle.files[file], "version": runtime.__version__}
        content = cached_engine(
            slot,
            made_with,
            lambda: build_engine(
                bundle.read_file(file), bundle, library=library, tile_px=bundle.tile_px, file=file
            ),
            folder=cache_folder(),
        )
        return content, "the cached engine"

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """See ``nucfast.engine.Engine.run``."""
        check_tiles(tiles, self.bundle)
        maps = output_buffers(tiles, self.bundle, out)
        with self._lock:
            self._cuda.enter()
            for start in range(0, len(tiles), MAX_BATCH):
                self._run_batch(
                    tiles[start : start + MAX_BATCH],
                    {name: value[start : start + MAX_BATCH] for name, value in maps.items()},
                )
        return maps

    def _run_batch(self, tiles: NDArray[np.uint8], maps: Maps) -> None:
        cuda, context, name = self._cuda, self._context, self.bundle.input_name
        if not context.set_input_shape(name, tiles.shape):
            raise EngineError(
                f"{bundle_label(self.bundle)}: {self.name} was built for tiles of up to "
                f"{self.bundle.tile_px} px, got {tiles.shape[1]} x {tiles.shape[2]}"
            )
        host, device = cuda.buffers(name, tiles.nbytes)
        host[: tiles.nbytes] = np.ascontiguousarray(tiles).reshape(-1)
        cuda.upload(device, host, tiles.nbytes)
        context.set_tensor_address(name, device)
        for output, target in maps.items():
            context.set_tensor_address(output, cuda.buffers(output, target.nbytes)[1])
        if not context.execute_async_v3(cuda.stream):
            raise EngineError(f"{bundle_label(self.bundle)}: {self.name} failed: {self._logger.last}")
        for output, target in maps.items():
            host, device = cuda.buffers(output, target.nbytes)
            cuda.download(host, device, target.nbytes)
        cuda.wait()
        for output, target in maps.items():
            host, _ = cuda.buffers(output, target.nbytes)
            target[...] = host[: target.nbytes].reshape(target.shape)


class _Cuda:
    """The little of the CUDA driver that is needed: a stream, buffers on the device and page-locked ones."""

    def __init__(self, index: int, library: str) -> None:
        count = self.count()
        if index >= count:
            found = "no CUDA device is visible" if count == 0 else f"there are {count} CUDA devices, from 0"
            raise EngineError(
                f"engine {library} on cuda:{index}: {found}; check nvidia-smi and CUDA_VISIBLE_DEVICES, "
                "or use engine openvino"
            )
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, self._context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        name = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.enter()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = stream.value or 0
        self._buffers: dict[str, tuple[NDArray[np.uint8], int]] = {}

    @staticmethod
    def count() -> int:
        """CUDA devices the driver shows to this process."""
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return 0
        count = ctypes.c_int(0)
        known = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        return count.value if known else 0

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            raise EngineError(f"the CUDA driver failed: {function} returned {code}")

    def enter(self) -> None:
        """Make the device current in this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def buffers(self, name: str, size: int) -> tuple[NDArray[np.uint8], int]:
        """(page-locked array, device address) of at least this many bytes, kept from call to call."""
        found = self._buffers.get(name)
        if found is None or found[0].size < size:
            if found is not None:
                self._call("cuMemFreeHost", ctypes.c_void_p(found[0].ctypes.data))
                self._call("cuMemFree_v2", ctypes.c_void_p(found[1]))
            host, device = ctypes.c_void_p(), ctypes.c_void_p()
            self._call("cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(size), 0)
            self._call("cuMemAlloc_v2", ctypes.byref(device), ctypes.c_size_t(size))
            array = np.ctypeslib.as_array(ctypes.cast(host, ctypes.POINTER(ctypes.c_uint8)), (size,))
            found = self._buffers[name] = array, device.value or 0
        return found

    def upload(self, device: int, host: NDArray[np.uint8], size: int) -> None:
        source, stream = ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(self.stream)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_void_p(device), source, ctypes.c_size_t(size), stream)

    def download(self, host: NDArray[np.uint8], device: int, size: int) -> None:
        target, stream = ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(self.stream)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_void_p(device), ctypes.c_size_t(size), stream)

    def wait(self) -> None:
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))
