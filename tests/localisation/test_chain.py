"""The best chain: against all chains of a few peaks, and on simulated spines."""

import itertools

import numpy as np
import pytest

from tests.localisation.simulated_spines import (
    AFFINE,
    candidates_at,
    draw_candidates,
    draw_seen,
    draw_spine,
    level_votes,
)
from utils.localisation import chain as module
from utils.localisation.chain import ChainSettings, chain_of, peak_weights, step_weights, take


def chain_and_bodies(seed, spine_kind=None, **peak_kind):
    """The chain of a drawn spine, the bodies of its points (-1: none), and the bodies with a peak."""
    rng = np.random.default_rng(seed)
    spine = draw_spine(rng, **(spine_kind or {}))
    candidates, which = draw_candidates(spine, rng, **peak_kind)
    chain = chain_of(candidates)
    apart = np.linalg.norm(candidates.points_mm[None] - chain.candidates.points_mm[:, None], axis=2)
    return chain, which[apart.argmin(axis=1)], which[which >= 0]


def shares(spine_kind=None, spines=20, **peak_kind):
    """Share of the bodies found, and false points a spine."""
    right = false = bodies = 0
    for seed in range(spines):
        chain, of_chain, shown = chain_and_bodies(seed, spine_kind, **peak_kind)
        assert chain.has_spine
        hits = len(set(of_chain[of_chain >= 0].tolist()))
        right, false, bodies = right + hits, false + len(of_chain) - hits, bodies + len(shown)
    return right / bodies, false / spines


# Against all chains ---------------------------------------------------------------------------------


def weight_of(places, heat, steps, bends, scale):
    total = heat[list(places)].sum() + sum(steps[scale, u, v] for u, v in itertools.pairwise(places))
    return total + sum(bends[a, b, c] for a, b, c in zip(places, places[1:], places[2:]))


@pytest.mark.parametrize("seed", range(15))
def test_the_best_chain_is_the_best_of_all_chains(seed):
    rng = np.random.default_rng(seed)
    settings = ChainSettings(scales=(0.8, 1.0, 1.2))
    points = np.cumsum(rng.normal([0, 0, -16], [6, 6, 8], (7, 3)), axis=0)
    points = points[np.argsort(-points[:, 2])]
    candidates = candidates_at(points, rng.uniform(0.2, 0.8, 7), level_votes(np.arange(8, 15), rng))
    steps = step_weights(candidates, settings)
    bends, heat = module._bends(candidates.points_mm, settings), peak_weights(candidates, settings)
    prior = -((np.log(settings.scales) / settings.scale_spread) ** 2) / 2
    chains = [c for size in range(1, 8) for c in itertools.combinations(range(7), size)]
    best = max(
        (weight_of(places, heat, steps, bends, scale) + (prior[scale] if len(places) > 1 else 0), places)
        for places in chains
        for scale in range(3)
    )
    found = chain_of(candidates, settings)
    np.testing.assert_allclose(found.log_evidence, best[0] + settings.no_spine)
    np.testing.assert_allclose(found.candidates.points_mm, points[list(best[1])], atol=1e-9)


# Simulated spines -----------------------------------------------------------------------------------


def test_nearly_all_bodies_are_in_the_chain_and_hardly_anything_else():
    found, false = shares(spines=40)
    assert found > 0.96 and false < 0.3


@pytest.mark.parametrize(
    "spine_kind",
    [{"count": 12, "first": 3, "scale": 0.78, "curve": 2.0}, {"cobb_degrees": 70.0}],
    ids=["steep neck with 15 mm steps", "scoliosis"],
)
def test_bent_spines_are_followed(spine_kind):
    found, false = shares(spine_kind)
    assert found > 0.93 and false < 0.4


def test_false_peaks_as_high_as_true_ones_are_left_beside_the_spine():
    found, false = shares(false_heat=(15, 3))
    assert found > 0.96 and false < 0.4


def test_of_doubled_peaks_one_is_taken():
    found, false = shares(doubled=0.5, false=(0, 0), missing=0.0)
    assert found + false > 0.97  # either of two peaks is as good
    for seed in range(20):
        chain, _, _ = chain_and_bodies(seed, doubled=0.5, false=(0, 0), missing=0.0)
        assert np.linalg.norm(np.diff(chain.candidates.points_mm, axis=0), axis=1).min() > 9.0


def test_the_chain_goes_over_a_missing_peak():
    rng = np.random.default_rng(3)
    spine = draw_spine(rng, count=9, first=12, noise=0.03, curve=1.0, cobb_degrees=0.0)
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    candidates = candidates_at(
        spine.points_mm[kept], np.full(8, 0.7), level_votes(spine.ranks[kept], rng, right=1.0)
    )
    chain = chain_of(candidates)
    assert len(chain) == 8
    assert chain.log_evidence < chain_of(candidates, ChainSettings(skip=0.0)).log_evidence


def test_the_body_scale_is_that_of_the_spine():
    for scale in (0.82, 1.0, 1.2):
        spine = draw_spine(np.random.default_rng(1), count=15, first=5, scale=scale, noise=0.02)
        votes = level_votes(spine.ranks, np.random.default_rng(1), right=1.0)
        chain = chain_of(candidates_at(spine.points_mm, np.full(15, 0.8), votes))
        assert chain.body_scale == pytest.approx(scale, abs=0.11)


# Is there a spine? ----------------------------------------------------------------------------------


def test_weak_peaks_at_random_places_are_no_spine():
    taken = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 13))
        points, heat = rng.uniform(0, [300, 250, 400], (count, 3)), rng.beta(2.2, 5, count)
        votes, seen = level_votes(rng.integers(1, 27, count), rng), draw_seen(rng, np.full(count, 2))
        taken += chain_of(candidates_at(points, heat, votes, seen=seen)).has_spine
    assert taken <= 1


def test_two_vertebrae_are_a_spine_one_alone_is_none():
    below = [[0, 0, 0], [0, 0, -25.0]]
    levels = level_votes([10, 11], np.random.default_rng(0), right=1.0)
    assert chain_of(candidates_at(below, [0.8] * 2, levels, seen=6.0)).has_spine
    assert not chain_of(candidates_at(below, [0.8] * 2, levels, seen=1.0)).has_spine
    assert not chain_of(candidates_at(below[:1], [0.9], levels[:1], seen=6.0)).has_spine
    points = [[0, 0, 0], [60, 10, -80], [90, 60, 20], [-60, 5, 40], [20, 90, 70]]
    weak = candidates_at(points, [0.4] * 5, seen=0.0)
    assert not chain_of(weak).has_spine


def test_a_peak_weighs_by_its_heat_and_by_what_is_seen_around_it():
    settings = ChainSettings(heat_slope=10.0, heat_middle=0.4, vertebra_limit=3.0)
    candidates = candidates_at(np.zeros((4, 3)), [0.5, 0.5, 0.5, 0.3], seen=np.array([0.0, 2.0, -50.0, 50.0]))
    np.testing.assert_allclose(candidates.vertebra_log_odds, [0, 2, -50, 50])
    np.testing.assert_allclose(peak_weights(candidates, settings), [1, 3, -2, 2])


def test_false_peaks_in_line_with_the_spine_are_left_out_where_no_vertebra_is_seen():
    rng = np.random.default_rng(5)
    spine = draw_spine(rng, count=8, first=10, noise=0.02, cobb_degrees=0.0)
    below = spine.points_mm[-1] + np.array([[0, 0, -30.0], [0, 0, -60.0]])
    points, heat = np.vstack([spine.points_mm, below]), np.full(10, 0.8)
    for seen, count in ((3.0, 10), (np.repeat([4.0, -20.0], [8, 2]), 8)):
        assert len(chain_of(candidates_at(points, heat, seen=seen))) == count


def test_levels_count_as_far_as_there_is_a_vertebra():
    """What is seen of a vertebra at all changes no step."""
    rng = np.random.default_rng(0)
    points, levels = np.array([[0, 0, 0], [0, 0, -20.0], [0, 0, -45.0]]), level_votes([10, 11, 12], rng)
    alike = [
        step_weights(candidates_at(points, [0.5] * 3, levels, seen=seen), ChainSettings())
        for seen in (0, -7.0)
    ]
    np.testing.assert_allclose(*alike)


def test_without_candidates_there_is_no_spine():
    chain = chain_of(candidates_at(np.zeros((0, 3)), []))
    assert (len(chain), chain.has_spine, chain.log_evidence) == (0, False, -np.inf)


def test_points_at_one_height_are_never_neighbours():
    chain = chain_of(candidates_at([[0, 0, 0], [20, 0, 0]], [0.8, 0.7]))
    assert chain.candidates.heat.tolist() == [0.8]


def test_what_belongs_to_a_candidate_stays_with_it():
    rng = np.random.default_rng(0)
    candidates = candidates_at(
        rng.normal(size=(4, 3)),
        [0.9, 0.8, 0.7, 0.6],
        level_votes([8, 9, 10, 11], rng),
        np.array([0.1, 0.2, 0.3, 0.4]),
    )
    taken = take(candidates, np.array([2, 0]))
    assert taken.heat.tolist() == [0.7, 0.9] and taken.rib_probability.tolist() == [0.3, 0.1]
    np.testing.assert_array_equal(taken.points_mm, candidates.points_mm[[2, 0]])
    assert taken.affine is AFFINE
