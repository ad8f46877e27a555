"""Targets softened by what a larger model finds in the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nucfast.engine import Engine, create_engine, load_bundle
from nucfast.pipeline.slide_run import RegionTask, plan
from nucfast.pipeline.stages import Stages
from nucfast.slide import open_slide
from nucfast_training.data import Sample
from nucfast_training.targets import TARGETS

_WHOLE_PX = 1 << 20  # one region, whatever the image's size


def soften(sets: Sequence[Sequence[Sample]], bundle: str, share: float, *, cache: Path) -> list[list[Sample]]:
    """The weighted mean of the samples' binary targets and a model's maps of the same names.

    Annotators disagree about borders and faint nuclei; what the larger model says of them is what can be
    known from the image (Hinton et al.: Distilling the knowledge in a neural network, 2015). Targets of
    classes stay.

    Args:
        sets: samples by set.
        bundle: the model's name or path.
        share: of the model in the mean, 0..1.
        cache: folder that keeps its maps between runs.
    """
    engine = create_engine(load_bundle(bundle))
    return [[_softened(sample, engine, share, cache) for sample in group] for group in sets]


def _softened(sample: Sample, engine: Engine, share: float, cache: Path) -> Sample:
    key = hashlib.sha256(sample.image.tobytes())
    key.update(f"{sample.mpp} {sorted(engine.bundle.files.items())}".encode())
    targets = dict(sample.targets)
    maps: dict[str, NDArray[np.uint8]] = {}
    for head in targets.keys() & {output.name for output in engine.bundle.outputs}:
        if not TARGETS[head].binary:
            continue
        path = cache / f"{key.hexdigest()[:24]}-{head}.png"
        if not path.exists():
            maps = maps or _predict(sample, engine)
            cache.mkdir(parents=True, exist_ok=True)
            Image.fromarray(maps[head]).save(path)
        known = np.asarray(Image.open(path))
        targets[head] = np.asarray(cv2.addWeighted(targets[head], 1.0 - share, known, share, 0.0))
    return replace(sample, targets=targets)


def _predict(sample: Sample, engine: Engine) -> dict[str, NDArray[np.uint8]]:
    """The model's maps of one channel, (H, W) uint8 over the sample's pixels."""
    height, width = sample.labels.shape
    with open_slide(sample.image, mpp=sample.mpp) as slide:
        layout = plan(slide, engine.bundle, region_px=_WHOLE_PX)
        (region,) = layout.regions
        task = RegionTask(slide, layout, engine, 1, Stages())
        maps = task.predict(region, task.read(region))
    return {
        name: cv2.resize(np.ascontiguousarray(plane[..., 0]), (width, height))
        for name, plane in maps.items()
        if plane.shape[2] == 1
    }
