"""How a drawn trunk is scaled, bent and turned: a smooth map between the drawn and the real place of a point.

Places are mm along P, R and I, counted from the middle of the spine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

#: The curves of the spine are known at steps of so many mm, so far to both sides of its middle.
_STEP_MM, _REACH_MM = 5.0, 600.0
#: Tissue farther than this from the spine follows its tilt no more: the front of the trunk is not folded.
_LEVER_MM = 75.0
#: Distance of the knots of the random displacement, mm.
_KNOT_MM = 60.0
#: The half length of the real spine along I, mm, on which the bends are laid out.
_HALF_MM = 160.0
#: Steps in which a drawn place is found, and the part of the error that each takes away.
_ROUNDS, _STEP_PART = 40, 0.8


@dataclass(frozen=True, eq=False)
class Pose:
    """A drawn shape and position of the trunk.

    Attributes
    ----------
    matrix : np.ndarray of float, (3, 3)
        Scale, then turn: from the bent trunk to the drawn one.
    tilt : np.ndarray of float, (2, n)
        Tangent of the angle by which the spine leans towards P and R, at steps along I.
    shift_mm : np.ndarray of float, (2, n)
        By how much it is moved there.
    twist : np.ndarray of float, (n,)
        Turn about I there, radians.
    knots_mm : np.ndarray of float, (3, k, k, k)
        Displacement at knots around the middle, mm.
    """

    matrix: np.ndarray
    tilt: np.ndarray
    shift_mm: np.ndarray
    twist: np.ndarray
    knots_mm: np.ndarray


def draw_pose(rng: np.random.Generator, *, side: bool) -> Pose:
    """Draw a pose.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    side : bool
        Whether the patient lies on a side, and is turned by up to 30 degrees about I.

    Returns
    -------
    Pose
        Kyphosis by -20 to 30 degrees other than the real one, a neck up to 22 degrees steeper, scoliosis up
        to 10 degrees of tilt, twist, a size from a child's to a tall man's.
    """
    at = np.arange(-_REACH_MM, _REACH_MM + _STEP_MM, _STEP_MM)
    sagittal = _sagittal_tilt(rng, at)
    curved = rng.random() < 0.5
    phase, length = rng.uniform(0, 2 * np.pi), rng.uniform(250, 500)
    coronal = np.radians(rng.uniform(2, 10) if curved else 1.0) * np.sin(2 * np.pi * at / length + phase)
    twist = np.radians(rng.uniform(-12, 12) if curved else 0.0) * np.sin(2 * np.pi * at / length)
    tilt = np.tan(np.stack([sagittal, coronal]))
    shift = np.cumsum(tilt, axis=1) * _STEP_MM
    shift -= shift[:, [at.size // 2]]
    turn_about_i = rng.uniform(-30, 30) if side else rng.normal(0, 5)
    angles = np.radians([rng.normal(0, 3), rng.normal(0, 5), turn_about_i])
    size = np.exp(rng.uniform(np.log(0.62), np.log(1.2)))
    scale = size * np.exp(rng.normal(0, 0.06, 3))
    knots = rng.normal(0, rng.uniform(0.5, 3.0), (3, *(int(2 * _REACH_MM / _KNOT_MM) + 1,) * 3))
    return Pose(Rotation.from_euler("xyz", angles).as_matrix() * scale, tilt, shift, twist, knots)


def _sagittal_tilt(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    """Angle by which the spine leans back more than the real one at places along I, radians."""
    kyphosis, neck, waist = rng.uniform(-20, 30), rng.uniform(-10, 22), rng.uniform(-14, 14)
    places = np.array([-1.0, -0.72, 0.0, 0.55, 1.0]) * _HALF_MM
    angles = kyphosis * np.array([0.5, 0.5, 0.0, -0.5, -0.5]) + np.array([neck, 0.0, 0.0, 0.0, waist])
    # Smoothed, so that a bend is one of several vertebrae.
    return np.radians(ndimage.gaussian_filter1d(np.interp(at, places, angles), 16 / _STEP_MM))


def real_places(drawn_mm: np.ndarray, pose: Pose) -> np.ndarray:
    """Give where in the real trunk the points of the drawn one lie.

    Parameters
    ----------
    drawn_mm : np.ndarray of float, (..., 3)
        Places in the drawn trunk.
    pose : Pose
        Its pose.

    Returns
    -------
    np.ndarray of float, (..., 3)
        Places in the real trunk.
    """
    return _unbent(drawn_mm @ np.linalg.inv(pose.matrix).T, pose)


def drawn_places(real_mm: np.ndarray, pose: Pose) -> np.ndarray:
    """Give where points of the real trunk lie in the drawn one, the inverse of `real_places`, (..., 3)."""
    bent = np.array(real_mm, float)
    for _ in range(_ROUNDS):
        bent += _STEP_PART * (real_mm - _unbent(bent, pose))
    return bent @ pose.matrix.T


def _unbent(bent: np.ndarray, pose: Pose) -> np.ndarray:
    """Straighten the bends: a point leaves the height at which the spine's tilted cross-section holds it."""
    (tilt_p, shift_p), (tilt_r, shift_r) = (
        (_along(tilt, bent[..., 2]), _along(shift, bent[..., 2]))
        for tilt, shift in zip(pose.tilt, pose.shift_mm)
    )
    p, r = bent[..., 0] - shift_p, bent[..., 1] - shift_r
    i = bent[..., 2] + tilt_p * _lever(p) + tilt_r * _lever(r)
    angle = _along(pose.twist, i)
    straight = np.stack(
        [p * np.cos(angle) - r * np.sin(angle), p * np.sin(angle) + r * np.cos(angle), i], axis=-1
    )
    knots = np.moveaxis((bent + _REACH_MM) / _KNOT_MM, -1, 0)
    # Knots are weights of B-splines: a smooth field that need not pass through them.
    moved = [
        ndimage.map_coordinates(axis, knots, order=2, mode="nearest", prefilter=False)
        for axis in pose.knots_mm
    ]
    return straight + np.stack(moved, axis=-1)


def _along(values: np.ndarray, i_mm: np.ndarray) -> np.ndarray:
    return np.interp(i_mm, np.linspace(-_REACH_MM, _REACH_MM, values.size), values)


def _lever(mm: np.ndarray) -> np.ndarray:
    return _LEVER_MM * np.tanh(mm / _LEVER_MM)
