"""Scores of predicted label maps against true ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nucfast.metrics.classes import Types, as_int32, types_of
from nucfast.metrics.scores import AP_THRESHOLDS, ClassScores, ImageScores, Scores
from nucfast.ops.overlap import Overlaps, instance_sums, match_points, overlaps

LabelMap: TypeAlias = NDArray[np.integer[Any]]

_PER_IMAGE = ("dice", "aji", "aji_plus", "pq", "dq", "sq", "ap50", "ap")


def evaluate(
    true: LabelMap | Sequence[LabelMap],
    pred: LabelMap | Sequence[LabelMap],
    *,
    true_types: Types | Sequence[Types] | None = None,
    pred_types: Types | Sequence[Types] | None = None,
    classes: Mapping[int, str] | None = None,
    radius_px: float | Sequence[float] | None = 12.0,
) -> Scores:
    """Score predicted nuclei against true ones.

    Args:
        true: a label map (H, W) of any integer type, 0 = background, ids with gaps allowed; or a list of
            them, one per image.
        pred: the same, with the shapes of ``true``.
        true_types: classes of the true nuclei, per image one of: a mapping from id to class, with every id; a
            one-dimensional array of integers indexed by id; an (H, W) array of integers with the class of
            each pixel, where the majority of a nucleus's classified pixels decides. 0 = unclassified. A list
            of these if ``true`` is a list.
        pred_types: the same for ``pred``; both or none are given.
        classes: names of the classes by id. None: every class found, named by its id ("1", "2").
        radius_px: largest distance of centroids that counts as detected, in pixels, one for all images or one
            per image: 3 um, so 12 at 0.25 mpp and 6 at 0.5 mpp. None: no detection scores.

    Returns:
        ``Scores``, where the convention of each is described.

    Raises:
        TypeError: a map is not of integers, or only one of ``true`` and ``pred`` is a list.
        ValueError: lengths or shapes differ, there is no image, an id is negative or above 2^31 - 1, a
            nucleus has no entry in its types, or a class is not in ``classes``.
    """
    if isinstance(true, np.ndarray) != isinstance(pred, np.ndarray):
        raise TypeError("pred: expected a label map if true is one, and a list if true is a list")
    single = isinstance(true, np.ndarray)
    truths, preds = _listed(true, single, "true"), _listed(pred, single, "pred")
    count = len(truths)
    if count == 0:
        raise ValueError("true: expected at least one label map, got an empty list")
    true_classes = [None] * count if true_types is None else _listed(true_types, single, "true_types")
    pred_classes = [None] * count if pred_types is None else _listed(pred_types, single, "pred_types")
    radii: list[float | None] = list(radius_px) if isinstance(radius_px, Sequence) else [radius_px] * count
    for name, values in (
        ("pred", preds),
        ("true_types", true_classes),
        ("pred_types", pred_classes),
        ("radius_px", radii),
    ):
        if len(values) != count:
            raise ValueError(f"{name}: expected one entry per image ({count}), got {len(values)}")
    evaluator = Evaluator(classes=classes)
    for i in range(count):
        evaluator.add(
            truths[i],
            preds[i],
            true_types=true_classes[i],
            pred_types=pred_classes[i],
            radius_px=radii[i],
        )
    return evaluator.scores()


@dataclass
class _Tally:
    """Pooled counts of matches, extras and misses, and the sum of the matches' IoUs."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0

    def add(self, tp: int, true: int, pred: int, iou: float) -> None:
        self.tp += tp
        self.fp += pred - tp
        self.fn += true - tp
        self.iou += iou

    @property
    def dq(self) -> float:
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def sq(self) -> float:
        if self.tp + self.fp + self.fn == 0:
            return math.nan
        return self.iou / self.tp if self.tp else 0.0


@dataclass
class _ClassTally:
    """Pooled counts of one class; ``wrong`` and ``unpaired`` are the errors in the paper's F_c."""

    panoptic: _Tally
    right: int = 0
    wrong: int = 0
    unpaired: int = 0


class Evaluator:
    """Collects images one by one, so that a data set need not be in memory at once.

    ``evaluate`` is a loop over ``add``, then ``scores``.
    """

    def __init__(self, *, classes: Mapping[int, str] | None = None) -> None:
        """Start without images.

        Args:
            classes: names of the classes by id; None: every class found, named by its id.

        Raises:
            ValueError: an id is below 1 or a name occurs twice.
        """
        self._classes = None if classes is None else dict(classes)
        if self._classes is not None:
            if any(number < 1 for number in self._classes):
                raise ValueError(f"classes: expected ids >= 1, got {min(self._classes)}")
            if len(set(self._classes.values())) < len(self._classes):
                raise ValueError("classes: expected different names, got the same name twice")
        self._images: list[ImageScores] = []
        self._panoptic = _Tally()
        self._at_50 = _Tally()
        self._detection = _Tally()
        self._agreeing = 0
        self._radius_missing = False
        self._typed = False
        self._per_class: dict[int, _ClassTally] = {}

    def add(
        self,
        true: LabelMap,
        pred: LabelMap,
        *,
        true_types: Types | None = None,
        pred_types: Types | None = None,
        radius_px: float | None = 12.0,
    ) -> ImageScores:
        """Add one image and return its own scores; arguments and errors as in ``evaluate``.

        Classes are given for all images or for none. Unless every image has a ``radius_px``, the detection
        scores of the whole are NaN.
        """
        if (true_types is None) != (pred_types is None):
            raise ValueError("true_types, pred_types: expected both or none, got one")
        typed = true_types is not None
        if self._images and typed != self._typed:
            raise ValueError("true_types: expected classes for all images or for none")
        if radius_px is not None and not radius_px >= 0.0:
            raise ValueError(f"radius_px: expected at least 0, got {radius_px}")
        truth, guess = as_int32(true, "true"), as_int32(pred, "pred")
        found = overlaps(truth, guess)
        classes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        if true_types is not None and pred_types is not None:
            classes = (
                types_of(found.true_ids, truth, true_types, "true_types"),
                types_of(found.pred_ids, guess, pred_types, "pred_types"),
            )
            self._expect_known(classes[0], "true_types")
            self._expect_known(classes[1], "pred_types")

        # Nothing above has changed this object: a bad argument leaves it as it was.
        self._typed = typed
        image = self._add_segmentation(found)
        self._images.append(image)
        if classes is not None:
            self._add_classes(found, *classes)
        if radius_px is None:
            self._radius_missing = True
        else:
            self._add_detection(found, classes, radius_px)
        return image

    def scores(self) -> Scores:
        """Return the scores of the images so far.

        Raises:
            ValueError: there is none yet.
        """
        if not self._images:
            raise ValueError("scores: expected at least one image, got none")
        filled = [image for image in self._images if image.true_nuclei + image.pred_nuclei]
        means = {
            name: math.fsum(getattr(image, name) for image in filled) / len(filled) if filled else math.nan
            for name in _PER_IMAGE
        }
        per_class = self._class_scores()
        present = [scores.pq for scores in per_class.values() if not math.isnan(scores.pq)]
        no_detection = self._radius_missing
        return Scores(
            images=len(self._images),
            empty_images=len(self._images) - len(filled),
            true_nuclei=sum(image.true_nuclei for image in self._images),
            pred_nuclei=sum(image.pred_nuclei for image in self._images),
            **means,
            f1_50=self._at_50.dq,
            pq_pooled=self._panoptic.dq * self._panoptic.sq,
            f1_detection=math.nan if no_detection else self._detection.dq,
            type_accuracy=(
                math.nan if no_detection or not self._typed else _ratio(self._agreeing, self._detection.tp)
            ),
            per_class=per_class,
            mpq=math.fsum(present) / len(present) if present else math.nan,
        )

    def _expect_known(self, types: NDArray[np.int64], name: str) -> None:
        if self._classes is None:
            return
        unknown = set(types.tolist()) - {0, *self._classes}
        if unknown:
            raise ValueError(f"{name}: expected classes {sorted(self._classes)}, got {min(unknown)}")

    def _add_segmentation(self, found: Overlaps) -> ImageScores:
        true, pred = len(found.true_ids), len(found.pred_ids)
        sums = instance_sums(found, thresholds=AP_THRESHOLDS)
        panoptic = _Tally()
        panoptic.add(sums.good, true, pred, sums.good_iou)
        self._panoptic.add(sums.good, true, pred, sums.good_iou)
        self._at_50.add(sums.matched[0], true, pred, sums.matched_iou)
        precision = [_ratio(tp, true + pred - tp) for tp in sums.matched]
        return ImageScores(
            true_nuclei=true,
            pred_nuclei=pred,
            dice=_ratio(2 * int(found.count.sum()), int(found.true_areas.sum() + found.pred_areas.sum())),
            aji=_ratio(sums.best_shared, sums.best_union),
            aji_plus=_ratio(sums.one_to_one_shared, sums.one_to_one_union),
            pq=panoptic.dq * panoptic.sq,
            dq=panoptic.dq,
            sq=panoptic.sq,
            ap50=precision[0],
            ap=math.fsum(precision) / len(precision),
        )

    def _class_tally(self, number: int) -> _ClassTally:
        return self._per_class.setdefault(number, _ClassTally(_Tally()))

    def _add_classes(
        self, found: Overlaps, true_types: NDArray[np.int64], pred_types: NDArray[np.int64]
    ) -> None:
        good = found.iou > 0.5
        iou = found.iou[good]
        true_side = true_types[np.searchsorted(found.true_ids, found.true_id[good])]
        pred_side = pred_types[np.searchsorted(found.pred_ids, found.pred_id[good])]
        for number in _present(true_types, pred_types):
            matched = iou[(true_side == number) & (pred_side == number)]
            self._class_tally(number).panoptic.add(
                len(matched),
                _count(true_types == number),
                _count(pred_types == number),
                math.fsum(matched.tolist()),
            )

    def _add_detection(
        self,
        found: Overlaps,
        classes: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
        radius_px: float,
    ) -> None:
        partner = match_points(found.true_centroids, found.pred_centroids, radius_px=radius_px)
        paired = partner >= 0
        pairs = _count(paired)
        self._detection.add(pairs, len(found.true_ids), len(found.pred_ids), 0.0)
        if classes is None:
            return
        true_types, pred_types = classes
        true_side, pred_side = true_types[paired], pred_types[partner[paired]]
        self._agreeing += _count(true_side == pred_side)
        for number in _present(true_types, pred_types):
            tally = self._class_tally(number)
            true_hits, pred_hits = true_side == number, pred_side == number
            tally.right += _count(true_hits & pred_hits)
            tally.wrong += _count(true_hits != pred_hits)
            members = _count(true_types == number) + _count(pred_types == number)
            tally.unpaired += members - _count(true_hits) - _count(pred_hits)

    def _class_scores(self) -> dict[str, ClassScores]:
        if not self._typed:
            return {}
        names = self._classes or {number: str(number) for number in sorted(self._per_class)}
        result = {}
        for number, name in names.items():
            tally = self._per_class.get(number, _ClassTally(_Tally()))
            panoptic = tally.panoptic
            f1 = _ratio(2 * tally.right, 2 * tally.right + 2 * tally.wrong + tally.unpaired)
            result[name] = ClassScores(
                true_nuclei=panoptic.tp + panoptic.fn,
                pred_nuclei=panoptic.tp + panoptic.fp,
                pq=panoptic.dq * panoptic.sq,
                dq=panoptic.dq,
                sq=panoptic.sq,
                f1=math.nan if self._radius_missing else f1,
            )
        return result


def _listed(values: Any, single: bool, name: str) -> list[Any]:
    if single:
        return [values]
    if isinstance(values, np.ndarray | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a list with an entry per image, got {type(values).__name__}")
    return list(values)


def _present(true_types: NDArray[np.int64], pred_types: NDArray[np.int64]) -> list[int]:
    numbers: list[int] = np.union1d(true_types, pred_types).tolist()
    return [number for number in numbers if number]


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan
