import numpy as np
import pytest

from tests.imaging.examples import oblique_affine
from utils.imaging.crops import block_of_patch, box_between, crop, overlap, paste
from utils.imaging.grids import transform_points
from utils.imaging.nifti import open_memory_map, write_volume
from utils.imaging.volume import Volume


def line(*values) -> Volume:
    return Volume(np.array(values, np.int16).reshape(-1, 1, 1), np.eye(4))


@pytest.mark.parametrize(
    ("begin", "size", "in_volume", "in_patch"),
    [
        (2, 3, (2, 5), (0, 3)),  # inside
        (-2, 5, (0, 3), (2, 5)),  # over the lower border
        (8, 5, (8, 10), (0, 2)),  # over the upper border
        (-3, 20, (0, 10), (3, 13)),  # over both
    ],
)
def test_overlap_worked_out_by_hand(begin, size, in_volume, in_patch):
    found_volume, found_patch = overlap([begin], [size], [10])
    assert found_volume == (slice(*in_volume),)
    assert found_patch == (slice(*in_patch),)


@pytest.mark.parametrize("begin", [-7, -3, 10, 25])
def test_without_overlap_both_slices_are_empty(begin):
    (in_volume,), (in_patch,) = overlap([begin], [3], [10])
    assert in_volume.stop == in_volume.start
    assert in_patch.stop == in_patch.start


@pytest.mark.parametrize(
    ("begin", "size", "fill", "expected"),
    [
        (1, 2, 0, [2, 3]),
        (-2, 4, -1024, [-1024, -1024, 1, 2]),
        (2, 4, 9, [3, 4, 9, 9]),
        (-2, 4, "edge", [1, 1, 1, 2]),
        (2, 4, "edge", [3, 4, 4, 4]),
        (-1, 6, "edge", [1, 1, 2, 3, 4, 4]),
        (-9, 3, 0, [0, 0, 0]),
        (-9, 3, "edge", [1, 1, 1]),
        (7, 3, "edge", [4, 4, 4]),
    ],
)
def test_crops_worked_out_by_hand(begin, size, fill, expected):
    patch = crop(line(1, 2, 3, 4), (begin, 0, 0), (size, 1, 1), fill=fill)
    assert patch.data.dtype == np.int16
    np.testing.assert_array_equal(patch.data[:, 0, 0], expected)


def test_edges_fill_corners_too():
    data = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    patch = crop(Volume(data, np.eye(4)), (-2, 3, -1), (5, 6, 9), fill="edge")
    np.testing.assert_array_equal(
        patch.data, np.pad(data, ((2, 0), (0, 4), (1, 2)), mode="edge")[0:5, 3:9, 0:9]
    )


@pytest.mark.parametrize("fill", [0, "edge"])
def test_voxels_of_a_crop_stay_where_they_are_in_the_world(fill):
    volume = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), oblique_affine())
    patch = crop(volume, (1, -2, 2), (2, 5, 4), fill=fill)
    moved = transform_points([[0, 2, 0], [1, 4, 2]], patch.affine, volume.affine)
    np.testing.assert_allclose(moved, [[1, 0, 2], [2, 2, 4]], atol=1e-9)
    np.testing.assert_array_equal(patch.data[[0, 1], [2, 4], [0, 2]], volume.data[[1, 2], [0, 2], [2, 4]])


def test_a_crop_changes_neither_the_volume_nor_its_affine():
    volume = line(1, 2, 3)
    patch = crop(volume, (1, 0, 0), (2, 1, 1), fill="edge")
    patch.data[:] = 77
    patch.affine[:] = 0
    np.testing.assert_array_equal(volume.data.ravel(), [1, 2, 3])
    np.testing.assert_array_equal(volume.affine, np.eye(4))


@pytest.mark.parametrize("fill", [-1024, "edge"])
def test_a_memory_map_gives_the_same_crop(tmp_path, fill):
    data = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    volume = Volume(data, np.eye(4))
    write_volume(tmp_path / "a.nii", volume)
    mapped = crop(open_memory_map(tmp_path / "a.nii"), (-1, 2, 4), (5, 4, 9), fill=fill)
    np.testing.assert_array_equal(mapped.data, crop(volume, (-1, 2, 4), (5, 4, 9), fill=fill).data)
    mapped.data[:] = 0


def test_paste_leaves_out_what_reaches_over_the_border():
    target = np.zeros((4, 1, 1), int)
    paste(target, np.array([5, 6, 7]).reshape(3, 1, 1), (2, 0, 0))
    paste(target, np.array([8, 9]).reshape(2, 1, 1), (-1, 0, 0))
    paste(target, np.array([1, 1]).reshape(2, 1, 1), (-5, 0, 0))
    np.testing.assert_array_equal(target.ravel(), [9, 0, 5, 6])


@pytest.mark.parametrize("begin", [(-3, 2, 1), (2, -1, 4), (0, 0, 0)])
def test_pasting_a_crop_back_restores_what_it_held(begin):
    data = np.random.default_rng(0).integers(1, 99, (6, 7, 8))
    patch = crop(Volume(data, np.eye(4)), begin, (5, 5, 5), fill=0)
    target = np.zeros_like(data)
    paste(target, patch.data, begin)
    in_volume, _ = overlap(begin, (5, 5, 5), data.shape)
    expected = np.zeros_like(data)
    expected[in_volume] = data[in_volume]
    np.testing.assert_array_equal(target, expected)


def test_block_of_a_mirrored_patch():
    # Samples at 5 + 2 p, 20 - r and 3 + .5 i for 0 to 7: 5 to 19, 13 to 20, 3 to 6.5; one voxel to spare
    # below, one for the interpolation and one to spare above.
    affine = np.array([[2.0, 0, 0, 5], [0, -1, 0, 20], [0, 0, 0.5, 3]])
    begin, end = block_of_patch(affine, (8,) * 3, (50, 50, 9))
    assert begin.tolist() == [4, 12, 2] and end.tolist() == [21, 22, 9]


def test_block_of_a_patch_that_lies_outside_is_the_voxel_at_the_border():
    affine = np.eye(3, 4)
    affine[:, 3] = -40, 3, 90
    begin, end = block_of_patch(affine, (5, 2, 4), (10, 20, 30))
    assert begin.tolist() == [0, 2, 29] and end.tolist() == [1, 6, 30]


def test_a_box_lies_between_its_ends():
    assert box_between(np.array([1, 0, 7]), (4, 2, 9)) == np.s_[1:4, 0:2, 7:9]
