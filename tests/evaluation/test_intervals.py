"""Intervals of means against small cases worked out by hand and against SciPy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from utils.evaluation.intervals import Resampling, mean_intervals

RESAMPLING = Resampling(resamples=4000, seed=3)


def interval(values, subjects, resampling=RESAMPLING):
    table = pd.DataFrame({"score": values})
    return mean_intervals(table, pd.Series(subjects), resampling)["score"]


def test_two_patients_give_the_two_values_themselves():
    # A quarter of the resamples holds one patient twice: more than 2.5 % at either end.
    assert interval([0.0, 1.0], ["a", "b"]) == (0, 1)


def test_equal_values_give_an_interval_without_width():
    assert interval([0.5] * 6, list("aabbcc")) == (0.5, 0.5)


def test_ten_patients_of_whom_one_failed():
    # k draws of the failed one (binomial, 10 draws at .1) lower the mean by k/10: P(k >= 4) is 1.3 %,
    # P(k >= 3) 7.0 %, P(k = 0) 34.9 %. So the limits are 1 - .3 and 1.
    assert interval([0.0] + [1.0] * 9, list("abcdefghij")) == pytest.approx((0.7, 1))


def test_patients_are_resampled_and_not_vertebrae():
    values, subjects = np.random.default_rng(0).random(12), np.arange(12)
    alone = interval(values, subjects)
    assert interval(values.repeat(9), subjects.repeat(9)) == pytest.approx(alone)
    # As if every vertebra were a patient, the interval would be three times as narrow.
    low, high = interval(values.repeat(9), np.arange(108))
    assert high - low == pytest.approx((alone[1] - alone[0]) / 3, rel=0.1)


def test_a_patient_with_more_vertebrae_weighs_more():
    # The possible means: 0 (a twice), 3/4 (once each: one vertebra at 0 and three at 1), 1 (b twice).
    table = pd.DataFrame({"score": [0.0, 1, 1, 1]})
    single = {
        mean_intervals(table, pd.Series(list("abbb")), Resampling(1, seed))["score"] for seed in range(30)
    }
    assert single == {(0, 0), (0.75, 0.75), (1, 1)}


def test_agrees_with_scipy_where_every_patient_has_one_vertebra():
    values = np.random.default_rng(1).gamma(2.0, size=40)
    found = interval(values, np.arange(40), Resampling(20_000))
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(2)
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.02 * (expected.high - expected.low))


def test_the_seed_decides():
    values, subjects = np.random.default_rng(0).random(12), np.arange(12)
    first, again, other = (interval(values, subjects, Resampling(200, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_values_that_are_not_there_are_left_out_and_one_patient_is_no_interval():
    nothing = float("nan")
    assert interval([0.0, nothing, 1.0, nothing], list("aabb")) == (0, 1)
    assert interval([0.0, 1.0, nothing], list("abc"))[1] == 1
    assert interval([0.0, 1.0, nothing], list("aab")) is None
    assert interval([nothing, nothing], list("ab")) is None
    assert interval([], []) is None


def test_columns_are_resampled_together():
    values = np.random.default_rng(0).random(8)
    table = pd.DataFrame({"one": values, "two": 2 * values})
    found = mean_intervals(table, pd.Series(np.arange(8)), RESAMPLING)
    assert found["two"] == pytest.approx([2 * limit for limit in found["one"]])
