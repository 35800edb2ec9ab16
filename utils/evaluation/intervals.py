"""Confidence intervals of means by resampling patients: pure functions on tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

Interval = tuple[float, float]

#: Share of the resampled means between the two limits.
LEVEL = 0.95


@dataclass(frozen=True)
class Resampling:
    """How often patients are resampled, and from which seed."""

    resamples: int = 10_000
    seed: int = 0


RESAMPLING = Resampling()


def mean_intervals(
    values: pd.DataFrame, subjects: pd.Series, resampling: Resampling
) -> dict[str, Interval | None]:
    """Give the 95 % interval of the mean of every column, by the percentile bootstrap over subjects.

    The vertebrae of one patient are alike, whichever scan they are on, so whole patients are drawn, with
    replacement and as many as there are; the mean of a resample runs over all vertebrae of those drawn, a
    patient drawn twice counting twice. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993),
    chapter 13; for data in clusters Davison and Hinkley, Bootstrap Methods (1997), section 3.8.

    Parameters
    ----------
    values : pd.DataFrame
        A row a vertebra, a column a score; NaN where a vertebra has none.
    subjects : pd.Series
        The patient of every row.
    resampling : Resampling
        Number of resamples and seed. The same seed gives the same interval.

    Returns
    -------
    dict of str to (float, float) or None
        The limits for every column: the 2.5 % and 97.5 % quantiles of the resampled means. None where fewer
        than two patients have a value. Resamples in which nobody has one are left out.
    """
    by_subject = values.astype(float).groupby(subjects.to_numpy())
    sums, counts = by_subject.sum(), by_subject.count()
    means = _resampled_means(sums.to_numpy(), counts.to_numpy(), resampling)
    return {
        name: _limits(means[:, column]) if (counts[name] > 0).sum() > 1 else None
        for column, name in enumerate(values.columns)
    }


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resampling: Resampling) -> np.ndarray:
    subjects = len(sums)
    if not subjects:
        return np.empty((0, sums.shape[1]))
    # How often each patient is drawn is all that a mean needs: multinomial numbers instead of lists of names.
    generator = np.random.default_rng(resampling.seed)
    chances = np.full(subjects, 1 / subjects)
    times = generator.multinomial(subjects, chances, size=resampling.resamples).astype(float)
    with np.errstate(invalid="ignore"):
        return (times @ sums) / (times @ counts)


def _limits(means: np.ndarray) -> Interval | None:
    tail = (1 - LEVEL) / 2
    defined = means[~np.isnan(means)]
    return tuple(float(limit) for limit in np.quantile(defined, (tail, 1 - tail))) if defined.size else None
