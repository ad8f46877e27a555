"""What is finished of a slide, and who is doing what: files only, so any number of processes may share it.

A finished region is one file that appears by a rename and ends in its own checksum; there is no list of them
that could be cut short. A claim is a file that only one process can have created. Nothing is ever locked, and
no clock is compared with another machine's, so all of it holds on network file systems.
"""

from __future__ import annotations

import json
import os
import platform
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nucfast.errors import OutputError
from nucfast.nuclei import Nuclei

WORKERS_FOLDER = ".nucfast-workers"

# A worker elsewhere whose sign of life has not changed for this long is taken for dead. Should it only have
# been asleep, a region is done twice, with the same result.
BEAT_SECONDS = 5.0
DEAD_SECONDS = 60.0

_FACTS_FILE = "facts.json"

_TRIES = 20

# Regions that this process has just finished and keeps for those who read them next.
_RECENT = 4

_TRAILER = struct.Struct("<8sQI")
_MAGIC = b"nucpart1"


class Worker:
    """This process's sign of life in an output folder, and its eye on those of others.

    Use it in a ``with`` statement. The sign is a file whose time is renewed every few seconds; it goes at the
    end, and with it all claims that were not fulfilled.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / WORKERS_FOLDER
        self.token = uuid.uuid4().hex
        self._sign = self.folder / self.token
        self._place = {"place": _place(), "pid": os.getpid(), "started": _started(os.getpid())}
        self._seen: dict[str, tuple[int, float]] = {}
        self._began = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="nucfast-alive")

    def __enter__(self) -> Self:
        with on_disk(self.folder):
            for left in reversed(range(_TRIES)):
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    partial = self._sign.with_suffix(".tmp")
                    partial.write_text(json.dumps(self._place))
                    partial.replace(self._sign)
                    self._began = self._sign.stat().st_mtime_ns
                    break
                except FileNotFoundError:  # another process has just tidied up
                    if not left:
                        raise
        for other in self.folder.iterdir():
            if not self.alive(other.stem):
                other.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sign.unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:
            return  # others are still at work

    def alive(self, token: str) -> bool:
        """Whether the owner of a claim may still be at work."""
        if token == self.token:
            return True
        sign = self.folder / token
        try:
            owner = json.loads(sign.read_text()) if token else {}
            beat = sign.stat().st_mtime_ns if token else 0
        except (OSError, ValueError):
            return False  # it ended, and removed its sign
        if owner.get("place") == self._place["place"] and self._place["started"]:
            return bool(_started(owner["pid"]) == owner["started"])
        return self._changed(token, beat, DEAD_SECONDS)

    def is_newer(self, file: Path) -> bool:
        """Whether a file in the output folder was written since this process began, by the folder's clock."""
        return file.stat().st_mtime_ns >= self._began

    def writing(self, claim: Path) -> bool:
        """Whether a claim without a name in it may still be written by whoever made it."""
        return self._changed(str(claim), 0, BEAT_SECONDS)

    def replace(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a JSON file that appears whole."""
        data = (json.dumps(content, indent=2) + "\n").encode()
        put(path, data, partial=self.folder / f"{self.token}.tmp")

    def _changed(self, what: str, value: int, seconds: float) -> bool:
        """Whether ``value`` has changed within ``seconds`` of watching."""
        now = time.monotonic()
        before, since = self._seen.get(what, (None, now))
        if before != value:
            since = now
        self._seen[what] = (value, since)
        return now - since < seconds

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                os.utime(self._sign)
            except OSError:
                return  # the folder was removed; others will take over


class Journal:
    """The finished regions of one slide, done in one way, in the folder ``work``."""

    def __init__(self, work: Path, worker: Worker) -> None:
        self.folder = work
        self._worker = worker
        self._news = threading.Condition()
        self._recent: dict[int, Nuclei] = {}
        with on_disk(work):
            work.mkdir(parents=True, exist_ok=True)

    def finished(self, indices: Sequence[int]) -> set[int]:
        """Which of the regions are finished."""
        return finished(self.folder, indices)

    def drop_damaged(self, indices: Sequence[int]) -> None:
        """Forget regions whose file a power cut or a bad disk has damaged: they are done again."""
        for index in self.finished(indices):
            try:
                self.read(index)
            except OutputError:
                self._part(index).unlink(missing_ok=True)
                for claim in self.folder.glob(f"{index:06d}.claim-*"):
                    claim.unlink(missing_ok=True)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Put on record how the regions are done, for the messages of others."""
        if not (self.folder / _FACTS_FILE).exists():
            with suppress(OutputError):  # another process has just finished, and removed the folder
                self._worker.replace(self.folder / _FACTS_FILE, facts)

    def strays(self) -> tuple[set[int], set[str]]:
        """The slide's regions that were done in other ways, and the names of the facts that differ."""
        parts = [path for path in self.folder.parent.glob("*/*.part") if path.parent != self.folder]
        own, names = _facts(self.folder), set()
        for folder in {path.parent for path in parts}:
            other = _facts(folder)
            names |= {name for name in own.keys() & other.keys() if own[name] != other[name]}
        return {int(path.stem) for path in parts}, names

    def claim(self, name: int | str) -> int | None:
        """Become the one who does a region, or another piece of work; None if it is another's or done.

        Returns:
            How often the work was claimed before by processes that then died.
        """
        stem = f"{name:06d}" if isinstance(name, int) else name
        with on_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            turn = 0
            while turn < 1000:
                path = self.folder / f"{stem}.claim-{turn}"
                try:
                    # Exclusive creation is atomic on network file systems too.
                    with path.open("x") as file:
                        file.write(self._worker.token)
                except FileExistsError:
                    # Whoever made a later claim has seen that the owners of those before it are dead.
                    last = max((int(p.suffix[7:]) for p in self.folder.glob(f"{stem}.claim-*")), default=0)
                    if last > turn:
                        turn = last
                        continue
                    owner = path.read_text() if path.exists() else ""
                    if self._worker.alive(owner) if owner else self._worker.writing(path):
                        return None
                    turn += 1
                    continue
                return None if isinstance(name, int) and self._part(name).exists() else turn
        raise OutputError(f"{self.folder}: {stem} was claimed too often; delete this folder and run again")

    def release(self, name: int | str, turn: int) -> None:
        """Give back a claim that cannot be fulfilled, so that others need not wait for it."""
        stem = f"{name:06d}" if isinstance(name, int) else name
        (self.folder / f"{stem}.claim-{turn}").unlink(missing_ok=True)

    def write(self, index: int, nuclei: Nuclei) -> None:
        """Put a region on record: whole or not at all, and for good."""
        path = self._part(index)
        put(path, pack(nuclei), partial=path.with_name(f"{path.name}.{self._worker.token[:8]}.tmp"))
        with self._news:
            self._recent[index] = nuclei
            if len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]
            self._news.notify_all()

    def wait(self, index: int, seconds: float) -> bool:
        """Wait until a region is finished, but not for longer; whether it is.

        Regions that other processes finish are noticed only when the time is over.
        """
        with self._news:
            return self._part(index).exists() or (self._news.wait(seconds) and self._part(index).exists())

    def wake(self) -> None:
        """End the waiting in all threads, so that they look again."""
        with self._news:
            self._news.notify_all()

    def read(self, index: int) -> Nuclei:
        """The nuclei of a finished region.

        Raises:
            OutputError: its file is damaged or not there.
        """
        with self._news:
            if index in self._recent:
                return self._recent[index]
        path = self._part(index)
        with on_disk(path):
            data = path.read_bytes()
        return unpack(data, str(path))

    def _part(self, index: int) -> Path:
        return self.folder / _part_name(index)


def finished(work: Path, indices: Sequence[int]) -> set[int]:
    """Which of the regions are finished in the folder of a journal, which need not be there."""
    with on_disk(work):
        names = {entry.name for entry in os.scandir(work)} if work.exists() else set()
    return {index for index in indices if _part_name(index) in names}


def _part_name(index: int) -> str:
    return f"{index:06d}.part"


def _facts(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / _FACTS_FILE).read_bytes())
        return content
    except (OSError, ValueError):
        return {}


def pack(nuclei: Nuclei) -> bytes:
    """A region's nuclei as one Arrow file with a checksum behind it."""
    import pyarrow as pa

    table = nuclei.to_arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    body = memoryview(sink.getvalue())
    return b"".join((body, _TRAILER.pack(_MAGIC, len(body), zlib.crc32(body))))


def unpack(data: bytes, name: str) -> Nuclei:
    """What ``pack`` was given.

    Raises:
        OutputError: the data are not whole.
    """
    import pyarrow as pa

    body = memoryview(data)[: -_TRAILER.size]
    if len(data) < _TRAILER.size or _TRAILER.unpack(data[-_TRAILER.size :]) != (
        _MAGIC,
        len(body),
        zlib.crc32(body),
    ):
        raise OutputError(f"{name}: damaged; delete it and run again")
    return Nuclei.from_arrow(pa.ipc.open_file(pa.py_buffer(body)).read_all())


def put(path: Path, data: bytes, *, partial: Path) -> None:
    """Write a file that appears whole, by way of ``partial``, and that no power cut leaves empty."""
    with on_disk(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """See to it that the names in a folder outlast a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one of this project that names ``path``."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free space or name another -o, and run again"
        ) from error


def _place() -> str:
    """Names the set of processes in which a process id means something: host, boot and pid namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{platform.node()} {boot.read_text().strip()} {namespace.readlink()}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str:
    """When a process of this place started, "" if there is none; tells it from a later one with its id."""
    try:
        # proc(5): field 22, counted after the command, which may hold anything.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    except (OSError, IndexError, ValueError):
        return ""
