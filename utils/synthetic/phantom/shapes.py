"""Signed distance functions of the few shapes a skeleton is built from, painted into a voxel grid.

Everything here lives in the *body frame*: millimetres along posterior, right, inferior. A distance is
negative inside. Each shape is evaluated only in its own box of the grid, so that a spine costs little
more than its bones. The distances of the vertebral body and of tapered plates are first-order
approximations, right to a fraction of a millimetre near the surface, which is all that partial volume and
a cortical shell need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

FAR_MM = 50.0
POSTERIOR, RIGHT, INFERIOR = np.eye(3)
SIDES = (1, -1)


@dataclass(frozen=True)
class BodyGrid:
    """An isotropic, axis-parallel grid in the body frame.

    Attributes
    ----------
    origin : np.ndarray, shape (3,)
        Centre of the first voxel, mm (P, R, I).
    step_mm : float
        Distance of neighbouring voxels.
    shape : tuple of int
        Voxels along P, R, I.
    """

    origin: np.ndarray
    step_mm: float
    shape: tuple[int, int, int]

    def axes(self, window: tuple[slice, ...] | None = None) -> list[np.ndarray]:
        """Coordinates in mm along each axis, shaped so that they broadcast to the window's shape."""
        whole = [np.float32(self.origin[k] + self.step_mm * np.arange(n)) for k, n in enumerate(self.shape)]
        chosen = whole if window is None else [axis[s] for axis, s in zip(whole, window)]
        return [axis.reshape([-1 if k == j else 1 for j in range(3)]) for k, axis in enumerate(chosen)]

    def window(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
        """Slices of the voxels between two corners in mm; empty slices where there are none."""
        first = np.ceil((np.asarray(low) - self.origin) / self.step_mm).astype(int)
        last = np.floor((np.asarray(high) - self.origin) / self.step_mm).astype(int) + 1
        first = np.clip(first, 0, self.shape)
        return tuple(slice(int(a), int(max(a, b))) for a, b in zip(first, np.clip(last, 0, self.shape)))


@dataclass(frozen=True)
class Plate:
    """A flat bar with rounded edges: all points within a radius of a trapezoid; without extent, a capsule.

    Attributes
    ----------
    start, end : array of float, shape (3,)
        Ends of the axis, mm; any three numbers until the plate is placed.
    radius : tuple of float
        Half thickness at start and end, mm.
    across : np.ndarray, shape (3,)
        Direction in which the trapezoid is wide.
    extent : tuple of float
        Half width at start and end, without the radius, mm.
    """

    start: ArrayLike
    end: ArrayLike
    radius: tuple[float, float]
    across: np.ndarray
    extent: tuple[float, float] = (0.0, 0.0)

    def placed(self, origin: np.ndarray, rotation: np.ndarray, *, scale: float = 1.0) -> Plate:
        """The same plate, given in local coordinates that are to be scaled, in the frame around it."""
        start, end = (origin + rotation @ np.multiply(x, scale) for x in (self.start, self.end))
        return Plate(start, end, self.radius, rotation @ self.across, self.extent)

    def corners(self) -> np.ndarray:
        """Corners of the trapezoid, shape (4, 3); the plate lies within its radius of their hull."""
        across = _frame(self)[1]
        ends = ((self.start, self.extent[0]), (self.end, self.extent[1]))
        return np.array([x + sign * wide * across for x, wide in ends for sign in (-1, 1)])


@dataclass(frozen=True)
class Body:
    """A vertebral body: a waisted cylinder with a kidney-shaped section and concave endplates.

    Attributes
    ----------
    origin : np.ndarray, shape (3,)
        Centre, mm.
    rotation : np.ndarray, shape (3, 3)
        Columns: the body's own posterior, right, inferior direction.
    half_depth, half_width : float
        Half the extent along P and R, at the endplates, mm.
    heights : tuple of float
        Anterior, middle and posterior height, mm.
    waist : float
        How much narrower the middle is, as a fraction.
    """

    origin: np.ndarray
    rotation: np.ndarray
    half_depth: float
    half_width: float
    heights: tuple[float, float, float]
    waist: float

    def corners(self) -> np.ndarray:
        """Eight corners of the box around the body, shape (8, 3)."""
        half = np.array([self.half_depth, self.half_width, max(self.heights) / 2])
        signs = np.array([(p, r, i) for p in (-1, 1) for r in (-1, 1) for i in (-1, 1)])
        return self.origin + (signs * half) @ self.rotation.T


@dataclass(frozen=True)
class Cut:
    """A joint's face: within `radius_mm` of the point nothing is left where `normal` points to."""

    point: np.ndarray
    normal: np.ndarray
    radius_mm: float


@dataclass(frozen=True)
class Solid:
    """One bone: plates and a body, melted together, less hollows and joint faces."""

    plates: tuple[Plate, ...]
    body: Body | None = None
    hollows: tuple[Plate, ...] = ()
    cuts: tuple[Cut, ...] = ()
    blend_mm: float = 2.0

    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, 3) and radii (n,): the bone lies within the hull of these balls."""
        points = [plate.corners() for plate in self.plates]
        radii = [np.repeat(plate.radius, 2) for plate in self.plates]
        if self.body is not None:
            points.append(self.body.corners())
            radii.append(np.zeros(8))
        return np.concatenate(points), np.concatenate(radii)

    def bounds(self, margin_mm: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of the bone's box, mm."""
        return bounds_of(*self.corners(), margin_mm)


def bounds_of(points: np.ndarray, radii: np.ndarray, margin_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of a box around balls, with a margin."""
    reach = np.asarray(radii)[:, None] + margin_mm
    return (points - reach).min(0), (points + reach).max(0)


def _frame(plate: Plate) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along the plate, across it, and through its thickness."""
    along = plate.end - plate.start
    along = along / max(np.linalg.norm(along), 1e-6)
    across = plate.across - along * (plate.across @ along)
    if np.linalg.norm(across) < 1e-6:
        across = np.cross(along, [0.3, 0.5, 0.8])
    across = across / np.linalg.norm(across)
    return along, across, np.cross(along, across)


def _project(axes: list[np.ndarray], origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Coordinate of every voxel along a direction, from an origin."""
    parts = [np.float32(direction[k]) * (axes[k] - np.float32(origin[k])) for k in range(3)]
    return parts[0] + parts[1] + parts[2]


def plate_distance(plate: Plate, axes: list[np.ndarray]) -> np.ndarray:
    """Signed distance in mm to a plate, on the grid spanned by three broadcastable axes."""
    along, across, through = _frame(plate)
    length = np.float32(max(np.linalg.norm(plate.end - plate.start), 1e-6))
    x = _project(axes, plate.start, along)
    fraction = np.clip(x / length, 0, 1)
    square = np.square(x - fraction * length)
    y = np.abs(_project(axes, plate.start, across))
    if max(plate.extent) > 0:
        y -= np.float32(plate.extent[0]) + fraction * np.float32(plate.extent[1] - plate.extent[0])
        np.maximum(y, 0, out=y)
    square += np.square(y)
    square += np.square(_project(axes, plate.start, through))
    np.sqrt(square, out=square)
    square -= np.float32(plate.radius[0]) + fraction * np.float32(plate.radius[1] - plate.radius[0])
    return square


def body_distance(body: Body, axes: list[np.ndarray]) -> np.ndarray:
    """Signed distance in mm to a vertebral body, to first order."""
    p, r, i = (_project(axes, body.origin, body.rotation[:, k]) for k in range(3))
    p /= np.float32(body.half_depth)
    r /= np.float32(body.half_width)
    front, middle, back = (np.float32(height) for height in body.heights)
    pp, rr = p * p, r * r
    # Between an ellipse and a rounded rectangle; both terms are norms, so the section stays convex ...
    radial = 0.55 * np.sqrt(pp + rr) + 0.45 * np.sqrt(np.sqrt(pp * pp + rr * rr))
    half = (front + (back - front) * (np.clip(p, -1, 1) + 1) / 2) / 2
    half -= ((front + back) / 2 - middle) / 2 * np.maximum(1 - radial * radial, 0)
    # ... but for the hollow of its back, where the canal runs.
    radial += 0.16 * np.square(np.maximum(p, 0)) * np.maximum(1 - 2.5 * rr, 0)
    level = np.minimum(np.square(i / half), 1)
    side = (radial - 1 + np.float32(body.waist) * (1 - level)) * np.float32(
        min(body.half_depth, body.half_width)
    )
    return -smooth_minimum(-side, half - np.abs(i), 1.5)


def smooth_minimum(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Minimum of two distances with a fillet of about `blend_mm` (quadratic, after I. Quilez)."""
    overlap = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap * np.float32(0.25 / blend_mm)


def solid_distance(solid: Solid, grid: BodyGrid, window: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Distance to a bone within a window.

    Parameters
    ----------
    solid : Solid
        The bone, in the body frame.
    grid : BodyGrid
        The voxels.
    window : tuple of slice
        The part of the grid to evaluate; `FAR_MM` stands where nothing is near.

    Returns
    -------
    distance, body : np.ndarray of float32, shape of the window
        Distance to the bone, and to its vertebral body alone, mm.
    """
    field = np.full([s.stop - s.start for s in window], FAR_MM, np.float32)
    for plate in solid.plates:
        part, axes = _part(grid, window, bounds_of(plate.corners(), np.repeat(plate.radius, 2), 3.0))
        if field[part].size:
            field[part] = smooth_minimum(field[part], plate_distance(plate, axes), solid.blend_mm)
    for plate in solid.hollows:
        part, axes = _part(grid, window, bounds_of(plate.corners(), np.repeat(plate.radius, 2), 2.0))
        if field[part].size:
            np.maximum(field[part], -plate_distance(plate, axes), out=field[part])
    body = np.full_like(field, FAR_MM)
    if solid.body is not None:
        part, axes = _part(grid, window, bounds_of(solid.body.corners(), np.zeros(8), 3.0))
        if field[part].size:
            body[part] = body_distance(solid.body, axes)
            field[part] = smooth_minimum(field[part], body[part], solid.blend_mm)
    for cut in solid.cuts:
        _apply_cut(field, cut, grid, window)
    return field, body


def _part(
    grid: BodyGrid, window: tuple[slice, ...], bounds: tuple[np.ndarray, np.ndarray]
) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """Where a shape's box meets a window: slices within the window, and the coordinates there."""
    box = grid.window(*bounds)
    starts = [max(b.start, w.start) for b, w in zip(box, window)]
    stops = [max(a, min(b.stop, w.stop)) for a, b, w in zip(starts, box, window)]
    inner = tuple(slice(a - w.start, b - w.start) for a, b, w in zip(starts, stops, window))
    return inner, grid.axes(tuple(slice(a, b) for a, b in zip(starts, stops)))


def _apply_cut(field: np.ndarray, cut: Cut, grid: BodyGrid, window: tuple[slice, ...]) -> None:
    reach = np.full(3, cut.radius_mm + 1.0)
    part, axes = _part(grid, window, (cut.point - reach, cut.point + reach))
    if not field[part].size:
        return
    squares = [np.square(axis - np.float32(x)) for axis, x in zip(axes, cut.point)]
    ball = np.sqrt(squares[0] + squares[1] + squares[2]) - np.float32(cut.radius_mm)
    beyond = -_project(axes, cut.point, cut.normal)
    np.maximum(field[part], -np.maximum(ball, beyond), out=field[part])
