"""A CT and its mask as other programs write them: any format, the axes of the mask in any order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from utils.imaging.dicom import find_series
from utils.imaging.formats import SCAN_SUFFIXES, read_scan
from utils.imaging.grids import SAME_GRID_VOXELS, oriented, voxels_apart
from utils.imaging.nifti import check_labels, read_mask
from utils.imaging.volume import Volume
from utils.verse.cases import visible_files

_NIFTI_SUFFIXES = (".nii", ".nii.gz")


def read_labelled_scan(
    ct_path: Path, mask_path: Path, *, most_bytes: float = np.inf
) -> tuple[Volume, Volume]:
    """Read a CT and its mask, each of any format.

    Parameters
    ----------
    ct_path, mask_path : Path
        NIfTI, NRRD or MetaImage file, or the folder of a DICOM series.
    most_bytes : float
        Memory that each may take (`check_memory`).

    Returns
    -------
    ct, mask : Volume
        On the grid of the CT. The axes of the mask are turned where they are those of the CT in another
        order or direction; nothing is resampled.

    Raises
    ------
    ValueError
        As `read_scan` and `read_label_image`, and if the voxels of the two do not lie at the same places. The
        text names the file, what was expected and what was found.
    """
    mask = read_label_image(
        mask_path, most_bytes=most_bytes
    )  # first: reading it may take more memory than the CT
    ct = read_scan(ct_path, series_at(ct_path), most_bytes=most_bytes)
    if not _on_one_grid(ct, mask):
        mask = oriented(mask, nibabel.aff2axcodes(ct.affine))
    if ct.shape != mask.shape:
        raise ValueError(f"{mask_path}: expected the shape of {ct_path}, {ct.shape}, found {mask.shape}.")
    if not _on_one_grid(ct, mask):
        apart = voxels_apart(ct.grid, mask.affine)
        raise ValueError(
            f"{mask_path}: expected the position of {ct_path}, found corners {apart:.2g} voxels apart."
        )
    return ct, Volume(np.ascontiguousarray(mask.data), ct.affine)


def read_label_image(path: Path, *, most_bytes: float = np.inf) -> Volume:
    """Read a mask of any format, with VerSe's labels.

    Parameters
    ----------
    path : Path
        As those of `read_labelled_scan`.
    most_bytes : float
        Memory that it may take (`check_memory`).

    Returns
    -------
    Volume of uint8
        VerSe codes on the native grid.

    Raises
    ------
    ValueError
        As `read_scan`, and if it holds a number that is no VerSe code.
    """
    if Path(path).name.lower().endswith(_NIFTI_SUFFIXES):
        return read_mask(path, most_bytes=most_bytes)
    volume = read_scan(path, series_at(path), most_bytes=most_bytes)
    check_labels(path, np.unique(volume.data))
    return Volume(np.rint(volume.data).astype(np.uint8), volume.affine)


def series_at(path: Path) -> Sequence[Path]:
    """Give the files of the one DICOM series that a folder holds, or a file is; of any other file nothing.

    Raises
    ------
    ValueError
        If a folder holds no series, or several. The text names some.
    """
    path = Path(path)
    if path.name.lower().endswith(SCAN_SUFFIXES) and not path.is_dir():
        return ()
    files = list(visible_files(path)) if path.is_dir() else [path]
    found = find_series(file for file in files if file.is_file())  # a pipe would be waited for without end
    if len(found.scans) == 1:
        return found.scans[0].files
    reasons = [series.name for series in found.scans] or [*found.bad, *found.skipped]
    some = f": {' '.join(reasons[:2])}" if reasons else ""
    raise ValueError(
        f"{path}: expected a file ending in {', '.join(SCAN_SUFFIXES)} or a folder with one DICOM series, "
        f"found {len(found.scans) or 'no'} series{some}"
    )


def _on_one_grid(ct: Volume, mask: Volume) -> bool:
    return ct.shape == mask.shape and voxels_apart(ct.grid, mask.affine) <= SAME_GRID_VOXELS
