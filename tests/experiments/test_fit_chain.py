"""What the weights of a chain are fitted by."""

import dataclasses

import numpy as np
import pytest

from experiments.fit_chain import HeldOut, body_of, fit_odds, hidden_points, peak_weights_of, score
from tests.localisation.simulated_spines import candidates_at, draw_candidates, draw_spine
from utils.localisation.candidates import Peaks
from utils.localisation.chain import USUAL
from utils.preparation.spine_case import KnownSpine

NOBODY = np.zeros((0, 3))


def held_out(candidates, bodies_mm, hidden_mm=NOBODY):
    """A scan whose levels do not matter."""
    sacra = Peaks(NOBODY, np.eye(4), np.zeros(0))
    return HeldOut(candidates, sacra, bodies_mm, (20,) * len(bodies_mm), hidden_mm)


def test_the_odds_of_a_peak_are_found_again():
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.uniform(0.1, 0.9, 20_000), rng.uniform(-6, 6, 20_000)])
    is_body = rng.random(len(features)) < 1 / (1 + np.exp(4 - features @ [9, 0.5]))
    np.testing.assert_allclose(fit_odds(features, is_body), [9, 0.5, -4], rtol=0.1)


def test_what_is_fitted_are_settings_of_a_chain():
    rng = np.random.default_rng(0)
    heat, seen = rng.uniform(0.1, 0.9, 5_000), rng.normal(0, 5, 5_000)
    is_body = rng.random(len(heat)) < 1 / (1 + np.exp(-8 * (heat - 0.5) - 0.7 * np.clip(seen, -6, 6)))
    # Far apart, so that each is a body's own or nobody's; those at hidden places count for nothing.
    points = 100.0 * np.stack([np.arange(5_000) % 100, np.arange(5_000) // 100, np.zeros(5_000)], axis=1)
    hidden = rng.random(5_000) < 0.1
    heat = np.where(hidden, 0.0, heat)
    candidates = candidates_at(points, heat, seen=seen)
    fitted = peak_weights_of([held_out(candidates, points[is_body & ~hidden], points[hidden])])
    assert fitted["heat_slope"] == pytest.approx(8, rel=0.15)
    assert fitted["heat_middle"] == pytest.approx(0.5, abs=0.05)
    assert fitted["vertebra_weight"] == pytest.approx(0.7, rel=0.1)
    # Heat alone tells less.
    assert 0 < fitted["sacrum_slope"] < fitted["heat_slope"]
    assert dataclasses.replace(USUAL, **fitted).sacrum_middle == fitted["sacrum_middle"]


def test_a_body_has_one_point_and_a_point_far_off_none():
    bodies = np.array([[0.0, 0, 0], [0, 0, -20]])
    points = np.array([[1.0, 0, 0], [3, 0, 0], [0, 0, -27], [0, 30, -20]])
    np.testing.assert_array_equal(body_of(points, bodies), [0, -1, 1, -1])
    np.testing.assert_array_equal(body_of(points, NOBODY), [-1] * 4)


def test_a_score_counts_bodies_and_false_vertebrae():
    spine = draw_spine(np.random.default_rng(1))
    candidates, which = draw_candidates(spine, np.random.default_rng(2))
    bodies = candidates.points_mm[which >= 0]
    own, false = score(USUAL, [held_out(candidates, bodies)])
    assert own >= 0.9 * len(set(which[which >= 0])) and false <= 1
    nobody = candidates_at(bodies, np.full(len(bodies), 0.9))
    assert score(USUAL, [held_out(nobody, NOBODY)])[1] > 0
    assert score(USUAL, [held_out(nobody, NOBODY, bodies)]) == (0, 0)
    without = dataclasses.replace(USUAL, no_spine=-1e6)
    assert score(without, [held_out(candidates, bodies)]) == (0, 0)


def test_vertebrae_are_hidden_beyond_the_scan_and_where_labels_may_be_missing():
    points = np.array([[10.0, 10, 5], [10, 10, 12], [10, 10, 19]])
    drawn = KnownSpine((20, 21, 22), points, (False,) * 3, is_complete=True)
    shape = (20, 20, 30)  # one more fits below, none above
    expected = [[10, 10, -2], [10, 10, -9], [10, 10, 33]]
    np.testing.assert_allclose(hidden_points(drawn, shape, 3.0), expected)
    verse = dataclasses.replace(drawn, is_complete=False)
    np.testing.assert_allclose(hidden_points(verse, shape, 3.0), [*expected[:2], [10, 10, 26], expected[2]])
