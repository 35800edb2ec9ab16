"""Masks whose surface is moved by less than a voxel."""

import numpy as np
import pytest

from utils.imaging.grids import working_grid
from utils.imaging.growth import grown_mask
from utils.imaging.volume import Volume

RADIUS_MM = 15.0


def ball(spacing_mm, codes=(20,)):
    """Balls of 15 mm radius above one another, the first touching the next."""
    spacing = np.array(spacing_mm)
    affine = np.diag([*spacing, 1.0])
    shape = np.ceil(np.array([50, 50, 20 + 30 * len(codes)]) / spacing).astype(int)
    data = np.zeros(tuple(shape), np.uint8)
    at = np.moveaxis(np.indices(data.shape), 0, -1) * spacing
    for number, code in enumerate(codes):
        middle = np.array([24.3, 25.1, 25.2 + 30 * number])
        data[np.linalg.norm(at - middle, axis=-1) < RADIUS_MM] = code
    return Volume(data, affine)


def radius_of(mask, code=20):
    volume = np.count_nonzero(mask.data == code) * abs(np.linalg.det(mask.affine[:3, :3]))
    return np.cbrt(3 * volume / (4 * np.pi))


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.7, 0.7, 2.5), (3, 3, 3)])
@pytest.mark.parametrize("by_mm", [-0.4, 0.0, 0.33, 0.8])
def test_the_surface_moves_by_what_is_asked_for(spacing_mm, by_mm):
    mask = ball(spacing_mm)
    grown = grown_mask(mask, working_grid(mask.grid, 1.0), by_mm)
    # Bits have no surface between their voxels: good to a fifth of a millimetre, less so for thick slices.
    tolerance = 0.2 if max(spacing_mm) == 1 else 0.3
    assert radius_of(grown) - radius_of(mask) == pytest.approx(by_mm, abs=tolerance)


def test_neighbours_that_touch_keep_their_border():
    mask = ball((1, 1, 1), codes=(20, 21))
    grid = working_grid(mask.grid, 1.0)
    before, after = (grown_mask(mask, grid, by) for by in (0.0, 0.8))
    for code, other in ((20, 21), (21, 20)):
        assert not ((before.data == code) & (after.data == other)).any()
        assert radius_of(after, code) > radius_of(before, code)


def test_no_label_no_growth():
    mask = Volume(np.zeros((6, 6, 6), np.uint8), np.eye(4))
    assert not grown_mask(mask, mask.grid, 1.0).data.any()
