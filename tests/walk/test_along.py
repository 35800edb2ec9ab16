"""The walk along known centres, on small columns with exact answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.walk.column import AFFINE, BLOCK_VOXELS, BODIES, CENTRES, SPACING_MM, column, told
from utils.imaging.centroids import BEHIND_MM
from utils.imaging.volume import Volume
from utils.walk.along import centres_of_mass, walk_along
from utils.walk.records import WalkSettings

SMALL = WalkSettings(patch_voxels=40, spacing_mm=2.0, min_volume_mm3=200.0)


def test_every_centre_gets_its_vertebra_with_one_call():
    result = walk_along(column(), BODIES, told, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)
    np.testing.assert_array_equal(result.labels.affine, AFFINE)
    np.testing.assert_allclose([v.centre for v in result.vertebrae], CENTRES)
    assert [v.index for v in result.vertebrae] == list(range(6)) and result.missed == ()
    assert result.calls == 6 and [v.calls for v in result.vertebrae] == [1] * 6


@pytest.mark.parametrize(("axis", "away"), [(0, -1), (0, 3), (1, -3), (1, 3), (2, -3), (2, 3)])
def test_centres_six_mm_off_lead_to_the_same_vertebrae(axis, away):
    moved = BODIES.copy()
    moved[::2, axis] += away
    result = walk_along(column(), moved, told, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)


def test_a_centre_of_mass_lies_behind_its_body_square_to_the_spine():
    """In `chest_ct` the spine leans by 42 degrees at T1, whose centre of mass lies 9 mm above its body's."""
    down = np.array([0.6, 0.0, 0.8])
    leaning = np.array([20.0, 22.0, 10.0]) + np.arange(4)[:, None] * 10 * down
    away = (centres_of_mass(leaning, SPACING_MM) - leaning) * SPACING_MM
    np.testing.assert_allclose(away, BEHIND_MM * np.array([[0.8, 0.0, -0.6]] * 4), atol=1e-9)
    for upright in (BODIES, BODIES[:1], np.repeat(BODIES[:1], 2, axis=0)):
        away = (centres_of_mass(upright, SPACING_MM) - upright) * SPACING_MM
        np.testing.assert_allclose(away, [[BEHIND_MM, 0, 0]] * len(upright))
    assert centres_of_mass(np.zeros((0, 3)), SPACING_MM).shape == (0, 3)


def test_what_has_no_centre_gets_no_label_and_stands_in_nobodys_way():
    result = walk_along(column(), BODIES[[0, 2, 3]], told, settings=SMALL)
    expected = np.array([0, 1, 0, 2, 3, 0, 0])[column().data.astype(int)]
    np.testing.assert_array_equal(result.labels.data, expected)


def test_what_is_cut_by_the_border_is_partial():
    ranks = column().data
    ct = Volume(ranks[:, :, 13:].copy(), AFFINE)  # the scan begins inside the first one
    result = walk_along(ct, BODIES - [0, 0, 13], told, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, ct.data)
    assert [v.partial for v in result.vertebrae] == [True] + [False] * 5


def test_one_that_is_not_given_costs_no_other():
    def silent(ct, memory):
        probability = told(ct, memory)
        return probability * (np.rint(ct) != 3)

    result = walk_along(column(), BODIES, silent, settings=SMALL)
    expected = np.array([0, 1, 2, 0, 3, 4, 5])[column().data.astype(int)]
    np.testing.assert_array_equal(result.labels.data, expected)
    assert result.missed == (2,)
    assert [v.index for v in result.vertebrae] == [0, 1, 3, 4, 5]


def test_one_that_is_not_given_is_not_replaced_by_the_next():
    """Else the next one would be given the one below, and all names would be off by one."""

    def next_one(ct, memory):  # in place of the third, and of what is in the memory already
        ranks = np.rint(ct).astype(int)
        rank = ranks[told(ct, memory) > 0].max(initial=0)
        known = np.unique(ranks[memory > 0])
        while rank == 3 or rank in known:
            rank += 1
        return ((ranks == rank) & (rank > 0)).astype(np.float32)

    result = walk_along(column(), BODIES, next_one, settings=SMALL)
    assert [v.index for v in result.vertebrae] == [0, 1, 3, 4, 5] and result.missed == (2,)
    expected = np.array([0, 1, 2, 0, 3, 4, 5])[column().data.astype(int)]
    np.testing.assert_array_equal(result.labels.data, expected)


def test_the_memory_holds_those_above_and_nothing_given_is_given_again():
    remembered = []

    def growing(ct, memory):  # the vertebra, and three slices of those beside it
        remembered.append(memory.sum() / BLOCK_VOXELS)
        probability = told(ct, memory)
        return np.maximum.reduce([np.roll(probability, i, axis=2) for i in range(-6, 7)])

    result = walk_along(column(), BODIES, growing, settings=SMALL)
    assert remembered[0] == 0 and min(remembered[1:]) > 0.9
    for number, vertebra in enumerate(result.vertebrae, start=1):
        assert vertebra.mask.sum() == np.count_nonzero(result.labels.data == number) >= BLOCK_VOXELS
        assert vertebra.probability[~vertebra.mask].max() < 0.5 <= vertebra.probability[vertebra.mask].min()


@pytest.mark.parametrize("seed", range(4))
def test_any_answers_end_with_one_call_a_centre(seed):
    rng = np.random.default_rng(seed)

    def chance(ct, memory):
        begin, size = rng.integers(0, 30, 3), rng.integers(1, 40, 3)
        probability = rng.random(ct.shape, np.float32) * rng.choice([0.3, 0.6, 1.0])
        probability[tuple(slice(b, b + s) for b, s in zip(begin, size))] = rng.random()
        return probability

    result = walk_along(column(), BODIES, chance, settings=dataclasses.replace(SMALL, min_volume_mm3=0.0))
    assert result.calls <= 6
    assert sum(v.mask.sum() for v in result.vertebrae) == np.count_nonzero(result.labels.data)
    assert sorted([*result.missed, *(v.index for v in result.vertebrae)]) == list(range(6))


def test_one_centre_and_none():
    only = walk_along(column(), BODIES[:1], told, settings=SMALL)
    np.testing.assert_array_equal(only.labels.data, column().data == 1)
    nothing = walk_along(column(), np.zeros((0, 3)), told, settings=SMALL)
    assert nothing.vertebrae == () and nothing.calls == 0 and not nothing.labels.data.any()


def test_centres_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(n, 3\), received \(3,\)"):
        walk_along(column(), CENTRES[0], told, settings=SMALL)
    with pytest.raises(ValueError, match="at most 255 centres, received 256"):
        walk_along(column(), np.zeros((256, 3)), told, settings=SMALL)
