"""Regions as tasks on a Dask cluster: workers compute, the coordinator keeps the journal and the results.

Workers need nucfast, the slides under the same paths, and the model; they write nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from typing import Any

from nucfast.engine import Engine, create_engine, load_bundle
from nucfast.errors import NucfastError, SlideError, require
from nucfast.nuclei import Nuclei
from nucfast.pipeline.config import InferConfig
from nucfast.pipeline.grid import Region
from nucfast.pipeline.journal import pack, unpack
from nucfast.pipeline.prepare import fingerprint, slide_area
from nucfast.pipeline.slide_run import RegionTask, plan
from nucfast.pipeline.stages import Stages
from nucfast.slide import SlideInput, open_slide

# A region that fails, or whose worker is lost, is tried again elsewhere this often.
_RETRIES = 3

_loading = threading.Lock()


class Cluster:
    """A connection to a Dask scheduler; use it in a ``with`` statement.

    Args:
        address: of the scheduler, "tcp://host:8786"; "local" starts one with a worker per thread.
        workers: of a local cluster.

    Raises:
        MissingExtraError: dask.distributed is not installed.
        NucfastError: nobody answers at the address.
    """

    def __init__(self, address: str, *, workers: int) -> None:
        distributed = require("distributed", extra="dask", purpose="--dask")
        self._distributed = distributed
        # On import it asks for all that its parts have to say.
        logging.getLogger("distributed").setLevel(logging.WARNING)
        scheduler: Any = address
        try:
            with ExitStack() as opened:
                if address == "local":
                    scheduler = opened.enter_context(
                        distributed.LocalCluster(
                            n_workers=workers, threads_per_worker=1, dashboard_address=None
                        )
                    )
                self.client: Any = opened.enter_context(distributed.Client(scheduler, timeout=30))
                self._opened = opened.pop_all()
        except (OSError, ValueError) as error:
            raise NucfastError(
                f"dask {address}: no scheduler answers ({error}); check the address"
            ) from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def run_regions(
        self, entry: SlideInput, config: InferConfig, expected: str, todo: Iterable[Region], stages: Stages
    ) -> Iterator[tuple[Region, Nuclei]]:
        """Run regions on the workers and yield them as they are done.

        Twice as many as there are threads are with the workers at any time.

        Args:
            entry: the slide.
            config: settings, with engine, device and precision as the workers shall use them.
            expected: the slide's fingerprint here; a worker that finds another one refuses.
            todo: the regions; the next one is asked for when there is room for it.
            stages: the workers' timings are added here.

        Raises:
            SlideError: at the end, if a part of the slide could not be read.
            NucfastError: the workers are gone, or are of another version.
        """
        running: dict[Any, Region] = {}
        upcoming = iter(todo)
        unreadable: SlideError | None = None
        finished = self._distributed.as_completed()
        try:
            while True:
                room = 2 * max(1, sum(self.client.nthreads().values())) - len(running)
                for _, region in zip(range(room), upcoming, strict=False):
                    future = self.client.submit(
                        do_region, entry, config, expected, region.index, retries=_RETRIES, pure=False
                    )
                    running[future] = region
                    finished.add(future)
                if not running:
                    break
                future = next(finished)
                region = running.pop(future)
                try:
                    data, seconds, mpx = future.result()
                except SlideError as error:
                    unreadable = unreadable or error
                    continue
                except self._distributed.KilledWorker as error:
                    raise NucfastError(
                        f"{entry.path}: region {region.index} was lost with {_RETRIES} workers; "
                        "give them more memory, or lower --region-px"
                    ) from error
                stages.add(seconds, mpx)
                yield region, unpack(data, f"region {region.index}")
        finally:
            self.client.cancel(list(running))
        if unreadable is not None:
            raise unreadable


def do_region(
    entry: SlideInput, config: InferConfig, expected: str, index: int
) -> tuple[bytes, dict[str, float], dict[str, float]]:
    """One region, on a worker: its nuclei as ``pack`` makes them, seconds and megapixels of each stage."""
    with _loading:  # a worker may have several threads
        task = replace(_task(entry, config, expected), stages=Stages())
    region = task.layout.regions[index]
    sight = task.read(region)
    nuclei = task.decode(region, sight, task.predict(region, sight))
    return pack(nuclei), task.stages.seconds, task.stages.mpx


@lru_cache(maxsize=4)
def _task(entry: SlideInput, config: InferConfig, expected: str) -> RegionTask:
    engine = _engine(config.model, config.engine, config.device, config.precision, config.threads)
    slide = open_slide(entry.path, mpp=config.mpp if config.mpp is not None else entry.mpp)
    assert config.region_px is not None  # it was chosen with the engine
    layout = plan(slide, engine.bundle, region_px=config.region_px)
    if fingerprint(entry, config, engine, layout) != expected:
        raise NucfastError(
            f"{entry.path}: slide, model or version differ between the workers and here; "
            "install the same nucfast"
        )
    return RegionTask(
        slide, layout, engine, config.batch, Stages(), slide_area(slide, config), config.allow_unreadable
    )


@lru_cache(maxsize=1)
def _engine(model: str, engine: str, device: str, precision: str, threads: int | None) -> Engine:
    return create_engine(
        load_bundle(model), engine=engine, device=device, precision=precision, threads=threads
    )


def for_workers(config: InferConfig, engine: Engine, *, local: bool) -> InferConfig:
    """The settings with which workers compute what ``engine`` would."""
    return replace(
        config,
        engine=engine.name,
        device=engine.device,
        precision=engine.precision,
        threads=1 if local else config.threads,
    )
