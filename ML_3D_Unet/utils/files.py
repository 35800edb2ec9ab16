"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What a writer finds where there is no room.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written_whole(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """Give a new, empty file beside another, and rename it to that one if the block ends without an error.

    Parameters
    ----------
    path : Path
        The file to write; its folder is made if it is not there.
    suffix : str
        End of the temporary name, for writers that take the format from it.

    Yields
    ------
    Path
        Hidden file of a random name in the same folder, with ".part" and the suffix at its end. A block that
        fails leaves it not behind; a file that was there stays as it was.

    Raises
    ------
    FileExistsError
        If the temporary name is taken, by a link too: what it names is never written to.
    OSError
        If there is no room; the text names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part{suffix}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_room(path: Path, size: int) -> None:
    """Raise `OSError` if there is no room for so many bytes in a file: HDF5 may crash where it runs out."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in _NO_ROOM:  # a file system may also be unable to tell
                raise
        file.truncate(0)


def remove_leftovers(path: Path) -> None:
    """Remove what `written_whole` of a file left behind when its process was killed."""
    for temporary in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 16}.part*"):
        temporary.unlink(missing_ok=True)
