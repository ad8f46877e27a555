"""Bundles and the engines that run them; importing this imports no inference library."""

from nucfast.engine.base import Engine, Maps
from nucfast.engine.bundle import (
    Bundle,
    ClassScheme,
    DecoderSpec,
    OutputSpec,
    Variant,
    load_bundle,
    shipped_names,
    write_bundle,
)
from nucfast.engine.create import ENGINES, PRECISIONS, create_engine
from nucfast.engine.onnxruntime_engine import onnxruntime_clash
from nucfast.engine.openvino_engine import import_openvino
from nucfast.engine.parity import Difference, parity
from nucfast.engine.speed import Speed, measure_speed
from nucfast.engine.threads import available_cpus

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Bundle",
    "ClassScheme",
    "DecoderSpec",
    "Difference",
    "Engine",
    "Maps",
    "OutputSpec",
    "Speed",
    "Variant",
    "available_cpus",
    "create_engine",
    "import_openvino",
    "load_bundle",
    "measure_speed",
    "onnxruntime_clash",
    "parity",
    "shipped_names",
    "write_bundle",
]
