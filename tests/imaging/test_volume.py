import gzip
import itertools
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from scipy import ndimage

from tests.imaging.examples import DATA, NO_DATA, oblique_affine, real, save
from utils.imaging.grids import oriented, oriented_grid, resized_grid, transform_points, working_grid
from utils.imaging.intensities import denormalise_hu, normalise_hu
from utils.imaging.nifti import open_memory_map, read_ct, read_mask, read_pair, write_volume
from utils.imaging.resampling import heatmap_ct, resample_ct, resample_labels, resample_linear, working_ct
from utils.imaging.volume import Grid, Volume

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
ORIENTATIONS = [
    tuple(axes) for order in itertools.permutations(["LR", "PA", "IS"]) for axes in itertools.product(*order)
]


def dice_of_labels(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Dice of every label of `b`."""
    both = np.count_nonzero
    touched = (a > 0) | (b > 0)
    a, b = a[touched], b[touched]
    codes = np.unique(b[b > 0])
    return [2 * both((a == code) & (b == code)) / (both(a == code) + both(b == code)) for code in codes]


def numbered(shape=(3, 4, 5), affine=None) -> Volume:
    affine = oblique_affine() if affine is None else affine
    return Volume(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)


def noise(shape=(40, 40, 40), seed=0) -> Volume:
    return Volume(np.random.default_rng(seed).normal(0, 500, shape).astype(np.float32), oblique_affine())


def resampled_by_nibabel(volume: Volume, grid: Grid, order: int) -> np.ndarray:
    image = nibabel.Nifti1Image(volume.data.astype(np.float32), volume.affine)
    return np.asarray(resample_from_to(image, (grid.shape, grid.affine), order=order, mode="nearest").dataobj)


# Orientation and grids


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
    assert (np.array(grid.shape) - 0.5 - inside.max(axis=0)).max() < 0.5 + 1e-9


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


# Resampling


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


def test_resampling_refuses_slanted_grids():
    volume = noise((10, 10, 10))
    with pytest.raises(ValueError, match="parallel"):
        resample_ct(volume, Grid((10, 10, 10), np.eye(4)))


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


# Intensities


def test_intensities_map_the_window_to_minus_one_and_one():
    hu = np.array([-2048, -1024, 1023.5, 3071, 9000])
    found = normalise_hu(hu)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(denormalise_hu(found), [-1024, -1024, 1023.5, 3071, 3071], atol=1e-3)


def test_int16_does_not_overflow():
    np.testing.assert_allclose(normalise_hu(np.array([-32768, 32767], np.int16)), [-1, 1], atol=1e-6)


# Files


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_written_volumes_read_back_exactly(tmp_path, name, dtype):
    volume = Volume(np.arange(24).reshape(2, 3, 4).astype(dtype), oblique_affine())
    write_volume(tmp_path / "new" / name, volume)
    image = nibabel.load(tmp_path / "new" / name)
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume.data)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    write_volume(path, numbered())
    before = path.read_bytes()

    def broken(image, name):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nibabel, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        write_volume(path, numbered((5, 5, 5)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_ct_keeps_int16_and_applies_scaling(tmp_path):
    assert read_ct(save(tmp_path / "a.nii.gz", np.full((2, 2, 2), -700, np.int16))).data.dtype == np.int16
    image = nibabel.Nifti1Image(np.array([0, 512]).astype(np.int16).reshape(2, 1, 1), np.eye(4))
    image.header.set_slope_inter(2, -1024)
    nibabel.save(image, tmp_path / "b.nii")
    # A slope that was set is written as it is, and the stored numbers stay those of the array.
    found = read_ct(tmp_path / "b.nii")
    assert found.data.dtype == np.float32
    np.testing.assert_array_equal(found.data.ravel(), [-1024, 0])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, -1024), (np.nan, np.nan), (0, 0)])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<u2", "<i4", ">f4", "<f8"])
def test_numbers_equal_nibabels_in_every_form(tmp_path, dtype, scaling, name):
    data = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(dtype)
    order = ">" if dtype.startswith(">") else "<"
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(data.dtype)
    image = nibabel.Nifti1Image(data, oblique_affine(), header)
    image.header["scl_slope"], image.header["scl_inter"] = scaling
    raw = bytearray(image.to_bytes())
    # nibabel writes its own numbers for no scaling; those of the header are what is tried here.
    raw[112:120] = np.array(scaling, f"{order}f4").tobytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found, expected = read_ct(path).data, nibabel.load(path).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, data if scaling != (0.5, -1024) else data / 2 - 1024)


def test_voxels_that_are_no_number_become_air(tmp_path):
    data = np.full((2, 2, 2), 40, np.float32)
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    found = read_ct(save(tmp_path / "a.nii", data)).data
    assert found[0, 0, 0] == -1024 and found[1, 1, 1] == -1024
    assert (found == 40).sum() == 6


def test_float_masks_are_rounded_before_they_are_cast(tmp_path):
    data = np.array([0, 0.9999999, 19.9999996, 28.0000001]).reshape(4, 1, 1)
    found = read_mask(save(tmp_path / "a.nii.gz", data))
    assert found.data.dtype == np.uint8
    np.testing.assert_array_equal(found.data.ravel(), [0, 1, 20, 28])


def test_masks_scaled_to_8_bits_keep_their_labels(tmp_path):
    data = np.repeat(np.arange(26.0), 4).reshape(26, 2, 2)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "msk.nii.gz")
    stored = nibabel.load(tmp_path / "msk.nii.gz")
    assert stored.dataobj.slope == pytest.approx(25 / 255)
    assert np.abs(stored.get_fdata() - data).max() > 0.03
    np.testing.assert_array_equal(read_mask(tmp_path / "msk.nii.gz").data, data)


def test_voxels_of_a_mask_that_are_nan_are_outside(tmp_path):
    data = np.array([np.nan, 20, np.nan, 28], np.float32).reshape(4, 1, 1)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.nii", data)).data.ravel(), [0, 20, 0, 28])


@pytest.mark.parametrize("value", [0.5, 19.8, -0.3, 27.9, np.inf])
def test_masks_with_fractions_are_refused(tmp_path, value):
    data = np.array([0, 20, value], np.float32).reshape(3, 1, 1)
    with pytest.raises(ValueError, match=rf"expected VerSe labels \(0-25 or 28\), found {value:g}\."):
        read_mask(save(tmp_path / "msk.nii", data))


@pytest.mark.parametrize("code", [26, 27, 29, 255])
def test_masks_with_other_labels_are_refused(tmp_path, code):
    path = save(tmp_path / "msk.nii.gz", np.full((2, 2, 2), code, np.uint8))
    with pytest.raises(ValueError, match=rf"msk\.nii\.gz.*VerSe labels.*{code}"):
        read_mask(path)


def test_memory_maps_are_read_only_and_lazy(tmp_path):
    volume = numbered()
    write_volume(tmp_path / "a.nii", volume)
    found = open_memory_map(tmp_path / "a.nii")
    assert isinstance(found.data, np.memmap) and not found.data.flags.writeable
    np.testing.assert_array_equal(found.data, volume.data)


def test_compressed_files_are_not_mapped(tmp_path):
    write_volume(tmp_path / "a.nii.gz", numbered())
    with pytest.raises(ValueError, match=r"a\.nii\.gz.*uncompressed"):
        open_memory_map(tmp_path / "a.nii.gz")


def test_pairs_are_read_together(tmp_path):
    ct = save(tmp_path / "ct.nii", np.full((2, 3, 4), 7, np.int16), oblique_affine())
    mask = save(tmp_path / "msk.nii", np.full((2, 3, 4), 20, np.float64), oblique_affine())
    found_ct, found_mask = read_pair(ct, mask)
    assert found_ct.data.dtype == np.int16 and found_mask.data.dtype == np.uint8
    np.testing.assert_allclose(found_ct.affine, oblique_affine(), atol=1e-5)


def test_pairs_of_different_shape_are_refused(tmp_path):
    ct = save(tmp_path / "ct.nii", np.zeros((2, 3, 4), np.int16))
    mask = save(tmp_path / "msk.nii", np.zeros((2, 3, 5), np.uint8))
    with pytest.raises(ValueError, match=r"msk\.nii.*\(2, 3, 4\).*\(2, 3, 5\)"):
        read_pair(ct, mask)


def test_pairs_in_different_places_are_refused(tmp_path):
    ct = save(tmp_path / "ct.nii", np.zeros((2, 3, 4), np.int16))
    mask = save(tmp_path / "msk.nii", np.zeros((2, 3, 4), np.uint8), np.diag([1, 1, 1.5, 1]))
    with pytest.raises(ValueError, match=r"msk\.nii.*position"):
        read_pair(ct, mask)


def zeros_in_header(path: Path, field: str, index: int | tuple[()], value: float) -> Path:
    """Change a number of a written header, which nibabel itself would not write."""
    image = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4))
    nibabel.save(image, path)
    header = nibabel.Nifti1Header.from_fileobj(path.open("rb"), check=False)
    header[field][index] = value
    raw = bytearray(path.read_bytes())
    raw[: len(header.binaryblock)] = header.binaryblock
    path.write_bytes(raw)
    return path


def truncated(path: Path) -> Path:
    data = np.random.default_rng(0).integers(0, 1000, (30, 30, 30)).astype(np.int16)
    whole = save(path, data).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad_ct.nii.gz"
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
        return path
    if kind == "four axes":
        return save(path, np.zeros((3, 3, 3, 2), np.int16))
    if kind == "two axes":
        return save(path, np.zeros((3, 3), np.int16))
    if kind == "truncated":
        return truncated(path)
    if kind == "truncated, not compressed":
        return truncated(folder / "bad_ct.nii")
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "empty inside":
        path.write_bytes(gzip.compress(b""))
    if kind == "text":
        path.write_text("this is no scan")
    if kind == "all NaN":
        return save(path, np.full((3, 3, 3), np.nan, np.float32))
    if kind == "zero spacing":
        return zeros_in_header(folder / "bad_ct.nii", "pixdim", 2, 0)
    if kind == "NaN spacing":
        return zeros_in_header(folder / "bad_ct.nii", "pixdim", 2, np.nan)
    if kind == "unknown number type":
        return zeros_in_header(folder / "bad_ct.nii", "datatype", (), 999)
    if kind == "data inside the header":
        return zeros_in_header(folder / "bad_ct.nii", "vox_offset", (), 8)
    if kind == "zero column":
        return zeros_in_header(folder / "bad_ct.nii", "srow_y", 1, 0)
    if kind == "singular":
        affine = np.eye(4)
        affine[:3, 1] = affine[:3, 0]
        image = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), None)
        image.header.set_sform(affine, 2)
        nibabel.save(image, path)
    if kind == "metres":
        return save(path, np.zeros((3, 3, 3), np.int16), np.diag([1, 1, 3000, 1]))
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no such file"),
        ("folder", "a folder"),
        ("four axes", r"3 axes, found shape \(3, 3, 3, 2\)"),
        ("two axes", r"3 axes, found shape \(3, 3\)"),
        ("truncated", "whole NIfTI file"),
        ("truncated, not compressed", "whole NIfTI file"),
        ("empty", "empty"),
        ("empty inside", "NIfTI"),
        ("text", "NIfTI"),
        ("all NaN", "not one finite voxel"),
        ("zero spacing", "spacings over 0 mm, found 1 x 0 x 1 mm"),
        ("NaN spacing", "spacings over 0 mm, found 1 x nan x 1 mm"),
        ("unknown number type", "whole NIfTI file, found a broken one .*999"),
        ("data inside the header", "whole NIfTI file"),
        ("zero column", "spacings over 0 mm, found 1 x 0 x 1 mm"),
        ("singular", "affine that can be inverted"),
        ("metres", "under 4000 mm"),
    ],
)
@pytest.mark.parametrize("read", [read_ct, read_mask])
def test_bad_files_are_named_with_what_was_found(tmp_path, capfd, read, kind, said):
    path = bad_file(kind, tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: expected")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("slices", [0.9, 1])
def test_a_file_may_be_padded_but_not_by_a_slice(tmp_path, name, slices):
    data = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    raw = nibabel.Nifti1Image(data, np.eye(4)).to_bytes() + bytes(int(slices * 5 * 4 * 2))
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    if slices < 1:
        np.testing.assert_array_equal(read_ct(tmp_path / name).data, data)
    else:
        with pytest.raises(ValueError, match=r"\(shape \(6, 5, 4\) needs 240 bytes, not 280\)"):
            read_ct(tmp_path / name)


def test_the_checksum_of_a_compressed_file_is_compared(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.arange(27000).reshape(30, 30, 30).astype(np.int16))
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    np.asanyarray(nibabel.load(path).dataobj)  # nibabel alone does not see it
    with pytest.raises(ValueError, match="CRC check failed"):
        read_ct(path)


def test_a_header_that_claims_too_much_fills_no_memory(tmp_path):
    # 8 MB of noise could hold 8 GB as far as deflate goes; this header claims 2.
    raw = bytearray(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)).to_bytes()[:352])
    raw[42:48] = np.array([1000, 1000, 1000], "<i2").tobytes()
    noise = np.random.default_rng(0).integers(0, 256, 2**23).astype(np.uint8).tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw + noise, 1))
    program = (
        "import re, sys; from pathlib import Path; from utils.imaging.nifti import read_ct\n"
        "try: read_ct(Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.nii.gz")]
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    said, peak_kib = ran.stdout.splitlines()
    assert "shape (1000, 1000, 1000) needs 2000000000 bytes, not 8388608" in said
    assert int(peak_kib) < 500_000


def test_nibabel_adds_no_line_of_its_own(tmp_path):
    """In a process of its own: under pytest the logger has other handlers."""
    path = bad_file("zero spacing", tmp_path)
    code = f"from utils.imaging.nifti import read_ct\ntry: read_ct({str(path)!r})\nexcept ValueError: pass"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=True
    )
    assert result.stdout == result.stderr == ""
