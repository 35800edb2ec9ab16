"""The walk down the spine, on small columns with exact answers and on real masks."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Callable

import numpy as np
import pytest

from tests.imaging.examples import NO_DATA, real
from tests.walk.column import AFFINE, CENTRES, SHAPE, Scripted, column, heat_of, oracle
from utils.imaging.centroids import centroids_of_mask, read_centroids
from utils.imaging.grids import resized_grid, working_grid
from utils.imaging.nifti import read_mask
from utils.imaging.resampling import resample_labels
from utils.imaging.volume import Volume
from utils.verse.labels import ranks_of_mask
from utils.walk.checks import leaves_enough, search_points, strays
from utils.walk.look import field_of
from utils.walk.records import WalkSettings
from utils.walk.traverse import walk

SMALL = WalkSettings(patch_voxels=32, spacing_mm=2.0, min_volume_mm3=200.0)
PUBLISHED = dataclasses.replace(SMALL, robust=False)


def block_at(begin: tuple[int, int, int], size: int = 8) -> np.ndarray:
    """A cube of probability 1 in an empty patch of 32 voxels."""
    probability = np.zeros((32, 32, 32), np.float32)
    probability[tuple(slice(b, b + size) for b in begin)] = 1
    return probability


class Recorder:
    """A predictor that keeps what it was asked."""

    def __init__(self, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.predict = predict
        self.asked: list[int] = []

    def __call__(self, ct: np.ndarray, memory: np.ndarray) -> np.ndarray:
        self.asked.append(hash(ct.tobytes() + memory.tobytes()))
        return self.predict(ct, memory)


@pytest.fixture(scope="module")
def heat() -> Volume:
    return heat_of(CENTRES, column().shape, AFFINE, sigma=6.0)


def test_the_oracle_gives_every_vertebra_once_in_order(heat):
    result = walk(column(), heat, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)
    np.testing.assert_array_equal(result.labels.affine, AFFINE)
    np.testing.assert_allclose([v.centre for v in result.vertebrae], CENTRES)
    assert all(v.converged for v in result.vertebrae)
    # The patch of 32 voxels holds each next vertebra whole, so every centre is exact from the first look.
    assert [v.steps for v in result.vertebrae] == [3] * 6


def test_boxes_hold_the_vertebra_with_a_margin(heat):
    first = walk(column(), heat, oracle, settings=SMALL).vertebrae[0]
    np.testing.assert_array_equal(first.begin, [20 - 4 - 2, 22 - 5 - 2, 14 - 3 - 2])
    assert first.mask.shape == first.probability.shape == (13, 15, 11)
    assert first.mask.sum() == 9 * 11 * 7


def test_an_identical_patch_is_never_predicted_twice(heat):
    predict = Recorder(oracle)
    walk(column(), heat, predict, settings=SMALL)
    assert len(set(predict.asked)) == len(predict.asked)
    # Two for the first two (the first look and the one at its centre; the third is a repeat), one for the
    # others, which lie where they are expected; a question about the first, one look above, those at the end.
    assert len(predict.asked) <= 2 * 2 + 4 + 1 + 1 + SMALL.max_steps_down


def test_a_heatmap_on_a_coarse_grid_leads_the_same_way():
    grid = resized_grid(column().grid, (10, 11, 21))
    to_fine = np.array([4.0, 4.0, 4.0])
    coarse = heat_of((CENTRES - 1.5) / to_fine, grid.shape, grid.affine, sigma=1.5)
    result = walk(column(), coarse, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)


def test_a_cold_heatmap_gives_no_vertebra(heat):
    cold = Volume(np.full_like(heat.data, 0.29), heat.affine)
    predict = Recorder(oracle)
    result = walk(column(), cold, predict, settings=PUBLISHED)
    assert result.vertebrae == () and not result.labels.data.any() and not predict.asked
    # The robust walk searches patch by patch.
    np.testing.assert_array_equal(walk(column(), cold, oracle, settings=SMALL).labels.data, column().data)


def test_an_empty_predictor_steps_down_and_ends(heat):
    predict = Recorder(lambda ct, memory: np.zeros_like(ct))
    result = walk(column(), heat, predict, settings=PUBLISHED)
    assert result.vertebrae == ()
    # Heat of .3 from slice 5 to slice 73, a quarter of the patch is 8 voxels: no more than the limit.
    assert len(predict.asked) == SMALL.max_steps_down + 1
    predict = Recorder(predict.predict)
    assert walk(column(), heat, predict, settings=SMALL).remarks == ("spine not covered",)
    # Some more where 30 slices of spine are left, and a search, one call a point.
    searched = len(search_points(field_of(column()), SMALL.patch_voxels / 2))
    assert SMALL.max_steps_down + 1 < len(predict.asked) <= SMALL.max_steps_down + 1 + 4 + searched
    assert searched == 8


def test_a_gap_is_stepped_over(heat):
    gap = column()
    gap.data[gap.data < 4] = 0
    result = walk(gap, heat, oracle, settings=SMALL)
    np.testing.assert_array_equal(np.unique(gap.data[result.labels.data > 0]), [4, 5, 6])


def test_a_full_predictor_ends(heat):
    result = walk(column(), heat, lambda ct, memory: np.ones_like(ct), settings=SMALL)
    # It comes to rest where the whole patch lies in the scan, and then where it is new, 32 slices on. What a
    # third patch shows has its centre at slice 73.5, where the heat, of .28, is that of no spine.
    expected = np.zeros(SHAPE)
    expected[4:36, 6:38, :32], expected[4:36, 6:38, 32:64] = 1, 2
    np.testing.assert_array_equal(result.labels.data, expected)
    assert [v.centre[2] for v in result.vertebrae] == [15.5, 47.5] and all(
        v.converged for v in result.vertebrae
    )
    assert result.trace[-2].words == "refused: lies below the spine, where the heat is low"


def test_a_drifting_predictor_ends_without_rest(heat):
    # Always 4 voxels (8 mm) below the patch's centre: no three centres are ever closer than 16 mm.
    predict = Recorder(lambda ct, memory: block_at((12, 12, 16)))
    result = walk(column(), heat, predict, settings=PUBLISHED)
    assert not any(v.converged for v in result.vertebrae)
    assert result.vertebrae[0].steps == SMALL.max_steps + 1
    assert len(predict.asked) <= (SMALL.max_vertebrae + SMALL.max_steps_down + 1) * (SMALL.max_steps + 1)
    robust = walk(column(), heat, predict.predict, settings=SMALL)
    assert robust.calls <= SMALL.max_calls and "no convergence" in robust.vertebrae[-1].remarks


def test_an_alternating_predictor_ends_at_the_mean(heat):
    asked = []

    def alternate(ct, memory):
        asked.append(1)
        return block_at((12, 12, 6 if len(asked) % 2 else 18))

    result = walk(column(), heat, alternate, settings=PUBLISHED)
    looks = [step for step in result.trace if step.origin is not None][: PUBLISHED.max_steps + 1]
    assert [step.centre[2] for step in looks[-4:-1]] == [8.5, 3.0, 8.5]
    # The last patch has their mean, slice 6.67, in its middle, and shows what the first one showed.
    assert looks[-1].origin[2] == looks[0].origin[2] == -9 == round(20 / 3 - 16)
    first = result.vertebrae[0]
    assert first.centre[2] == looks[-1].centre[2] == 2.0
    assert not first.converged and first.steps == PUBLISHED.max_steps + 1


def test_the_last_centres_are_averaged_and_looked_at_once_more():
    """A predictor that flips between two places: the mean of three centres decides."""
    marks = Volume(np.broadcast_to(np.arange(84, dtype=np.float32), (40, 44, 84)).copy(), AFFINE)
    start = heat_of(np.array([[20.0, 22.0, 40.0]]), marks.shape, AFFINE, sigma=1.0)
    seen = []

    def flip(ct, memory):
        middle = int(ct[0, 0, 16])  # slice at the patch's centre
        seen.append(middle)
        target = 44 if middle < 40 else 36
        low = target - middle + 16
        probability = np.zeros_like(ct)
        probability[12:20, 12:20, low - 4 : low + 5] = 1
        return probability

    result = walk(marks, start, flip, settings=dataclasses.replace(PUBLISHED, max_steps=5))
    first = result.vertebrae[0]
    assert not first.converged and first.steps == 6
    # Heat of .3 is reached 1.55 voxels above 40. Centres: 44, 36, 44, 36, 44; their last three: mean 41.33.
    assert seen[:4] == [39, 44, 36, 41]


@pytest.mark.parametrize(("rule", "found"), [("relative", 3), ("absolute", 5)])
def test_end_rules(rule, found):
    """Heat 1, 1, 1, .4, .25, .25 at the six centres, level from half way to half way."""
    heat = Volume(np.zeros((40, 44, 84), np.float32), AFFINE)
    heat.data[16:25, 18:27] = np.repeat([1, 0.4, 0.25], [39, 10, 35])
    settings = WalkSettings(32, 2.0, end_rule=rule, min_volume_mm3=200.0)
    assert len(walk(column(), heat, oracle, settings=settings).vertebrae) == found


def test_specks_do_not_count(heat):
    def with_speck(ct, memory):
        probability = oracle(ct, memory)
        probability[:2, :2, :2] = 1
        return probability

    result = walk(column(), heat, with_speck, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)
    first = result.vertebrae[0]
    assert first.probability[~first.mask].max() < 0.5


def test_a_vertebra_found_again_counts_as_nothing(heat):
    result = walk(column(), heat, lambda ct, memory: (ct == 2).astype(np.float32), settings=SMALL)
    assert len(result.vertebrae) == 1


def test_voxels_already_given_are_not_touched(heat):
    def greedy(ct, memory):  # the next vertebra, and three slices of the one above it
        probability = oracle(ct, memory)
        return np.maximum.reduce([np.roll(probability, -i, axis=2) for i in range(7)])

    result = walk(column(), heat, greedy, settings=SMALL)
    expected = column().data.copy()
    for p, r, i in CENTRES.astype(int):
        rank = expected[p, r, i]
        gap = expected[p - 4 : p + 5, r - 5 : r + 6, i - 9 : i - 3]
        gap[gap == 0] = rank
    np.testing.assert_array_equal(result.labels.data, expected)
    second = result.vertebrae[1]
    assert second.probability[~second.mask].max() < 0.5 <= second.probability[second.mask].min()


def test_no_more_than_the_most_vertebrae(heat):
    settings = WalkSettings(32, 2.0, max_vertebrae=2, min_volume_mm3=200.0)
    assert len(walk(column(), heat, oracle, settings=settings).vertebrae) == 2


def test_a_fragment_is_passed_over_without_a_label(heat):
    cut = column()
    cut.data[:, :, :15][cut.data[:, :, :15] == 1] = 0  # 3 of the 7 slices are left: 2376 mm3
    settings = WalkSettings(32, 2.0, min_volume_mm3=2377.0)
    expected = np.maximum(cut.data - 1, 0)
    result = walk(cut, heat, oracle, settings=settings)
    np.testing.assert_array_equal(result.labels.data, expected)
    settings = WalkSettings(32, 2.0, min_volume_mm3=2376.0)
    np.testing.assert_array_equal(walk(cut, heat, oracle, settings=settings).labels.data, cut.data)


def test_a_predictor_of_fragments_ends(heat):
    predict = Recorder(lambda ct, memory: oracle(ct, memory))
    settings = WalkSettings(32, 2.0, min_volume_mm3=5545.0, robust=False)
    result = walk(column(), heat, predict, settings=settings)
    assert result.vertebrae == () and not result.labels.data.any()
    assert len(predict.asked) <= 2 * (settings.max_fragments + 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(np.zeros((32, 32, 31)), "shape"), (np.full((32, 32, 32), np.nan), "NaN")],
)
def test_a_broken_predictor_is_named(heat, answer, message):
    with pytest.raises(ValueError, match=message):
        walk(column(), heat, lambda ct, memory: answer, settings=SMALL)


def test_a_wrong_top_costs_nothing():
    """Heat from the third vertebra on: the two above are found by looking above."""
    low = heat_of(CENTRES[3:], column().shape, AFFINE, sigma=4.0)
    ranks = column()
    ranks.data[:, :, 34 - 5 :][:, :, :1] = 0

    def in_reach(ct, memory):  # sees a vertebra only if the patch shows all of it
        ct = np.where(np.isin(ct, [rank for rank in range(1, 7) if (ct == rank).sum() == 9 * 11 * 7]), ct, 0)
        return oracle(ct, memory)

    published = walk(ranks, low, in_reach, settings=dataclasses.replace(PUBLISHED, patch_voxels=24))
    assert len(published.vertebrae) < 6
    result = walk(ranks, low, in_reach, settings=dataclasses.replace(SMALL, patch_voxels=24))
    np.testing.assert_array_equal(result.labels.data, ranks.data)
    assert all("found above" in vertebra.remarks for vertebra in result.vertebrae[:1])


def test_a_gap_in_the_heatmap_is_crossed():
    """No heat at the third and fourth vertebra; the published walk ends before them."""
    heat = heat_of(CENTRES[[0, 1, 4, 5]], column().shape, AFFINE, sigma=3.0)
    assert len(walk(column(), heat, oracle, settings=PUBLISHED).vertebrae) == 2
    result = walk(column(), heat, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)


def test_a_gap_in_the_heatmap_is_crossed_beside_something_hot():
    """Beside the gap, 60 voxels to the front, lies what the heatmap network takes for spine: a heart."""
    data = np.zeros((100, *SHAPE[1:]), np.float32)
    data[60:] = column().data
    points = CENTRES.copy()
    points[[0, 1, 4, 5], 0] += 60
    heat = heat_of(points, data.shape, AFFINE, sigma=3.0)
    ranks = Volume(data, AFFINE)
    result = walk(ranks, heat, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, data)


def test_spine_that_the_walk_did_not_reach_is_started_in_again(heat):
    """The network gives nothing while the memory that a patch shows holds the second vertebra."""

    def halting(ct, memory):
        return oracle(ct, memory) if not (memory[ct == 2] > 0).any() else np.zeros_like(ct)

    settings = dataclasses.replace(SMALL, max_steps_down=0, max_held=0)
    result = walk(column(), heat, halting, settings=settings)
    expected = column().data
    expected[:, :, 31][expected[:, :, 31] == 3] = 0  # only with that slice does a patch show the second
    np.testing.assert_array_equal(result.labels.data, expected)
    assert ["second start" in v.remarks for v in result.vertebrae] == [False, False, True, True, True, True]
    published = dataclasses.replace(settings, robust=False)
    assert len(walk(column(), heat, halting, settings=published).vertebrae) == 2
    # Once it has a vertebra, a second start goes on past one out of proportion, as the walk does.
    odd = column()
    p, r, i = CENTRES[4].astype(int)
    odd.data[p - 8 : p + 9, r - 9 : r + 10, i - 3 : i + 4] = 5  # 3.3 times as large as the others
    result = walk(odd, heat, halting, settings=settings)
    assert ["second start" in v.remarks for v in result.vertebrae] == [False, False, True, True, True, True]
    assert "odd volume" in result.vertebrae[4].remarks


def test_a_vertebra_that_is_skipped_is_found_on_a_second_look(heat):
    """The network gives the third vertebra only if the memory holds the fourth."""

    def skipping(ct, memory):
        hidden = np.where((ct == 3) & ~((memory > 0) & (ct == 4)).any(), 0, ct)
        return oracle(hidden, memory)

    result = walk(column(), heat, skipping, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)
    assert [v.remarks for v in result.vertebrae] == [(), (), ("second look",), (), (), ()]


@pytest.mark.parametrize("how", ["dropped", "silent"])
def test_a_vertebra_that_is_never_given_leaves_a_gap(heat, how):
    predict = Scripted(column(), **{how: {3}})
    result = walk(predict.coded_ct(), heat, predict, settings=SMALL)
    expected = np.array([0, 1, 2, 0, 3, 4, 5])[column().data.astype(int)]
    np.testing.assert_array_equal(result.labels.data, expected)
    assert [v.remarks for v in result.vertebrae] == [(), (), ("gap above",), (), ()]


@pytest.mark.parametrize("leak", [0.5, 1.0])
def test_leaks_are_cut_back(heat, leak):
    predict = Scripted(column(), leak=leak)  # the leak lies apart: the larger piece is not the next vertebra
    result = walk(predict.coded_ct(), heat, predict, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)
    joined = column()
    for rank, i in enumerate(CENTRES[:, 2].astype(int), start=1):  # ten slices high: they touch
        joined.data[16:25, 17:28, i - 5 : i + 5] = rank
    predict = Scripted(joined, leak=leak)
    result = walk(predict.coded_ct(), heat, predict, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, joined.data)
    assert [v.remarks for v in result.vertebrae] == [("leak",)] * 5 + [()]


def test_nothing_is_measured_by_a_piece_of_a_cut_vertebra_given_with_the_first_whole_one(heat):
    cut = column()
    for rank, i in enumerate(CENTRES[:, 2].astype(int), start=1):  # ten slices high: they touch
        cut.data[16:25, 17:28, i - 5 : i + 5] = rank
    cut.data[16:25, 17:28, :16] = 0  # three slices of the first are left

    def predict(ct, memory):
        ranks = np.maximum(ct, 0).astype(int)
        shown, known = (np.bincount(r.ravel(), minlength=8) for r in (ranks, ranks[memory > 0]))
        left = [rank for rank in range(1, 7) if known[rank] < shown[rank] / 2]
        begun = [rank for rank in range(2, 7) if 0.25 * shown[rank] < known[rank] < 0.9 * shown[rank]]
        if begun:  # knowing a part, it gives the rest, not along the flat border of that, with the next one
            rest = (ranks == begun[0]) & (memory == 0)
            rest[:, ::2] |= np.roll(rest, -2, axis=2)[:, ::2] & (ranks == begun[0])[:, ::2]
            return (rest | (ranks == begun[0] + 1)).astype(np.float32)
        # What is left of the first is given together with the second.
        return np.isin(ranks, [1, 2] if left[:1] == [1] else left[:1]).astype(np.float32)

    result = walk(cut, heat, predict, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, cut.data)
    assert "leak" in result.vertebrae[0].remarks and not any(
        "leak" in v.remarks for v in result.vertebrae[1:]
    )


def wide_column():
    """The column in one corner of a scan four patches wide, and a heatmap that marks the other corner."""
    data = np.zeros((120, 130, SHAPE[2]), np.float32)
    data[: SHAPE[0], : SHAPE[1]] = column().data
    heat = heat_of(np.array([[100.0, 110.0, 40.0]]), data.shape, AFFINE, sigma=8.0)
    return Volume(data, AFFINE), heat


def test_a_spine_is_found_where_the_heatmap_marks_something_else():
    ct, wrong = wide_column()
    result = walk(ct, wrong, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, ct.data)
    assert all("searched" in v.remarks or "found above" in v.remarks for v in result.vertebrae)
    assert "spine not covered" not in result.remarks
    assert len(walk(ct, wrong, oracle, settings=PUBLISHED).vertebrae) == 0
    cold = Volume(np.zeros_like(wrong.data), wrong.affine)
    np.testing.assert_array_equal(walk(ct, cold, oracle, settings=SMALL).labels.data, ct.data)


def test_one_vertebra_that_the_heatmap_leads_to_is_believed_and_one_that_a_search_finds_is_not():
    ct, wrong = wide_column()
    ct.data[ct.data > 1] = 0
    assert len(walk(ct, wrong, oracle, settings=SMALL).vertebrae) == 0
    right = heat_of(CENTRES[:1], ct.shape, AFFINE, sigma=5.0)
    (only,) = walk(ct, right, oracle, settings=SMALL).vertebrae
    assert only.remarks == ()


def test_what_lies_far_beside_the_column_is_dropped():
    """The heatmap begins at another bone, which the network takes for a vertebra."""
    data = np.zeros((120, 130, SHAPE[2]), np.float32)
    data[: SHAPE[0], : SHAPE[1]] = np.where(column().data > 0, column().data + 1, 0)
    data[96:105, 105:116, 5:12] = 1
    heat = heat_of(np.array([*CENTRES, [100.0, 110.0, 6.0]]), data.shape, AFFINE, sigma=6.0)
    published = walk(Volume(data, AFFINE), heat, oracle, settings=PUBLISHED)
    assert published.vertebrae[0].centre[0] == 100
    result = walk(Volume(data, AFFINE), heat, oracle, settings=SMALL)
    expected = np.where(data > 1, data - 1, 0)
    np.testing.assert_array_equal(result.labels.data, expected)


def test_two_bones_beside_the_spine_do_not_stand_for_it():
    """Both are taken first; all of the column is out of proportion to them."""
    data = np.zeros((120, 130, SHAPE[2]), np.float32)
    data[: SHAPE[0], : SHAPE[1]] = np.where(column().data > 0, column().data + 2, 0)
    for rank, height in ((1, 3), (2, 11)):
        data[97:102, 107:112, height : height + 5] = rank
    heat = heat_of(np.array([*CENTRES, [99.0, 109.0, 5.0]]), data.shape, AFFINE, sigma=6.0)
    predict = Recorder(oracle)
    result = walk(Volume(data, AFFINE), heat, predict, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, np.where(data > 2, data - 2, 0))
    assert len(set(predict.asked)) == len(predict.asked)
    # Where nothing else is found, they stay.
    data[data > 2] = 0
    assert len(walk(Volume(data, AFFINE), heat, oracle, settings=SMALL).vertebrae) == 2


def found_at(*centres):
    return [types.SimpleNamespace(centre=np.array(centre, float)) for centre in centres]


def test_strays_by_hand():
    straight = [(20, 20, 10 * i) for i in range(6)]
    assert strays(found_at(*straight), most_aside_voxels=8) == []
    # A spine may lean by 45 degrees.
    assert strays(found_at(*((20, 10 * i, 10 * i) for i in range(6))), most_aside_voxels=8) == []
    # The first and the last lie 15 above and below the middle of their neighbours, those next to them 10.
    for index, most in enumerate((23, 18, 8, 8, 18, 23)):
        for aside, expected in ((most - 0.5, []), (most + 0.5, [index])):
            bent = found_at(*straight)
            bent[index].centre[1] += aside
            assert strays(bent, most_aside_voxels=8) == [bent[number] for number in expected]
    assert strays(found_at((20, 20, 0), (20, 20, 10), (90, 20, 20)), most_aside_voxels=8) == []


def test_the_points_of_a_search_leave_no_place_out():
    field = (slice(10, 90), slice(0, 30), slice(5, 64))
    points = np.array(search_points(field, 16.0))
    heights = np.unique(points[:, 2])
    assert points[:, 2].tolist() == sorted(points[:, 2])
    first = points[points[:, 2] == heights[0]]
    assert (np.diff(np.hypot(first[:, 0] - 50, first[:, 1] - 15)) >= -1e-9).all()
    for axis, side in enumerate(field):
        places = np.array([side.start, *np.unique(points[:, axis]), side.stop])
        assert np.diff(places).max() <= 24  # one and a half steps: patches of two steps overlap


def test_vertebrae_at_the_border_of_the_scan_are_partial(heat):
    cut = column()
    cut.data[:, :, :13][cut.data[:, :, :13] == 1] = 0
    ct = Volume(cut.data.copy(), AFFINE)
    ct.data[:, :, :13] = -1.0  # padding: the scan begins inside the first vertebra
    result = walk(ct, heat, lambda ct, memory: oracle(np.maximum(ct, 0), memory), settings=SMALL)
    assert [v.partial for v in result.vertebrae] == [True] + [False] * 5
    whole = walk(column(), heat, oracle, settings=SMALL)
    assert not any(v.partial for v in whole.vertebrae)


def test_patches_begin_on_a_lattice_and_every_step_is_told(heat):
    predict = Recorder(oracle)
    result = walk(column(), heat, predict, settings=SMALL)
    looks = [step for step in result.trace if step.origin is not None]
    assert all(side % 2 == 0 for step in looks for side in step.origin)
    assert [step.call for step in looks if step.call] == list(range(1, len(predict.asked) + 1))
    assert result.calls == len(predict.asked)
    assert sum(v.calls for v in result.vertebrae) <= result.calls
    accepted = [step for step in result.trace if step.words == "accepted"]
    np.testing.assert_allclose([step.centre for step in accepted], CENTRES)
    lines = [json.loads(json.dumps(step.as_json())) for step in result.trace]
    assert lines[0]["part"] == "down" and lines[0]["call"] == 1


def test_any_answers_end_within_the_calls(heat):
    """Answers by chance: nothing, specks, blocks, everything."""

    def chance(ct, memory):
        rng = np.random.default_rng(int(memory.sum()) + int(ct.sum()))
        begin, size = rng.integers(0, 24, 3), rng.integers(1, 30, 3)
        probability = np.zeros_like(ct)
        probability[tuple(slice(b, b + s) for b, s in zip(begin, size))] = rng.random()
        return probability

    settings = dataclasses.replace(SMALL, min_volume_mm3=0.0)
    result = walk(column(), heat, chance, settings=settings)
    assert result.calls <= settings.max_calls
    assert sum(v.mask.sum() for v in result.vertebrae) == np.count_nonzero(result.labels.data)


REAL = [
    ("sub-verse014_seg-vert_msk.nii.gz", "sub-verse014_seg-vb_ctd.json"),
    ("sub-verse004_seg-vert_msk.nii.gz", "sub-verse004_seg-subreg_ctd.json"),
    ("sub-gl003_dir-ax_seg-vert_msk.nii.gz", "sub-gl003_dir-ax_seg-subreg_ctd.json"),
    # Cut by the field of view above and below, and labelled by a program: heat from the masks' centres.
    ("chest_seg-vert_msk.nii.gz", None),
    ("abdomen_seg-vert_msk.nii.gz", None),
]


def real_case(mask_name: str, centroids_name: str | None, spacing_mm: float) -> tuple[Volume, Volume]:
    """Ranks on the working grid, and the heat of the annotated centroids on the heatmap grid."""
    if not real(mask_name).is_file():
        pytest.skip(NO_DATA)
    mask = read_mask(real(mask_name))
    centroids = centroids_of_mask(mask)
    if centroids_name is not None:
        centroids = read_centroids(real(centroids_name), mask.grid)
    grid = working_grid(mask.grid, spacing_mm)
    small = resized_grid(grid, (64, 64, 128))
    heat = heat_of(centroids.voxels(small.affine), small.shape, small.affine, sigma=10.0)
    return Volume(ranks_of_mask(resample_labels(mask, grid).data).astype(np.float32), grid.affine), heat


def dice(found: np.ndarray, true: np.ndarray) -> float:
    return 2 * np.count_nonzero(found & true) / (np.count_nonzero(found) + np.count_nonzero(true))


@pytest.fixture(scope="module")
def whole_case() -> Callable[[tuple], tuple[Volume, Volume]]:
    """Real ranks at 2 mm without the slivers that the border leaves of some; each case is read once."""

    @functools.cache
    def read(case: tuple) -> tuple[Volume, Volume]:
        ranks, heat = real_case(*case, 2.0)
        voxels = np.bincount(ranks.data.astype(int).ravel())
        slivers = np.flatnonzero(voxels * 8 < 1000.0)
        return Volume(
            np.where(np.isin(ranks.data, slivers), 0, ranks.data).astype(np.uint8), ranks.affine
        ), heat

    return read


SCRIPTS = {
    "perfect": {},
    "shifted by 6 mm": {"moved": (0, 0, 3)},
    "every fourth dropped": {"dropped": 4},
    "every fourth silent": {"silent": 4},
    "leaking by half": {"leak": 0.5},
    "leaking whole": {"leak": 1.0},
    "noisy": {"noisy": True},
}


@pytest.mark.parametrize("case", REAL, ids=lambda case: case[0].split("_")[0])
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripted_networks_on_real_spines(whole_case, case, script):
    ranks, heat = whole_case(case)
    present = [int(rank) for rank in np.unique(ranks.data[ranks.data > 0])]
    how = dict(SCRIPTS[script])
    gone = {rank for rank in present[3::4] if how.keys() & {"dropped", "silent"}}
    how |= dict.fromkeys(how.keys() & {"dropped", "silent"}, gone)
    predict = Scripted(ranks, **how)
    result = walk(predict.coded_ct(), heat, predict, settings=WalkSettings(64, 2.0))
    expected = [rank for rank in present if rank not in gone]
    assert len(result.vertebrae) == len(expected)
    found = [result.labels.data == number for number in range(1, len(expected) + 1)]
    reached = np.mean([dice(mask, ranks.data == rank) for mask, rank in zip(found, expected)])
    scripted = np.mean([dice(predict.given(rank), ranks.data == rank) for rank in expected])
    assert reached >= scripted - 0.02
    assert result.calls <= 6 * len(present)
    for mask, vertebra in zip(found, result.vertebrae):  # nothing was overwritten
        assert mask[vertebra.box][vertebra.mask].all() and mask.sum() == vertebra.mask.sum()
    if script == "perfect":
        assert sum(v.calls for v in result.vertebrae) <= 3.0 * len(expected)


@pytest.mark.parametrize("case", REAL, ids=lambda case: case[0].split("_")[0])
def test_a_network_that_stops_early_loses_no_more_than_one(whole_case, case):
    """It gives nothing for one vertebra in the middle, and so nothing for as long as that is the target."""
    ranks, heat = whole_case(case)
    present = [int(rank) for rank in np.unique(ranks.data[ranks.data > 0])]
    silent = present[len(present) // 2]
    predict = Scripted(ranks, silent={silent})
    result = walk(predict.coded_ct(), heat, predict, settings=WalkSettings(64, 2.0))
    expected = [rank for rank in present if rank != silent]
    assert len(result.vertebrae) == len(expected)
    for number, rank in enumerate(expected, start=1):
        assert dice(result.labels.data == number, ranks.data == rank) >= 0.98
    assert "gap above" in result.vertebrae[len(present) // 2].remarks


@pytest.mark.parametrize("case", REAL, ids=lambda case: case[0].split("_")[0])
@pytest.mark.parametrize(("spacing_mm", "patch_voxels"), [(1.0, 128), (2.0, 64)])
def test_the_oracle_walks_down_real_spines(case, spacing_mm, patch_voxels):
    ranks, heat = real_case(*case, spacing_mm)
    result = walk(ranks, heat, oracle, settings=WalkSettings(patch_voxels, spacing_mm))
    present, voxels = np.unique(ranks.data[ranks.data > 0], return_counts=True)
    expected = present[voxels * spacing_mm**3 >= 1000.0]
    assert len(result.vertebrae) == len(expected)
    for index, rank in enumerate(expected, start=1):
        found, true = result.labels.data == index, ranks.data == rank
        assert 2 * np.count_nonzero(found & true) / (found.sum() + true.sum()) >= 0.98


@pytest.mark.parametrize(
    ("whole", "cut", "usual", "enough"),
    [
        (6200, 2900, 4900, False),  # a large L1 below T12: the cut would leave half of it
        (7400, 4900, 4900, True),  # with half of the next one
        (9800, 2900, 4900, True),  # with all of it: too large for one, whatever the cut leaves
        (6200, 3300, 4900, True),
        (6200, 100, None, True),
    ],
)
def test_a_large_vertebra_is_not_cut_in_two(whole, cut, usual, enough):
    masks = [np.arange(10_000) < voxels for voxels in (cut, whole)]
    assert leaves_enough(*masks, usual) == enough
