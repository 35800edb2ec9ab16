"""Resampling between grids.

Working and native grids mostly have parallel axes, so resampling separates: one sparse matrix an axis. A
column of such a matrix is SciPy's own answer to a unit impulse, which makes the product of the three
equal to SciPy's N-dimensional spline (`mode="nearest"`) at a fraction of its cost. Where a scan is turned
against the patient, and working grids are not (`utils.imaging.grids.working_grid`), it is that spline itself
(`utils.imaging.turned`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage, sparse

from utils.imaging.crops import box_between
from utils.imaging.grids import SAME_GRID_VOXELS, cropped_grid, reach_in, resized_grid, working_grid
from utils.imaging.turned import set_beyond, turned_cubic, turned_linear
from utils.imaging.volume import Grid, Volume
from utils.settings import HU_RANGE

#: Above this spacing the working grid is so much coarser than a CT that it must be smoothed first.
FINE_SPACING_MM = 1.0
#: Rounding must not decide about a voxel that lies exactly half way.
_HALF = 0.5 - 1e-5
#: Weights below this change no voxel by a hundredth of a Hounsfield unit.
_NEGLIGIBLE_WEIGHT = 1e-6
#: Impulses that are answered at once, and how far the spline's answer reaches: .268 to this power is nothing.
_IMPULSES, _SPLINE_REACH = 512, 24
#: Size of the slabs that are resampled at once along the last axis, in voxels.
_SLAB_VOXELS = 2**21


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
    """Bring a CT to a grid with cubic B-splines.

    Equal to `scipy.ndimage.affine_transform(order=3, mode="nearest")`: the border voxel is repeated
    twelve times before the spline is fitted, and further out the value stays.

    Parameters
    ----------
    volume : Volume
        CT of any number type.
    grid : Grid
        Any grid; one whose axes are parallel to the volume's, in any order and direction, is reached faster.
    antialias : bool
        Smooth an axis first, by a Gaussian of max(0, (factor - 1) / 2) voxels, where `factor` is how
        many of the volume's voxels make one of the grid's (Serrador et al. 2024, heatmap input).
    bounds : tuple of float, optional
        The volume's values are clipped to these before.

    Returns
    -------
    Volume of float32
        Not clipped afterwards: splines overshoot at edges.
    """
    mapping = _mapping(volume.grid, grid)
    maps = _axis_maps(mapping, volume.shape, grid.shape)
    if maps is None:
        # Along an axis of the volume a step on the grid is as long as its share of all three ways there.
        factors = np.linalg.norm(mapping[:3, :3], axis=1)
        sigmas = [_sigma(factor) if antialias else 0.0 for factor in factors]
        data = turned_cubic(volume.data, mapping, grid.shape, sigmas=sigmas, bounds=bounds)
        return Volume(data, grid.affine)
    matrices = [
        _spline_matrix(axis_map, sigma=_sigma(axis_map.scale) if antialias else 0.0) for axis_map in maps
    ]
    return Volume(_separable(volume.data, maps, matrices, bounds=bounds), grid.affine)


def resample_linear(volume: Volume, grid: Grid, *, outside: float = 0.0) -> Volume:
    """Bring a volume, such as a probability, to a grid with linear interpolation.

    Parameters
    ----------
    volume : Volume
        Volume of any number type.
    grid : Grid
        Any grid, as for `resample_ct`.
    outside : float
        Value beyond the outer faces of the volume; between them and the outermost voxel centres the
        border voxel counts.

    Returns
    -------
    Volume of float32
        The interpolated values.
    """
    mapping = _mapping(volume.grid, grid)
    maps = _axis_maps(mapping, volume.shape, grid.shape)
    if maps is None:
        result = turned_linear(volume.data, mapping, grid.shape)
        set_beyond(result, mapping, volume.shape, outside)
        return Volume(result, grid.affine)
    data = volume.data if outside == 0 else volume.data - np.float32(outside)
    result = _separable(data, maps, [_linear_matrix(axis_map) for axis_map in maps])
    if outside != 0:
        result += np.float32(outside)
    return Volume(result, grid.affine)


def resample_labels(mask: Volume, grid: Grid, *, extends: bool = False) -> Volume:
    """Bring a label volume to a grid, vertebra by vertebra.

    Each label's indicator is interpolated linearly in its own bounding box; a voxel takes the label
    that reaches one half. Indicators sum to 1 at most, so no other label is larger; of two that both
    reach exactly one half the smaller label wins.

    Parameters
    ----------
    mask : Volume of uint8
        Labels, 0 outside.
    grid : Grid
        Any grid, as for `resample_ct`.
    extends : bool
        Whether the border of the mask goes on beyond its outer faces, for a grid that reaches over them by
        less than a voxel.

    Returns
    -------
    Volume of uint8
        Labels, 0 outside and, unless it extends, beyond the outer faces of `mask`.
    """
    mapping = _mapping(mask.grid, grid)
    maps = _axis_maps(mapping, mask.shape, grid.shape)
    if maps is None:
        return _turned_labels(mask, grid, mapping, extends=extends)
    matrices = [
        _spline_matrix(axis_map, sigma=0.0, order=1) if extends else _linear_matrix(axis_map)
        for axis_map in maps
    ]
    result = np.zeros(grid.shape, np.uint8)
    for label, box in mask.label_boxes.items():
        parts = [matrix[:, box[axis_map.axis]] for axis_map, matrix in zip(maps, matrices)]
        rows = [np.flatnonzero(part.sum(axis=1) > 0) for part in parts]
        if not all(reached.size for reached in rows):
            continue
        reach = tuple(slice(reached[0], reached[-1] + 1) for reached in rows)
        indicator = _separable(mask.data[box] == label, maps, [p[side] for p, side in zip(parts, reach)])
        inside = indicator >= _HALF
        result[reach][inside & (result[reach] == 0)] = label
    return Volume(result, grid.affine)


def _turned_labels(mask: Volume, grid: Grid, mapping: np.ndarray, *, extends: bool) -> Volume:
    """Bring a label volume to a grid at an angle to it; the rule of `resample_labels`."""
    result = np.zeros(grid.shape, np.uint8)
    for label, box in mask.label_boxes.items():
        # With a voxel around it, so that its indicator falls to 0 within its part.
        first = [max(side.start - 1, 0) for side in box]
        last = [min(side.stop + 1, voxels) for side, voxels in zip(box, mask.shape)]
        begin, end = reach_in(grid, cropped_grid(mask.grid, first, last))
        reach = box_between(begin, end)
        own = mapping.copy()
        own[:3, 3] += mapping[:3, :3] @ begin - first
        indicator = turned_linear(mask.data[box_between(first, last)] == label, own, end - begin)
        here = result[reach]
        here[(indicator >= _HALF) & (here == 0)] = label
    if not extends:
        set_beyond(result, mapping, mask.shape, 0)
    return Volume(result, grid.affine)


def _mapping(from_grid: Grid, to_grid: Grid) -> np.ndarray:
    """Give what takes a voxel index of the new grid to one of the old."""
    return np.linalg.inv(from_grid.affine) @ to_grid.affine


def _axis_maps(
    mapping: np.ndarray, shape: tuple[int, ...], new_shape: tuple[int, ...]
) -> list[_AxisMap] | None:
    """Pair every axis of the new grid with its axis of the old one; None if they are not parallel."""
    axes = np.abs(mapping[:3, :3]).argmax(axis=0)
    scales = mapping[axes, range(3)]
    slanted = mapping[:3, :3].copy()
    slanted[axes, range(3)] = 0
    drift = (np.abs(slanted) * new_shape).sum(axis=1).max()
    if sorted(axes) != [0, 1, 2] or drift > SAME_GRID_VOXELS:
        return None
    return [
        _AxisMap(int(axis), shape[axis], new_voxels, float(scale), float(mapping[axis, 3]))
        for axis, new_voxels, scale in zip(axes, new_shape, scales)
    ]


def _sigma(factor: float) -> float:
    return max(0.0, (abs(float(factor)) - 1) / 2)


def _spline_matrix(axis_map: _AxisMap, *, sigma: float, order: int = 3) -> sparse.csr_array:
    """Smoothing and interpolation along one axis as a matrix (new voxels, voxels)."""
    reach = _SPLINE_REACH + int(np.ceil(4 * sigma))
    positions, blocks = axis_map.positions, []
    for begin in range(0, axis_map.voxels, _IMPULSES):
        end = min(begin + _IMPULSES, axis_map.voxels)
        # Nothing further away counts, so a long axis needs no matrix of its length squared.
        first, last = max(begin - reach, 0), min(end + reach, axis_map.voxels)
        impulses = np.eye(end - begin, last - first, begin - first)
        if sigma > 0:
            impulses = ndimage.gaussian_filter1d(impulses, sigma, axis=1, mode="nearest")
        near = np.flatnonzero(_within(positions, first, last, axis_map.voxels))
        at = positions[None, near] - first
        columns = [ndimage.map_coordinates(i, at, order=order, mode="nearest") for i in impulses]
        weights = np.stack(columns, axis=1)
        weights[np.abs(weights) < _NEGLIGIBLE_WEIGHT] = 0
        block = sparse.coo_array(weights.astype(np.float32))
        shape = (axis_map.new_voxels, end - begin)
        blocks.append(sparse.coo_array((block.data, (near[block.row], block.col)), shape))
    return sparse.csr_array(sparse.hstack(blocks))


def _within(positions: np.ndarray, first: int, last: int, voxels: int) -> np.ndarray:
    """Whether positions lie within a part of an axis; an end of the axis goes on without end."""
    low = -np.inf if first == 0 else first
    high = np.inf if last == voxels else last - 1
    return (positions >= low) & (positions <= high)


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


def working_ct(
    ct: Volume,
    spacing_mm: float,
    *,
    grid: Grid | None = None,
    outside: Literal["air", "edge"] = "edge",
) -> Volume:
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
    outside : str
        What lies beyond the scan where it is turned against its working grid: air or the nearest voxel. A
        grid with its axes reaches over it by less than a voxel, and the nearest voxel goes on there.

    Returns
    -------
    Volume of float32
        HU within `HU_RANGE`, axes (P, R, I).
    """
    grid = working_grid(ct.grid, spacing_mm) if grid is None else grid
    working = resample_ct(ct, grid, antialias=spacing_mm > FINE_SPACING_MM, bounds=HU_RANGE)
    np.clip(working.data, *HU_RANGE, out=working.data)  # made here, so no one else sees it change
    mapping = _mapping(ct.grid, grid)
    if outside == "air" and _axis_maps(mapping, ct.shape, grid.shape) is None:
        set_beyond(working.data, mapping, ct.shape, HU_RANGE[0])
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
