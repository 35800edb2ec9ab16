"""Files: written whole or not at all, hashed, read as JSON, and named on a terminal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{8}\.part(?:\..+)?")


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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _new_file(path, suffix)
    try:
        yield temporary
        if durably:
            flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str, *, durably: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all, see `written_whole`."""
    with written_whole(path, durably=durably) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def _new_file(path: Path, suffix: str) -> Path:
    """Make an empty file beside another; what stands at its name already, a link too, is left alone."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part{suffix}")
        with suppress(FileExistsError):
            temporary.touch(exist_ok=False)
            return temporary


def is_left_over(name: str) -> bool:
    """Whether a file's name is a temporary one of `written_whole`: if nobody writes, a killed run left it."""
    return _LEFT_OVER.fullmatch(name) is not None


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
