"""Images of the ITK world: NRRD and MetaImage files, and the change between its axes and ours.

DICOM, NRRD and MetaImage count millimetres towards left, posterior, superior (LPS+), a `Volume` towards
right, anterior, superior (RAS+). The files are read here and not by ITK, which compares no checksum, reads
what its header says without bounds, and ends or hangs the process on some damaged headers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from utils.files import printable
from utils.imaging.file_checks import check_is_file, check_room, listed, named_errors, odd_places
from utils.imaging.intensities import finite_hu, signed_hu
from utils.imaging.metaimage_header import metaimage_fields, metaimage_header
from utils.imaging.nrrd_header import nrrd_fields, nrrd_header, states_space
from utils.imaging.quiet import silent
from utils.imaging.text_headers import HEADER_BYTES, TextHeader
from utils.imaging.volume import Grid, Volume
from utils.imaging.voxel_streams import MOST_BYTES, STREAM_ERRORS, fill, opened_voxels

#: Ends of the names of the files that this module reads.
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
#: Largest angle between an axis and the right angle to the other two. Such a slant moves the ends of a
#: vertebra of 30 mm by a quarter of a millimetre; a tilted gantry has 5 to 30 degrees.
MAX_SLANT_DEGREES = 0.5


def flipped_world(affine: np.ndarray) -> np.ndarray:
    """Turn an affine to LPS+ into one to RAS+, or back: the first two axes of the world change their sign.

    Parameters
    ----------
    affine : np.ndarray (4, 4)
        Voxel index to world, in mm.

    Returns
    -------
    np.ndarray of float64 (4, 4)
        Exact: no number is rounded.
    """
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def read_itk_image(path: Path, *, assumed: str | None = None) -> Volume:
    """Read a CT in Hounsfield units from an NRRD or MetaImage file.

    Parameters
    ----------
    path : Path
        File ending in one of `ITK_SUFFIXES`, three axes, one number a voxel; more axes of
        length 1 are dropped.
    assumed : str, optional
        Where the voxel axes lead in the patient if an NRRD header does not say it, such as "RAS".

    Returns
    -------
    Volume
        Numbers as `hu_numbers` gives them.

    Raises
    ------
    ValueError
        If the file is not there, cannot be read whole, is no volume of numbers, does not say how its axes
        lie, or has a grid that no later step could use. The text names the file.
    """
    header, files = _open(path, assumed)
    stored = np.empty(header.shape, header.dtype, order="F")
    parts = np.array_split(memoryview(stored.reshape(-1, order="F").view(np.uint8)), len(files))
    for file, part in zip(files, parts):
        with _named_errors(file), silent():
            _read_part(file, part.data, header)
    return Volume(hu_numbers(path, stored), header.affine)


def itk_image_grid(path: Path, *, assumed: str | None = None) -> Grid:
    """Give the grid of an image from its header; `assumed` and errors as `read_itk_image`."""
    header, _ = _open(path, assumed)
    return Grid(header.shape, header.affine)


def itk_image_bytes(path: Path) -> int:
    """Give the size that an image has in memory as float32, from its header; 0 if that cannot be read."""
    try:
        return 4 * math.prod(_open(path, "RAS")[0].shape)  # any would do for the size
    except ValueError:
        return 0


def states_orientation(path: Path) -> bool:
    """Whether an image says how its axes lie in the patient; errors as `data_files`."""
    with _named_header(path):
        return not _is_nrrd(path) or states_space(nrrd_fields(_beginning(path))[0])


def data_files(path: Path) -> list[Path]:
    """Give the files with the voxels that a header names, in their order; none if they lie behind it.

    Raises
    ------
    ValueError
        If the header cannot be read, or names what is no file below its own folder. The text names the file.
    """
    check_is_file(path, "an NRRD or MetaImage file")
    with _named_header(path):
        _, names, _ = (nrrd_fields if _is_nrrd(path) else metaimage_fields)(_beginning(path))
    return _files_below(path, names)


def hu_numbers(name: Path | str, stored: np.ndarray) -> np.ndarray:
    """Give the numbers of a CT the type that the rest of the program works with.

    Parameters
    ----------
    name : Path or str
        What is read, for the message.
    stored : np.ndarray
        Numbers as read, any real type.

    Returns
    -------
    np.ndarray of int16 or float32, same shape
        int16 for whole numbers that fit, else float32; what is no finite number becomes -1024 HU (air).

    Raises
    ------
    ValueError
        If no number is finite.
    """
    limits = np.iinfo(np.int16)
    stored = signed_hu(stored) if stored.dtype.kind in "iu" else stored
    if stored.dtype.kind in "iu" and limits.min <= stored.min() and stored.max() <= limits.max:
        return stored.astype(np.int16, copy=False)
    return finite_hu(name, stored.astype(np.float32, copy=False))


def check_grid(name: Path | str, grid: Grid) -> None:
    """Refuse a grid whose axes are no right-angled ones in mm, or that no scanner makes.

    Parameters
    ----------
    name : Path or str
        What is read, for the message.
    grid : Grid
        Its grid.

    Raises
    ------
    ValueError
        Says what was expected and what was found.
    """
    spacing_mm = grid.spacing_mm
    if not np.isfinite(grid.affine).all() or spacing_mm.min() <= 0:
        raise ValueError(f"{name}: expected spacings over 0 mm, found {listed(spacing_mm)} mm.")
    slant = slant_degrees(grid.affine)
    if slant > MAX_SLANT_DEGREES:
        raise ValueError(f"{name}: expected axes at right angles, found one {slant:.1f} degrees off.")
    for expected, found in odd_places(spacing_mm, spacing_mm * grid.shape, grid.affine[:3, 3]):
        raise ValueError(f"{name}: expected {expected}, found {listed(found)} mm.")


def slant_degrees(affine: np.ndarray) -> float:
    """Give the largest angle by which two axes of a grid miss the right angle, in degrees."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def _open(path: Path, assumed: str | None) -> tuple[TextHeader, list[Path]]:
    """Read the header, and refuse what is no volume of real numbers before memory is asked for."""
    check_is_file(path, "an NRRD or MetaImage file")
    with _named_header(path), silent():
        raw = _beginning(path)
        header = nrrd_header(raw, assumed=assumed) if _is_nrrd(path) else metaimage_header(raw)
    files = data_files(path) or [path]
    _check_size(path, header, files)
    with silent():
        check_grid(path, Grid(header.shape, header.affine))
    return header, files


def _beginning(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEADER_BYTES)


@contextlib.contextmanager
def _named_header(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with its header."""
    try:
        yield
    except OSError as error:
        check_room(path, error)
        raise ValueError(f"{path}: expected a file that can be read, found {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _files_below(path: Path, names: Sequence[str]) -> list[Path]:
    """Find the files with the voxels: a header from elsewhere must not lead to any other file of the user."""
    folder, files = path.parent.absolute(), [path.parent / name for name in names]
    for name, file in zip(names, files):
        leads_out = ".." in file.parts[len(path.parent.parts) :] or not file.absolute().is_relative_to(folder)
        if leads_out or "\0" in name:
            raise ValueError(
                f"{path}: expected voxels in files below its own folder, found {printable(name[:200])}."
            )
        check_is_file(file, f"the voxels of {path.name}")
    return files


def _check_size(path: Path, header: TextHeader, files: Sequence[Path]) -> None:
    """Compare what the header claims with what its files can hold at most."""
    claimed = math.prod(header.shape) * header.dtype.itemsize
    held = sum(file.stat().st_size for file in files)
    if claimed > MOST_BYTES[header.encoding] * held or claimed % len(files):
        raise ValueError(
            f"{path}: expected a whole file, found {held} bytes in {len(files)} files for the shape "
            f"{header.shape}."
        )


def _read_part(file: Path, buffer: memoryview, header: TextHeader) -> None:
    """Read the voxels of one file to its end."""
    at_end = header.begin < 0
    begin = max(0, file.stat().st_size - len(buffer)) if at_end else header.begin
    skipped = {"skipped_lines": header.skipped_lines, "skipped_bytes": header.skipped_bytes}
    with opened_voxels(file, header.encoding, header.dtype, begin=begin, **skipped) as stream:
        fill(buffer, stream, header.shape, spare_bytes=1)


def _is_nrrd(path: Path) -> bool:
    return path.name.lower().endswith((".nrrd", ".nhdr"))


_named_errors = partial(named_errors, expected="a whole NRRD or MetaImage file", errors=STREAM_ERRORS)
