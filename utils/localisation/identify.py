"""The levels of a column of vertebrae, decided together: the most likely sequence that goes down by one.

A network looks at one vertebra at a time and gives each level a probability. Here these votes meet what is
known of spines: levels follow one another downwards; T12 is absent, T13 or L6 are there in a few of a
hundred; a vertebra may have been missed, or two taken for one, which shows in the gap; something found may
be none. All sequences of a column are weighed against one another exactly (`utils.localisation.sequences`).
Pure NumPy on a few numbers a vertebra; no image, no TensorFlow.

The log-weight of a sequence is the sum of

- the votes, divided by a temperature that was fitted on validation columns (neighbours' votes are not
  independent: they see the same parts of the image);
- the likelihoods of the anchors in view (`utils.localisation.anchors`), which no temperature divides;
- the rate at which a level is there at all, for the first one, and at which it follows the one before;
- for `m` vertebrae missed between two, `m` times the log of the rate of misses, and how well the gap, as a
  multiple of the gaps near by, fits `m + 1` steps.

The answer is also given as a set: the fewest sequences whose probabilities add up to 95 %. Where no anchor
is in view that set is wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar

from utils.localisation.anchors import (
    SKULL_BASE,
    Anchors,
    Rates,
    anchor_weights,
    skull_place,
    speaking_anchors,
    total_weights,
)
from utils.localisation.sequences import (
    NO_VERTEBRA,
    Column,
    emissions_of,
    k_best,
    posterior,
    sequence_weight,
    transitions_of,
)
from utils.verse.labels import MAX_RANK, code_of_name, code_of_rank, name_of_code, rank_of_code

#: What the probabilities of a set of sequences add up to, and how many it has at most.
COVERAGE, MOST_SEQUENCES = 0.95, 64
#: Range of temperatures, and the least log-probability of a true sequence that counts in fitting one.
TEMPERATURES, LEAST_LOG_PROBABILITY = (0.25, 20.0), -50.0
_NEVER = -50.0

Transitions = Mapping[tuple[int, int], np.ndarray]


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
    decisive : tuple of float
        What each vertebra's vote speaks for the first sequence against the second, in natural logarithms.
    anchor : str
        What the count holds on to: the anchors that alone, without any vote, would give the same sequence
        with a probability of a half or more; "given" for levels that the user named; else "none".
    sequence_set : tuple of (tuple of int, float)
        The fewest sequences, as codes, whose probabilities add up to `COVERAGE`, the most probable first.
    set_probability : float
        What they add up to; less than `COVERAGE` only where `MOST_SEQUENCES` do not reach it.
    """

    codes: tuple[int, ...]
    probabilities: tuple[float, ...]
    sequence_probability: float
    second_codes: tuple[int, ...]
    second_probability: float
    decisive: tuple[float, ...]
    anchor: str
    sequence_set: tuple[tuple[tuple[int, ...], float], ...] = ()
    set_probability: float = 1.0

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
            decisive=part(self.decisive),
            sequence_set=tuple(chosen.items()),
        )


def names_of(codes: Sequence[int]) -> tuple[str, ...]:
    """Give the names of codes; "-" for 0."""
    return tuple(name_of_code(code) if code else "-" for code in codes)


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
        Votes from the top down: natural logarithms over ranks, place 0 for *not a vertebra*
        (`votes_of_levels` makes them of the level head's).
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
    parts = ColumnVotes(log_probabilities, centres_mm, anchors)
    if not len(log_probabilities):
        return Identification((), (), 1.0, (), 0.0, (), "none")
    evidence = _evidence(parts, temperature)
    column = Column(emissions_of(evidence, {}, parts.rates.no_vertebra), _transitions(parts))
    if fixed:
        is_vertebra = k_best(column, 1)[0][0] != NO_VERTEBRA
        evidence[is_vertebra, NO_VERTEBRA] += _NEVER
        column = replace(column, emissions=emissions_of(evidence, fixed, parts.rates.no_vertebra))
    if not k_best(column, 1):
        levels = ", ".join(f"{place + 1}={name_of_code(code)}" for place, code in sorted(fixed.items()))
        raise ValueError(f"Expected levels that follow one another downwards, received {levels}.")
    marginals, total = posterior(column)
    ranked = _likely_sequences(column, total)
    best, alternative = ranked[0][0], ranked[min(1, len(ranked) - 1)][0]
    return Identification(
        codes=_codes(best),
        probabilities=tuple(marginals[np.arange(len(best)), best].tolist()),
        sequence_probability=ranked[0][1],
        second_codes=_codes(alternative) if len(ranked) > 1 else (),
        second_probability=ranked[1][1] if len(ranked) > 1 else 0.0,
        decisive=_differences(evidence, best, alternative),
        anchor="given" if fixed else _anchor(parts, best, column),
        **_set_of(ranked),
    )


@dataclass(frozen=True, eq=False)
class ColumnVotes:
    """What is known of a column before its levels are decided: the arguments of `identify`.

    Attributes
    ----------
    log_probabilities : np.ndarray, (n, 27)
        Votes from the top down, place 0 for *not a vertebra*.
    centres_mm : np.ndarray, (n, 3)
        Centres in mm.
    anchors : Anchors, optional
        What was read beside the votes.

    Raises
    ------
    ValueError
        If the arrays do not fit one another.
    """

    log_probabilities: np.ndarray
    centres_mm: np.ndarray
    anchors: Anchors | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        count = len(self.log_probabilities)
        shapes = [np.shape(array) for array in (self.log_probabilities, self.centres_mm)]
        if shapes != [(count, MAX_RANK + 1), (count, 3)]:
            raise ValueError(f"Expected arrays (n, {MAX_RANK + 1}) and (n, 3), received {shapes}.")

    @property
    def rates(self) -> Rates:
        """The rates of errors."""
        return Rates() if self.anchors is None else self.anchors.rates

    def read_anchors(self) -> dict[str, np.ndarray]:
        """Give the log-likelihoods of the anchors in view, (n, 27), by name."""
        return {} if self.anchors is None else anchor_weights(self.log_probabilities, self.anchors)


def votes_of_levels(level_log_probabilities: np.ndarray) -> np.ndarray:
    """Make votes of the level head's log-probabilities.

    Parameters
    ----------
    level_log_probabilities : np.ndarray, (n, 26)
        Natural logarithms, by rank from C1.

    Returns
    -------
    np.ndarray, (n, 27)
        The head never says *not a vertebra*: where there is none it may give any level, one as likely as
        another.
    """
    none = np.full((len(level_log_probabilities), 1), -np.log(MAX_RANK))
    return np.concatenate([none, level_log_probabilities], axis=1)


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


def uniform_votes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Give votes that say nothing, for columns that are labelled from what the user knows alone."""
    log_probabilities = np.full((count, MAX_RANK + 1), -np.log(MAX_RANK))
    log_probabilities[:, NO_VERTEBRA] = _NEVER  # below the last level there is still no other choice
    return log_probabilities, np.full((count, 3), np.nan)


# Weights -------------------------------------------------------------------------------------------


def _evidence(parts: ColumnVotes, temperature: float) -> np.ndarray:
    """Give the log-likelihoods of the levels by votes and anchors together, (n, 27)."""
    votes = np.asarray(parts.log_probabilities, float) / temperature
    read = parts.read_anchors()
    if SKULL_BASE in read:
        # That vertebra's vote is the anchor itself: it counts once.
        votes[skull_place(parts.log_probabilities, parts.rates.certain)] = 0.0
    return votes + total_weights(read, votes.shape)


def _transitions(parts: ColumnVotes) -> Transitions:
    return transitions_of(parts.centres_mm, missed=parts.rates.missed)


def _anchor(parts: ColumnVotes, best: np.ndarray, column: Column) -> str:
    if parts.anchors is None:
        return "none"
    return " and ".join(speaking_anchors(best, parts.read_anchors(), column, parts.rates)) or "none"


def _likely_sequences(column: Column, total: float) -> list[tuple[np.ndarray, float]]:
    """Give sequences with their probabilities: at least two, and enough of them to reach the coverage."""
    count = 4
    while True:
        ranked = [(ranks, float(np.exp(weight - total))) for ranks, weight in k_best(column, count)]
        reached = sum(share for _, share in ranked) >= COVERAGE
        if reached or len(ranked) < count or count >= MOST_SEQUENCES:
            return ranked
        count *= 4


def _set_of(ranked: Sequence[tuple[np.ndarray, float]]) -> dict[str, object]:
    """Give the two fields of `Identification` on the set of sequences."""
    sums = np.cumsum([share for _, share in ranked])
    count = min(int(np.searchsorted(sums, COVERAGE)) + 1, len(ranked))
    chosen = tuple((_codes(ranks), share) for ranks, share in ranked[:count])
    return {"sequence_set": chosen, "set_probability": float(min(sums[count - 1], 1.0))}


def _differences(evidence: np.ndarray, best: np.ndarray, alternative: np.ndarray) -> tuple[float, ...]:
    places = np.arange(len(best))
    return tuple((evidence[places, best] - evidence[places, alternative]).tolist())


def _codes(ranks: np.ndarray) -> tuple[int, ...]:
    return tuple(code_of_rank(rank) if rank else 0 for rank in ranks.tolist())


# Temperature ---------------------------------------------------------------------------------------


def true_log_probability(parts: ColumnVotes, codes: Sequence[int], *, temperature: float) -> float:
    """Give the log-probability of the true sequence of a column, its anchors heard.

    Parameters
    ----------
    parts : ColumnVotes
        What is known of the column.
    codes : sequence of int
        The truth: VerSe's codes, 0 for what is no vertebra.
    temperature : float
        What the votes are divided by.

    Returns
    -------
    float
        -inf for a sequence that the rules do not allow.
    """
    return _log_probability(parts, _transitions(parts), codes, temperature)


def _log_probability(
    parts: ColumnVotes, transitions: Transitions, codes: Sequence[int], temperature: float
) -> float:
    emissions = emissions_of(_evidence(parts, temperature), {}, parts.rates.no_vertebra)
    column = Column(emissions, transitions)
    ranks = [rank_of_code(code) if code else NO_VERTEBRA for code in codes]
    return sequence_weight(column, ranks) - posterior(column)[1]


def fit_temperature(columns: Sequence[ColumnVotes], truths: Sequence[Sequence[int]]) -> float:
    """Give the temperature under which the true sequences of held-out columns are the most probable.

    Parameters
    ----------
    columns : sequence of ColumnVotes
        At least one.
    truths : sequence of sequence of int
        The codes of each, 0 for what is no vertebra.

    Returns
    -------
    float
        Within `TEMPERATURES`.

    Raises
    ------
    ValueError
        If there is no column, or not one truth for each.
    """
    if not columns or len(columns) != len(truths):
        raise ValueError(f"Expected columns and as many truths, received {len(columns)} and {len(truths)}.")
    transitions = [_transitions(parts) for parts in columns]

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        logs = [_log_probability(*known, temperature) for known in zip(columns, transitions, truths)]
        # A sequence that the rules do not allow (L6 below T12, say) must not rule every temperature out.
        return -float(np.mean(np.maximum(logs, LEAST_LOG_PROBABILITY)))

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.02}).x))
