"""Who may write into a data set at a time, and what killed runs left in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.files import is_left_over


@contextmanager
def alone_in(data_dir: Path) -> Iterator[None]:
    """Keep every other run out of a folder: both would write the same files. The lock ends with us.

    Raises
    ------
    ValueError
        If another run is at work there.
    """
    with _held(data_dir, alone=True):
        yield


@contextmanager
def beside_others_in(data_dir: Path) -> Iterator[None]:
    """Write into a folder, made if it is not there, beside others that do the same, but no download.

    Where nobody else is at work there, what killed runs left is removed first.

    Raises
    ------
    ValueError
        If a download is at work there.
    """
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    with _held(data_dir, alone=False):
        yield


def remove_left_overs(data_dir: Path) -> None:
    """Remove what killed runs were writing; for a folder that nobody else writes into (`alone_in`)."""
    for folder, _, names in os.walk(data_dir):
        for name in filter(is_left_over, names):
            Path(folder, name).unlink(missing_ok=True)


@contextmanager
def _held(data_dir: Path, *, alone: bool) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows has none; there the user has to see to it.
        yield
        return
    folder = os.open(data_dir, os.O_RDONLY)
    try:
        if not _locked(folder, fcntl.LOCK_EX):
            if alone or not _locked(folder, fcntl.LOCK_SH):
                raise ValueError(f"{data_dir}: expected no other download into it, found one running.")
        elif not alone:
            remove_left_overs(data_dir)
            _locked(folder, fcntl.LOCK_SH)
        yield
    finally:
        os.close(folder)


def _locked(folder: int, kind: int) -> bool:
    """Lock an open folder without waiting; False where another run holds it."""
    import fcntl

    try:
        fcntl.flock(folder, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # A network disk without locks.
    return True
