"""The levels of a column of vertebrae, decided together: the most likely sequence that goes down by one.

The labelling network looks at one vertebra at a time and gives each level, and *not a vertebra*, a
probability. Here these votes meet what is known of spines: levels follow one another downwards; T12 is
absent, T13 or L6 are there in a few of a hundred; a vertebra may have been missed, which shows in the gap.
All sequences of a column are weighed against one another exactly (Viterbi, forward and backward sums over
segments between labelled vertebrae). Pure NumPy on a few numbers a vertebra; no image, no TensorFlow.

The log-weight of a sequence is the sum of

- the votes, divided by a temperature that was fitted on validation columns (neighbours' votes are not
  independent: their patches overlap), those of cut vertebrae less;
- the rate at which a level is there at all, for the first one, and at which it follows the one before;
- for `m` vertebrae missed between two, `m` times the log of the rate of misses, and how well the gap, as a
  multiple of the gaps near by, fits `m + 1` steps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from utils.verse.anomalies import following_rates, level_rates
from utils.verse.labels import LEVEL_NAMES, MAX_RANK, code_of_name, code_of_rank, name_of_code, rank_of_code

#: Rates of what a walk does wrong: a vertebra missed between two, something found that is none.
RATE_MISSED, RATE_NO_VERTEBRA = 0.01, 0.02
#: Part of its vote that a vertebra keeps although the field of view certainly cuts it.
CUT_WEIGHT = 0.3
#: Spread of the gap between neighbours, as a multiple of the gaps near by.
GAP_SPREAD = 0.25
#: Gaps that give the step of a place: so many on either side; with fewer than two, the typical step counts.
GAPS_NEAR, LEAST_GAPS = 2, 2
MOST_MISSED = 8
#: Typical distance from each level to the next one, C1 first, in mm: those of a typical adult, rounded;
#: compare Busscher et al., European Spine Journal 19 (2010) 1104.
STEPS_MM = (16, *[17] * 5, 18, 20, 21, 21, 22, 22, 23, 24, 25, 26, 27, 29, 31, 32, 33, 35, 36, 36, 35, 34)
#: What the count of levels can hold on to, the levels of which one shows it, and those that vote for it.
ANCHORS = (
    ("C1/C2 in view", ("C1", "C2"), ("C1", "C2")),
    ("last rib", ("T12", "T13", "L1"), ("T11", "T12", "T13", "L1")),
    ("sacrum below", ("L5", "L6"), ("L5", "L6")),
)
#: Probability that a sequence must have by the votes of an anchor's vertebrae alone.
ANCHORED = 0.5
_NONE, _NEVER = 0, -50.0


@dataclass(frozen=True)
class Identification:
    """The levels of a column, from the top down.

    Attributes
    ----------
    codes : tuple of int
        VerSe code of every vertebra; 0 for what is no vertebra.
    probabilities : tuple of float
        Of each of these labels, over all sequences.
    complete : tuple of float
        Probability that the field of view does not cut the vertebra.
    sequence_probability : float
        Of this sequence among all.
    second_codes : tuple of int
        The next most probable sequence: it differs in at least one label. Empty if there is none.
    second_probability : float
        Its probability.
    decisive : tuple of float
        What each vertebra's vote speaks for the first sequence against the second, in natural logarithms.
    anchor : str
        What the count holds on to: those of `ANCHORS` whose vertebrae alone, the others without a vote, would
        give the same sequence with a probability of a half or more; "given" for levels that the user named;
        else "none".
    """

    codes: tuple[int, ...]
    probabilities: tuple[float, ...]
    complete: tuple[float, ...]
    sequence_probability: float
    second_codes: tuple[int, ...]
    second_probability: float
    decisive: tuple[float, ...]
    anchor: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels; "-" for what is no vertebra."""
        return names_of(self.codes)

    @property
    def second_names(self) -> tuple[str, ...]:
        """Names of the second sequence."""
        return names_of(self.second_codes)


def names_of(codes: Sequence[int]) -> tuple[str, ...]:
    """Give the names of codes; "-" for 0."""
    return tuple(name_of_code(code) if code else "-" for code in codes)


def identify(
    log_probabilities: np.ndarray,
    complete: np.ndarray,
    centres_mm: np.ndarray,
    *,
    temperature: float = 1.0,
    fixed: Mapping[int, int] | None = None,
) -> Identification:
    """Decide the levels of a column together.

    Parameters
    ----------
    log_probabilities : np.ndarray, (n, 27)
        Votes from the top down: natural logarithms over ranks, place 0 for *not a vertebra*.
    complete : np.ndarray, (n,)
        Probabilities that a vertebra is not cut by the field of view.
    centres_mm : np.ndarray, (n, 3)
        Centres of the vertebrae in mm; NaN where there is none.
    temperature : float
        What the votes are divided by.
    fixed : mapping of int to int, optional
        Codes that are known, by place from 0.

    Returns
    -------
    Identification

    Raises
    ------
    ValueError
        If the arrays do not fit one another, or no sequence has the fixed levels.
    """
    count = len(log_probabilities)
    shapes = [np.shape(array) for array in (log_probabilities, complete, centres_mm)]
    if shapes != [(count, MAX_RANK + 1), (count,), (count, 3)]:
        raise ValueError(f"Expected arrays (n, {MAX_RANK + 1}), (n,) and (n, 3), received {shapes}.")
    if not count:
        return Identification((), (), (), 1.0, (), 0.0, (), "none")
    votes = weighed_votes(log_probabilities, complete, temperature)
    column = Column(_emissions(votes, fixed or {}), transitions_of(centres_mm))
    (best, score), (second, second_score) = two_best(column)
    if best is None:
        levels = ", ".join(f"{place + 1}={name_of_code(code)}" for place, code in sorted(fixed.items()))
        raise ValueError(f"Expected levels that follow one another downwards, received {levels}.")
    marginals, total = posterior(column)
    places = np.arange(count)
    alternative = second if second is not None else best
    decisive = votes[places, best] - votes[places, alternative]
    return Identification(
        codes=_codes(best),
        probabilities=tuple(marginals[places, best].tolist()),
        complete=tuple(float(value) for value in complete),
        sequence_probability=float(np.exp(score - total)),
        second_codes=() if second is None else _codes(second),
        second_probability=float(np.exp(second_score - total)),
        decisive=tuple(decisive.tolist()),
        anchor="given" if fixed else _anchor(best, votes, column),
    )


def parse_fixed(fix: Sequence[str], first_label: str | None = None) -> dict[int, int]:
    """Read the levels that the user knows.

    Parameters
    ----------
    fix : sequence of str
        Such as "3=T12": the third vertebra from the top.
    first_label : str, optional
        The level of the top-most one, the same as "1=...".

    Returns
    -------
    dict of int to int
        Codes by place, from 0.

    Raises
    ------
    ValueError
        If a text has another form, names no level, or a place is named twice.
    """
    fixed: dict[int, int] = {}
    for text in (*([] if first_label is None else [f"1={first_label}"]), *fix):
        place, equals, name = text.partition("=")
        if not equals or not place.strip().isdecimal() or int(place) < 1:
            raise ValueError(f"Expected place=level from 1 at the top, such as 3=T12, received {text!r}.")
        code = code_of_name(name)
        if fixed.setdefault(int(place) - 1, code) != code:
            raise ValueError(
                f"Expected one level for vertebra {int(place)}, received a second one, {text!r}."
            )
    return fixed


def uniform_votes(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give votes that say nothing, for columns that are labelled from what the user knows alone."""
    log_probabilities = np.full((count, MAX_RANK + 1), -np.log(MAX_RANK))
    log_probabilities[:, _NONE] = _NEVER  # below the last level there is still no other choice
    return log_probabilities, np.ones(count), np.full((count, 3), np.nan)


# Weights -------------------------------------------------------------------------------------------


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
        return float(self.emissions[first:last, _NONE].sum())

    def step(self, upper: int, lower: int) -> np.ndarray:
        """Give the log-weights (26, 26), upper by lower rank, of two vertebrae with none between them."""
        return (
            self.transitions[upper, lower] + self.none_between(upper + 1, lower) + self.emissions[lower, 1:]
        )


def transitions_of(centres_mm: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Give the `transitions` of a column from its centres (n, 3) in mm."""
    ratios = gap_ratios(np.asarray(centres_mm, float))
    pairs = [(upper, lower) for lower in range(len(ratios)) for upper in range(lower)]
    # All at once: a call of `logsumexp` costs more than the sums of one pair.
    return dict(zip(pairs, transition(np.array([ratios[pair] for pair in pairs]).reshape(-1, MAX_RANK))))


def weighed_votes(log_probabilities: np.ndarray, complete: np.ndarray, temperature: float) -> np.ndarray:
    """Give the votes as they count: over the temperature, and less for what is cut."""
    weight = CUT_WEIGHT + (1 - CUT_WEIGHT) * np.asarray(complete, float)
    return np.asarray(log_probabilities, float) * weight[:, None] / temperature


def _emissions(votes: np.ndarray, fixed: Mapping[int, int]) -> np.ndarray:
    emissions = votes + np.log(1 - RATE_NO_VERTEBRA)
    emissions[:, _NONE] = votes[:, _NONE] + np.log(RATE_NO_VERTEBRA)
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
            step = np.median(near) if len(near) >= LEAST_GAPS else np.array(STEPS_MM)
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


def transition(ratio: np.ndarray) -> np.ndarray:
    """Give the log-weights, upper by lower rank, of two vertebrae that follow one another.

    Parameters
    ----------
    ratio : np.ndarray, (..., 26)
        The gap as a multiple of the step there, by the upper rank; NaN: nothing is known of it, and nothing
        was missed.

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
    return logsumexp(_paths() + (missed * np.log(RATE_MISSED) + fit)[..., None], axis=-3)


def _start(column: Column) -> np.ndarray:
    """Give the log-weights (n, 26) of each vertebra being the first that is one, with each rank."""
    none = np.array([column.none_between(0, place) for place in range(column.count)])
    return none[:, None] + np.log(level_rates() / MAX_RANK) + column.emissions[:, 1:]


def _end(column: Column) -> np.ndarray:
    """Give the log-weights (n,) of nothing below each vertebra being one."""
    return np.array([column.none_between(place + 1, column.count) for place in range(column.count)])


# Sequences -----------------------------------------------------------------------------------------


def two_best(column: Column) -> list[tuple[np.ndarray | None, float]]:
    """Find the two sequences of the largest weight (Viterbi with two survivors a state).

    Parameters
    ----------
    column : Column
        Its weights.

    Returns
    -------
    list of (ranks, log-weight), 2
        Ranks (n,), 0 for no vertebra; None and -inf where there is no such sequence.
    """
    count = column.count
    score = np.full((count, MAX_RANK, 2), -np.inf)
    came_from = np.full((count, MAX_RANK, 2), -1)  # flat index into `score`; -1 begins the sequence
    start, end = _start(column), _end(column)
    for lower in range(count):
        options = [start[lower][None]]
        for upper in range(lower):
            onward = score[upper][:, :, None] + column.step(upper, lower)[:, None, :]
            options.append(onward.reshape(-1, MAX_RANK))
        options = np.concatenate(options)
        order = np.argsort(-options, axis=0, kind="stable")[:2]
        taken = np.take_along_axis(options, order, axis=0).T
        score[lower, :, : taken.shape[1]], came_from[lower, :, : taken.shape[1]] = taken, order.T - 1
    finished = (score + end[:, None, None]).ravel()
    ends = [*zip(finished, range(len(finished))), (column.none_between(0, count), -1)]
    ends.sort(key=lambda pair: -pair[0])
    return [
        (_trace_back(came_from, last), float(weight)) if weight > -np.inf else (None, -np.inf)
        for weight, last in ends[:2]
    ]


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
        forward[place] = logsumexp(np.concatenate([forward[place][None], *above]), axis=0)
    for place in reversed(range(count)):
        below = [steps[place, v] + backward[v] for v in range(place + 1, count)]
        backward[place] = logsumexp(np.concatenate([backward[place][:, None], *below], axis=1), axis=1)
    ends = (forward + _end(column)[:, None]).ravel()
    total = float(logsumexp(np.array([*ends, column.none_between(0, count)]), axis=0))
    marginals = np.zeros((count, MAX_RANK + 1))
    marginals[:, 1:] = np.exp(forward + backward - total)
    marginals[:, _NONE] = np.clip(1 - marginals[:, 1:].sum(axis=1), 0, 1)
    return marginals, total


def sequence_weight(column: Column, ranks: Sequence[int]) -> float:
    """Give the log-weight of one sequence of ranks, 0 for no vertebra."""
    places = [place for place, rank in enumerate(ranks) if rank]
    if not places:
        return column.none_between(0, column.count)
    weight = _start(column)[places[0], ranks[places[0]] - 1] + _end(column)[places[-1]]
    pairs = itertools.pairwise(places)
    return float(weight + sum(column.step(u, v)[ranks[u] - 1, ranks[v] - 1] for u, v in pairs))


def sequence_log_probability(
    log_probabilities: np.ndarray,
    complete: np.ndarray,
    transitions: Mapping[tuple[int, int], np.ndarray],
    codes: Sequence[int],
    *,
    temperature: float,
) -> float:
    """Give the log-probability of a known sequence among all: what the temperature is fitted by.

    Parameters
    ----------
    log_probabilities, complete : np.ndarray
        As for `identify`.
    transitions : mapping
        Of the centres (`transitions_of`): they do not depend on the temperature.
    codes : sequence of int
        The sequence: VerSe's codes, 0 for what is no vertebra.
    temperature : float
        What the votes are divided by.

    Returns
    -------
    float
        -inf for a sequence that the rules do not allow.
    """
    votes = weighed_votes(log_probabilities, complete, temperature)
    column = Column(_emissions(votes, {}), transitions)
    ranks = [rank_of_code(code) if code else _NONE for code in codes]
    return sequence_weight(column, ranks) - posterior(column)[1]


def _codes(ranks: np.ndarray) -> tuple[int, ...]:
    return tuple(code_of_rank(rank) if rank else 0 for rank in ranks.tolist())


def _anchor(best: np.ndarray, votes: np.ndarray, column: Column) -> str:
    """Say which of `ANCHORS` alone would give the best sequence too."""
    names = ["-" if not rank else LEVEL_NAMES[rank - 1] for rank in best.tolist()]
    found = []
    for words, shown_by, voters in ANCHORS:
        silent = [name not in ("-", *voters) for name in names]
        if not set(names) & set(shown_by):
            continue
        heard = votes.copy()
        heard[silent] = 0.0
        heard[silent, _NONE] = _NEVER
        alone = Column(_emissions(heard, {}), column.transitions)
        if sequence_weight(alone, best) - posterior(alone)[1] >= np.log(ANCHORED):
            found.append(words)
    return " and ".join(found) or "none"
