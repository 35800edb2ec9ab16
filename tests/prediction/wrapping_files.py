"""Files that hold one scan in other forms, written without the project's readers and writers.

Every function takes a scan of whole Hounsfield units and a folder, writes there, and gives what is to be
passed to `infer.py`.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel
import nrrd
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from utils.imaging.grids import oriented
from utils.imaging.volume import Grid, Volume
from utils.settings import HU_RANGE

#: How far an axis of a stack that is turned may be coarser: wider slices at an angle show less than the scan.
COARSEST_TURNED_MM = 1.5
#: Voxels that padding adds on each side.
MARGIN = 12
#: Sign of the first two axes of the world in the frames that NRRD knows.
NRRD_SIGNS = {"left-posterior-superior": (-1, -1), "right-anterior-superior": (1, 1)}
NRRD_SIGNS["left-anterior-superior"] = (-1, 1)


# Voxels ----------------------------------------------------------------------------------------------


def stored_as(ct: Volume, axes: str) -> Volume:
    """Give the same voxels in another order, such as "PIR"."""
    turned = oriented(ct, tuple(axes))
    return Volume(np.ascontiguousarray(turned.data), turned.affine)


def resampled(ct: Volume, grid: Grid) -> Volume:
    """Give a scan on another grid of any direction: cubic splines, whole numbers, air outside the scan."""
    to_ct = np.linalg.inv(ct.affine) @ grid.affine
    turn, begin, shape = to_ct[:3, :3], to_ct[:3, 3], {"output_shape": grid.shape}
    splines = ndimage.affine_transform(
        ct.data.astype(np.float32), turn, begin, **shape, order=3, mode="nearest"
    )
    box = np.ones(ct.shape, bool)
    inside = ndimage.affine_transform(box, turn, begin, **shape, order=0, mode="grid-constant")
    hu = np.rint(np.clip(splines, *HU_RANGE)).astype(np.int16)
    return Volume(np.where(inside, hu, np.int16(HU_RANGE[0])), grid.affine)


def covering_grid(ct: Volume, turn: np.ndarray, spacing_mm: Sequence[float]) -> Grid:
    """Give the grid that covers a scan, its axes turned by a rotation (3, 3) of the world."""
    directions = turn @ (ct.affine[:3, :3] / ct.spacing_mm)
    faces = np.array(list(np.ndindex(2, 2, 2))) * ct.shape - 0.5
    corners = (faces @ ct.affine[:3, :3].T + ct.affine[:3, 3]) @ directions
    begin, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    shape = np.ceil(extent / spacing_mm - 1e-3).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    affine[:3, 3] = directions @ (begin + extent / 2 - (shape - 1) / 2 * spacing_mm)
    return Grid(tuple(int(n) for n in shape), affine)


def turned_stack(ct: Volume, degrees: float, about: Sequence[float]) -> Volume:
    """Give the scan as a stack whose axes are turned about an axis of the world: the patient stays.

    The corners of the stack hold air, as after a program that turns stacks: no anatomy is made up.
    """
    axis = np.array(about, float) / np.linalg.norm(about)
    turn = Rotation.from_rotvec(np.radians(degrees) * axis).as_matrix()
    spacing_mm = np.minimum(ct.spacing_mm, COARSEST_TURNED_MM)
    return resampled(ct, covering_grid(ct, turn, spacing_mm))


def of_spacing(ct: Volume, spacing_mm: Sequence[float]) -> Volume:
    """Give the scan with other spacings along its axes."""
    return resampled(ct, covering_grid(ct, np.eye(3), np.array(spacing_mm, float)))


def padded(ct: Volume, value: int) -> Volume:
    """Give the scan with planes of a number on every side; int32, so that any number fits."""
    affine = ct.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, MARGIN)
    return Volume(np.pad(ct.data.astype(np.int32), MARGIN, constant_values=value), affine)


# NIfTI -----------------------------------------------------------------------------------------------


def write_nifti(
    path: Path,
    ct: Volume,
    *,
    kind: type[nibabel.Nifti1Pair] = nibabel.Nifti1Image,
    codes: tuple[int, int] = (1, 1),
    forms: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    scaling: tuple[float, float] | None = None,
    big_endian: bool = False,
) -> Path:
    """Write a scan with nibabel.

    `codes` and `forms` are of qform and sform; a form of None is the scan's. With `scaling` (slope and
    intercept) the numbers given are those stored.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = kind.header_class(endianness=">" if big_endian else "<")
    header.set_data_dtype(ct.data.dtype)
    header.set_xyzt_units("mm")
    image = kind(ct.data, ct.affine, header)
    qform, sform = (ct.affine if form is None else form for form in forms)
    image.set_sform(sform, codes[1])
    image.set_qform(qform, codes[0])
    if scaling:
        image.header.set_slope_inter(*scaling)
    nibabel.save(image, path)
    return path


def numbers(ct: Volume, dtype: type[np.number], *, slope: float = 1, intercept: float = 0) -> Volume:
    """Give what is stored of a scan as numbers of a type, before slope and intercept."""
    return Volume(((ct.data.astype(np.float64) - intercept) / slope).astype(dtype), ct.affine)


def moved(affine: np.ndarray, *, shift_mm: float = 0, degrees: float = 0, slant: float = 0) -> np.ndarray:
    """Give an affine shifted in front, turned about left-right, and with its third axis slanted, a little."""
    changed = affine.copy()
    changed[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix() @ changed[:3, :3]
    changed[:3, 2] += slant * changed[:3, 0] / np.linalg.norm(changed[:3, 0])
    changed[1, 3] += shift_mm
    return changed


# NRRD and MetaImage ----------------------------------------------------------------------------------


def write_nrrd(
    path: Path, ct: Volume, *, space: str = "left-posterior-superior", encoding: str = "gzip"
) -> Path:
    """Write a scan with pynrrd, in one of the patient's frames; `.nhdr` gives a header and its voxels."""
    affine = np.diag([*NRRD_SIGNS.get(space, (1, 1)), 1, 1]) @ ct.affine
    header = {"space": space, "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    header.update(kinds=["domain"] * 3, encoding=encoding)
    if not space:
        header = {"spacings": ct.spacing_mm, "encoding": encoding}
    path.parent.mkdir(parents=True, exist_ok=True)
    nrrd.write(os.fsdecode(path), ct.data, header, detached_header=path.suffix == ".nhdr")
    return path


def write_metaimage(path: Path, ct: Volume, *, compressed: bool) -> Path:
    """Write a scan with SimpleITK."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(ct.data.T))
    lps = np.diag([-1.0, -1, 1, 1]) @ ct.affine
    image.SetSpacing(ct.spacing_mm.tolist())
    image.SetDirection((lps[:3, :3] / ct.spacing_mm).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


def written_elsewhere(path: Path, ct: Volume) -> Path:
    """Write a NIfTI file with a name that nibabel would not take for one."""
    raw = write_nifti(path.parent / "plain.nii", ct)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw.read_bytes(), 1, mtime=0))
    raw.unlink()
    return path
