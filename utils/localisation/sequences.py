"""All sequences of levels down a column, weighed exactly: the best ones, and the sums over all.

A sequence gives every found vertebra a rank, or 0 for *not a vertebra*; ranks grow downwards. Its
log-weight is a sum over vertebrae (emissions) and over pairs of neighbours (transitions), so the best
sequences and the sums follow from dynamic programming. `utils.localisation.identify` says what the weights
mean.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from utils.localisation.steps import typical_steps
from utils.verse.anomalies import following_rates, level_rates
from utils.verse.labels import MAX_RANK, name_of_code, rank_of_code

#: Rates of what a search does wrong: a vertebra missed between two, something found that is none.
RATE_MISSED, RATE_NO_VERTEBRA = 0.01, 0.02
#: Spread of the gap between neighbours, as a multiple of the gaps near by.
GAP_SPREAD = 0.25
#: Gaps whose median gives the step of a place: so many on either side, so that the two halves of a gap with a
#: false vertebra in it do not count for much. With fewer than two the typical step counts.
GAPS_NEAR, LEAST_GAPS = 4, 2
MOST_MISSED = 8
NO_VERTEBRA = 0


@dataclass(frozen=True, eq=False)
class Column:
    """The log-weights of a column.

    Attributes
    ----------
    emissions : np.ndarray, (n, 27)
        Of every class of every vertebra.
    transitions : dict of (int, int) to np.ndarray, (26, 26)
        Of a vertebra, with each rank, and one below it, with each rank, following one another.
    """

    emissions: np.ndarray
    transitions: Mapping[tuple[int, int], np.ndarray]

    @property
    def count(self) -> int:
        """Number of vertebrae."""
        return len(self.emissions)

    def none_between(self, first: int, last: int) -> float:
        """Give the log-weight of all from `first` up to, not including, `last` being no vertebrae."""
        return float(self.emissions[first:last, NO_VERTEBRA].sum())

    def step(self, upper: int, lower: int) -> np.ndarray:
        """Give the log-weights (26, 26), upper by lower rank, of two vertebrae with none between them."""
        return (
            self.transitions[upper, lower] + self.none_between(upper + 1, lower) + self.emissions[lower, 1:]
        )


def transitions_of(
    centres_mm: np.ndarray, *, missed: float = RATE_MISSED
) -> dict[tuple[int, int], np.ndarray]:
    """Give the `transitions` of a column.

    Parameters
    ----------
    centres_mm : np.ndarray, (n, 3)
        Centres of the vertebrae from the top down; NaN where there is none.
    missed : float
        Rate of vertebrae that are missed between two.

    Returns
    -------
    dict of (int, int) to np.ndarray, (26, 26)
    """
    ratios = gap_ratios(np.asarray(centres_mm, float))
    pairs = [(upper, lower) for lower in range(len(ratios)) for upper in range(lower)]
    # All at once: a call of `logsumexp` costs more than the sums of one pair.
    return dict(
        zip(pairs, transition(np.array([ratios[pair] for pair in pairs]).reshape(-1, MAX_RANK), missed))
    )


def emissions_of(
    votes: np.ndarray, fixed: Mapping[int, int], no_vertebra: float = RATE_NO_VERTEBRA
) -> np.ndarray:
    """Give the `emissions` of a column.

    Parameters
    ----------
    votes : np.ndarray, (n, 27)
        Log-likelihoods by vertebra and rank.
    fixed : mapping of int to int
        Codes that are known, by place from 0.
    no_vertebra : float
        Rate of what is found but is none.

    Returns
    -------
    np.ndarray, (n, 27)

    Raises
    ------
    ValueError
        If a fixed place is not there.
    """
    emissions = votes + np.log(1 - no_vertebra)
    emissions[:, NO_VERTEBRA] = votes[:, NO_VERTEBRA] + np.log(no_vertebra)
    for place, code in fixed.items():
        if not place < len(votes):
            raise ValueError(
                f"Expected a place up to {len(votes)}, received {place + 1}={name_of_code(code)}."
            )
        emissions[place, np.arange(MAX_RANK + 1) != rank_of_code(code)] = -np.inf
    return emissions


def gap_ratios(centres_mm: np.ndarray) -> np.ndarray:
    """Give the gaps of a column as multiples of the steps there.

    The step at a gap is the median of the gaps near it; where there are too few, the typical one of the upper
    vertebra's level.

    Parameters
    ----------
    centres_mm : np.ndarray, (n, 3)
        Centres from the top down.

    Returns
    -------
    np.ndarray, (n, n, 26)
        From one vertebra to another below it, by the rank of the upper one; NaN where it is not known.
    """
    count = len(centres_mm)
    gaps = np.linalg.norm(np.diff(centres_mm, axis=0), axis=1)
    ratios = np.full((count, count, MAX_RANK), np.nan)
    for upper in range(count):
        for lower in range(upper + 1, count):
            near = np.concatenate([gaps[max(upper - GAPS_NEAR, 0) : upper], gaps[lower : lower + GAPS_NEAR]])
            near = near[np.isfinite(near) & (near > 0)]
            step = np.median(near) if len(near) >= LEAST_GAPS else typical_steps().mean_mm
            ratios[upper, lower] = np.linalg.norm(centres_mm[lower] - centres_mm[upper]) / step
    return ratios


@functools.cache
def _paths() -> np.ndarray:
    """Give the log-probabilities (m + 1, 26, 26) of reaching a level from another with 0 to m between."""
    steps = following_rates()
    powers = [steps]
    for _ in range(MOST_MISSED):
        powers.append(powers[-1] @ steps)
    with np.errstate(divide="ignore"):
        return np.log(np.array(powers))


def transition(ratio: np.ndarray, rate: float = RATE_MISSED) -> np.ndarray:
    """Give the log-weights, upper by lower rank, of two vertebrae that follow one another.

    Parameters
    ----------
    ratio : np.ndarray, (..., 26)
        The gap as a multiple of the step there, by the upper rank; NaN: nothing is known of it, and nothing
        was missed.
    rate : float
        Of vertebrae that are missed.

    Returns
    -------
    np.ndarray, (..., 26, 26)
        Sum over the numbers of vertebrae that may have been missed; -inf where the lower is not below.
    """
    missed = np.arange(MOST_MISSED + 1)[:, None]
    ratio = ratio[..., None, :]
    misfit = (ratio - (missed + 1)) ** 2 / (2 * GAP_SPREAD**2)
    fit = np.where(np.isnan(ratio), np.where(missed == 0, 0.0, -np.inf), -misfit)
    # The largest number stands for all above it: a gap of twenty steps is as good as one of nine.
    return logsumexp(_paths() + (missed * np.log(rate) + fit)[..., None], axis=-3)


def _start(column: Column) -> np.ndarray:
    """Give the log-weights (n, 26) of each vertebra being the first that is one, with each rank."""
    none = np.array([column.none_between(0, place) for place in range(column.count)])
    return none[:, None] + np.log(level_rates() / MAX_RANK) + column.emissions[:, 1:]


def _end(column: Column) -> np.ndarray:
    """Give the log-weights (n,) of nothing below each vertebra being one."""
    return np.array([column.none_between(place + 1, column.count) for place in range(column.count)])


def k_best(column: Column, k: int) -> list[tuple[np.ndarray, float]]:
    """Find the sequences of the largest weights (Viterbi with k survivors a state).

    Parameters
    ----------
    column : Column
        Its weights.
    k : int
        How many.

    Returns
    -------
    list of (ranks, log-weight)
        Ranks (n,), 0 for no vertebra; the heaviest first, and fewer than k where there are no more.
    """
    count = column.count
    score = np.full((count, MAX_RANK, k), -np.inf)
    came_from = np.full((count, MAX_RANK, k), -1)  # flat index into `score`; -1 begins the sequence
    start, end = _start(column), _end(column)
    for lower in range(count):
        options = np.concatenate([start[lower][None], *_onward(score, column, lower)])
        order = _largest(options, k)
        taken = np.take_along_axis(options, order, axis=0).T
        score[lower, :, : taken.shape[1]], came_from[lower, :, : taken.shape[1]] = taken, order.T - 1
    finished = np.append((score + end[:, None, None]).ravel(), column.none_between(0, count))
    best = _largest(finished[:, None], k)[:, 0]
    ends = [(last, finished[last]) for last in best.tolist() if finished[last] > -np.inf]
    return [
        (_trace_back(came_from, last if last < score.size else -1), float(weight)) for last, weight in ends
    ]


def _onward(score: np.ndarray, column: Column, lower: int) -> list[np.ndarray]:
    """Give the weights, (26 k, 26) for each vertebra above, of going on from its survivors to each rank."""
    return [
        (score[upper][:, :, None] + column.step(upper, lower)[:, None]).reshape(-1, MAX_RANK)
        for upper in range(lower)
    ]


def _largest(options: np.ndarray, k: int) -> np.ndarray:
    """Give the places of the k largest of every column, the largest first; of equal ones the first."""
    if len(options) > 4 * k:
        cut = -np.partition(-options, k - 1, axis=0)[k - 1]
        options = np.where(options >= cut, options, -np.inf)
    return np.argsort(-options, axis=0, kind="stable")[:k]


def _trace_back(came_from: np.ndarray, last: int) -> np.ndarray:
    """Follow a sequence back from its last vertebra."""
    ranks = np.zeros(len(came_from), int)
    while last >= 0:
        place, rank, survivor = np.unravel_index(last, came_from.shape)
        ranks[place] = rank + 1
        last = came_from[place, rank, survivor]
    return ranks


def posterior(column: Column) -> tuple[np.ndarray, float]:
    """Sum over all sequences, forward and backward.

    Parameters
    ----------
    column : Column
        Its weights; at least one sequence must have one.

    Returns
    -------
    marginals : np.ndarray, (n, 27)
        Probability of every class of every vertebra.
    total : float
        Log-weight of all sequences together.
    """
    count = column.count
    steps = {(u, v): column.step(u, v) for u, v in column.transitions}
    forward, backward = _start(column), np.tile(_end(column)[:, None], (1, MAX_RANK))
    for place in range(count):
        above = [forward[u][:, None] + steps[u, place] for u in range(place)]
        forward[place] = np.logaddexp.reduce(np.concatenate([forward[place][None], *above]), axis=0)
    for place in reversed(range(count)):
        below = [steps[place, v] + backward[v] for v in range(place + 1, count)]
        backward[place] = np.logaddexp.reduce(
            np.concatenate([backward[place][:, None], *below], axis=1), axis=1
        )
    ends = (forward + _end(column)[:, None]).ravel()
    total = float(np.logaddexp.reduce(np.array([*ends, column.none_between(0, count)]), axis=0))
    marginals = np.zeros((count, MAX_RANK + 1))
    marginals[:, 1:] = np.exp(forward + backward - total)
    marginals[:, NO_VERTEBRA] = np.clip(1 - marginals[:, 1:].sum(axis=1), 0, 1)
    return marginals, total


def sequence_weight(column: Column, ranks: Sequence[int]) -> float:
    """Give the log-weight of one sequence of ranks, 0 for no vertebra."""
    places = [place for place, rank in enumerate(ranks) if rank]
    if not places:
        return column.none_between(0, column.count)
    weight = _start(column)[places[0], ranks[places[0]] - 1] + _end(column)[places[-1]]
    pairs = itertools.pairwise(places)
    return float(weight + sum(column.step(u, v)[ranks[u] - 1, ranks[v] - 1] for u, v in pairs))
