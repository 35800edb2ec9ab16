"""Where the spine is: the heatmap of a whole volume, and the questions that the walk asks of it.

Pure functions on volumes. The network comes in as a function, so nothing here loads TensorFlow. Points
are voxel indices (P, R, I) of the volume whose affine is given beside them; the heatmap has a coarse
grid of its own, and points reach it through the two affines.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from utils.imaging.grids import transform_points
from utils.imaging.intensities import normalise_hu
from utils.imaging.resampling import heatmap_ct
from utils.imaging.volume import Volume

#: Gives the heat (p, r, i) of a normalised CT of the same shape.
PredictHeat = Callable[[np.ndarray], np.ndarray]
SLICE_AXIS = 2


def locate_spine(working: Volume, predict_heat: PredictHeat, *, shape: tuple[int, int, int]) -> Volume:
    """Give the spine's heatmap of a scan, on the small grid of the heatmap network.

    Parameters
    ----------
    working : Volume
        The scan on its working grid in Hounsfield units (`working_ct`). It is resized by the function
        that the pre-processing uses, so the network sees what it was trained on.
    predict_heat : callable
        The heatmap network: from a CT in [-1, 1] to the heat, both arrays of `shape`.
    shape : tuple of int
        Shape (P, R, I) of the heatmap grid.

    Returns
    -------
    Volume
        Heat, float32 in [0, 1], with the affine of its own grid.

    Raises
    ------
    ValueError
        If the network gives another shape or a number that is not finite.
    """
    small = heatmap_ct(working, shape)
    heat = np.asarray(predict_heat(normalise_hu(small.data)), np.float32)
    if heat.shape != tuple(shape):
        raise ValueError(f"Expected a heatmap of shape {tuple(shape)}, received {heat.shape}.")
    if not np.isfinite(heat).all():
        raise ValueError("Expected a finite heatmap, received NaN or infinite heat from the network.")
    return Volume(heat, small.affine)


def heat_at(heat: Volume, points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Read the heat at points, linear between the voxels of the heatmap, its edge value outside.

    Parameters
    ----------
    heat : Volume
        The spine's heatmap.
    points : np.ndarray (n, 3)
        Voxel indices in the grid of `affine`.
    affine : np.ndarray (4, 4)
        Affine of the points' grid, to mm.

    Returns
    -------
    np.ndarray (n,)
        Heat.
    """
    at = transform_points(np.asarray(points, float), affine, heat.affine)
    return ndimage.map_coordinates(heat.data.astype(np.float32), at.T, order=1, mode="nearest")


def top_of_spine(heat: Volume, affine: np.ndarray, *, threshold: float) -> np.ndarray | None:
    """Find the hottest point of the top-most slice that reaches a heat.

    Parameters
    ----------
    heat : Volume
        The spine's heatmap, oriented (P, R, I).
    affine : np.ndarray (4, 4)
        Affine of the grid that the answer is wanted in, to mm.
    threshold : float
        Heat at which the spine begins.

    Returns
    -------
    np.ndarray (3,) or None
        Voxel index in the grid of `affine`; None if no slice reaches the threshold.
    """
    return _hottest_from(heat, affine, first_slice=0, threshold=threshold)


def point_below(
    heat: Volume, point: np.ndarray, affine: np.ndarray, *, distance_mm: float, threshold: float
) -> np.ndarray | None:
    """Follow the spine downwards: the hottest point of the slice that lies a distance below a point.

    Parameters
    ----------
    heat : Volume
        The spine's heatmap, oriented (P, R, I).
    point : np.ndarray (3,)
        Voxel index in the grid of `affine`.
    affine : np.ndarray (4, 4)
        Affine of the point's grid, to mm.
    distance_mm : float
        How far to go down, in mm.
    threshold : float
        Slices that stay under this heat are passed over: the spine does not run through them.

    Returns
    -------
    np.ndarray (3,) or None
        Voxel index in the grid of `affine`; None if the spine ends before that slice.
    """
    here = transform_points(np.asarray(point, float)[None], affine, heat.affine)[0]
    below = here[SLICE_AXIS] + distance_mm / heat.spacing_mm[SLICE_AXIS]
    return _hottest_from(heat, affine, first_slice=max(0, round(float(below))), threshold=threshold)


def _hottest_from(
    heat: Volume, affine: np.ndarray, *, first_slice: int, threshold: float
) -> np.ndarray | None:
    slices = np.moveaxis(heat.data, SLICE_AXIS, 0)
    reached = np.flatnonzero(slices.max(axis=(1, 2)) >= threshold)
    reached = reached[reached >= first_slice]
    if not reached.size:
        return None
    within = np.unravel_index(np.argmax(slices[reached[0]]), slices.shape[1:])
    index = np.array([*within, reached[0]], float)
    return transform_points(index[None], heat.affine, affine)[0]
