"""Train a recipe: one loop for every network, head and data set.

Everything of a run lies in its folder: ``log.jsonl`` (a line per 100 steps and per validation),
``last.safetensors`` (goes on where it stopped), ``weights.safetensors`` (the best weights so far or the last,
with the recipe in its header), ``learning-curve.png`` and ``predictions.png``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import itertools
import json
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nucfast.engine.processor import bf16_pays
from nucfast.engine.threads import available_cpus
from nucfast.errors import require
from nucfast_training.augmentation import Planes
from nucfast_training.data import Sample, read_sets
from nucfast_training.device_patches import DevicePatches, makes_here
from nucfast_training.errors import RecipeError, TrainingError
from nucfast_training.freeze import check_freeze, prepare
from nucfast_training.losses import heads_loss
from nucfast_training.metrics import MaskScores
from nucfast_training.networks import build_network, check_heads
from nucfast_training.optimisers import OPTIMISERS, pack, unpack
from nucfast_training.patches import Patches
from nucfast_training.pictures import draw_learning_curve, draw_predictions
from nucfast_training.recipe import Recipe
from nucfast_training.shrink import load_wide, shrink
from nucfast_training.start import WEIGHTS_FILE, calibrate_norms, load_start
from nucfast_training.targets import TARGETS
from nucfast_training.teacher import soften

LOG_FILE = "log.jsonl"
LOG_EVERY = 100  # steps
LOOK_EVERY = 20  # steps of a GPU, which would wait if each step's loss were looked at
# What a run in a folder keeps to the end. Anything else may be changed when it goes on.
LASTING = ("name", "network.", "classes.", "start.", "mpp", "optimiser.kind")
# What decides its validations: with others of these the best so far is no rival.
MEASURE = ("training images", "validation images", "sets.", "patches.", "loss.", "validation.")
MAX_SHOWN = 4  # patches in predictions.png
CALIBRATION_BATCHES = 4  # from which the normalisation of a bundle's network is estimated

Event = dict[str, Any]
Batch = tuple[Tensor, dict[str, Tensor]]  # images (N, H, W, 3), targets (N, H, W) by head; uint8


@dataclass(frozen=True)
class TrainReport:
    """How a run ended.

    Attributes:
        out: its folder.
        steps: batches trained on since the run began, interruptions or not.
        seconds: time spent in the loop, likewise.
        stopped: "done", "time" (``max_seconds``) or "patience" (no better validation for long).
        metric: by which validations are compared.
        best: its best value.
        scores: every score of the validation that had it.
    """

    out: Path
    steps: int
    seconds: float
    stopped: str
    metric: str
    best: float
    scores: Mapping[str, float]


def train(
    recipe: Recipe,
    *,
    data: Path,
    out: Path,
    device: str = "auto",
    max_seconds: float = math.inf,
    limit: int = 0,
    tensorboard: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> TrainReport:
    """Train until the recipe's steps are done, the time is up, or patience is; an unfinished run goes on.

    Args:
        recipe: what to train, on what, and how.
        data: folder that holds the recipe's sets.
        out: folder of the run.
        device: "auto", "cpu", "cuda" or "cuda:N".
        max_seconds: stop by then; a falling learning rate fits whichever ends first.
        limit: images of each set and split; 0: all.
        tensorboard: also write TensorBoard's event files.
        on_event: called with each line of the log, and with {"event": "step" | "message", ...} in between.

    Raises:
        RecipeError: the recipe asks for what is not there, or the run in ``out`` has another network,
            optimiser or start, or is finished with other settings or images.
        DatasetError: the data are not as they must be.
        TrainingError: the loss is not finite, or memory ran out; the last good checkpoint stays. Or another
            training is at work in ``out``.
    """
    out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    with _alone(out):
        run = _Run(recipe, out, _device(device), on_event, tensorboard)
        return _read_and_train(run, data, max_seconds, limit)


def _read_and_train(run: _Run, data: Path, max_seconds: float, limit: int) -> TrainReport:
    recipe, cache = run.recipe, run.out / "cache"
    with run.guarded():
        sets, val_sets = (
            read_sets(recipe, data, split, cache=cache, limit=limit) for split in ("train", "val")
        )
        run.sees({"training images": sets, "validation images": val_sets}, data)
        if recipe.teacher.bundle:
            sets = soften(
                sets,
                recipe.teacher.bundle,
                recipe.teacher.share,
                cache=cache,
                classes=recipe.classes.names if recipe.classes else (),
                device=str(run.device),
            )
        on_device = run.device.type == "cuda" and makes_here(recipe)
        patches = DevicePatches(sets, recipe, run.device) if on_device else Patches(sets, recipe)
        val = Patches(val_sets, recipe).fixed(recipe.validation.patches)
        return run.train(patches, val, max_seconds)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other trainings out of the folder; the lock ends with the process, however that ends."""
    with (out / LOG_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Others come of network file systems that lock nothing.
            if isinstance(error, BlockingIOError):
                raise TrainingError(f"{out}: another training is at work here; give another --out") from error
        yield


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu")
    return device


def _check_bundle(network: nn.Module, recipe: Recipe) -> None:
    """Refuse a ``[bundle]`` of which the export would complain after hours of training."""
    from nucfast_export.export import ExportError
    from nucfast_export.run import described

    if recipe.bundle:
        was_training = network.training
        try:
            described(network, recipe.table)
        except ExportError as error:
            raise RecipeError(f"bundle: {error}") from error
        network.train(was_training)


def _uses_bf16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Elsewhere bf16 is emulated, several times slower than fp32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(native and bf16_pays())


def to_input(images: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float in 0..1, channels last."""
    pixels = torch.as_tensor(images).to(device, non_blocking=True).permute(0, 3, 1, 2)
    return pixels.float().div_(255.0).contiguous(memory_format=torch.channels_last)


class _Run:
    """The state of one training."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        device: torch.device,
        on_event: Callable[[Event], None],
        tensorboard: bool,
    ) -> None:
        self.recipe, self.out, self.device, self.on_event = recipe, out, device, on_event
        self.bf16 = _uses_bf16(recipe.optimiser.precision, device)
        self.checkpoint, self.weights = out / "last.safetensors", out / WEIGHTS_FILE
        torch.backends.cudnn.benchmark = True  # batches are all of one shape
        torch.manual_seed(recipe.seed)
        network = build_network(recipe.table)
        stride = int(network.stride_px)  # type: ignore[arg-type]
        if recipe.patches.size_px % stride:
            raise RecipeError(
                f"patches.size_px: expected a multiple of {stride} for this network, "
                f"got {recipe.patches.size_px}"
            )
        check_heads(network, recipe)
        check_freeze(network, recipe)
        _check_bundle(network, recipe)
        self.wide: nn.Module | None = None  # what the network is made of
        if not self.checkpoint.exists():
            load_start(network, recipe, self.say)
            if recipe.start.shrink:
                self.wide = load_wide(network, recipe.start.shrink)
        self.network = network.to(device).to(memory_format=torch.channels_last)
        # What is validated and stored: the running average, or the network itself.
        self.average = deepcopy(self.network).eval() if recipe.optimiser.ema else self.network
        self.optimiser = OPTIMISERS[recipe.optimiser.kind](self.network.parameters(), recipe.optimiser)
        weights = recipe.classes.weights if recipe.classes else []
        self.class_weights = torch.tensor(weights, device=device) if weights else None
        self.step, self.seconds, self.best, self.worse = 0, 0.0, math.nan, 0
        self.scores: dict[str, float] = {}
        self.changed: list[str] = []  # since the run in the folder began
        self.digests, self.folder = dict[str, str](), Path()  # of the images
        if self.checkpoint.exists():
            self._resume()
        self._trim_log()
        self.interrupted = False
        self.board = None
        if tensorboard:
            require("tensorboard", extra="tensorboard", purpose="--tensorboard")
            module = importlib.import_module("torch.utils.tensorboard")
            self.board = module.SummaryWriter(str(out), purge_step=self.step + 1)

    def say(self, message: str) -> None:
        self.on_event({"event": "message", "message": message})

    def train(self, patches: Patches, val: list[Planes], max_seconds: float) -> TrainReport:
        settings, validation = self.recipe.optimiser, self.recipe.validation
        per_epoch = max(1.0, patches.per_epoch / self.recipe.patches.batch)
        steps = settings.steps or math.ceil(settings.epochs * per_epoch)
        every = (
            max(1, round(validation.every_epochs * per_epoch))
            if validation.every_epochs
            else validation.every_steps
        )
        self.on_event(
            {
                "event": "start",
                "name": self.recipe.name,
                "device": str(self.device),
                "precision": "bf16" if self.bf16 else "fp32",
                "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
                "patches": patches.per_epoch,
                "val_patches": len(val),
                "step": self.step,
                "steps": steps,
            }
        )
        over = self.step >= steps or self.seconds >= max_seconds
        if self.changed and (over or (validation.patience and self.worse >= validation.patience)):
            raise RecipeError(
                f"{self.out}: holds a run that is finished, with other {', '.join(self.changed)}; give "
                "another --out, remove the folder, or allow more steps or seconds"
            )
        if any(name.startswith(MEASURE) for name in self.changed):
            self.best, self.worse = math.nan, 0
        if not self.checkpoint.exists():
            self._adapt(patches)
        sums: dict[str, Tensor] = {}
        count = 0
        look_every = LOOK_EVERY if self.device.type == "cuda" else 1
        prepared = -1
        stopped = "done"
        validated = self.step > 0
        started = time.monotonic() - self.seconds
        with self._interrupts_wait(), _batches(patches, self.step, self.device) as source:
            while self.step < steps and not self.interrupted:
                if self.seconds >= max_seconds:
                    stopped = "time"
                    break
                if validation.patience and self.worse >= validation.patience:
                    stopped = "patience"
                    break
                epoch = int(self.step / per_epoch)
                if epoch != prepared:
                    prepare(self.network, self.recipe, epoch)
                    prepared = epoch
                progress = max(self.step / steps, self.seconds / max_seconds)
                losses = self._learn(next(source), progress)
                self.step += 1
                self.seconds = time.monotonic() - started
                for name, loss in losses.items():
                    sums[name] = sums[name] + loss if name in sums else loss
                count += 1
                validated = False
                due = self.step % every == 0 or self.step == steps
                if count % look_every == 0 or due:
                    self._check_finite(float(sums["loss"]) / count)
                    self.on_event(
                        {"event": "step", "step": self.step, "steps": steps, "loss": float(losses["loss"])}
                    )
                if count == LOG_EVERY or due:
                    means = {name: round(float(total) / count, 5) for name, total in sums.items()}
                    self._log({"lr": self.optimiser.param_groups[0]["lr"], "train": means})
                    sums, count = {}, 0
                if due:
                    self._validate_and_save(val)
                    prepared, validated = -1, True
                    self.seconds = time.monotonic() - started
            if not self.interrupted and (not validated or not self.weights.exists()):
                self._validate_and_save(val)
            if self.interrupted:
                if count:
                    self._check_finite(float(sums["loss"]) / count)
                self._save_checkpoint()
                raise KeyboardInterrupt
        draw_learning_curve(self.out / LOG_FILE, self.out / "learning-curve.png", validation.metric)
        self._draw(val)
        if self.board is not None:
            self.board.close()
        report = TrainReport(
            self.out, self.step, self.seconds, stopped, validation.metric, self.best, self.scores
        )
        self.on_event({"event": "end", "stopped": stopped, "best": self.best, "seconds": self.seconds})
        return report

    def _adapt(self, patches: Patches) -> None:
        """Let weights that come from elsewhere know what they will see."""
        start, frozen = self.recipe.start, self.recipe.freeze.batch_norm_from_epoch == 0
        if self.wide is None and (frozen or not (start.bundle or start.grow or start.refine)):
            return
        numbers = range(CALIBRATION_BATCHES)
        images = [to_input(_batch(patches, number, self.device)[0], self.device) for number in numbers]
        if self.wide is not None:
            shrink(self.network, self.wide.to(self.device), images)
            self.wide = None
            self.say(f"weights of {start.shrink}, whose network was shrunk to this one")
        if not frozen:
            calibrate_norms(self.network, images)
        if self.average is not self.network:
            self.average.load_state_dict(self.network.state_dict())

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self.step}: lower optimiser.learning_rate "
                f"({self.recipe.optimiser.learning_rate:g}); {self._kept()}"
            )

    def _learn(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One step; the losses by head, weighted, and their sum."""
        settings = self.recipe.optimiser
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(progress)
        losses = self._losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimiser.step()
        if settings.ema:
            self._update_average(min(settings.ema, (self.step + 1) / (self.step + 10)))
        return {name: loss.detach() for name, loss in losses.items()} | {"loss": total.detach()}

    def _rate(self, progress: float) -> float:
        settings = self.recipe.optimiser
        rate = settings.learning_rate
        if settings.warmup_steps:
            rate *= min(1.0, (self.step + 1) / settings.warmup_steps)
        if settings.schedule == "cosine":
            rate *= 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))
        return rate

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        with self._autocast():
            heads = self.network(to_input(images, self.device))
        return heads_loss(heads, targets, self.recipe.loss, self.class_weights)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def _update_average(self, keep: float) -> None:
        means, values = (list(net.state_dict().values()) for net in (self.average, self.network))
        floats = [i for i, mean in enumerate(means) if mean.is_floating_point()]
        torch._foreach_lerp_([means[i] for i in floats], [values[i] for i in floats], 1.0 - keep)
        for mean, value in zip(means, values, strict=True):
            if not mean.is_floating_point():
                mean.copy_(value)

    def _validate_and_save(self, val: list[Planes]) -> None:
        scores = self._validate(val)
        metric = self.recipe.validation.metric
        self._check_finite(scores["loss"])
        value = scores.get(metric, math.nan)
        if math.isnan(value):
            raise TrainingError(
                f"validation.metric: {metric} is not defined for this recipe's heads and data; use 'loss'"
            )
        better = math.isnan(self.best) or (value < self.best if metric == "loss" else value > self.best)
        self.worse = 0 if better else self.worse + 1
        self._log({"val": {name: round(score, 5) for name, score in scores.items()}, "best": better})
        if better:
            self.best, self.scores = value, scores
        if better or self.recipe.validation.keep == "last":
            header = {"recipe": json.dumps(self.recipe.table), "step": str(self.step), metric: str(value)}
            header["data"] = str(self.folder)  # for the export, which checks on its validation images
            _save(self.average.state_dict(), self.weights, header)
        self._save_checkpoint()

    @torch.no_grad()
    def _validate(self, val: list[Planes]) -> dict[str, float]:
        """Loss and scores of the validation patches."""
        self.average.eval()
        head = next((name for name in ("semantic", "nucleus") if name in self.recipe.loss), None)
        classes = len(self.recipe.classes.names) if head == "semantic" and self.recipe.classes else 1
        counts = MaskScores(classes)
        sums: dict[str, float] = {}
        parts = 0
        size = self.recipe.patches.batch
        for start in range(0, len(val), size):
            group = val[start : start + size]
            heads = self._predict(group)
            targets = {
                name: torch.from_numpy(np.stack([planes[name] for planes in group])).to(self.device)
                for name in self.recipe.loss
            }
            losses = heads_loss(heads, targets, self.recipe.loss, self.class_weights)
            losses["loss"] = torch.stack(list(losses.values())).sum()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss) * len(group)
            parts += len(group)
            if head is not None:
                found = self._masks(head, heads[head])
                for planes, mask in zip(group, found, strict=True):
                    truth = np.asarray(planes[head], np.uint8)
                    counts.add((truth >= 128).astype(np.uint8) if head == "nucleus" else truth, mask)
                    if self.recipe.validation.metric == "mean_ap":
                        counts.add_instances(planes["labels"].astype(np.int32), mask > 0)
        scores = {name: total / parts for name, total in sums.items()}
        if head is not None:
            scores |= {name: value for name, value in counts.scores().items() if not math.isnan(value)}
        return scores

    def _predict(self, group: list[Planes]) -> dict[str, Tensor]:
        images = np.stack([np.asarray(planes["image"], np.uint8) for planes in group])
        with self._autocast():
            heads: dict[str, Tensor] = self.average(to_input(images, self.device))
        return {name: logits.float() for name, logits in heads.items()}

    @staticmethod
    def _masks(head: str, logits: Tensor) -> NDArray[np.uint8]:
        mask = logits.argmax(dim=1) if head == "semantic" else logits[:, 0] > 0
        return mask.to(torch.uint8).cpu().numpy()

    @torch.no_grad()
    def _draw(self, val: list[Planes]) -> None:
        self.average.eval()
        rows: list[tuple[Planes, dict[str, NDArray[Any]]]] = []
        for planes in val[:: max(1, len(val) // MAX_SHOWN)][:MAX_SHOWN]:
            heads = self._predict([planes])
            found = {
                name: torch.sigmoid(heads[name][0, 0]).cpu().numpy()
                if TARGETS[name].binary
                else heads[name][0].argmax(dim=0).to(torch.uint8).cpu().numpy()
                for name in self.recipe.loss
            }
            rows.append((planes, found))
        draw_predictions(rows, self.out / "predictions.png")

    def _log(self, record: Event) -> None:
        record = {"step": self.step, "seconds": round(self.seconds, 1)} | record
        with (self.out / LOG_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for group in ("train", "val"):
                for name, value in record.get(group, {}).items():
                    self.board.add_scalar(f"{group}/{name}", value, self.step)
        self.on_event({"event": "log", **record})

    def _trim_log(self) -> None:
        """Leave out what a run that was killed logged after its checkpoint, which it does again."""
        path = self.out / LOG_FILE
        lines = path.read_text().splitlines()
        kept = [line for line in lines if _step_of(line) <= self.step]
        if kept != lines:
            path.write_text("".join(f"{line}\n" for line in kept))

    def _save_checkpoint(self) -> None:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.average is not self.network:
            tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        state, plain = pack(self.optimiser)
        tensors |= {f"optimiser.{name}": value for name, value in state.items()}
        progress = {"step": self.step, "seconds": self.seconds, "best": self.best, "worse": self.worse}
        tensors["random"] = torch.get_rng_state()  # of dropout; patches draw by their numbers
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        header = {
            "recipe": json.dumps(self.recipe.table),
            "progress": json.dumps(progress | {"scores": self.scores, "images": self.digests}),
            "optimiser": json.dumps(plain),
        }
        _save(tensors, self.checkpoint, header)

    def _resume(self) -> None:
        try:
            with safe_open(self.checkpoint, "pt") as file:
                header = file.metadata() or {}
            tensors = load_file(self.checkpoint)
            before = json.loads(header["recipe"])
            progress, plain = json.loads(header["progress"]), json.loads(header["optimiser"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise RecipeError(
                f"{self.checkpoint}: is damaged ({error}); remove it to begin anew, or give another --out"
            ) from error
        self.changed = changed_settings(before, self.recipe.table)
        other = [key for key in self.changed if key.startswith(LASTING)]
        if other:
            raise RecipeError(
                f"{self.out}: holds a run with another {other[0]}; give another --out, or remove the folder"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }

        # Copied to where the networks are; the optimiser's go where its weights are.
        self.network.load_state_dict(part("network."))
        if self.average is not self.network:
            self.average.load_state_dict(part("average.") or part("network."))
        unpack(self.optimiser, part("optimiser."), plain)
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.best, self.worse, self.scores = progress["best"], progress["worse"], progress["scores"]
        self.digests = progress.get("images", {})
        if "random" in tensors:
            torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda" and "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"], self.device)
        others = f", with other {', '.join(self.changed)}" if self.changed else ""
        self.say(f"goes on from step {self.step}{others}")

    def sees(self, images: Mapping[str, list[list[Sample]]], folder: Path) -> None:
        """Note the images, by what they are for, and where they are; a run that goes on may get others."""
        self.folder = folder.resolve()
        for purpose, sets in images.items():
            digest = _digest(sets)
            if self.digests.get(purpose, digest) != digest:
                self.changed.append(purpose)
            self.digests[purpose] = digest

    def _kept(self) -> str:
        if self.weights.exists():
            return f"{self.weights} and {self.checkpoint} hold the last good state"
        return "no state had been stored yet"

    @contextmanager
    def _interrupts_wait(self) -> Iterator[None]:
        """Let an interrupt wait for the end of a step, so that no half of one is stored; a second is obeyed.

        Only where an interrupt would be a ``KeyboardInterrupt``, and signals may be handled.
        """

        def note(number: int, frame: object) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        mine = threading.current_thread() is threading.main_thread()
        caught = [
            number
            for number in (signal.SIGINT, signal.SIGTERM)
            if mine and signal.getsignal(number) is signal.default_int_handler
        ]
        for number in caught:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number in caught:
                signal.signal(number, signal.default_int_handler)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Say which settings decide about memory when it runs out."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            # That of a GPU has a class of its own, that of the CPU a text.
            kinds = MemoryError, torch.OutOfMemoryError
            if not isinstance(error, kinds) and "can't allocate memory" not in str(error):
                raise
            patches = self.recipe.patches
            raise TrainingError(
                f"{self.device}: out of memory at step {self.step} with patches.batch = {patches.batch} of "
                f"{patches.size_px} px: lower patches.batch; {self._kept()}"
            ) from error


def _digest(sets: list[list[Sample]]) -> str:
    digest = hashlib.sha256()
    for sample in itertools.chain(*sets):
        digest.update(f"{sample.name} {sample.image.shape}".encode())
        digest.update(np.ascontiguousarray(sample.image))
        digest.update(np.ascontiguousarray(sample.labels))
        for target in sample.targets.values():  # the classes, which the labels do not tell
            digest.update(np.ascontiguousarray(target))
    return digest.hexdigest()


def _step_of(line: str) -> float:
    """The step of a line of the log; infinite if it is not whole."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf


def _batch(patches: Patches, number: int, device: torch.device) -> Batch:
    if isinstance(patches, DevicePatches):
        return patches.batch_on_device(number)
    images, targets = patches.batch(number)
    on_device = {head: torch.from_numpy(target).to(device) for head, target in targets.items()}
    return torch.from_numpy(images).to(device), on_device


@contextmanager
def _batches(patches: Patches, first: int, device: torch.device) -> Iterator[Iterator[Batch]]:
    """Endless batches from number ``first`` on.

    For a GPU that does not make them itself they are drawn ahead by threads. On a CPU threads beside those of
    the network would only make these wait for each other, so drawing and learning take turns, each on all
    cores.
    """
    if isinstance(patches, DevicePatches):
        yield (_batch(patches, number, device) for number in itertools.count(first))
        return
    beside = device.type == "cuda"
    threads = max(1, available_cpus() - 2) if beside else available_cpus()
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Batch]] = deque()

    def draw() -> Iterator[Batch]:
        number = first
        while True:
            if beside or not waiting:
                while len(waiting) < (2 * threads + 2 if beside else threads):
                    waiting.append(pool.submit(_batch, patches, number, device))
                    number += 1
                if not beside:
                    wait(waiting)
            yield waiting.popleft().result()

    try:
        yield draw()
    finally:
        pool.shutdown(cancel_futures=True)


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of settings, such as "optimiser.steps", that two recipes' tables have different."""

    def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping | list):
            for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
                yield from flat(part, f"{name}.{key}" if name else str(key))
        else:
            yield name, value

    old, new = dict(flat(before, "")), dict(flat(now, ""))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    partial = path.with_suffix(".tmp")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, header)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(
            f"{path}: cannot be written ({error}), and what was there is kept: make room, and run the same "
            "command again"
        ) from error
    partial.replace(path)
