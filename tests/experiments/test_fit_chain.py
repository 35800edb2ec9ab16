"""What the weights of a chain are fitted by."""

import dataclasses

import numpy as np
import pytest

from experiments.fit_chain import fit_heat, is_on_body, score
from tests.localisation.simulated_spines import candidates_at, draw_candidates, draw_spine
from utils.localisation.chain import USUAL


def test_the_odds_of_a_peak_are_found_again():
    rng = np.random.default_rng(0)
    heat = rng.uniform(0.1, 0.9, 20_000)
    is_body = rng.random(len(heat)) < 1 / (1 + np.exp(-9 * (heat - 0.4)))
    slope, middle = fit_heat(heat, is_body)
    assert slope == pytest.approx(9, rel=0.1) and middle == pytest.approx(0.4, abs=0.02)


def test_a_body_has_one_point_and_a_point_far_off_none():
    bodies = np.array([[0.0, 0, 0], [0, 0, -20]])
    points = np.array([[1.0, 0, 0], [3, 0, 0], [0, 0, -27], [0, 30, -20]])
    np.testing.assert_array_equal(is_on_body(points, bodies), [True, False, True, False])
    assert not is_on_body(points, np.zeros((0, 3))).any()


def test_a_score_counts_bodies_and_false_vertebrae():
    spine = draw_spine(np.random.default_rng(1))
    candidates, which = draw_candidates(spine, np.random.default_rng(2))
    bodies = candidates.points_mm[which >= 0]
    own, false = score(USUAL, [(candidates, bodies)])
    assert own >= 0.9 * len(set(which[which >= 0])) and false <= 1
    nobody = candidates_at(bodies, np.full(len(bodies), 0.9))
    assert score(USUAL, [(nobody, np.zeros((0, 3)))])[1] > 0
    assert score(dataclasses.replace(USUAL, no_spine=-1e6), [(candidates, bodies)]) == (0, 0)
