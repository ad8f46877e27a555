"""A training run to a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from nucfast.engine import Bundle, ClassScheme, DecoderSpec, OutputSpec
from nucfast.nuclei import NucleusClass
from nucfast_export.export import ExportReport, export_bundle
from nucfast_training.train import build_network

CONVENTION = (
    "PQ (IoU > 0.5), AJI (Kumar 2017), Dice, AP per image at its own resolution, averaged; mPQ pooled"
)
SCORES = ("pq", "aji", "dice", "f1_50", "ap50", "ap", "mpq")


def accuracy_of(scores: dict[str, Any]) -> dict[str, Any]:
    """The entry of ``bundle.json`` for one result of ``nucfast evaluate --json``."""
    kept = {name: round(scores[name], 4) for name in SCORES if scores[name] is not None}
    return {
        "data": scores["dataset"],
        "split": scores["split"],
        "images": scores["images"],
        "convention": CONVENTION,
        **kept,
    }


def bundle_of(recipe: dict[str, Any], scores: Sequence[dict[str, Any]]) -> Bundle:
    """What ``bundle.json`` says of a network trained with this recipe that reached these scores."""
    settings, classes = recipe["bundle"], recipe["classes"]
    return Bundle(
        name=recipe["name"],
        version=settings["version"],
        description=settings["description"],
        mpp=recipe["mpp"],
        tile_px=settings["tile_px"],
        stride_px=settings["stride_px"],
        margin_px=settings["margin_px"],
        halo_px=settings["halo_px"],
        outputs=(
            OutputSpec("nucleus", "probability that a pixel is nucleus", 1, 1),
            OutputSpec(
                "distance", "distance to the nucleus's edge, tilted to its centre, 1 at the summit", 1, 1
            ),
            OutputSpec("class", "probability of each class, inside nuclei", len(classes["names"]), 2),
        ),
        classes=tuple(
            NucleusClass(i + 1, name, tuple(color))
            for i, (name, color) in enumerate(zip(classes["names"], classes["colors"], strict=True))
        ),
        class_scheme=ClassScheme(
            classes["scheme"], {int(raw): known for raw, known in classes["raw"].items()}
        ),
        decoder=DecoderSpec(**settings["decoder"]),
        licence=settings["licence"],
        training={"recipe": recipe, "data": [entry["name"] for entry in recipe["sets"]]},
        accuracy=tuple(accuracy_of(entry) for entry in scores),
    )


def export_run(
    run: Path,
    out: Path,
    *,
    recipe: dict[str, Any] | None = None,
    scores: Sequence[dict[str, Any]] = (),
    tiles: Callable[[Bundle], Sequence[NDArray[np.uint8]]] = lambda bundle: (),
) -> ExportReport:
    """Export the averaged weights of a run.

    Args:
        run: the run's folder, holding ``weights.safetensors``.
        out: the bundle's folder.
        recipe: used instead of the one in the weights: its ``[bundle]`` table may have changed since.
        scores: results of ``nucfast evaluate --json`` for the same weights.
        tiles: for the comparison with PyTorch, besides random ones: (N, h, w, 3) uint8 at the bundle's mpp.
    """
    path = run / "weights.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    recipe = recipe or json.loads(metadata["recipe"])
    network = build_network(recipe)
    network.load_state_dict(load_file(path))
    bundle = bundle_of(recipe, scores)
    return export_bundle(
        network.eval(),
        out,
        bundle,
        weights=recipe["bundle"]["weights"],
        tiles=tiles(bundle),
        overwrite=True,
    )
