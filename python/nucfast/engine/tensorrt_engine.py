"""TensorRT and TensorRT-RTX on NVIDIA GPUs: one adapter, since they share their interface.

Networks are strongly typed (the only kind since TensorRT 11), so the precision is that of the ONNX file. An
engine is built for one device at first use and cached, or comes with the bundle: TensorRT-RTX builds on
machines without a GPU.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.base import (
    Maps,
    check_tiles,
    model_for,
    output_buffers,
    readable,
    too_large,
    unreadable_model,
)
from nucfast.engine.bundle import Bundle, Variant
from nucfast.engine.cache import cache_folder, cached_engine
from nucfast.engine.cuda import CudaDevice, check_device
from nucfast.errors import EngineError, require

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

# What an engine's buffers hold grows with the pixels of its largest batch: 16 tiles of 1536 px.
_MOST_BATCH, _MOST_PX = 16, 16 * 1536**2


def largest_batch(tile_px: int) -> int:
    """The tiles of this size that engines are built for at once, unless told otherwise."""
    return max(1, min(_MOST_BATCH, _MOST_PX // tile_px**2))


def engine_slot(bundle: Bundle, *, library: str, device: str, precision: str) -> dict[str, str]:
    """What an engine built for a bundle's tiles is for; ``device`` is the name of the GPU."""
    return {
        "network": bundle.name,
        "library": library,
        "device": device,
        "precision": precision,
        "shape": f"{largest_batch(bundle.tile_px)}x{bundle.tile_px}",
    }


def import_tensorrt(library: str) -> ModuleType:
    """Import "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingExtraError: it is not installed, or does not load.
    """
    return require(MODULES[library], extra=library, purpose=f"engine {library}")


def build_engine(
    content: bytes, bundle: Bundle, *, library: str, tile_px: int, batch: int, file: str
) -> bytes:
    """Build an engine from an ONNX file, tuned for batches of ``batch`` tiles and fit for anything smaller.

    TensorRT builds for the GPU of this machine; TensorRT-RTX for every GPU it knows, with or without one.

    Raises:
        MissingExtraError: the library is not installed.
        BundleError: the library cannot run the network; the message holds its reason.
        EngineError: TensorRT finds no GPU, or the library would round the outputs to something else.
    """
    runtime = import_tensorrt(library)
    logger = _logger(runtime)
    if library == "tensorrt":
        check_device(0, "engine tensorrt")
    builder = runtime.Builder(logger)
    # TensorRT 10 has other kinds of networks too; later ones have this kind only.
    flags = getattr(runtime, "NetworkDefinitionCreationFlag", None)
    strongly = getattr(flags, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = runtime.OnnxParser(network, logger)
    if not parser.parse(content):
        raise unreadable_model(bundle, ValueError(_parser_error(parser)), file)
    config = builder.create_builder_config()
    config.clear_flag(runtime.BuilderFlag.TF32)  # set by default, where fp32 is what was asked for
    profile = builder.create_optimization_profile()
    least = (1, bundle.stride_px, bundle.stride_px, 3)
    largest = (batch, tile_px, tile_px, 3)
    profile.set_shape(bundle.input_name, least, largest, largest)
    config.add_optimization_profile(profile)
    # It takes the rounding of model.onnx for that to int8, which ends at 127.
    for port in map(network.get_output, range(network.num_outputs)):
        if port.dtype != runtime.DataType.UINT8:
            raise EngineError(
                f"{bundle.label()}: {library} makes {port.dtype.name.lower()} of output {port.name!r} of "
                f"{file}, not uint8: use precision fp16, or an engine made with  "
                f"{bundle.export_command(library, 'fp32')}"
            )
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise unreadable_model(bundle, ValueError(f"{library} cannot build it: {logger.last}"), file)
    return bytes(engine)


def _parser_error(parser: Any) -> str:
    """Why a network was not parsed, with operator and node if it is for one of them."""
    error = parser.get_error(0)
    operator, node = error.node_operator(), error.node_name() or f"number {error.node()}"
    where = f"operator {operator}, node {node}: " if operator else ""
    return f"{where}{error.desc()}"


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
        self._cuda = CudaDevice(int(device.removeprefix("cuda:")), f"engine {library} on {device}")
        self.bundle = bundle
        self.name = library
        self.device = device
        if precision == "auto":
            precision = "fp16" if self._shipped(runtime, "fp16") is not None else "fp32"
        self.precision = precision
        self.threads = threads
        content, file, remedy = self._engine_bytes(runtime)
        self._logger = _logger(runtime)
        self._runtime = runtime.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f"{bundle.label()}: {file} cannot be loaded by {library} {runtime.__version__} on "
                f"{device} ({readable(self._logger.last)}): {remedy}"
            )
        *_, largest = self._engine.get_tensor_profile_shape(bundle.input_name, 0)
        self._most, self._largest_px = int(largest[0]), int(largest[1])
        self._context = self._engine.create_execution_context()
        self._lock = threading.Lock()
        release = ".".join(runtime.__version__.split(".")[:2])
        self.description = f"{library} {release} on {self._cuda.name}, {self.precision}"

    def _shipped(self, runtime: ModuleType, precision: str) -> Variant | None:
        """The engine that came with the bundle, if this version of the library wrote it."""
        variant = self.bundle.variant(self.name, precision)
        written_by = None if variant is None else variant.details.get("library")
        return variant if written_by == f"{self.name} {runtime.__version__}" else None

    def _engine_bytes(self, runtime: ModuleType) -> tuple[bytes, str, str]:
        """The engine that came with the bundle, else the cached or a new one; its name; how to mend it."""
        bundle, library = self.bundle, self.name
        shipped = self._shipped(runtime, self.precision)
        if shipped is not None:
            return bundle.read_file(shipped.file), shipped.file, bundle.remedy(shipped.file)
        if self.precision == "int8":
            # The CPU's int8 file is of another kind: TensorRT wants scales around zero.
            raise EngineError(
                f"precision int8: {bundle.label()} has no engine of {library} {runtime.__version__}: "
                f"make one with  {bundle.export_command(library, 'int8')}"
            )
        file = model_for(bundle, self.precision, engine=library)
        batch = largest_batch(bundle.tile_px)
        network = bundle.onnx_bytes(file)
        content = cached_engine(
            engine_slot(bundle, library=library, device=self._cuda.name, precision=self.precision),
            lambda: build_engine(
                network, bundle, library=library, tile_px=bundle.tile_px, batch=batch, file=file
            ),
            network=network,
            version=runtime.__version__,
            folder=cache_folder(),
        )
        return (
            content,
            "the cached engine",
            f"run  rm -r {shlex.quote(str(cache_folder()))}  and it is built again",
        )

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """See ``nucfast.engine.Engine.run``."""
        check_tiles(tiles, self.bundle)
        maps = output_buffers(tiles, self.bundle, out)
        with self._lock:
            for start in range(0, len(tiles), self._most):
                part = slice(start, start + self._most)
                self._run_batch(tiles[part], {name: value[part] for name, value in maps.items()})
        return maps

    def _run_batch(self, tiles: NDArray[np.uint8], maps: Maps) -> None:
        context, name = self._context, self.bundle.input_name

        def compute(count: int, source: int, targets: dict[str, int]) -> None:
            if not context.set_input_shape(name, (count, *tiles.shape[1:])):
                raise too_large(self.bundle, self.name, tiles.shape, largest_px=self._largest_px)
            for port, address in (targets | {name: source}).items():
                context.set_tensor_address(port, address)
            if not context.execute_async_v3(self._cuda.stream):
                raise EngineError(f"{self.bundle.label()}: {self.name} failed: {readable(self._logger.last)}")

        self._cuda.run(tiles, maps, compute)
