"""Keeping a second run out of a data set that is being got."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone_in(data_dir: Path) -> Iterator[None]:
    """Keep a second download out of a folder: both would write the same parts. The lock ends with us.

    Raises
    ------
    ValueError
        If another one is at work there.
    """
    try:
        import fcntl
    except ImportError:  # Windows has none; there the user has to see to it.
        yield
        return
    folder = os.open(data_dir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise ValueError(f"{data_dir}: expected no other download into it, found one running.") from None
    except OSError:
        pass  # A network disk without locks.
    try:
        yield
    finally:
        os.close(folder)
