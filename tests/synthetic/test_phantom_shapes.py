"""Signed distances against values worked out by hand."""

import numpy as np
import pytest

from utils.synthetic.phantom.anatomy import rotation_of
from utils.synthetic.phantom.shapes import (
    FAR_MM,
    Body,
    BodyGrid,
    Cut,
    Plate,
    Solid,
    body_distance,
    plate_distance,
    smooth_minimum,
    solid_distance,
)

GRID = BodyGrid(np.array([-10.0, -10, -10]), 1.0, (21, 21, 21))
WHOLE = tuple(slice(0, n) for n in GRID.shape)


def at(field, *point):
    """Value of a field on GRID at a point in mm."""
    return field[tuple(np.array(point) + 10)]


def test_a_capsule_is_a_ball_at_its_ends_and_a_cylinder_between():
    capsule = Plate(np.zeros(3), np.array([6.0, 0, 0]), (2, 2), np.array([0, 0, 1.0]))
    field = plate_distance(capsule, GRID.axes())
    assert at(field, 3, 0, 5) == pytest.approx(3)
    assert at(field, -3, 4, 0) == pytest.approx(3)
    assert at(field, 3, 0, 0) == pytest.approx(-2)
    assert at(field, 10, 0, 0) == pytest.approx(2)


def test_a_plate_is_wide_only_across():
    plate = Plate(np.zeros(3), np.array([6.0, 0, 0]), (2, 2), np.array([0, 0, 1.0]), (3, 3))
    field = plate_distance(plate, GRID.axes())
    assert at(field, 3, 0, 7) == pytest.approx(2)
    assert at(field, 3, 7, 0) == pytest.approx(5)
    assert at(field, 3, 0, 3) == pytest.approx(-2)


def test_a_placed_plate_moves_with_its_frame():
    plate = Plate(np.zeros(3), np.array([6.0, 0, 0]), (2, 2), np.array([0, 0, 1.0]), (3, 3))
    quarter = rotation_of(np.array([0, 0, 90.0]))  # posterior turns to the right
    field = plate_distance(plate.placed(np.array([1.0, 0, 0]), quarter), GRID.axes())
    assert at(field, 1, 3, 7) == pytest.approx(2, abs=1e-5)
    assert at(field, 8, 3, 0) == pytest.approx(5, abs=1e-5)


def test_a_body_ends_at_its_sides_and_endplates():
    body = Body(np.zeros(3), np.eye(3), 6.0, 8.0, (8.0, 8.0, 8.0), 0.0)
    field = body_distance(body, GRID.axes())
    assert at(field, -6, 0, 0) == pytest.approx(0, abs=0.01)
    assert at(field, 0, 8, 0) == pytest.approx(0, abs=0.01)
    assert at(field, 0, 0, 4) == pytest.approx(0, abs=0.01)
    assert at(field, 0, 0, 6) == pytest.approx(2, abs=0.01)
    assert at(field, 0, 0, 0) == pytest.approx(-4, abs=0.01)


def test_a_wedged_body_is_lower_in_front():
    body = Body(np.zeros(3), np.eye(3), 8.0, 8.0, (4.0, 6.0, 8.0), 0.0)
    field = body_distance(body, GRID.axes())
    # Half heights at p = -4, 0, 4: 2.5, 3, 3.5.
    assert at(field, -4, 0, 3) == pytest.approx(0.5, abs=0.02)
    assert at(field, 0, 0, 3) == pytest.approx(0, abs=0.02)
    assert at(field, 4, 0, 3) == pytest.approx(-0.5, abs=0.02)


def test_rotations_keep_lengths_and_turn_the_named_way():
    rotation = rotation_of(np.array([20.0, -7, 5]))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    # A positive sagittal angle: followed downwards, the axis leans backwards.
    np.testing.assert_allclose(rotation_of(np.array([30.0, 0, 0]))[:, 2], [0.5, 0, np.sqrt(0.75)])


def test_a_smooth_minimum_is_a_minimum_where_the_two_are_apart():
    a, b = np.array([0.0, 1, 5]), np.array([4.0, 1, 1])
    np.testing.assert_allclose(smooth_minimum(a, b, 2.0), [0, 1 - 2 / 4, 1])


def test_a_cut_leaves_nothing_beyond_the_plane_within_its_reach():
    bar = Plate(np.array([-8.0, 0, 0]), np.array([8.0, 0, 0]), (2, 2), np.array([0, 0, 1.0]))
    cut = Cut(np.array([0.5, 0, 0]), np.array([1.0, 0, 0]), 4.0)
    field, _ = solid_distance(Solid((bar,), cuts=(cut,)), GRID, WHOLE)
    assert at(field, 0, 0, 0) < 0
    assert at(field, 1, 0, 0) == pytest.approx(0.5)
    assert at(field, 3, 0, 0) > 0
    assert at(field, 6, 0, 0) < 0


def test_a_hollow_is_taken_out():
    bar = Plate(np.array([-5.0, 0, 0]), np.array([5.0, 0, 0]), (5, 5), np.array([0, 0, 1.0]))
    bore = Plate(np.array([-9.0, 0, 0]), np.array([9.0, 0, 0]), (2, 2), np.array([0, 0, 1.0]))
    field, _ = solid_distance(Solid((bar,), hollows=(bore,)), GRID, WHOLE)
    assert at(field, 0, 0, 0) == pytest.approx(2)
    assert at(field, 0, 0, 4) == pytest.approx(-1)
    assert at(field, 10, 10, 10) == FAR_MM


def test_a_window_gives_the_same_distances_as_the_whole_grid():
    solid = Solid((Plate(np.zeros(3), np.array([4.0, 3, 0]), (2, 3), np.array([0, 0, 1.0]), (1, 2)),))
    window = GRID.window(*solid.bounds(3.0))
    whole, _ = solid_distance(solid, GRID, WHOLE)
    part, _ = solid_distance(solid, GRID, window)
    np.testing.assert_allclose(part, whole[window], rtol=1e-5)
    outside = np.ones(GRID.shape, bool)
    outside[window] = False
    assert (whole[outside] > 0).all()


def test_a_window_beyond_the_grid_is_empty():
    window = GRID.window(np.full(3, 50.0), np.full(3, 60.0))
    assert all(s.start == s.stop for s in window)
