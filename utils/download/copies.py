"""Source PATH: a VerSe tree and zip archives on disk, copied file by file, decided by content.

Each file of the source is an offer for one place in the layout of VerSe. Offers for one place that differ are
refused. What lies at a place already is replaced only if it is what an earlier run put there, by the hash in
`manifest.json`: anything else is the user's own work.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from tqdm import tqdm

from utils.download.archives import ARCHIVE_ERRORS, case_members, check_unpacked, place_of
from utils.download.folder_lock import alone_in
from utils.download.manifest import Manifest, kept_line, size_on_disk
from utils.files import FULL_DISK, printable, sha256_of, written_whole
from utils.settings import DataSettings
from utils.verse import cases
from utils.verse.cases import CaseFile

_CHUNK = 2**20


@dataclass(frozen=True)
class Offer:
    """A file that a source has for a place.

    Attributes
    ----------
    place : Path
        Where it belongs, relative to the data set.
    name : str
        The file, or the member of an archive.
    source : str
        The file, or the archive.
    size : int
        Bytes.
    open : callable
        Opens it for reading.
    """

    place: Path
    name: str
    source: str
    size: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]

    def sha256(self) -> str:
        """Read it to its end, and give its SHA-256 in hexadecimal digits."""
        return self.copy_to(None)

    def copy_to(self, target: IO[bytes] | None) -> str:
        """Write it to an open file, if there is one, and give its SHA-256 in hexadecimal digits."""
        digest = hashlib.sha256()
        with self.open() as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                if target is not None:
                    target.write(chunk)
        return digest.hexdigest()

    def broken(self, error: Exception) -> str:
        """Say that it cannot be read."""
        return f"{self.source}: expected a whole {self.name}, found a broken one ({error})."


def from_disk(settings: DataSettings) -> list[str]:
    """Copy a VerSe tree, with every zip archive in it, or extract one archive.

    Returns
    -------
    list of str
        A line for every archive, or file of one, that could not be read, for offers that contradict each
        other, and for every file that the user has changed and the source has otherwise.

    Raises
    ------
    ValueError
        If there is no such path, nothing of VerSe in it, two files of the tree that differ for one place, or
        too little room.
    """
    source = Path(settings.source)
    if source.is_file() and source.suffix.lower() == ".zip":
        return _put_all(settings, [], [source])
    if not source.is_dir():
        found = "a file of another kind" if source.exists() else "nothing there"
        raise ValueError(f"{source}: expected a folder or a zip archive, found {found}.")
    archives = [path for path in cases.visible_files(source) if path.suffix.lower() == ".zip"]
    files = list(cases.case_files(source))
    if files or any(cases.is_of_older_release(path) for path in cases.visible_files(source)):
        cases.index_cases(source)  # Refuses files that contradict each other before any is copied.
    if not archives and not files:
        raise ValueError(
            f"{source}: expected VerSe files (sub-*_ct.nii.gz, ...) or zip archives, found none."
        )
    return _put_all(settings, files, archives)


def _put_all(settings: DataSettings, files: Sequence[CaseFile], archives: Sequence[Path]) -> list[str]:
    data_dir = settings.data_dir
    with ExitStack() as opened:
        offers, bad = [_offer_of(file) for file in files], []
        for archive in archives:
            try:
                offers += _offers_in(archive, opened, settings)
            except ValueError as error:
                bad.append(str(error))
            except (*ARCHIVE_ERRORS, OSError) as error:
                bad.append(
                    f"{archive}: expected a whole zip archive, found one that cannot be read ({error})."
                )
        agreed, contradictions = agreeing(offers)
        bad += contradictions
        if not agreed:
            return bad
        check_room(data_dir, agreed)
        data_dir.mkdir(parents=True, exist_ok=True)
        with alone_in(data_dir):
            manifest = Manifest(data_dir)
            put = partial(put_offer, manifest=manifest, replace=settings.replace_changed)
            with tqdm(agreed, desc="copy", unit="file") as bar:
                bad += [line for offer in bar if (line := put(offer))]
    return bad


def _offer_of(file: CaseFile) -> Offer:
    path = file.path
    return Offer(place_of(file, Path()), path.name, str(path), path.stat().st_size, partial(path.open, "rb"))


def _offers_in(archive: Path, opened: ExitStack, settings: DataSettings) -> Iterator[Offer]:
    zipped = opened.enter_context(zipfile.ZipFile(archive))
    members = case_members(zipped, (archive.stem,), name=str(archive))
    sizes = [member.file_size for member, _ in members]
    check_unpacked(str(archive), archive.stat().st_size, sizes, gigabytes=settings.max_unpacked_gigabytes)
    for member, file in members:
        place, take = place_of(file, Path()), partial(zipped.open, member)
        yield Offer(place, member.filename, str(archive), member.file_size, take)


def agreeing(offers: Sequence[Offer]) -> tuple[list[Offer], list[str]]:
    """Take one offer a place, and none where offers differ.

    Parameters
    ----------
    offers : sequence of Offer
        Any number for each place; places are told apart without regard to case, as some file systems do.

    Returns
    -------
    offers : list of Offer
        In their order.
    lines : list of str
        A line for every place whose offers differ.
    """
    by_place: dict[str, list[Offer]] = {}
    for offer in offers:
        by_place.setdefault(offer.place.as_posix().casefold(), []).append(offer)
    agreed, lines = [], []
    for rivals in by_place.values():
        if len(rivals) > 1 and len({_identity(offer) for offer in rivals}) > 1:
            names = " and ".join(f"{offer.name} in {offer.source}" for offer in rivals)
            lines.append(f"{rivals[0].place}: expected one file, found several that differ: {names}.")
        else:
            agreed.append(rivals[0])
    return agreed, lines


def _identity(offer: Offer) -> str:
    try:
        return offer.sha256()
    except (*ARCHIVE_ERRORS, OSError) as error:
        return offer.broken(error)  # Agrees with no other.


def check_room(data_dir: Path, offers: Sequence[Offer]) -> None:
    """Raise a `ValueError` if the disk cannot take what is not there yet."""
    needed = sum(offer.size for offer in offers if size_on_disk(data_dir / offer.place) != offer.size)
    there = next(folder for folder in (data_dir, *data_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"{data_dir}: expected room for {needed:,} bytes, found {free:,} free. Nothing was copied."
        )


def put_offer(offer: Offer, *, manifest: Manifest, replace: bool = False) -> str:
    """Put a file to its place, unless what lies there is the user's own.

    Parameters
    ----------
    offer : Offer
        The file.
    manifest : Manifest
        Of the data set; the file enters it.
    replace : bool
        Whether a file that the user has changed is replaced too.

    Returns
    -------
    str
        What is bad about it, "" if nothing is.

    Raises
    ------
    OSError
        If the disk is full.
    """
    place, path = manifest.data_dir / offer.place, offer.place.as_posix()
    listed = manifest.files.get(path, {}).get("sha256")
    try:
        if place.exists():
            found, offered = sha256_of(place), offer.sha256()
            if found == offered:
                if listed != offered:
                    manifest.enter(path, size=offer.size, sha256=offered, source=offer.source)
                return ""
            if found != listed and not replace:
                return kept_line(place, offer.source)
            tqdm.write(printable(f"{place}: replaced by another one in {offer.source}."), file=sys.stderr)
        with written_whole(place, durably=True) as temporary, temporary.open("wb") as target:
            sha256 = offer.copy_to(target)
        manifest.enter(path, size=offer.size, sha256=sha256, source=offer.source)
    except ARCHIVE_ERRORS as error:
        return offer.broken(error)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise  # Its text names the file.
        return f"{place}: expected to copy {offer.name} in {offer.source} to it, found {error.strerror}."
    return ""
