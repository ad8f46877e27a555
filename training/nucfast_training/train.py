"""Train a recipe: ``python -m nucfast_training.train RECIPE --data DIR --out RUN``.

Everything of a run lies in its folder: ``log.jsonl`` (a line per 100 steps and per validation), ``last.pt``
(resumes where it stopped) and ``weights.safetensors`` (averaged weights with the recipe in its header).
"""

from __future__ import annotations

import argparse
import json
import math
import time
import tomllib
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nucfast_training.augmentation import jitter
from nucfast_training.data import Patches, read_set
from nucfast_training.losses import heads_loss
from nucfast_training.networks import NETWORKS


def build_network(recipe: dict[str, Any]) -> nn.Module:
    """The network that a recipe's ``[network]`` table describes."""
    settings = dict(recipe["network"])
    return NETWORKS[settings.pop("kind")](**settings)


def read_sets(recipe: dict[str, Any], data: Path, split: str, cache: Path) -> list[list[Any]]:
    """The recipe's sets, one list of samples each."""
    raw = {int(key): value for key, value in recipe["classes"]["raw"].items()}
    return [
        read_set(
            data / entry["name"],
            split,
            mpp=entry.get("mpp"),
            class_map=raw,
            cache=cache,
            modality=entry.get("modality", ""),
        )
        for entry in recipe["sets"]
    ]


def batches(
    patches: Patches, recipe: dict[str, Any], seed: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Endless batches of images and targets, drawn by one thread ahead of the training loop."""
    settings = recipe["patches"]
    rng = np.random.default_rng(seed)

    def draw() -> tuple[Tensor, Tensor]:
        drawn = [patches.draw(rng) for _ in range(settings["batch"])]
        images = np.stack([jitter(image, rng, strength=settings["stain"]) for image, _ in drawn])
        return torch.from_numpy(images), torch.from_numpy(np.stack([target for _, target in drawn]))

    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(draw) for _ in range(4))
        while True:
            yield waiting.popleft().result()
            waiting.append(pool.submit(draw))


def learning_rate(recipe: dict[str, Any], step: int, progress: float) -> float:
    """Linear warm-up, then a cosine to 1 % over ``progress`` 0..1."""
    settings = recipe["optimiser"]
    warm = min(1.0, (step + 1) / settings["warmup_steps"])
    return float(
        settings["learning_rate"] * warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))
    )


def to_input(images: Tensor, device: str) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float in 0..1, channels last."""
    return (
        images.to(device)
        .permute(0, 3, 1, 2)
        .float()
        .div_(255.0)
        .contiguous(memory_format=torch.channels_last)
    )


def train(recipe: dict[str, Any], *, data: Path, out: Path, device: str, max_seconds: float) -> None:
    """Train until the recipe's steps are done or the time is up; the schedule fits whichever ends first."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe["seed"])
    cv2.setNumThreads(1)
    settings = recipe["optimiser"]
    weights = [entry["weight"] for entry in recipe["sets"]]
    size_px = recipe["patches"]["size_px"]
    patches = Patches(
        read_sets(recipe, data, "train", out / "cache"),
        weights,
        recipe["mpp"],
        size_px,
        recipe["patches"]["zoom"],
    )
    val_rng = np.random.default_rng(0)
    val_patches = Patches(read_sets(recipe, data, "val", out / "cache"), weights, recipe["mpp"], size_px, 0.0)
    val = [val_patches.draw(val_rng) for _ in range(96)]

    network = build_network(recipe).to(device).to(memory_format=torch.channels_last)
    average = build_network(recipe).to(device).to(memory_format=torch.channels_last).eval()
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    class_weights = torch.tensor(recipe["classes"]["weights"], device=device)
    step, seconds = 0, 0.0
    checkpoint = out / "last.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds = state["step"], state["seconds"]

    def save() -> None:
        partial = checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "seconds": seconds,
            },
            partial,
        )
        partial.replace(checkpoint)
        tensors = {name: tensor.contiguous() for name, tensor in average.state_dict().items()}
        save_file(tensors, out / "weights.safetensors", {"recipe": json.dumps(recipe), "step": str(step)})

    def log(record: dict[str, Any]) -> None:
        with (out / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(record, flush=True)

    source = batches(patches, recipe, recipe["seed"] + step)
    sums: dict[str, float] = {}
    started = time.monotonic() - seconds
    while step < settings["steps"] and seconds < max_seconds:
        images, target = next(source)
        progress = max(step / settings["steps"], seconds / max_seconds)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step, progress)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            heads = network(to_input(images, device))
        losses = heads_loss(heads, target.to(device), class_weights)
        total = sum(recipe["loss"][name] * loss for name, loss in losses.items())
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss is {float(total)} at step {step}; {checkpoint} holds the last good state"
            )
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        keep = min(settings["ema"], (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1.0 - keep)
                else:
                    mean.copy_(value)
        step += 1
        seconds = time.monotonic() - started
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + float(loss.detach())
        if step % 100 == 0:
            log(
                {"step": step, "seconds": round(seconds), "lr": optimiser.param_groups[0]["lr"]}
                | {name: round(value / 100, 4) for name, value in sums.items()}
            )
            sums = {}
        if step % 500 == 0:
            log({"step": step, "val": validate(average, val, class_weights, device)})
            save()
    source.close()
    save()
    log({"step": step, "val": validate(average, val, class_weights, device), "done": True})


def validate(network: nn.Module, val: list[Any], class_weights: Tensor, device: str) -> dict[str, float]:
    """Mean losses of fixed validation patches."""
    sums: dict[str, list[float]] = {}
    for start in range(0, len(val), 16):
        images = torch.from_numpy(np.stack([image for image, _ in val[start : start + 16]]))
        target = torch.from_numpy(np.stack([target for _, target in val[start : start + 16]])).to(device)
        with torch.no_grad(), torch.autocast(device.split(":")[0], torch.bfloat16):
            heads = network(to_input(images, device))
        for name, loss in heads_loss(heads, target, class_weights).items():
            sums.setdefault(name, []).append(float(loss))
    return {name: round(float(np.mean(values)), 4) for name, values in sums.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="TOML file")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; an unfinished run goes on"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="stop by then; the schedule fits")
    args = parser.parse_args()
    recipe = tomllib.loads(args.recipe.read_text())
    train(recipe, data=args.data, out=args.out, device=args.device, max_seconds=args.max_seconds)


if __name__ == "__main__":
    main()
