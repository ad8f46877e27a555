"""The main job: slides in, nuclei out, region by region."""

from nucfast.pipeline.config import InferConfig
from nucfast.pipeline.evaluate import evaluate_dataset
from nucfast.pipeline.in_memory import segment
from nucfast.pipeline.run import Event, RunReport, SlideReport, infer

__all__ = ["Event", "InferConfig", "RunReport", "SlideReport", "evaluate_dataset", "infer", "segment"]
