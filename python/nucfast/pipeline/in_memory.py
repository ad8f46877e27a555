"""One image in, its nuclei out, nothing written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Bundle, Engine, create_engine, load_bundle
from nucfast.nuclei import Nuclei
from nucfast.pipeline.config import InferConfig
from nucfast.pipeline.decode import check_decoder
from nucfast.pipeline.slide_run import REGION_PX, plan, run_regions
from nucfast.pipeline.stages import Stages
from nucfast.slide import Slide, open_slide


def segment(
    image: NDArray[np.uint8] | str | Path | Slide,
    *,
    mpp: float | None = None,
    model: str | Path | Bundle = InferConfig.model,
    device: str = InferConfig.device,
    engine: Engine | None = None,
    region_px: int = REGION_PX,
) -> Nuclei:
    """Outline and classify every nucleus of an image that fits into memory.

    Args:
        image: (H, W, 3) uint8 RGB, or a slide, or the path of one.
        mpp: um per pixel of the image. None: an array is at the model's mpp, a file at what it says.
        model: name or path of a bundle, or a loaded one.
        device: "auto", "cpu", "cuda", "cuda:0".
        engine: use this one, made by ``nucfast.engine.create_engine``, instead of making one; loading the
            network takes longer than a small image does.
        region_px: side of the regions, in model pixels; smaller ones need less memory.

    Returns:
        The nuclei, in the image's pixels.

    Raises:
        TypeError, ValueError: the array is not (H, W, 3) uint8.
        NucfastError: the file, the model or the device cannot be used.
    """
    if engine is not None:
        bundle = engine.bundle
    else:
        bundle = model if isinstance(model, Bundle) else load_bundle(model)
        engine = create_engine(bundle, device=device)
    check_decoder(bundle)
    slide = image if isinstance(image, Slide) else open_slide(image, mpp=mpp)
    try:
        layout = plan(slide, bundle, region_px=region_px)
        results = run_regions(
            slide,
            layout,
            list(layout.regions),
            engine=engine,
            batch=1,
            decoders=engine.threads,
            stages=Stages(),
            finish=lambda region, nuclei: None,
        )
        parts = [nuclei for _, nuclei in results]
        oversized = [number for part in parts for number in part.meta["oversized"]]
        return replace(Nuclei.concat(parts), meta={"oversized": oversized} if oversized else {})
    finally:
        if slide is not image:
            slide.close()
