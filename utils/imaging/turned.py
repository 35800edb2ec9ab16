"""Resampling between grids whose axes are not parallel, by SciPy's own affine transform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

#: SciPy repeats the border voxel so often before it fits a spline (`mode="nearest"`).
_REPEATS = 12
#: Rounding must not put a voxel that lies on a face beyond it.
_TOLERANCE = 1e-6


def turned_cubic(
    data: np.ndarray,
    mapping: np.ndarray,
    shape: Sequence[int],
    *,
    sigmas: Sequence[float] = (0.0, 0.0, 0.0),
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """Interpolate with cubic B-splines, as `scipy.ndimage.affine_transform(order=3, mode="nearest")` does.

    In single precision, so that a large volume takes a copy or two of its size as float32 and not eight.

    Parameters
    ----------
    data : np.ndarray, (i, j, k)
        Values of any real type.
    mapping : np.ndarray, (4, 4)
        Takes a new voxel index to an old one.
    shape : sequence of int, (3,)
        New shape.
    sigmas : sequence of float, (3,)
        Gaussian that smooths each old axis first, in voxels.
    bounds : tuple of float, optional
        Values are clipped to these before.

    Returns
    -------
    np.ndarray of float32
    """
    values = data if bounds is None else np.clip(data, *bounds)
    if any(sigma > 0 for sigma in sigmas):
        values = ndimage.gaussian_filter(values, sigmas, output=np.float32, mode="nearest")
    spline = np.pad(values, _REPEATS, mode="edge").astype(np.float32, copy=False)
    for axis in range(3):
        ndimage.spline_filter1d(spline, 3, axis, output=spline, mode="nearest")
    offset = mapping[:3, 3] + _REPEATS
    how = {"output_shape": tuple(shape), "output": np.float32, "mode": "nearest", "prefilter": False}
    return ndimage.affine_transform(spline, mapping[:3, :3], offset, order=3, **how)


def turned_linear(data: np.ndarray, mapping: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Interpolate linearly, the border value going on outside; arguments and result as `turned_cubic`."""
    how = {"output_shape": tuple(shape), "output": np.float32, "mode": "nearest", "order": 1}
    return ndimage.affine_transform(np.asarray(data, np.float32), mapping[:3, :3], mapping[:3, 3], **how)


def set_beyond(values: np.ndarray, mapping: np.ndarray, old_shape: Sequence[int], value: float) -> None:
    """Set the new voxels that lie beyond the outer faces of the old volume, in place.

    Parameters
    ----------
    values : np.ndarray, (p, r, i)
        Values on the new grid.
    mapping : np.ndarray, (4, 4)
        As `turned_cubic`.
    old_shape : sequence of int, (3,)
        Shape of the old volume.
    value : float
        What they become.
    """
    _, rows, columns = values.shape
    in_plane = (
        np.arange(rows)[:, None] * mapping[:3, 1, None, None]
        + np.arange(columns) * mapping[:3, 2, None, None]
    )
    last = np.array(old_shape)[:, None, None] - 0.5 + _TOLERANCE
    for index, plane in enumerate(values):
        at = in_plane + (mapping[:3, 3] + index * mapping[:3, 0])[:, None, None]
        plane[((at < -0.5 - _TOLERANCE) | (at > last)).any(axis=0)] = value
