"""From what a user names, files, folders, patterns and lists, to the slides of a run."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nucfast.errors import SlideError
from nucfast.slide.mpp import EXPECTED, is_credible, number

# What programs leave beside slides. Any other file in a folder is an input, so that a slide with a strange
# suffix, or a text file there by mistake, is reported and not passed over.
_SIDECAR_SUFFIXES = frozenset(
    {
        *(".xml", ".json", ".geojson", ".gz", ".csv", ".parquet", ".qpdata", ".qpproj", ".qptree"),
        *(".md5", ".sha1", ".sha256", ".db", ".ini", ".lock", ".log"),
    }
)


class SlideInput(NamedTuple):
    """One slide of a run.

    Attributes:
        path: the file. It need not be readable: opening it reports what is wrong.
        relative_name: its path below the folder the user named, with ``/``, or the file's name. Unique in a
            run: where several would have the same, it is the path below the folder that holds all of those.
        mpp: micrometres per pixel, if a list states it.
    """

    path: Path
    relative_name: str
    mpp: float | None


def find_slides(
    inputs: Sequence[str | os.PathLike[str]], *, exclude: Iterable[str | os.PathLike[str]] = ()
) -> list[SlideInput]:
    """Collect the slides that ``inputs`` stand for, in their order.

    A folder gives its files by name, and then those of its folders.

    Args:
        inputs: each one of
            - a file. A missing one is kept, so that one bad name does not stop a batch;
            - a folder, searched with all below it. Every file counts but hidden ones, known sidecars, results
              of earlier runs and the parts of a slide made of several files (MIRAX folders, Hamamatsu VMS
              images, DICOM series). A folder that cannot be read, or is empty beside other inputs, is kept
              as a missing file is;
            - a pattern with ``*``, ``?`` or ``[``, ``**`` for any depth;
            - a CSV file with a column ``path``, relative to the CSV file's folder, and perhaps ``mpp``.
        exclude: folders of results, which are not searched.

    Returns:
        Each file once, under its first name, with the mpp that any list states.

    Raises:
        SlideError: all inputs are empty folders, a pattern matches nothing, a CSV file is malformed, lists
            state different mpp of one slide, or two different slides would have the same ``relative_name``.
    """
    excluded = {Path(folder).resolve() for folder in exclude}
    found: dict[Path, SlideInput] = {}
    series: set[tuple[Path, bytes]] = set()
    empty: list[Path] = []
    for name in inputs:
        slides = list(_expand(Path(name), excluded))
        if not slides:
            empty.append(Path(name))
            slides = [_unusable(Path(name))]
        for slide in slides:
            key = _real(slide.path)
            uid = _dicom_series(slide.path)
            first = found.get(key)
            if first is not None and slide.mpp not in (None, first.mpp):
                if first.mpp is not None:
                    raise SlideError(
                        f"{slide.path}: named with mpp {first.mpp:g} and with {slide.mpp:g}; name it once"
                    )
                found[key] = first._replace(mpp=slide.mpp)
            if first is not None or (uid is not None and (key.parent, uid) in series):
                continue
            if uid is not None:
                series.add((key.parent, uid))
            found[key] = slide
    if empty and len(empty) == len(inputs):
        raise SlideError(f"{empty[0]}: no slide in this folder; name the folder or the file that holds one")
    slides = _with_unique_names(list(found.values()))
    for slide in slides:
        own = any(_real(slide.path) == folder / slide.relative_name for folder in excluded)
        if own and slide.path.exists():
            raise SlideError(f"{slide.path}: lies where its results would go; choose another folder with -o")
    return slides


def _with_unique_names(slides: list[SlideInput]) -> list[SlideInput]:
    """The slides, of which those of equal names are named below the folder that holds them all."""
    counts = Counter(slide.relative_name for slide in slides)
    paths = [_real(slide.path.parent) / slide.path.name for slide in slides]
    clashing = [counts[slide.relative_name] > 1 for slide in slides]
    if not any(clashing):
        return slides
    common = os.path.commonpath(
        [path.parent for path, clashes in zip(paths, clashing, strict=True) if clashes]
    )
    named = [
        slide._replace(relative_name=path.relative_to(common).as_posix()) if clashes else slide
        for slide, path, clashes in zip(slides, paths, clashing, strict=True)
    ]
    by_name: dict[str, Path] = {}
    for slide in named:
        other = by_name.setdefault(slide.relative_name, slide.path)
        if other != slide.path:
            raise SlideError(
                f"{slide.path}: would share the output {slide.relative_name} with {other}; "
                "name the folder above both"
            )
    return named


def files_of(path: Path) -> list[Path]:
    """The files that a slide is made of: itself first, then its parts by name."""
    uid = _dicom_series(path)
    if uid is not None:
        parts = [other for other in path.parent.iterdir() if _dicom_series(other) == uid]
    else:
        parts = [path.parent / name for name in _parts(path.parent, [path.name])]
        parts += [inner for part in parts if part.is_dir() for inner in part.iterdir()]
    return [path, *sorted(part for part in parts if part != path and part.is_file())]


def _expand(path: Path, excluded: set[Path]) -> Iterator[SlideInput]:
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except OSError:  # it lies in a folder that is closed to us, which opening it says
        is_folder, is_file, exists = False, False, True
    if is_folder:
        yield from _from_folder(path, excluded)
    elif path.suffix.lower() == ".csv" and is_file:
        yield from _from_csv(path)
    elif not exists and glob.has_magic(str(path)):
        yield from _from_pattern(path, excluded)
    else:
        yield SlideInput(path, path.name, None)


def _from_folder(folder: Path, excluded: set[Path]) -> Iterator[SlideInput]:
    visited: set[Path] = set()
    closed: list[OSError] = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=closed.append):
        here = Path(root)
        if _holds_results(here):
            folders.clear()
            continue
        # Links are followed, as slides are often linked into a folder, so a loop must be cut.
        visited.add(here.resolve())
        parts = _parts(here, files)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in parts
            and (here / name).resolve() not in visited | excluded
        )
        for name in sorted(files):
            path = here / name
            if name in parts or name.startswith(".") or path.suffix.lower() in _SIDECAR_SUFFIXES:
                continue
            yield SlideInput(path, path.relative_to(folder).as_posix(), None)
    for error in closed:
        yield _unusable(Path(error.filename or folder))


def _holds_results(folder: Path) -> bool:
    """Whether a slide's results lie in a folder: pictures of them are no slides."""
    try:
        run = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(run, dict) and {"nucfast", "fingerprint"} <= run.keys()


def _unusable(folder: Path) -> SlideInput:
    """A folder that stands for itself in a run, where opening it says what is wrong with it."""
    return SlideInput(folder, _real(folder).name, None)


def _real(path: Path) -> Path:
    """``path`` without links; unlike its ``resolve``, it takes links in a circle."""
    return Path(os.path.realpath(path))


def _parts(folder: Path, files: Iterable[str]) -> set[str]:
    """Names in ``folder`` that belong to a slide of several files and are none themselves."""
    parts = set()
    for name in files:
        suffix = Path(name).suffix.lower()
        if suffix == ".mrxs":
            parts.add(Path(name).stem)
        elif suffix in (".vms", ".vmu"):
            # An INI file whose values are the names of the images and of the macro.
            path = folder / name
            try:
                text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            except OSError:
                continue
            parts.update(line.partition("=")[2].strip() for line in text.splitlines())
    return parts - {""}


def _from_pattern(pattern: Path, excluded: set[Path]) -> Iterator[SlideInput]:
    matches = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 - absolute ones too
    # The fixed part of the pattern is the folder that names are relative to.
    fixed = []
    for part in pattern.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    base = Path(*fixed)
    # What the pattern itself names is wanted, even where it lies in the output's folder.
    excluded = excluded.difference([_real(base), *_real(base).parents])
    files = [
        path
        for path in matches
        if not (path.is_dir() or excluded.intersection(_real(path).parents) or _holds_results(path.parent))
    ]
    if not files:
        raise SlideError(
            f"{pattern}: no file matches; check the pattern, or quote it so that the shell leaves it alone"
        )
    for path in files:
        yield SlideInput(path, path.relative_to(base).as_posix(), None)


def _from_csv(table: Path) -> Iterator[SlideInput]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "path" not in columns:
                raise SlideError(
                    f"{table}: expected a column 'path', and perhaps 'mpp', "
                    f"got {', '.join(columns) or 'nothing'}; add a header line"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SlideError(
            f"{table}: cannot be read as CSV ({error}); save it as UTF-8 CSV with a column 'path'"
        ) from error
    if not rows:
        raise SlideError(f"{table}: no row below the header; add one for each slide")
    earlier: dict[Path, tuple[int, float | None]] = {}
    for line, row in enumerate(rows, start=2):
        name, text = (row["path"] or "").strip(), (row.get("mpp") or "").strip()
        mpp = number(text)
        if not name:
            raise SlideError(f"{table}: row {line} has no path; fill it in or delete the row")
        if text and not is_credible(mpp):
            raise SlideError(f"{table}: row {line}: mpp: {EXPECTED}, got {text!r}; correct or clear it")
        path = table.parent / name
        first = earlier.setdefault(_real(path), (line, mpp))
        if first[1] != mpp:
            raise SlideError(
                f"{table}: rows {first[0]} and {line} name {name} with different mpp; delete one of them"
            )
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        yield SlideInput(path, Path(name).as_posix() if inside else path.name, mpp)


def _dicom_series(path: Path) -> bytes | None:
    """SeriesInstanceUID of a DICOM file: the levels of one slide are files of one series, side by side.

    The tag (0020,000E), its type UI and a 16-bit length are looked for in the head of the file, as explicit
    little endian stores them, which is the only form whole-slide images come in.
    """
    if path.suffix.lower() not in (".dcm", ".dicom"):
        return None
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(65536)
    except OSError:
        return None
    at = head.find(b"\x20\x00\x0e\x00UI")
    if head[128:132] != b"DICM" or at < 0:
        return None
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + length].rstrip(b"\0 ")
