"""Parts of downloads: files that grow under hidden names, and what says what they are parts of.

A part is found again by its name, so its name can be foreseen: whoever may write into the folder may lay a
link there. None is followed.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from utils.download.manifest import size_on_disk
from utils.files import write_text_whole

if TYPE_CHECKING:
    from utils.download.remote import RemoteFile


def note_of(part: Path) -> Path:
    """Give the file beside a part that says what it is a part of."""
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Remove a part and its note; the part first, so that no note ever stands beside other bytes."""
    part.unlink(missing_ok=True)
    note_of(part).unlink(missing_ok=True)


def resumable_bytes(remote: RemoteFile, part: Path) -> int:
    """Count the bytes of a part that can be used: 0 unless it is known to be one of the same file."""
    try:
        note = json.loads(note_of(part).read_text())
    except (OSError, ValueError):
        return 0
    have = size_on_disk(part)
    fits = have > 0 and _is_plain(part) and (remote.size is None or have <= remote.size)
    return have if fits and remote.identity and note == _note(remote) else 0


def _note(remote: RemoteFile) -> dict[str, Any]:
    return {"url": remote.url, "size": remote.size, "identity": remote.identity}


def begin(remote: RemoteFile, part: Path) -> None:
    """Make an empty part with its note; what lies at their names is removed."""
    discard(part)
    write_text_whole(note_of(part), json.dumps(_note(remote)))
    part.touch(exist_ok=False)


def _is_plain(part: Path) -> bool:
    """Whether a part is a file of its own: its name can be foreseen, so others may have laid a link there."""
    found = part.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def opened_plain(part: Path) -> IO[bytes]:
    """Open a part to add to it; a link there is an `OSError`."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # each unknown to some systems
    return os.fdopen(os.open(part, os.O_RDWR | flags), "r+b")
