"""What a working CT shows, and what of it lies beyond the scan: padding, and what is beside a turned scan."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from utils.imaging.crops import box_between
from utils.imaging.grids import cropped_grid
from utils.imaging.intensities import LOWEST_HU
from utils.imaging.volume import Volume

#: What lies around a scan has -1024 HU; a voxel is of the scan from this on.
IN_SCAN_HU = LOWEST_HU + 10
_BLOCK_MM = 2.0


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


def beyond_scan(ct: Volume) -> np.ndarray:
    """Give the voxels of a CT of which the scan shows nothing.

    Parameters
    ----------
    ct : Volume
        CT in Hounsfield units, -1024 beyond the scan.

    Returns
    -------
    np.ndarray of bool, (p, r, i)
        What has -1024 HU and is connected with a face of the CT, and a voxel around it, which is half of it.
    """
    numbers, count = ndimage.label(ct.data <= IN_SCAN_HU)
    at_face = np.zeros(count + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            at_face[np.take(numbers, end, axis)] = True
    at_face[0] = False
    return ndimage.binary_dilation(at_face[numbers])


def filled_beyond(ct: Volume, beyond: np.ndarray) -> Volume:
    """Give the voxels beyond a scan the values of those next to them, as "edge" does beyond a volume.

    Parameters
    ----------
    ct : Volume
        Working CT, isotropic.
    beyond : np.ndarray of bool, (p, r, i)
        From `beyond_scan`.

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
