"""Files: written whole or not at all, and hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """Give a temporary name beside a file, and rename it to the file if the block ends without an error.

    Parameters
    ----------
    path : Path
        The file to write; its folder is made if it is not there.
    suffix : str
        End of the temporary name, for writers that take the format from it.

    Yields
    ------
    Path
        Hidden name with ".part" and the suffix at its end, in the same folder. A block that fails leaves
        neither file behind; a file that was there stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part{suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_file(path: Path, hashes: Mapping[str, Any], *, told: Callable[[int], None] | None = None) -> None:
    """Feed a file to hash objects, and tell how many bytes were read each time."""
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            for one in hashes.values():
                one.update(chunk)
            if told:
                told(len(chunk))


def sha256_of(path: Path, *, told: Callable[[int], None] | None = None) -> str:
    """Give a file's SHA-256 in hexadecimal digits."""
    hashes = {"sha256": hashlib.sha256()}
    hash_file(path, hashes, told=told)
    return hashes["sha256"].hexdigest()
