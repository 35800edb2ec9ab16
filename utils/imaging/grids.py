"""Orientation and grids: where voxels lie, and the way from one frame to another.

Orientation follows the affine that nibabel resolves, and nothing else in the project knows about LPS or RAS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel import orientations

from utils.imaging.volume import Grid, Volume

#: Orientation of every working volume: index grows towards posterior, right, inferior.
WORKING_AXES = ("P", "R", "I")
#: Largest distance, in voxels, between corners of two grids that count as the same grid.
SAME_GRID_VOXELS = 0.1
#: Headers hold float32: 1.0000001 mm must not add a voxel.
_ROUNDING_VOXELS = 1e-3
#: Largest angle between an axis of a scan and one of the patient at which working grids follow the scan.
MOST_TURN_DEGREES = 5.0
#: What to do about a scan whose header does not say how its axes lie.
ASSUME_HINT = "give infer.py --assume-orientation with the directions of its three axes, such as RAS"


def oriented(volume: Volume, axes: Sequence[str] = WORKING_AXES) -> Volume:
    """Flip and transpose a volume so that its axes grow towards given directions.

    Parameters
    ----------
    volume : Volume
        Any volume.
    axes : sequence of str, (3,)
        One of L/R, one of P/A and one of I/S, in any order.

    Returns
    -------
    Volume
        A view of the data; the affine follows, so every voxel stays where it was in the world.
    """
    turn = _turn(volume.affine, axes)
    data = orientations.apply_orientation(volume.data, turn)
    return Volume(data, volume.affine @ orientations.inv_ornt_aff(turn, volume.shape))


def oriented_grid(grid: Grid, axes: Sequence[str] = WORKING_AXES) -> Grid:
    """Flip and transpose a grid as `oriented` does with a volume."""
    turn = _turn(grid.affine, axes)
    shape = [0, 0, 0]
    for axis, (target, _) in enumerate(turn):
        shape[int(target)] = grid.shape[axis]
    return Grid(tuple(shape), grid.affine @ orientations.inv_ornt_aff(turn, grid.shape))


def affine_of_axes(axes: str, spacing_mm: np.ndarray) -> np.ndarray:
    """Give the affine of a volume of which nothing is known but where its axes lead.

    Parameters
    ----------
    axes : str
        One of L/R, one of P/A and one of I/S, in any order, such as "RAS" or "pir".
    spacing_mm : np.ndarray, (3,)
        Distance of neighbouring voxels along each axis, in mm.

    Returns
    -------
    np.ndarray of float64, (4, 4)
        Voxel index to world, RAS+, with the first voxel in the origin.
    """
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (of_world, sign) in enumerate(orientations.axcodes2ornt(axes.upper())):
        affine[int(of_world), axis] = sign * spacing_mm[axis]
    return affine


def working_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Give the isotropic (P, R, I) grid that covers a native grid.

    Parameters
    ----------
    grid : Grid
        Native grid.
    spacing_mm : float
        Spacing of the new grid, in mm.

    Returns
    -------
    Grid
        Its axes and its centre are those of the native one, and it is at most a voxel larger. Where that is
        turned by more than `MOST_TURN_DEGREES`, its axes are the patient's, and it is at most two voxels
        larger.

    Raises
    ------
    ValueError
        If the spacing is no positive number.
    """
    if not (np.isfinite(spacing_mm) and spacing_mm > 0):
        raise ValueError(f"Expected a spacing over 0 mm, received {spacing_mm}.")
    if is_turned(grid):
        middle = (np.array(grid.shape) - 1) / 2
        return upright_grid(grid, spacing_mm, transform_points(middle, grid.affine, np.eye(4))[0])
    return parallel_grid(grid, spacing_mm)


def parallel_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Give the isotropic (P, R, I) grid that covers a native grid with axes parallel to its own."""
    turned = oriented_grid(grid)
    shape = _voxels_of(np.array(turned.shape) * turned.spacing_mm, spacing_mm)
    return _concentric(turned, shape, spacing_mm / turned.spacing_mm)


def upright_grid(grid: Grid, spacing_mm: float, point_mm: np.ndarray) -> Grid:
    """Give the isotropic grid along the patient's axes (P, R, I) that covers a native grid.

    Parameters
    ----------
    grid : Grid
        Native grid, at any angle.
    spacing_mm : float
        Spacing of the new grid, in mm.
    point_mm : np.ndarray, (3,)
        A point of the world on which a voxel of the new grid lies.

    Returns
    -------
    Grid
        Every voxel that the native one reaches into.
    """
    affine = affine_of_axes("".join(WORKING_AXES), np.full(3, spacing_mm))
    affine[:3, 3] = point_mm
    faces = transform_points(faces_of(grid.shape), grid.affine, affine)
    begin = np.floor(faces.min(axis=0) + 0.5 + _ROUNDING_VOXELS)
    end = np.ceil(faces.max(axis=0) + 0.5 - _ROUNDING_VOXELS)
    affine[:3, 3] += affine[:3, :3] @ begin
    return Grid(tuple(int(n) for n in np.maximum(end - begin, 1)), affine)


def _voxels_of(extent_mm: np.ndarray, spacing_mm: float) -> tuple[int, ...]:
    voxels = np.ceil(extent_mm / spacing_mm - _ROUNDING_VOXELS)
    return tuple(int(n) for n in np.maximum(voxels, 1))


def is_turned(grid: Grid) -> bool:
    """Whether a scan is turned so far against the patient that its working grids do not follow it."""
    return turn_degrees(grid.affine) > MOST_TURN_DEGREES


def turn_degrees(affine: np.ndarray) -> float:
    """Give the largest angle between an axis of a grid and the patient's axis that it stands for."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    of_patient = orientations.io_orientation(affine)[:, 0].astype(int)
    cosines = np.abs(directions[of_patient, range(3)])
    return float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))


def cropped_grid(grid: Grid, begin: Sequence[int], end: Sequence[int]) -> Grid:
    """Give the part of a grid from voxel `begin` up to but not including voxel `end`, both (3,)."""
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ np.asarray(begin, np.float64)
    return Grid(tuple(int(n) for n in np.subtract(end, begin)), affine)


def resized_grid(grid: Grid, shape: Sequence[int]) -> Grid:
    """Give the (P, R, I) grid of a given shape that has exactly the extent of a grid.

    Parameters
    ----------
    grid : Grid
        Any grid.
    shape : sequence of int, (3,)
        Voxels along P, R and I.

    Returns
    -------
    Grid
        Its outer faces are those of `grid`.
    """
    turned = oriented_grid(grid)
    return _concentric(turned, tuple(int(n) for n in shape), np.array(turned.shape) / np.array(shape))


def transform_points(points: np.ndarray, from_affine: np.ndarray, to_affine: np.ndarray) -> np.ndarray:
    """Map voxel indices of one frame to voxel indices of another, through the world.

    Parameters
    ----------
    points : np.ndarray, (n, 3)
        Voxel indices, fractions allowed, in the frame of `from_affine`.
    from_affine, to_affine : np.ndarray, (4, 4)
        Voxel index to world, in mm. The identity stands for the world itself.

    Returns
    -------
    np.ndarray of float64, (n, 3)
        Voxel indices in the frame of `to_affine`.
    """
    points = np.asarray(points, np.float64).reshape(-1, 3)
    mapping = np.linalg.inv(to_affine) @ from_affine
    return points @ mapping[:3, :3].T + mapping[:3, 3]


def _turn(affine: np.ndarray, axes: Sequence[str]) -> np.ndarray:
    return orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt("".join(axes))
    )


def _concentric(grid: Grid, shape: tuple[int, ...], factor: np.ndarray) -> Grid:
    """Give a grid of the same axes and centre whose voxels are `factor` times as large."""
    centre, new_centre = (np.array(grid.shape) - 1) / 2, (np.array(shape) - 1) / 2
    to_old = np.eye(4)
    to_old[:3, :3] = np.diag(factor)
    to_old[:3, 3] = centre - factor * new_centre
    return Grid(shape, grid.affine @ to_old)


def voxels_apart(grid: Grid, affine: np.ndarray) -> float:
    """Give how far a grid's corners lie, at most along an axis, from where an affine has them, in voxels."""
    corners = corners_of(grid.shape)
    return float(np.abs(transform_points(corners, affine, grid.affine) - corners).max())


def reach_in(grid: Grid, part: Grid, *, margin: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Give the first voxel of a grid that a part of another one reaches, and the one after the last.

    Parameters
    ----------
    grid : Grid
        Where voxels are wanted.
    part : Grid
        The part, at any angle.
    margin : int
        Voxels more on every side, as far as the grid goes.

    Returns
    -------
    begin, end : np.ndarray of int, (3,)
        Within the grid; the same along an axis where they do not meet.
    """
    corners = transform_points(faces_of(part.shape), part.affine, grid.affine)
    begin = np.clip(np.floor(corners.min(axis=0)) - margin, 0, grid.shape).astype(int)
    end = np.clip(np.ceil(corners.max(axis=0)) + 1 + margin, 0, grid.shape).astype(int)
    return begin, end


def faces_of(shape: Sequence[int]) -> np.ndarray:
    """Give the voxel indices of the eight corners of a volume's outer faces, (8, 3)."""
    return np.array(list(np.ndindex(2, 2, 2))) * np.array(shape) - 0.5


def corners_of(shape: Sequence[int]) -> np.ndarray:
    """Give the voxel indices of the eight corners of a volume, (8, 3)."""
    return np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
