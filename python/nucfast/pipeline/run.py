"""Slides in, result files out. What is finished is never done twice; what fails stops nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nucfast.engine import Bundle, Engine, create_engine, load_bundle
from nucfast.errors import NucfastError, OutputError
from nucfast.nuclei import Nuclei
from nucfast.output import FORMATS, SlideInfo, open_writer, write_overlay
from nucfast.pipeline.config import InferConfig
from nucfast.pipeline.decode import Decoded, check_decoder
from nucfast.pipeline.grid import Region
from nucfast.pipeline.slide_run import Plan, plan, run_regions
from nucfast.pipeline.stages import Stages
from nucfast.slide import Slide, SlideInput, find_slides, open_slide, tissue_mask
from nucfast.version import VERSION

RUN_FILE = "run.json"
MANIFEST_FILE = "manifest.json"
OVERLAY_FILE = "overlay.png"
WORK_FOLDER = ".nucfast-work"

Event = Mapping[str, Any]
logger = logging.getLogger("nucfast")


@dataclass(frozen=True)
class SlideReport:
    """What became of one input.

    ``status`` is "done", "skipped" (finished earlier) or "failed", with the reason in ``error``.
    ``analysed_mm2`` is the area of the regions that were run.
    """

    slide: str
    status: str
    folder: str
    nuclei: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    analysed_mm2: float = 0.0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class RunReport:
    """What became of a run; ``exit_code`` is what the command line returns."""

    slides: tuple[SlideReport, ...]
    seconds: float
    stages: Stages
    engine: str
    manifest: Path

    @property
    def failed(self) -> tuple[SlideReport, ...]:
        """The inputs that failed."""
        return tuple(report for report in self.slides if report.status == "failed")

    @property
    def exit_code(self) -> int:
        """0: all done; 1: some inputs failed."""
        return 1 if self.failed else 0


def infer(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    **settings: Any,
) -> RunReport:
    """Outline and classify every nucleus of slides, and write the results.

    Each slide gets a folder ``output/<path of the slide below its input>/`` with the result files,
    ``overlay.png`` and, last, ``run.json``. A slide that has it is skipped; an interrupted one goes on where
    it stopped. A slide that fails is reported and stops no other.

    Args:
        inputs: files, folders (searched recursively) and glob patterns.
        output: folder for the results, made if need be.
        on_event: called with what happens, as mappings with the key "event": "run", "slide", "region",
        "done",
            "skipped", "failed". Any thread may call it.
        settings: fields of ``InferConfig``: model, device, formats, mpp, ...

    Raises:
        NucfastError: no input was found, or model, engine or a setting is wrong. Never for a bad slide.
    """
    config = InferConfig(**settings)
    for name in config.formats:
        if name not in FORMATS:
            raise NucfastError(f"format {name!r}: expected one of {', '.join(FORMATS)}")
    started = time.perf_counter()
    found = find_slides([inputs] if isinstance(inputs, str | Path) else list(inputs), exclude=[output])
    bundle = load_bundle(config.model)
    check_decoder(bundle)
    engine = create_engine(
        bundle, engine=config.engine, device=config.device, precision=config.precision, threads=config.threads
    )
    root = Path(output)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{root}: cannot make the output folder ({error.strerror}); name another with -o"
        ) from error
    on_event({"event": "run", "slides": len(found), "engine": engine.description, "model": bundle.name})
    stages = Stages()
    reports: list[SlideReport] = []
    for entry in found:
        job = _Job(entry, root / entry.relative_name, config, bundle, engine, stages, on_event)
        reports.append(job.run())
        # Written after every slide: a run that is killed leaves a manifest of what it did.
        report = RunReport(
            tuple(reports), time.perf_counter() - started, stages, engine.description, root / MANIFEST_FILE
        )
        _write_json(report.manifest, _manifest(report, config, bundle))
    return report


@dataclass(frozen=True)
class _Job:
    """One slide of a run."""

    entry: SlideInput
    folder: Path
    config: InferConfig
    bundle: Bundle
    engine: Engine
    stages: Stages
    on_event: Callable[[Event], None]

    def run(self) -> SlideReport:
        """Do the slide, or say why not."""
        failed = SlideReport(str(self.entry.path), "failed", str(self.folder))
        try:
            report = self._run()
        except NucfastError as error:
            report = replace(failed, error=str(error))
        except Exception as error:
            # Something nobody foresaw: the trace is for us, the line for the user; the other slides go on.
            logger.debug("unexpected error", exc_info=True)
            report = replace(failed, error=f"{self.entry.path}: {type(error).__name__}: {error}")
        self.on_event({"event": report.status, **asdict(report)})
        return report

    def _run(self) -> SlideReport:
        started = time.perf_counter()
        mpp = self.config.mpp if self.config.mpp is not None else self.entry.mpp
        with open_slide(self.entry.path, mpp=mpp) as slide:
            layout = plan(slide, self.bundle, region_px=self.config.region_px)
            fingerprint = self._fingerprint(layout)
            done = self._finished(fingerprint)
            if done is not None:
                return done
            work = self._work_folder(fingerprint)
            with self.stages.timed("tissue"):
                wanted = self._with_tissue(slide, layout)
            parts = {region.index: work / f"{region.index:06d}.arrow" for region in wanted}
            todo = [region for region in wanted if not parts[region.index].exists()]
            self.on_event(
                {
                    "event": "slide",
                    "slide": str(self.entry.path),
                    "regions": len(wanted),
                    "done": len(wanted) - len(todo),
                }
            )

            def finish(region: Region, decoded: Decoded) -> None:
                with self.stages.timed("write"):
                    _write_part(parts[region.index], decoded)

            for region, decoded in run_regions(
                slide,
                layout,
                todo,
                engine=self.engine,
                batch=self.config.batch,
                decoders=self.engine.threads,
                stages=self.stages,
                finish=finish,
            ):
                owned = region.owned
                self.on_event(
                    {
                        "event": "region",
                        "slide": str(self.entry.path),
                        "nuclei": len(decoded.nuclei),
                        "mm2": owned.height * owned.width * (layout.mpp * layout.scale / 1000) ** 2,
                    }
                )
            report = self._write_results(slide, layout, list(parts.values()), wanted, started)
        shutil.rmtree(work)
        return report

    def _with_tissue(self, slide: Slide, layout: Plan) -> list[Region]:
        if not self.config.tissue_only:
            return list(layout.regions)
        mask = tissue_mask(slide)
        s = layout.scale
        return [
            region
            for region in layout.regions
            if mask.any_in(
                region.owned.left * s, region.owned.top * s, region.owned.width * s, region.owned.height * s
            )
        ]

    def _fingerprint(self, layout: Plan) -> str:
        """Stands for all that decides the rows: slide, resolution, model, arithmetic, grid, version."""
        stat = self.entry.path.stat()
        facts = [
            VERSION,
            repr(replace(self.bundle, path=None)),
            self.engine.name,
            self.engine.precision,
            stat.st_size,
            stat.st_mtime_ns,
            layout.mpp,
            layout.scale,
            self.config.region_px,
            self.config.tissue_only,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _finished(self, fingerprint: str) -> SlideReport | None:
        """The report of an earlier run that did the same, if there is one."""
        marker = self.folder / RUN_FILE
        if self.config.overwrite or not marker.exists():
            return None
        try:
            earlier = json.loads(marker.read_text())
            same = earlier["fingerprint"] == fingerprint and set(self.config.formats) <= set(
                earlier["formats"]
            )
            report = SlideReport(**earlier["report"])
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise OutputError(
                f"{self.entry.path}: {self.folder} holds results of another slide, model or setting; "
                "pass --overwrite to replace them, or another folder with -o"
            )
        return replace(report, status="skipped")

    def _work_folder(self, fingerprint: str) -> Path:
        """The folder of finished regions; emptied if they were made in another way."""
        if self.config.overwrite:
            (self.folder / RUN_FILE).unlink(missing_ok=True)
        work = self.folder / WORK_FOLDER
        stamp = work / "fingerprint"
        try:
            if work.exists() and (not stamp.exists() or stamp.read_text() != fingerprint):
                shutil.rmtree(work)
            work.mkdir(parents=True, exist_ok=True)
            stamp.write_text(fingerprint)
        except OSError as error:
            raise OutputError(
                f"{work}: cannot be written ({error.strerror}); free space or name another -o"
            ) from error
        return work

    def _write_results(
        self, slide: Slide, layout: Plan, parts: Sequence[Path], wanted: Sequence[Region], started: float
    ) -> SlideReport:
        info = SlideInfo(slide.name, *slide.dimensions, layout.mpp, slide.mpp_source, slide.bounds)
        model = {
            "name": self.bundle.name,
            "version": self.bundle.version,
            "licence": self.bundle.licence,
            "engine": self.engine.description,
        }
        counts = {entry.name: 0 for entry in self.bundle.classes}
        oversized = 0
        paths = {name: self.folder / FORMATS[name] for name in self.config.formats}
        with self.stages.timed("write"):
            for name, path in paths.items():
                with open_writer(
                    name, path, slide_info=info, classes=self.bundle.classes, meta={"model": model}
                ) as writer:
                    for nuclei in _read_parts(parts):
                        writer.write(nuclei)
            for nuclei in _read_parts(parts):
                oversized += int(nuclei.meta["oversized"])
                for name, number in nuclei.counts().items():
                    counts[name] = counts.get(name, 0) + number
            if self.config.overlay:
                write_overlay(self.folder / OVERLAY_FILE, slide, _read_parts(parts))
        um = layout.mpp * layout.scale
        report = SlideReport(
            slide=str(self.entry.path),
            status="done",
            folder=str(self.folder),
            nuclei=sum(counts.values()),
            counts=counts,
            analysed_mm2=round(sum(r.owned.height * r.owned.width for r in wanted) * um**2 / 1e6, 4),
            seconds=round(time.perf_counter() - started, 3),
        )
        if oversized:
            logger.warning(
                "%s: %d nuclei reach past the halo of %d px and may be cut",
                slide.name,
                oversized,
                self.bundle.halo_px,
            )
        _write_json(
            self.folder / RUN_FILE,
            {
                "fingerprint": self._fingerprint(layout),
                "formats": list(self.config.formats),
                "report": asdict(report),
                "oversized": oversized,
                "regions": len(wanted),
                "settings": asdict(self.config),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "slide": asdict(info),
                "model": model,
                "nucfast": VERSION,
            },
        )
        return report


def _write_part(path: Path, decoded: Decoded) -> None:
    """One region's rows, as an Arrow file that appears whole or not at all."""
    import pyarrow as pa

    table = replace(decoded.nuclei, meta={"oversized": decoded.oversized}).to_arrow()
    partial = path.with_suffix(".tmp")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    partial.replace(path)


def _read_parts(paths: Sequence[Path]) -> Iterator[Nuclei]:
    import pyarrow as pa

    for path in paths:
        with pa.OSFile(str(path), "rb") as source:
            yield Nuclei.from_arrow(pa.ipc.open_file(source).read_all())


def _manifest(report: RunReport, config: InferConfig, bundle: Bundle) -> dict[str, Any]:
    return {
        "nucfast": VERSION,
        "model": {"name": bundle.name, "version": bundle.version, "licence": bundle.licence},
        "engine": report.engine,
        "settings": asdict(config),
        "seconds": round(report.seconds, 3),
        "stages": report.stages.rows(),
        "slides": [asdict(slide) for slide in report.slides],
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
