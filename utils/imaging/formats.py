"""Scans of any format: the one place that decides how a scan is read, and whether it can be a CT.

NIfTI goes to `volume.read_ct`, NRRD and MetaImage to `itk_images`, the files of a DICOM series to `dicom`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.imaging.dicom import read_series, series_bytes, series_grid
from utils.imaging.file_checks import check_memory
from utils.imaging.hu_check import wrong_numbers
from utils.imaging.itk_images import (
    ITK_SUFFIXES,
    data_files,
    itk_image_bytes,
    itk_image_grid,
    read_itk_image,
    states_orientation,
)
from utils.imaging.nifti import header_forms, native_bytes, native_grid, read_ct
from utils.imaging.nifti_forms import UNSTATED, HeaderForms
from utils.imaging.volume import Grid, Volume

#: Ends of the names of files that are scans by themselves, in small letters.
SCAN_SUFFIXES = (".nii", ".nii.gz", *ITK_SUFFIXES)

#: Names of the formats that are no NIfTI.
_FORMS = {"NRRD": (".nrrd", ".nhdr"), "MetaImage": (".mha", ".mhd")}
#: Least extent of a scan in which a vertebra is looked for: the neck's bodies are 10 mm high or more, and one
#: alone is no spine.
LEAST_EXTENT_MM = 10.0


def read_scan(
    path: Path, series: Sequence[Path] = (), *, most_bytes: float = np.inf, assumed: str | None = None
) -> Volume:
    """Read a CT in Hounsfield units, whatever its format.

    Parameters
    ----------
    path : Path
        NIfTI, NRRD or MetaImage file; of a DICOM series its folder.
    series : sequence of Path
        The files of a DICOM series, in any order.
    most_bytes : float
        Memory that it may take (`check_memory`).
    assumed : str, optional
        Where the voxel axes lead in the patient if no header says it, such as "RAS".

    Returns
    -------
    Volume
        On its native grid, RAS+.

    Raises
    ------
    ValueError
        If it cannot be used (`read_ct`, `read_itk_image`, `read_series`) or takes too much memory. The text
        names the file.
    """
    grid = scan_grid(path, series, assumed=assumed)
    check_memory(path, grid.shape, grid.spacing_mm, most_bytes)
    if series:
        return read_series(series)
    return (read_itk_image if _is_itk_image(path) else read_ct)(path, assumed=assumed)


def scan_grid(path: Path, series: Sequence[Path] = (), *, assumed: str | None = None) -> Grid:
    """Give where the voxels of a scan lie, from its headers alone; arguments and errors as `read_scan`."""
    if series:
        return series_grid(series)
    return (itk_image_grid if _is_itk_image(path) else native_grid)(path, assumed=assumed)


def mask_forms(path: Path, series: Sequence[Path] = ()) -> HeaderForms | None:
    """Give the forms that the header of a scan's mask should have.

    Returns
    -------
    HeaderForms or None
        Those of a NIfTI scan, so that its mask lies on it in every program. No code, so that none states a
        guess, for a scan that does not say how its axes lie. None for any other scan: the affine says all.
    """
    if series or (_is_itk_image(path) and states_orientation(path)):
        return None
    return UNSTATED if _is_itk_image(path) else header_forms(path)


def too_flat(grid: Grid) -> str:
    """Say why a scan cannot hold a vertebra, whatever it shows; "" if it can."""
    least_mm = float((grid.spacing_mm * grid.shape).min())
    return f"it is {least_mm:.3g} mm thick, and a spine needs {LEAST_EXTENT_MM:g} mm" * (
        least_mm < LEAST_EXTENT_MM
    )


def scan_bytes(path: Path, series: Sequence[Path] = ()) -> int:
    """Give the size that a scan has in memory as float32, from its headers; 0 if these cannot be read."""
    if series:
        return series_bytes(series)
    return itk_image_bytes(path) if _is_itk_image(path) else native_bytes(path)


def files_of_scan(path: Path, series: Sequence[Path] = ()) -> list[Path]:
    """Give all files that a scan is read from: of a header, the file with the voxels too."""
    if series:
        return list(series)
    return [path, *(data_files(path) if _is_itk_image(path) else ())]


def form_of(path: Path, series: Sequence[Path] = ()) -> str:
    """Name the format of a scan, such as "NIfTI"; arguments as `read_scan`."""
    if series:
        return f"DICOM, {len(series)} files"
    name = path.name.lower()
    return next((form for form, ends in _FORMS.items() if name.endswith(ends)), "NIfTI")


def hu_doubt(ct: Volume) -> str:
    """Say why the numbers of a scan are probably no Hounsfield units; "" if they look like them."""
    words = wrong_numbers(ct.data)
    return f"values from {ct.data.min():g} to {ct.data.max():g}, {words}" if words else ""


def _is_itk_image(path: Path) -> bool:
    return path.name.lower().endswith(ITK_SUFFIXES)
