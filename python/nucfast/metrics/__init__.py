"""Instance segmentation scores of nuclei, each by its published convention."""

from nucfast.metrics.classes import vote_types
from nucfast.metrics.evaluation import Evaluator, evaluate
from nucfast.metrics.scores import AP_THRESHOLDS, ClassScores, ImageScores, Scores

__all__ = [
    "AP_THRESHOLDS",
    "ClassScores",
    "Evaluator",
    "ImageScores",
    "Scores",
    "evaluate",
    "vote_types",
]
