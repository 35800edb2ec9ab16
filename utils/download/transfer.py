"""Downloads in several threads: what one is, whether there is room, and what is left when they end.

Everything under a hidden name is unfinished: `.<file>.part` beside a file's place, archives below
`.archives`, pages of the listing below `.listing`. A file gets its name when size and hashes are right,
and its line in the manifest after that; between the two a killed run is found out by hashing the file
again. An archive is unpacked by the thread that got it, listed when all that is asked for is unpacked,
and removed then, so that at most one archive a connection lies there.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from utils.download.archives import place_of
from utils.download.manifest import Manifest
from utils.download.osf import BAR_DELAY_S, Pages
from utils.download.parts import resumable_bytes
from utils.download.remote import Client, Mismatch, RemoteFile, Stopped, Unreachable
from utils.download.selection import Selection
from utils.files import FULL_DISK, is_left_over, printable
from utils.settings import DataSettings
from utils.verse.cases import CaseFile

#: Folder of archives that are not unpacked yet, and of pages of a listing; both below the data set's.
ARCHIVES_FOLDER = ".archives"
PAGES_FOLDER = ".listing"
#: So many files in a row that no server gave end the run: it is the network or the server, not the file.
_GIVE_UP = 8
#: Parts of files that nobody asked for again are removed after a week, in seconds.
_PART_AGE_S = 7 * 24 * 3600.0
#: Seconds between two looks at the threads.
_TICK_S = 0.05
#: Seconds that Ctrl-C leaves the threads to write what they hold.
_LAST_SECONDS = 2.0
_PART = re.compile(r"\..+\.part(?:\.json)?")


@dataclass(frozen=True)
class Job:
    """One download.

    Attributes
    ----------
    remote : RemoteFile
        What to get.
    part : Path
        Where it grows.
    settle : callable
        Is given the SHA-256 of the whole part and puts it to its place.
    unpacked : int
        Bytes that it will need beside its own once it is there: 0 but for an archive.
    """

    remote: RemoteFile
    part: Path
    settle: Callable[[str], None]
    unpacked: int = 0


class BrokenArchive(Mismatch):
    """An archive that arrived with the announced size, but cannot be read."""


@dataclass
class Run:
    """One run of a download.

    Attributes
    ----------
    settings : DataSettings
        Source and destination.
    client : Client
        Makes the requests.
    manifest : Manifest
        What is there.
    selection : Selection
        What is asked for.
    only : dict of str to str or None
        The only files to get, by path in the manifest, with what is wrong about them; None for all.
    bad : list of str
        A line for everything that went wrong.
    met : set of str
        Subjects that the source has, in lower case.
    unreachable : bool
        Whether something could not be got that a later run may get.
    """

    settings: DataSettings
    client: Client
    manifest: Manifest
    selection: Selection
    only: dict[str, str] | None = None
    bad: list[str] = field(default_factory=list)
    met: set[str] = field(default_factory=set)
    unreachable: bool = False

    @property
    def data_dir(self) -> Path:
        """Folder of the data set."""
        return self.manifest.data_dir

    def keeps(self, path: str) -> bool:
        """Whether a file, given by its path in the manifest, is to stay: the user has changed it."""
        asked = self.settings.replace_changed or self.settings.verify
        return not asked and self.manifest.is_changed(path)

    def wants(self, file: CaseFile) -> bool:
        """Whether a file is asked for."""
        self.met.add(file.subject.casefold())
        path = place_of(file, Path()).as_posix()
        return self.selection.wants(file) and (self.only is None or path in self.only)

    def release(self, paths: Iterable[str]) -> None:
        """Remove files that are wrong and will be got again, so that a broken run leaves none of them."""
        for path in paths if self.only is not None else ():
            (self.data_dir / path).unlink(missing_ok=True)


def check_disk_room(data_dir: Path, jobs: Sequence[Job], *, connections: int) -> None:
    """See before the first byte whether the disk can take what is missing.

    That is: what is missing of files; of archives, as many of the largest as there are connections, since
    each is removed once it is unpacked; and what they unpack to, about their own size, since the images in
    them are compressed already. Files of unknown size do not count.

    Parameters
    ----------
    data_dir : Path
        Folder of the data set.
    jobs : sequence of Job
        What will be got.
    connections : int
        Jobs at once.

    Raises
    ------
    ValueError
        If there is too little room.
    """
    missing = [(job, max(0, (job.remote.size or 0) - _resumable(job))) for job in jobs]
    files = sum(size for job, size in missing if not _is_archive(job))
    archives = sum(sorted((size for job, size in missing if _is_archive(job)), reverse=True)[:connections])
    unpacked = sum(job.unpacked for job in jobs)
    needed, free = files + archives + unpacked, shutil.disk_usage(data_dir).free
    if needed > free:
        raise ValueError(
            f"{data_dir}: expected room for {needed:,} bytes (files {files:,}, archives {archives:,}, about "
            f"{unpacked:,} unpacked), found {free:,} free. Nothing was downloaded."
        )


def work(run: Run, jobs: Sequence[Job]) -> None:
    """Do jobs in several threads, with one bar over all bytes; what goes wrong with one goes to `bad`.

    The threads are daemons: a stalled connection must not keep an interrupted program alive.
    """
    if not jobs:
        return
    total, there = sum(job.remote.size or 0 for job in jobs), sum(_resumable(job) for job in jobs)
    with tqdm(
        total=total, initial=there, desc="download", unit="B", unit_scale=True, delay=BAR_DELAY_S
    ) as bar:
        crew = _Crew(run, jobs, bar)
        count = min(run.settings.connections, len(jobs))
        threads = [threading.Thread(target=crew.work, daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(_TICK_S)
        finally:
            run.client.stop.set()
            deadline = time.monotonic() + _LAST_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
    crew.raise_failure()


class _Crew:
    """The threads of a run and what they share."""

    def __init__(self, run: Run, jobs: Sequence[Job], bar: tqdm) -> None:
        self._run = run
        self._waiting = deque(jobs)
        self._bar = bar
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._unreachable_in_a_row = 0

    def work(self) -> None:
        """Do jobs until there is none left, or the run ends."""
        while self._waiting and not self._run.client.stop.is_set():
            try:
                job = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._do(job)
            except Stopped:
                return
            except BaseException as error:
                self._failure = error
                self._run.client.stop.set()

    def raise_failure(self) -> None:
        """Raise what ended the run before its time."""
        if isinstance(self._failure, OSError):
            free = shutil.disk_usage(self._run.data_dir).free
            needed = int(self._bar.total - self._bar.n)
            raise ValueError(
                f"{self._run.data_dir}: expected room for {needed:,} more bytes of downloads, found the disk "
                f"full ({free:,} bytes free). What is there stays: make room, and the same command goes on."
            )
        if self._failure is not None:
            raise self._failure

    def _do(self, job: Job) -> None:
        try:
            try:
                self._get(job)
            except BrokenArchive:  # Once more, since no hash showed it before it was opened.
                self._advance(-(job.remote.size or 0))
                self._get(job)
            self._unreachable_in_a_row = 0
        except ValueError as error:
            with self._lock:
                note_failure(self._run, error)
                self._count_unreachable(error)
        except OSError as error:
            if error.errno in FULL_DISK:
                raise
            self._run.bad.append(f"{job.remote.name}: expected to write it, found {error}.")

    def _get(self, job: Job) -> None:
        job.settle(self._run.client.fetch(job.remote, job.part, report_bytes=self._advance))

    def _advance(self, count: int) -> None:
        with self._lock:
            self._bar.update(count)

    def _count_unreachable(self, error: ValueError) -> None:
        if not isinstance(error, Unreachable) or error.status:
            return
        self._unreachable_in_a_row += 1
        left = len(self._waiting)
        if self._unreachable_in_a_row >= _GIVE_UP and left:
            self._waiting.clear()
            self._run.bad.append(
                f"Of {_GIVE_UP} downloads in a row expected one to work, found none: "
                f"{left} more were not tried."
            )


def note_failure(run: Run, error: ValueError) -> None:
    """Keep what went wrong with one file; the others go on."""
    run.bad += str(error).splitlines()
    run.unreachable |= isinstance(error, Unreachable) and not error.status


def tidy(run: Run) -> None:
    """Remove what no later run can use: pages unless it lists the same, left-overs, old parts, notes."""
    if not run.unreachable:
        Pages(run.client, run.data_dir / PAGES_FOLDER).forget()
    for folder, _, names in os.walk(run.data_dir):
        for name in names:
            path = Path(folder, name)
            lonely = name.endswith(".part.json") and not path.with_suffix("").exists()
            old = _PART.fullmatch(name) and time.time() - path.stat().st_mtime > _PART_AGE_S
            # No other download is at work here (`alone_in`), so nobody writes to a left-over.
            if is_left_over(name) or (_PART.fullmatch(name) and (lonely or old)):
                path.unlink(missing_ok=True)
    archives = run.data_dir / ARCHIVES_FOLDER
    if archives.is_dir() and not any(archives.iterdir()):
        archives.rmdir()


def _is_archive(job: Job) -> bool:
    return job.part.parent.name == ARCHIVES_FOLDER


def _resumable(job: Job) -> int:
    return resumable_bytes(job.remote, job.part)


def print_line(line: str) -> None:
    """Print a line to standard error, above any bar."""
    tqdm.write(printable(line), file=sys.stderr)
