"""What is known of a slide before its first region is run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from nucfast.engine import Engine
from nucfast.errors import SlideError
from nucfast.pipeline.area import Area, digest, read_shape, read_tissue_mask
from nucfast.pipeline.config import InferConfig
from nucfast.pipeline.slide_run import Plan
from nucfast.slide import Slide, SlideInput, files_of, tissue_mask
from nucfast.version import VERSION


def facts(entry: SlideInput, config: InferConfig, engine: Engine, layout: Plan) -> dict[str, Any]:
    """All that decides the rows, by names that a message can quote.

    Raises:
        SlideError: the slide, which was opened before, is gone.
    """
    try:
        stats = [part.stat() for part in files_of(entry.path)]
    except OSError as error:
        raise SlideError(f"{entry.path}: cannot be read ({error.strerror}); check the path") from error
    return {
        "version of nucfast": VERSION,
        "model": repr(replace(engine.bundle, path=None)),
        "engine": engine.name,
        "precision": engine.precision,
        "size of the slide": [stat.st_size for stat in stats],
        "date of the slide": [stat.st_mtime_ns for stat in stats],
        "mpp": layout.mpp,
        "scale": layout.scale,
        "region-px": config.region_px,
        "tissue-only": config.tissue_only,
        "roi": digest(config.roi),
        "exclude": digest(config.exclude),
        "tissue-mask": digest(config.tissue_mask),
    }


def fingerprint(entry: SlideInput, config: InferConfig, engine: Engine, layout: Plan) -> str:
    """Stands for all that decides the rows: slide, resolution, model, arithmetic, grid, area, version."""
    return hashlib.sha256(json.dumps(facts(entry, config, engine, layout)).encode()).hexdigest()


def slide_area(slide: Slide, config: InferConfig) -> Area | None:
    """Where nuclei are wanted; None: everywhere."""
    tissue = None
    if config.tissue_mask is not None:
        tissue = read_tissue_mask(config.tissue_mask, slide)
    elif config.tissue_only:
        tissue = tissue_mask(slide)
    if tissue is None and config.roi is None and config.exclude is None:
        return None
    return Area(
        tissue,
        None if config.roi is None else read_shape(config.roi, slide),
        None if config.exclude is None else read_shape(config.exclude, slide),
    )
