"""Zip archives of VerSe: which members are VerSe files, and their way to the layout of VerSe."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from utils.download.selection import with_year
from utils.files import written_whole
from utils.verse.cases import CaseFile, parse_case_file

#: What a zip archive or a member that is broken raises.
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
#: A VerSe file in an archive, and what its name says.
Member = tuple[zipfile.ZipInfo, CaseFile]


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
            members = case_members(opened, (archive.stem,), name=str(archive))
            put = partial(_put_member, opened, data_dir)
            bar = tqdm(members, desc=archive.name, unit="file")
            return extract_members(bar, put, name=str(archive))[0]
    except ValueError as error:
        return [str(error)]
    except ARCHIVE_ERRORS as error:
        return [f"{archive}: expected a whole zip archive, found one that cannot be read ({error})."]


def case_members(
    opened: zipfile.ZipFile, folders: Sequence[str], *, name: str, year: str = ""
) -> list[Member]:
    """Find the VerSe files of an archive.

    Parameters
    ----------
    opened : ZipFile
        The archive.
    folders : sequence of str
        Names that may say which data set it is where no folder inside does, outermost first.
    name : str
        What messages call the archive.
    year : str
        Last digits of the year that plain names of splits ("training") belong to.

    Returns
    -------
    list of Member
        The files, in the archive's order.

    Raises
    ------
    ValueError
        If a member would leave the folder, or there is no VerSe file.
    """
    unsafe = [member.filename for member in opened.infolist() if not is_safe(member)]
    if unsafe:
        raise ValueError(f"{name}: expected members inside the archive's own tree, found {unsafe[0]!r}.")
    read = [(member, _member_file(member, folders, year)) for member in opened.infolist()]
    members = [(member, file) for member, file in read if file is not None]
    if not members:
        raise ValueError(f"{name}: expected VerSe files (sub-*_ct.nii.gz, ...), found none.")
    return members


def extract_members(
    members: Sequence[Member], put: Callable[[zipfile.ZipInfo, CaseFile], None], *, name: str
) -> tuple[list[str], bool]:
    """Put members to their places.

    Gives a line for every one that is broken or differs from one already put, and whether any is broken.
    """
    bad: list[str] = []
    is_broken = False
    checksums: dict[Path, int] = {}
    for member, file in members:
        place = place_of(file, Path())
        if checksums.setdefault(place, member.CRC) != member.CRC:
            bad.append(f"{name}: expected one {place.name}, found another at {member.filename}.")
            continue
        try:
            put(member, file)
        except ARCHIVE_ERRORS as error:
            bad.append(f"{name}: expected a whole {member.filename}, found a broken one ({error}).")
            is_broken = True
    return bad, is_broken


def is_safe(member: zipfile.ZipInfo) -> bool:
    """Whether a member's name stays below the folder it is extracted to and is no link."""
    name = PurePosixPath(member.filename)
    leaves = name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename
    return not leaves and not stat.S_ISLNK(member.external_attr >> 16)


def place_of(file: CaseFile, data_dir: Path) -> Path:
    """Give where a file belongs in the layout of VerSe; without a data set's name, right below `data_dir`."""
    folder = "rawdata" if file.role == "ct" else "derivatives"
    return data_dir / file.dataset / folder / file.subject / file.path.name


def put_stream(
    open_source: Callable[[], AbstractContextManager[IO[bytes]]], place: Path, *, size: int
) -> None:
    """Copy a stream to its place; a file of the same size there is one that an earlier run finished."""
    if place.is_file() and place.stat().st_size == size:
        return
    with open_source() as source, written_whole(place) as temporary, temporary.open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)


def _put_member(opened: zipfile.ZipFile, data_dir: Path, member: zipfile.ZipInfo, file: CaseFile) -> None:
    put_stream(partial(opened.open, member), place_of(file, data_dir), size=member.file_size)


def _member_file(member: zipfile.ZipInfo, folders: Sequence[str], year: str) -> CaseFile | None:
    path = Path(*PurePosixPath(member.filename).parts)
    if member.is_dir() or any(part.startswith((".", "__MACOSX")) for part in path.parts):
        return None
    return parse_case_file(path, with_year((*folders, *path.parts[:-1]), year))
