"""What all writers share: the slide they speak of, checks, and files that appear whole or not at all."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from nucfast.errors import OutputError
from nucfast.nuclei import FEATURES, Nuclei, NucleusClass
from nucfast.version import VERSION


@dataclass(frozen=True)
class SlideInfo:
    """What every output records of the slide.

    Attributes:
        name: the slide's name, such as its file name; it enters the identifiers of GeoJSON features.
        width: level-0 pixels.
        height: level-0 pixels.
        mpp: micrometres per level-0 pixel.
        mpp_source: where the mpp came from.
        bounds: x, y, width, height of the scanned part in level-0 pixels; QuPath shows only that.
    """

    name: str
    width: int
    height: int
    mpp: float
    mpp_source: str = "unknown"
    bounds: tuple[int, int, int, int] | None = None

    @classmethod
    def of_nuclei(cls, nuclei: Nuclei) -> SlideInfo:
        """What ``meta["slide"]`` of a table says; every writer puts it there."""
        known = {entry.name for entry in fields(cls)}
        facts = {key: value for key, value in nuclei.meta.get("slide", {}).items() if key in known}
        if facts.get("bounds") is not None:
            facts["bounds"] = tuple(facts["bounds"])
        return cls(**{"name": "", "width": 0, "height": 0, **facts, "mpp": nuclei.mpp})

    @property
    def origin(self) -> tuple[int, int]:
        """x, y of the scanned part: (0, 0) unless the slide has bounds."""
        return self.bounds[:2] if self.bounds else (0, 0)


class AtomicFile:
    """A file that gets its name only when it is complete.

    The data go to ``<name>.tmp`` beside it; ``commit()``, or the end of a ``with`` block, renames that.
    After ``discard()``, or an exception in the block, nothing is left and an older file stays as it was.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            self.file: BinaryIO = self._temporary.open("wb")
        except OSError as error:
            raise self.failure(error) from error

    def commit(self) -> None:
        """Rename to the final name; does nothing if committed or discarded before."""
        if self.file.closed:
            return
        try:
            self.file.flush()
            os.fsync(self.file.fileno())  # else a power cut may leave the new name on an empty file
            self.file.close()
            self._temporary.replace(self.path)
        except OSError as error:
            self.file.close()
            self._temporary.unlink(missing_ok=True)
            raise self.failure(error) from error

    def discard(self) -> None:
        """Remove what was written; does nothing if committed or discarded before."""
        if not self.file.closed:
            self.file.close()
            self._temporary.unlink(missing_ok=True)

    def failure(self, error: OSError) -> OutputError:
        """The error of this project for one of the system."""
        return OutputError(f"{self.path}: cannot be written: {error.strerror or error}")

    def __enter__(self) -> BinaryIO:
        return self.file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()
        else:
            self.discard()
        if isinstance(error, OSError):
            raise self.failure(error) from error


class Writer(ABC):
    """Writes one file, which appears at ``close()``. Made by ``open_writer``.

    Attributes:
        path: the file.
        rows: nuclei written so far.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        slide_info: SlideInfo,
        classes: Sequence[NucleusClass],
        features: Sequence[str] = FEATURES,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.rows = 0
        self._slide_info = slide_info
        self._empty = Nuclei.empty(
            classes=classes, mpp=slide_info.mpp, features=features, meta=_describe(slide_info, meta)
        )
        self._target = AtomicFile(path)
        self._file = self._target.file
        self._guard(self._begin)

    def write(self, nuclei: Nuclei) -> None:
        """Append a batch, in the order of its rows.

        Raises:
            ValueError: its classes, mpp or features are not those of the file, or the writer is closed.
            OutputError: the file cannot be written; nothing of it is left.
        """
        if self._file.closed:
            raise ValueError(f"{self.path}: expected an open writer, got a closed one")
        empty = self._empty
        nuclei.check_like(classes=empty.classes, mpp=empty.mpp, features=list(empty.features))
        if len(nuclei):
            self._guard(lambda: self._append(nuclei))
            self.rows += len(nuclei)

    def close(self) -> None:
        """Complete the file and give it its name; does nothing if closed or aborted before.

        Raises:
            OutputError: the file cannot be written; nothing of it is left.
        """
        if not self._file.closed:
            self._guard(self._end)
            self._target.commit()

    def abort(self) -> None:
        """Drop what was written; an older file stays as it was. Does nothing if closed or aborted before."""
        if not self._file.closed:
            self._release()
            self._target.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def _begin(self) -> None:
        """Write what comes before the first row."""

    @abstractmethod
    def _append(self, nuclei: Nuclei) -> None:
        """Write, or keep for a later write, a batch that is not empty."""

    @abstractmethod
    def _end(self) -> None:
        """Write what was kept and what comes after the last row; leave the file open."""

    def _release(self) -> None:  # noqa: B027
        """Close what writes to the file and would otherwise complain once the file is gone."""

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            self.abort()
            raise self._target.failure(error) from error
        except BaseException:
            self.abort()
            raise


def _describe(slide_info: SlideInfo, meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """``meta`` with the slide and the version of nucfast: what goes into the files and back into ``meta``."""
    return {**(meta or {}), "slide": asdict(slide_info), "nucfast_version": VERSION}
