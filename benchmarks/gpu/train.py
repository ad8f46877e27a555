"""Train recipes on a GPU, one after another, within a time limit, in one call.

    python benchmarks/gpu/train.py --data DATA --runs RUNS --out SMALL --max-seconds 540 models
    python benchmarks/gpu/train.py --data DATA --runs RUNS --out SMALL --max-seconds 540 zoo

Name recipes, ``models`` (those that ship) or ``zoo`` (the systems that nucfast replaces). Runs go on where
they stopped when the call is repeated with the same RUNS, a longer time and maybe other ``--set``. SMALL
gets files of less than 16 MB: ``results.jsonl`` (a row per finished or stopped run), logs, pictures, and
weights as fp16, in parts if need be (join them with ``cat``). Needs PyTorch and what the extra "train"
brings; no network connection. ``benchmarks/gpu/train_all.sh`` runs several of these side by side on one GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from nucfast.errors import NucfastError
from nucfast_training.recipe import load_recipe
from nucfast_training.run import run_recipe

GROUPS = {
    "models": ("he-accurate", "he-fast", "micro-fast", "he-open"),
    # Longest first; the ensemble last, since it needs its members' runs.
    "zoo": (
        "consep-unet-sharp",
        "consep-unet",
        "consep-unet-8",
        "isbi2012-unet",
        "isbi2012-segnet",
        "consep-unet-epochs",
        "consep-unet-rates",
        "consep-unet-quarter",
        "consep-unet-quarter-8",
        "consep-unet-dropout",
        "dsb2018-256",
        "dsb2018-linknet4",
        "dsb2018-linknet2",
        "dsb2018-unet",
        "dsb2018-fcn",
        "dsb2018-ensemble",
    ),
}
PART_BYTES = 15_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="checkpoints, which may be large")
    parser.add_argument("--out", type=Path, required=True, help="what is worth keeping, in small files")
    parser.add_argument("--max-seconds", type=float, required=True)
    parser.add_argument("--set", dest="changes", action="append", default=[], help="as of `nucfast train`")
    parser.add_argument("--no-weights", action="store_true", help="keep logs, pictures and scores alone")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.max_seconds
    recipes = [name for given in args.recipes for name in GROUPS.get(given, (given,))]
    for i, name in enumerate(recipes):
        left = end - time.monotonic()
        if left <= 0:
            print(f"{name}: not begun, the time is up", flush=True)
            continue
        changes = list(args.changes)
        start = load_recipe(name, changes).start
        if start.runs:
            members = [str(args.runs / Path(run).name) for run in start.runs]
            changes.append(f"start.runs={json.dumps(members)}")
        share = left / (len(recipes) - i)
        try:
            reports = run_recipe(
                name,
                changes=changes,
                data=args.data,
                out=args.runs / name,
                device=args.device,
                max_seconds=share,
                on_event=tell,
            )
        except NucfastError as error:  # one that fails is no reason to waste the others' time
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        for report in reports:
            row = {
                "recipe": str(report.out.relative_to(args.runs)),
                "date": time.strftime("%Y-%m-%d"),
                "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
                "steps": report.steps,
                "seconds": round(report.seconds, 1),
                "stopped": report.stopped,
                "metric": report.metric,
                "scores": {key: round(value, 4) for key, value in report.scores.items()},
            }
            print(json.dumps(row), flush=True)
            with (args.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            keep_small(report.out, args.out / row["recipe"].replace("/", "-"), weights=not args.no_weights)


def tell(event: dict[str, object]) -> None:
    """Print what is worth a line."""
    if event["event"] in {"start", "message"} or "val" in event:
        print(json.dumps(event), flush=True)


def keep_small(run: Path, out: Path, *, weights: bool) -> None:
    """Copy log and pictures; write the best and the last weights as fp16, in parts below 16 MB."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("log.jsonl", "learning-curve.png", "predictions.png"):
        shutil.copy(run / name, out / name)
    if not weights:
        return
    with safe_open(run / "weights.safetensors", "pt") as file:
        header = file.metadata()
    keep_weights(load_file(run / "weights.safetensors"), header, out / "weights.fp16.safetensors")
    last = load_file(run / "last.safetensors")
    prefix = "average." if any(name.startswith("average.") for name in last) else "network."
    parts = {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
    keep_weights(parts, header, out / "last.fp16.safetensors")


def keep_weights(tensors: dict[str, Tensor], header: dict[str, str], path: Path) -> None:
    """Convolutions as fp16; what normalisation has measured, which may be tiny, stays."""
    content = save({k: v.half() if v.dim() > 1 else v for k, v in tensors.items()}, header)
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        path.with_suffix(f".safetensors.part{number:02d}").write_bytes(content[start : start + PART_BYTES])


if __name__ == "__main__":
    main()
