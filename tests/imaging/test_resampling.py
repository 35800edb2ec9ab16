"""Resampling of CTs and labels, beside that of nibabel and SciPy."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from scipy import ndimage

from tests.imaging.examples import needs_data, oblique_affine, real
from utils.imaging.grids import oriented, oriented_grid, resized_grid, transform_points, working_grid
from utils.imaging.nifti import read_mask
from utils.imaging.resampling import heatmap_ct, resample_ct, resample_labels, resample_linear, working_ct
from utils.imaging.volume import Grid, Volume


def dice_of_labels(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Dice of every label of `b`."""
    both = np.count_nonzero
    touched = (a > 0) | (b > 0)
    a, b = a[touched], b[touched]
    codes = np.unique(b[b > 0])
    return [2 * both((a == code) & (b == code)) / (both(a == code) + both(b == code)) for code in codes]


def noise(shape=(40, 40, 40), seed=0) -> Volume:
    return Volume(np.random.default_rng(seed).normal(0, 500, shape).astype(np.float32), oblique_affine())


def resampled_by_nibabel(volume: Volume, grid: Grid, order: int) -> np.ndarray:
    image = nibabel.Nifti1Image(volume.data.astype(np.float32), volume.affine)
    return np.asarray(resample_from_to(image, (grid.shape, grid.affine), order=order, mode="nearest").dataobj)


@pytest.mark.parametrize("spacing_mm", [0.6, 1.0, 2.0])
def test_cubic_resampling_equals_nibabels_to_a_hounsfield_unit(spacing_mm):
    volume = noise()
    grid = working_grid(volume.grid, spacing_mm)
    ours = resample_ct(volume, grid)
    assert ours.data.dtype == np.float32
    np.testing.assert_allclose(ours.data, resampled_by_nibabel(volume, grid, 3), rtol=0, atol=0.05)
    np.testing.assert_array_equal(ours.affine, grid.affine)


def test_cubic_resampling_equals_nibabels_far_outside_the_scan():
    volume = noise((12, 11, 10))
    grid = working_grid(volume.grid, 1.0)
    shifted = Grid(
        tuple(n + 50 for n in grid.shape),
        grid.affine @ np.array([[1, 0, 0, -25], [0, 1, 0, -25], [0, 0, 1, -25], [0, 0, 0, 1.0]]),
    )
    ours = resample_ct(volume, shifted).data
    np.testing.assert_allclose(ours, resampled_by_nibabel(volume, shifted, 3), rtol=0, atol=0.05)


def test_resampling_to_the_own_grid_in_another_orientation_only_turns():
    volume = noise((9, 10, 11))
    for axes in (("P", "R", "I"), ("L", "A", "S"), ("S", "L", "P")):
        grid = oriented_grid(volume.grid, axes)
        expected = oriented(volume, axes).data
        np.testing.assert_allclose(resample_ct(volume, grid).data, expected, atol=0.05)
        np.testing.assert_allclose(resample_linear(volume, grid).data, expected, atol=1e-3)


def test_antialiasing_is_a_gaussian_of_half_the_excess_factor():
    volume = noise((30, 30, 30))
    grid = working_grid(volume.grid, 2.0)
    # .7, .8, 1.25 mm to 2 mm along the volume's own axes.
    sigma = [(2 / spacing - 1) / 2 for spacing in (0.7, 0.8, 1.25)]
    smooth = Volume(ndimage.gaussian_filter(volume.data, sigma, mode="nearest"), volume.affine)
    expected = resampled_by_nibabel(smooth, grid, 3)
    np.testing.assert_allclose(resample_ct(volume, grid, antialias=True).data, expected, atol=0.05)


def test_antialiasing_leaves_a_finer_grid_alone():
    volume = noise((10, 10, 10))
    grid = working_grid(volume.grid, 0.5)
    np.testing.assert_array_equal(
        resample_ct(volume, grid, antialias=True).data, resample_ct(volume, grid).data
    )


def test_working_ct_is_smoothed_only_above_1_mm_and_clipped():
    volume = noise((30, 30, 30))
    volume.data[0] = -2048
    clipped = Volume(np.clip(volume.data, -1024, 3071), volume.affine)
    for spacing_mm, antialias in ((1.0, False), (2.0, True)):
        grid = working_grid(volume.grid, spacing_mm)
        expected = np.clip(resample_ct(clipped, grid, antialias=antialias).data, -1024, 3071)
        np.testing.assert_array_equal(working_ct(volume, spacing_mm).data, expected)


def test_heatmap_input_is_smoothed_cubic_and_within_the_inputs_range():
    working = working_ct(noise((40, 40, 40)), 0.5)
    small = heatmap_ct(working, (16, 16, 64))
    factors = np.array(working.shape) / (16, 16, 64)
    sigma = np.maximum(0, (factors - 1) / 2)
    smooth = Volume(ndimage.gaussian_filter(working.data, sigma, mode="nearest"), working.affine)
    expected = resampled_by_nibabel(smooth, resized_grid(working.grid, (16, 16, 64)), 3)
    expected = np.clip(expected, working.data.min(), working.data.max())
    assert small.shape == (16, 16, 64)
    np.testing.assert_allclose(small.data, expected, atol=0.05)


def test_heatmap_input_does_not_overshoot():
    step = np.full((20, 20, 20), -100, np.float32)
    step[10:] = 900
    small = heatmap_ct(Volume(step, oriented_grid(Grid(step.shape, np.eye(4))).affine), (64, 64, 128))
    assert small.data.min() >= -100 and small.data.max() <= 900


def test_linear_resampling_equals_nibabels_inside_the_scan():
    volume = noise((20, 20, 20))
    grid = resized_grid(volume.grid, (30, 25, 10))
    np.testing.assert_allclose(
        resample_linear(volume, grid).data, resampled_by_nibabel(volume, grid, 1), atol=0.01
    )


def test_linear_resampling_gives_the_value_for_outside_beyond_the_faces():
    volume = Volume(np.full((2, 1, 1), 5, np.float32), np.eye(4))
    affine = np.diag([0.5, 1, 1, 1.0])
    affine[0, 3] = -1.0  # Voxels at -1, -.5, 0, ..., 2 mm; the faces lie at -.5 and 1.5 mm.
    found = resample_linear(volume, Grid((7, 1, 1), affine), outside=-1).data[:, 0, 0]
    np.testing.assert_allclose(found, [-1, 5, 5, 5, 5, 5, -1])
    default = resample_linear(volume, Grid((7, 1, 1), affine)).data[:, 0, 0]
    np.testing.assert_allclose(default, [0, 5, 5, 5, 5, 5, 0])


#: Grids at an angle to that of `noise`: at the origin with the patient's axes, and turned by 40 degrees.
TURNED = {
    "the patient's axes": Grid((30, 28, 26), np.diag([1.3, 0.9, 1.1, 1.0])),
    "40 degrees": Grid(
        (30, 28, 26),
        oblique_affine()
        @ np.array([[0.766, -0.643, 0, 5], [0.643, 0.766, 0, -6], [0, 0, 1, 3], [0, 0, 0, 1]]),
    ),
}


@pytest.mark.parametrize("to", TURNED)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_grids_at_an_angle_are_reached_as_nibabel_reaches_them(to, dtype):
    volume, grid = noise(), TURNED[to]
    volume = Volume(volume.data.astype(dtype), volume.affine)
    cubic = resample_ct(volume, grid)
    assert cubic.data.dtype == np.float32
    np.testing.assert_array_equal(cubic.affine, grid.affine)
    np.testing.assert_allclose(cubic.data, resampled_by_nibabel(volume, grid, 3), rtol=0, atol=0.05)
    clipped = Volume(np.clip(volume.data, -500, 400), volume.affine)
    np.testing.assert_allclose(
        resample_ct(volume, grid, bounds=(-500, 400)).data,
        resampled_by_nibabel(clipped, grid, 3),
        rtol=0,
        atol=0.05,
    )


def beyond_faces(volume: Volume, grid: Grid) -> np.ndarray:
    voxels = np.array(list(np.ndindex(grid.shape)))
    at = transform_points(voxels, grid.affine, volume.affine)
    return ((at < -0.5) | (at > np.array(volume.shape) - 0.5)).any(axis=1).reshape(grid.shape)


@pytest.mark.parametrize("outside", [0, -3])
def test_linear_resampling_at_an_angle_gives_the_value_for_outside_beyond_the_faces(outside):
    volume, grid = noise((20, 20, 20)), TURNED["the patient's axes"]
    beyond = beyond_faces(volume, grid)
    assert 0.1 < beyond.mean() < 0.9
    expected = np.where(beyond, outside, resampled_by_nibabel(volume, grid, 1))
    np.testing.assert_allclose(resample_linear(volume, grid, outside=outside).data, expected, atol=0.01)


def test_a_turned_scan_is_smoothed_along_its_own_axes():
    volume = noise((30, 30, 30))
    grid = Grid((12, 12, 12), np.diag([2.0, 2, 2, 1]))
    sigma = [(2 / spacing - 1) / 2 for spacing in (0.7, 0.8, 1.25)]
    smooth = Volume(ndimage.gaussian_filter(volume.data, sigma, mode="nearest"), volume.affine)
    expected = resampled_by_nibabel(smooth, grid, 3)
    np.testing.assert_allclose(resample_ct(volume, grid, antialias=True).data, expected, atol=0.05)


def test_beyond_a_turned_scan_lies_air_or_its_border():
    volume = noise((30, 30, 30))
    grid = working_grid(volume.grid, 1.0)
    beyond = beyond_faces(volume, grid)
    edge, air = (working_ct(volume, 1.0, outside=outside).data for outside in ("edge", "air"))
    np.testing.assert_array_equal(air == -1024, beyond | (edge == -1024))
    np.testing.assert_array_equal(air[~beyond], edge[~beyond])
    np.testing.assert_array_equal(working_ct(volume, 1.0).data, edge)


@pytest.mark.parametrize("extends", [False, True])
def test_labels_at_an_angle_are_the_largest_of_all_indicators(extends):
    labels = np.random.default_rng(1).choice([0, 1, 20, 28], (14, 13, 12)).astype(np.uint8)
    mask, grid = Volume(ndimage.median_filter(labels, 3), oblique_affine()), TURNED["40 degrees"]
    shares = np.array(
        [
            resampled_by_nibabel(Volume((mask.data == c).astype(np.float32), mask.affine), grid, 1)
            for c in (1, 20, 28)
        ]
    )
    expected = np.where(shares.max(axis=0) >= 0.5, np.array([1, 20, 28])[shares.argmax(axis=0)], 0)
    if not extends:
        expected[beyond_faces(mask, grid)] = 0
    clear = np.abs(shares.max(axis=0) - 0.5) > 1e-4
    found = resample_labels(mask, grid, extends=extends)
    assert found.data.dtype == np.uint8 and len(np.unique(found.data)) == 4
    inside = clear if not extends else clear & ~far_beyond(mask, grid)
    np.testing.assert_array_equal(found.data[inside], expected[inside])


def far_beyond(volume: Volume, grid: Grid) -> np.ndarray:
    """Voxels further than one of the volume's beyond its faces, where a label need not go on."""
    wide = Volume(np.zeros(np.add(volume.shape, 2)), volume.affine.copy())
    wide.affine[:3, 3] -= volume.affine[:3, :3].sum(axis=1)
    return beyond_faces(wide, grid)


@pytest.mark.parametrize("degrees", [20, 30, 40])
@pytest.mark.parametrize("axis", range(3))
def test_what_a_turned_stack_shows_lies_in_the_working_grid_as_ever(axis, degrees):
    """A slope in the world is linear, so any grid must show the same of it, and labels must come back."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = [other for other in range(3) if other != axis]
    affine = np.diag([0.8, 0.9, 1.5, 1])
    turn = np.eye(4)
    turn[[first, second], [first, second]] = c
    turn[first, second], turn[second, first] = -s, s
    affine = turn @ affine
    voxels = np.array(list(np.ndindex(40, 40, 30)))
    world = (voxels @ affine[:3, :3].T).reshape(40, 40, 30, 3)
    ct = Volume((world @ [2.0, -3.0, 5.0]).astype(np.float32), affine)
    working = working_ct(ct, 1.0)
    np.testing.assert_allclose(working.affine[:3, :3], [[0, 1, 0], [-1, 0, 0], [0, 0, -1]])
    at = np.array(list(np.ndindex(working.shape))) @ working.affine[:3, :3].T + working.affine[:3, 3]
    inside = ~ndimage.binary_dilation(beyond_faces(ct, working.grid), iterations=4).ravel()
    assert inside.sum() > 2000
    np.testing.assert_allclose(working.data.ravel()[inside], (at @ [2.0, -3.0, 5.0])[inside], atol=0.5)
    ball = np.linalg.norm(world - world[20, 20, 15], axis=-1) < 9
    back = resample_labels(resample_labels(Volume(ball.astype(np.uint8) * 20, affine), working.grid), ct.grid)
    (dice,) = dice_of_labels(back.data, ball.astype(np.uint8) * 20)
    assert dice > 0.97


def test_labels_meet_half_way_worked_out_by_hand():
    # New voxels lie at -.25, .25, .75, ... old ones: 28 weighs .75 at .25 and 1.25, as 20 does at 1.75.
    mask = Volume(np.array([28, 28, 20, 20], np.uint8).reshape(4, 1, 1), np.diag([2.0, 1, 1, 1]))
    affine = np.eye(4)
    affine[0, 3] = -0.5
    found = resample_labels(mask, Grid((8, 1, 1), affine)).data[:, 0, 0]
    np.testing.assert_array_equal(found, [28, 28, 28, 28, 20, 20, 20, 20])


def test_labels_at_exactly_one_half_go_to_the_smaller_one():
    mask = Volume(np.array([7, 0, 7, 3], np.uint8).reshape(4, 1, 1), np.eye(4))
    affine = np.diag([0.5, 1, 1, 1.0])
    found = resample_labels(mask, Grid((7, 1, 1), affine)).data[:, 0, 0]
    np.testing.assert_array_equal(found, [7, 7, 0, 7, 7, 3, 3])


def test_labels_do_not_grow_beyond_the_scan():
    mask = Volume(np.full((2, 2, 2), 9, np.uint8), np.eye(4))
    affine = np.eye(4)
    affine[:3, 3] = -2
    found = resample_labels(mask, Grid((6, 6, 6), affine)).data
    expected = np.zeros((6, 6, 6), np.uint8)
    expected[2:4, 2:4, 2:4] = 9
    np.testing.assert_array_equal(found, expected)


def test_labels_equal_the_largest_of_all_indicators():
    labels = np.random.default_rng(1).choice([0, 1, 20, 28], (14, 13, 12)).astype(np.uint8)
    labels = ndimage.median_filter(labels, 3)
    mask = Volume(labels, oblique_affine())
    grid = working_grid(mask.grid, 0.9)
    shares = [
        resample_linear(Volume((labels == c).astype(np.float32), mask.affine), grid).data for c in (1, 20, 28)
    ]
    expected = np.where(np.max(shares, axis=0) >= 0.5, np.array([1, 20, 28])[np.argmax(shares, axis=0)], 0)
    clear = np.abs(np.max(shares, axis=0) - 0.5) > 1e-4
    found = resample_labels(mask, grid)
    assert found.data.dtype == np.uint8 and len(np.unique(found.data)) == 4
    np.testing.assert_array_equal(found.data[clear], expected[clear])


def test_an_empty_mask_stays_empty():
    mask = Volume(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    assert not resample_labels(mask, working_grid(mask.grid, 2.0)).data.any()


@needs_data
@pytest.mark.parametrize(
    ("name", "least"), [("sub-verse014", 0.97), ("sub-verse004", 0.97), ("sub-gl003_dir-ax", 0.94)]
)
def test_labels_survive_the_way_to_the_working_grid_and_back(name, least):
    mask = read_mask(real(f"{name}_seg-vert_msk.nii.gz"))
    back = resample_labels(resample_labels(mask, working_grid(mask.grid, 1.0)), mask.grid)
    dice = dice_of_labels(back.data, mask.data)
    assert np.mean(dice) >= least


@needs_data
def test_a_chest_ct_passes_in_little_memory():
    # The process's own high-water mark: the one of `resource` starts at that of the parent, pytest.
    program = (
        "import re, sys; from pathlib import Path; from utils.imaging.nifti import read_pair;"
        "from utils.imaging.resampling import heatmap_ct, resample_labels, working_ct;"
        "ct, mask = read_pair(sys.argv[1], sys.argv[2]); working = working_ct(ct, 1.0);"
        "labels = resample_labels(mask, working.grid); heatmap_ct(working, (64, 64, 128));"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text());"
        "print(*working.shape, int(peak[1]) // 1024)"
    )
    paths = [real("chest_ct.nii.gz"), real("chest_seg-vert_msk.nii.gz")]
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    *shape, peak_mib = map(int, ran.stdout.split())
    assert shape == [360, 360, 333]
    assert peak_mib < 1000


def test_a_long_axis_is_resampled_block_by_block_as_scipy_does_at_once():
    data = np.random.default_rng(4).normal(0, 500, (1400, 3, 3)).astype(np.float32)
    volume = Volume(data, np.diag([0.7, 0.7, 0.7, 1.0]))
    grid = Grid((900, 3, 3), np.diag([1.1, 0.7, 0.7, 1.0]))
    expected = resampled_by_nibabel(volume, grid, 3)
    np.testing.assert_allclose(resample_ct(volume, grid).data, expected, rtol=0, atol=0.05)
