"""`manifest.json` of a data set: which file came from where, and what it must hash to.

    {"files": [{"path", "size", "sha256", "source", "date"}, ...],
     "archives": [{"source", "size", "sha256", "date", "members": {path: size}}, ...]}

Paths are relative to the data set and have "/"; sizes are in bytes; dates are UTC. It is rewritten after
every file and replaced whole, so a killed program leaves the one before. An archive stands there once
everything that was asked for of it has been unpacked, with all VerSe files that it holds, so that a later
run knows without a download whether it needs it again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from utils.files import sha256_of, write_text_whole

MANIFEST = "manifest.json"
#: Bytes read or written at once: small beside a file, so that progress moves and Ctrl-C is heard.
CHUNK = 2**16


class Manifest:
    """The manifest of a data set; every change is on disk when its method returns.

    Parameters
    ----------
    data_dir : Path
        Folder of the data set.

    Attributes
    ----------
    files : dict of str to dict
        The files by path.
    archives : dict of str to dict
        The archives by address.

    Raises
    ------
    ValueError
        If the manifest there is none.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = Path(data_dir)
        self._path = self.data_dir / MANIFEST
        self._lock = threading.Lock()
        try:
            found = json.loads(self._path.read_text()) if self._path.exists() else {}
            self.files = {entry["path"]: entry for entry in found.get("files", [])}
            self.archives = {entry["source"]: entry for entry in found.get("archives", [])}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self._path}: expected the list of files, found {error!r}.") from None

    def path_of(self, place: Path) -> str:
        """Give a file's path in the manifest."""
        return place.relative_to(self.data_dir).as_posix()

    def holds(self, path: str, *, size: int | None = None) -> bool:
        """Whether a file is listed and lies on disk with its listed size (and the size given)."""
        entry = self.files.get(path)
        if entry is None or size not in (None, entry["size"]):
            return False
        return size_on_disk(self.data_dir / path) == entry["size"]

    def is_changed(self, path: str) -> bool:
        """Whether a listed file lies on disk with other content than the listed one: the user's own work."""
        entry, place = self.files.get(path), self.data_dir / path
        if entry is None or not place.is_file():
            return False
        return size_on_disk(place) != entry["size"] or sha256_of(place) != entry["sha256"]

    def enter(self, path: str, *, size: int, sha256: str, source: str) -> None:
        """List a file."""
        entry = {"path": path, "size": size, "sha256": sha256, "source": source, "date": _now()}
        with self._lock:
            self.files[path] = entry
            self._save()

    def enter_archive(self, source: str, *, size: int, sha256: str, members: Mapping[str, int]) -> None:
        """List an archive, with path and size of every VerSe file in it."""
        entry = {"source": source, "size": size, "sha256": sha256, "date": _now(), "members": dict(members)}
        with self._lock:
            self.archives[source] = entry
            self._save()

    def _save(self) -> None:
        content = {
            "files": [self.files[path] for path in sorted(self.files)],
            "archives": [self.archives[source] for source in sorted(self.archives)],
        }
        write_text_whole(self._path, json.dumps(content, indent=1) + "\n", durably=True)


def size_on_disk(path: Path) -> int:
    """Give a file's size in bytes, -1 if there is none."""
    return path.stat().st_size if path.is_file() else -1


def kept_line(place: Path, source: str) -> str:
    """Say that a file stays although a source has another one."""
    return (
        f"{place}: expected what an earlier run put there, found a file that changed since or is your own; "
        f"it stays, though {source} has another one; --replace-changed takes that."
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
