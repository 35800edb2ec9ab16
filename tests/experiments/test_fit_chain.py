"""What the weights of a chain are fitted by."""

import dataclasses

import numpy as np

from experiments.fit_chain import HeldOut, body_of, hidden_points, score
from tests.localisation.simulated_spines import candidates_at, draw_candidates, draw_spine
from utils.localisation.candidates import Peaks
from utils.localisation.chain import USUAL
from utils.preparation.spine_case import KnownSpine

NOBODY = np.zeros((0, 3))


def held_out(candidates, bodies_mm, hidden_mm=NOBODY):
    """A scan whose levels do not matter."""
    sacra = Peaks(NOBODY, np.eye(4), np.zeros(0))
    return HeldOut(candidates, sacra, bodies_mm, (20,) * len(bodies_mm), hidden_mm)


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
