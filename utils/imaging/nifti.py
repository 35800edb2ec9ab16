"""The one place that reads and writes NIfTI."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.volumeutils import apply_read_scaling

from utils.files import written_whole
from utils.imaging.file_checks import check_is_file, check_memory, listed, named_errors, odd_places
from utils.imaging.grids import ASSUME_HINT, SAME_GRID_VOXELS, affine_of_axes, voxels_apart
from utils.imaging.intensities import finite_hu
from utils.imaging.nifti_forms import HeaderForms, forms_of
from utils.imaging.quiet import silent
from utils.imaging.volume import Grid, Volume
from utils.imaging.voxel_streams import DEFLATE_RATIO, STREAM_ERRORS, fill
from utils.verse.labels import CODES

#: Last byte at which voxels may begin: what stands before them is kept, in 16 bytes at a time.
_LATEST_BEGIN = 2**22
#: A mask that nibabel scaled to 8 bits is off by up to half of 25 / 255; an interpolated one is off by more.
_LABEL_TOLERANCE = 0.1
#: What nibabel, gzip and NumPy raise on a broken file.
_READ_ERRORS = (*STREAM_ERRORS, ImageFileError, HeaderDataError, HeaderTypeError)
_named_errors = partial(named_errors, expected="a whole NIfTI file", errors=_READ_ERRORS)


def read_ct(path: Path, *, most_bytes: float = np.inf, assumed: str | None = None) -> Volume:
    """Read a CT in Hounsfield units on its native grid.

    Parameters
    ----------
    path : Path
        NIfTI file, three axes; more of length 1 are dropped.
    most_bytes : float
        Memory that it may take (`check_memory`).
    assumed : str, optional
        Where the voxel axes lead in the patient if the header does not say it, such as "RAS".

    Returns
    -------
    Volume
        int16 where the file stores int16 unscaled, else float32; voxels that are no finite number
        become -1024 HU (air).

    Raises
    ------
    ValueError
        If the file is not there, cannot be read whole, has not three axes, does not say how they lie, has no
        usable spacing, takes too much memory, or holds no finite value. The text names the file, what was
        expected and what was found.
    """
    image = _open_nifti(path, most_bytes, assumed)
    data = _read_data(path, image)
    if data.dtype.kind == "f":
        data = finite_hu(path, data)
    return Volume(data, np.array(image.affine, np.float64))


def read_mask(path: Path, *, most_bytes: float = np.inf, assumed: str | None = None) -> Volume:
    """Read a VerSe mask on its native grid.

    Parameters
    ----------
    path : Path
        NIfTI file of any number type, three axes.
    most_bytes, assumed : float, and str, optional
        As for `read_ct`.

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
    image = _open_nifti(path, most_bytes, assumed)
    with _named_errors(path), silent():
        stored = _stored_numbers(image)
    unchanged = stored.dtype == np.uint8 and _is_unscaled(image)
    mask = Volume(stored if unchanged else _codes(path, stored, image), np.array(image.affine, np.float64))
    check_labels(path, np.array(list(mask.label_boxes), np.float64))
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
            check_labels(path, np.unique(plane))
        codes[..., index] = cast
    if stored.dtype.kind == "f" and not any_number:
        raise ValueError(f"{path}: expected numbers, found not one finite voxel.")
    return codes


def read_pair(ct_path: Path, mask_path: Path, *, most_bytes: float = np.inf) -> tuple[Volume, Volume]:
    """Read a CT and its mask, which must lie on the same grid.

    Raises
    ------
    ValueError
        As `read_ct` and `read_mask`, and if shapes differ or a corner lies a tenth of a voxel apart.
    """
    mask = read_mask(mask_path, most_bytes=most_bytes)  # first: it may take more memory than the CT
    ct = read_ct(ct_path, most_bytes=most_bytes)
    if ct.shape != mask.shape:
        raise ValueError(f"{mask_path}: expected the shape of {ct_path}, {ct.shape}, found {mask.shape}.")
    apart = voxels_apart(ct.grid, mask.affine)
    if apart > SAME_GRID_VOXELS:
        raise ValueError(
            f"{mask_path}: expected the position of {ct_path}, found corners {apart:.2g} voxels apart."
        )
    return ct, mask


def native_grid(path: Path, *, assumed: str | None = None) -> Grid:
    """Give the grid of a scan from its header; `assumed` and errors as `read_ct`."""
    image = _open_nifti(path, assumed=assumed)
    return Grid(tuple(image.shape), np.array(image.affine, np.float64))


def native_bytes(path: Path) -> int:
    """Give the size that a scan has in memory as float32, read from its header; 0 if that cannot be read."""
    try:
        return 4 * math.prod(_open_nifti(path, assumed="RAS").shape)  # any would do for the size
    except ValueError:
        return 0


def header_forms(path: Path) -> HeaderForms:
    """Give how the header of a file says where its voxels lie; errors as `read_ct`, but for no code."""
    path = Path(path)
    check_is_file(path, "a NIfTI file")
    with _named_errors(path), silent():
        return forms_of(_header_as_stored(nibabel.load(path, mmap=False)))


def write_volume(path: Path, volume: Volume, *, forms: HeaderForms | None = None) -> None:
    """Write a volume as NIfTI, whole or not at all.

    Parameters
    ----------
    path : Path
        File ending in .nii or .nii.gz; its folder is made if it is not there.
    volume : Volume
        The number type of its data is kept.
    forms : HeaderForms, optional
        Of the file that it shares its grid with: it then lies where that does in every program. By default a
        sform of the volume's affine.
    """
    path = Path(path)
    image = nibabel.Nifti1Image(np.asarray(volume.data), volume.affine, dtype=volume.data.dtype)
    image.header.set_xyzt_units("mm")
    if forms is not None:
        forms.put_into(image.header)
        # Without an affine of its own: nibabel would turn it into a sform where the header has no code.
        image = nibabel.Nifti1Image(image.dataobj, None, image.header)
    # nibabel takes the format from the name's end.
    with written_whole(path, suffix=".nii.gz" if path.name.endswith(".gz") else ".nii") as temporary:
        nibabel.save(image, temporary)


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """An uncompressed, unscaled NIfTI file whose header was checked, to be mapped whenever it is needed.

    A memory map holds a file open for as long as any view of it lives. Mapping anew takes a twentieth of a
    millisecond, checking the header more than one.

    Attributes
    ----------
    path : Path
        The file that holds the voxels.
    dtype : np.dtype
        Their type.
    offset : int
        Byte at which they begin.
    shape : tuple of int, 3
        Shape of the volume.
    affine : np.ndarray of float64, (4, 4)
        Voxel index to world, in mm, RAS+.
    """

    path: Path
    dtype: np.dtype
    offset: int
    shape: tuple[int, int, int]
    affine: np.ndarray

    def mapped(self) -> Volume:
        """Map the file: its data is a read-only memory map, so a crop reads only what it needs."""
        with _named_errors(self.path):
            data = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")
        return Volume(data, self.affine)


def stored_volume(path: Path) -> StoredVolume:
    """Check the header of an uncompressed NIfTI file without reading the rest.

    Raises
    ------
    ValueError
        As `read_ct`, and if the file is compressed or scaled.
    """
    image = _open_nifti(path)
    file = Path(image.file_map["image"].filename)
    if file.suffix.lower() in Opener.compress_ext_map or not _is_unscaled(image):
        raise ValueError(f"{path}: expected an uncompressed and unscaled NIfTI file, found another.")
    place = image.dataobj
    affine = np.array(image.affine, np.float64)
    return StoredVolume(file, place.dtype, int(place.offset), tuple(image.shape), affine)


def open_memory_map(path: Path) -> Volume:
    """Open an uncompressed NIfTI file without reading it; see `stored_volume` and `StoredVolume.mapped`."""
    return stored_volume(path).mapped()


def _open_nifti(path: Path, most_bytes: float = np.inf, assumed: str | None = None) -> nibabel.Nifti1Pair:
    """Load header and affine, and refuse what no later step could use, or what takes too much memory."""
    path = Path(path)
    check_is_file(path, "a NIfTI file")
    with _named_errors(path), silent():
        _check_begin(path)
        image = nibabel.load(path, mmap=False)
        stored = _header_as_stored(image) if isinstance(image, nibabel.Nifti1Pair) else None
    if stored is None:
        raise ValueError(f"{path}: expected a NIfTI file, found {type(image).__name__}.")
    if len(image.shape) > 3 and set(image.shape[3:]) == {1}:
        image = _with_three_axes(image)
    if len(image.shape) != 3 or min(image.shape) < 1:
        raise ValueError(f"{path}: expected a volume with 3 axes, found shape {image.shape}.")
    for expected, found in _faults(stored):
        raise ValueError(f"{path}: expected {expected}, found {found}.")
    _check_size(path, image)
    if not forms_of(stored).states_orientation:
        image = _with_axes(path, image, stored, assumed)
    with silent():
        _check_spacing(path, image, stored)
    check_memory(path, image.shape, np.linalg.norm(image.affine[:3, :3], axis=0), most_bytes)
    return image


def _check_begin(path: Path) -> None:
    """Refuse a header that is followed by too much: nibabel reads all remarks between header and voxels."""
    opened = igzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rb") as stream:
        raw = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        begin = 0.0
        if kind.may_contain_header(raw):
            begin = float(kind(raw[: kind.sizeof_hdr], check=False)["vox_offset"])
        if begin > _LATEST_BEGIN:
            raise ValueError(f"voxels begin after {begin:g} bytes, more than {_LATEST_BEGIN}")


def _with_axes(path: Path, image: nibabel.Nifti1Pair, stored: Any, assumed: str | None) -> nibabel.Nifti1Pair:
    """Place an image by the axes that the user knows: nibabel would guess, and other programs otherwise."""
    if assumed is None:
        raise ValueError(
            f"{path}: expected a qform_code or sform_code over 0, which say how the axes lie in the patient, "
            f"found both 0; write the orientation into the header, or {ASSUME_HINT}."
        )
    affine = affine_of_axes(assumed, _positive_mm(path, stored["pixdim"][1:4]))
    return type(image)(image.dataobj, affine, image.header, file_map=image.file_map)


def _with_three_axes(image: nibabel.Nifti1Pair) -> nibabel.Nifti1Pair:
    """Drop the axes of length 1 that converters write behind the third; the voxels lie as before."""
    place = image.dataobj.reshape(image.shape[:3])
    return type(image)(place, image.affine, image.header, file_map=image.file_map)


def _header_as_stored(image: nibabel.Nifti1Pair) -> Any:
    """Read the header again without nibabel's silent repairs."""
    file = image.file_map.get("header", image.file_map["image"])
    with file.get_prepare_fileobj("rb") as stream:
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
    _positive_mm(path, stored["pixdim"][1:4])
    spacing_mm = _positive_mm(path, np.linalg.norm(affine[:3, :3], axis=0))
    # The determinant relative to the spacings is the volume of the unit cell: 1 for a right angle.
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < 1e-3:
        raise ValueError(f"{path}: expected an affine that can be inverted, found {affine[:3].tolist()}.")
    for expected, found in odd_places(spacing_mm, spacing_mm * image.shape, affine[:3, 3]):
        raise ValueError(f"{path}: expected {expected}, found {listed(found)} mm.")


def _positive_mm(path: Path, spacing_mm: np.ndarray) -> np.ndarray:
    """Give spacings as they are, if they are some."""
    spacing_mm = np.asarray(spacing_mm, np.float64)
    if not np.all(np.isfinite(spacing_mm)) or np.any(spacing_mm <= 0):
        raise ValueError(f"{path}: expected spacings over 0 mm, found {listed(spacing_mm)} mm.")
    return spacing_mm


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
    """Read the voxels and the rest of the file, where nibabel stops after the last voxel; see `fill`."""
    numbers = np.empty(image.shape, image.dataobj.dtype, order="F")
    buffer = memoryview(numbers.reshape(-1, order="F").view(np.uint8))
    with _open_for_reading(image.file_map["image"]) as stream:
        stream.seek(int(image.dataobj.offset))
        # A file may be padded, but whole planes of voxels say that the shape is wrong.
        fill(buffer, stream, image.shape, spare_bytes=numbers.nbytes // max(image.shape))
    return numbers


def _open_for_reading(file: FileHolder) -> contextlib.AbstractContextManager[Any]:
    """Open the file of an image; gzip, of which reading a scan mostly consists, by the faster igzip."""
    if file.filename is not None and str(file.filename).lower().endswith(".gz"):
        return igzip.open(file.filename, "rb")
    return file.get_prepare_fileobj("rb")


def check_labels(path: Path, present: np.ndarray) -> None:
    """Raise a `ValueError` that names the file if a number is no VerSe code, but for what rounding mends."""
    codes = np.rint(present)
    known = np.isin(codes, (0, *CODES)) & np.isclose(present, codes, rtol=0, atol=_LABEL_TOLERANCE)
    unknown = [f"{value:g}" for value in present[~known]]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"{path}: expected VerSe labels (0-25 or 28), found {shown}.")
