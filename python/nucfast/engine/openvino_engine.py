"""OpenVINO on the CPU: the engine that every installation has."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast._core import pixel_shuffle
from nucfast.engine.base import (
    Maps,
    check_graph,
    check_tiles,
    model_for,
    output_buffers,
    promised_shape,
    readable,
    unreadable_model,
)
from nucfast.engine.bundle import Bundle
from nucfast.engine.openvino_outputs import cut_off_shuffles
from nucfast.errors import EngineError, require

# A tile is computed by this many threads. More scale badly over one tile, fewer keep more tiles, and so more
# memory, in flight; on 2 cores one stream of 2 threads and two of 1 are equally fast.
THREADS_PER_STREAM = 4

# OpenVINO keeps what it has compiled for every size of tile that occurs, 2 MB each, for thousands of sizes.
# It counts by operation; of he-fast, this keeps some 17 sizes, about as many as the pipeline's tiles have.
_KEPT_OPERATIONS = 140
# What it drops, oneDNN below it would keep: as many kernels as this variable says, by default 1024.
_KEPT_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"

_import_lock = threading.Lock()


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which reports every import and writes into the home folder.

    Raises:
        MissingExtraError: it is not installed, or does not load.
    """
    blocked = "openvino_telemetry"
    with _import_lock:
        if sys.modules.get("openvino") is not None:
            return importlib.import_module("openvino")
        shadowed = sys.modules.get(blocked)
        # None makes the import of that name fail, and OpenVINO then uses a stand-in that does nothing.
        sys.modules[blocked] = None  # type: ignore[assignment]
        try:
            return require("openvino", extra=None, purpose="inference on the CPU")
        finally:
            del sys.modules[blocked]
            if shadowed is not None:
                sys.modules[blocked] = shadowed


def _compile(core: Any, model: Any, settings: Mapping[str, Any]) -> Any:
    # oneDNN reads its variable for its first kernel. That of PyTorch is another one, and must not see it.
    chosen = os.environ.get(_KEPT_KERNELS)
    os.environ[_KEPT_KERNELS] = chosen or "0"
    try:
        try:
            # Not among the properties that OpenVINO documents, so a release may not know it.
            bounded = {**settings, "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_OPERATIONS}
            return core.compile_model(model, "CPU", bounded)
        except RuntimeError:
            return core.compile_model(model, "CPU", settings)
    finally:
        if chosen is None:
            del os.environ[_KEPT_KERNELS]


@functools.cache
def _shared_core() -> Any:
    """OpenVINO's Core, one for all engines and never let go.

    The thread that makes it gets a stack for signal handlers, which is freed with it, whichever thread that
    happens in: then Ctrl-C would crash the process.
    """
    core = import_openvino().Core()
    core.set_property("CPU", {"LOG_LEVEL": "LOG_NONE"})
    return core


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bf16; without its instructions bf16 is slower than fp32."""
    return "BF16" in _shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """Runs a bundle with OpenVINO on the CPU; see ``nucfast.engine.Engine``.

    Tiles of a batch are computed one by one, each by one stream: a tile's working set stays in cache, memory
    does not grow with the batch, and callers in several threads share the streams fairly.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, bundle: Bundle, *, precision: str, threads: int) -> None:
        openvino = import_openvino()
        if precision == "fp16":
            raise EngineError("precision fp16: OpenVINO on the CPU has fp32, bf16 and int8; use one of these")
        native_bf16 = cpu_has_bf16()
        if precision == "bf16" and not native_bf16:
            raise EngineError("precision bf16: this CPU has no bf16 instructions; use precision fp32 or auto")
        self.bundle = bundle
        self.precision = precision
        self.threads = threads
        self._tensor = openvino.Tensor
        core = _shared_core()
        settings = {
            # In an int8 network, the few layers that are not quantised.
            "INFERENCE_PRECISION_HINT": "bf16" if native_bf16 and precision != "fp32" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": math.ceil(threads / THREADS_PER_STREAM),
            # Pinned threads wait for their core when anything else runs there, be it another process or the
            # pipeline's own decoding.
            "ENABLE_CPU_PINNING": False,
        }
        variant = bundle.variant("openvino", precision)
        weights: tuple[bytes, ...] = ()
        if variant is not None:
            file = variant.file
            weights = (bundle.read_file(file.removesuffix(".xml") + ".bin"),)
        else:
            # bf16 is a way to compute model.onnx, not another file.
            file = model_for(bundle, precision if precision == "int8" else "fp32", engine="OpenVINO")
        try:
            model = core.read_model(bundle.read_file(file), *weights)
            inputs = {port.any_name: port.element_type.to_string() for port in model.inputs}
            outputs = {port.any_name: port.element_type.to_string() for port in model.outputs}
        except RuntimeError as error:
            raise unreadable_model(bundle, error, file) from error
        check_graph(bundle, inputs, outputs, file, uint8_name="u8")
        self._shuffled = cut_off_shuffles(model)
        try:
            self._compiled = _compile(core, model, settings)
            self._check_shapes(file)
        except RuntimeError as error:
            raise unreadable_model(bundle, error, file) from error
        streams = int(self._compiled.get_property("NUM_STREAMS"))
        # Two per stream: while one is computed, the other's input and output are handled.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(2 * streams):
            self._idle.put(self._compiled.create_infer_request())
        release = ".".join(openvino.__version__.split("-")[0].split(".")[:2])
        plural = "" if threads == 1 else "s"
        self.description = f"OpenVINO {release} on CPU, {precision}, {threads} thread{plural}"

    def _check_shapes(self, file: str) -> None:
        """Hold the outputs of the smallest tile against the bundle: `run` gives buffers of these sizes."""
        tile = np.zeros((1, self.bundle.stride_px, self.bundle.stride_px, 3), np.uint8)
        results = self._compiled.create_infer_request().infer([tile])
        for name, expected in output_buffers(tile, self.bundle, None).items():
            shuffled = self._shuffled.get(name)
            if shuffled is None:
                shape = tuple(results[name].shape)
            else:
                shape = shuffled.shape(results[shuffled.output].shape)
            promised_shape(shape, expected.shape, name, self.bundle, file)

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """See ``nucfast.engine.Engine.run``."""
        check_tiles(tiles, self.bundle)
        tiles = np.ascontiguousarray(tiles)
        maps = output_buffers(tiles, self.bundle, out)
        running: deque[tuple[Any, int]] = deque()
        try:
            for index in range(len(tiles)):
                running.append((self._start(tiles, index, maps, running), index))
            while running:
                self._idle.put(self._finish(maps, running))
        except RuntimeError as error:
            lines = str(error).splitlines() or ["no reason given"]
            raise EngineError(f"{self.bundle.label()}: OpenVINO failed: {readable(lines[-1])}") from error
        finally:
            # After an error: the others still read `tiles`, and a request must be idle in the pool.
            for request, _ in running:
                with contextlib.suppress(RuntimeError):
                    request.wait()
                self._idle.put(request)
        return maps

    def _start(
        self, tiles: NDArray[np.uint8], index: int, maps: Maps, running: deque[tuple[Any, int]]
    ) -> Any:
        """Start a tile on an idle request: one of the pool, else this caller's oldest once it is done."""
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            # A caller that holds none may wait for the others': they finish without needing anything from it.
            request = self._finish(maps, running) if running else self._idle.get()
        try:
            # Straight into the caller's arrays: a copy would cost as much as a layer.
            for name in maps.keys() - self._shuffled.keys():
                target = maps[name][index : index + 1]
                request.set_tensor(name, self._tensor(target, shared_memory=True))
            request.start_async(tiles[index : index + 1], share_inputs=True)
        except BaseException:
            self._idle.put(request)
            raise
        return request

    def _finish(self, maps: Maps, running: deque[tuple[Any, int]]) -> Any:
        """Wait for this caller's oldest tile, whose outputs then lie in the caller's arrays."""
        request, index = running[0]
        request.wait()
        for name, shuffled in self._shuffled.items():
            planes = request.get_tensor(shuffled.output).data[0, shuffled.channels]
            pixel_shuffle(planes, maps[name][index, ..., 0])
        running.popleft()
        return request
