"""What a run can be told, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nucfast.errors import NucfastError
from nucfast.slide.mpp import check_option


@dataclass(frozen=True)
class InferConfig:
    """Settings of a run.

    Attributes:
        model: name of a shipped bundle, or path of one.
        device: "auto", "cpu", "cuda", "cuda:0", "cuda:0,1".
        engine: "auto", "openvino", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx",
            "pytorch".
        precision: "auto", "fp32", "bf16", "fp16", "int8".
        threads: processor threads; None: as many as this process may use.
        formats: result files to write, names of ``nucfast.output.FORMATS``.
        overlay: also write a picture of the slide with the outlines.
        mpp: um per level-0 pixel, for all slides, instead of what they say.
        region_px: side of a region in model pixels: the unit of work, memory and resumption; None: 2048 where
            neighbours can share what both see (int8 on a CPU), else 4096.
        batch: tiles that go through the network at once, on each GPU if there are several.
        tissue_only: leave out regions without tissue.
        max_memory: what the run may take, "2G"; None: a quarter of what there is. It sets how many regions
            are in memory at once, and is no hard limit. If given, it also sets how many workers
            ``dask="local"`` starts; those of another scheduler have limits of their own.
        roi: polygons (GeoJSON or WKT) outside of which nothing is analysed, for all slides.
        exclude: polygons inside of which nothing is analysed.
        tissue_mask: image of the whole slide, black where nothing is analysed, instead of finding the tissue.
        allow_unreadable: take what cannot be read of a slide for empty; without it, the regions that need it
            are not done, and the slide fails.
        shard: (i, n): do only the i-th of n parts of the work, i from 1.
        dask: address of a Dask scheduler whose workers do the regions, or "local".
        dry_run: say what would be done, and do nothing.
        overwrite: do finished slides again.
    """

    model: str = "he-fast"
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    formats: tuple[str, ...] = ("geoparquet", "geojson.gz")
    overlay: bool = True
    mpp: float | None = None
    region_px: int | None = None
    batch: int = 1
    tissue_only: bool = True
    max_memory: str | None = None
    roi: Path | None = None
    exclude: Path | None = None
    tissue_mask: Path | None = None
    allow_unreadable: bool = False
    shard: tuple[int, int] | None = None
    dask: str | None = None
    dry_run: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.region_px is not None and self.region_px < 64:
            raise NucfastError(f"region_px: expected at least 64, got {self.region_px}")
        if self.batch < 1:
            raise NucfastError(f"batch: expected at least 1, got {self.batch}")
        if self.threads is not None and self.threads < 1:
            raise NucfastError(f"threads: expected at least 1, got {self.threads}")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise NucfastError(f"shard: expected i/n with i from 1 to n, got {self.shard[0]}/{self.shard[1]}")
        if self.shard is not None and self.overwrite:
            # A task that starts, or is requeued, after a slide is done cannot tell that from an old result.
            raise NucfastError(
                "overwrite: not with shard, whose tasks start at different times; "
                "delete the old results, or name another -o"
            )
        check_option(self.mpp)
