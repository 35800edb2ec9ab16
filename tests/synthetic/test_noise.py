"""The random fields of soft tissue."""

import numpy as np
import pytest

from utils.synthetic.noise import smooth_noise, smooth_steps
from utils.synthetic.phantom.shapes import BodyGrid
from utils.synthetic.phantom.soft import smooth_field


def test_steps_by_hand():
    # 3 w^2 - 2 w^3: 0 at a knot, a half in the middle, 5/32 at a quarter of the way.
    left, weight = smooth_steps(np.array([0.0, 0.25, 0.5, 1.0, 2.75]))
    assert left.tolist() == [0, 0, 0, 1, 2]
    np.testing.assert_allclose(weight, [0, 5 / 32, 0.5, 0, 27 / 32])


def test_a_field_goes_through_its_knots_whatever_voxel_it_begins_with():
    spacing_mm = np.array([2.0, 2.0, 2.0])
    voxels = [np.arange(7, 7 + n) for n in (9, 5, 5)]
    field = smooth_noise(np.random.default_rng(3), voxels, spacing_mm, 8.0)
    knots = np.random.default_rng(3).standard_normal((4, 3, 3), np.float32) * np.float32(1.6)
    assert field.shape == (9, 5, 5) and field.dtype == np.float32
    np.testing.assert_array_equal(field[::4, ::4, ::4], knots[:3, :2, :2])
    np.testing.assert_allclose(field[2, 0, 0], (knots[0, 0, 0] + knots[1, 0, 0]) / 2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["label image", "phantom"])
def test_fields_have_about_unit_variance(kind):
    rng, shape = np.random.default_rng(0), (60, 60, 60)
    if kind == "phantom":
        field = smooth_field(rng, BodyGrid(np.zeros(3), 1.0, shape), 4.0)
    else:
        field = smooth_noise(rng, [np.arange(n) for n in shape], np.ones(3), 4.0)
    assert 0.85 < field.std() < 1.15 and abs(field.mean()) < 0.1
