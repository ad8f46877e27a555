"""Recipes: everything that decides a training, in one TOML file.

A recipe may start from another one in its folder (``extends``): its settings go over the other's, where
``WHOLE`` tables are replaced and others merged key by key. ``--set table.key=value`` changes single settings.
Unknown settings are refused, so that a misspelt one cannot be ignored.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from nucfast.slide.mpp import EXPECTED, is_credible
from nucfast_training.errors import RecipeError

SAMPLINGS = ("random", "crops", "whole")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
WHOLE = ("network", "loss", "classes", "sets", "sweep")  # half of one fits no other
LAYOUTS = ("manifest", "pannuke", "annotations")


@dataclass(frozen=True)
class PatchSettings:
    """``[patches]``: what the network sees.

    Attributes:
        size_px: side of the square patches.
        batch: patches per step.
        sampling: "random": anywhere, turned and scaled, sets drawn by their weights; "crops": a fixed grid
            of crops, each once per epoch; "whole": every image resized to ``size_px``.
        zoom: random patches are scaled by exp(u), u uniform within plus and minus this.
        stain: strength of ``augmentation.jitter``; 1 is the range seen between laboratories.
        normalise: "macenko" (``nucfast.ops.normalize_stain`` of each image; one without two stains stays as
            it is) or nothing.
    """

    size_px: int
    batch: int
    sampling: str = "random"
    zoom: float = 0.0
    stain: float = 0.0
    normalise: str = ""


@dataclass(frozen=True)
class OptimiserSettings:
    """``[optimiser]``: how weights are found. Give ``steps`` or ``epochs``.

    Attributes:
        learning_rate: the highest one.
        kind: a name of ``optimisers.OPTIMISERS``.
        steps: batches in all.
        epochs: passes over the training patches (for random patches: as many as would cover the images).
        schedule: "cosine" falls to 1 % at the end; "constant".
        warmup_steps: the rate rises linearly over these.
        weight_decay: as the optimiser defines it.
        momentum: of SGD.
        final_learning_rate: of AdaBound, where its bounds meet.
        ema: share kept per step by the running average of the weights, which is then what is validated and
            stored; 0: the weights themselves.
        clip: largest norm of the gradient; 0: any.
        precision: "bf16" autocast, "fp32", or "auto": bf16 where the device computes in it, and faster.
    """

    learning_rate: float
    kind: str = "adamw"
    steps: int = 0
    epochs: float = 0.0
    schedule: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.0
    final_learning_rate: float = 0.1
    ema: float = 0.0
    clip: float = 5.0
    precision: str = "auto"


@dataclass(frozen=True)
class ClassSettings:
    """``[classes]``: ids of the files (``raw``) to class ids 1..n, in the order of ``names``."""

    scheme: str
    names: list[str]
    colors: list[list[int]]
    raw: dict[str, int]
    weights: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SetSettings:
    """One of ``[[sets]]``: a folder below the data folder.

    Attributes:
        name: the folder; "." is the data folder itself.
        weight: how often random patches come from it.
        layout: "manifest" (manifest.csv, images/, labels/, types/), "pannuke" (the official folds) or
            "annotations" (images beside QuPath GeoJSON or label images).
        mpp: um per pixel where the files do not say.
        modality: keep only rows of the manifest with this value.
        folds: of PanNuke, by split.
        classes: class names of annotations to class names of the recipe; equal names need no entry.
    """

    name: str
    weight: float = 1.0
    layout: str = "manifest"
    mpp: float = 0.0
    modality: str = ""
    folds: dict[str, list[int]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidationSettings:
    """``[validation]``: when, on what, and which weights are kept.

    Attributes:
        metric: "loss" or a name of ``metrics.METRICS``; patience counts by it.
        keep: the weights that are stored: those "best" by the metric, or the "last".
        every_steps: steps between validations.
        every_epochs: the same in epochs; wins where it is above 0.
        patience: stop after this many validations without a better one; 0: never.
        patches: random patches to validate on; crops and whole images are all used.
    """

    metric: str = "loss"
    keep: str = "best"
    every_steps: int = 500
    every_epochs: float = 0.0
    patience: int = 0
    patches: int = 96


@dataclass(frozen=True)
class FreezeSettings:
    """``[freeze]``: what stays as it is, and for how long.

    Attributes:
        parts: prefixes of parameter names; "body" is everything but the network's heads.
        until_epoch: they are trained from this epoch on; 0: never.
        batch_norm_from_epoch: from this epoch on batch normalisation stays as it is; -1: never.
    """

    parts: list[str] = field(default_factory=list)
    until_epoch: float = 0.0
    batch_norm_from_epoch: float = -1.0


@dataclass(frozen=True)
class StartSettings:
    """``[start]``: where the first weights come from; nothing: drawn at random.

    Attributes:
        bundle: a bundle, by name or path: its network, resolution and classes are taken over as well.
        runs: folders of runs; several for an ensemble's members.
        grow: a run or bundle of a smaller network of the same kind, whose function is the start.
        shrink: a run or bundle of such a network that is wider between some of its layers: the channels that
            are missed least are left out.
        refine: a run or bundle of such a network that lacks the finest level, for twice the um per pixel.
        encoder: safetensors or PyTorch file with timm's names, for networks with such an encoder.
    """

    bundle: str = ""
    runs: list[str] = field(default_factory=list)
    grow: str = ""
    shrink: str = ""
    refine: str = ""
    encoder: str = ""


@dataclass(frozen=True)
class TeacherSettings:
    """``[teacher]``: a bundle from whose maps of the training images the network learns as well.

    Attributes:
        bundle: name or path, or the folder of a run; nothing: it learns from the annotations alone.
        share: of the bundle's maps in the targets of "nucleus" and "distance"; the rest is annotation. Images
            without annotated classes take the bundle's classes, where they are the recipe's and it is sure.
    """

    bundle: str = ""
    share: float = 0.5


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; ``table`` is what it was read from, and what checkpoints store."""

    name: str
    mpp: float
    seed: int
    network: dict[str, Any]
    patches: PatchSettings
    optimiser: OptimiserSettings
    loss: dict[str, float | dict[str, float]]
    sets: list[SetSettings]
    classes: ClassSettings | None = None
    augmentation: dict[str, float] = field(default_factory=dict)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    freeze: FreezeSettings = field(default_factory=FreezeSettings)
    start: StartSettings = field(default_factory=StartSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    sweep: dict[str, dict[str, Any]] = field(default_factory=dict)
    bundle: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Recipe:
        """Check a recipe's tables.

        Raises:
            RecipeError: a setting is unknown, missing, of the wrong type or makes no sense.
        """
        recipe = replace(_fill(cls, table, ""), table=dict(table))
        _check(recipe)
        return recipe

    def variants(self) -> dict[str, Recipe]:
        """The recipes of ``[sweep]`` by name; without one, the recipe alone under an empty name."""
        if not self.sweep:
            return {"": self}
        plain = {key: value for key, value in self.table.items() if key != "sweep"}
        found = {}
        for name, changes in self.sweep.items():
            table = json.loads(json.dumps(plain)) | {"name": f"{self.name}-{name}"}
            for key, value in changes.items():
                _set(table, key, value)
            found[name] = Recipe.of(table)
        return found


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in _shipped().glob("*.toml"))


def load_recipe(name_or_path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe by the name of a shipped one or by its path, and apply ``key=value`` changes.

    Raises:
        RecipeError: there is no such recipe, or it is wrong; the message names the setting.
    """
    path = Path(name_or_path)
    shipped = _shipped() / f"{name_or_path}.toml"
    if path.suffix != ".toml" and shipped.is_file():
        path = shipped
    table = _changed(_read(path), changes)
    bundle = table["start"].get("bundle") if isinstance(table.get("start"), dict) else None
    if bundle and isinstance(bundle, str):
        # The changes again, since they may be to what the bundle brings.
        table = _changed(merge(_table_of_bundle(bundle), _read(path)), changes)
    try:
        return Recipe.of(table)
    except RecipeError as error:
        raise RecipeError(f"{path.name}: {error}") from error


def merge(
    base: Mapping[str, Any], table: Mapping[str, Any], *, whole: Sequence[str] = WHOLE
) -> dict[str, Any]:
    """``table`` over ``base``: tables key by key, but for those in ``whole``; anything else is replaced."""
    merged = dict(base)
    for key, value in table.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key not in whole
        merged[key] = merge(merged[key], value, whole=()) if both else value
    return merged


def _changed(table: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise RecipeError(f"--set {change}: expected KEY=VALUE, such as optimiser.learning_rate=1e-4")
        _set(table, key, _value(text))
    return table


def _table_of_bundle(name: str) -> dict[str, Any]:
    from nucfast.engine import load_bundle

    bundle = load_bundle(name)
    base = bundle.training.get("recipe")
    if not isinstance(base, dict) or "network" not in base:
        raise RecipeError(
            f"start.bundle: {name} does not say which network it holds; start from one exported by nucfast"
        )
    # How that one was trained is no guide to what it learns now.
    kept = ("name", "mpp", "seed", "network", "loss", "classes")
    described = {"version": "1", "description": f"{bundle.name} {bundle.version}, taught further"}
    return {key: base[key] for key in kept if key in base} | {"bundle": base.get("bundle", {}) | described}


def _shipped() -> Path:
    return Path(str(resources.files("nucfast_training"))) / "recipes"


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path}: no such recipe (shipped: {', '.join(recipe_names())}; or give the path of a TOML file)"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as TOML: {error}") from error
    if "extends" in table:
        parent = path.with_name(f"{table.pop('extends')}.toml")
        try:
            table = merge(_read(parent), table)
        except RecursionError as error:
            raise RecipeError(f"{path}: extends {parent.name}, which extends it in turn") from error
    return table


def _value(text: str) -> Any:
    try:
        # A shell's quotes may hold several lines, which TOML does not allow in an inline table.
        return tomllib.loads(f"value = {' '.join(text.splitlines())}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a word needs no quotes on the command line


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    place: Any = table
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(place, list):
            if not parent.isdigit() or int(parent) >= len(place):
                raise RecipeError(f"{key}: expected an index below {len(place)}, got {parent!r}")
            place = place[int(parent)]
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
    if not isinstance(place, dict):
        raise RecipeError(f"{key}: {parents[-1] if parents else key} is not a table")
    place[last] = value


def _fill(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    # Recipe.table, which is no setting, is the one that has no repr.
    hints, known = get_type_hints(kind), {entry.name: entry for entry in fields(kind) if entry.repr}
    for key in table:
        if key not in known:
            raise RecipeError(f"{_join(where, key)}: unknown; expected one of {', '.join(known)}")
    values = {}
    for name, entry in known.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], _join(where, name))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise RecipeError(f"{_join(where, name)}: missing")
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) is UnionType:
        failure: RecipeError | None = None
        for option in get_args(hint):
            if option is not type(None):
                try:
                    return _convert(option, value, where)
                except RecipeError as error:
                    failure = error
        assert failure is not None
        raise failure
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: expected a table, got {value!r}")
        return _fill(hint, value, where)  # type: ignore[arg-type]
    origin, args = get_origin(hint), get_args(hint)
    if origin is list and isinstance(value, list):
        return [_convert(args[0], item, f"{where}.{i}") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _convert(args[1], item, _join(where, str(key))) for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or hint
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        names = {float: "a number", int: "an integer", str: "a string", list: "a list", dict: "a table"}
        raise RecipeError(f"{where}: expected {names.get(plain, plain)}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}: expected a finite number, got {value}")
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _one_of(where: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise RecipeError(f"{where}: expected one of {', '.join(known)}, got {value!r}")


def _numbers(where: str, settings: Any) -> list[tuple[str, float]]:
    values = ((f"{where}.{entry.name}", getattr(settings, entry.name)) for entry in fields(settings))
    return [(name, value) for name, value in values if isinstance(value, int | float)]


def _check(recipe: Recipe) -> None:
    from nucfast_training.augmentation import AUGMENTATIONS
    from nucfast_training.losses import LOSSES, terms_of
    from nucfast_training.metrics import METRICS
    from nucfast_training.optimisers import OPTIMISERS
    from nucfast_training.targets import TARGETS

    patches, optimiser = recipe.patches, recipe.optimiser
    for where, number in (
        ("mpp", recipe.mpp),
        ("patches.size_px", patches.size_px),
        ("patches.batch", patches.batch),
        ("optimiser.learning_rate", optimiser.learning_rate),
        ("validation.every_steps", recipe.validation.every_steps),
        ("validation.patches", recipe.validation.patches),
    ):
        if not number > 0:
            raise RecipeError(f"{where}: expected a number above 0, got {number}")
    for where, number in (
        ("seed", recipe.seed),
        ("freeze.until_epoch", recipe.freeze.until_epoch),
        *_numbers("patches", patches),
        *_numbers("optimiser", optimiser),
        *_numbers("validation", recipe.validation),
        *(pair for i, entry in enumerate(recipe.sets) for pair in _numbers(f"sets.{i}", entry)),
    ):
        if number < 0:
            raise RecipeError(f"{where}: expected a number from 0 on, got {number}")
    for where, mpp in (
        ("mpp", recipe.mpp),
        *((f"sets.{i}.mpp", entry.mpp) for i, entry in enumerate(recipe.sets) if entry.mpp),
    ):
        if not is_credible(mpp):
            raise RecipeError(f"{where}: {EXPECTED}, got {mpp:g}")
    for where, number, limit in (
        ("seed", recipe.seed, 2**63),  # these two are PyTorch's
        ("optimiser.learning_rate", optimiser.learning_rate, 1e38),
        ("optimiser.epochs", optimiser.epochs, 1e9),
    ):
        if number >= limit:
            raise RecipeError(f"{where}: expected a number below {limit:g}, got {number:g}")
    for where, share in (
        ("teacher.share", recipe.teacher.share),
        ("patches.zoom", patches.zoom),
        ("optimiser.ema", optimiser.ema),
        *((f"augmentation.{name}", probability) for name, probability in recipe.augmentation.items()),
    ):
        if not 0.0 <= share <= 1.0:
            raise RecipeError(f"{where}: expected 0 to 1, got {share}")
    _one_of("patches.sampling", patches.sampling, SAMPLINGS)
    _one_of("patches.normalise", patches.normalise, ("", "macenko"))
    _one_of("optimiser.kind", optimiser.kind, OPTIMISERS)
    _one_of("optimiser.schedule", optimiser.schedule, SCHEDULES)
    _one_of("optimiser.precision", optimiser.precision, PRECISIONS)
    _one_of("validation.metric", recipe.validation.metric, ("loss", *METRICS))
    _one_of("validation.keep", recipe.validation.keep, ("best", "last"))
    if (optimiser.steps > 0) == (optimiser.epochs > 0) and recipe.network.get("kind") != "ensemble":
        raise RecipeError("optimiser: expected steps or epochs above 0, and not both")
    for name in recipe.augmentation:
        _one_of(f"augmentation.{name}", name, AUGMENTATIONS)
    if not recipe.loss:
        raise RecipeError("loss: expected at least one head")
    for head, weight in recipe.loss.items():
        _one_of(f"loss.{head}", head, TARGETS)
        terms, binary = terms_of(head, weight), TARGETS[head].binary
        for term, share in terms.items():
            _one_of(f"loss.{head}.{term}", term, LOSSES)
            if term != "focal_tversky" and term.endswith("cross_entropy") == binary:
                kind = "nucleus or not" if binary else "classes"
                raise RecipeError(f"loss.{head}.{term}: does not fit this head, which tells {kind}")
            if share < 0:
                raise RecipeError(f"loss.{head}.{term}: expected a number from 0 on, got {share}")
        if not any(terms.values()):
            raise RecipeError(
                f"loss.{head}: expected a weight above 0; leave the head out to learn without it"
            )
    for i, entry in enumerate(recipe.sets):
        _one_of(f"sets.{i}.layout", entry.layout, LAYOUTS)
    if not any(entry.weight for entry in recipe.sets):
        raise RecipeError("sets: expected at least one with a weight above 0")
    classes = recipe.classes
    if classes is None:
        if {"class", "semantic"} & set(recipe.loss):
            raise RecipeError("classes: missing, and the loss has a head that needs them")
        return
    count = len(classes.names)
    if len(classes.colors) != count or (classes.weights and len(classes.weights) != count):
        raise RecipeError(f"classes: expected {count} colors and weights, one per name")
    if not all(len(color) == 3 and set(color) <= set(range(256)) for color in classes.colors):
        raise RecipeError(
            f"classes.colors: expected [red, green, blue] of 0 to 255 each, got {classes.colors}"
        )
    if any(weight < 0 for weight in classes.weights):
        raise RecipeError(f"classes.weights: expected numbers from 0 on, got {classes.weights}")
    if not all(key.isdecimal() for key in classes.raw):
        raise RecipeError(
            f"classes.raw: expected class ids of the files as keys, got {', '.join(classes.raw)}"
        )
    used = set(classes.raw.values())
    if not used <= set(range(count + 1)):
        raise RecipeError(f"classes.raw: expected ids 0 to {count}, got {sorted(used)}")
    if set(range(1, count + 1)) - used:
        raise RecipeError(
            f"classes.raw: expected every id from 1 to {count} without gaps, got {sorted(used)}"
        )
