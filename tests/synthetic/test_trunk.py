"""Trunks drawn from a map of organs: what the map holds, the pose, the ribs, points on their bodies."""

import numpy as np
import pytest

from tests.imaging.examples import DATA, real
from utils.synthetic import trunk
from utils.synthetic.organs import (
    AIR,
    DISC,
    RIB,
    TISSUES,
    VERTEBRA,
    organ_map_of,
    path_lengths,
    read_organ_map,
)
from utils.synthetic.trunk import axis_weights, draw_trunk_scan
from utils.synthetic.trunk_pose import draw_pose, drawn_places, real_places
from utils.verse.labels import code_of_name

STEP_MM = 4.0
T10, T11, T12, L1 = (code_of_name(name) for name in ("T10", "T11", "T12", "L1"))
LEVELS = (T10, T11, T12, L1)
TOTAL = DATA.parent / "real-ct" / "chest-total"
NAMES = {1: "rib_right_12", 2: "rib_left_12", 3: "liver", 4: "rib_right_11", 5: "rib_left_11", 6: "aorta"}


def small_trunk(rib_voxels=25):
    """Codes, VerSe codes and CT of a box of muscle in air: four bodies, ribs of 100 mm, a liver."""
    codes, vertebrae = np.zeros((40, 70, 50), np.uint8), np.zeros((40, 70, 50), np.uint8)
    hu = np.full(codes.shape, -1000.0, np.float32)
    hu[4:36, 6:64] = 50
    for place, code in enumerate(LEVELS):
        vertebrae[20:27, 31:40, 5 + 10 * place : 12 + 10 * place] = code
    for top, (right, left) in ((18, (4, 5)), (28, (1, 2))):
        codes[22:24, 41 : 41 + rib_voxels - 5, top : top + 2] = right
        codes[22:24, 30 - (rib_voxels - 5) : 30, top : top + 2] = left
    codes[10:18, 42:56, 34:46] = 3
    hu[vertebrae > 0] = 300
    return codes, vertebrae, hu


@pytest.fixture(scope="module")
def organs():
    codes, vertebrae, hu = small_trunk()
    return organ_map_of(codes, NAMES, vertebrae, hu, spacing_mm=STEP_MM)


def test_a_map_finds_the_middle_of_every_body(organs):
    assert tuple(organs.centres) == LEVELS
    for place, code in enumerate(LEVELS):
        np.testing.assert_allclose(organs.centres[code] / STEP_MM, (23, 35, 8 + 10 * place), atol=0.01)


def test_a_map_tells_tissues_apart(organs):
    assert organs.tissue[0, 0, 0] == AIR and organs.skin_mm[0, 0, 0] < 0
    assert organs.tissue[23, 35, 8] == VERTEBRA and organs.tissue[23, 35, 13] == DISC
    assert TISSUES[organs.tissue[14, 50, 40]] == "liver" and TISSUES[organs.tissue[10, 20, 20]] == "soft"
    assert organs.medians[TISSUES.index("soft")] == 50
    assert organs.plate[23, 35, 5] and not organs.plate[23, 35, 8]


def test_ribs_are_as_long_as_their_middle_line(organs):
    # 20 voxels of 4 mm, between the centres of the first and the last.
    for code in (T11, T12):
        np.testing.assert_allclose(organs.ribs_mm[code], 76, atol=6)
    assert organs.ribs_mm[L1] == (0, 0)
    rib = organs.tissue == RIB
    assert organs.along_mm[rib].max() <= max(max(pair) for pair in organs.ribs_mm.values())


def test_a_structure_of_no_known_tissue_is_refused():
    codes, vertebrae, hu = small_trunk()
    with pytest.raises(ValueError, match="received 'wing'"):
        organ_map_of(codes, {3: "wing"}, vertebrae, hu, spacing_mm=STEP_MM)


def test_a_vertebra_of_which_little_is_seen_has_no_centre_and_ends_the_map():
    _, vertebrae, hu = small_trunk()
    cut = [array[..., 9:] for array in (np.zeros_like(vertebrae), vertebrae, hu)]
    found = organ_map_of(cut[0], {}, cut[1], cut[2], spacing_mm=STEP_MM)
    assert tuple(found.centres) == (T11, T12, L1)
    assert 0 < found.span_mm[0] < found.centres[T11][2]


def test_a_cut_vertebra_lies_where_its_neighbours_say():
    _, vertebrae, hu = small_trunk()
    cut = [array[..., :39] for array in (np.zeros_like(vertebrae), vertebrae, hu)]
    found = organ_map_of(cut[0], {}, cut[1], cut[2], spacing_mm=STEP_MM)
    np.testing.assert_allclose(found.centres[L1] / STEP_MM, (23, 35, 38), atol=0.01)
    assert found.span_mm == (-STEP_MM / 2, 38.5 * STEP_MM)


def test_a_drawn_place_is_the_inverse_of_a_real_place():
    places = np.random.default_rng(0).uniform([-200, -170, -160], [60, 170, 160], (200, 3))
    for seed in range(12):
        pose = draw_pose(np.random.default_rng(seed), side=seed % 2 == 0)
        drawn = drawn_places(places, pose)
        np.testing.assert_allclose(real_places(drawn, pose), places, atol=0.01)
        assert np.abs(drawn - places).max() > 10


def test_a_scan_is_a_function_of_seed_and_number(organs):
    first, again, other = (draw_trunk_scan(organs, 1, n) for n in (3, 3, 4))
    np.testing.assert_array_equal(first.ct, again.ct)
    assert first.ct.dtype == np.int16 and first.kind == "trunk" and first.sacrum is None
    assert first.ct.shape != other.ct.shape or (first.ct != other.ct).any()


def test_points_lie_in_the_scan_from_the_top_down(organs):
    for number in range(20):
        scan = draw_trunk_scan(organs, 2, number)
        assert [*scan.points] == [code for code in LEVELS if code in scan.points]
        for at in scan.points.values():
            assert (at >= -0.5).all() and (at <= np.array(scan.ct.shape) - 0.5).all()


def test_no_level_is_missing_between_others_of_a_bent_spine(organs, monkeypatch):
    """Every centre within the length of the field of view lies within its depth and width, too."""
    pose = draw_pose(np.random.default_rng(1), side=False)
    monkeypatch.setattr(trunk, "_trunk_box", lambda *_: (np.full(3, -260.0), np.full(3, 260.0)))
    straight = drawn_places(np.array([*organs.centres.values()]) - trunk._middle_mm(organs), pose)
    for number in range(60):
        rng = np.random.default_rng([5, number])
        places = straight + np.array([0, 0, 1, 1])[:, None] * (0, rng.uniform(-140, 140), 0)
        low, size = trunk._draw_field(rng, organs, pose, dict(zip(LEVELS, places)))
        seen = places[(places[:, 2] > low[2]) & (places[:, 2] < low[2] + size[2])]
        assert (seen > low).all() and (seen < low + size).all()


def test_points_lie_on_their_own_bodies(organs, monkeypatch):
    """Vertebrae painted with their codes and scanned without faults have these codes at their points."""

    def codes_for_bones(hu, tissue, where, organs, *_):
        hu[:] = organs.vertebrae.ravel()[where[0]]

    monkeypatch.setattr(trunk, "_paint_bones", codes_for_bones)
    monkeypatch.setattr(trunk, "_paint_table", lambda *_: None)
    monkeypatch.setattr(trunk, "_scanned", lambda rng, hu, *_: hu)
    seen = 0
    for number in range(20):
        # Both grids begin at one place: with one spacing for both, points are voxels of the painted image.
        scan = draw_trunk_scan(organs, 3, number, spacing_mm=STEP_MM)
        for code, at in scan.points.items():
            here = tuple(np.clip(np.rint(at).astype(int), 0, np.array(scan.ct.shape) - 1))
            assert scan.ct[here] == code
            seen += 1
    assert seen > 20


def test_one_of_the_last_ribs_is_long_enough_to_make_a_thoracic_vertebra():
    codes, vertebrae, hu = small_trunk(rib_voxels=34)
    organs = organ_map_of(codes, NAMES, vertebrae, hu, spacing_mm=STEP_MM)
    lengths = []
    for number in range(60):
        pose = draw_pose(np.random.default_rng(number), side=False)
        lengths.append(trunk._cut_ribs(np.random.default_rng(number), organs, pose).ribs_mm[T12])
    assert np.max(lengths, axis=1).min() >= 40 and np.min(lengths) < 20


def test_a_cut_rib_is_soft_tissue_beyond_its_end(organs, monkeypatch):
    pose = draw_pose(np.random.default_rng(0), side=False)
    painted = {}
    monkeypatch.setattr(
        trunk, "_paint_bones", lambda hu, tissue, where, *_: painted.update(t=tissue, i=where[0])
    )
    ends = np.full(len(organs.rib_list) + 1, 30.0)
    values = trunk.draw_values(np.random.default_rng(0), organs.medians, position="supine")
    drawn = (pose, values, trunk._Cuts({}, ends))
    trunk._painted(np.random.default_rng(0), organs, drawn, np.full(3, -120.0), np.full(3, 240.0))
    kept = organs.along_mm.ravel()[painted["i"][painted["t"] == RIB]]
    assert 0 < kept.max() <= 30 < organs.along_mm.max()


def test_lengths_along_a_path():
    np.testing.assert_allclose(path_lengths(np.array([[0, 0, 0], [3, 4, 0], [3, 4, 2.0]])), (0, 5, 7))


def test_thin_slices_are_means_over_the_new_voxels():
    weights = axis_weights(6, 2.0, 4, 3.0, slab_mm=1.0)
    np.testing.assert_allclose(weights[0], (2 / 3, 1 / 3, 0, 0, 0, 0), atol=1e-6)
    np.testing.assert_allclose(weights[1], (0, 1 / 3, 2 / 3, 0, 0, 0), atol=1e-6)


def test_thick_slices_are_means_over_slices_with_lines_between():
    weights = axis_weights(6, 2.0, 4, 3.0, slab_mm=6.0)
    first, second = np.repeat([[1, 0], [0, 1]], 3, axis=1) / 3
    # Centres of voxels at 1.5, 4.5, 7.5 and 10.5 mm, of slices at 3 and 9 mm.
    for row, share in zip(weights, (0, 0.25, 0.75, 1)):
        np.testing.assert_allclose(row, (1 - share) * first + share * second, atol=1e-6)


@pytest.mark.skipif(not TOTAL.is_dir(), reason="the real organs (../shared/real-ct) are not here")
def test_a_real_chest_gives_all_ribs_and_scans():
    stem = TOTAL / "chest_seg-total"
    organs = read_organ_map(
        stem.with_name(f"{stem.name}_msk.nii.gz"),
        stem.with_name(f"{stem.name}_names.csv"),
        real("chest_seg-vert_msk.nii.gz"),
        real("chest_ct.nii.gz"),
        spacing_mm=3.0,
    )
    names = ("C7", *(f"T{n}" for n in range(1, 13)), "L1", "L2", "L3")
    assert tuple(organs.centres) == tuple(code_of_name(name) for name in names)
    points = np.array([*organs.centres.values()])
    apart = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert apart.min() > 14 and apart.max() < 36
    # Vertebrae grow, and so do the steps between them: L3 is cut, C7 too.
    assert abs(apart[0] - apart[1]) < 5 and abs(apart[-1] - apart[-2]) < 5
    assert len(organs.rib_list) == 24
    for name, low, high in (("T1", 70, 150), ("T7", 200, 350), ("T12", 40, 140)):
        assert all(low < length < high for length in organs.ribs_mm[code_of_name(name)])
    assert any(len(draw_trunk_scan(organs, 1, number).points) > 10 for number in range(6))


# ---------------------------------------------------------------- with masks


def test_a_scan_with_masks_shows_the_surroundings_of_the_spine(organs):
    found = [draw_trunk_scan(organs, 3, n, spacing_mm=organs.spacing_mm, with_codes=True) for n in range(6)]
    for scan in found:
        assert scan.codes.shape == scan.ct.shape and scan.codes.dtype == np.uint8
        shown = set(np.unique(scan.codes)) - {0}
        assert shown and shown <= {*LEVELS}
        for code, at in scan.points.items():
            # The middle of a body, up to what bending and voxels take.
            voxels = np.argwhere(scan.codes == code)
            assert np.linalg.norm(voxels - at, axis=1).min() * scan.spacing_mm < 8
    sizes = [max(scan.ct.shape[:2]) * scan.spacing_mm for scan in found]
    whole = [draw_trunk_scan(organs, 3, n, spacing_mm=organs.spacing_mm) for n in range(6)]
    assert max(sizes) <= max(max(scan.ct.shape[:2]) * scan.spacing_mm for scan in whole)
    assert all(scan.codes is None for scan in whole)


def test_masks_have_the_spacing_of_the_map(organs):
    with pytest.raises(ValueError, match="spacing of the map"):
        draw_trunk_scan(organs, 3, 0, spacing_mm=organs.spacing_mm / 2, with_codes=True)
