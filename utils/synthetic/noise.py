"""Random fields that change smoothly over a length: the unevenness of soft tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Interpolation between knots takes variance away; with this, a field has about unit variance.
KNOT_SD = np.float32(1.6)


def smooth_steps(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the knot before each place, and the weight of the one after it.

    A smooth step between the knots instead of a straight line: no kinks to be learnt.
    """
    left = np.floor(places).astype(int)
    return left, (places - left) ** 2 * (3 - 2 * (places - left))


def smooth_noise(
    rng: np.random.Generator, voxels: Sequence[np.ndarray], spacing_mm: np.ndarray, length_mm: float
) -> np.ndarray:
    """Draw a field of about unit variance that changes over a length.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    voxels : sequence of np.ndarray of int, 3
        Indices of the grid along each axis; the field is theirs, counted from the first ones.
    spacing_mm : np.ndarray of float, (3,)
        Size of a voxel, mm.
    length_mm : float
        Distance between two knots.

    Returns
    -------
    np.ndarray of float32
        A value for each of the grid's voxels.
    """
    places = [(v - v[0]) * step / length_mm for v, step in zip(voxels, spacing_mm)]
    field = rng.standard_normal([int(x[-1]) + 2 for x in places], np.float32) * KNOT_SD
    for axis, x in enumerate(places):
        left, weight = smooth_steps(x)
        weight = weight.astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        low = field.take(left, axis)
        field = low + weight * (field.take(left + 1, axis) - low)
    return field
