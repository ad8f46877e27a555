"""Annotated sets: reading them and drawing augmented training patches."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nucfast_training.targets import peaked_distance

UNCLASSIFIED = 255  # class value of pixels that do not enter the class loss


@dataclass(frozen=True)
class Sample:
    """One annotated image with its targets, at the image's own resolution.

    ``image`` (H, W, 3) uint8; ``nucleus`` (H, W) uint8, 0 or 255; ``distance`` (H, W) uint8;
    ``kind`` (H, W) uint8, class index from 0 or ``UNCLASSIFIED``; ``labels`` (H, W) int32.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.int32]
    nucleus: NDArray[np.uint8]
    distance: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    mpp: float


def read_set(
    folder: Path,
    split: str,
    *,
    mpp: float | None,
    class_map: Mapping[int, int],
    cache: Path,
    modality: str = "",
) -> list[Sample]:
    """Read one split of a set with ``manifest.csv``, ``images/``, ``labels/`` and maybe ``types/``.

    Args:
        folder: the set's folder.
        split: the manifest's value of ``split`` to keep.
        mpp: um per pixel for images whose manifest row has none; None: estimated from the size of the nuclei,
            taking their median area for 40 um2.
        class_map: raw class id of ``types/`` to class id (from 1).
        cache: folder that keeps the distance maps between runs.
        modality: where given, keep only rows with this value of ``modality``.
    """
    samples = []
    with (folder / "manifest.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["split"] == split and (not modality or row["modality"] == modality)
        ]
    for row in rows:
        image = np.asarray(Image.open(folder / row["image"]).convert("RGB"))
        labels = np.asarray(Image.open(folder / "labels" / f"{row['id']}.png")).astype(np.int32)
        if labels.shape != image.shape[:2]:
            raise ValueError(
                f"{folder / row['image']}: image is {image.shape[:2]}, labels are {labels.shape}"
            )
        kind = np.full(labels.shape, UNCLASSIFIED, np.uint8)
        types_path = folder / "types" / f"{row['id']}.png"
        if types_path.exists():
            table = np.full(256, UNCLASSIFIED, np.uint8)
            for raw, class_id in class_map.items():
                table[raw] = class_id - 1
            kind = np.where(labels > 0, table[np.asarray(Image.open(types_path))], UNCLASSIFIED).astype(
                np.uint8
            )
        areas = np.bincount(labels.ravel())[1:]
        areas = areas[areas > 0]
        image_mpp = (
            float(row.get("mpp") or 0)
            or mpp
            or float(np.sqrt(40.0 / max(np.median(areas), 1.0)) if areas.size else 0.25)
        )
        samples.append(
            Sample(
                name=f"{folder.name}/{row['id']}",
                image=image,
                labels=labels,
                nucleus=np.where(labels > 0, np.uint8(255), np.uint8(0)),
                distance=_cached_distance(labels, cache),
                kind=kind,
                mpp=image_mpp,
            )
        )
    return samples


def _cached_distance(labels: NDArray[np.int32], cache: Path) -> NDArray[np.uint8]:
    path = cache / f"{hashlib.sha256(labels.tobytes()).hexdigest()[:24]}.png"
    if path.exists():
        return np.asarray(Image.open(path))
    distance = peaked_distance(labels)
    cache.mkdir(parents=True, exist_ok=True)
    Image.fromarray(distance).save(path)
    return distance


@dataclass(frozen=True)
class Patches:
    """Draws augmented patches: which set, which image, where, how turned and scaled, all from one generator.

    Sampling is by set first (``weights``), so that a large set does not drown a small one.
    """

    sets: Sequence[Sequence[Sample]]
    weights: Sequence[float]
    mpp: float
    size_px: int
    zoom: float  # patches are scaled by exp(u), u uniform in +-zoom

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return image (size, size, 3) and targets (size, size, 3): nucleus, distance, kind."""
        probabilities = np.asarray(self.weights) / np.sum(self.weights)
        group = self.sets[rng.choice(len(self.sets), p=probabilities)]
        sample = group[rng.integers(len(group))]
        step = self.mpp / sample.mpp * float(np.exp(rng.uniform(-self.zoom, self.zoom)))
        angle = rng.uniform(0.0, 2.0 * np.pi)
        flip = 1.0 if rng.random() < 0.5 else -1.0
        height, width = sample.labels.shape
        centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
        turn = (
            step
            * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            @ np.diag([flip, 1.0])
        )
        middle = (self.size_px - 1) / 2.0
        matrix = np.column_stack([turn, centre - turn @ np.array([middle, middle])])
        # Sampling every `step` pixels aliases unless what lies between is averaged first.
        box = max(1, round(step))
        image = cv2.blur(sample.image, (box, box)) if box > 1 else sample.image
        return self._warp(image, matrix, cv2.INTER_LINEAR), np.dstack(
            [
                self._warp(sample.nucleus, matrix, cv2.INTER_LINEAR),
                self._warp(sample.distance, matrix, cv2.INTER_LINEAR),
                self._warp(sample.kind, matrix, cv2.INTER_NEAREST),
            ]
        )

    def _warp(self, plane: NDArray[np.uint8], matrix: NDArray[np.float64], mode: int) -> NDArray[np.uint8]:
        return cv2.warpAffine(
            plane,
            matrix,
            (self.size_px, self.size_px),
            flags=mode | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
