"""Archives that are downloaded and unpacked: which are needed, and their members' way to the manifest."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from utils.download.archives import (
    ARCHIVE_ERRORS,
    Member,
    case_members,
    check_unpacked,
    extract_members,
    place_of,
)
from utils.download.manifest import CHUNK, kept_line, size_on_disk
from utils.download.parts import discard
from utils.download.remote import RemoteFile, Stopped, Unreachable
from utils.download.selection import case_file_at, lines_about_homeless, part_of, split_of, with_year
from utils.download.transfer import ARCHIVES_FOLDER, BrokenArchive, Job, Run, note_failure
from utils.files import sha256_of, written_whole
from utils.verse.cases import CaseFile


def archive_jobs(run: Run, archives: Iterable[RemoteFile], year: str) -> list[Job]:
    """Give the downloads of the archives that hold something which is asked for and not there."""
    jobs = []
    for remote in archives:
        path = Path(remote.name.strip("/"))
        folders = with_year((*path.parts[:-1], path.stem), year)
        short = hashlib.sha256(remote.url.encode()).hexdigest()[:8]
        part = run.data_dir / ARCHIVES_FOLDER / f"{short}-{path.name}.part"
        if not run.selection.wants_split(split_of(folders)):
            continue
        if not _is_needed(run, remote.url, folders):
            if remote.url in run.manifest.archives:
                discard(part)  # Left where a run was killed after all had been unpacked and listed.
            continue
        try:
            remote = remote if remote.size is not None else run.client.probe(remote)
        except Unreachable as error:
            if not run.client.answered:
                raise
            note_failure(run, error)
            continue
        settle = partial(_settle_archive, run, remote, folders, year, part)
        jobs.append(Job(remote, part, settle, unpacked=_unpacked_bytes(run, remote)))
    return jobs


def _is_needed(run: Run, url: str, folders: Sequence[str]) -> bool:
    """Whether an archive holds, as far as is known, something that is asked for and not there."""
    if url not in run.manifest.archives:
        return run.only is None or part_of(folders) in {part_of(path.split("/")) for path in run.only}
    members = run.manifest.archives[url]["members"]
    wanted = [path for path in members if (file := case_file_at(path)) and run.wants(file)]
    run.release(wanted)
    missing = [path for path in wanted if not run.manifest.holds(path, size=members[path])]
    kept = [path for path in missing if run.keeps(path)]
    run.bad += [kept_line(run.data_dir / path, url) for path in kept]
    return len(kept) < len(missing)


def _unpacked_bytes(run: Run, remote: RemoteFile) -> int:
    """Estimate what an archive will unpack to, beyond what is unpacked already; 0 for single subjects."""
    if run.selection.subjects or remote.size is None:
        return 0
    there = [entry["size"] for entry in list(run.manifest.files.values()) if entry["source"] == remote.url]
    return max(0, remote.size - sum(there))


def _settle_archive(
    run: Run, remote: RemoteFile, folders: Sequence[str], year: str, part: Path, sha256: str
) -> None:
    """Unpack what is asked for of an archive, list it if all was well, and remove it."""
    members: list[Member] = []
    try:
        with zipfile.ZipFile(part) as opened:
            members = case_members(opened, folders, name=remote.name, year=year)
            _check_sizes(run, remote.name, size_on_disk(part), members)
            bad, is_broken = _unpack_wanted(run, opened, remote, members)
    except ARCHIVE_ERRORS as error:
        bad, is_broken = [f"{remote.name}: expected a whole zip archive, found {error}."], True
    except ValueError as error:
        bad, is_broken = [str(error)], False
    if not bad:
        sizes = {place_of(file, Path()).as_posix(): member.file_size for member, file in members}
        run.manifest.enter_archive(remote.url, size=size_on_disk(part), sha256=sha256, members=sizes)
    discard(part)
    if is_broken:
        raise BrokenArchive("\n".join(bad))
    run.bad += bad


def _check_sizes(run: Run, name: str, packed_bytes: int, members: Sequence[Member]) -> None:
    """Refuse an archive that unpacks to more than it may, or than the disk takes beside it."""
    sizes = [member.file_size for member, file in members if run.wants(file)]
    check_unpacked(name, packed_bytes, sizes, gigabytes=run.settings.max_unpacked_gigabytes)
    missing = sum(
        member.file_size
        for member, file in members
        if run.wants(file) and size_on_disk(place_of(file, run.data_dir)) != member.file_size
    )
    free = shutil.disk_usage(run.data_dir).free
    if missing > free:
        raise ValueError(f"{name}: expected room for {missing:,} bytes unpacked, found {free:,} free.")


def _unpack_wanted(
    run: Run, opened: zipfile.ZipFile, remote: RemoteFile, members: Sequence[Member]
) -> tuple[list[str], bool]:
    """Unpack members that are asked for; say what is bad, and whether any is broken."""
    homeless = [member.filename for member, file in members if not file.split]
    wanted = [(member, file) for member, file in members if file.split and run.wants(file)]
    bad, is_broken = extract_members(wanted, partial(_put, run, opened, remote), name=remote.name)
    bad += lines_about_homeless(remote.name, homeless, example="dataset-verse19training")
    return bad, is_broken


def _put(
    run: Run, opened: zipfile.ZipFile, remote: RemoteFile, member: zipfile.ZipInfo, file: CaseFile
) -> str:
    """Unpack a member unless it is there; zip archives keep a checksum of every member.

    Gives a line if what is there is the user's own, else "".
    """
    place = place_of(file, run.data_dir)
    path = run.manifest.path_of(place)
    known = run.manifest.holds(path, size=member.file_size)
    if known and run.manifest.files[path]["source"] == remote.url:
        return ""
    if size_on_disk(place) == member.file_size and _crc32_of(place) == member.CRC:
        sha256 = sha256_of(place)
    elif run.keeps(path):
        return kept_line(place, remote.name)
    else:
        sha256 = _unpack(run, opened, member, place)
    run.manifest.enter(path, size=member.file_size, sha256=sha256, source=remote.url)
    return ""


def _unpack(run: Run, opened: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path) -> str:
    """Write a member to its place and give its SHA-256."""
    sha256 = hashlib.sha256()
    whole = written_whole(place, durably=True)
    with whole as temporary, opened.open(member) as source, temporary.open("wb") as target:
        while chunk := source.read(CHUNK):
            if run.client.stop.is_set():
                raise Stopped
            target.write(chunk)
            sha256.update(chunk)
    return sha256.hexdigest()


def _crc32_of(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
