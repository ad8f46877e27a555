"""The results of an evaluation, and the convention behind each number."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

# Twentieths: 12 / 20 is the float nearest to 0.6, which a sum of 0.05s is not.
AP_THRESHOLDS: tuple[float, ...] = tuple(twentieth / 20 for twentieth in range(10, 20))


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image; conventions as in ``Scores``. All NaN if neither map holds a nucleus.

    Attributes:
        true_nuclei: nuclei of the true map.
        pred_nuclei: nuclei of the predicted map.
        dice: foreground Dice.
        aji: Aggregated Jaccard Index.
        aji_plus: AJI over a one-to-one matching.
        pq: panoptic quality, ``dq * sq``.
        dq: detection quality, the F1 at IoU > 0.5.
        sq: segmentation quality, the mean IoU of those matches; 0 if there is none.
        ap50: TP / (TP + FP + FN) at IoU >= 0.5.
        ap: its mean over ``AP_THRESHOLDS``.
    """

    true_nuclei: int
    pred_nuclei: int
    dice: float
    aji: float
    aji_plus: float
    pq: float
    dq: float
    sq: float
    ap50: float
    ap: float


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class over all images. NaN where the class is in neither truth nor prediction.

    Attributes:
        true_nuclei: true nuclei of the class.
        pred_nuclei: predicted nuclei of the class.
        pq: panoptic quality of the class's nuclei alone, with TP, FP, FN and IoUs pooled over all images
            ("PQ+" of the CoNIC challenge): a match has IoU > 0.5 and this class on both sides.
        dq: the pooled F1 within ``pq``.
        sq: the mean IoU within ``pq``; 0 without a match.
        f1: F1 of detection and classification as in the HoVer-Net paper (F_c), pooled over all images:
            nuclei are paired by centroid as in ``Scores.f1_detection``, whatever their class, and
            F_c = 2 TP_c / (2 TP_c + 2 FP_c + 2 FN_c + FP_d + FN_d), where TP_c are pairs with this class on
            both sides, FP_c and FN_c pairs with it on the predicted or the true side only, FP_d and FN_d its
            unpaired predicted and true nuclei. NaN if the evaluation has no radius.
    """

    true_nuclei: int
    pred_nuclei: int
    pq: float
    dq: float
    sq: float
    f1: float


@dataclass(frozen=True)
class Scores:
    """Scores of a set of images.

    "Per image" means: computed for each image, then averaged, every image weighing the same. Images with
    nuclei in neither map are left out of these means (the published codes divide 0 by 0 there); images with
    nuclei in one map only count as 0. "Pooled" means: matches, misses and extras are added up over all images
    first, so that every nucleus weighs the same. A value that is undefined, such as a mean over no image, is
    NaN, in JSON null.

    Attributes:
        images: images evaluated.
        empty_images: of these, images with nuclei in neither map.
        true_nuclei: nuclei of the true maps.
        pred_nuclei: nuclei of the predicted maps.
        dice: per image; 2 |T and P| / (|T| + |P|) of the foreground pixels.
        aji: per image; Aggregated Jaccard Index (Kumar et al., IEEE TMI 36, 2017), as in HoVer-Net's code:
            each true nucleus takes the predicted one of highest IoU, which others may take too (ties: the
            larger overlap, then the smaller id); the sum of their intersections is divided by the sum of
            their unions plus the areas of true nuclei without overlap and of predicted ones nobody took.
        aji_plus: per image; AJI+ (Graham et al., Medical Image Analysis 58, 2019): the same over the
            one-to-one matching with the largest sum of IoUs.
        pq: per image; panoptic quality (Kirillov et al., CVPR 2019) with all nuclei as one class, ``dq * sq``
            of the image, matches at IoU > 0.5.
        dq: per image; detection quality TP / (TP + FP / 2 + FN / 2), the F1 at IoU > 0.5.
        sq: per image; segmentation quality, the mean IoU of the matches; 0 in an image without a match.
        f1_50: pooled; 2 TP / (2 TP + FP + FN) at IoU >= 0.5, as in StarDist's ``matching_dataset``.
        ap50: per image; TP / (TP + FP + FN) at IoU >= 0.5 ("accuracy" of StarDist, "average precision" of
            Cellpose).
        ap: per image; mean of that over IoU 0.50, 0.55, ... 0.95, the score of the Data Science Bowl 2018.
        pq_pooled: pooled; panoptic quality of all nuclei as one class.
        f1_detection: pooled; F1 of detection as in the HoVer-Net paper: nuclei are paired by centroid (mean
            of their pixels) so that the sum of distances is smallest, and a pair counts up to ``radius_px``
            (12 px at 0.25 mpp in the paper). NaN if the evaluation has no radius.
        type_accuracy: pooled; of the pairs of ``f1_detection``, the part with equal classes. Unclassified
            nuclei count as a class of their own. NaN without classes.
        per_class: scores by class name; empty without classes. An unclassified nucleus (class 0) belongs to
            none, but what overlaps or pairs with it is judged like any other.
        mpq: mean of ``per_class[...].pq`` over the classes present in truth or prediction ("mPQ+" of the
            CoNIC challenge). NaN without classes.
    """

    images: int
    empty_images: int
    true_nuclei: int
    pred_nuclei: int
    dice: float
    aji: float
    aji_plus: float
    pq: float
    dq: float
    sq: float
    f1_50: float
    ap50: float
    ap: float
    pq_pooled: float
    f1_detection: float
    type_accuracy: float
    per_class: dict[str, ClassScores]
    mpq: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and dictionaries that JSON can hold; NaN becomes None."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
