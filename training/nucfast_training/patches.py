"""Augmented training patches, and the fixed ones for validation.

A batch depends on the seed and its own number alone: any number of threads draws the same batches, and a run
that goes on draws those that it would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from nucfast.ops import normalize_stain
from nucfast_training.augmentation import Planes, augment, jitter
from nucfast_training.data import Sample
from nucfast_training.recipe import Recipe
from nucfast_training.targets import TARGETS

Matrix = NDArray[np.float64]  # (2, 3): pixel of the patch to pixel of the image
Batch = tuple[NDArray[np.uint8], dict[str, NDArray[np.uint8]]]


class Patches:
    """The patches of some sets.

    Args:
        sets: samples by set; random patches are drawn by set first: a large one must not drown a small one.
        recipe: its ``[patches]``, ``[augmentation]``, seed, resolution and weights of sets.
    """

    def __init__(self, sets: Sequence[Sequence[Sample]], recipe: Recipe) -> None:
        if recipe.patches.normalise:
            sets = [[_normalised(sample) for sample in group] for group in sets]
        self.recipe = recipe
        self.sets = [[self._averaged(sample) for sample in group] for group in sets]
        self.windows = [window for group in self.sets for sample in group for window in self._windows(sample)]
        weights = np.array([entry.weight for entry in recipe.sets])
        self._shares = weights / weights.sum()

    @property
    def per_epoch(self) -> int:
        """Patches of one pass: as many as cover the images."""
        return len(self.windows)

    def batch(self, number: int) -> Batch:
        """Batch ``number`` of the training: images (N, size, size, 3) and targets (N, size, size) by head."""
        recipe = self.recipe
        size, seed = recipe.patches.batch, recipe.seed
        rng = np.random.default_rng([seed, number])
        drawn = []
        for place in range(number * size, (number + 1) * size):
            if recipe.patches.sampling == "random":
                planes = self._cut(*self._draw(rng, recipe.patches.zoom))
            else:
                epoch, index = divmod(place, self.per_epoch)
                order = np.random.default_rng([seed, epoch, 1]).permutation(self.per_epoch)
                planes = self._cut(*self.windows[order[index]])
            planes = augment(planes, rng, recipe.augmentation)
            planes["image"] = jitter(planes["image"], rng, strength=recipe.patches.stain)
            drawn.append(planes)
        images = np.stack([planes["image"] for planes in drawn])
        return images, {head: np.stack([planes[head] for planes in drawn]) for head in recipe.loss}

    def fixed(self, count: int) -> list[Planes]:
        """Patches for validation, always the same, as they are: image, targets and ``labels`` (uint16).

        ``count`` random ones, or all crops or whole images.
        """
        if self.recipe.patches.sampling == "random":
            rng = np.random.default_rng(0)
            return [self._cut(*self._draw(rng, 0.0), labels=True) for _ in range(count)]
        return [self._cut(*window, labels=True) for window in self.windows]

    def _draw(self, rng: np.random.Generator, zoom: float) -> tuple[Sample, Matrix]:
        group = self.sets[rng.choice(len(self.sets), p=self._shares)]
        sample = group[rng.integers(len(group))]
        step = self.recipe.mpp / sample.mpp * float(np.exp(rng.uniform(-zoom, zoom)))
        angle = rng.uniform(0.0, 2.0 * np.pi)
        flip = 1.0 if rng.random() < 0.5 else -1.0
        height, width = sample.labels.shape
        centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
        turn = (
            step
            * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            @ np.diag([flip, 1.0])
        )
        middle = (self.recipe.patches.size_px - 1) / 2.0
        return sample, np.column_stack([turn, centre - turn @ np.array([middle, middle])])

    def _averaged(self, sample: Sample) -> Sample:
        # Sampling every `step` pixels aliases unless what lies between is averaged first; once for all zooms.
        step = self.recipe.mpp / sample.mpp
        if self.recipe.patches.sampling == "whole":
            step = min(sample.labels.shape) / self.recipe.patches.size_px
        box = max(1, round(step))
        return replace(sample, image=cv2.blur(sample.image, (box, box))) if box > 1 else sample

    def _windows(self, sample: Sample) -> list[tuple[Sample, Matrix]]:
        size = self.recipe.patches.size_px
        height, width = sample.labels.shape
        if self.recipe.patches.sampling == "whole":
            return [(sample, _window(0.0, 0.0, width / size, height / size))]
        step = self.recipe.mpp / sample.mpp
        side = size * step
        corners = [
            [0.0] if length <= side else np.linspace(0.0, length - side, int(np.ceil(length / side - 1e-6)))
            for length in (height, width)
        ]
        return [(sample, _window(left, top, step, step)) for top in corners[0] for left in corners[1]]

    def _cut(self, sample: Sample, matrix: Matrix, *, labels: bool = False) -> Planes:
        planes: Planes = {"image": self._warp(sample.image, matrix, cv2.INTER_LINEAR)}
        for head, plane in sample.targets.items():
            mode = cv2.INTER_LINEAR if TARGETS[head].binary else cv2.INTER_NEAREST
            planes[head] = self._warp(plane, matrix, mode)
        if labels:
            planes["labels"] = self._warp(sample.labels.astype(np.uint16), matrix, cv2.INTER_NEAREST)
        return planes

    def _warp(self, plane: NDArray[np.generic], matrix: Matrix, mode: int) -> NDArray[np.generic]:
        side = self.recipe.patches.size_px
        flags = mode | cv2.WARP_INVERSE_MAP
        return np.asarray(
            cv2.warpAffine(plane, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        )


def _normalised(sample: Sample) -> Sample:
    try:
        return replace(sample, image=normalize_stain(sample.image))
    except ValueError:  # white, or of one colour: there are no two stains to normalise
        return sample


def _window(left: float, top: float, step_x: float, step_y: float) -> Matrix:
    # Pixel centres: pixel 0 of the patch covers the image from its corner on.
    return np.array(
        [
            [step_x, 0.0, left + (step_x - 1.0) / 2.0],
            [0.0, step_y, top + (step_y - 1.0) / 2.0],
        ]
    )
