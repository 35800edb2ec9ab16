"""Centroids of vertebrae: VerSe's JSON files, and points derived from a mask.

A file holds voxel indices of the volume turned to the *declared* direction, which need not be the
direction of the stored volume. In memory points are kept in the world (mm, RAS+) and go to any grid
through its affine, so no index is ever flipped or scaled by hand.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import orientations
from scipy import ndimage

from utils.files import read_json, written_whole
from utils.imaging.file_checks import check_is_file
from utils.imaging.grids import oriented_grid, transform_points
from utils.imaging.volume import Grid, Volume
from utils.verse.labels import CODES, code_of_name, rank_of_code

#: A point may lie this far outside its scan before file and scan count as not belonging together.
_OUTSIDE_MM = 30.0
#: Largest size of a centroid file; those of VerSe have about 2,000 bytes.
_MAX_BYTES = 2**20
#: The body is first looked for in front of the centre of mass, by a power of the depth that leaves the
#: processes out; then, in a few steps, around it, as far as it is deep and a bit more, or at least so far
#: that the middle of a slice that a scan's end cuts off is found (benchmarks/trial_body_centre.py).
_SEED_POWER, _BODY_POWER, _BODY_STEPS = 6, 2, 3
_BODY_RADII, _LEAST_RADIUS_MM = 1.8, 12.0
_C1 = code_of_name("C1")
#: A vertebra's centre of mass lies so far behind the centre of its body, in mm, in VerSe's masks.
BEHIND_MM = 11.0
#: The middle of a patch that shows one vertebra whole, from its centre of mass, in mm (P, R, I): spinous
#: processes reach further than bodies, and down.
MIDDLE_MM = (8.0, 0.0, 5.0)


@dataclass(frozen=True, eq=False)
class Centroids:
    """One point a vertebra.

    Attributes
    ----------
    codes : np.ndarray of int, (n,)
        VerSe labels, from the top of the spine down.
    points_mm : np.ndarray of float64, (n, 3)
        World coordinates in mm, RAS+.
    """

    codes: np.ndarray
    points_mm: np.ndarray

    def voxels(self, frame: Grid | Volume | np.ndarray) -> np.ndarray:
        """Give the points as voxel indices, (n, 3), of a grid, a volume, or an affine (4, 4)."""
        affine = frame if isinstance(frame, np.ndarray) else frame.affine
        return transform_points(self.points_mm, np.eye(4), affine)


def read_centroids(path: Path, grid: Grid) -> Centroids:
    """Read a VerSe centroid file.

    Headers may be missing (the indices are then those of the stored volume), keys may be in either
    case, and entries that are NaN are dropped.

    Parameters
    ----------
    path : Path
        JSON file.
    grid : Grid
        Native grid of the CT or mask that the file belongs to.

    Returns
    -------
    Centroids
        Ordered from the top of the spine down; may be empty.

    Raises
    ------
    ValueError
        If the file is not there, is no such JSON, names a label twice or one that is no vertebra, or
        holds a point far outside the grid. The text names the file.
    """
    entries = _entries(path)
    try:
        frame = oriented_grid(grid, _declared_axes(entries, grid))
        found = [_point(entry) for entry in entries if "direction" not in entry]
        points = {code: point for code, point in found if all(map(math.isfinite, point))}
        if len({code for code, _ in found}) < len(found):
            raise ValueError(f"expected every label once, found labels {sorted(code for code, _ in found)}")
        ordered = sorted(points, key=rank_of_code)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
    voxels = np.array([points[code] for code in ordered], np.float64).reshape(-1, 3)
    _check_inside(path, voxels, frame)
    return Centroids(np.array(ordered, int), transform_points(voxels, frame.affine, np.eye(4)))


def write_centroids(path: Path, centroids: Centroids, grid: Grid, *, source: str | None = None) -> None:
    """Write a VerSe centroid file, whole or not at all.

    Parameters
    ----------
    path : Path
        JSON file; its folder is made if it is not there.
    centroids : Centroids
        The points.
    grid : Grid
        Grid whose voxel indices and axes the file uses.
    source : str, optional
        Where the points come from if not from an annotator, such as "mask"; kept in the header.
    """
    header: dict[str, Any] = {"direction": list(orientations.aff2axcodes(grid.affine))}
    if source is not None:
        header["source"] = source
    points = [
        {"label": int(code), **{axis: round(float(value), 3) for axis, value in zip("XYZ", voxel)}}
        for code, voxel in zip(centroids.codes, centroids.voxels(grid))
    ]
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps([header, *points]) + "\n")


def centroids_of_mask(mask: Volume, *, anatomical: bool = True) -> Centroids:
    """Estimate the point that VerSe would annotate for every vertebra of a mask.

    That is the centre of the vertebral body, about 11 mm in front of the mask's centre of mass
    (`body_centre`). C1 has no body: its point is the centre of mass.

    Parameters
    ----------
    mask : Volume of uint8
        VerSe codes.
    anatomical : bool
        False for labels that only count vertebrae: 1 is then not C1.

    Returns
    -------
    Centroids
        One point a label, from the top of the spine down; empty for an empty mask.
    """
    boxes = mask.label_boxes
    codes = sorted(boxes, key=rank_of_code)
    voxels = []
    for code in codes:
        vertebra = mask.data[boxes[code]] == code
        without_body = anatomical and code == _C1
        centre = ndimage.center_of_mass(vertebra) if without_body else body_centre(vertebra, mask.affine)
        voxels.append(np.add(centre, [side.start for side in boxes[code]]))
    return Centroids(np.array(codes, int), transform_points(np.array(voxels), mask.affine, np.eye(4)))


def body_centre(vertebra: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Estimate the centre of the vertebral body in one vertebra's mask.

    The body is the deepest part that lies in front. A first guess is the mean of the voxels in front of
    the centre of mass, weighted by a high power of their depth below the surface. It then moves to the
    mean of all voxels within 1.8 times the largest depth, and at least 12 mm, of it, weighted by the squared
    depth, three times: so the far half of a body counts too where the centre of mass cuts it.

    Parameters
    ----------
    vertebra : np.ndarray of bool, (i, j, k)
        The vertebra in its bounding box; at least one voxel.
    affine : np.ndarray, (4, 4)
        Affine of its grid, RAS+ mm: it says where the front is. The position does not matter.

    Returns
    -------
    np.ndarray of float64, (3,)
        Voxel index. The mean distance to the annotated points of three VerSe cases is .6 mm, at most 2.6.
    """
    sampled, first, steps = _thinned(vertebra, np.linalg.norm(affine[:3, :3], axis=0))
    turn = affine[:3, :3] * steps
    depth_mm = ndimage.distance_transform_edt(np.pad(sampled, 1), sampling=np.linalg.norm(turn, axis=0))
    depth_mm = depth_mm[1:-1, 1:-1, 1:-1][sampled]
    points_mm = np.argwhere(sampled) @ turn.T
    # A tolerance, so that rounding leaves a plane of voxels at the centre of mass whole.
    in_front = points_mm[:, 1] >= points_mm[:, 1].mean() - 1e-6
    centre_mm = np.average(points_mm[in_front], axis=0, weights=depth_mm[in_front] ** _SEED_POWER)
    radius_mm = max(_LEAST_RADIUS_MM, _BODY_RADII * depth_mm[in_front].max())
    for _ in range(_BODY_STEPS):
        near = np.linalg.norm(points_mm - centre_mm, axis=1) <= radius_mm
        if not near.any():
            break
        centre_mm = np.average(points_mm[near], axis=0, weights=depth_mm[near] ** _BODY_POWER)
    return np.linalg.solve(turn, centre_mm) * steps + first


def _thinned(vertebra: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leave out voxels to about 1 mm, since at .3 mm a distance transform takes seconds.

    Gives the mask, the voxel it begins with, and the steps, both (3,).
    """
    shape = np.array(vertebra.shape)
    steps = np.clip(np.minimum(1 / spacing_mm, shape / 10), 1, None).astype(int)
    first = (shape - 1) % steps // 2
    sampled = vertebra[tuple(slice(start, None, step) for start, step in zip(first, steps))]
    if not sampled.any():
        return vertebra, np.zeros(3, int), np.ones(3, int)
    return sampled, first, steps


def _entries(path: Path) -> list[dict[str, Any]]:
    """Read the list of entries, with their keys in lower case."""
    path = Path(path)
    try:
        check_is_file(path, "a JSON file")
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path}: expected at most {_MAX_BYTES} bytes, found {path.stat().st_size}.")
        found = read_json(path)
    except OSError as error:
        raise ValueError(f"{path}: expected a JSON file, found {error}.") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{path}: expected a JSON list of objects, found {type(found).__name__}.")
    return [{str(key).lower(): value for key, value in entry.items()} for entry in found]


def _declared_axes(entries: list[dict[str, Any]], grid: Grid) -> tuple[str, ...]:
    directions = [entry["direction"] for entry in entries if "direction" in entry]
    if not directions:
        return tuple(orientations.aff2axcodes(grid.affine))
    axes = [str(axis).upper() for axis in directions[0]] if isinstance(directions[0], list) else []
    pairs = {"L": "LR", "R": "LR", "P": "PA", "A": "PA", "I": "IS", "S": "IS"}
    if sorted(pairs.get(axis, axis) for axis in axes) != ["IS", "LR", "PA"]:
        raise ValueError(f"expected a direction such as P, I, R, found {_shown(directions[0])}")
    if any(other != directions[0] for other in directions):
        raise ValueError(f"expected one direction, found {_shown(directions)}")
    return tuple(axes)


def _point(entry: dict[str, Any]) -> tuple[int, tuple[float, ...]]:
    absent = [key for key in ("label", "x", "y", "z") if key not in entry]
    if absent:
        raise ValueError(f"expected label, X, Y and Z in every entry, found one without {', '.join(absent)}")
    label = _number(entry["label"])
    if label not in CODES:
        raise ValueError(f"expected VerSe labels (1-25 or 28), found {_shown(entry['label'])}")
    return int(label), tuple(math.nan if entry[axis] is None else _number(entry[axis]) for axis in "xyz")


def _number(value: Any) -> float:
    """Give a number of a file, which may be NaN; infinity, true and integers beyond every float are none."""
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"expected a number, found {_shown(value)}")
    return number


def _shown(value: Any) -> str:
    """Give a value for a message of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_inside(path: Path, voxels: np.ndarray, frame: Grid) -> None:
    with np.errstate(over="ignore"):
        beyond = np.maximum(-0.5 - voxels, voxels - (np.array(frame.shape) - 0.5)) * frame.spacing_mm
    if beyond.size and beyond.max() > _OUTSIDE_MM:
        raise ValueError(
            f"{path}: expected points inside {frame.shape} voxels, found one {beyond.max():.4g} mm outside."
        )
