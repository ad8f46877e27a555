"""Slides in, result files out. What is finished is never done twice; what fails stops nothing else."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from nucfast.engine import Bundle, Engine, create_engine, load_bundle
from nucfast.errors import NucfastError, OutputError, SlideError
from nucfast.nuclei import Nuclei
from nucfast.output import FORMATS, SlideInfo, open_writer, write_overlay
from nucfast.pipeline.area import Area
from nucfast.pipeline.cluster import Cluster, for_workers
from nucfast.pipeline.config import InferConfig
from nucfast.pipeline.damage import joined
from nucfast.pipeline.decode import check_decoder
from nucfast.pipeline.grid import Region
from nucfast.pipeline.journal import Journal, Worker, finished, on_disk, put, sync_folder
from nucfast.pipeline.memory import processes_in_memory, regions_in_memory
from nucfast.pipeline.prepare import facts, fingerprint, slide_area
from nucfast.pipeline.progress import Progress
from nucfast.pipeline.results import ResultFiles
from nucfast.pipeline.seams import shares
from nucfast.pipeline.slide_run import REGION_PX, SHARING_REGION_PX, Plan, plan, run_regions
from nucfast.pipeline.stages import Stages
from nucfast.slide import Slide, SlideInput, find_slides, open_slide
from nucfast.version import VERSION

RUN_FILE = "run.json"
MANIFEST_FILE = "manifest.json"
OVERLAY_FILE = "overlay.png"
WORK_FOLDER = ".nucfast-work"

# How long to wait before looking again what others have done; twice as long each time.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 0.5

Event = Mapping[str, Any]
logger = logging.getLogger("nucfast")


@dataclass(frozen=True)
class SlideReport:
    """What became of one input.

    Attributes:
        slide: its path.
        status: "done", "skipped" (finished earlier), "partial" (this shard's regions are done, others' are
            not), "planned" (a dry run) or "failed".
        folder: where its results are.
        nuclei: how many were found.
        counts: the same by class name.
        regions: those that are run; in a dry run, that would be run now.
        analysed_mm2: their area.
        seconds: spent on it by this process.
        error: why it failed, in one line; else empty.
        warning: what to see to, in one line; else empty.
    """

    slide: str
    status: str
    folder: str
    nuclei: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    regions: int = 0
    analysed_mm2: float = 0.0
    seconds: float = 0.0
    error: str = ""
    warning: str = ""


@dataclass(frozen=True)
class RunReport:
    """What became of a run.

    Attributes:
        slides: one report per input, in the order of the inputs.
        seconds: of the whole run.
        stages: where the time went.
        engine: the engine's description.
        manifest: the file that holds all of this; None after a dry run.
    """

    slides: tuple[SlideReport, ...]
    seconds: float
    stages: Stages
    engine: str
    manifest: Path | None

    @property
    def failed(self) -> tuple[SlideReport, ...]:
        """The inputs that failed."""
        return tuple(report for report in self.slides if report.status == "failed")

    @property
    def exit_code(self) -> int:
        """What the command line returns. 0: all done; 1: some inputs failed."""
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
    it stopped. A slide that fails is reported and stops no other. Any number of processes may be started with
    the same arguments, on any machines that see the output folder: they share the work.

    Args:
        inputs: files, folders (searched recursively), glob patterns, and CSV files with the columns path and
            maybe mpp; see ``nucfast.slide.find_slides``.
        output: folder for the results, made if need be.
        on_event: called with what happens, as mappings with the key "event": "run", "slide", "region", the
            status of a slide that is finished with (see ``SlideReport``), "end". docs/outputs.md lists them.
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
    # Workers of a cluster do regions one by one.
    shared = config.dask is None and shares(engine)
    region_px = config.region_px or (SHARING_REGION_PX if shared else REGION_PX)
    config = replace(config, region_px=region_px)
    largest_px = (region_px + 2 * (bundle.halo_px + bundle.margin_px)) ** 2
    in_flight = regions_in_memory(
        config.max_memory,
        largest_px,
        most=engine.threads + 2 if engine.device == "cpu" else 2 * engine.threads + 2,
    )
    root = Path(output)
    stages = Stages()
    on_event(
        {
            "event": "run",
            "slides": len(found),
            "engine": engine.description,
            "model": bundle.name,
            "files": _names(config),
        }
    )
    with ExitStack() as stack:
        worker = None if config.dry_run else stack.enter_context(Worker(root))
        cluster = None
        if config.dask is not None and not config.dry_run:
            workers = processes_in_memory(config.max_memory, largest_px, most=engine.threads)
            cluster = stack.enter_context(Cluster(config.dask, workers=workers))
        # Made when its slide's turn comes: a job holds what is known of the slide, such as its tissue.
        jobs = (
            _Job(
                entry,
                root / entry.relative_name,
                config,
                bundle,
                engine,
                in_flight,
                worker,
                cluster,
                stages,
                on_event,
            )
            for entry in found
        )
        reports: dict[Path, SlideReport] = {}
        begun: list[_Job] = []
        stack.callback(_close, begun)
        pause = _PAUSE_SECONDS
        while len(reports) < len(found):
            # A slide that others have the rest of is looked at again before the next one begins: never more
            # of them are open than there are others.
            before, fresh = len(reports), next(jobs, None)
            if fresh is not None:
                begun.append(fresh)
            for job in list(begun):
                outcome = job.advance()
                if outcome is None:
                    continue
                begun.remove(job)
                reports[job.entry.path] = outcome
                # Written after every slide: a run that is killed leaves a manifest of what it did.
                report = RunReport(
                    tuple(reports[entry.path] for entry in found if entry.path in reports),
                    time.perf_counter() - started,
                    stages,
                    engine.description,
                    None if config.dry_run else root / _manifest_name(config.shard),
                )
                if worker is not None and report.manifest is not None:
                    worker.replace(report.manifest, _manifest(report, config, bundle))
            if fresh is not None or len(reports) > before:
                pause = _PAUSE_SECONDS
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    on_event(
        {
            "event": "end",
            "slides": len(report.slides),
            "failed": len(report.failed),
            "seconds": round(report.seconds, 3),
            "manifest": None if report.manifest is None else _text(report.manifest),
        }
    )
    return report


@dataclass
class _Job:
    """One slide of a run."""

    entry: SlideInput
    folder: Path
    config: InferConfig
    bundle: Bundle
    engine: Engine
    in_flight: int
    worker: Worker | None
    cluster: Cluster | None
    stages: Stages
    on_event: Callable[[Event], None]
    # Known after the first look at the slide.
    fingerprint: str = ""
    wanted: list[Region] = field(default_factory=list)
    area: Area | None = None
    seconds: float = 0.0
    began: float = 0.0

    def __post_init__(self) -> None:
        self._course = self._steps()

    def close(self) -> None:
        """Give up what is not finished."""
        self._course.close()

    def advance(self) -> SlideReport | None:
        """Do all of the slide that no other process is doing.

        Returns:
            What became of the slide; None while others are at work on it.
        """
        failed = SlideReport(_text(self.entry.path), "failed", _text(self.folder))
        self.began = time.perf_counter()
        report: SlideReport | None = None
        try:
            next(self._course)
        except StopIteration as end:
            report = end.value
        except NucfastError as error:
            report = replace(failed, error=_text(error))
        except Exception as error:
            # Something nobody foresaw: the trace is for us, the line for the user; the other slides go on.
            logger.debug("unexpected error", exc_info=True)
            report = replace(failed, error=_text(f"{self.entry.path}: {type(error).__name__}: {error}"))
        self.seconds += time.perf_counter() - self.began
        if report is not None:
            if report.status != "skipped":
                report = replace(report, seconds=round(self.seconds, 3))
            self.on_event({"event": report.status, **asdict(report)})
        return report

    def _steps(self) -> Generator[None, None, SlideReport]:
        """The way to a report, with a stop wherever others have to come further first."""
        while (report := (yield from self._look())) is None:
            yield
        return report

    def _look(self) -> Generator[None, None, SlideReport | None]:
        """Do all of the slide that no other process is doing; None if the slide is then not done.

        Whoever writes the results stops here for what others have still to do, with the files open.
        """
        mpp = self.config.mpp if self.config.mpp is not None else self.entry.mpp
        with open_slide(self.entry.path, mpp=mpp) as slide:
            assert self.config.region_px is not None  # it was chosen with the engine
            layout = plan(slide, self.bundle, region_px=self.config.region_px)
            first_look = not self.fingerprint
            if first_look:
                self.fingerprint = self._fingerprint(layout)
            else:
                self._check_unchanged(layout)
            done = self._finished(self.fingerprint)
            if done is not None:
                if self.worker is not None:  # whoever finished it may have been killed before this
                    shutil.rmtree(self.folder / WORK_FOLDER, ignore_errors=True)
                return done if first_look else replace(done, status="done")
            if first_look:
                with self.stages.timed("tissue"):
                    self.area = slide_area(slide, self.config)
                self.wanted = [region for region in layout.regions if self._wants(region, layout.scale)]
            work = self.folder / WORK_FOLDER / self.fingerprint[:16]
            indices = [region.index for region in self.wanted]
            regions = self.wanted if self.worker is not None else self._todo(finished(work, indices))
            report = SlideReport(
                slide=_text(self.entry.path),
                status="planned",
                folder=_text(self.folder),
                regions=len(regions),
                analysed_mm2=round(_area_px(regions) * self._mm2_per_px(layout), 4),
            )
            if self.worker is None:
                return report
            journal = Journal(work, self.worker)
            if first_look:
                journal.note(facts(self.entry, self.config, self.engine, layout))
                journal.drop_damaged(indices)
                self.on_event(
                    {
                        "event": "slide",
                        "slide": _text(self.entry.path),
                        "regions": len(self.wanted),
                        "done": len(journal.finished(indices)),
                    }
                )
            # A shard, or a process that waits for others, can seldom complete the files: it begins them when
            # all regions are there.
            begins = first_look and self.config.shard is None
            turn = journal.claim("merge") if begins else None
            try:
                with ResultFiles(
                    journal, indices, files=len(self.config.formats) + 2, stages=self.stages
                ) as files:
                    pending = self._begin_results(slide, layout, journal, turn, files)
                    while True:
                        self._run_regions(slide, layout, journal)
                        complete = len(journal.finished(indices)) == len(indices)
                        if complete or pending is None or self._marker.exists():
                            break
                        yield
                        self._check_unchanged(layout)
                    if complete and turn is None:
                        turn = journal.claim("merge")
                        pending = self._begin_results(slide, layout, journal, turn, files)
                    if not complete or pending is None or self._marker.exists():
                        if self.config.shard is None:
                            return None
                        warning = "" if complete else self._strays(journal, indices)
                        return replace(report, status="partial", warning=_text(warning))
                    self._check_unchanged(layout)
                    with self.stages.timed("finish"):
                        files.wait()
                        report = self._publish(slide, layout, pending, replace(report, status="done"))
                turn = None
            finally:
                if turn is not None:
                    journal.release("merge", turn)
        shutil.rmtree(self.folder / WORK_FOLDER, ignore_errors=True)
        return report

    def _strays(self, journal: Journal, indices: list[int]) -> str:
        """A warning if other tasks do the slide in another way, so that none will complete it.

        Raises:
            OutputError: the slide would be complete but for that.
        """
        strays, names = journal.strays()
        if not strays:
            return ""
        warning = (
            f"{self.entry.path}: {len(strays)} of its regions were done with another "
            f"{', '.join(sorted(names)) or 'setting'} and do not count here; give all tasks the same "
            "(--engine, --precision, slides copied with their dates), "
            f"or delete {journal.folder.parent} if they are of an older run"
        )
        done = journal.finished(indices)
        if strays.isdisjoint(done) and strays >= set(indices) - done:
            raise OutputError(warning)
        logger.warning("%s", warning)
        return warning

    def _run_regions(self, slide: Slide, layout: Plan, journal: Journal) -> None:
        """Run all regions that nobody else is doing."""
        done = journal.finished([region.index for region in self.wanted])
        todo = self._todo(done)
        claims: dict[int, int] = {}
        mm2_per_px = self._mm2_per_px(layout)
        progress = Progress(len(self.wanted), len(done), _area_px(todo) * mm2_per_px)

        def claim(region: Region) -> bool:
            turn = journal.claim(region.index)
            # Whoever finishes a slide removes its claims, but not before its results are there.
            if turn is None or self._marker.exists():
                return False
            claims[region.index] = turn
            return True

        def claimed() -> Iterator[Region]:
            # Each process does pairs of rows of its own, in which neighbours share what they see; what is
            # left of others' comes last. More rows at once would be written long after they are done.
            later: list[Region] = []
            assert self.config.region_px is not None
            pair_px = 2 * self.config.region_px
            for _, group in groupby(todo, lambda region: region.owned.top // pair_px):
                pair = deque(group)
                while pair and claim(pair[0]):
                    yield pair.popleft()
                later += pair
            yield from filter(claim, later)

        def finish(region: Region, nuclei: Nuclei) -> None:
            with self.stages.timed("journal"):
                journal.write(region.index, nuclei)
            del claims[region.index]

        if self.cluster is not None:
            local = self.config.dask == "local"
            settings = for_workers(self.config, self.engine, local=local)
            results = self.cluster.run_regions(self.entry, settings, self.fingerprint, claimed(), self.stages)
        else:
            results = run_regions(
                slide,
                layout,
                claimed(),
                engine=self.engine,
                batch=self.config.batch,
                decoders=self.engine.threads,
                stages=self.stages,
                finish=finish,
                in_flight=self.in_flight,
                area=self.area,
                allow_unreadable=self.config.allow_unreadable,
            )
        try:
            for region, nuclei in results:
                if self.cluster is not None:
                    finish(region, nuclei)
                facts = progress.add(len(nuclei), region.owned.area * mm2_per_px)
                self.on_event({"event": "region", "slide": _text(self.entry.path), **facts})
        except SlideError as error:
            kept = len(journal.finished([region.index for region in self.wanted]))
            raise SlideError(
                f"{error}; {kept} of {len(self.wanted)} regions are done and kept; "
                "--allow-unreadable takes what cannot be read for empty"
            ) from error
        finally:
            for index, turn in claims.items():
                journal.release(index, turn)

    def _todo(self, done: set[int]) -> list[Region]:
        """The regions that are this process's to do."""
        return [region for region in self._shard() if region.index not in done]

    def _shard(self) -> list[Region]:
        """The wanted regions that are this shard's, one after another: neighbours share what they see."""
        if self.config.shard is None:
            return self.wanted
        number, count = self.config.shard
        # Slides start at different shards, or the last would get all the small slides.
        place = (number + zlib.crc32(os.fsencode(self.entry.relative_name))) % count
        begin, end = (len(self.wanted) * at // count for at in (place, place + 1))
        return self.wanted[begin:end]

    def _wants(self, region: Region, scale: float) -> bool:
        owned = region.owned
        return self.area is None or self.area.any_in(
            owned.left * scale, owned.top * scale, owned.width * scale, owned.height * scale
        )

    def _mm2_per_px(self, layout: Plan) -> float:
        return (layout.mpp * layout.scale / 1000) ** 2

    @property
    def _marker(self) -> Path:
        return self.folder / RUN_FILE

    def _fingerprint(self, layout: Plan) -> str:
        return fingerprint(self.entry, self.config, self.engine, layout)

    def _check_unchanged(self, layout: Plan) -> None:
        if self._fingerprint(layout) != self.fingerprint:
            raise SlideError(f"{self.entry.path}: was replaced while it was read; run again")

    def _finished(self, fingerprint: str) -> SlideReport | None:
        """The report of an earlier run that did the same, if there is one."""
        earlier = self._earlier()
        if earlier is None:
            return None
        where = f"{self.entry.path}: {self.folder}"
        if earlier["fingerprint"] != fingerprint:
            raise OutputError(
                f"{where} holds results of another slide, model or setting; "
                "pass --overwrite to replace them, or another folder with -o"
            )
        again = "pass --overwrite to do the slide again, or another folder with -o"
        sizes = earlier.get("files", {})
        without = [name for name in _names(self.config) if name not in sizes]
        if without:
            raise OutputError(f"{where} was finished without {', '.join(without)}; {again}")
        changed = [name for name in _names(self.config) if _size(self.folder / name) != sizes[name]]
        if changed:
            raise OutputError(
                f"{where} was finished, but {', '.join(changed)} is missing or has changed since; {again}"
            )
        return replace(SlideReport(**earlier["report"]), status="skipped")

    def _earlier(self) -> dict[str, Any] | None:
        """The run file of an earlier run; one to be overwritten, or damaged by a power cut, is removed."""
        try:
            content: dict[str, Any] = json.loads(self._marker.read_bytes())
            # What another process with the same command has finished meanwhile is not to be done again.
            keep = not self.config.overwrite or (
                self.worker is not None and self.worker.is_newer(self._marker)
            )
            if keep and {"fingerprint", "report"} <= content.keys():
                return content
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(
                f"{self._marker}: cannot be read ({error.strerror}); name another folder with -o"
            ) from error
        except (ValueError, AttributeError):
            pass
        if self.worker is not None:
            self._marker.unlink(missing_ok=True)
        return None

    def _begin_results(
        self, slide: Slide, layout: Plan, journal: Journal, turn: int | None, files: ResultFiles
    ) -> _Pending | None:
        """Start writing the result files, unless another process does."""
        if turn is None:
            return None
        # A folder of its own: should this process be taken for dead, the next one's files are others.
        pending = _Pending(
            journal.folder / f"merge-{turn}",
            SlideInfo(_text(slide.name), *slide.dimensions, layout.mpp, slide.mpp_source, slide.bounds),
            {
                "name": self.bundle.name,
                "version": self.bundle.version,
                "licence": self.bundle.licence,
                "engine": self.engine.description,
            },
            {entry.name: 0 for entry in self.bundle.classes},
        )
        # Of the engine, the files say only what the fingerprint holds: else other threads, or another
        # machine, would make other bytes.
        model = {**pending.model, "engine": f"{self.engine.name}, {self.engine.precision}"}
        with on_disk(self.folder):
            pending.folder.mkdir(exist_ok=True)

        def write(name: str, regions: Iterator[Nuclei]) -> None:
            with open_writer(
                name,
                pending.folder / FORMATS[name],
                slide_info=pending.slide,
                classes=self.bundle.classes,
                meta={"model": model},
            ) as writer:
                for nuclei in regions:
                    writer.write(nuclei)

        files.add(pending.count)
        for name in self.config.formats:
            files.add(partial(write, name))
        if self.config.overlay:
            picture = pending.folder / OVERLAY_FILE
            files.add(lambda regions: write_overlay(picture, slide, regions, check=files.check))
        return pending

    def _publish(self, slide: Slide, layout: Plan, pending: _Pending, report: SlideReport) -> SlideReport:
        """Give the result files, which are complete, their names."""
        if pending.oversized:
            logger.warning(
                "%s: %d nuclei reach further than the largest halo and may be cut; run.json lists them",
                slide.name,
                len(pending.oversized),
            )
        warning, unreadable = "", joined(pending.unreadable)
        if unreadable:
            mm2 = sum(width * height for *_, width, height in unreadable) * (layout.mpp / 1000) ** 2
            warning = f"{mm2:.2g} mm2 that cannot be read count as empty; run.json says where"
            logger.warning("%s: %s", slide.name, warning)
        report = replace(
            report,
            warning=warning,
            nuclei=sum(pending.counts.values()),
            counts=pending.counts,
            seconds=round(self.seconds + time.perf_counter() - self.began, 3),
        )
        content = {
            "fingerprint": self.fingerprint,
            "files": {name: _size(pending.folder / name) for name in _names(self.config)},
            "report": asdict(report),
            "oversized": pending.oversized,
            "unreadable": unreadable,
            "regions": len(self.wanted),
            "settings": _plain(self.config),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "slide": asdict(pending.slide),
            "model": pending.model,
            "nucfast": VERSION,
        }
        with on_disk(self.folder):
            for name in _names(self.config):
                (pending.folder / name).replace(self.folder / name)
        # The run file last, also on the disk: with it the slide is done.
        sync_folder(self.folder)
        put(
            self._marker,
            (json.dumps(content, indent=2) + "\n").encode(),
            partial=pending.folder / RUN_FILE,
        )
        sync_folder(self.folder)
        return report


def _close(jobs: Iterable[_Job]) -> None:
    for job in jobs:
        job.close()


@dataclass
class _Pending:
    """Result files that are being written: where, and what is told of the slide, the model and the nuclei."""

    folder: Path
    slide: SlideInfo
    model: dict[str, str]
    counts: dict[str, int]
    oversized: list[int] = field(default_factory=list)
    unreadable: list[list[int]] = field(default_factory=list)

    def count(self, regions: Iterator[Nuclei]) -> None:
        """Count the nuclei of all regions."""
        for nuclei in regions:
            self.oversized += nuclei.meta["oversized"]
            self.unreadable += nuclei.meta["unreadable"]
            for name, number in nuclei.counts().items():
                self.counts[name] = self.counts.get(name, 0) + number


def _text(value: object) -> str:
    """As text that any file can hold: names of files may be no UTF-8."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _names(config: InferConfig) -> list[str]:
    """The result files of a slide, without the run file."""
    overlay = [OVERLAY_FILE] if config.overlay else []
    return [*(FORMATS[name] for name in config.formats), *overlay]


def _size(path: Path) -> int | None:
    """Bytes of a file; None if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _area_px(regions: Iterable[Region]) -> int:
    return sum(region.owned.area for region in regions)


def _manifest_name(shard: tuple[int, int] | None) -> str:
    return MANIFEST_FILE if shard is None else f"manifest-{shard[0]}-of-{shard[1]}.json"


def _plain(config: InferConfig) -> dict[str, Any]:
    """The settings as JSON can hold them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def _manifest(report: RunReport, config: InferConfig, bundle: Bundle) -> dict[str, Any]:
    return {
        "nucfast": VERSION,
        "model": {"name": bundle.name, "version": bundle.version, "licence": bundle.licence},
        "engine": report.engine,
        "settings": _plain(config),
        "seconds": round(report.seconds, 3),
        "stages": report.stages.rows(),
        "slides": [asdict(slide) for slide in report.slides],
    }
