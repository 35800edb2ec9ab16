"""What a count of vertebrae can hold on to: the skull's base, ribs, the sacrum, each as evidence of its own.

An anchor is read apart from the votes on the levels, has its own error rate, and so may contradict them. It
multiplies the weight of a sequence by the likelihood of what was read, given the levels. Each is given as an
array of log-likelihoods (n, 27), by vertebra and rank, place 0 for *not a vertebra*:

- skull base: the level head is all but certain of C1 or C2 at a vertebra. That reading counts in full, up to
  its error rate, while all other votes are divided by the temperature;
- ribs: whether each vertebra carries a rib of at least 40 mm. VerSe calls a vertebra thoracic by that;
- sacrum: the first sacral body lies one step below a vertebra, which is L5, now and then L6, seldom L4.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from utils.imaging.grids import transform_points
from utils.localisation.chain import USUAL, Chain, ChainSettings
from utils.localisation.peaks import Peaks
from utils.localisation.sequences import (
    NO_VERTEBRA,
    RATE_MISSED,
    RATE_NO_VERTEBRA,
    Column,
    emissions_of,
    posterior,
    sequence_weight,
)
from utils.localisation.steps import typical_steps
from utils.verse.anomalies import RATE_L6
from utils.verse.labels import LEVEL_NAMES, MAX_RANK

#: The anchors, as results name them.
SKULL_BASE, RIBS, SACRUM_BELOW = ANCHORS = ("C1/C2 in view", "ribs", "sacrum below")
#: Probability that a sequence must have by an anchor alone for the anchor to be named.
ANCHORED = 0.5
#: A first sacral body is not nearer than this to the vertebra above it, nor farther, in steps of L5, and its
#: direction is not farther from the vertical, in degrees (a sacrum may be nearly horizontal).
SACRUM_STEPS, SACRUM_TILT_DEGREES, SACRUM_SPREAD = (0.6, 1.6), 75.0, 0.2
#: S1 itself may stand in the chain as its last vertebra: so many of the last ones may be the one above it.
ABOVE_SACRUM = 2


@dataclass(frozen=True)
class Rates:
    """How often what is read of a column is wrong.

    Attributes
    ----------
    missed, no_vertebra : float
        Of vertebrae missed between two (two that were taken for one among them), and of what is none.
    certain : float
        Probability of C1 or C2 from which a vote is read as the skull's base.
    skull, rib, sacrum : float
        Of wrong readings of each anchor.
    lumbar_four : float
        Of spines whose sacrum begins below L4.
    """

    missed: float = RATE_MISSED
    no_vertebra: float = RATE_NO_VERTEBRA
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


def sacrum_below(chain: Chain, sacra: Peaks, settings: ChainSettings = USUAL) -> Sacrum | None:
    """Find the first sacral body one step below a chain.

    Parameters
    ----------
    chain : Chain
        The vertebrae.
    sacra : Peaks
        Candidates for the centre of S1.
    settings : ChainSettings
        How heat counts; the same as for vertebrae.

    Returns
    -------
    Sacrum or None
        The candidate of the largest odds below one of the last vertebrae; None where none is as likely as
        not.
    """
    if not len(chain) or not len(sacra):
        return None
    places = np.arange(len(chain))[-ABOVE_SACRUM:]
    points = transform_points(sacra.points_voxels, sacra.affine, np.eye(4))
    between = points[None] - chain.candidates.points_mm[places][:, None]
    distance = np.maximum(np.linalg.norm(between, axis=2), 1e-6)
    steps = distance / (chain.body_scale * typical_steps().mean_mm[LEVEL_NAMES.index("L5")])
    tilt = np.degrees(np.arccos(-between[..., 2] / distance))
    fits = (steps > SACRUM_STEPS[0]) & (steps < SACRUM_STEPS[1]) & (tilt < SACRUM_TILT_DEGREES)
    odds = (
        settings.heat_slope * (sacra.heat - settings.heat_middle) - (np.log(steps) / SACRUM_SPREAD) ** 2 / 2
    )
    odds = np.where(fits, odds, -np.inf)
    place, candidate = np.unravel_index(odds.argmax(), odds.shape)
    best = odds[place, candidate]
    return Sacrum(int(places[place]), float(expit(best))) if best > 0 else None


def anchor_weights(log_probabilities: np.ndarray, anchors: Anchors) -> dict[str, np.ndarray]:
    """Give the log-likelihoods of what was read of each anchor that is used and in view.

    Parameters
    ----------
    log_probabilities : np.ndarray, (n, 27)
        Votes of the level head, as `identify` takes them.
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


def speaking_anchors(
    best: np.ndarray, read: Mapping[str, np.ndarray], column: Column, rates: Rates
) -> tuple[str, ...]:
    """Name the anchors that alone, all votes silent, would give the same sequence.

    Parameters
    ----------
    best : np.ndarray of int, (n,)
        Ranks of the sequence, 0 for no vertebra.
    read : mapping of str to np.ndarray, (n, 27)
        As `anchor_weights` gives them.
    column : Column
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
        alone = Column(_heard(weights, best, rates), column.transitions)
        if sequence_weight(alone, best) - posterior(alone)[1] >= np.log(ANCHORED):
            found.append(name)
    return tuple(found)


def _heard(weights: np.ndarray, best: np.ndarray, rates: Rates) -> np.ndarray:
    """Give the emissions of an anchor alone; what is a vertebra in the best sequence stays one."""
    emissions = emissions_of(weights, {}, rates.no_vertebra)
    emissions[best > 0, NO_VERTEBRA] = -np.inf
    emissions[best == NO_VERTEBRA, 1:] = -np.inf
    return emissions


def total_weights(parts: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Add the log-likelihoods of anchors, (n, 27); zeros where none is in view."""
    return sum(parts.values(), np.zeros(shape))
