"""A network in PyTorch behind the interface of the engines: what the others are compared with."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nucfast.engine.base import Maps, check_tiles, output_buffers, readable, store
from nucfast.engine.bundle import Bundle
from nucfast.errors import EngineError
from nucfast_export.run import load_bundle_network
from nucfast_export.wrapper import ExportNetwork

TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def create_torch_engine(bundle: Bundle, *, device: str, precision: str, threads: int) -> TorchEngine:
    """A bundle's network in PyTorch, with the bundle's weights; ``nucfast.engine.create_engine`` calls this.

    Args:
        bundle: as ``nucfast export`` writes it; it holds the recipe that says what the network is.
        device: "cpu" or "cuda:<index>".
        precision: as for ``TorchEngine``, or "auto": "fp32".
        threads: of the whole process, as PyTorch has it.

    Raises:
        EngineError: the bundle does not say what its network is, or the precision or device is not there.
        RecipeError: the bundle's file does not hold this network's weights.
    """
    if not isinstance(bundle.training.get("recipe"), Mapping):
        raise EngineError(
            f"engine pytorch: {bundle.label()} was not exported from a training run, so that only its ONNX "
            "file knows the network; use engine openvino or onnxruntime"
        )
    torch.set_num_threads(threads)
    network = load_bundle_network(bundle)
    precision = "fp32" if precision == "auto" else precision
    return TorchEngine(network, bundle, device=device, precision=precision)


class TorchEngine:
    """Runs a network with PyTorch; see ``nucfast.engine.Engine``.

    Args:
        network: as for ``export_bundle``, of pixels in 0..1; it is moved to the device.
        bundle: what it computes.
        device: "cpu" or "cuda:<index>".
        precision: "fp32", or "bf16" or "fp16" by autocast.
        compile: let ``torch.compile`` make kernels for it.
        cuda_graph: record the batch once for each shape and replay it; on a GPU only.

    Raises:
        EngineError: the precision or device is not there.
    """

    name = "pytorch"

    def __init__(
        self,
        network: nn.Module,
        bundle: Bundle,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        if precision not in TYPES:
            raise EngineError(f"precision {precision}: PyTorch has {', '.join(TYPES)} here; use one of these")
        on_gpu = device.startswith("cuda")
        if on_gpu and (torch.device(device).index or 0) >= torch.cuda.device_count():
            raise EngineError(
                f"engine pytorch on {device}: this PyTorch sees {torch.cuda.device_count()} CUDA devices; "
                "use one of these or device cpu"
            )
        if cuda_graph and not on_gpu:
            raise EngineError(f"engine pytorch: CUDA graphs need a CUDA device, got {device}")
        self.bundle = bundle
        self.device = device
        self.precision = precision
        self.threads = torch.get_num_threads()
        names = [spec.name for spec in bundle.outputs]
        wrapper: nn.Module = ExportNetwork(network, names).eval().to(device)
        wrapper = wrapper.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = torch.compile(wrapper) if compile else wrapper
        self._cuda_graph = cuda_graph
        self._graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}
        self._lock = threading.Lock()
        how = "".join([", compiled" if compile else "", ", CUDA graph" if cuda_graph else ""])
        self.description = f"PyTorch {torch.__version__.split('+')[0]} on {device}, {precision}{how}"

    def run(self, tiles: NDArray[np.uint8], *, out: Mapping[str, NDArray[np.uint8]] | None = None) -> Maps:
        """See ``nucfast.engine.Engine.run``."""
        check_tiles(tiles, self.bundle)
        maps = output_buffers(tiles, self.bundle, out)
        if len(tiles) == 0:
            return maps
        batch = torch.from_numpy(np.require(tiles, requirements=["C", "W"])).to(self.device)
        with self._lock:
            try:
                results = self._replay(batch) if self._cuda_graph else self._forward(batch)
                arrays = [result.cpu().numpy() for result in results]
            except RuntimeError as error:  # no memory left, for instance
                lines = str(error).splitlines() or ["no reason given"]
                raise EngineError(f"{self.bundle.label()}: PyTorch failed: {readable(lines[0])}") from error
            for array, (name, target) in zip(arrays, maps.items(), strict=True):
                store(array, target, name, self.bundle)
        return maps

    def _forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        kind = TYPES[self.precision]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.split(":")[0], kind, enabled=kind is not None),
        ):
            results: tuple[Tensor, ...] = self._network(batch)
        return results

    def _replay(self, batch: Tensor) -> tuple[Tensor, ...]:
        shape = tuple(batch.shape)
        if shape not in self._graphs:
            # Warmed up on another stream, as recording demands; buffers and algorithms are chosen there.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._forward(batch)
            torch.cuda.current_stream().wait_stream(side)
            graph, fixed = torch.cuda.CUDAGraph(), batch.clone()
            with torch.cuda.graph(graph):
                results = self._forward(fixed)
            self._graphs[shape] = graph, fixed, results
        graph, fixed, results = self._graphs[shape]
        fixed.copy_(batch)
        graph.replay()
        return results
