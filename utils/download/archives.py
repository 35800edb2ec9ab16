"""Zip archives of VerSe: which members are VerSe files, and their way to the layout of VerSe."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from utils.download.selection import with_year
from utils.verse.cases import CaseFile, parse_case_file

#: What a zip archive or a member that is broken raises.
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
#: An archive may unpack to so many times its own size, and 1 GB: uncompressed CTs shrink to a third.
UNPACKED_RATIO = 20
SPARE_BYTES = 10**9
#: A VerSe file in an archive, and what its name says.
Member = tuple[zipfile.ZipInfo, CaseFile]


def check_unpacked(
    name: str, packed_bytes: int, member_bytes: Sequence[int], *, gigabytes: float | None = None
) -> None:
    """Refuse an archive that unpacks to far more than it holds: images of VerSe are compressed already.

    What a member announces is all that is ever read of it.

    Parameters
    ----------
    name : str
        What messages call the archive.
    packed_bytes : int
        Its size.
    member_bytes : sequence of int
        What the members announce as their sizes.
    gigabytes : float, optional
        Most that it may unpack to, by default `UNPACKED_RATIO` times its size and 1 GB.

    Raises
    ------
    ValueError
        If it is more.
    """
    most = UNPACKED_RATIO * packed_bytes + SPARE_BYTES if gigabytes is None else gigabytes * 1e9
    if sum(member_bytes) > most:
        raise ValueError(
            f"{name}: expected at most {most / 1e9:.3g} GB unpacked, found {sum(member_bytes) / 1e9:.3g} GB "
            f"in {packed_bytes:,} bytes. --max-unpacked-gigabytes allows more."
        )


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
    members: Sequence[Member], put: Callable[[zipfile.ZipInfo, CaseFile], str], *, name: str
) -> tuple[list[str], bool]:
    """Put members to their places, but for those that differ from another one for the same place.

    Gives a line for every one that is broken or differs or that `put` says something about, and whether any
    is broken.
    """
    bad: list[str] = []
    is_broken = False
    checksums: dict[Path, int] = {}
    differing: set[Path] = set()
    for member, file in members:
        place = place_of(file, Path())
        if checksums.setdefault(place, member.CRC) != member.CRC:
            bad.append(f"{name}: expected one {place.name}, found another at {member.filename}.")
            differing.add(place)
    for member, file in members:
        if place_of(file, Path()) in differing:
            continue
        try:
            bad += filter(None, [put(member, file)])
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


def _member_file(member: zipfile.ZipInfo, folders: Sequence[str], year: str) -> CaseFile | None:
    path = Path(*PurePosixPath(member.filename).parts)
    if member.is_dir() or any(part.startswith((".", "__MACOSX")) for part in path.parts):
        return None
    return parse_case_file(path, with_year((*folders, *path.parts[:-1]), year))
