"""What a scan shows, and what lies beyond it."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.imaging.examples import oblique_affine
from utils.imaging.grids import transform_points
from utils.imaging.shown import (
    filled_beyond,
    localiser_ct,
    middle_of_scan,
    share_beyond,
    upright_ct,
    without_padding,
)
from utils.imaging.volume import Grid, Volume


def tissue() -> Volume:
    data = np.random.default_rng(0).normal(40, 100, (8, 9, 10)).astype(np.float32)
    data[3, 4, 5] = -1024  # a gas bubble is no padding
    return Volume(data, oblique_affine())


def test_padding_is_cut_off_and_every_voxel_stays_where_it_was():
    ct = tissue()
    padded = Volume(np.pad(ct.data, ((2, 0), (0, 3), (4, 1)), constant_values=-1024), ct.affine.copy())
    padded.affine[:3, 3] -= ct.affine[:3, :3] @ [2, 0, 4]
    found = without_padding(padded)
    np.testing.assert_array_equal(found.data, ct.data)
    np.testing.assert_allclose(transform_points([[0, 0, 0]], found.affine, ct.affine), 0, atol=1e-9)


@pytest.mark.parametrize("data", [tissue().data, np.full((3, 3, 3), -1024, np.float32)])
def test_a_scan_without_padding_or_without_anything_stays_as_it_is(data):
    ct = Volume(data, np.eye(4))
    assert without_padding(ct) is ct


def test_the_share_of_a_voxel_beyond_a_scan_worked_out_by_hand():
    """Voxels of 2 mm, of which the scan, 5 mm long, shows the whole, the half, or nothing."""
    data = np.full((5, 4, 4), 40, np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = 0.5
    share = share_beyond(Volume(data, np.eye(4)), Grid((4, 2, 2), affine))
    np.testing.assert_allclose(share[:, 1, 1], [0, 0, 0.5, 1])


def test_padding_that_lies_askew_is_beyond_the_scan_and_a_gas_bubble_is_not():
    data = np.full((9, 9, 9), 40, np.float32)
    data[np.indices(data.shape).sum(axis=0) < 6] = -1024
    data[5, 5, 5] = -1024
    share = share_beyond(Volume(data, np.eye(4)), Grid((9, 9, 9), np.eye(4)))
    assert share[0, 0, 0] == 1 and share[5, 5, 5] == share[3, 3, 3] == share[8, 8, 8] == 0
    assert share[1, 1, 1] > 0.99 and 0 < share[2, 2, 2] < 0.5  # the last is just behind it


def depth_in_scan(points_mm: np.ndarray) -> np.ndarray:
    """How far points lie within a scan: a box, 38 x 34 x 46 mm, that stands askew in the world."""
    along = points_mm @ Rotation.from_euler("z", 20, degrees=True).as_matrix()
    return (np.array([19, 17, 23]) - np.abs(along)).min(axis=1)


def ball_of_bone(points_mm: np.ndarray) -> np.ndarray:
    """HU of a ball of bone in soft tissue, soft at its rim, so that a coarse grid can show it."""
    return 40 + 400 / (1 + np.exp(np.linalg.norm(points_mm - (4, 2, -6), axis=1) - 9))


def stacked(degrees: float) -> Volume:
    """The scan as a stack turned against the patient, with air around it."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xz", [degrees, degrees / 2], degrees=True).as_matrix()
    affine[:3, 3] = affine[:3, :3] @ np.full(3, -39.5)
    points = transform_points(np.argwhere(np.ones((80, 80, 80))), affine, np.eye(4))
    hu = np.where(depth_in_scan(points) >= 0, ball_of_bone(points), -1024)
    return Volume(hu.reshape(80, 80, 80).astype(np.float32), affine)


@pytest.mark.parametrize("outside", ["air", "edge"])
@pytest.mark.parametrize("degrees", [6, 25, 40])
def test_a_scan_is_seen_alike_however_its_stack_is_turned(degrees, outside):
    ct = stacked(degrees)
    working, beyond = upright_ct(ct, 2.0, middle_mm=middle_of_scan(ct), outside=outside)
    points = transform_points(np.argwhere(np.ones(working.shape)), working.affine, np.eye(4))
    # On the patient's axes, laid through the middle of the scan, cut to it.
    np.testing.assert_allclose(points, 2 * np.rint(points / 2), atol=0.1)
    depth = depth_in_scan(points).reshape(working.shape)
    assert all(depth.max(axis=axes).min() > -1.5 for axes in ((0, 1), (0, 2), (1, 2)))
    assert not beyond[depth > 1].any() and beyond[depth < -1].all()
    np.testing.assert_allclose(working.data[depth > 2], ball_of_bone(points)[depth.ravel() > 2], atol=15)
    if outside == "air":
        np.testing.assert_array_equal(working.data[beyond], -1024)
    else:  # what goes on there is of the scan, with a tenth of the air at most
        assert working.data.min() > -70 and working.data[beyond].max() < 250


@pytest.mark.parametrize("degrees", [6, 25, 40])
def test_the_frame_around_a_scan_is_the_same_however_its_stack_is_turned(degrees):
    framed = localiser_ct(stacked(degrees), 3.0)
    points = transform_points(np.argwhere(np.ones(framed.shape)), framed.affine, np.eye(4))
    # The box reaches 7 voxels from its middle, 22 to 24 mm. With 8 more the planes at 16 are the next ones;
    # the frame begins with the one and ends before the other.
    np.testing.assert_allclose(points.max(axis=0), [45, 48, 48], atol=0.1)
    np.testing.assert_allclose(points.min(axis=0), [-48, -45, -45], atol=0.1)
    depth = depth_in_scan(points).reshape(framed.shape)
    np.testing.assert_array_equal(framed.data[depth < -2], -1024)
    np.testing.assert_allclose(framed.data[depth > 3], ball_of_bone(points)[depth.ravel() > 3], atol=25)


def test_what_lies_beyond_is_filled_with_the_nearest_voxel_and_nothing_else_is():
    ct = Volume(np.array([[[-1024, -1024, 7, 8, 9, -1024]]], np.float32), np.diag([2.0, 2, 2, 1]))
    beyond = np.array([1, 1, 0, 0, 0, 1], bool).reshape(1, 1, 6)
    np.testing.assert_array_equal(filled_beyond(ct, beyond).data[0, 0], [7, 7, 7, 8, 9, 9])
    assert filled_beyond(ct, np.zeros_like(beyond)) is ct and filled_beyond(ct, np.ones_like(beyond)) is ct


def test_small_voxels_are_filled_in_blocks_of_2_mm_with_what_begins_the_nearest():
    ct = Volume(np.array([[[-1024, -1024, -1024, -1024, 7, 8, 9, -1024, -1024]]], np.float32), np.eye(4))
    beyond = ct.data < -1000
    found = filled_beyond(ct, beyond).data[0, 0]
    np.testing.assert_array_equal(found, [7, 7, 7, 7, 7, 8, 9, 9, 9])
