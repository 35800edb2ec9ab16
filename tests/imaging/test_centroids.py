import itertools
import json

import numpy as np
import pytest

from tests.imaging.examples import DATA, NO_DATA, oblique_affine, real, two_vertebrae
from utils.imaging.centroids import Centroids, body_centre, centroids_of_mask, read_centroids, write_centroids
from utils.imaging.grids import oriented, oriented_grid, transform_points, working_grid
from utils.imaging.nifti import read_mask
from utils.imaging.resampling import resample_labels
from utils.imaging.volume import Grid, Volume

ORIENTATIONS = [
    axes for order in itertools.permutations(["LR", "PA", "IS"]) for axes in itertools.product(*order)
]
GRID = Grid((10, 20, 30), np.eye(4))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
REAL_CASES = {
    "sub-verse014": ("sub-verse014_seg-vert_msk.nii.gz", "sub-verse014_seg-vb_ctd.json"),
    "sub-verse004": ("sub-verse004_seg-vert_msk.nii.gz", "sub-verse004_seg-subreg_ctd.json"),
    "sub-gl003": ("sub-gl003_dir-ax_seg-vert_msk.nii.gz", "sub-gl003_dir-ax_seg-subreg_ctd.json"),
}


def written(path, *entries):
    path.write_text(json.dumps(entries))
    return path


def point(label=20, x=2.0, y=3.0, z=4.0):
    return {"label": label, "X": x, "Y": y, "Z": z}


def test_declared_directions_worked_out_by_hand(tmp_path):
    # The volume is (R, A, S), 10 x 20 x 30. In (P, I, R) X counts from the front: A = 20 - 1 - 2.5.
    path = written(tmp_path / "ctd.json", {"direction": ["P", "I", "R"]}, point(20, 2.5, 3, 4))
    found = read_centroids(path, GRID)
    np.testing.assert_allclose(found.points_mm, [[4, 20 - 1 - 2.5, 30 - 1 - 3]])
    np.testing.assert_array_equal(found.codes, [20])


def test_indices_are_those_of_voxel_centres_in_the_world(tmp_path):
    affine = np.diag([2.0, 3, 4, 1])
    affine[:3, 3] = [10, 20, 30]
    path = written(tmp_path / "ctd.json", {"direction": ["R", "A", "S"]}, point(20, 1, 1.5, 2))
    found = read_centroids(path, Grid((10, 10, 10), affine))
    np.testing.assert_allclose(found.points_mm, [[12, 24.5, 38]])


@pytest.mark.parametrize("axes", ORIENTATIONS, ids="".join)
def test_points_survive_files_in_all_48_orientations(tmp_path, axes):
    native = Grid((11, 12, 13), oblique_affine())
    turned = oriented_grid(native, axes)
    points_mm = (native.affine @ [[1, 9.25], [2, 3], [3, 5.5], [1, 1]]).T[:, :3]
    write_centroids(tmp_path / "ctd.json", Centroids(np.array([19, 28]), points_mm), turned)
    assert json.loads((tmp_path / "ctd.json").read_text())[0] == {"direction": list(axes)}
    found = read_centroids(tmp_path / "ctd.json", native)
    np.testing.assert_allclose(found.points_mm, points_mm, atol=2e-3)
    np.testing.assert_allclose(found.voxels(native), [[1, 2, 3], [9.25, 3, 5.5]], atol=2e-3)


def test_without_a_header_indices_are_those_of_the_stored_volume(tmp_path):
    found = read_centroids(written(tmp_path / "ctd.json", point(20, 2, 3, 4)), GRID)
    np.testing.assert_allclose(found.points_mm, [[2, 3, 4]])


def test_keys_in_lower_case_and_a_header_in_any_place(tmp_path):
    entries = ({"label": 20, "x": 2, "y": 3, "z": 4}, {"Direction": ["l", "a", "s"]})
    found = read_centroids(written(tmp_path / "ctd.json", *entries), GRID)
    np.testing.assert_allclose(found.points_mm, [[10 - 1 - 2, 3, 4]])


@pytest.mark.parametrize("nothing", [float("nan"), None])
def test_entries_without_a_position_are_dropped(tmp_path, nothing):
    path = written(tmp_path / "ctd.json", point(20), point(21, y=nothing), point(22))
    np.testing.assert_array_equal(read_centroids(path, GRID).codes, [20, 22])


def test_points_come_from_the_top_of_the_spine_down(tmp_path):
    path = written(tmp_path / "ctd.json", point(20), point(28), point(7), point(19))
    np.testing.assert_array_equal(read_centroids(path, GRID).codes, [7, 19, 28, 20])


def test_a_file_without_points_gives_none(tmp_path):
    found = read_centroids(written(tmp_path / "ctd.json", {"direction": ["R", "A", "S"]}), GRID)
    assert found.codes.shape == (0,) and found.points_mm.shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("", "JSON"),
        ("no json", "JSON"),
        ('{"label": 20}', "list of objects"),
        ("[1, 2]", "list of objects"),
        ('[{"label": 20, "X": 1, "Y": 2}]', "without z"),
        ('[{"X": 1, "Y": 2, "Z": 3}]', "without label"),
        ('[{"label": 20, "X": "far", "Y": 2, "Z": 3}]', "a number, found 'far'"),
        ('[{"label": 20, "X": [1], "Y": 2, "Z": 3}]', r"a number, found \[1\]"),
        ('[{"label": 20, "X": true, "Y": 2, "Z": 3}]', "a number, found True"),
        ('[{"label": 20, "X": 1e999, "Y": 2, "Z": 3}]', "a number, found inf"),
        (json.dumps([point(20, 10**400)]), r"a number, found 10{56}\.\.\.\."),
        (json.dumps([point(20, 1e308)]), r"inside \(10, 20, 30\) voxels, found one 1e\+308 mm outside"),
        ('[{"label": 27, "X": 1, "Y": 2, "Z": 3}]', r"labels \(1-25 or 28\), found 27"),
        ('[{"label": 20.5, "X": 1, "Y": 2, "Z": 3}]', r"labels \(1-25 or 28\), found 20.5"),
        ('[{"label": NaN, "X": 1, "Y": 2, "Z": 3}]', r"labels \(1-25 or 28\), found nan"),
        pytest.param("[" * 100_000, "nested too deep", id="deep"),
        pytest.param("[" + " " * 2**20 + "]", "at most 1048576 bytes, found 1048578", id="long"),
        (json.dumps([point(20), point(20)]), r"every label once, found labels \[20, 20\]"),
        (json.dumps([{"direction": ["P", "I"]}, point()]), "direction"),
        (json.dumps([{"direction": ["P", "A", "R"]}, point()]), "direction"),
        (json.dumps([{"direction": 3}, point()]), "direction such as P, I, R, found 3"),
        (json.dumps([{"direction": "PIR"}, {"direction": "RAS"}, point()]), "such as P, I, R, found 'PIR'"),
        (json.dumps([{"direction": list(d)} for d in ("PIR", "RAS")]), r"one direction, found \[\['P', "),
        (json.dumps([point(20, 2, 3, 300)]), r"inside \(10, 20, 30\) voxels, found one 270.5 mm outside"),
    ],
)
def test_bad_files_are_named_with_what_was_found(tmp_path, text, said):
    path = tmp_path / "bad_ctd.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_centroids(path, GRID)
    assert str(caught.value).startswith(f"{path}: expected")


def test_a_binary_file_is_no_centroid_file(tmp_path):
    path = tmp_path / "bad_ctd.json"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"bad_ctd\.json: expected JSON"):
        read_centroids(path, GRID)


def test_derived_points_say_where_they_come_from(tmp_path):
    _, mask = two_vertebrae()
    write_centroids(tmp_path / "ctd.json", centroids_of_mask(mask), mask.grid, source="mask")
    header, first, second = json.loads((tmp_path / "ctd.json").read_text())
    assert header == {"direction": ["R", "A", "S"], "source": "mask"}
    assert first == {"label": 28, "X": 8.5, "Y": 6.5, "Z": 18.5}
    assert second == {"label": 20, "X": 8.5, "Y": 6.5, "Z": 3.5}


def test_voxels_takes_a_grid_a_volume_or_an_affine():
    centroids = Centroids(np.array([20]), np.array([[4.0, 6.0, 8.0]]))
    volume = Volume(np.zeros((3, 3, 3)), np.diag([2.0, 2, 2, 1]))
    for frame in (volume, volume.grid, volume.affine):
        np.testing.assert_allclose(centroids.voxels(frame), [[2, 3, 4]])


def test_a_block_has_its_body_in_its_middle():
    # 6 x 6 x 8 voxels from (6, 4, 0) on: the middle is (8.5, 6.5, 3.5) voxels of 2 mm.
    _, mask = two_vertebrae()
    found = centroids_of_mask(mask)
    np.testing.assert_array_equal(found.codes, [28, 20])
    np.testing.assert_allclose(found.points_mm, [[17, 13, 37], [17, 13, 7]], atol=1e-9)


def test_the_atlas_has_its_point_in_the_middle_of_its_ring():
    ring = np.zeros((20, 20, 6), np.uint8)
    ring[2:18, 2:18] = 1
    ring[5:15, 8:15] = 0  # Thicker in front than behind, so that a thickest part would be elsewhere.
    found = centroids_of_mask(Volume(ring, np.eye(4)))
    np.testing.assert_allclose(found.points_mm[0], np.argwhere(ring).mean(axis=0))


def working_affine(spacing_mm=(1.0, 1, 1)) -> np.ndarray:
    """Axes (P, R, I), so that the front is at small indices of the first axis."""
    return np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]) @ np.diag([*spacing_mm, 1])


def body_with_process() -> np.ndarray:
    """A cube of 21 mm with its middle at (10, 10, 10), and a rod of 3 x 3 x 39 mm behind it."""
    vertebra = np.zeros((60, 21, 21), bool)
    vertebra[:21] = True
    vertebra[21:, 9:12, 9:12] = True
    return vertebra


def test_a_thin_process_does_not_draw_the_point_away():
    vertebra = body_with_process()
    np.testing.assert_allclose(body_centre(vertebra, working_affine()), [10, 10, 10], atol=0.3)
    assert np.argwhere(vertebra).mean(axis=0)[0] > 11


def test_the_body_lies_in_front_even_of_a_thicker_arch():
    # A body of 15 mm, an arch of 19 mm: the deepest point is in the arch, which lies behind.
    vertebra = np.zeros((50, 19, 19), bool)
    vertebra[:15, 2:17, 2:17] = True
    vertebra[15:31, 8:11, 8:11] = True
    vertebra[31:] = True
    np.testing.assert_allclose(body_centre(vertebra, working_affine()), [7, 9, 9], atol=0.5)
    turned = working_affine() @ np.diag([-1, 1, 1, 1])  # The first axis now leads to the front.
    np.testing.assert_allclose(body_centre(vertebra, turned), [40, 9, 9], atol=0.5)


@pytest.mark.parametrize("axes", [("L", "A", "S"), ("R", "P", "I"), ("S", "L", "P")])
def test_the_body_is_the_same_in_any_orientation_and_position(axes):
    whole = Volume(body_with_process().astype(np.uint8), oblique_affine((1.0, 1, 1)) @ working_affine())
    moved = oriented(whole, axes)
    found, expected = (
        transform_points(body_centre(volume.data > 0, volume.affine), volume.affine, np.eye(4))
        for volume in (moved, whole)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_of_a_cut_vertebra_the_middle_of_what_is_seen_of_the_body_counts():
    # The upper 11 of 21 mm are beyond the scan, so the body that is left has its middle at 5 + 11.
    cut = body_with_process()
    cut[:, :, :11] = False
    box = cut[:, :, 11:]
    np.testing.assert_allclose(body_centre(box, working_affine()), [10, 10, 4.5], atol=0.5)


def test_the_body_is_found_at_any_spacing():
    # 6 x 20 x 20 mm with voxels of .3 x .3 x 2 mm; indices of the middle are half of (size - 1).
    affine = np.diag([0.3, 0.3, 2.0, 1.0])
    vertebra = np.ones((20, 66, 10), bool)
    np.testing.assert_allclose(body_centre(vertebra, affine), [9.5, 32.5, 4.5], atol=0.5)


def test_depth_is_measured_in_mm_where_voxels_are_not_cubes():
    # A plate of 24 x 24 x 8 mm, 4 mm deep, beside a rod of 24 x 12 x 40 mm, 6 mm deep, whose middle is at
    # (36, 12, 20) mm; voxels of .25 x .25 x 2 mm. In voxels the plate would be the deeper one.
    vertebra = np.zeros((192, 96, 20), bool)
    vertebra[:96, :, 8:12] = True
    vertebra[96:, 24:72, :] = True
    found_mm = (body_centre(vertebra, np.diag([0.25, 0.25, 2.0, 1.0])) + 0.5) * (0.25, 0.25, 2.0)
    np.testing.assert_allclose(found_mm, [36, 12, 20], atol=3)


def test_one_voxel_is_its_own_centre():
    found = body_centre(np.ones((1, 1, 1), bool), np.diag([0.2, 0.2, 0.2, 1]))
    np.testing.assert_allclose(found, [0, 0, 0])


def test_a_few_scattered_voxels_give_a_point_within_their_box():
    # Thinned to 1 mm, neither of the two voxels at the corners would be left.
    scattered = np.zeros((40, 40, 40), bool)
    scattered[0, 1, 0] = scattered[39, 38, 39] = True
    found = body_centre(scattered, np.diag([0.25, 0.25, 0.25, 1]))
    # The front one is larger in A, the second axis.
    np.testing.assert_allclose(found, [39, 38, 39])


def test_a_label_that_only_counts_is_no_atlas():
    mask = Volume(body_with_process().astype(np.uint8), working_affine())
    counted, atlas = (centroids_of_mask(mask, anatomical=kind) for kind in (False, True))
    np.testing.assert_allclose(counted.voxels(mask), [[10, 10, 10]], atol=0.3)
    np.testing.assert_allclose(atlas.voxels(mask), [np.argwhere(mask.data).mean(axis=0)])


def test_an_empty_mask_has_no_points():
    found = centroids_of_mask(Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4)))
    assert found.codes.shape == (0,) and found.points_mm.shape == (0, 3)


def real_mask_and_centroids(name):
    mask_name, centroids_name = REAL_CASES[name]
    mask = read_mask(real(mask_name))
    return mask, read_centroids(real(centroids_name), mask.grid)


@needs_data
@pytest.mark.parametrize("name", REAL_CASES)
def test_every_annotated_point_falls_into_its_own_vertebra(name):
    mask, centroids = real_mask_and_centroids(name)
    working = resample_labels(mask, working_grid(mask.grid, 1.0))
    found = working.data[tuple(np.rint(centroids.voxels(working)).astype(int).T)]
    # The point of sub-gl003's C1 lies in the dens, which is C2, in the files themselves.
    expected = np.where((centroids.codes == 1) & (name == "sub-gl003"), 2, centroids.codes)
    np.testing.assert_array_equal(found, expected)


@needs_data
@pytest.mark.parametrize("name", REAL_CASES)
def test_derived_points_lie_where_annotators_put_them(name):
    mask, annotated = real_mask_and_centroids(name)
    derived = centroids_of_mask(mask)
    np.testing.assert_array_equal(derived.codes, annotated.codes)
    apart_mm = np.linalg.norm(derived.points_mm - annotated.points_mm, axis=1)
    # Centres of mass are about 11 mm away on average.
    assert apart_mm.max() < 3 and apart_mm.mean() < 1.5
