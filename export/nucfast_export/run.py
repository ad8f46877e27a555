"""A training run to a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nucfast.engine import Bundle, ClassScheme, DecoderSpec, OutputSpec
from nucfast.nuclei import NucleusClass
from nucfast_export.export import ExportError, ExportReport, export_bundle, first_line
from nucfast_export.flips import FlipMean
from nucfast_export.semantic import NucleusAndClass
from nucfast_training.networks import build_network
from nucfast_training.start import WEIGHTS_FILE, fold_norms, load_from_bundle

CONVENTION = (
    "PQ (IoU > 0.5), AJI (Kumar 2017), Dice, AP per image at its own resolution, averaged; mPQ pooled"
)
MEANINGS = {
    "nucleus": "probability that a pixel is nucleus",
    "distance": "distance to the nucleus's edge, tilted to its centre, 1 at the summit",
    "class": "probability of each class, inside nuclei",
}
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


def bundle_of(
    recipe: dict[str, Any], scores: Sequence[dict[str, Any]], outputs: Sequence[OutputSpec]
) -> Bundle:
    """What ``bundle.json`` says of a network trained with this recipe that reached these scores."""
    settings = recipe["bundle"]
    typed = any(output.name == "class" for output in outputs)
    classes = recipe["classes"] if typed else {"names": [], "colors": []}
    raw = {int(key): known for key, known in classes.get("raw", {}).items()}
    return Bundle(
        name=recipe["name"],
        version=settings["version"],
        description=settings["description"],
        mpp=recipe["mpp"],
        tile_px=settings["tile_px"],
        stride_px=settings["stride_px"],
        margin_px=settings["margin_px"],
        halo_px=settings["halo_px"],
        outputs=tuple(outputs),
        classes=tuple(
            NucleusClass(i + 1, name, tuple(color))
            for i, (name, color) in enumerate(zip(classes["names"], classes["colors"], strict=True))
        ),
        class_scheme=ClassScheme(classes["scheme"], raw) if typed else None,
        # A decoder that splits nothing has no min_rise.
        decoder=DecoderSpec(**{"min_rise": 0, **settings["decoder"]}),
        licence=settings["licence"],
        training={"recipe": recipe, "data": [entry["name"] for entry in recipe["sets"]]},
        accuracy=tuple(accuracy_of(entry) for entry in scores),
    )


def outputs_of(network: nn.Module, stride_px: int) -> list[OutputSpec]:
    """The network's outputs, found by running it on a small image."""
    side = 2 * stride_px
    with torch.no_grad():
        heads = network.eval()(torch.zeros(1, 3, side, side))
    return [
        OutputSpec(name, MEANINGS[name], logits.shape[1], side // logits.shape[2])
        for name, logits in heads.items()
    ]


def load_run(
    run: Path, *, recipe: dict[str, Any] | None = None, scores: Sequence[dict[str, Any]] = ()
) -> tuple[nn.Module, Bundle]:
    """The network of a run's stored weights, as it is exported, and what ``bundle.json`` will say of it.

    The arguments are those of ``export_run``.

    Raises:
        ExportError: the weights cannot be read or are those of another network, or it cannot be exported, or
            ``[bundle]`` of the recipe does not describe a bundle.
    """
    path = run / WEIGHTS_FILE
    weights, metadata = _stored(path)
    if "recipe" not in metadata:
        raise ExportError(f"{path}: holds no recipe, so it is not from a run of  nucfast train")
    recipe = recipe or json.loads(metadata["recipe"])
    if recipe["patches"].get("normalise"):
        raise ExportError(
            f"{recipe['name']}: learned from stain-normalised images, which `nucfast infer` does not make: "
            "train it with patches.normalise empty"
        )
    network = build_network(recipe)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ExportError(
            f"{path}: holds another network than that of the recipe {recipe['name']}"
        ) from error
    return described(network, recipe, scores)


def described(
    network: nn.Module, recipe: dict[str, Any], scores: Sequence[dict[str, Any]] = ()
) -> tuple[nn.Module, Bundle]:
    """A recipe's network as it is exported, and what ``bundle.json`` will say of it.

    Raises:
        ExportError: ``[bundle]`` of the recipe does not describe a bundle.
    """
    try:
        network = as_exported(network, recipe)
        _check_weights(recipe["bundle"]["weights"])
        return network, bundle_of(recipe, scores, outputs_of(network, recipe["bundle"]["stride_px"]))
    # What a setting that is missing, or makes no sense, leads to; PyTorch's is of a stride too small.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ExportError(
            f"{recipe['name']}: its recipe describes no bundle ({first_line(error)}): mend [bundle], which "
            "nucfast export  takes from  --recipe FILE  as well"
        ) from error


def _check_weights(weights: object) -> None:
    if weights not in ("fp32", "fp16"):
        raise ValueError(f"weights: expected fp32 or fp16, got {weights!r}")


def data_of_run(run: Path) -> Path | None:
    """The folder that a run was trained with, as ``nucfast train`` noted it; None: not known, or gone.

    Raises:
        ExportError: the weights cannot be read.
    """
    _, metadata = _stored(run / WEIGHTS_FILE)
    data = Path(metadata["data"]) if "data" in metadata else None
    return data if data is not None and data.is_dir() else None


def _stored(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A run's weights and what their header says."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"{path}: cannot be read as the weights of a run ({error}): copy them again, or train again"
        ) from error


def load_bundle_network(bundle: Bundle) -> nn.Module:
    """The network that a bundle was exported from, with the bundle's weights."""
    recipe = bundle.training["recipe"]
    network = build_network(recipe)
    load_from_bundle(network.eval(), bundle)
    return as_exported(fold_norms(network), recipe)


def as_exported(network: nn.Module, recipe: dict[str, Any]) -> nn.Module:
    """A recipe's network with what the export puts around it."""
    if "semantic" in recipe["loss"]:
        network = NucleusAndClass(network)
    if recipe["bundle"].get("flips"):
        network = FlipMean(network)
    return network.eval()


def export_run(
    run: Path,
    out: Path,
    *,
    recipe: dict[str, Any] | None = None,
    scores: Sequence[dict[str, Any]] = (),
    tiles: Callable[[Bundle], Sequence[NDArray[np.uint8]]] = lambda bundle: (),
) -> ExportReport:
    """Export the weights that a run has stored.

    Args:
        run: the run's folder, holding ``weights.safetensors``.
        out: the bundle's folder.
        recipe: used instead of the one in the weights: its ``[bundle]`` table may have changed since.
        scores: results of ``nucfast evaluate --json`` for the same weights.
        tiles: for the comparison with PyTorch, besides random ones: (N, h, w, 3) uint8 at the bundle's mpp;
            called before the work, so that it may refuse the bundle.

    Raises:
        NucfastError: as ``load_run`` and ``export_bundle``, or there is a bundle already.
    """
    network, bundle = load_run(run, recipe=recipe, scores=scores)
    return export_bundle(
        network,
        out,
        bundle,
        weights=bundle.training["recipe"]["bundle"]["weights"],
        tiles=tiles(bundle),
    )
