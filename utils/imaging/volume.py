"""Volumes with their affine: the one place that reads and writes NIfTI, orients and resamples.

A `Volume` never changes; every function gives a new one. Orientation follows the affine that nibabel
resolves, and nothing outside this module knows about LPS or RAS.

Working and native grids have parallel axes, so resampling separates: one sparse matrix an axis. A
column of such a matrix is SciPy's own answer to a unit impulse, which makes the product of the three
equal to SciPy's N-dimensional spline (`mode="nearest"`) at a fraction of its cost.
"""

from __future__ import annotations

import contextlib
import errno
import math
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from isal import igzip, isal_zlib
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.volumeutils import apply_read_scaling
from scipy import ndimage, sparse

from utils.files import written_whole
from utils.settings import HU_RANGE
from utils.verse.labels import CODES

#: Orientation of every working volume: index grows towards posterior, right, inferior.
WORKING_AXES = ("P", "R", "I")
#: Above this spacing the working grid is so much coarser than a CT that it must be smoothed first.
FINE_SPACING_MM = 1.0

#: Largest extent of a scan along an axis; more means that the header's unit is wrong.
_MAX_EXTENT_MM = 4000.0
#: Largest volume of a scan, twice that of a whole body; at 1 mm more would fill the memory.
_MAX_LITRES = 2000.0
#: Least spacing of a scan: a tenth of the finest that a clinical scanner gives.
_LEAST_SPACING_MM = 0.01
#: Largest distance of a scan from the origin: single precision still resolves a hundredth of a mm there.
_MAX_ORIGIN_MM = 1e5
#: The most that deflate can shrink: a compressed file never holds more bytes than this times its own.
DEFLATE_RATIO = 1032
#: Held while remarks are kept off the terminal.
_SILENCE = threading.RLock()
#: Bytes that are read at once.
_BLOCK_BYTES = 2**22
#: A mask that nibabel scaled to 8 bits is off by up to half of 25 / 255; an interpolated one is off by more.
_LABEL_TOLERANCE = 0.1
#: Largest distance, in voxels, between corners of two grids that count as the same grid.
SAME_GRID_VOXELS = 0.1
#: Weights below this change no voxel by a hundredth of a Hounsfield unit.
_NEGLIGIBLE_WEIGHT = 1e-6
#: Size of the slabs that are resampled at once along the last axis, in voxels.
_SLAB_VOXELS = 2**21
#: What nibabel, gzip and NumPy raise on a broken file.
_READ_ERRORS = (
    OSError,
    EOFError,
    zlib.error,
    isal_zlib.error,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie.

    Attributes
    ----------
    shape : tuple of int, (3,)
        Number of voxels along each axis.
    affine : np.ndarray of float64, (4, 4)
        Voxel index to world, in mm, RAS+.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        """Distance of neighbouring voxels along each axis, in mm, (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional array and the affine that places it in the world.

    Attributes
    ----------
    data : np.ndarray, (i, j, k)
        Intensities or labels.
    affine : np.ndarray of float64, (4, 4)
        Voxel index to world, in mm, RAS+.
    """

    data: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        return self.data.shape

    @property
    def spacing_mm(self) -> np.ndarray:
        """Distance of neighbouring voxels along each axis, in mm, (3,)."""
        return self.grid.spacing_mm

    @property
    def grid(self) -> Grid:
        """The volume's grid, without its data."""
        return Grid(tuple(int(n) for n in self.data.shape), self.affine)

    @cached_property
    def label_boxes(self) -> dict[int, tuple[slice, slice, slice]]:
        """The smallest box around each label of a label volume, by label; the search is made once."""
        return label_boxes(self.data)


# Reading and writing -------------------------------------------------------------------------------


def read_ct(path: Path) -> Volume:
    """Read a CT in Hounsfield units on its native grid.

    Parameters
    ----------
    path : Path
        NIfTI file, three axes.

    Returns
    -------
    Volume
        int16 where the file stores int16 unscaled, else float32; voxels that are no finite number
        become -1024 HU (air).

    Raises
    ------
    ValueError
        If the file is not there, cannot be read whole, has not three axes, has no usable spacing, or
        holds no finite value. The text names the file, what was expected and what was found.
    """
    image = _open_nifti(path)
    data = _read_data(path, image)
    if data.dtype.kind == "f":
        data = finite_hu(path, data)
    return Volume(data, np.array(image.affine, np.float64))


def read_mask(path: Path) -> Volume:
    """Read a VerSe mask on its native grid.

    Parameters
    ----------
    path : Path
        NIfTI file of any number type, three axes.

    Returns
    -------
    Volume of uint8
        VerSe codes, 0 outside and where the file holds NaN. Values are rounded before they are cast, since
        VerSe has float64 masks.

    Raises
    ------
    ValueError
        As `read_ct`, and if the file holds a number that is no VerSe code, such as a fraction.
    """
    image = _open_nifti(path)
    with _named_errors(path), silent():
        stored = _stored_numbers(image)
    unchanged = stored.dtype == np.uint8 and _is_unscaled(image)
    mask = Volume(stored if unchanged else _codes(path, stored, image), np.array(image.affine, np.float64))
    _check_labels(path, np.array(list(mask.label_boxes), np.float64))
    return mask


def _codes(path: Path, stored: np.ndarray, image: nibabel.Nifti1Pair) -> np.ndarray:
    """Round and cast a mask plane by plane: in float64, as VerSe has it, it is eight times as large."""
    codes, any_number = np.empty(stored.shape, np.uint8, order="F"), False
    for index, plane in enumerate(_scaled_planes(stored, image)):
        if plane.dtype.kind == "f":
            gaps = np.isnan(plane)
            any_number |= not gaps.all()
            plane = np.where(gaps, 0, plane)
        with silent():  # what does not fit is found by comparing
            cast = np.rint(plane).astype(np.uint8)
        if not np.allclose(plane, cast, rtol=0, atol=_LABEL_TOLERANCE):
            _check_labels(path, np.unique(plane))
        codes[..., index] = cast
    if stored.dtype.kind == "f" and not any_number:
        raise ValueError(f"{path}: expected numbers, found not one finite voxel.")
    return codes


def read_pair(ct_path: Path, mask_path: Path) -> tuple[Volume, Volume]:
    """Read a CT and its mask, which must lie on the same grid.

    Raises
    ------
    ValueError
        As `read_ct` and `read_mask`, and if shapes differ or a corner lies a tenth of a voxel apart.
    """
    mask = read_mask(mask_path)  # first: reading it may take more memory than the CT
    ct = read_ct(ct_path)
    if ct.shape != mask.shape:
        raise ValueError(f"{mask_path}: expected the shape of {ct_path}, {ct.shape}, found {mask.shape}.")
    apart = voxels_apart(ct.grid, mask.affine)
    if apart > SAME_GRID_VOXELS:
        raise ValueError(
            f"{mask_path}: expected the position of {ct_path}, found corners {apart:.2g} voxels apart."
        )
    return ct, mask


def native_bytes(path: Path) -> int:
    """Give the size that a scan has in memory as float32, read from its header; 0 if that cannot be read."""
    try:
        return 4 * math.prod(_open_nifti(path).shape)
    except ValueError:
        return 0


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume as NIfTI, whole or not at all.

    Parameters
    ----------
    path : Path
        File ending in .nii or .nii.gz; its folder is made if it is not there.
    volume : Volume
        The number type of its data is kept.
    """
    path = Path(path)
    image = nibabel.Nifti1Image(np.asarray(volume.data), volume.affine, dtype=volume.data.dtype)
    image.header.set_xyzt_units("mm")
    # nibabel takes the format from the name's end.
    with written_whole(path, suffix=".nii.gz" if path.name.endswith(".gz") else ".nii") as temporary:
        nibabel.save(image, temporary)


def open_memory_map(path: Path) -> Volume:
    """Open an uncompressed NIfTI file without reading it.

    Returns
    -------
    Volume
        Its data is a read-only memory map, so a crop reads only what it needs.

    Raises
    ------
    ValueError
        As `read_ct`, and if the file is compressed or scaled.
    """
    image = _open_nifti(path, memory_map="r")
    with _named_errors(path):
        data = np.asanyarray(image.dataobj)
    if not isinstance(data, np.memmap):
        raise ValueError(f"{path}: expected an uncompressed and unscaled NIfTI file, found another.")
    return Volume(data, np.array(image.affine, np.float64))


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
        found = str(error.strerror)
        if error.errno in (errno.ENOENT, errno.ELOOP):
            found = "a broken link" if path.is_symlink() else "no such file"
    else:
        found = "an empty file" if stat.S_ISREG(status.st_mode) else "no regular file"
        found = "a folder" if stat.S_ISDIR(status.st_mode) else found
    raise ValueError(f"{path}: expected {expected}, found {found}.")


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Give the many errors of a broken file one form that names it."""
    try:
        yield
    except _READ_ERRORS as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected a whole NIfTI file, found a broken one ({found}).") from None


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep remarks of nibabel and NumPy on odd headers and numbers off the terminal.

    nibabel's own suppressor takes the logger's handler away, and Python's last resort then prints the remark.
    Logger and filters belong to the process, so threads take turns.
    """
    with _SILENCE, warnings.catch_warnings(), np.errstate(all="ignore"):
        before = nibabel_logger.disabled
        nibabel_logger.disabled = True
        try:
            warnings.simplefilter("ignore")
            yield
        finally:
            nibabel_logger.disabled = before


def _open_nifti(path: Path, *, memory_map: Literal[False, "r"] = False) -> nibabel.Nifti1Pair:
    """Load header and affine, and refuse what no later step could use."""
    path = Path(path)
    check_is_file(path, "a NIfTI file")
    with _named_errors(path), silent():
        image = nibabel.load(path, mmap=memory_map)
        stored = _header_as_stored(image) if isinstance(image, nibabel.Nifti1Pair) else None
    if stored is None:
        raise ValueError(f"{path}: expected a NIfTI file, found {type(image).__name__}.")
    if len(image.shape) != 3 or min(image.shape) < 1:
        raise ValueError(f"{path}: expected a volume with 3 axes, found shape {image.shape}.")
    for expected, found in _faults(stored):
        raise ValueError(f"{path}: expected {expected}, found {found}.")
    _check_size(path, image)
    with silent():
        _check_spacing(path, image, stored)
    return image


def _header_as_stored(image: nibabel.Nifti1Pair) -> Any:
    """Read the header again without nibabel's silent repairs."""
    with image.file_map["header" if "header" in image.file_map else "image"].get_prepare_fileobj(
        "rb"
    ) as stream:
        return image.header_class.from_fileobj(stream, check=False)


def _faults(stored: Any) -> Iterator[tuple[str, Any]]:
    """Give what is wrong in a header that nibabel would repair by a guess: what was expected, and found."""
    magic = stored.single_magic if stored.is_single else stored.pair_magic
    if stored["magic"].item() != magic:
        yield f"the magic {magic.decode()}", stored["magic"].item().decode("latin-1")
    dtype = stored.get_data_dtype()
    if dtype.kind not in "iuf":
        yield "one real number a voxel", stored.get_value_label("datatype")
    whole_numbers = {"sizeof_hdr": stored.sizeof_hdr, "bitpix": 8 * dtype.itemsize}
    for field, number in whole_numbers.items():
        if stored[field] != number:
            yield f"{field} = {number}", stored[field]
    for field in ("qform_code", "sform_code"):
        if not 0 <= stored[field] <= 5:
            yield f"{field} from 0 to 5", stored[field]
    if stored["sform_code"] == 0 and stored["qform_code"] > 0 and stored["pixdim"][0] not in (-1, 0, 1):
        yield "pixdim[0] of -1 or 1", stored["pixdim"][0]
    # No slope (0 or NaN) means no scaling, but a CT's intercept of -1024 would go with it.
    slope, intercept = float(stored["scl_slope"]), float(stored["scl_inter"])
    unscaled = slope == 0 or math.isnan(slope)
    if math.isinf(slope) or (unscaled and not (intercept == 0 or math.isnan(intercept))):
        yield "a finite slope with its intercept", f"{slope:g} and {intercept:g}"


def _check_spacing(path: Path, image: nibabel.Nifti1Pair, stored: Any) -> None:
    affine = image.affine
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    declared_mm = np.asarray(stored["pixdim"][1:4], np.float64)
    for found in (declared_mm, spacing_mm):
        if not np.all(np.isfinite(found)) or np.any(found <= 0):
            raise ValueError(f"{path}: expected spacings over 0 mm, found {listed(found)} mm.")
    # The determinant relative to the spacings is the volume of the unit cell: 1 for a right angle.
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < 1e-3:
        raise ValueError(f"{path}: expected an affine that can be inverted, found {affine[:3].tolist()}.")
    for expected, found in odd_places(spacing_mm, spacing_mm * image.shape, affine[:3, 3]):
        raise ValueError(f"{path}: expected {expected}, found {listed(found)} mm.")


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


def _check_size(path: Path, image: nibabel.Nifti1Pair) -> None:
    """Compare what the header claims with the size of the file before memory is asked for."""
    claimed = int(image.dataobj.offset) + math.prod(image.shape) * image.dataobj.dtype.itemsize
    file = Path(image.file_map["image"].filename)
    with _named_errors(path):
        most = file.stat().st_size
    if file.suffix.lower() == ".gz":
        most *= DEFLATE_RATIO
    elif file.suffix.lower() in Opener.compress_ext_map:
        return
    if claimed > most:
        raise ValueError(
            f"{path}: expected a whole NIfTI file, found a broken one "
            f"(shape {image.shape} needs {claimed} bytes, the file holds {most} at most)."
        )


def listed(numbers: np.ndarray) -> str:
    """Give numbers as the text of a message, such as "0.7 x 0.7 x 2.5"."""
    return " x ".join(f"{number:g}" for number in numbers)


def _read_data(path: Path, image: nibabel.Nifti1Pair) -> np.ndarray:
    with _named_errors(path), silent():
        stored = _stored_numbers(image)
    if _is_unscaled(image) and stored.dtype.kind in "iu" and np.can_cast(stored.dtype, np.int16):
        # Half the memory of float32, and exact.
        return stored.astype(np.int16, copy=False)
    if _is_unscaled(image) and stored.dtype == np.float32:
        return stored
    data = np.empty(stored.shape, np.float32, order="F")
    for index, plane in enumerate(_scaled_planes(stored, image)):
        with silent():
            data[..., index] = plane
    return data


def _is_unscaled(image: nibabel.Nifti1Pair) -> bool:
    # The loaded header has forgotten its scaling; the array proxy knows it.
    return (image.dataobj.slope, image.dataobj.inter) == (1, 0)


def _scaled_planes(stored: np.ndarray, image: nibabel.Nifti1Pair) -> Iterator[np.ndarray]:
    """Give the planes along the last axis, scaled, which gives float64: one at a time fills no memory."""
    slope, intercept = np.float64(image.dataobj.slope), np.float64(image.dataobj.inter)
    for index in range(stored.shape[2]):
        plane = stored[..., index]
        if not _is_unscaled(image):
            with silent():  # an extreme slope overflows
                plane = apply_read_scaling(plane, slope, intercept)
        yield plane


def _stored_numbers(image: nibabel.Nifti1Pair) -> np.ndarray:
    """Read the voxels and the rest of the file: gzip compares its checksum only at the end.

    nibabel stops after the last voxel, and fills all memory that a damaged header asks for with zeros before
    it reads. Here memory is touched only as bytes arrive.
    """
    numbers = np.empty(image.shape, image.dataobj.dtype, order="F")
    buffer = memoryview(numbers.reshape(-1, order="F").view(np.uint8))
    plane_bytes = numbers.nbytes // max(image.shape)
    with _open_for_reading(image.file_map["image"]) as stream:
        stream.seek(int(image.dataobj.offset))
        begin = spare = 0
        while begin < len(buffer) and (count := stream.readinto(buffer[begin : begin + _BLOCK_BYTES])):
            begin += count
        # A file may be padded, but whole planes of voxels say that the shape is wrong.
        while spare < plane_bytes and (block := stream.read(_BLOCK_BYTES)):
            spare += len(block)
    if begin < len(buffer) or spare >= plane_bytes:
        raise ValueError(f"shape {image.shape} needs {len(buffer)} bytes, not {begin + spare}")
    return numbers


def _open_for_reading(file: FileHolder) -> contextlib.AbstractContextManager[Any]:
    """Open the file of an image; gzip, of which reading a scan mostly consists, by the faster igzip."""
    if file.filename is not None and str(file.filename).lower().endswith(".gz"):
        return igzip.open(file.filename, "rb")
    return file.get_prepare_fileobj("rb")


def _check_labels(path: Path, present: np.ndarray) -> None:
    codes = np.rint(present)
    known = np.isin(codes, (0, *CODES)) & np.isclose(present, codes, rtol=0, atol=_LABEL_TOLERANCE)
    unknown = [f"{value:g}" for value in present[~known]]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"{path}: expected VerSe labels (0-25 or 28), found {shown}.")


def finite_hu(name: Path | str, data: np.ndarray) -> np.ndarray:
    """Fill with air what is no finite number in an array of float32; `ValueError` if nothing is one."""
    finite = np.isfinite(data)
    if not finite.any():
        raise ValueError(f"{name}: expected numbers, found not one finite voxel.")
    return data if finite.all() else np.where(finite, data, np.float32(HU_RANGE[0]))


# Orientation and grids -----------------------------------------------------------------------------


def oriented(volume: Volume, axes: Sequence[str] = WORKING_AXES) -> Volume:
    """Flip and transpose a volume so that its axes grow towards given directions.

    Parameters
    ----------
    volume : Volume
        Any volume.
    axes : sequence of str, (3,)
        One of L/R, one of P/A and one of I/S, in any order.

    Returns
    -------
    Volume
        A view of the data; the affine follows, so every voxel stays where it was in the world.
    """
    turn = _turn(volume.affine, axes)
    data = orientations.apply_orientation(volume.data, turn)
    return Volume(data, volume.affine @ orientations.inv_ornt_aff(turn, volume.shape))


def oriented_grid(grid: Grid, axes: Sequence[str] = WORKING_AXES) -> Grid:
    """Flip and transpose a grid as `oriented` does with a volume."""
    turn = _turn(grid.affine, axes)
    shape = [0, 0, 0]
    for axis, (target, _) in enumerate(turn):
        shape[int(target)] = grid.shape[axis]
    return Grid(tuple(shape), grid.affine @ orientations.inv_ornt_aff(turn, grid.shape))


def working_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Give the isotropic (P, R, I) grid that covers a native grid.

    Parameters
    ----------
    grid : Grid
        Native grid.
    spacing_mm : float
        Spacing of the new grid, in mm.

    Returns
    -------
    Grid
        Same centre, axes parallel to the native ones; at most one voxel larger than the native extent.

    Raises
    ------
    ValueError
        If the spacing is no positive number.
    """
    if not (np.isfinite(spacing_mm) and spacing_mm > 0):
        raise ValueError(f"Expected a spacing over 0 mm, received {spacing_mm}.")
    turned = oriented_grid(grid)
    # Headers hold float32: 1.0000001 mm must not add a voxel.
    voxels = np.ceil(np.array(turned.shape) * turned.spacing_mm / spacing_mm - 1e-3)
    shape = tuple(int(n) for n in np.maximum(voxels, 1))
    return _concentric(turned, shape, spacing_mm / turned.spacing_mm)


def cropped_grid(grid: Grid, begin: Sequence[int], end: Sequence[int]) -> Grid:
    """Give the part of a grid from voxel `begin` up to but not including voxel `end`, both (3,)."""
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ np.asarray(begin, np.float64)
    return Grid(tuple(int(n) for n in np.subtract(end, begin)), affine)


def resized_grid(grid: Grid, shape: Sequence[int]) -> Grid:
    """Give the (P, R, I) grid of a given shape that has exactly the extent of a grid.

    Parameters
    ----------
    grid : Grid
        Any grid.
    shape : sequence of int, (3,)
        Voxels along P, R and I.

    Returns
    -------
    Grid
        Its outer faces are those of `grid`.
    """
    turned = oriented_grid(grid)
    return _concentric(turned, tuple(int(n) for n in shape), np.array(turned.shape) / np.array(shape))


def transform_points(points: np.ndarray, from_affine: np.ndarray, to_affine: np.ndarray) -> np.ndarray:
    """Map voxel indices of one frame to voxel indices of another, through the world.

    Parameters
    ----------
    points : np.ndarray, (n, 3)
        Voxel indices, fractions allowed, in the frame of `from_affine`.
    from_affine, to_affine : np.ndarray, (4, 4)
        Voxel index to world, in mm. The identity stands for the world itself.

    Returns
    -------
    np.ndarray of float64, (n, 3)
        Voxel indices in the frame of `to_affine`.
    """
    points = np.asarray(points, np.float64).reshape(-1, 3)
    mapping = np.linalg.inv(to_affine) @ from_affine
    return points @ mapping[:3, :3].T + mapping[:3, 3]


def _turn(affine: np.ndarray, axes: Sequence[str]) -> np.ndarray:
    return orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt("".join(axes))
    )


def _concentric(grid: Grid, shape: tuple[int, ...], factor: np.ndarray) -> Grid:
    """Give a grid of the same axes and centre whose voxels are `factor` times as large."""
    centre, new_centre = (np.array(grid.shape) - 1) / 2, (np.array(shape) - 1) / 2
    to_old = np.eye(4)
    to_old[:3, :3] = np.diag(factor)
    to_old[:3, 3] = centre - factor * new_centre
    return Grid(shape, grid.affine @ to_old)


def voxels_apart(grid: Grid, affine: np.ndarray) -> float:
    """Give how far a grid's corners lie, at most along an axis, from where an affine has them, in voxels."""
    corners = corners_of(grid.shape)
    return float(np.abs(transform_points(corners, affine, grid.affine) - corners).max())


def corners_of(shape: Sequence[int]) -> np.ndarray:
    """Give the voxel indices of the eight corners of a volume, (8, 3)."""
    return np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)


# Resampling ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _AxisMap:
    """Where the voxels of a grid lie along one axis of a volume: position = offset + scale * index."""

    axis: int
    voxels: int
    new_voxels: int
    scale: float
    offset: float

    @property
    def positions(self) -> np.ndarray:
        return self.offset + self.scale * np.arange(self.new_voxels)


def resample_ct(
    volume: Volume,
    grid: Grid,
    *,
    antialias: bool = False,
    bounds: tuple[float, float] | None = None,
) -> Volume:
    """Bring a CT to a grid of parallel axes with cubic B-splines.

    Equal to `scipy.ndimage.affine_transform(order=3, mode="nearest")`: the border voxel is repeated
    twelve times before the spline is fitted, and further out the value stays.

    Parameters
    ----------
    volume : Volume
        CT of any number type.
    grid : Grid
        Grid whose axes are parallel to the volume's, in any order and direction.
    antialias : bool
        Smooth an axis first, by a Gaussian of max(0, (factor - 1) / 2) voxels, where `factor` is how
        many of the volume's voxels make one of the grid's (Serrador et al. 2024, heatmap input).
    bounds : tuple of float, optional
        The volume's values are clipped to these before.

    Returns
    -------
    Volume of float32
        Not clipped afterwards: splines overshoot at edges.

    Raises
    ------
    ValueError
        If the axes are not parallel.
    """
    maps = _axis_maps(volume.grid, grid)
    matrices = [_spline_matrix(axis_map, sigma=_sigma(axis_map) if antialias else 0.0) for axis_map in maps]
    return Volume(_separable(volume.data, maps, matrices, bounds=bounds), grid.affine)


def resample_linear(volume: Volume, grid: Grid, *, outside: float = 0.0) -> Volume:
    """Bring a volume, such as a probability, to a grid of parallel axes with linear interpolation.

    Parameters
    ----------
    volume : Volume
        Volume of any number type.
    grid : Grid
        Grid whose axes are parallel to the volume's.
    outside : float
        Value beyond the outer faces of the volume; between them and the outermost voxel centres the
        border voxel counts.

    Returns
    -------
    Volume of float32
        The interpolated values.
    """
    maps = _axis_maps(volume.grid, grid)
    data = volume.data if outside == 0 else volume.data - np.float32(outside)
    result = _separable(data, maps, [_linear_matrix(axis_map) for axis_map in maps])
    if outside != 0:
        result += np.float32(outside)
    return Volume(result, grid.affine)


def resample_labels(mask: Volume, grid: Grid) -> Volume:
    """Bring a label volume to a grid of parallel axes, vertebra by vertebra.

    Each label's indicator is interpolated linearly in its own bounding box; a voxel takes the label
    that reaches one half. Indicators sum to 1 at most, so no other label is larger; of two that both
    reach exactly one half the smaller label wins.

    Parameters
    ----------
    mask : Volume of uint8
        Labels, 0 outside.
    grid : Grid
        Grid whose axes are parallel to the volume's.

    Returns
    -------
    Volume of uint8
        Labels, 0 outside and beyond the outer faces of `mask`.
    """
    maps = _axis_maps(mask.grid, grid)
    matrices = [_linear_matrix(axis_map) for axis_map in maps]
    result = np.zeros(grid.shape, np.uint8)
    for label, box in mask.label_boxes.items():
        _add_label(result, mask.data[box] == label, box, label=label, maps=maps, matrices=matrices)
    return Volume(result, grid.affine)


def label_boxes(labels: np.ndarray) -> dict[int, tuple[slice, slice, slice]]:
    """Give the smallest box around each label of a label volume, by label."""
    # find_objects walks along the last axis: files come with the first one contiguous, where it is slow.
    turned = labels.flags.f_contiguous and not labels.flags.c_contiguous
    boxes = ndimage.find_objects(labels.T if turned else labels)
    return {
        label: box[::-1] if turned else box for label, box in enumerate(boxes, start=1) if box is not None
    }


def touches_border(box: tuple[slice, ...], shape: Sequence[int]) -> bool:
    """Whether a box reaches the first or last voxel of any axis of a volume: the end of the field of view."""
    return any(side.start == 0 or side.stop == voxels for side, voxels in zip(box, shape))


def _add_label(
    result: np.ndarray,
    indicator: np.ndarray,
    box: tuple[slice, ...],
    *,
    label: int,
    maps: list[_AxisMap],
    matrices: list[sparse.csr_array],
) -> None:
    """Write one label where its interpolated indicator reaches one half and nothing stands yet."""
    parts, reach = [], []
    for axis_map, matrix in zip(maps, matrices):
        columns = matrix[:, box[axis_map.axis]]
        rows = np.flatnonzero(columns.sum(axis=1) > 0)
        if rows.size == 0:
            return
        reach.append(slice(rows[0], rows[-1] + 1))
        parts.append(columns[reach[-1]])
    region = result[tuple(reach)]
    # Rounding must not decide about a voxel that lies exactly half way.
    inside = _separable(indicator, maps, parts) >= 0.5 - 1e-5
    region[inside & (region == 0)] = label


def _axis_maps(from_grid: Grid, to_grid: Grid) -> list[_AxisMap]:
    """Pair every axis of the new grid with its axis of the old one."""
    mapping = np.linalg.inv(from_grid.affine) @ to_grid.affine
    axes = np.abs(mapping[:3, :3]).argmax(axis=0)
    scales = mapping[axes, range(3)]
    slanted = mapping[:3, :3].copy()
    slanted[axes, range(3)] = 0
    drift = (np.abs(slanted) * to_grid.shape).sum(axis=1).max()
    if sorted(axes) != [0, 1, 2] or drift > SAME_GRID_VOXELS:
        raise ValueError(
            f"Expected grids with parallel axes, received ones that drift {drift:.2g} voxels apart."
        )
    return [
        _AxisMap(int(axis), from_grid.shape[axis], new_voxels, float(scale), float(mapping[axis, 3]))
        for axis, new_voxels, scale in zip(axes, to_grid.shape, scales)
    ]


def _sigma(axis_map: _AxisMap) -> float:
    return max(0.0, (abs(axis_map.scale) - 1) / 2)


def _spline_matrix(axis_map: _AxisMap, *, sigma: float, order: int = 3) -> sparse.csr_array:
    """Smoothing and interpolation along one axis as a matrix (new voxels, voxels)."""
    impulses = np.eye(axis_map.voxels)
    if sigma > 0:
        impulses = ndimage.gaussian_filter1d(impulses, sigma, axis=1, mode="nearest")
    positions = axis_map.positions[None]
    columns = [ndimage.map_coordinates(i, positions, order=order, mode="nearest") for i in impulses]
    weights = np.stack(columns, axis=1)
    weights[np.abs(weights) < _NEGLIGIBLE_WEIGHT] = 0
    return sparse.csr_array(weights.astype(np.float32))


def _linear_matrix(axis_map: _AxisMap) -> sparse.csr_array:
    """Linear interpolation along one axis; rows beyond the outer faces are empty."""
    matrix = _spline_matrix(axis_map, sigma=0.0, order=1)
    positions = axis_map.positions
    inside = (positions >= -0.5 - 1e-6) & (positions <= axis_map.voxels - 0.5 + 1e-6)
    return sparse.csr_array(sparse.diags_array(inside.astype(np.float32)) @ matrix)


def _separable(
    data: np.ndarray,
    maps: list[_AxisMap],
    matrices: list[sparse.csr_array],
    *,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """Apply one matrix an axis and bring the axes into the order of the new grid, (new voxels) float32.

    Values are clipped to the bounds first. Plane by plane along the axis that varies slowest in memory, so
    that whatever the order of a file, planes are read in one piece and both their axes are done in the cache.
    The order in memory so decides about the last bits of a sum.
    """
    slow, rows, columns = np.argsort([-abs(stride) for stride in data.strides], kind="stable")
    by_axis = {axis_map.axis: matrix for axis_map, matrix in zip(maps, matrices)}
    shape = (data.shape[slow], by_axis[columns].shape[0], by_axis[rows].shape[0])
    between = np.empty(shape, np.float32)
    for source, target in zip(data.transpose(slow, rows, columns), between):
        plane = np.ascontiguousarray(source, np.float32)
        if bounds is not None:
            plane = np.clip(plane, *bounds)
        half = by_axis[rows] @ plane
        target[:] = by_axis[columns] @ np.ascontiguousarray(half.T)
    result = np.empty([matrix.shape[0] for matrix in matrices], np.float32)
    place = {axis_map.axis: position for position, axis_map in enumerate(maps)}
    turned = result.transpose(place[slow], place[columns], place[rows])
    step = max(1, _SLAB_VOXELS // (max(by_axis[slow].shape) * shape[2]))
    for begin in range(0, shape[1], step):
        slab = np.ascontiguousarray(between[:, begin : begin + step])
        lines = by_axis[slow] @ slab.reshape(len(slab), -1)
        turned[:, begin : begin + step] = lines.reshape(-1, *slab.shape[1:])
    return result


# Intensities ---------------------------------------------------------------------------------------


def working_ct(ct: Volume, spacing_mm: float, *, grid: Grid | None = None) -> Volume:
    """Bring a native CT to its working grid: clipped, resampled, clipped again.

    Clipped first, since padding of -2048 HU and metal would make the spline ring. Grids coarser than
    1 mm are smoothed before (`resample_ct`).

    Parameters
    ----------
    ct : Volume
        CT in HU on its native grid.
    spacing_mm : float
        Spacing of the working grid, in mm.
    grid : Grid, optional
        The part of the working grid that is wanted; by default all of it.

    Returns
    -------
    Volume of float32
        HU within `HU_RANGE`, axes (P, R, I).
    """
    grid = working_grid(ct.grid, spacing_mm) if grid is None else grid
    working = resample_ct(ct, grid, antialias=spacing_mm > FINE_SPACING_MM, bounds=HU_RANGE)
    np.clip(working.data, *HU_RANGE, out=working.data)  # made here, so no one else sees it change
    return working


def heatmap_ct(working: Volume, shape: Sequence[int]) -> Volume:
    """Resize a whole working CT to the small grid of the heatmap network.

    Parameters
    ----------
    working : Volume
        CT on its working grid (`working_ct`).
    shape : sequence of int, (3,)
        Voxels of the small grid along P, R and I.

    Returns
    -------
    Volume of float32
        HU, smoothed by max(0, (factor - 1) / 2) voxels an axis, cubic, clipped to the input's range
        (Serrador et al. 2024).
    """
    small = resample_ct(working, resized_grid(working.grid, shape), antialias=True)
    return Volume(np.clip(small.data, working.data.min(), working.data.max()), small.affine)


def normalise_hu(hu: np.ndarray) -> np.ndarray:
    """Clip Hounsfield units to [-1024, 3071] and map them linearly to [-1, 1], as float32."""
    low, high = HU_RANGE
    clipped = np.clip(np.asarray(hu), low, high).astype(np.float32)
    return (clipped - low) * np.float32(2 / (high - low)) - 1


def denormalise_hu(intensity: np.ndarray) -> np.ndarray:
    """Map intensities in [-1, 1] back to Hounsfield units, as float32: the inverse of `normalise_hu`."""
    low, high = HU_RANGE
    return (np.asarray(intensity, np.float32) + 1) * np.float32((high - low) / 2) + low
