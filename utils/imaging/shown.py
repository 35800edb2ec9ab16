"""What a working CT shows, and what of it lies beyond the scan: padding, and what is beside a turned scan."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from utils.imaging.crops import box_between, crop
from utils.imaging.grids import cropped_grid, is_turned, transform_points, upright_grid
from utils.imaging.intensities import LOWEST_HU
from utils.imaging.resampling import resample_linear, working_ct
from utils.imaging.volume import Grid, Volume

#: What lies around a scan has -1024 HU; a voxel is of the scan from this on.
IN_SCAN_HU = LOWEST_HU + 10
_BLOCK_MM = 2.0
#: A voxel that holds more than this of both lies at the end of a scan.
_MIXED = 1e-3
#: Where more of a voxel and its 26 neighbours than this lies beyond a scan, it may hold some of both: the
#: network that outlines is shown the nearest value. Of so many one more or less changes little.
_NEAR_END = 0.2
#: Air that the localiser is shown around a turned scan. Of 13 crops of five chests, each turned and resampled
#: in three ways, 34 of the 39 copies got the labels of the first one; of four ways of showing them as before,
#: with the corners as they come, it was 37 of 52.
_FRAME_VOXELS, _FRAME_STEP = 8, 4


def shown_box(inside: np.ndarray) -> tuple[slice, slice, slice]:
    """Give the box of what is inside an array of bool, (p, r, i); all of it if nothing is."""
    sides = []
    for axis in range(3):
        shown = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        sides.append(slice(int(shown[0]), int(shown[-1]) + 1) if shown.size else slice(0, inside.shape[axis]))
    return tuple(sides)


def without_padding(ct: Volume) -> Volume:
    """Cut the planes of -1024 HU at the six faces of a CT off: a padded scan is read as it was before.

    Parameters
    ----------
    ct : Volume
        CT in Hounsfield units.

    Returns
    -------
    Volume
        The same one if it has none.
    """
    box = shown_box(ct.data > IN_SCAN_HU)
    begin, end = [side.start for side in box], [side.stop for side in box]
    if (begin, end) == ([0, 0, 0], list(ct.shape)):
        return ct
    return Volume(
        np.ascontiguousarray(ct.data[box_between(begin, end)]), cropped_grid(ct.grid, begin, end).affine
    )


def share_beyond(ct: Volume, grid: Grid) -> np.ndarray:
    """Give how much of each voxel of a grid lies beyond a scan.

    Parameters
    ----------
    ct : Volume
        CT in Hounsfield units. What has -1024 HU and is connected with the end of the grid is none of it.
    grid : Grid
        A grid that covers the scan, at any angle.

    Returns
    -------
    np.ndarray of float32, (p, r, i)
        From 0, all of it shown, to 1.
    """
    empty = Volume(ct.data <= IN_SCAN_HU, ct.affine)
    share = resample_linear(empty, grid, outside=1.0).data
    # At the end of the scan, in arrays of a byte a voxel.
    near = np.ones((3, 3, 3), bool)
    mixed = ndimage.binary_dilation(share > _MIXED, near) & ndimage.binary_dilation(share < 1 - _MIXED, near)
    share[mixed] = _mean_around(empty, grid, np.argwhere(mixed))
    share[~_connected_with_faces(share > 0)] = 0
    return share


def _connected_with_faces(mask: np.ndarray) -> np.ndarray:
    """Give the parts of a mask that reach a face of its volume."""
    numbers, count = ndimage.label(mask)
    at_face = np.zeros(count + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            at_face[np.take(numbers, end, axis)] = True
    at_face[0] = False
    return at_face[numbers]


def _mean_around(empty: Volume, grid: Grid, voxels: np.ndarray) -> np.ndarray:
    """Give the mean, (n,), over the eight octants of voxels of a grid; 1 beyond the faces of a volume."""
    mean, last = np.zeros(len(voxels), np.float32), np.array(empty.shape) - 0.5
    for octant in np.ndindex(2, 2, 2):
        points = transform_points(voxels + np.array(octant) / 2 - 0.25, grid.affine, empty.affine)
        values = ndimage.map_coordinates(empty.data, points.T, output=np.float32, order=1, mode="nearest")
        values[((points < -0.5) | (points > last)).any(axis=1)] = 1
        mean += values / 8
    return mean


def filled_beyond(ct: Volume, beyond: np.ndarray) -> Volume:
    """Give the voxels beyond a scan the values of those next to them, as "edge" does beyond a volume.

    Parameters
    ----------
    ct : Volume
        Working CT, isotropic.
    beyond : np.ndarray of bool, (p, r, i)
        Which these are.

    Returns
    -------
    Volume
        Filled in blocks of 2 mm where voxels are smaller: the way to the nearest voxel takes 12 bytes each.
    """
    step = max(1, int(_BLOCK_MM / ct.spacing_mm.max() + 1e-6))
    every = (slice(None, None, step),) * 3
    sampled = beyond[every]
    if not beyond.any() or sampled.all():
        return ct
    nearest = ndimage.distance_transform_edt(sampled, return_distances=False, return_indices=True)
    blocks = ct.data[every][tuple(nearest)]
    for axis, voxels in enumerate(ct.shape):
        blocks = np.take(blocks, np.arange(voxels) // step, axis=axis)
    return Volume(np.where(beyond, blocks, ct.data), ct.affine)


def middle_of_scan(ct: Volume) -> np.ndarray:
    """Give the middle of what a scan shows, in the world, (3,): where it lies, and not how it was stacked."""
    shown = ~_connected_with_faces(ct.data <= IN_SCAN_HU)
    sums = [shown.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    middle = [each @ np.arange(len(each)) / max(each.sum(), 1) for each in sums]
    return transform_points(middle, ct.affine, np.eye(4))[0]


def upright_ct(
    ct: Volume, spacing_mm: float, *, middle_mm: np.ndarray, outside: Literal["air", "edge"]
) -> tuple[Volume, np.ndarray]:
    """Bring a turned scan to its working grid, and show what lies beyond it as it is shown beyond others.

    The corners of the grid are empty, and so are those of a stack that a program has turned before. Neither
    may change what a network sees of the scan, so its grid is laid through the middle of what is shown, and
    ends where the scan does.

    Parameters
    ----------
    ct : Volume
        CT in Hounsfield units.
    spacing_mm : float
        Spacing of the working grid, in mm.
    middle_mm : np.ndarray, (3,)
        From `middle_of_scan`.
    outside : str
        What is shown beyond the scan: air, or the nearest voxel.

    Returns
    -------
    working : Volume of float32
        HU, axes (P, R, I), as far as the scan reaches.
    beyond : np.ndarray of bool, (p, r, i)
        Voxels of it of which the scan shows less than a half.
    """
    working, share = _upright(ct, spacing_mm, middle_mm)
    beyond = share >= 0.5
    if outside == "air":
        working = _with_air(working, beyond)
    else:
        around = ndimage.uniform_filter(share, 3, mode="constant", cval=1.0)
        working = filled_beyond(working, around >= _NEAR_END)
    box = shown_box(~beyond)
    begin = [side.start for side in box]
    return crop(working, begin, beyond[box].shape, fill="edge"), beyond[box]


def framed_ct(ct: Volume, spacing_mm: float, middle_mm: np.ndarray) -> Volume:
    """Bring a turned scan to its working grid, as `upright_ct` does, and put a frame of air around it.

    The frame reaches to the next of the planes that lie every `_FRAME_STEP` voxels from the middle of the
    scan, so that the scan lies alike in it though its end is told a voxel farther or nearer.

    Parameters
    ----------
    ct, spacing_mm, middle_mm
        As `upright_ct` takes them.

    Returns
    -------
    Volume of float32
        HU, axes (P, R, I).
    """
    working, share = _upright(ct, spacing_mm, middle_mm)
    beyond = share >= 0.5
    box = shown_box(~beyond)
    middle = np.rint(transform_points(middle_mm, np.eye(4), working.affine)[0]).astype(int)
    begin = np.array([side.start for side in box]) - _FRAME_VOXELS - middle
    end = np.array([side.stop for side in box]) + _FRAME_VOXELS - middle
    begin = middle + _FRAME_STEP * np.floor(begin / _FRAME_STEP).astype(int)
    end = middle + _FRAME_STEP * np.ceil(end / _FRAME_STEP).astype(int)
    return crop(_with_air(working, beyond), begin, end - begin, fill=float(LOWEST_HU))


def localiser_ct(ct: Volume, spacing_mm: float) -> Volume:
    """Bring a scan to the working grid on which vertebrae are looked for, whether it is turned or not."""
    return framed_ct(ct, spacing_mm, middle_of_scan(ct)) if is_turned(ct.grid) else working_ct(ct, spacing_mm)


def _upright(ct: Volume, spacing_mm: float, middle_mm: np.ndarray) -> tuple[Volume, np.ndarray]:
    """Give a scan on the grid through its middle, and how much of each voxel of that lies beyond it."""
    grid = upright_grid(ct.grid, spacing_mm, middle_mm)
    return working_ct(ct, spacing_mm, grid=grid), share_beyond(ct, grid)


def _with_air(ct: Volume, beyond: np.ndarray) -> Volume:
    return Volume(np.where(beyond, np.float32(LOWEST_HU), ct.data), ct.affine)
