"""The walk along known centres, on small columns with exact answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.walk.column import AFFINE, BLOCK_VOXELS, CENTRES, Scripted, column, oracle
from utils.imaging.volume import Volume
from utils.walk.along import MOST_OTHERS, walk_along
from utils.walk.records import WalkSettings

#: The blocks have their bodies in their middle: the patch lies 11 mm behind.
SMALL = WalkSettings(patch_voxels=40, spacing_mm=2.0, min_volume_mm3=200.0)


def touching_column() -> Volume:
    """The column with blocks of ten slices, each touching the next."""
    joined = column()
    for rank, i in enumerate(CENTRES[:, 2].astype(int), start=1):
        joined.data[16:25, 17:28, i - 5 : i + 5] = rank
    return joined


def test_every_centre_gets_its_vertebra_with_one_call():
    result = walk_along(column(), CENTRES, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)
    np.testing.assert_array_equal(result.labels.affine, AFFINE)
    np.testing.assert_allclose([v.centre for v in result.vertebrae], CENTRES)
    assert [v.index for v in result.vertebrae] == list(range(6)) and result.missed == ()
    assert result.calls == 6 and [v.calls for v in result.vertebrae] == [1] * 6


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("away", [-3, 3])
def test_centres_six_mm_off_lead_to_the_same_vertebrae(axis, away):
    moved = CENTRES.copy()
    moved[::2, axis] += away
    result = walk_along(column(), moved, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)


def test_what_is_cut_at_the_ends_and_has_no_centre_gets_no_label():
    cut = column()
    cut.data[:, :, :15][cut.data[:, :, :15] == 1] = 0
    cut.data[:, :, 63:][cut.data[:, :, 63:] == 6] = 0
    result = walk_along(cut, CENTRES[1:5], oracle, settings=SMALL)
    np.testing.assert_array_equal(
        result.labels.data, np.where((cut.data > 1) & (cut.data < 6), cut.data - 1, 0)
    )
    # The first one is given before those with a centre, and asked past.
    assert result.missed == () and result.calls == 5
    without = dataclasses.replace(SMALL, passes_others=False)
    assert 0 in walk_along(cut, CENTRES[1:5], oracle, settings=without).missed


def test_what_is_cut_by_the_border_is_partial():
    ranks = column().data
    ct = Volume(ranks[:, :, 13:].copy(), AFFINE)  # the scan begins inside the first one
    result = walk_along(ct, CENTRES - [0, 0, 13], oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, ct.data)
    assert [v.partial for v in result.vertebrae] == [True] + [False] * 5


@pytest.mark.parametrize("leak", [0.6, 1.0])
def test_two_in_one_prediction_are_cut_apart(leak):
    joined = touching_column()
    predict = Scripted(joined, leak=leak)
    result = walk_along(predict.coded_ct(), CENTRES, predict, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, joined.data)
    assert result.calls == 6
    assert [v.remarks for v in result.vertebrae] == [("leak",)] * 5 + [()]
    whole = dataclasses.replace(SMALL, cuts_merged=False)
    predict = Scripted(joined, leak=leak)
    merged = walk_along(predict.coded_ct(), CENTRES, predict, settings=whole)
    assert merged.vertebrae[0].mask.sum() > joined.data[joined.data == 1].size


def test_a_network_that_gives_two_at_every_centre_is_cut_at_every_plane():
    joined = touching_column()

    def greedy(ct, memory):  # the first two that the memory does not hold, whatever part of them it holds
        ranks = np.rint(ct).astype(int)
        whole = [rank for rank in range(1, 7) if (memory[ranks == rank] == 0).any()]
        return np.isin(ranks, whole[:2]).astype(np.float32)

    result = walk_along(joined, CENTRES, greedy, settings=SMALL)
    assert [v.index for v in result.vertebrae] == list(range(6))
    for number, rank in enumerate(range(1, 7), start=1):
        found, true = result.labels.data == number, joined.data == rank
        assert 2 * np.count_nonzero(found & true) >= 0.85 * (found.sum() + true.sum())


@pytest.mark.parametrize("how", ["dropped", "silent"])
def test_one_that_is_not_given_costs_no_other(how):
    predict = Scripted(column(), **{how: {3}})
    result = walk_along(predict.coded_ct(), CENTRES, predict, settings=SMALL)
    expected = np.array([0, 1, 2, 0, 3, 4, 5])[column().data.astype(int)]
    np.testing.assert_array_equal(result.labels.data, expected)
    assert result.missed == (2,)
    assert [v.index for v in result.vertebrae] == [0, 1, 3, 4, 5]


def test_the_place_of_one_that_is_not_given_is_held_or_it_would_hide_the_last():
    missed = []
    for holds in (True, False):
        predict = Scripted(column(), silent={5})
        settings = dataclasses.replace(SMALL, holds_places=holds)
        missed.append(walk_along(predict.coded_ct(), CENTRES, predict, settings=settings).missed)
    assert missed == [(4,), (4, 5)]


def test_nothing_given_is_given_again():
    def growing(ct, memory):  # the next vertebra, and three slices of the one above it
        probability = oracle(ct, memory)
        return np.maximum.reduce([np.roll(probability, -i, axis=2) for i in range(7)])

    result = walk_along(column(), CENTRES, growing, settings=SMALL)
    for number, vertebra in enumerate(result.vertebrae, start=1):
        assert vertebra.mask.sum() == np.count_nonzero(result.labels.data == number) >= BLOCK_VOXELS
        assert vertebra.probability[~vertebra.mask].max() < 0.5 <= vertebra.probability[vertebra.mask].min()


@pytest.mark.parametrize("seed", range(4))
def test_any_answers_end_within_the_calls(seed):
    rng = np.random.default_rng(seed)

    def chance(ct, memory):
        begin, size = rng.integers(0, 30, 3), rng.integers(1, 40, 3)
        probability = rng.random(ct.shape, np.float32) * rng.choice([0.3, 0.6, 1.0])
        probability[tuple(slice(b, b + s) for b, s in zip(begin, size))] = rng.random()
        return probability

    result = walk_along(column(), CENTRES, chance, settings=dataclasses.replace(SMALL, min_volume_mm3=0.0))
    assert result.calls <= 6 * 2 * (MOST_OTHERS + 2)
    assert sum(v.mask.sum() for v in result.vertebrae) == np.count_nonzero(result.labels.data)
    assert sorted([*result.missed, *(v.index for v in result.vertebrae)]) == list(range(6))


def test_one_centre_and_none():
    only = walk_along(column(), CENTRES[:1], oracle, settings=SMALL)
    np.testing.assert_array_equal(only.labels.data, column().data == 1)
    nothing = walk_along(column(), np.zeros((0, 3)), oracle, settings=SMALL)
    assert nothing.vertebrae == () and nothing.calls == 0 and not nothing.labels.data.any()


def test_centres_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(n, 3\), received \(3,\)"):
        walk_along(column(), CENTRES[0], oracle, settings=SMALL)
    with pytest.raises(ValueError, match="at most 253 centres, received 254"):
        walk_along(column(), np.zeros((254, 3)), oracle, settings=SMALL)


def test_a_vertebra_without_a_centre_is_not_taken_for_the_first():
    """The one above reaches into the ball around the first centre, and has no centre of its own."""
    ranks = touching_column()
    second = int(CENTRES[1, 2])
    upper = ranks.data[:, :, : second - 1]
    upper[upper == 2] = 1
    result = walk_along(ranks, CENTRES[1:], oracle, settings=SMALL)
    assert result.missed == () and [v.index for v in result.vertebrae] == list(range(5))
    first = result.labels.data == 1
    assert not (first & (ranks.data == 3)).any()
    # Without its own centre the one above would be given whole.
    assert np.count_nonzero(first & (ranks.data == 2)) >= np.count_nonzero(first & (ranks.data == 1))
