"""The wide ranges of the phantom: each bound is measured in what is drawn; the usual path stays as it was."""

import hashlib
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from utils.synthetic.phantom.anatomy import draw_anatomy
from utils.synthetic.phantom.cage import cut_path, rib_path
from utils.synthetic.phantom.make import make_phantom
from utils.synthetic.phantom.ranges import THORACIC_RIB_MM, USUAL, WIDE
from utils.synthetic.phantom.record import enter_phantoms
from utils.synthetic.phantom.shapes import SIDES, BodyGrid
from utils.synthetic.phantom.skeleton import RIB
from utils.synthetic.phantom.subject import draw_subject
from utils.synthetic.phantom.tissue import _shell, render_tissue
from utils.synthetic.phantom.values import draw_tissue
from utils.synthetic.phantom.wide_values import draw_tissue_within, draw_wide_bone
from utils.synthetic.phantom.write import plan_variants, write_phantom_data_set
from utils.verse.labels import code_of_name, region_of_code

T11, T12, T13, L1, L6, C7 = (code_of_name(name) for name in ("T11", "T12", "T13", "L1", "L6", "C7"))


@pytest.fixture(scope="module")
def subjects():
    return [draw_subject(np.random.default_rng([3, n]), ranges=WIDE) for n in range(150)]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((4, 3, 1, "2019", (20, 21)), "f01797be5c70b758"),
        ((2, 0, 0, "2020-ax", (1, 10)), "818df9ece5f2e562"),
    ],
)
def test_the_usual_phantoms_are_what_they_were_before_there_were_ranges(arguments, expected):
    seed, subject, series, style, whole = arguments
    phantom = make_phantom(seed, subject=subject, series=series, style=style, whole=whole, step_mm=2.0)
    parts = (phantom.ct, phantom.bone, np.round(phantom.affine, 6))
    assert hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16] == expected


def test_usual_ranges_give_the_usual_subject():
    usual = draw_subject(np.random.default_rng(1), ranges=USUAL)
    np.testing.assert_array_equal(usual.body_centres(), draw_anatomy(np.random.default_rng(1)).body_centres())
    assert usual.habitus is None


def angle_of(subject):
    """Kyphosis between the axes of T4 and T12 (T11 where that is absent), in the sagittal plane, degrees."""
    codes = [v.code for v in subject.vertebrae]
    axes = [subject.vertebra(c).rotation[:, 2] for c in (11, T12 if T12 in codes else T11)]
    upper, lower = (np.degrees(np.arctan2(axis[0], axis[2])) for axis in axes)
    return upper - lower


def test_kyphoses_fill_their_range(subjects):
    angles = np.array([angle_of(subject) for subject in subjects])
    assert angles.min() > 19 and angles.max() < 71  # the lean to the side changes them a little
    assert np.percentile(angles, 10) < 30 and np.percentile(angles, 90) > 60


def test_some_upper_chests_are_crowded(subjects):
    crowded = 0
    for subject in subjects:
        chest = [v for v in subject.vertebrae if v.name in ("T1", "T2", "T3", "T4", "T5")]
        pitches = [np.linalg.norm(b.origin - a.origin) for a, b in pairwise(chest)]
        crowded += all(2 <= v.size.disc <= 4 for v in chest) and all(14.8 < x < 18.2 for x in pitches)
    assert 0.25 < crowded / len(subjects) < 0.55


def test_ribs_agree_with_the_names_of_the_levels(subjects):
    for subject in subjects:
        for vertebra in subject.vertebrae:
            longest = max(subject.habitus.ribs_mm.get(vertebra.code, (0, 0)))
            assert (longest >= THORACIC_RIB_MM) == (region_of_code(vertebra.code) == "thoracic")


def test_last_ribs_fill_their_ranges_and_sides_differ(subjects):
    ribs = [subject.habitus.ribs_mm for subject in subjects]
    twelfth = np.array([pair[T12] for pair in ribs if T12 in pair])
    assert twelfth.min() < 20 and 100 < twelfth.max() <= 140
    assert np.median(np.abs(twelfth[:, 0] - twelfth[:, 1])) > 5
    eleventh = np.array([pair[T11] for pair in ribs])
    assert eleventh.min() >= 100 and eleventh.max() <= 200
    assert any(C7 in pair for pair in ribs)


def test_variants_come_at_their_rates_and_stumps_with_an_absent_t12(subjects):
    levels = [{v.code for v in subject.vertebrae} for subject in subjects]
    without = [s for s, codes in zip(subjects, levels) if T12 not in codes]
    # Three standard deviations of a share of 150 draws.
    assert abs(len(without) / 150 - WIDE.rate_no_t12) < 0.067
    assert abs(np.mean([T13 in codes for codes in levels]) - WIDE.rate_t13) < 0.067
    assert all(max(subject.habitus.ribs_mm[L1]) < THORACIC_RIB_MM for subject in without)
    counts = {len(subject.vertebrae) for subject in without}
    assert counts == {23, 24}


def test_a_path_is_cut_at_its_lengths():
    path = np.array([[0.0, 0, 0], [30, 0, 0], [30, 40, 0]])
    np.testing.assert_allclose(cut_path(path, 10, 50)[[0, -1]], [[10, 0, 0], [30, 20, 0]])
    assert (cut_path(path, 10, 50) == [30, 0, 0]).all(1).any()
    np.testing.assert_allclose(cut_path(path, 0, 500)[-1], path[-1])
    assert cut_path(path, 5, 3).shape == (0, 3)


@pytest.mark.parametrize("length", [30.0, 70.0, 120.0])
def test_a_rib_is_as_long_in_the_rendered_bone_as_drawn(length):
    """Followed along its course, the bone ends where the length says, on one side; the other has none."""
    subject = draw_subject(np.random.default_rng(9), keep=(T12,), ranges=WIDE)
    ribs = {T12: (length, 0.0)}
    subject = replace(subject, habitus=replace(subject.habitus, ribs_mm=ribs))
    centre = subject.vertebra(T12).origin
    grid = BodyGrid(centre - [120, 150, 40], 1.5, (120, 200, 120))
    tissue = render_tissue(subject, draw_tissue(np.random.default_rng(0), subject), grid)
    path = rib_path(subject, subject.vertebra(T12), SIDES[0])
    dense = np.concatenate([np.linspace(a, b, 20) for a, b in pairwise(path)])
    ways = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(dense, axis=0), axis=1))])
    voxels = (dense - grid.origin) / grid.step_mm
    inside = ndimage.map_coordinates(tissue.distance, voxels.T, order=1) < 0
    assert ways[inside].max() == pytest.approx(length, abs=4.0)
    rib = np.argwhere(tissue.region == RIB)[:, 1] * grid.step_mm + grid.origin[1] - centre[1]
    assert rib.min() > 0  # right only


def test_bone_fills_its_ranges():
    bones = [draw_wide_bone(np.random.default_rng(n), 24, WIDE) for n in range(300)]
    for name, (low, high) in (
        ("body", WIDE.cancellous_hu),
        ("cortex", WIDE.cortex_hu),
        ("shell_mm", WIDE.shell_mm),
    ):
        values = np.array([getattr(bone, name) for bone in bones])
        assert low <= values.min() < low + 0.2 * (high - low)
        assert high >= values.max() > high - 0.1 * (high - low)


def test_the_cortex_of_a_coarse_voxel_is_the_mean_over_its_bone():
    """Against a sum over depth, 1 mm of cortex in voxels of 2 mm."""
    for middle in (-2.5, -1.0, -0.3, 0.4):
        depth = np.linspace(middle - 1, middle + 1, 20001)
        inside = depth < 0
        expected = np.clip(1.25 + depth[inside], 0, 1).mean()
        found = _shell(np.float32([middle]), np.float32([1.0]), 2.0)
        assert found[0] == pytest.approx(expected, abs=2e-3)


def test_wide_tissue_has_every_phase_and_inlays():
    drawn = []
    for n in range(60):
        rng = np.random.default_rng([4, n])
        drawn.append(draw_tissue_within(rng, draw_subject(rng, ranges=WIDE), WIDE))
    arteries = np.array([values.vessels[0].hu for values in drawn])
    assert arteries.min() < 50 and arteries.max() > 220
    brightest = [max((inlay.hu for inlay in values.inlays), default=0) for values in drawn]
    assert any(x > 3000 for x in brightest) and any(x == 0 for x in brightest)


def test_wide_phantoms_are_made_and_their_points_lie_in_them():
    phantom = make_phantom(3, whole=(18, 20), step_mm=2.0, ranges=WIDE)
    inverse = np.linalg.inv(phantom.affine)
    for code, point in phantom.points:
        voxel = np.rint(inverse[:3, :3] @ point + inverse[:3, 3]).astype(int)
        assert phantom.mask[tuple(voxel)] == code


def test_a_folder_of_other_ranges_is_refused_and_named_sets_lie_beside(tmp_path):
    enter_phantoms(tmp_path, (1, 0, 0), seed=0, variants=None, ranges="wide")
    assert json.loads((tmp_path / "phantom.json").read_text()) == {"seed": 0, "ranges": "wide"}
    with pytest.raises(ValueError, match="expected phantoms of the usual ranges, found those of the wide"):
        write_phantom_data_set(tmp_path, (1, 0, 0), seed=0)
    enter_phantoms(tmp_path, (1, 0, 0), seed=5, variants="half", ranges="wide")
    enter_phantoms(tmp_path, (2, 0, 0), seed=5, variants="half")
    assert json.loads((tmp_path / "phantom.json").read_text())["variants"] == {
        "widehalf": {"5": [1, 0, 0]},
        "half": {"5": [2, 0, 0]},
    }
    (series,) = plan_variants((1, 0, 0), seed=5, variants="half", ranges="wide")
    assert series.key == "sub-widehalf5x000"


def test_a_folder_of_usual_phantoms_refuses_wide_ones(tmp_path):
    enter_phantoms(tmp_path, (1, 0, 0), seed=0, variants=None)
    with pytest.raises(ValueError, match="expected phantoms of the wide ranges, found those of the usual"):
        enter_phantoms(tmp_path, (1, 0, 0), seed=0, variants=None, ranges="wide")
