"""One case on the working grid: the part of the scan that is kept, and the table of its vertebrae."""

import numpy as np
import pytest

from utils.imaging.grids import transform_points, working_grid
from utils.imaging.resampling import resample_labels, working_ct
from utils.imaging.volume import Volume
from utils.preparation.working_case import labels_at_border, prepared_table, spine_grid

# The table


def test_labels_at_any_of_the_six_faces():
    mask = np.zeros((5, 5, 5), np.uint8)
    mask[2, 2, 2] = 9
    for code, voxel in enumerate([(0, 2, 2), (4, 2, 2), (2, 0, 2), (2, 4, 2), (2, 2, 0), (2, 2, 4)], start=1):
        mask[voxel] = code
    assert labels_at_border(Volume(mask, np.eye(4))) == {1, 2, 3, 4, 5, 6}


def test_a_table_of_an_empty_mask_is_empty():
    assert prepared_table("sub-a", Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4)), at_border=set()) == []


# The part of the scan that is kept


def column(centres, *, shape, spacing_mm, half=2):
    """A mask (P, R, I) of cubes with labels from 8 up, around voxels."""
    mask = np.zeros(shape, np.uint8)
    for code, centre in enumerate(centres, 8):
        mask[tuple(slice(c - half, c + half + 1) for c in centre)] = code
    affine = np.zeros((4, 4))
    affine[[1, 0, 2], [0, 1, 2]] = [-spacing_mm, spacing_mm, -spacing_mm]  # P is -y, R is x, I is -z
    affine[3, 3] = 1
    return Volume(mask, affine)


def test_the_part_that_is_kept_worked_out_by_hand():
    mask = column([(30, 40, 20), (34, 44, 50)], shape=(80, 90, 100), spacing_mm=2.0)
    grid = spine_grid(mask, 2.0, margin_mm=20.0)  # 10 voxels around 30-34, 40-44, 20-50
    whole = working_grid(mask.grid, 2.0)
    begin = transform_points([[0, 0, 0]], grid.affine, whole.affine)
    np.testing.assert_allclose(begin, [[20, 30, 10]], atol=1e-9)
    assert grid.shape == (25, 25, 51)
    np.testing.assert_allclose(grid.spacing_mm, 2.0)


def test_the_part_that_is_kept_ends_with_the_scan_and_holds_every_label():
    mask = column([(30, 3, 97)], shape=(80, 90, 100), spacing_mm=1.0)
    whole = working_grid(mask.grid, 1.0)
    assert spine_grid(mask, 1.0, margin_mm=200.0).shape == whole.shape
    grid = spine_grid(mask, 1.0, margin_mm=0.0)
    labels = resample_labels(mask, grid)
    assert np.count_nonzero(labels.data) == 125
    begin = transform_points([[0, 0, 0]], grid.affine, whole.affine)
    assert (begin <= [[28, 1, 95]]).all() and max(grid.shape) <= 8


@pytest.mark.parametrize("degrees", [0, 30])
@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
def test_what_is_kept_are_voxels_of_the_whole(spacing_mm, degrees):
    mask = column([(30, 40, 20), (34, 44, 50)], shape=(80, 90, 100), spacing_mm=0.8)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
    mask = Volume(mask.data, turn @ mask.affine)
    ct = Volume(np.random.default_rng(0).integers(-900, 900, mask.shape).astype(np.int16), mask.affine)
    grid = spine_grid(mask, spacing_mm, margin_mm=9.0)
    whole, part = working_ct(ct, spacing_mm), working_ct(ct, spacing_mm, grid=grid)
    begin = np.rint(transform_points([[0, 0, 0]], grid.affine, whole.affine)[0]).astype(int)
    box = tuple(slice(b, b + n) for b, n in zip(begin, part.shape))
    assert part.data.size < whole.data.size / 4
    np.testing.assert_allclose(
        whole.affine[:3, :3], spacing_mm * np.array([[0, 1, 0], [-1, 0, 0], [0, 0, -1]])
    )
    np.testing.assert_allclose(part.data, whole.data[box], atol=2e-3)
    labels = resample_labels(mask, working_grid(mask.grid, spacing_mm))
    np.testing.assert_array_equal(resample_labels(mask, grid).data, labels.data[box])
    assert np.count_nonzero(labels.data) == np.count_nonzero(labels.data[box])
