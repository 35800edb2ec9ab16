"""Remarks of libraries on odd headers and numbers, kept off the terminal while a file is read."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from nibabel.imageglobals import logger as nibabel_logger

_THREAD = threading.local()
_ORDER = threading.Lock()


def _is_silent() -> bool:
    return getattr(_THREAD, "depth", 0) > 0


class _AnyTextWhileSilent:
    """Stands for the pattern of a warning's text: matches any in a silent thread, and none in the others."""

    def match(self, text: str) -> bool:
        return _is_silent()


def _is_loud(record: logging.LogRecord) -> bool:
    return not _is_silent()


_FILTER = ("ignore", _AnyTextWhileSilent(), Warning, None, 0)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep warnings, nibabel's log and NumPy's remarks on numbers off the terminal, in this thread alone.

    Filters of warnings belong to the process. `warnings.catch_warnings` puts back those that it found: of two
    that overlap in two threads, the later one leaves the filters of the earlier one for good. Here none is
    put back; one stays, which matches in silent threads only. nibabel's own suppressor takes its logger's
    handler away, and Python's last resort then prints the remark; a filter of the logger does not.
    """
    _put_first()
    nibabel_logger.addFilter(_is_loud)  # once: a filter that is there is not added
    _THREAD.depth = getattr(_THREAD, "depth", 0) + 1
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        _THREAD.depth -= 1


def _put_first() -> None:
    """Let the filter come before those that were set since."""
    with _ORDER:
        if warnings.filters[:1] != [_FILTER]:
            if _FILTER in warnings.filters:
                warnings.filters.remove(_FILTER)
            warnings.filters.insert(0, _FILTER)
