"""Images of the ITK world: NRRD and MetaImage files, and the change between its axes and ours.

DICOM, NRRD and MetaImage count millimetres towards left, posterior, superior (LPS+), a `Volume` towards
right, anterior, superior (RAS+); `flipped_world` is the one place that turns one into the other. SimpleITK
is imported where a file is read, so a run on NIfTI files never loads it.
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.imaging.file_checks import check_is_file, listed, named_errors, odd_places
from utils.imaging.intensities import finite_hu, signed_hu
from utils.imaging.nifti import DEFLATE_RATIO
from utils.imaging.volume import Grid, Volume

if TYPE_CHECKING:
    import SimpleITK

#: Ends of the names of the files that this module reads.
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
#: Largest angle between an axis and the right angle to the other two. Such a slant moves the ends of a
#: vertebra of 30 mm by a quarter of a millimetre; a tilted gantry has 5 to 30 degrees.
MAX_SLANT_DEGREES = 0.5

#: Where a header names the file with the voxels, in NRRD's and in MetaImage's words.
_DATA_FILE = re.compile(
    rb"^(?:data ?file\s*:|ElementDataFile\s*=)\s*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE
)
#: A name with one number in it, and which numbers: the form that a header gives the names of slices.
_NUMBERED = re.compile(r"([^%]*%0?\d?d[^%]*?)\s+(\d{1,5})\s+(\d{1,5})\s+([1-9]\d{0,4})")
_HEADER_BYTES = 2**16
_HEADERS = (".nhdr", ".mhd")
_POINTER = re.compile(r"^\w+\(0x[0-9a-f]+\): ")


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


def read_itk_image(path: Path) -> Volume:
    """Read a CT in Hounsfield units from an NRRD or MetaImage file.

    Parameters
    ----------
    path : Path
        File ending in one of `ITK_SUFFIXES`, three axes, one number a voxel.

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
    import SimpleITK

    reader = _open(path)
    with _named_errors(path):
        image = reader.Execute()
    # SimpleITK's arrays have the order z, y, x.
    data = hu_numbers(path, SimpleITK.GetArrayFromImage(image).T)
    volume = Volume(data, _affine_of(image))
    check_grid(path, volume.grid)
    return volume


def itk_image_grid(path: Path) -> Grid:
    """Give the grid of an image from its header; errors as `read_itk_image`."""
    reader = _open(path)
    grid = Grid(tuple(reader.GetSize()), _affine_of(reader))
    check_grid(path, grid)
    return grid


def itk_image_bytes(path: Path) -> int:
    """Give the size that an image has in memory as float32, from its header; 0 if that cannot be read."""
    try:
        return 4 * math.prod(_open(path).GetSize())
    except ValueError:
        return 0


def data_files(path: Path) -> list[Path]:
    """Give the files with the voxels that a header (.nhdr, .mhd) names, in their order."""
    with Path(path).open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    field = _DATA_FILE.search(header)
    if field is None:
        return []
    names = _data_names(field[1].decode(errors="replace"), header[field.end() :].decode(errors="replace"))
    return [file for name in names if (file := Path(path).parent / name).is_file()]


def _data_names(text: str, below: str) -> list[str]:
    """Read the field: a name; `LIST`, with names in the lines below; or `slice%03d.raw first last step`."""
    if text.split()[0] == "LIST":
        return [line.strip() for line in below.splitlines() if line.strip()]
    numbered = _NUMBERED.match(text)
    if numbered is None:
        return [text]
    first, last, step = map(int, numbered.groups()[1:])
    return [numbered[1] % number for number in range(first, last + 1, step)]


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


def _open(path: Path) -> SimpleITK.ImageFileReader:
    """Read the header, and refuse what is no volume of real numbers before memory is asked for."""
    import SimpleITK

    check_is_file(path, "an NRRD or MetaImage file")
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # remarks on odd headers
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with _named_errors(path):
        reader.ReadImageInformation()
    shape, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(shape) != 3 or components != 1 or min(shape) < 1:
        found = f"shape {shape} with {components} numbers a voxel"
        raise ValueError(f"{path}: expected a volume with 3 axes and one number a voxel, found {found}.")
    if str(path).lower().endswith((".nrrd", ".nhdr")):
        _check_space(path, reader)
    _check_size(path, shape)
    return reader


def _check_space(path: Path, reader: SimpleITK.ImageFileReader) -> None:
    """Refuse an NRRD without a patient's frame: readers guess differently which way its axes lead."""
    space = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else "none"
    if "superior" not in space:  # all of the patient's frames that NRRD knows count towards it
        expected = "a field 'space' that says how the axes lie in the patient, such as LPS"
        raise ValueError(f"{path}: expected {expected}, found {space}.")


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    """Compare what the header claims, at one byte a voxel, with what its files can hold at most."""
    voxels = data_files(path)
    if path.suffix.lower() in _HEADERS and not voxels:
        return  # it lists many files, which SimpleITK looks for
    held = sum(file.stat().st_size for file in (path, *voxels))
    if math.prod(shape) > DEFLATE_RATIO * held:
        raise ValueError(f"{path}: expected a whole file, found {held} bytes for the shape {shape}.")


def _itk_error(error: BaseException) -> str:
    """Find the one line that matters among SimpleITK's many."""
    lines = [line.partition("ERROR:")[2].strip() for line in str(error).splitlines() if "ERROR:" in line]
    return _POINTER.sub("", lines[0]) if lines else type(error).__name__


_named_errors = partial(
    named_errors,
    expected="a whole NRRD or MetaImage file",
    errors=(RuntimeError, MemoryError),
    said=_itk_error,
)


def _affine_of(image: SimpleITK.Image | SimpleITK.ImageFileReader) -> np.ndarray:
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return flipped_world(lps)
