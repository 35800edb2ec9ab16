"""Files: written whole or not at all, hashed, read as JSON or a table, and named on a terminal."""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{8}\.part(?:\..+)?")
#: What `written_whole` puts before the random letters: where its process runs, and the number of it.
_OWNER = re.compile(r"\.(?P<place>[0-9a-f]{8})-(?P<process>\d+)\.[0-9a-f]{8}\.part")
#: No file takes so long to write.
_LONGEST_WRITING_S = 24 * 3600
#: What a disk or a quota that is full says: no other file would fare better.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
#: What a writer finds where there is no room; it does not say in which file.
_NO_ROOM = (*FULL_DISK, errno.EFBIG)
#: What tells apart starts of a machine and its containers.
_PROCESSES = ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid")

_unfinished: set[Path] = set()
_may_begin = threading.Lock()


@contextmanager
def written_whole(path: Path, *, suffix: str = "", durably: bool = False) -> Iterator[Path]:
    """Give a temporary name beside a file, and rename it to the file if the block ends without an error.

    Parameters
    ----------
    path : Path
        The file to write; its folder is made if it is not there.
    suffix : str
        End of the temporary name, for writers that take the format from it.
    durably : bool
        Whether the content is on disk before the old file is gone. Without, a power cut may leave it empty.

    Yields
    ------
    Path
        Hidden name with random letters, ".part" and the suffix at its end, in the same folder, where an empty
        file stands already. A block that fails leaves neither file behind; a file that was there stays as it
        was.

    Raises
    ------
    OSError
        If there is no room, or no right to write; the text names the file.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _may_begin:
            temporary = _new_file(path, suffix)
            _unfinished.add(temporary)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error
    try:
        yield temporary
        if durably:
            flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _NO_ROOM and str(error.filename) != str(temporary):  # of what is read for it
            raise
        raise WriteError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


class WriteError(OSError):
    """A file that could not be written; its text says which, and why."""

    def __str__(self) -> str:
        """What to tell the user."""
        return f"{self.filename}: expected to write it, found: {self.strerror}."


def write_text_whole(path: Path, text: str, *, durably: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all, see `written_whole`."""
    with written_whole(path, durably=durably) as temporary:
        # A byte of a file's name that is no text (Python's surrogates) is written as `printable` shows it.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path, expected: str = "JSON") -> Any:
    """Read a JSON file, whatever may stand in it.

    Raises
    ------
    ValueError
        If it cannot be read or is no JSON; the text names the file, and what was expected.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = error.strerror
    except RecursionError:
        found = "lists or objects nested too deep"
    except ValueError as error:
        found = str(error)
    raise ValueError(f"{path}: expected {expected}, found {found}.")


def read_table(path: Path, columns: Sequence[str], expected: str = "a table") -> list[dict[str, str]]:
    """Read a table of values separated by commas, whatever may stand in the file.

    Parameters
    ----------
    path : Path
        The file.
    columns : sequence of str
        Columns in which every row must have a text; there may be others.
    expected : str
        What the file should be, for the error.

    Returns
    -------
    list of dict
        A row each.

    Raises
    ------
    ValueError
        If it cannot be read, or a column or a value is missing; the text names the file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
    except (OSError, ValueError, csv.Error) as error:
        found = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: expected {expected}, found: {found}.") from None
    if missing:
        raise ValueError(f"{path}: expected a table with the columns {', '.join(missing)}, found none.")
    if any(row[name] is None for row in rows for name in columns):
        raise ValueError(f"{path}: expected a value in every column, found a row that is cut off.")
    return rows


def _new_file(path: Path, suffix: str) -> Path:
    """Make an empty file beside another; what stands at its name already, a link too, is left alone."""
    while True:
        letters = f"{_place()}-{os.getpid()}.{secrets.token_hex(4)}"
        temporary = path.with_name(f".{path.name}.{letters}.part{suffix}")
        with suppress(FileExistsError):
            temporary.touch(exist_ok=False)
            return temporary


@functools.cache
def _place() -> str:
    """Tell apart what gives numbers to processes: machines, their starts, and their containers."""
    found = [platform.node()]
    for path in map(Path, _PROCESSES):
        with suppress(OSError):
            found.append(str(path.readlink()) if path.is_symlink() else path.read_text())
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:8]


def is_left_over(name: str) -> bool:
    """Whether a file's name is a temporary one of `written_whole`: if nobody writes, a killed run left it."""
    return _LEFT_OVER.fullmatch(name) is not None


def remove_left_overs(folder: Path) -> None:
    """Remove the temporary files of `written_whole` that killed processes left below a folder.

    Those of a process that may be at work stay: one that lives, or of another machine or container or from
    before this one's start, until the file is a day old.
    """
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names if is_left_over(name)):
            with suppress(OSError):  # another run removes it too, or it is somebody else's
                if not _may_be_written(path):
                    path.unlink()


def remove_unfinished() -> None:
    """Remove the temporary files that this process is writing, and let it begin no other: it ends now."""
    _may_begin.acquire(timeout=1)
    for temporary in list(_unfinished):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _may_be_written(path: Path) -> bool:
    if time.time() - path.lstat().st_mtime > _LONGEST_WRITING_S:
        return False
    owner = _OWNER.search(path.name)
    return owner is None or owner["place"] != _place() or _is_alive(int(owner["process"]))


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere the question would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def printable(line: str) -> str:
    r"""Give a line to print, with what a file's name in it could do to a terminal escaped.

    That are control characters, such as ESC and line breaks ("\x1b", "\n"), marks that turn the direction
    of writing, and bytes that are no text. Letters of any script stay.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def flush_to_disk(path: Path) -> None:
    """Have everything written to a file on disk, before its final name says that it is whole."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def hash_file(
    path: Path, hashes: Mapping[str, Any], *, report_bytes: Callable[[int], None] | None = None
) -> None:
    """Feed a file to hash objects, and report the number of bytes read each time."""
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            for one in hashes.values():
                one.update(chunk)
            if report_bytes:
                report_bytes(len(chunk))


def sha256_of(path: Path, *, report_bytes: Callable[[int], None] | None = None) -> str:
    """Give a file's SHA-256 in hexadecimal digits."""
    hashes = {"sha256": hashlib.sha256()}
    hash_file(path, hashes, report_bytes=report_bytes)
    return hashes["sha256"].hexdigest()
