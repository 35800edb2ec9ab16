"""Put a VerSe data set into a folder: generated, or copied from a tree or its zip archives on disk.

Every file ends at `DATA_DIR/dataset-<...>/rawdata|derivatives/sub-<...>/<name>`, however deep the source
nests it, under a temporary name until it is whole. A rerun keeps the files that are there already. A
source that downloads is one more entry of `SOURCES`.
"""

from __future__ import annotations

import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from utils.files import written_whole
from utils.settings import DataSettings, worker_count
from utils.verse.cases import (
    SPLITS,
    Case,
    CaseFile,
    case_files,
    index_cases,
    parse_case_file,
    subjects_in_several_splits,
    visible_files,
)
from utils.verse.phantom import write_phantom_data_set

#: A source puts files into `data_dir` and gives a line for everything that was bad.
Source = Callable[[DataSettings], list[str]]

_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def get_data(settings: DataSettings, *, sources: Mapping[str, Source] | None = None) -> int:
    """Put a data set on disk and say what is there.

    Parameters
    ----------
    settings : DataSettings
        Source and destination.
    sources : mapping of str to Source, optional
        Sources by name beside those of `SOURCES`.

    Returns
    -------
    int
        Exit status: 2 if the settings ask for nothing that can be done, 1 if something was bad (unless
        `skip_bad`) or nothing could be read, else 0. Incomplete series are a warning.
    """
    known = {**SOURCES, **(sources or {})}
    wrong = wrong_settings(settings, known)
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    try:
        bad = known.get(settings.source, from_disk)(settings)
        for line in bad:
            print(line, file=sys.stderr)
        cases = index_cases(settings.data_dir)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("A process was killed (out of memory? rerun with --workers 1).", file=sys.stderr)
        return 1
    for line in warnings_about(cases):
        print(line, file=sys.stderr)
    print("\n".join(series_per_split(cases)))
    return 1 if bad and not settings.skip_bad else 0


def wrong_settings(settings: DataSettings, known: Iterable[str]) -> str:
    """Say what is wrong with a command line, "" if nothing is. A path need not exist to be right."""
    names = sorted(known)
    is_path = Path(settings.source).exists() or len(Path(settings.source).parts) > 1
    if settings.source not in names and not is_path and not Path(settings.source).suffix:
        return f"--source: expected {', '.join(names)} or a path, received {settings.source!r}."
    has_pair = settings.ct is not None and settings.mask is not None
    if settings.source == "pairs" and not has_pair:
        return "--source pairs: expected both --ct and --mask."
    if settings.source != "pairs" and (settings.ct or settings.mask):
        return f"--ct and --mask: expected with --source pairs only, received --source {settings.source}."
    if min(settings.phantoms) < 0 or sum(settings.phantoms) == 0:
        return f"--phantoms: expected numbers from 0 up, not all 0, received {settings.phantoms}."
    return "" if settings.workers >= 0 else f"--workers: expected 0 or more, received {settings.workers}."


def generated(settings: DataSettings) -> list[str]:
    """Write generated series: source "phantom"."""
    workers = worker_count(settings.workers)
    write_phantom_data_set(settings.data_dir, settings.phantoms, seed=settings.seed, workers=workers)
    return []


def from_disk(settings: DataSettings) -> list[str]:
    """Copy a VerSe tree, with every zip archive in it, or extract one archive.

    Returns
    -------
    list of str
        A line for every archive, or member of one, that could not be read.

    Raises
    ------
    ValueError
        If there is no such path, nothing of VerSe in it, or two files that differ for one place.
    """
    source = Path(settings.source)
    if source.is_file() and source.suffix.lower() == ".zip":
        return extract_archive(source, settings.data_dir)
    if not source.is_dir():
        found = "a file of another kind" if source.exists() else "nothing there"
        raise ValueError(f"{source}: expected a folder or a zip archive, found {found}.")
    archives = [path for path in visible_files(source) if path.suffix.lower() == ".zip"]
    files = list(case_files(source))
    if not archives and not files:
        raise ValueError(
            f"{source}: expected VerSe files (sub-*_ct.nii.gz, ...) or zip archives, found none."
        )
    if files:
        index_cases(source)  # Refuses files that contradict each other before any is copied.
    for file in tqdm(files, desc="copy", unit="file", disable=not files):
        size = file.path.stat().st_size
        _put(partial(file.path.open, "rb"), place_of(file, settings.data_dir), size=size)
    return [line for archive in archives for line in extract_archive(archive, settings.data_dir)]


def extract_archive(archive: Path, data_dir: Path) -> list[str]:
    """Extract the VerSe files of a zip archive, member by member.

    An archive with a member that would leave the folder (an absolute path, "..", a link) is refused
    whole. Where no folder inside names the data set, the archive's own name does.

    Parameters
    ----------
    archive : Path
        Zip archive.
    data_dir : Path
        Folder that receives the files.

    Returns
    -------
    list of str
        A line for everything that could not be read.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            unsafe = [member.filename for member in members if not is_safe(member)]
            if unsafe:
                return [f"{archive}: expected members inside the archive's own tree, found {unsafe[0]!r}."]
            return _extract_members(opened, archive, data_dir)
    except _ARCHIVE_ERRORS as error:
        return [f"{archive}: expected a whole zip archive, found one that cannot be read ({error})."]


def is_safe(member: zipfile.ZipInfo) -> bool:
    """Whether a member's name stays below the folder it is extracted to and is no link."""
    name = PurePosixPath(member.filename)
    leaves = name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename
    return not leaves and not stat.S_ISLNK(member.external_attr >> 16)


def place_of(file: CaseFile, data_dir: Path) -> Path:
    """Give where a file belongs in the layout of VerSe; without a data set's name, right below `data_dir`."""
    folder = "rawdata" if file.role == "ct" else "derivatives"
    return data_dir / file.dataset / folder / file.subject / file.path.name


def series_per_split(cases: list[Case]) -> list[str]:
    """Say in a line a split how many series there are and how many of them have CT and mask."""
    names = [name for name in (*SPLITS, "") if any(case.split == name for case in cases)]
    lines = []
    for name in names:
        complete = [case.complete for case in cases if case.split == name]
        lines.append(f"{name or 'no split'}: {len(complete)} series, {sum(complete)} with CT and mask")
    return lines


def warnings_about(cases: list[Case]) -> list[str]:
    """Name the incomplete series, and the patients that stand in several splits."""
    incomplete = [
        f"Warning: {case.key} ({case.split or 'no split'}) is incomplete: no {', no '.join(case.missing())}."
        for case in cases
        if not case.complete
    ]
    shared = [
        f"Warning: {subject} is in several splits: {', '.join(name or 'no split' for name in splits)}."
        for subject, splits in subjects_in_several_splits(cases).items()
    ]
    return incomplete + shared


def _extract_members(opened: zipfile.ZipFile, archive: Path, data_dir: Path) -> list[str]:
    wanted = [(member, _member_file(member, archive)) for member in opened.infolist()]
    wanted = [(member, file) for member, file in wanted if file is not None]
    if not wanted:
        return [f"{archive}: expected VerSe files (sub-*_ct.nii.gz, ...), found none."]
    bad, checksums = [], {}
    for member, file in tqdm(wanted, desc=archive.name, unit="file"):
        place = place_of(file, data_dir)
        if checksums.setdefault(place, member.CRC) != member.CRC:
            bad.append(f"{archive}: expected one {place.name}, found another at {member.filename}.")
            continue
        try:
            _put(partial(opened.open, member), place, size=member.file_size)
        except _ARCHIVE_ERRORS as error:
            bad.append(f"{archive}: expected a whole {member.filename}, found a broken one ({error}).")
    return bad


def _member_file(member: zipfile.ZipInfo, archive: Path) -> CaseFile | None:
    path = Path(*PurePosixPath(member.filename).parts)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return None if hidden or member.is_dir() else parse_case_file(path, (archive.stem, *path.parts[:-1]))


def _put(open_source: Callable[[], AbstractContextManager[IO[bytes]]], place: Path, *, size: int) -> None:
    """Copy a stream to its place; a file of the same size there is one that an earlier run finished."""
    if place.is_file() and place.stat().st_size == size:
        return
    with open_source() as source, written_whole(place) as temporary, temporary.open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)


#: The sources by name; whatever is none of them is a path (`from_disk`).
SOURCES: dict[str, Source] = {"phantom": generated}
