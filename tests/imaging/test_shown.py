"""What a scan shows, and what lies beyond it."""

import numpy as np
import pytest

from tests.imaging.examples import oblique_affine
from utils.imaging.grids import transform_points
from utils.imaging.shown import beyond_scan, filled_beyond, without_padding
from utils.imaging.volume import Volume


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


def wedge(ct: Volume) -> np.ndarray:
    """The voxels beyond a plane that cuts a corner off."""
    return np.indices(ct.shape).sum(axis=0) < 6


def test_beyond_a_scan_is_what_is_empty_up_to_a_face_and_a_voxel_around_it():
    ct = tissue()
    ct.data[wedge(ct)] = -1024
    found = beyond_scan(ct)
    # Neighbours share a face, so the wedge grows by the plane behind it.
    np.testing.assert_array_equal(found, np.indices(ct.shape).sum(axis=0) < 7)
    assert not found[3, 4, 5] and not beyond_scan(tissue()).any()


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
