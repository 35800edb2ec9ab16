"""The set of sequences and the temperature, on label problems drawn from stated rates."""

import numpy as np
import pytest

from tests.localisation.label_problems import confusion, draw_problem, votes_of_levels
from utils.localisation.evidence import Anchors
from utils.localisation.identify import COVERAGE, identify
from utils.localisation.temperature import fit_temperature, true_log_probability
from utils.verse.labels import MAX_RANK


def identified(problem, **keywords):
    column = problem.column
    return identify(column.log_probabilities, column.centres_mm, anchors=column.anchors, **keywords)


def coverage_of(answer):
    return sum(share for _, share in answer.sequence_set)


@pytest.fixture(scope="module")
def problems():
    return [draw_problem(np.random.default_rng(seed)) for seed in range(200)]


@pytest.fixture(scope="module")
def answers(problems):
    return [identified(problem) for problem in problems]


def test_the_problems_are_what_they_should_be(problems):
    codes = [problem.codes for problem in problems]
    assert 10 < sum(0 in one for one in codes) < 60  # something false
    assert sum(problem.column.anchors.used == () for problem in problems) in range(70, 130)
    middle = confusion()[10:15].max(axis=1)
    assert np.all(middle < 0.25)  # nobody tells levels of the middle of the chest by looks


def test_sets_of_95_percent_hold_the_truth_in_92_to_98_of_a_hundred(problems, answers):
    held = [p.codes in [codes for codes, _ in a.sequence_set] for p, a in zip(problems, answers)]
    assert 0.92 <= np.mean(held) <= 0.98
    assert np.mean(held) == pytest.approx(np.mean([coverage_of(a) for a in answers]), abs=0.03)


def test_the_first_sequence_is_right_as_often_as_it_says(problems, answers):
    right = [problem.codes == answer.codes for problem, answer in zip(problems, answers)]
    assert np.mean(right) == pytest.approx(np.mean([a.sequence_probability for a in answers]), abs=0.08)


def test_anchors_make_sets_smaller_and_answers_better():
    pairs = [
        [identified(draw_problem(np.random.default_rng(seed), anchored=anchored)) for seed in range(40)]
        for anchored in (True, False)
    ]
    sizes = [np.mean([len(answer.sequence_set) for answer in answers]) for answers in pairs]
    sure = [np.mean([answer.sequence_probability for answer in answers]) for answers in pairs]
    assert sizes[0] < 0.8 * sizes[1]
    assert sure[0] > sure[1] + 0.1


def test_a_set_is_the_smallest_and_begins_with_the_answer(answers):
    for answer in answers:
        shares = [share for _, share in answer.sequence_set]
        assert shares == sorted(shares, reverse=True)
        assert len({codes for codes, _ in answer.sequence_set}) == len(shares)
        assert answer.sequence_set[0] == (answer.codes, answer.sequence_probability)
        assert sum(shares[:-1]) < COVERAGE
        if len(shares) < 64:
            assert sum(shares) >= COVERAGE


def test_a_column_without_votes_or_anchors_has_a_wide_set():
    votes = votes_of_levels(np.full((3, MAX_RANK), -np.log(MAX_RANK)))
    centres = np.array([[0, 0, 0], [0, 0, -25], [0, 0, -50.0]])
    found = identify(votes, centres, anchors=Anchors())
    assert len(found.sequence_set) >= 20
    assert found.anchor == "none"


def test_the_temperature_takes_back_what_votes_claim_too_much():
    fitted = []
    for claim in (1.0, 3.0):
        drawn = [draw_problem(np.random.default_rng(seed), claim=claim) for seed in range(200, 240)]
        fitted.append(fit_temperature([one.column for one in drawn], [one.codes for one in drawn]))
    assert 0.65 < fitted[0] < 1.5  # honest votes need none, as far as 40 columns tell
    assert fitted[1] == pytest.approx(3 * fitted[0], rel=0.05)


def test_the_log_probability_of_the_answer_is_what_identify_gives(problems, answers):
    for problem, answer in zip(problems[:20], answers):
        given = true_log_probability(problem.column, answer.codes, temperature=1.0)
        assert np.exp(given) == pytest.approx(answer.sequence_probability)


def test_a_temperature_needs_columns_with_their_truths(problems):
    with pytest.raises(ValueError, match="as many truths, received 1 and 0"):
        fit_temperature([problems[0].column], [])
