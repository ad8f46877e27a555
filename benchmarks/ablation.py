"""What a small network should predict, and what its parts are worth: one short training, one thing changed.

``python benchmarks/ablation.py --data DATA --out FOLDER [VARIANT ...]`` trains each variant from nothing on
the same patches, scores it on val, and adds a line to ``FOLDER/ablation.json``; variants that have one are
skipped. The training is far too short for the accuracy of a model that ships: only differences count.

Each way to tell touching nuclei apart is decoded as its authors do and with the best of a few settings on
val. "True" scores are those of the same decoder on the maps that a perfect network would predict.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nucfast.cli.allocator import keep_memory
from nucfast.engine.openvino_engine import cpu_has_bf16
from nucfast.engine.processor import bf16_pays
from nucfast.metrics import evaluate
from nucfast.ops import find_nuclei, hover_net_labels, label, watershed
from nucfast_training.augmentation import Planes
from nucfast_training.data import Sample, read_sets
from nucfast_training.losses import bce, dice
from nucfast_training.networks.fast_unet import FastUNet
from nucfast_training.patches import Patches
from nucfast_training.recipe import Recipe, load_recipe
from nucfast_training.targets import TARGETS, Target, peaked_distance
from nucfast_training.teacher import soften
from nucfast_training.train import to_input

Labels = NDArray[np.int32]
Maps = NDArray[np.float32]  # (C, H, W)
RAYS = 32
ANGLES = 2.0 * np.pi * np.arange(RAYS) / RAYS
STEPS = 1200
BATCH = 8

# Instance ids travel through the augmentation as one more plane.
TARGETS["labels"] = Target(lambda labels, kinds: labels.astype(np.uint16), binary=False)


@dataclass(frozen=True)
class Representation:
    """Maps from which nuclei are made.

    Attributes:
        channels: of the maps; the first is the probability of a nucleus, or of its centre.
        make: maps from instance ids and, where they were resampled, the nucleus and distance planes in 0..1.
        loss: of logits (N, C, H, W) and maps of the same shape.
        activate: logits to maps.
        decode: maps and a setting to instance ids.
        settings: those tried.
        stride: pixels per pixel of the maps.
    """

    channels: int
    make: Callable[[Labels, Planes], Maps]
    loss: Callable[[Tensor, Tensor], Tensor]
    activate: Callable[[Tensor], Tensor]
    decode: Callable[[Maps, float], Labels]
    settings: Sequence[float]
    stride: int = 1


def _unit(plane: NDArray[np.generic]) -> Maps:
    return plane.astype(np.float32) / np.float32(255.0)


def _uint8(plane: Maps) -> NDArray[np.uint8]:
    return np.rint(255.0 * np.clip(plane, 0.0, 1.0)).astype(np.uint8)


def _mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    return bce(logits, target) + dice(logits, target)


# Distance to the edge, of one summit per nucleus; split along its valleys. What nucfast ships.


def make_distance(labels: Labels, planes: Planes) -> Maps:
    """Probability and ``peaked_distance``."""
    return np.stack([_unit(planes["nucleus"]), _unit(planes["distance"])])


def distance_loss(logits: Tensor, target: Tensor) -> Tensor:
    """As the recipe he-fast has it."""
    return _mask_loss(logits[:, :1], target[:, :1]) + 2.0 * bce(logits[:, 1:], target[:, 1:])


def decode_distance(maps: Maps, setting: float) -> Labels:
    """The decoder "climb"; the setting is ``min_rise``."""
    full = [_uint8(plane) for plane in maps[:2]]
    return find_nuclei(*full, threshold=60, min_rise=int(setting), peak_share=0.6, max_hole_px=80)


# The same, with more weight where two nuclei are near each other (Ronneberger et al., MICCAI 2015).


def make_weighted(labels: Labels, planes: Planes) -> Maps:
    """``make_distance``, and whether two nuclei are within 2 px."""
    ids = labels.astype(np.uint16)
    box = np.ones((5, 5), np.uint8)
    highest = cv2.dilate(ids, box)
    lowest = 65535 - cv2.dilate(np.where(ids > 0, 65535 - ids, 0).astype(np.uint16), box)
    near = (highest > 0) & (highest != lowest)
    return np.concatenate([make_distance(labels, planes), near[None].astype(np.float32)])


def weighted_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Four times the cross-entropy there."""
    weight = 1.0 + 3.0 * target[:, 2:]
    entropy = functional.binary_cross_entropy_with_logits(logits, target[:, :2], reduction="none")
    terms = (entropy * weight).mean((0, 2, 3)) / weight.mean()
    return terms[0] + 2.0 * terms[1] + dice(logits[:, :1], target[:, :1])


# Horizontal and vertical distance to the centre (Graham et al., HoVer-Net, Med Image Anal 2019).


def make_hover(labels: Labels, planes: Planes) -> Maps:
    """Probability, and position in the nucleus from -1 to 1, horizontal and vertical."""
    out = np.zeros((3, *labels.shape), np.float32)
    out[0] = labels > 0
    rows, cols = np.nonzero(labels)
    if rows.size == 0:
        return out
    ids = np.unique(labels[rows, cols], return_inverse=True)[1]
    count = np.bincount(ids)
    for channel, place in ((1, cols), (2, rows)):
        offset = place - (np.bincount(ids, place) / count)[ids]
        for side in (offset > 0, offset < 0):
            reach = np.zeros(count.size)
            np.maximum.at(reach, ids[side], np.abs(offset[side]))
            out[channel, rows[side], cols[side]] = offset[side] / reach[ids[side]]
    return out


def hover_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Squared error of the maps, and of their slopes inside nuclei."""
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 8.0
    kernels = torch.stack([sobel, sobel.T]).unsqueeze(1)
    error = logits[:, 1:] - target[:, 1:]
    slope = functional.conv2d(error, kernels, padding=1, groups=2)
    inside = target[:, :1]
    steep = (slope.square() * inside).sum() / inside.sum().clamp_min(1.0)
    return _mask_loss(logits[:, :1], target[:, :1]) + error.square().mean() + steep


def decode_hover(maps: Maps, setting: float) -> Labels:
    """At 0.25 um/px, for which the filters of the method were made; the setting is its edge threshold."""
    probability, *hv = (_doubled(plane) for plane in maps)
    return hover_net_labels(probability, np.stack(hv, -1), edge_threshold=setting, min_px=20)[::2, ::2].copy()


# The rim of each nucleus as a class of its own (Chen et al., DCAN, CVPR 2016), grown back by watershed.


def make_boundary(labels: Labels, planes: Planes) -> Maps:
    """Probability, and whether another nucleus or background is a pixel away."""
    ids = labels.astype(np.uint16)
    box = np.ones((3, 3), np.uint8)
    rim = (cv2.dilate(ids, box) != cv2.erode(ids, box)) & (labels > 0)
    return np.stack([labels > 0, rim]).astype(np.float32)


def boundary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The same for both."""
    return _mask_loss(logits[:, :1], target[:, :1]) + _mask_loss(logits[:, 1:], target[:, 1:])


def decode_boundary(maps: Maps, setting: float) -> Labels:
    """Parts of the mask that the boundary, at or above the setting, separates."""
    mask = maps[0] >= 0.5
    seeds = label(mask & (maps[1] < setting), connectivity=4)
    return watershed(_uint8(maps[1]), seeds, mask=mask)


# Distances to the edge along rays (Schmidt et al., StarDist, MICCAI 2018), at half the resolution as its
# authors' model for H&E.


def make_rays(labels: Labels, planes: Planes) -> Maps:
    """Distance to the edge as a share of its largest in the nucleus, then along each ray, in pixels."""
    coarse = labels[::2, ::2]
    out = np.zeros((1 + RAYS, *coarse.shape), np.float32)
    out[0] = _unit(planes["distance"])[::2, ::2]
    rows, cols = np.nonzero(coarse)
    ids = coarse[rows, cols]
    padded = np.pad(labels, 1)  # outside the image is background
    bottom, right = padded.shape[0] - 1, padded.shape[1] - 1
    for ray, angle in enumerate(ANGLES):
        alive = np.arange(ids.size)
        length = np.zeros(ids.size, np.float32)
        for step in range(1, 65):
            r = np.rint(2 * rows[alive] + 1 + step * np.sin(angle)).astype(int).clip(0, bottom)
            c = np.rint(2 * cols[alive] + 1 + step * np.cos(angle)).astype(int).clip(0, right)
            alive = alive[padded[r, c] == ids[alive]]
            if alive.size == 0:
                break
            length[alive] = step
        # To the last pixel inside, whose whole square belongs to the polygon.
        out[1 + ray, rows, cols] = length
    return out


def rays_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the centres, and absolute error of the rays weighted by them."""
    centre = target[:, :1]
    error = (functional.softplus(logits[:, 1:]) - target[:, 1:]).abs() * centre
    return bce(logits[:, :1], centre) + 0.2 * error.sum() / (RAYS * centre.sum()).clamp_min(1.0)


def activate_rays(logits: Tensor) -> Tensor:
    """Lengths are positive."""
    return torch.cat([torch.sigmoid(logits[:, :1]), functional.softplus(logits[:, 1:])], 1)


def decode_rays(maps: Maps, setting: float) -> Labels:
    """The likeliest polygons first; one that an earlier one covers by 40 % is dropped."""
    height, width = 2 * maps.shape[1], 2 * maps.shape[2]
    labels = np.zeros((height, width), np.int32)
    rows, cols = np.nonzero(maps[0] >= setting)
    count = 0
    for i in np.argsort(-maps[0][rows, cols], kind="stable"):
        row, col = rows[i], cols[i]
        if labels[2 * row, 2 * col]:
            continue
        lengths = maps[1:, row, col]
        points = np.rint(
            np.stack([2 * col + lengths * np.cos(ANGLES), 2 * row + lengths * np.sin(ANGLES)], 1)
        )
        points = points.clip(0, [width - 1, height - 1]).astype(np.int32)
        (left, top), (right, bottom) = points.min(0), points.max(0) + 1
        inside = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(inside, [points - [left, top]], 1)
        window = labels[top:bottom, left:right]
        covered = np.bincount(window[inside > 0])
        if covered[1:].max(initial=0) > 0.4 * covered.sum():
            continue
        count += 1
        window[(inside > 0) & (window == 0)] = count
    return labels


def _halved(maps: Maps) -> Maps:
    channels, height, width = maps.shape
    return maps.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))


def _doubled(plane: Maps) -> Maps:
    return cv2.resize(plane, (2 * plane.shape[1], 2 * plane.shape[0]), interpolation=cv2.INTER_LINEAR)


DISTANCE = Representation(2, make_distance, distance_loss, torch.sigmoid, decode_distance, (6, 12, 18, 26))
REPRESENTATIONS = {
    "distance": DISTANCE,
    "weighted": replace(DISTANCE, make=make_weighted, loss=weighted_loss),
    "hover": Representation(
        3,
        make_hover,
        hover_loss,
        lambda logits: torch.cat([torch.sigmoid(logits[:, :1]), logits[:, 1:]], 1),
        decode_hover,
        (0.3, 0.4, 0.5),
    ),
    "boundary": Representation(
        2, make_boundary, boundary_loss, torch.sigmoid, decode_boundary, (0.3, 0.4, 0.5)
    ),
    "rays": Representation(
        1 + RAYS, make_rays, rays_loss, activate_rays, decode_rays, (0.3, 0.4, 0.5), stride=2
    ),
    "half": replace(
        DISTANCE,
        make=lambda labels, planes: _halved(make_distance(labels, planes)),
        decode=lambda maps, setting: decode_distance(np.stack([_doubled(m) for m in maps]), setting),
        stride=2,
    ),
}


@dataclass(frozen=True)
class Variant:
    """One thing changed against the first variant."""

    maps: str = "distance"
    widths: Sequence[int] = (16, 48, 128, 224)
    blocks: Sequence[int] = (1, 1, 1)
    stain: float = 0.7
    zoom: float = 0.25
    teacher: str = ""


VARIANTS = {
    "distance map": Variant(),
    "horizontal and vertical maps": Variant(maps="hover"),
    "boundary class": Variant(maps="boundary"),
    "star-convex rays": Variant(maps="rays"),
    "gaps between nuclei weigh four times": Variant(maps="weighted"),
    "output stride 2": Variant(maps="half"),
    "half as wide": Variant(widths=(8, 24, 64, 112)),
    "finest level twice as wide": Variant(widths=(32, 48, 128, 224)),
    "two blocks a level": Variant(blocks=(2, 2, 2)),
    "no stain augmentation": Variant(stain=0.0),
    "no zoom": Variant(zoom=0.0),
    "distilled from he-accurate": Variant(teacher="he-accurate"),
}


class Network(nn.Module):
    """The body of he-fast with maps of a representation."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        maps = REPRESENTATIONS[variant.maps]
        self.body = FastUNet(widths=variant.widths, blocks=variant.blocks, classes=0)
        self.factor = 2 // maps.stride
        self.body.maps = nn.Conv2d(32, maps.channels * self.factor**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, H / stride, W / stride) logits."""
        logits = self.body.maps(self.body.features(x)[0])
        return functional.pixel_shuffle(logits, self.factor) if self.factor > 1 else logits


def train(variant: Variant, recipe: Recipe, sets: list[list[Sample]], steps: int) -> Network:
    """AdamW under a falling rate; the running average of the weights."""
    maps = REPRESENTATIONS[variant.maps]
    patches = Patches(
        sets, replace(recipe, patches=replace(recipe.patches, stain=variant.stain, zoom=variant.zoom))
    )
    torch.manual_seed(recipe.seed)
    network = Network(variant).to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.optimiser.weight_decay)
    peak = recipe.optimiser.learning_rate
    bf16 = cpu_has_bf16() and bf16_pays()
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        optimiser.param_groups[0]["lr"] = warm * peak * 0.5 * (1.0 + np.cos(np.pi * step / steps))
        images, planes = patches.batch(step)
        truth = np.stack(
            [
                maps.make(planes["labels"][i].astype(np.int32), {name: p[i] for name, p in planes.items()})
                for i in range(len(images))
            ]
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(to_input(images, torch.device("cpu")))
        loss = maps.loss(logits.float(), torch.from_numpy(truth))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        average.update_parameters(network)
        if step % 100 == 0:
            print(f"  step {step}: loss {float(loss.detach()):.3f}", flush=True)
    return average.module.eval()


def _at_mpp(sample: Sample, mpp: float) -> tuple[NDArray[np.uint8], Labels]:
    """Image and ids at the model's resolution, cropped to whole strides."""
    height, width = (round(side * sample.mpp / mpp) for side in sample.labels.shape)
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA)
    ids = cv2.resize(sample.labels.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    height, width = height // 16 * 16, width // 16 * 16
    return image[:height, :width], ids[:height, :width].astype(np.int32)


def score(
    maps: Representation, predict: Callable[[NDArray[np.uint8], Labels], Maps], samples: list[Sample]
) -> dict[float, list[float]]:
    """PQ and AJI at the model's resolution by setting, means over images."""
    found: dict[float, list[tuple[float, float]]] = {setting: [] for setting in maps.settings}
    for sample in samples:
        image, ids = _at_mpp(sample, 0.5)
        predicted = predict(image, ids)
        for setting in maps.settings:
            scores = evaluate(ids, maps.decode(predicted, setting))
            found[setting].append((scores.pq, scores.aji))
    return {setting: np.mean(rows, 0).round(4).tolist() for setting, rows in found.items()}


def _truth(maps: Representation) -> Callable[[NDArray[np.uint8], Labels], Maps]:
    def make(image: NDArray[np.uint8], ids: Labels) -> Maps:
        planes = {"nucleus": 255 * (ids > 0).astype(np.uint8), "distance": peaked_distance(ids)}
        return maps.make(ids, planes)

    return make


def _learned(maps: Representation, network: Network) -> Callable[[NDArray[np.uint8], Labels], Maps]:
    @torch.no_grad()
    def predict(image: NDArray[np.uint8], ids: Labels) -> Maps:
        logits = network(to_input(image[None], torch.device("cpu")))
        return maps.activate(logits.float())[0].numpy()

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; default: all")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for ablation.json")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH} patches of 256 px")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    keep_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "ablation.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    recipe = load_recipe("he-fast", [f"patches.batch={BATCH}"])
    recipe = replace(
        recipe,
        loss={"nucleus": 1.0, "distance": 1.0, "labels": 1.0},
        sets=[entry for entry in recipe.sets if entry.name in ("consep", "monuseg", "tnbc")],
    )
    names = [entry.name for entry in recipe.sets]
    sets = read_sets(recipe, args.data, "train", cache=args.out / "cache")
    val = read_sets(recipe, args.data, "val", cache=args.out / "cache")
    for name in args.variants or VARIANTS:
        if name in results:
            continue
        print(name, flush=True)
        variant = VARIANTS[name]
        maps = REPRESENTATIONS[variant.maps]
        drawn = soften(sets, variant.teacher, 0.5, cache=args.out / "cache") if variant.teacher else sets
        began = time.monotonic()
        network = train(variant, recipe, drawn, args.steps)
        seconds = time.monotonic() - began
        scores = {
            s: score(maps, _learned(maps, network), samples) for s, samples in zip(names, val, strict=True)
        }
        true = {s: score(maps, _truth(maps), samples) for s, samples in zip(names, val, strict=True)}
        best = max(maps.settings, key=lambda setting: sum(scores[s][setting][0] for s in names))
        results[name] = {
            "date": date.today().isoformat(),
            "steps": args.steps,
            "seconds": round(seconds),
            "parameters": sum(p.numel() for p in network.parameters()),
            "setting": best,
            **{s: {"pq": scores[s][best][0], "aji": scores[s][best][1]} for s in names},
            "true": {s: dict(zip(("pq", "aji"), true[s][best], strict=True)) for s in names},
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
