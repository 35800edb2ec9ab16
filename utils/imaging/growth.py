"""Masks brought to a grid with their surfaces moved by less than a voxel.

For instance from one convention of where bone ends to another (`utils.verse.conventions`).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.special import ndtr

from utils.imaging.crops import box_between
from utils.imaging.grids import cropped_grid, reach_in
from utils.imaging.resampling import resample_linear
from utils.imaging.volume import Grid, Volume

#: Standard deviation of the blur that makes a slope of a mask's surface, mm: about half as wide as a lamina.
_SLOPE_MM = 0.7
#: Voxels that the part of a grid around a vertebra is widened by.
_MARGIN = 4


def grown_mask(mask: Volume, grid: Grid, by_mm: float) -> Volume:
    """Bring a mask to a grid, and move the surface of every vertebra outwards.

    The blurred indicator of a mask falls across a flat surface like a normal distribution, so that its value
    at a distance is known, and a threshold there moves the surface by less than a voxel.

    Parameters
    ----------
    mask : Volume of uint8
        Labels, 0 outside.
    grid : Grid
        Any grid.
    by_mm : float
        How far, negative inwards.

    Returns
    -------
    Volume of uint8
        Labels on the grid. Where two vertebrae would meet, a voxel is of the one that has more of it.
    """
    spacing = grid.spacing_mm
    # The edges of voxels add to the slope: once of the mask, once of the linear interpolation.
    squares = np.square(mask.spacing_mm) + np.square(np.maximum(mask.spacing_mm, spacing))
    slope_mm = np.sqrt(_SLOPE_MM**2 + squares.mean() / 12)
    threshold = float(ndtr(-by_mm / slope_mm))
    labels = np.zeros(grid.shape, np.uint8)
    best = np.zeros(grid.shape, np.float32)
    for code, box in mask.label_boxes.items():
        part = cropped_grid(mask.grid, [side.start for side in box], [side.stop for side in box])
        begin, end = reach_in(grid, part, margin=_MARGIN)
        wide = tuple(slice(max(side.start - _MARGIN, 0), side.stop + _MARGIN) for side in box)
        affine = mask.affine.copy()
        affine[:3, 3] += mask.affine[:3, :3] @ [side.start for side in wide]
        own_part = Volume((mask.data[wide] == code).astype(np.float32), affine)
        share = resample_linear(own_part, cropped_grid(grid, begin, end)).data
        share = ndimage.gaussian_filter(share, _SLOPE_MM / spacing, mode="nearest")
        here = box_between(begin, end)
        wins = (share >= threshold) & (share > best[here])
        labels[here][wins], best[here][wins] = code, share[wins]
    return Volume(labels, grid.affine)
