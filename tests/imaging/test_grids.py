"""Orientation and grids: every voxel stays where it was in the world."""

import itertools

import nibabel
import numpy as np
import pytest

from tests.imaging.examples import numbered, oblique_affine
from utils.imaging.grids import (
    faces_of,
    oriented,
    oriented_grid,
    parallel_grid,
    reach_in,
    resized_grid,
    transform_points,
    turn_degrees,
    working_grid,
)
from utils.imaging.volume import Grid

ORIENTATIONS = [
    tuple(axes) for order in itertools.permutations(["LR", "PA", "IS"]) for axes in itertools.product(*order)
]


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("axes", ORIENTATIONS, ids="".join)
def test_every_voxel_stays_where_it_was_in_all_orientations(axes):
    volume = numbered()
    turned = oriented(volume, axes)
    assert nibabel.aff2axcodes(turned.affine) == axes
    voxels = np.array(list(np.ndindex(volume.shape)))
    moved = transform_points(voxels, volume.affine, turned.affine)
    np.testing.assert_allclose(moved, np.rint(moved), atol=1e-9)
    found = turned.data[tuple(np.rint(moved).astype(int).T)]
    np.testing.assert_array_equal(found, volume.data[tuple(voxels.T)])
    back = oriented(turned, nibabel.aff2axcodes(volume.affine))
    np.testing.assert_array_equal(back.data, volume.data)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-12)


@pytest.mark.parametrize("axes", ORIENTATIONS, ids="".join)
def test_a_grid_turns_as_its_volume_does(axes):
    volume = numbered()
    turned, grid = oriented(volume, axes), oriented_grid(volume.grid, axes)
    assert grid.shape == turned.shape
    np.testing.assert_array_equal(grid.affine, turned.affine)


def test_working_axes_worked_out_by_hand():
    # (R, A, S) to (P, R, I): axis A reversed comes first, then R, then S reversed.
    volume = numbered((3, 4, 5), np.eye(4))
    turned = oriented(volume)
    np.testing.assert_array_equal(turned.data, volume.data.transpose(1, 0, 2)[::-1, :, ::-1])
    np.testing.assert_array_equal(turned.affine, [[0, 1, 0, 0], [-1, 0, 0, 3], [0, 0, -1, 4], [0, 0, 0, 1]])


def test_working_grid_worked_out_by_hand():
    # 4 x 6 x 8 voxels of .5 mm reach from -.25 to 1.75, 2.75, 3.75 mm: 3 mm along A, 2 along R, 4 along S.
    grid = working_grid(Grid((4, 6, 8), np.diag([0.5, 0.5, 0.5, 1])), 1.0)
    assert grid.shape == (3, 2, 4)
    expected = [[0, 1, 0, 0.25], [-1, 0, 0, 2.25], [0, 0, -1, 3.25], [0, 0, 0, 1]]
    np.testing.assert_allclose(grid.affine, expected, atol=1e-12)


@pytest.mark.parametrize("spacing_mm", [0.6, 1.0, 2.0])
def test_working_grid_covers_the_scan_and_is_isotropic(spacing_mm):
    native = Grid((40, 31, 17), oblique_affine())
    grid = working_grid(native, spacing_mm)
    assert nibabel.aff2axcodes(grid.affine) == ("P", "R", "I")
    np.testing.assert_allclose(grid.spacing_mm, spacing_mm)
    faces = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in native.shape])))
    inside = transform_points(faces, native.affine, grid.affine)
    assert inside.min() >= -0.5 - 1e-3 and (inside <= np.array(grid.shape) - 0.5 + 1e-3).all()
    # No plane that the scan does not reach into.
    assert (np.array(grid.shape) - 0.5 - inside.max(axis=0)).max() < 1 and inside.min(axis=0).max() < 0.5


def turned_about(axis: int, degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = [other for other in range(3) if other != axis]
    turn = np.eye(4)
    turn[[first, second], [first, second]] = cosine
    turn[first, second], turn[second, first] = -sine, sine
    return turn


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("degrees", [0, 4.9, -4.9])
def test_working_grids_follow_a_scan_turned_by_a_few_degrees(axis, degrees):
    native = Grid((10, 12, 14), turned_about(axis, degrees) @ np.diag([1.0, 1, 2, 1]))
    assert turn_degrees(native.affine) == pytest.approx(abs(degrees), abs=1e-6)
    grid = working_grid(native, 1.0)
    np.testing.assert_array_equal(grid.affine, parallel_grid(native, 1.0).affine)
    assert grid.shape == (12, 10, 28)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("degrees", [5.1, -20, 30, 40, 44])
def test_working_grids_follow_the_patient_where_a_scan_is_turned_more(axis, degrees):
    native = Grid((10, 12, 14), turned_about(axis, degrees) @ np.diag([1.0, 1, 2, 1]))
    assert turn_degrees(native.affine) == pytest.approx(abs(degrees), abs=1e-6)
    grid = working_grid(native, 1.0)
    np.testing.assert_allclose(grid.affine[:3, :3], [[0, 1, 0], [-1, 0, 0], [0, 0, -1]])
    # Of two sides of the turned box, as long as it is.
    first, second = [other for other in range(3) if other != axis]
    extent, expected = np.array([10, 12, 28.0]), np.array([10, 12, 28.0])
    c, s = abs(np.cos(np.radians(degrees))), abs(np.sin(np.radians(degrees)))
    expected[[first, second]] = c * extent[first] + s * extent[second], s * extent[first] + c * extent[second]
    # Every voxel that it reaches into, one of them in its middle.
    middle = transform_points((np.array(native.shape) - 1) / 2, native.affine, grid.affine)
    np.testing.assert_allclose(middle, np.rint(middle), atol=1e-9)
    more = np.array(grid.shape) - expected[[1, 0, 2]]
    assert (more > -1e-3).all() and (more < 2).all()
    faces = transform_points(faces_of(native.shape), native.affine, grid.affine)
    assert (faces.min(axis=0) >= -0.501).all() and (faces.min(axis=0) < 0.501).all()
    last = np.array(grid.shape) - 1
    assert (faces.max(axis=0) <= last + 0.501).all() and (faces.max(axis=0) > last - 0.501).all()


def test_a_slanted_stack_gets_a_grid_with_right_angles():
    slanted = np.eye(4)
    slanted[1, 2] = 0.4  # slices shifted by .4 mm each: a gantry tilted by 22 degrees
    grid = working_grid(Grid((10, 10, 10), slanted), 1.0)
    np.testing.assert_allclose(grid.affine[:3, :3], [[0, 1, 0], [-1, 0, 0], [0, 0, -1]])
    # From back to front it reaches 7 mm from its middle, where a voxel lies; else 5 mm.
    assert grid.shape == (15, 11, 11)


def test_the_reach_of_a_part_worked_out_by_hand():
    grid, part = Grid((20, 20, 20), np.eye(4)), Grid((4, 2, 2), turned_about(2, 90))
    part.affine[:3, 3] = (10, 10, 30)
    # Its first axis leads along the grid's second, 9.5 to 13.5; its second back along the first, 8.5 to 10.5.
    begin, end = reach_in(grid, part)
    assert begin.tolist() == [8, 9, 20] and end.tolist() == [12, 15, 20]
    begin, end = reach_in(grid, part, margin=8)
    assert begin.tolist() == [0, 1, 20] and end.tolist() == [20, 20, 20]


def test_a_spacing_rounded_to_float32_adds_no_voxel():
    assert working_grid(Grid((10, 10, 10), np.diag([1.0000001, 1, 1, 1])), 1.0).shape == (10, 10, 10)


@pytest.mark.parametrize("spacing_mm", [0, -1, np.nan, np.inf])
def test_working_grid_refuses_what_is_no_spacing(spacing_mm):
    with pytest.raises(ValueError, match="spacing"):
        working_grid(Grid((4, 4, 4), np.eye(4)), spacing_mm)


def test_resized_grid_keeps_the_outer_faces():
    native = Grid((40, 31, 17), oblique_affine())
    grid = resized_grid(native, (64, 64, 128))
    turned = oriented_grid(native)
    for end in (-0.5, 1):
        here = np.array(grid.shape) - 0.5 if end == 1 else np.full(3, end)
        there = np.array(turned.shape) - 0.5 if end == 1 else np.full(3, end)
        np.testing.assert_allclose(transform_points([here], grid.affine, turned.affine)[0], there, atol=1e-9)


def test_points_go_through_the_world():
    doubled = np.diag([2.0, 2, 2, 1])
    doubled[:3, 3] = 0.5  # Centres of 2 mm voxels lie between those of 1 mm voxels.
    np.testing.assert_allclose(
        transform_points([[0, 1, 2]], doubled, np.eye(4)), [[0.5, 2.5, 4.5]], atol=1e-12
    )
    np.testing.assert_allclose(
        transform_points([[0.5, 2.5, 4.5]], np.eye(4), doubled), [[0, 1, 2]], atol=1e-12
    )


def test_no_points_give_no_points():
    assert transform_points(np.zeros((0, 3)), np.eye(4), oblique_affine()).shape == (0, 3)
