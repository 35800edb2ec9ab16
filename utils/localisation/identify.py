"""The levels of a column of vertebrae, decided together: the most likely sequence that goes down by one.

A network looks at one vertebra at a time and gives each level a probability. Here these votes meet what is
known of spines: levels follow one another downwards; T12 is absent, T13 or L6 are there in a few of a
hundred; a vertebra may have been missed, or two taken for one, which shows in the gap; something found may
be none. A sequence gives every vertebra a rank, or 0 for *not a vertebra*; ranks grow downwards. Its
log-weight is the sum of what `utils.localisation.evidence` says of each vertebra (emissions) and of each two
that follow one another (transitions), and of the rate at which its first level is there at all. All sequences
are weighed against one another exactly, by dynamic programming. Pure NumPy on a few numbers a vertebra; no
image, no TensorFlow.

The answer is also given as a set: the fewest sequences whose probabilities add up to 95 %. Where no anchor
is in view that set is wide.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.localisation.chain import Votes
from utils.localisation.evidence import (
    NEVER,
    NO_VERTEBRA,
    Anchors,
    ColumnVotes,
    Rates,
    emissions_of,
    log_likelihoods,
)
from utils.verse.anomalies import level_rates
from utils.verse.labels import MAX_RANK, code_of_rank, name_of_code

#: What the probabilities of a set of sequences add up to, and how many it has at most.
COVERAGE, MOST_SEQUENCES = 0.95, 64
#: Probability that a sequence must have by an anchor alone for the anchor to be named.
ANCHORED = 0.5


@dataclass(frozen=True)
class Identification:
    """The levels of a column, from the top down.

    Attributes
    ----------
    codes : tuple of int
        VerSe code of every vertebra; 0 for what is no vertebra.
    probabilities : tuple of float
        Of each of these labels, over all sequences.
    sequence_probability : float
        Of this sequence among all.
    second_codes : tuple of int
        The next most probable sequence: it differs in at least one label. Empty if there is none.
    second_probability : float
        Its probability.
    anchor : str
        What the count holds on to: the anchors that alone, without any vote, would give the same sequence
        with a probability of a half or more; "given" for levels that the user named; else "none".
    sequence_set : tuple of (tuple of int, float)
        The fewest sequences, as codes, whose probabilities add up to `COVERAGE` (to less only where
        `MOST_SEQUENCES` do not reach it), the most probable first.
    """

    codes: tuple[int, ...]
    probabilities: tuple[float, ...]
    sequence_probability: float
    second_codes: tuple[int, ...]
    second_probability: float
    anchor: str
    sequence_set: tuple[tuple[tuple[int, ...], float], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels; "-" for what is no vertebra."""
        return names_of(self.codes)

    @property
    def second_names(self) -> tuple[str, ...]:
        """Names of the second sequence."""
        return names_of(self.second_codes)

    def of_places(self, places: Sequence[int]) -> Identification:
        """Give the same decision on some of the vertebrae; sequences that differ elsewhere become one."""

        def part(values: tuple) -> tuple:
            return tuple(values[place] for place in places) if values else ()

        chosen: dict[tuple[int, ...], float] = {}
        for codes, share in self.sequence_set:
            chosen[part(codes)] = chosen.get(part(codes), 0.0) + share
        return replace(
            self,
            codes=part(self.codes),
            probabilities=part(self.probabilities),
            second_codes=part(self.second_codes),
            sequence_set=tuple(chosen.items()),
        )


#: Of a column without a vertebra.
NOTHING = Identification((), (), 1.0, (), 0.0, "none")


def names_of(codes: Sequence[int]) -> tuple[str, ...]:
    """Give the names of codes; "-" for 0."""
    return tuple(name_of_code(code) if code else "-" for code in codes)


def number_column(
    votes: Votes, *, places: Sequence[int] | None = None, fixed: Mapping[int, int] | None = None
) -> Identification:
    """Decide the levels of a column, or of some of its vertebrae.

    Parameters
    ----------
    votes : Votes
        What the networks say of the whole column.
    places : sequence of int, optional
        Places of the vertebrae that are asked for, from the top down; the others vote too. By default all.
    fixed : mapping of int to int, optional
        Codes that are known, by place among the vertebrae asked for, from 0.

    Returns
    -------
    Identification
        Of the vertebrae asked for. Where there are none, fixed codes are for other scans of the run.

    Raises
    ------
    ValueError
        If no sequence has the fixed levels, or their vertebra is not there.
    """
    places = range(len(votes.centres_mm)) if places is None else places
    if not len(places):
        return NOTHING
    for place, code in (fixed or {}).items():
        if place >= len(places):
            raise ValueError(
                f"Expected a place up to {len(places)}, received {place + 1}={name_of_code(code)}."
            )
    whole = identify(
        votes.level_log_probabilities,
        votes.centres_mm,
        temperature=votes.temperature,
        fixed={places[place]: code for place, code in (fixed or {}).items()},
        anchors=votes.anchors,
    )
    return whole.of_places(places)


def identify(
    log_probabilities: np.ndarray,
    centres_mm: np.ndarray,
    *,
    temperature: float = 1.0,
    fixed: Mapping[int, int] | None = None,
    anchors: Anchors | None = None,
) -> Identification:
    """Decide the levels of a column together.

    Parameters
    ----------
    log_probabilities : np.ndarray, (n, 27)
        Votes from the top down: natural logarithms over ranks, place 0 for *not a vertebra*.
    centres_mm : np.ndarray, (n, 3)
        Centres of the vertebrae in mm; NaN where there is none.
    temperature : float
        What the votes are divided by.
    fixed : mapping of int to int, optional
        Codes that are known, by place from 0. The others follow, whatever their votes: what is a vertebra
        without these codes stays one with them.
    anchors : Anchors, optional
        What was read beside the votes, and the rates of errors. Without it the votes alone decide.

    Returns
    -------
    Identification

    Raises
    ------
    ValueError
        If the arrays do not fit one another, or no sequence has the fixed levels.
    """
    known = ColumnVotes(log_probabilities, centres_mm, anchors)
    if not len(log_probabilities):
        return NOTHING
    evidence = log_likelihoods(known, temperature)
    column = ColumnWeights(emissions_of(evidence, {}, known.rates.no_vertebra), known.transitions)
    if fixed:
        is_vertebra = k_best(column, 1)[0][0] != NO_VERTEBRA
        evidence[is_vertebra, NO_VERTEBRA] += NEVER
        column = replace(column, emissions=emissions_of(evidence, fixed, known.rates.no_vertebra))
    if not k_best(column, 1):
        levels = ", ".join(f"{place + 1}={name_of_code(code)}" for place, code in sorted(fixed.items()))
        raise ValueError(f"Expected levels that follow one another downwards, received {levels}.")
    marginals, total = posterior(column)
    ranked = _likely_sequences(column, total)
    best = ranked[0][0]
    return Identification(
        codes=_codes(best),
        probabilities=tuple(marginals[np.arange(len(best)), best].tolist()),
        sequence_probability=ranked[0][1],
        second_codes=_codes(ranked[1][0]) if len(ranked) > 1 else (),
        second_probability=ranked[1][1] if len(ranked) > 1 else 0.0,
        anchor="given" if fixed else _anchor(known, best, column),
        sequence_set=_set_of(ranked),
    )


def _anchor(known: ColumnVotes, best: np.ndarray, column: ColumnWeights) -> str:
    if known.anchors is None:
        return "none"
    return " and ".join(speaking_anchors(best, known.read_anchors(), column, known.rates)) or "none"


def _likely_sequences(column: ColumnWeights, total: float) -> list[tuple[np.ndarray, float]]:
    """Give sequences with their probabilities: at least two, and enough of them to reach the coverage."""
    count = 4
    while True:
        ranked = [(ranks, float(np.exp(weight - total))) for ranks, weight in k_best(column, count)]
        reached = sum(share for _, share in ranked) >= COVERAGE
        if reached or len(ranked) < count or count >= MOST_SEQUENCES:
            return ranked
        count *= 4


def _set_of(ranked: Sequence[tuple[np.ndarray, float]]) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Give the fewest sequences that reach the coverage."""
    sums = np.cumsum([share for _, share in ranked])
    count = int(np.searchsorted(sums, COVERAGE)) + 1
    return tuple((_codes(ranks), share) for ranks, share in ranked[:count])


def _codes(ranks: np.ndarray) -> tuple[int, ...]:
    return tuple(code_of_rank(rank) if rank else 0 for rank in ranks.tolist())


def speaking_anchors(
    best: np.ndarray, read: Mapping[str, np.ndarray], column: ColumnWeights, rates: Rates
) -> tuple[str, ...]:
    """Name the anchors that alone, all votes silent, would give the same sequence.

    Parameters
    ----------
    best : np.ndarray of int, (n,)
        Ranks of the sequence, 0 for no vertebra.
    read : mapping of str to np.ndarray, (n, 27)
        As `anchor_weights` gives them.
    column : ColumnWeights
        Its transitions count.
    rates : Rates
        Of what is no vertebra.

    Returns
    -------
    tuple of str
        Those by which the levels of `best` have a probability of `ANCHORED` or more, given what of the column
        is a vertebra.
    """
    found = []
    for name, weights in read.items():
        alone = ColumnWeights(_heard(weights, best, rates), column.transitions)
        if sequence_weight(alone, best) - posterior(alone)[1] >= np.log(ANCHORED):
            found.append(name)
    return tuple(found)


def _heard(weights: np.ndarray, best: np.ndarray, rates: Rates) -> np.ndarray:
    """Give the emissions of an anchor alone; what is a vertebra in the best sequence stays one."""
    emissions = emissions_of(weights, {}, rates.no_vertebra)
    emissions[best > 0, NO_VERTEBRA] = -np.inf
    emissions[best == NO_VERTEBRA, 1:] = -np.inf
    return emissions


# Sequences -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ColumnWeights:
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


def _start(column: ColumnWeights) -> np.ndarray:
    """Give the log-weights (n, 26) of each vertebra being the first that is one, with each rank."""
    none = np.array([column.none_between(0, place) for place in range(column.count)])
    return none[:, None] + np.log(level_rates() / MAX_RANK) + column.emissions[:, 1:]


def _end(column: ColumnWeights) -> np.ndarray:
    """Give the log-weights (n,) of nothing below each vertebra being one."""
    return np.array([column.none_between(place + 1, column.count) for place in range(column.count)])


def k_best(column: ColumnWeights, k: int) -> list[tuple[np.ndarray, float]]:
    """Find the sequences of the largest weights (Viterbi with k survivors a state).

    Parameters
    ----------
    column : ColumnWeights
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


def _onward(score: np.ndarray, column: ColumnWeights, lower: int) -> list[np.ndarray]:
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


def posterior(column: ColumnWeights) -> tuple[np.ndarray, float]:
    """Sum over all sequences, forward and backward.

    Parameters
    ----------
    column : ColumnWeights
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


def sequence_weight(column: ColumnWeights, ranks: Sequence[int]) -> float:
    """Give the log-weight of one sequence of ranks, 0 for no vertebra."""
    places = [place for place, rank in enumerate(ranks) if rank]
    if not places:
        return column.none_between(0, column.count)
    weight = _start(column)[places[0], ranks[places[0]] - 1] + _end(column)[places[-1]]
    pairs = itertools.pairwise(places)
    return float(weight + sum(column.step(u, v)[ranks[u] - 1, ranks[v] - 1] for u, v in pairs))
