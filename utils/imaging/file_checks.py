"""What no scan can be, whatever its format: a file without content, spacings and sizes of no scanner."""

from __future__ import annotations

import contextlib
import errno
import math
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

#: What readers raise on a broken file, beside errors of their own.
READ_ERRORS = (OSError, EOFError, ValueError, TypeError, KeyError, OverflowError)
#: What the system says where it has no room for one more open file, or for what is in it.
_NOTHING_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: Largest extent of a scan along an axis; more means that the header's unit is wrong.
_MAX_EXTENT_MM = 4000.0
#: Largest volume of a scan, twice that of a whole body; at 1 mm more would fill the memory.
_MAX_LITRES = 2000.0
#: Least spacing of a scan: a tenth of the finest that a clinical scanner gives.
_LEAST_SPACING_MM = 0.01
#: Largest distance of a scan from the origin: single precision still resolves a hundredth of a mm there.
_MAX_ORIGIN_MM = 1e5


def check_room(path: Path, error: BaseException) -> None:
    """Raise a `ValueError` that says so if an error is that of a machine that is full, not of the file."""
    if isinstance(error, OSError) and error.errno in _NOTHING_LEFT:
        raise ValueError(
            f"{path}: expected files and memory enough to open it, found none left ({error.strerror})."
        ) from None


def first_line(error: BaseException) -> str:
    """Give the first line that an error says, or else its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def named_errors(
    path: Path,
    expected: str,
    errors: tuple[type[BaseException], ...],
    said: Callable[[BaseException], str] = first_line,
) -> Iterator[None]:
    """Give the many errors of a broken file one form that names it.

    Parameters
    ----------
    path : Path
        The file.
    expected : str
        What it should be, for the message.
    errors : tuple of exception types
        What its reader raises; they become a `ValueError`.
    said : callable
        What the message says of an error.
    """
    try:
        yield
    except errors as error:
        check_room(path, error)
        raise ValueError(f"{path}: expected {expected}, found a broken one ({said(error)}).") from None


def check_is_file(path: Path, expected: str) -> None:
    """Refuse what is no file with something in it; a pipe, for one, would be waited for without end.

    Parameters
    ----------
    path : Path
        The supposed file.
    expected : str
        What it should be, for the message.

    Raises
    ------
    ValueError
        Names the path, what was expected and what was found.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            path.open("rb").close()  # nibabel would not say that it may not read the file
            return
    except OSError as error:
        check_room(path, error)
        found = str(error.strerror)
        if error.errno in (errno.ENOENT, errno.ELOOP):
            found = "a broken link" if path.is_symlink() else "no such file"
    else:
        found = "an empty file" if stat.S_ISREG(status.st_mode) else "no regular file"
        found = "a folder" if stat.S_ISDIR(status.st_mode) else found
    raise ValueError(f"{path}: expected {expected}, found {found}.")


def odd_places(
    spacing_mm: np.ndarray, extent_mm: np.ndarray, origin_mm: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Give what no scanner makes of spacings, extents and origin: what was expected, and found."""
    if spacing_mm.min() < _LEAST_SPACING_MM:
        yield f"spacings of at least {_LEAST_SPACING_MM:g} mm", spacing_mm
    if extent_mm.max() > _MAX_EXTENT_MM:
        yield f"a scan under {_MAX_EXTENT_MM:g} mm long", extent_mm
    if extent_mm.prod() > _MAX_LITRES * 1e6:
        yield f"a scan under {_MAX_LITRES:g} litres", extent_mm
    if np.abs(origin_mm).max() > _MAX_ORIGIN_MM:
        yield f"a scan within {_MAX_ORIGIN_MM:g} mm of the origin", origin_mm


def check_memory(name: Path | str, shape: Sequence[int], spacing_mm: np.ndarray, most_bytes: float) -> None:
    """Refuse a scan that takes more memory than it may, before any is asked for.

    Parameters
    ----------
    name : Path or str
        What is read, for the message.
    shape, spacing_mm : sequence of int and np.ndarray, (3,)
        Of its voxels.
    most_bytes : float
        Memory that it may take as float32, on its own grid or on one of 1 mm.

    Raises
    ------
    ValueError
        Names the option that allows more.
    """
    voxels = max(math.prod(map(int, shape)), math.prod(float(n * mm) for n, mm in zip(shape, spacing_mm)))
    if 4 * voxels > most_bytes:
        raise ValueError(
            f"{name}: expected a scan of at most {most_bytes / 2**30:g} GB (--max-gigabytes), found one of "
            f"{4 * voxels / 2**30:.3g} GB (shape {tuple(map(int, shape))}, {listed(spacing_mm)} mm)."
        )


def listed(numbers: np.ndarray) -> str:
    """Give numbers as the text of a message, such as "0.7 x 0.7 x 2.5"."""
    return " x ".join(f"{number:g}" for number in numbers)
