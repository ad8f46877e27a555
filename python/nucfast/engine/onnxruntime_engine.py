"""ONNX Runtime on the CPU and on NVIDIA GPUs."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucfast.engine.base import (
    Maps,
    check_graph,
    check_tiles,
    model_for,
    output_buffers,
    promised_shape,
    readable,
    too_large,
    unreadable_model,
)
from nucfast.engine.bundle import Bundle
from nucfast.engine.cache import cache_folder, cached_folder, slot_name, usable
from nucfast.engine.cuda import CudaDevice, cuda_device_count
from nucfast.engine.tensorrt_engine import engine_slot, largest_batch
from nucfast.errors import EngineError, require

GPU_INSTALL = "pip uninstall -y onnxruntime && pip install 'nucfast[gpu]'"
TENSORRT_INSTALL = "pip install 'tensorrt-cu13>=10.13,<11'"

# Distributions that all install the one module ``onnxruntime`` and overwrite each other's files.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
MAX_GRAPHS = 8


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


def cuda_available() -> bool:
    """Whether the installed ONNX Runtime can use CUDA and there is a device."""
    if cuda_device_count() == 0 or importlib.util.find_spec("onnxruntime") is None:
        return False
    runtime = require("onnxruntime", extra="gpu", purpose="device cuda")
    return _CUDA in runtime.get_available_providers()


def _check_providers(runtime: ModuleType, asked: str, wanted: list[str]) -> None:
    """Raise EngineError unless this ONNX Runtime was built with these providers."""
    if not set(wanted) <= set(runtime.get_available_providers()):
        clash = onnxruntime_clash()
        what = clash if clash is not None else f"run  {GPU_INSTALL}"
        raise EngineError(f"{asked}: the installed ONNX Runtime has no CUDA support: {what}")
    # The CUDA and cuDNN libraries of the pip packages are on no search path.
    if hasattr(runtime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints what it does not find
            runtime.preload_dlls()
    # 4, fatal: it prints each plan that cuDNN does not have before it takes the next; errors are raised too.
    runtime.set_default_logger_severity(4)


def tensorrt_release() -> str:
    """The release of the TensorRT that ONNX Runtime's provider uses, such as "10.13.2".

    Raises:
        EngineError: it is not there.
    """
    # The pip package puts its libraries on no search path; importing it loads them.
    with suppress(ImportError, OSError):
        importlib.import_module("tensorrt")
    try:
        library = ctypes.CDLL("libnvinfer.so.10")
    except OSError as error:
        raise EngineError(
            "engine onnxruntime-tensorrt: ONNX Runtime needs TensorRT 10, and libnvinfer.so.10 is not there: "
            f"run  {TENSORRT_INSTALL}  or use engine onnxruntime"
        ) from error
    number = int(library.getInferLibVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def cuda_options(cuda: CudaDevice, *, precision: str, cuda_graph: bool) -> dict[str, str]:
    """Options of the CUDA provider."""
    return {
        "device_id": str(cuda.index),
        "user_compute_stream": str(cuda.stream),
        "use_tf32": str(int(precision == "tf32")),
        # The default search times every algorithm again for each new batch size, the last one included.
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": str(int(cuda_graph)),
        # Channels last, as tensor cores want halves: 1.3 times as fast; fp32 is slower. To fuse convolution
        # and bias as well (fuse_conv_bias) would win as much again, but costs seconds for each new shape.
        "prefer_nhwc": str(int(precision == "fp16")),
    }


def tensorrt_options(
    bundle: Bundle, cuda: CudaDevice, *, precision: str, engines: Path, timings: Path
) -> dict[str, str]:
    """Options of the TensorRT provider.

    Args:
        precision: that of the file. TensorRT takes half precision only where it is allowed.
        engines: the folder for engines. ONNX Runtime names them by the graph without its weights, so each
            file of each bundle needs its own.
        timings: the folder for the times of single layers, which make the next engine quicker to build.
    """
    least, largest = (1, bundle.stride_px), (largest_batch(bundle.tile_px), bundle.tile_px)
    shapes = {"min": least, "opt": largest, "max": largest}
    return {
        "device_id": str(cuda.index),
        "user_compute_stream": str(cuda.stream),
        "trt_fp16_enable": str(int(precision == "fp16")),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timings),
        **{
            f"trt_profile_{kind}_shapes": f"{bundle.input_name}:{count}x{side}x{side}x3"
            for kind, (count, side) in shapes.items()
        },
    }


class OnnxRuntimeEngine:
    """Runs a bundle with ONNX Runtime; see ``nucfast.engine.Engine``.

    The network reads and writes memory that is bound to it: on the CPU the caller's arrays, on a GPU buffers
    of a ``CudaDevice``. Callers of a GPU in several threads take turns.

    Args:
        device: "cpu" or "cuda:<index>".
        precision: "fp32"; "int8" on the CPU; "fp16" on a GPU; or "auto": fp32, which on a GPU of the Ampere
            generation or later lets convolutions round their inputs to TF32 (11 bits).
        threads: threads of the CPU's computation; several callers share them.
        tensorrt: let TensorRT 10 compute what it can; on a GPU only. Built at first use, and cached.
        cuda_graph: record the work for a shape of batch once and replay it, for up to ``MAX_GRAPHS`` shapes;
            on a GPU only, without ``tensorrt``.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: the device, precision or TensorRT is not there.
        BundleError: the model cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str,
        precision: str,
        threads: int,
        tensorrt: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        on_gpu = device != "cpu"
        self.name = "onnxruntime-tensorrt" if tensorrt else "onnxruntime"
        if cuda_graph and (tensorrt or not on_gpu):
            raise EngineError(f"engine {self.name} on {device}: CUDA graphs need engine onnxruntime on a GPU")
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
        self._runtime = runtime
        self.bundle = bundle
        self.device = device
        self.precision = precision if precision != "auto" else "fp32"
        self._file = model_for(bundle, self.precision, engine="ONNX Runtime")
        self.threads = threads
        self._place = ("cpu", 0)  # of the memory that is bound
        self._cuda: CudaDevice | None = None
        self._graphs: dict[tuple[int, ...], int] | None = {} if cuda_graph else None
        self._lock = threading.Lock()
        network = bundle.onnx_bytes(self._file)
        with self._providers(network, precision, tensorrt=tensorrt) as providers:
            self._session = self._load(network, [*providers, "CPUExecutionProvider"])
            first = providers[0][0] if providers else "CPUExecutionProvider"
            if self._session.get_providers()[0] != first:
                # ONNX Runtime falls back to the CPU by itself; that is never what was asked for.
                raise self._unloadable()
            self._check_ports()
            # TensorRT may wait with the build until something runs.
            self._check_shapes()
        release = ".".join(runtime.__version__.split(".")[:2])
        where = device.replace("cpu", "CPU").replace("cuda", "CUDA")
        how = " with TensorRT" if tensorrt else ", CUDA graphs" if cuda_graph else ""
        count = f", {threads} thread{'' if threads == 1 else 's'}" if not on_gpu else ""
        self.description = f"ONNX Runtime {release} on {where}, {self.precision}{count}{how}"

    @contextmanager
    def _providers(
        self, network: bytes, precision: str, *, tensorrt: bool
    ) -> Iterator[list[tuple[str, dict[str, str]]]]:
        """What ONNX Runtime is to use besides the CPU, best first; sets up the device."""
        if self.device == "cpu":
            yield []
            return
        asked = f"device {self.device}"
        _check_providers(self._runtime, asked, [_CUDA, _TENSORRT] if tensorrt else [_CUDA])
        release = tensorrt_release() if tensorrt else ""
        self._cuda = cuda = CudaDevice(int(self.device.removeprefix("cuda:")), asked)
        self._place = ("cuda", cuda.index)
        if cuda.has_tf32 and self.precision == "fp32" and precision == "auto":
            self.precision = "tf32"
        on_cuda = cuda_options(cuda, precision=self.precision, cuda_graph=self._graphs is not None)
        if not tensorrt:
            yield [(_CUDA, on_cuda)]
            return
        if cuda.has_tf32 and self.precision == "fp32":
            # The provider has no switch for it.
            raise EngineError(
                "precision fp32: TensorRT in ONNX Runtime computes fp32 in TF32 on this GPU; "
                "use precision auto, or engine onnxruntime"
            )
        slot = engine_slot(self.bundle, library=self.name, device=cuda.name, precision=self.precision)
        version = f"{self._runtime.__version__} with TensorRT {release}"
        timings = cache_folder() / slot_name({"for": "timings", "device": cuda.name, "release": release})
        with cached_folder(slot, network=network, version=version, folder=cache_folder()) as engines:
            with usable(timings):
                timings.mkdir(exist_ok=True)
            options = tensorrt_options(
                self.bundle, cuda, precision=self.precision, engines=engines, timings=timings
            )
            yield [(_TENSORRT, options), (_CUDA, on_cuda)]

    def _load(self, network: bytes, providers: list[Any]) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # errors; they are raised as well
        # Spinning threads take the core from the pipeline's other stages and win nothing here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return self._runtime.InferenceSession(
                network, options, providers=providers, enable_fallback=False
            )
        # The binding's exceptions have no common base but this.
        except Exception as error:
            # What it says where a provider's libraries do not load; else it is the model.
            if "GPU requirements page" in str(error):
                raise self._unloadable() from error
            raise unreadable_model(self.bundle, error, self._file) from error

    def _unloadable(self) -> EngineError:
        kind, install = "CUDA", GPU_INSTALL
        if self.name == "onnxruntime-tensorrt":
            kind, install = "CUDA or TensorRT", f"{GPU_INSTALL} && {TENSORRT_INSTALL}"
        return EngineError(
            f"device {self.device}: ONNX Runtime could not load its {kind} libraries: run  {install}"
        )

    def _check_ports(self) -> None:
        inputs = {port.name: port.type for port in self._session.get_inputs()}
        outputs = {port.name: port.type for port in self._session.get_outputs()}
        check_graph(self.bundle, inputs, outputs, self._file, uint8_name="tensor(uint8)")

    def _check_shapes(self) -> None:
        """Hold the outputs of the smallest tile against the bundle: `run` gives memory of these sizes."""
        tile = np.zeros((1, self.bundle.stride_px, self.bundle.stride_px, 3), np.uint8)
        expected = output_buffers(tile, self.bundle, None)
        options = self._run_options(None)
        try:
            results = self._session.run(list(expected), {self.bundle.input_name: tile}, options)
        except Exception as error:
            raise self._failure(error) from error
        for (name, target), result in zip(expected.items(), results, strict=True):
            promised_shape(result.shape, target.shape, name, self.bundle, self._file)

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """See ``nucfast.engine.Engine.run``."""
        check_tiles(tiles, self.bundle)
        maps = output_buffers(tiles, self.bundle, out)
        if self._cuda is not None:
            with self._lock:
                self._run_on_gpu(self._cuda, tiles, maps)
            return maps
        tiles = np.ascontiguousarray(tiles)
        # A tile at a time stays in cache and keeps memory flat.
        for index in range(len(tiles)):
            tile = tiles[index : index + 1]
            targets = {name: value[index : index + 1] for name, value in maps.items()}
            # Straight into the caller's arrays, unless their bytes are not one behind the other.
            filled = {name: np.ascontiguousarray(target) for name, target in targets.items()}
            addresses = {name: value.ctypes.data for name, value in filled.items()}
            self._compute(tile.shape, tile.ctypes.data, addresses)
            for name, target in targets.items():
                if filled[name] is not target:
                    np.copyto(target, filled[name])
        return maps

    def _run_on_gpu(self, cuda: CudaDevice, tiles: NDArray[np.uint8], maps: Maps) -> None:
        step = max(1, len(tiles))  # a GPU wants the batch at once
        if self.name == "onnxruntime-tensorrt":
            step = largest_batch(self.bundle.tile_px)
            if max(tiles.shape[1:3]) > self.bundle.tile_px:
                raise too_large(self.bundle, self.name, tiles.shape, largest_px=self.bundle.tile_px)
        for start in range(0, len(tiles), step):
            batch = tiles[start : start + step]
            targets = {name: value[start : start + step] for name, value in maps.items()}
            graph = self._graph(batch.shape)
            compute = partial(self._compute_on_gpu, batch.shape[1:], graph)
            # By group, since a graph has the addresses that it was recorded with.
            cuda.run(batch, targets, compute, group=graph, at_once=graph is not None)

    def _compute_on_gpu(
        self,
        shape: tuple[int, ...],
        graph: int | None,
        count: int,
        source: int,
        targets: Mapping[str, int],
    ) -> None:
        self._compute((count, *shape), source, targets, graph)

    def _graph(self, shape: tuple[int, ...]) -> int | None:
        """The number of the graph for batches of this shape; None: there is none."""
        if self._graphs is None or (shape not in self._graphs and len(self._graphs) == MAX_GRAPHS):
            return None
        return self._graphs.setdefault(shape, len(self._graphs))

    def _run_options(self, graph: int | None) -> Any:
        options = self._runtime.RunOptions()
        if self._graphs is not None:
            # -1: do not record. Without a number all shapes would share one graph.
            options.add_run_config_entry("gpu_graph_id", str(-1 if graph is None else graph))
        return options

    def _compute(
        self, shape: tuple[int, ...], source: int, targets: Mapping[str, int], graph: int | None = None
    ) -> None:
        """Run on memory of the device: tiles at address ``source``, maps to the addresses ``targets``."""
        binding = self._session.io_binding()
        binding.bind_input(self.bundle.input_name, *self._place, np.uint8, shape, source)
        for name, address in targets.items():
            spec = self.bundle.output(name)
            sides = (shape[1] // spec.stride, shape[2] // spec.stride)
            binding.bind_output(name, *self._place, np.uint8, (shape[0], *sides, spec.channels), address)
        options = self._run_options(graph)
        if self._cuda is not None:
            # What brings the maps back waits for the stream of the device.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> EngineError:
        lines = str(error).splitlines() or ["no reason given"]
        return EngineError(f"{self.bundle.label()}: ONNX Runtime failed: {readable(lines[0])}")
