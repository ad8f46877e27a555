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
from nucfast.ops import mean_intensity
from nucfast.pipeline.slide_run import RegionTask, plan
from nucfast.pipeline.stages import Stages
from nucfast.slide import open_slide
from nucfast_training.data import Sample, keep_map
from nucfast_training.start import WEIGHTS_FILE
from nucfast_training.targets import TARGETS, UNCLASSIFIED

_WHOLE_PX = 1 << 20  # one region, whatever the image's size
_SURE = 0.7  # the model's mean probability over a nucleus, from which on its class is taken for the nucleus's


def soften(
    sets: Sequence[Sequence[Sample]],
    bundle: str,
    share: float,
    *,
    cache: Path,
    classes: Sequence[str] = (),
    device: str = "cpu",
) -> list[list[Sample]]:
    """The weighted mean of the samples' binary targets and a model's maps of the same names.

    Annotators disagree about borders and faint nuclei; what the larger model says of them is what can be
    known from the image (Hinton et al.: Distilling the knowledge in a neural network, 2015). Annotated
    classes stay; the nuclei of an image without any get those that the model is sure of, so that classes are
    learned from the tissues of all sets (Lee: Pseudo-Label, ICML workshops 2013).

    Args:
        sets: samples by set.
        bundle: the model's name or path, or the folder of a run.
        share: of the model in the mean, 0..1.
        cache: folder that keeps its maps between runs.
        classes: names of those that are learned; a model of others teaches none.
        device: where a run's network computes; a bundle's too, if it is a GPU.
    """
    engine, identity = _engine(bundle, device)
    heads = {output.name for output in engine.bundle.outputs}
    if [entry.name for entry in engine.bundle.classes] != list(classes):
        heads.discard("class")
    if share == 0.0:
        heads &= {"class"}
    return [[_softened(sample, engine, identity, heads, share, cache) for sample in group] for group in sets]


def _engine(bundle: str, device: str) -> tuple[Engine, str]:
    """What computes the maps, and what tells its weights from others."""
    from nucfast_export.run import load_bundle_network, load_run
    from nucfast_export.torch_engine import TorchEngine

    weights = Path(bundle) / WEIGHTS_FILE
    if weights.exists():
        network, described = load_run(Path(bundle))
        identity = hashlib.sha256(weights.read_bytes()).hexdigest()
    else:
        described = load_bundle(bundle)
        identity = str(sorted(described.files.items()))
        if not device.startswith("cuda"):
            return create_engine(described), identity
        network = load_bundle_network(described)
    precision = "fp16" if device.startswith("cuda") else "fp32"
    return TorchEngine(network, described, device=device, precision=precision), identity


def _softened(
    sample: Sample, engine: Engine, identity: str, heads: set[str], share: float, cache: Path
) -> Sample:
    key = hashlib.sha256(sample.image.tobytes())
    key.update(sample.labels.tobytes())
    key.update(f"{sample.mpp} {identity}".encode())
    targets = dict(sample.targets)
    maps: dict[str, NDArray[np.uint8]] = {}
    for head in targets.keys() & heads:
        binary = TARGETS[head].binary
        if not binary and (targets[head] != UNCLASSIFIED).any():
            continue
        path = cache / f"{key.hexdigest()[:24]}-{head}.png"
        if not path.exists():
            maps = maps or _predict(sample, engine)
            known = maps[head][..., 0] if binary else _classes(sample.labels, maps[head])
            keep_map(known, path)
        known = np.asarray(Image.open(path))
        if binary:
            known = np.asarray(cv2.addWeighted(targets[head], 1.0 - share, known, share, 0.0))
        targets[head] = known
    return replace(sample, targets=targets)


def _classes(labels: NDArray[np.int32], probability: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class index of each nucleus of whose class the model is sure, ``UNCLASSIFIED`` elsewhere."""
    count = int(labels.max())
    table = np.full(count + 1, UNCLASSIFIED, np.uint8)
    if count:
        mean = np.nan_to_num(mean_intensity(labels, probability, count=count))
        table[1:] = np.where(mean.max(axis=1) >= _SURE * 255.0, mean.argmax(axis=1), UNCLASSIFIED)
    return table[labels]


def _predict(sample: Sample, engine: Engine) -> dict[str, NDArray[np.uint8]]:
    """The model's maps, (H, W, channels) uint8 over the sample's pixels."""
    height, width = sample.labels.shape
    with open_slide(sample.image, mpp=sample.mpp) as slide:
        layout = plan(slide, engine.bundle, region_px=_WHOLE_PX)
        (region,) = layout.regions
        task = RegionTask(slide, layout, engine, 1, Stages())
        maps = task.predict(region, task.read(region))
    return {
        name: cv2.resize(np.ascontiguousarray(plane), (width, height)).reshape(height, width, -1)
        for name, plane in maps.items()
    }
