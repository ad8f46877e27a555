"""Parity and speed of a bundle on every engine of a GPU machine, beside the device's ceilings, in one call.

    python benchmarks/gpu_suite.py --out FOLDER [--device cuda:0] [--tile-px 1024] [--batch 16]

Writes ``gpu.json`` and ``gpu.md``. Needs PyTorch; runs whatever else is there and says what is not. With
``--device cpu --tile-px 128 --batch 1`` it runs on any machine, to try the script itself. Rows in fp16 need
a bundle with that file: ``nucfast export MODEL --precision fp16 --data DATASET -o FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nucfast.engine import Bundle, Engine, create_engine, load_bundle
from nucfast.engine.onnxruntime_engine import OnnxRuntimeEngine
from nucfast.engine.parity import difference
from nucfast.testing import synthetic_slide
from nucfast_export.run import load_bundle_network
from nucfast_export.torch_engine import TorchEngine

RUNS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="he-fast")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tile-px", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    bundle = load_bundle(args.model)
    slide = synthetic_slide(args.tile_px, args.tile_px, nuclei_per_mm2=4000, seed=0).image
    tiles = np.stack([np.roll(slide, 7 * index, axis=0) for index in range(args.batch)])
    network = load_bundle_network(bundle)
    ceilings = measure_ceilings(args.device)
    ceilings["gflop_per_mpx"], ceilings["layers_limit_mpx_per_s"] = roofline(network, ceilings)
    rows = []
    expected = None
    for name, make in candidates(bundle, network, args.device):
        try:
            engine = make()
            row = measure(name, engine, tiles, ceilings)
            maps = engine.run(tiles[:1])
        # A library that is missing or fails must not cost the other rows.
        except Exception as error:
            rows.append({"name": name, "left_out": f"{type(error).__name__}: {str(error)[:200]}"})
            print(rows[-1], flush=True)
            continue
        expected = expected or maps
        row["parity"] = {
            output: vars_of(difference(name, output, maps[output], expected[output])) for output in maps
        }
        rows.append(row)
        print(row, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {
        "model": args.model,
        "tile_px": args.tile_px,
        "batch": args.batch,
        "ceilings": ceilings,
        "rows": rows,
    }
    (args.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "gpu.md").write_text(markdown(result))
    print(markdown(result))
    return 0


def vars_of(row: Any) -> dict[str, float]:
    return {"largest": row.largest, "mean": row.mean, "share_above_1": row.share_above_1}


def candidates(bundle: Bundle, network: nn.Module, device: str) -> list[tuple[str, Callable[[], Engine]]]:
    """Name and maker of each engine; the first is what the others are compared with."""
    on_gpu = device != "cpu"
    made: list[tuple[str, Callable[[], Engine]]] = [
        (
            "ONNX Runtime CPU fp32",
            lambda: create_engine(bundle, engine="onnxruntime", device="cpu", precision="fp32"),
        )
    ]
    ways = {"fp32": ("",), "bf16": ("",)}
    if on_gpu:
        ways = {"fp32": ("", "cuda_graph"), "fp16": ("", "cuda_graph", "compile"), "bf16": ("cuda_graph",)}
    for precision, hows in ways.items():
        for how in hows:

            def torch_engine(precision: str = precision, how: str = how) -> Engine:
                options = {how: True} if how else {}
                return TorchEngine(network, bundle, device=device, precision=precision, **options)

            made.append((f"PyTorch {precision} {how or 'eager'}", torch_engine))
    # On a CPU, what needs a GPU says so: that much of it is tried there.
    on_gpus = ("onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx")
    for engine in on_gpus if on_gpu else ("openvino", *on_gpus):
        for precision in ("auto", "fp32", "fp16") if on_gpu else ("fp32", "bf16", "int8"):

            def other(engine: str = engine, precision: str = precision) -> Engine:
                return create_engine(bundle, engine=engine, device=device, precision=precision)

            made.append((f"{engine} {precision}", other))
    for precision in ("auto", "fp32", "fp16"):

        def recorded(precision: str = precision) -> Engine:
            return OnnxRuntimeEngine(bundle, device=device, precision=precision, threads=1, cuda_graph=True)

        made.append((f"onnxruntime {precision} cuda_graph", recorded))
    return made


def measure(name: str, engine: Engine, tiles: np.ndarray, ceilings: dict[str, float]) -> dict[str, Any]:
    started = time.perf_counter()
    maps = engine.run(tiles)
    first = time.perf_counter() - started
    times = []
    for _ in range(RUNS if engine.device != "cpu" else 3):
        started = time.perf_counter()
        engine.run(tiles, out=maps)
        times.append(time.perf_counter() - started)
    median = float(np.median(times))
    mpx = tiles.shape[0] * tiles.shape[1] * tiles.shape[2] / 1e6
    row: dict[str, Any] = {"name": name, "runs_on": engine.description, "mpx_per_s": mpx / median}
    row |= {"p50_ms": 1e3 * median, "p99_ms": 1e3 * float(np.percentile(times, 99)), "first_s": first}
    # Each limit alone: the convolutions one after another, or pixels in and maps out at the copies' rate.
    moved = tiles.nbytes + sum(value.nbytes for value in maps.values())
    limits = {
        "layers": ceilings["layers_limit_mpx_per_s"],
        "transfer": mpx / (moved / 1e9 / ceilings["host_gb_per_s"]),
    }
    row["binds"] = min(limits, key=lambda kind: limits[kind])
    row["limit_mpx_per_s"] = limits[row["binds"]]
    row["share_of_limit"] = row["mpx_per_s"] / row["limit_mpx_per_s"]
    return row


def measure_ceilings(device: str) -> dict[str, float]:
    """At best: a large bf16 product, a large copy on the device, one to it, one by a thread here."""
    on_gpu = device != "cpu"
    side, floats = (8192, 1 << 28) if on_gpu else (1024, 1 << 24)
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    data = torch.empty(floats, device=device)
    host = torch.empty(floats // 4, pin_memory=on_gpu)
    pages, copy = (np.ones(1 << 26, np.uint8) for _ in range(2))

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(10):
            if on_gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)

    return {
        "bf16_tflop_per_s": 2 * side**3 / best(lambda: left @ left) / 1e12,
        "device_gb_per_s": 2 * 4 * floats / best(data.clone) / 1e9,
        "host_gb_per_s": floats / best(lambda: data[: floats // 4].copy_(host, non_blocking=True)) / 1e9,
        "thread_gb_per_s": pages.nbytes / best(lambda: np.copyto(copy, pages)) / 1e9,
    }


def roofline(network: nn.Module, ceilings: dict[str, float], side: int = 256) -> tuple[float, float]:
    """GFLOP of convolutions per megapixel, and how many Mpx/s the device could do at most.

    Every convolution takes as long as its products at the matmul's rate, or as its 16-bit channels read and
    written once at the copy's rate, whichever is longer (Williams et al.: Roofline, CACM 2009); everything
    else takes nothing.
    """
    flops, seconds = 0.0, 0.0

    def count(module: nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        nonlocal flops, seconds
        assert isinstance(module, nn.Conv2d)
        products = 2 * module.weight.numel() * result.shape[-1] * result.shape[-2]
        moved = 2 * (given[0].numel() + result.numel())
        flops += products
        seconds += max(
            products / (1e12 * ceilings["bf16_tflop_per_s"]), moved / (1e9 * ceilings["device_gb_per_s"])
        )

    hooks = [
        module.register_forward_hook(count) for module in network.modules() if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return flops / side**2 / 1e3, side**2 / 1e6 / seconds


def markdown(result: dict[str, Any]) -> str:
    ceilings = ", ".join(f"{name} {value:.4g}" for name, value in result["ceilings"].items())
    lines = [
        f"# {result['model']}, {result['tile_px']} px, batch {result['batch']}",
        "",
        f"Ceilings: {ceilings}",
        "",
        "| engine | Mpx/s | p50 ms | p99 ms | first s | binds | share of limit | largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "left_out" in row:
            lines.append(f"| {row['name']} | left out: {row['left_out']} | | | | | | |")
            continue
        largest = max((item["largest"] for item in row.get("parity", {}).values()), default="")
        lines.append(
            f"| {row['name']} | {row['mpx_per_s']:.1f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | "
            f"{row['first_s']:.2f} | {row['binds']} | {row['share_of_limit']:.1%} | {largest} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
