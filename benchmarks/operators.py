"""What operators cost on this CPU: he-fast's network with one thing changed, in turn.

``python benchmarks/operators.py --out FOLDER`` builds each variant with random weights, exports and quantises
it as a model that ships, times all of them on the same tile round by round, and writes
``FOLDER/operators.json``: megapixels per second in fp32 and int8, and the work in GFLOP per megapixel.
Accuracy is not asked for here; see ``ablation.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nucfast.engine import load_bundle
from nucfast.engine.bundle import MODEL, Variant, write_bundle
from nucfast.engine.openvino_engine import OpenVinoEngine
from nucfast.engine.threads import available_cpus
from nucfast.testing import synthetic_slide
from nucfast_export.export import export_bundle
from nucfast_export.quantize import quantize
from nucfast_training.networks.fast_unet import FastUNet, Residual


class Concatenated(FastUNet):
    """Skips are concatenated, as in U-Net, and not added."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        for stride in self.strides[:-1]:
            first = self.get_submodule(f"decode{stride}")[0]  # type: ignore[index]
            wide = nn.Conv2d(2 * first.in_channels, first.out_channels, 3, padding=1, bias=False)
            self.get_submodule(f"decode{stride}")[0] = wide  # type: ignore[index]

    @staticmethod
    def join(skip: Tensor, lifted: Tensor) -> Tensor:
        return torch.cat([skip, lifted], dim=1)


def replaced(
    network: nn.Module, wanted: Callable[[nn.Module], bool], make: Callable[..., nn.Module]
) -> nn.Module:
    """The network with every module of a kind replaced by what is made of it."""
    for name, module in list(network.named_modules()):
        if wanted(module):
            network.set_submodule(name, make(module))
    return network


def separable(conv: nn.Conv2d) -> nn.Module:
    """A depthwise 3x3 convolution, then a 1x1 convolution."""
    return nn.Sequential(
        nn.Conv2d(conv.in_channels, conv.in_channels, 3, conv.stride, 1, groups=conv.in_channels, bias=False),
        nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False),
    )


def grouped(conv: nn.Conv2d) -> nn.Module:
    """Half of the channels see half of the channels."""
    return nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, groups=2, bias=False)


class SiluResidual(nn.Module):
    """A residual block that ends in SiLU."""

    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.body = block.body

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x + self.body(x))


def is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels > 3


def variants(settings: dict[str, object]) -> dict[str, nn.Module]:
    """Networks by what is changed."""

    def plain(**changes: object) -> FastUNet:
        return FastUNet(**settings | changes)  # type: ignore[arg-type]

    silu = replaced(plain(), lambda m: isinstance(m, Residual), SiluResidual)
    return {
        "as it ships": plain(),
        "SiLU for ReLU": replaced(silu, lambda m: isinstance(m, nn.ReLU), lambda m: nn.SiLU()),
        "depthwise separable 3x3": replaced(plain(), is_3x3, separable),
        "3x3 in two groups": replaced(plain(), is_3x3, grouped),
        "skips concatenated": Concatenated(**settings),
        "bilinear upsampling": replaced(
            plain(),
            lambda m: isinstance(m, nn.Upsample),
            lambda m: nn.Upsample(scale_factor=2, mode="bilinear"),
        ),
        "as wide inside as outside": plain(inner=[], decoder_widths=[]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tile-px", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    bundle = load_bundle("he-fast")
    settings = {key: value for key, value in bundle.training["recipe"]["network"].items() if key != "kind"}
    tile = synthetic_slide(args.tile_px, args.tile_px, seed=1).image[None]
    torch.manual_seed(0)
    engines: dict[tuple[str, str], OpenVinoEngine] = {}
    work = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, network) in enumerate(variants(settings).items()):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network.eval()(torch.zeros(1, 3, 512, 512))
            work[name] = counter.get_total_flops() / 512**2 / 1e3
            place = Path(scratch) / f"{number}"
            spec = replace(bundle, path=None, files={}, variants=(), name=f"variant-{number}")
            exported = export_bundle(network, place, spec).bundle
            int8 = quantize(onnx.load_from_string(exported.model_bytes()), [tile[:, :512, :512]])
            file = "model-int8.onnx"
            both = write_bundle(
                place,
                replace(exported, variants=(Variant(file, "onnx", "int8", details={"overflow_free": True}),)),
                {MODEL: exported.model_bytes(), file: int8.SerializeToString()},
                overwrite=True,
            )
            for precision in ("fp32", "int8"):
                engines[name, precision] = OpenVinoEngine(both, precision=precision, threads=available_cpus())
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in engines}
        for turn in range(args.rounds + 1):
            for key, engine in engines.items():
                began = time.perf_counter()
                engine.run(tile)
                if turn:  # the first one compiles
                    seconds[key].append(time.perf_counter() - began)
    rows = [
        {"variant": name, "gflop_per_mpx": round(work[name], 1)}
        | {
            f"{precision}_mpx_per_s": round(
                tile[0, ..., 0].size / 1e6 / statistics.median(seconds[name, precision]), 2
            )
            for precision in ("fp32", "int8")
        }
        for name in work
    ]
    for row in rows:
        print(json.dumps(row))
    args.out.mkdir(parents=True, exist_ok=True)
    head = {
        "date": date.today().isoformat(),
        "threads": available_cpus(),
        "tile_px": args.tile_px,
    }
    (args.out / "operators.json").write_text(json.dumps(head | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
