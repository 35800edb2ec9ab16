"""What is known of a column before its levels are decided, as log-likelihoods by vertebra and rank.

- Votes: what the labelling network says of each vertebra, divided by a temperature that was fitted on
  validation columns (neighbours' votes are not independent: they see the same parts of the image).
- Anchors: what a count of vertebrae can hold on to. An anchor is read apart from the votes, has its own
  error rate, and no temperature divides it, so it may contradict them:

  - skull base: the labelling network is all but certain of C1 or C2 at a vertebra. That reading counts in
    full, up to its error rate;
  - ribs: whether each vertebra carries a rib of at least 40 mm. VerSe calls a vertebra thoracic by that;
  - sacrum: the first sacral body lies one step below a vertebra, which is L5, now and then L6, seldom L4.

- Gaps: for `m` vertebrae missed between two, `m` times the log of the rate of misses, and how well the gap,
  as a multiple of the gaps near by, fits `m + 1` steps.

Place 0 of the 27 classes of a vertebra stands for *not a vertebra*.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from utils.localisation.steps import typical_steps
from utils.verse.anomalies import RATE_L6, following_rates
from utils.verse.labels import LEVEL_NAMES, MAX_RANK, name_of_code, rank_of_code

#: The anchors, as results name them.
SKULL_BASE, RIBS, SACRUM_BELOW = ANCHORS = ("C1/C2 in view", "ribs", "sacrum below")
#: Spread of the gap between neighbours, as a multiple of the gaps near by.
GAP_SPREAD = 0.25
#: Gaps whose median gives the step of a place: so many on either side, so that the two halves of a gap with a
#: false vertebra in it do not count for much. With fewer than two the typical step counts.
GAPS_NEAR, LEAST_GAPS = 4, 2
MOST_MISSED = 8
NO_VERTEBRA = 0
#: Log-likelihood of what is all but impossible.
NEVER = -50.0


@dataclass(frozen=True)
class Rates:
    """How often what is read of a column is wrong.

    Attributes
    ----------
    missed, no_vertebra : float
        Of vertebrae missed between two (two that were taken for one among them), and of what is none.
    doubles : float
        Of neighbours found twice, among what is none.
    certain : float
        Probability of C1 or C2 from which a vote is read as the skull's base.
    skull, rib, sacrum : float
        Of wrong readings of each anchor.
    lumbar_four : float
        Of spines whose sacrum begins below L4.
    """

    missed: float = 0.01
    no_vertebra: float = 0.02
    doubles: float = 0.1
    certain: float = 0.9
    skull: float = 0.02
    rib: float = 0.05
    sacrum: float = 0.01
    lumbar_four: float = 0.02


@dataclass(frozen=True)
class Sacrum:
    """A first sacral body below a column.

    Attributes
    ----------
    above : int
        Place of the vertebra above it, from 0 at the top.
    probability : float
        That it is one.
    """

    above: int
    probability: float


@dataclass(frozen=True, eq=False)
class Anchors:
    """What is read of a column beside the votes on its levels.

    Attributes
    ----------
    rib_probability : np.ndarray, (n,), optional
        That each vertebra carries a rib of at least 40 mm, on either side; NaN where it is not known.
    sacrum : Sacrum, optional
        The sacrum below it.
    used : tuple of str
        Those of `ANCHORS` that count.
    rates : Rates
        Of what is wrong.
    """

    rib_probability: np.ndarray | None = None
    sacrum: Sacrum | None = None
    used: tuple[str, ...] = ANCHORS
    rates: Rates = Rates()


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

    def votes(self, temperature: float) -> np.ndarray:
        """Give the votes, (n, 27), divided by a temperature, where a vertebra may have been found twice."""
        return with_doubles(np.asarray(self.log_probabilities, float), temperature, self.rates.doubles)

    def read_anchors(self) -> dict[str, np.ndarray]:
        """Give the log-likelihoods of the anchors in view, (n, 27), by name."""
        return {} if self.anchors is None else anchor_weights(self.votes(1.0), self.anchors)

    @property
    def transitions(self) -> dict[tuple[int, int], np.ndarray]:
        """The log-weights of two vertebrae following one another, as `transitions_of` gives them."""
        return transitions_of(self.centres_mm, missed=self.rates.missed)


def uniform_votes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Give votes that say nothing, for columns that are labelled from what the user knows alone."""
    log_probabilities = np.full((count, MAX_RANK + 1), -np.log(MAX_RANK))
    log_probabilities[:, NO_VERTEBRA] = NEVER  # below the last level there is still no other choice
    return log_probabilities, np.full((count, 3), np.nan)


def log_likelihoods(known: ColumnVotes, temperature: float) -> np.ndarray:
    """Give the log-likelihoods of the levels by votes and anchors together.

    Parameters
    ----------
    known : ColumnVotes
        What is known of the column.
    temperature : float
        What the votes are divided by; the anchors are not.

    Returns
    -------
    np.ndarray, (n, 27)
    """
    votes = known.votes(temperature)
    read = known.read_anchors()
    if SKULL_BASE in read:
        # That vertebra's vote is the anchor itself: it counts once.
        votes[skull_place(known.log_probabilities, known.rates.certain)] = 0.0
    return votes + sum(read.values(), np.zeros(votes.shape))


def with_doubles(log_probabilities: np.ndarray, temperature: float, share: float) -> np.ndarray:
    """Divide votes by a temperature, and let what is no vertebra of its own look like a neighbour.

    A vertebra may have been found twice, as the top of a neck that shows C1: then both are seen as that one.

    Parameters
    ----------
    log_probabilities : np.ndarray, (n, 27)
        Votes from the top down.
    temperature : float
        What they are divided by.
    share : float
        Of doubles among what is no vertebra.

    Returns
    -------
    np.ndarray, (n, 27)
        The vote for no vertebra is a mixture: as it was, or as two neighbours agree on their level. One of
        `NEVER` stays.
    """
    votes = log_probabilities / temperature
    levels = np.exp(log_probabilities[:, 1:])
    agree = np.zeros(len(votes) + 1)
    agree[1:-1] = (levels[1:] * levels[:-1]).sum(axis=1)
    double = np.maximum(agree[1:], agree[:-1]) ** (1 / temperature)
    none = (1 - share) * np.exp(votes[:, NO_VERTEBRA]) + share * double
    is_open = log_probabilities[:, NO_VERTEBRA] > NEVER
    votes[is_open, NO_VERTEBRA] = np.log(none[is_open])
    return votes


def emissions_of(votes: np.ndarray, fixed: Mapping[int, int], no_vertebra: float) -> np.ndarray:
    """Give the log-weights of every class of every vertebra.

    Parameters
    ----------
    votes : np.ndarray, (n, 27)
        Log-likelihoods by vertebra and rank, as `log_likelihoods` gives them.
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


# Anchors -------------------------------------------------------------------------------------------


def anchor_weights(log_probabilities: np.ndarray, anchors: Anchors) -> dict[str, np.ndarray]:
    """Give the log-likelihoods of what was read of each anchor that is used and in view.

    Parameters
    ----------
    log_probabilities : np.ndarray, (n, 27)
        Votes, as `identify` takes them.
    anchors : Anchors
        What was read.

    Returns
    -------
    dict of str to np.ndarray, (n, 27)
        By the anchor's name.

    Raises
    ------
    ValueError
        If an anchor is not known, or does not fit the column.
    """
    _check(anchors, len(log_probabilities))
    read = {
        SKULL_BASE: skull_weights(log_probabilities, anchors.rates),
        RIBS: rib_weights(anchors.rib_probability, anchors.rates),
        SACRUM_BELOW: sacrum_weights(anchors.sacrum, len(log_probabilities), anchors.rates),
    }
    return {name: weights for name, weights in read.items() if weights is not None and name in anchors.used}


def _check(anchors: Anchors, count: int) -> None:
    if unknown := set(anchors.used) - set(ANCHORS):
        raise ValueError(f"Expected anchors of {', '.join(ANCHORS)}, received {', '.join(sorted(unknown))}.")
    ribs, sacrum = anchors.rib_probability, anchors.sacrum
    if ribs is not None and np.shape(ribs) != (count,):
        raise ValueError(f"Expected rib probabilities ({count},), received {np.shape(ribs)}.")
    if sacrum is not None and not 0 <= sacrum.above < count:
        raise ValueError(f"Expected a sacrum below one of {count} vertebrae, received place {sacrum.above}.")


def skull_place(log_probabilities: np.ndarray, certain: float) -> int | None:
    """Give the place of the vertebra that is all but certainly C1 or C2; None if there is none."""
    upper = log_probabilities[:, 1:3].max(axis=1)
    place = int(upper.argmax())
    return place if upper[place] >= np.log(certain) else None


def skull_weights(log_probabilities: np.ndarray, rates: Rates) -> np.ndarray | None:
    """Give the log-likelihoods of the reading of C1 or C2, (n, 27); None where nothing is read."""
    place = skull_place(log_probabilities, rates.certain)
    if place is None:
        return None
    weights = np.zeros(log_probabilities.shape)
    weights[place] = np.log((1 - rates.skull) * np.exp(log_probabilities[place]) + rates.skull / MAX_RANK)
    return weights


@functools.cache
def rib_rates() -> np.ndarray:
    """Give the share of vertebrae of each level that carry a rib of at least 40 mm, (26,).

    T12 and T13 are thoracic for their rib; the rib of C7 or L1 that some have is mostly shorter.
    """
    rates = {f"T{number}": 0.995 for number in range(1, 12)} | {
        "T12": 0.95,
        "T13": 0.95,
        "C7": 0.01,
        "L1": 0.02,
    }
    return np.array([rates.get(name, 0.002) for name in LEVEL_NAMES])


def rib_weights(rib_probability: np.ndarray | None, rates: Rates) -> np.ndarray | None:
    """Give the log-likelihoods of ribs as read, (n, 27); None where nothing is read.

    A vertebra with a rib and one without are taken to be equally frequent where the network learned.
    """
    if rib_probability is None or not np.isfinite(rib_probability).any():
        return None
    seen = np.nan_to_num(np.asarray(rib_probability, float), nan=0.5)
    seen = rates.rib + (1 - 2 * rates.rib) * seen[:, None]
    weights = np.log(seen * rib_rates() + (1 - seen) * (1 - rib_rates()))
    return np.concatenate([np.full((len(weights), 1), np.log(0.5)), weights], axis=1)


def sacrum_weights(sacrum: Sacrum | None, count: int, rates: Rates) -> np.ndarray | None:
    """Give the log-likelihoods of a sacrum as read, (n, 27); None where there is none."""
    if sacrum is None:
        return None
    error = float(np.clip(1 - sacrum.probability, rates.sacrum, 0.5))
    ends = np.zeros(MAX_RANK + 1)
    for name, rate in (("L4", rates.lumbar_four), ("L5", 1 - RATE_L6), ("L6", 1.0)):
        ends[LEVEL_NAMES.index(name) + 1] = rate
    weights = np.zeros((count, MAX_RANK + 1))
    weights[sacrum.above] = np.log(error + (1 - 2 * error) * ends)
    # Whatever stands below that vertebra is the sacrum itself.
    weights[sacrum.above + 1 :, 1:] = np.log(error)
    return weights


# Gaps ----------------------------------------------------------------------------------------------


def transitions_of(centres_mm: np.ndarray, *, missed: float) -> dict[tuple[int, int], np.ndarray]:
    """Give the log-weights of two vertebrae following one another, with none between them.

    Parameters
    ----------
    centres_mm : np.ndarray, (n, 3)
        Centres of the vertebrae from the top down; NaN where there is none.
    missed : float
        Rate of vertebrae that are missed between two.

    Returns
    -------
    dict of (int, int) to np.ndarray, (26, 26)
        Upper by lower rank, by the places of the upper and the lower vertebra.
    """
    ratios = gap_ratios(np.asarray(centres_mm, float))
    pairs = [(upper, lower) for lower in range(len(ratios)) for upper in range(lower)]
    # All at once: a call of `logsumexp` costs more than the sums of one pair.
    return dict(
        zip(pairs, transition(np.array([ratios[pair] for pair in pairs]).reshape(-1, MAX_RANK), missed))
    )


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


def transition(ratio: np.ndarray, rate: float) -> np.ndarray:
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
