"""The column of vertebrae in a scan: of the candidate peaks, the most plausible chain from the top down.

A peak may be the heart, a rib or the same vertebra once more. A chain is weighed as a whole: by the heat of
its peaks and whether a vertebra is seen around each, by how far, in which direction and with which bend each
follows the one above it, and by whether the levels read there follow one another. The log-weight of a chain
is a sum of log-likelihood ratios, "a spine" against "peaks at random", and a constant for there being a spine
at all; a scan has a spine if the best chain's sum is positive. The best chain is found exactly, by dynamic
programming over pairs of peaks for each of a few body scales: O(s n^3) for n peaks. Below a chain the sacrum
is looked for: its first body, one step on.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp

from utils.imaging.grids import transform_points
from utils.imaging.volume import Volume
from utils.localisation.candidates import (
    Candidates,
    Peaks,
    PredictLabels,
    PredictTile,
    halfway_to_peaks,
    localise,
    read_candidates,
)
from utils.localisation.evidence import Anchors, Sacrum
from utils.localisation.steps import typical_steps
from utils.verse.anomalies import following_rates
from utils.verse.labels import LEVEL_NAMES, MAX_RANK

#: Share of steps that spread more than the table says, and how much more.
ODD_STEPS, ODD_SPREAD = 0.05, 2.5
#: Peaks of less heat are noise; the chain decides about all others.
LEAST_HEAT = 0.3
#: A first sacral body is not nearer than this to the vertebra above it, nor farther, in steps of L5, and its
#: direction is not farther from the vertical, in degrees (a sacrum may be nearly horizontal).
SACRUM_STEPS, SACRUM_TILT_DEGREES, SACRUM_SPREAD = (0.6, 1.6), 75.0, 0.2
#: S1 itself may stand in the chain as its last vertebra: so many of the last ones may be the one above it.
ABOVE_SACRUM = 2


@dataclass(frozen=True)
class ChainSettings:
    """What a chain is weighed with.

    Attributes
    ----------
    heat_slope, heat_middle, vertebra_limit : float
        The log-odds of a peak being a vertebra are `heat_slope * (heat - heat_middle)` and those of the
        labelling network (`Candidates.vertebra_log_odds`), which count up to `vertebra_limit` either way.
    sacrum_slope, sacrum_middle : float
        Those of the heat of a sacrum, which the labelling network does not know.
    no_spine : float
        Logarithm of the odds that a chain must overcome: peaks at random also form chains, and a
        scan holds no spine now and then.
    skip : float
        What it costs to pass over one vertebra that has no peak.
    tilt_degrees, bend_degrees : float
        Spread of a step's angle with the vertical, and with the step above it.
    levels : float
        Weight of whether the levels of neighbours follow one another.
    level_error : float
        Share of vertebrae whose levels mean nothing.
    scales : tuple of float
        Body sizes that are tried, 1 for a typical adult; their logarithms spread by `scale_spread`.
    """

    heat_slope: float = 4.0
    heat_middle: float = 0.5
    vertebra_limit: float = 6.0
    sacrum_slope: float = 12.0
    sacrum_middle: float = 0.35
    no_spine: float = -14.0
    skip: float = -3.0
    tilt_degrees: float = 30.0
    bend_degrees: float = 18.0
    levels: float = 1.0
    level_error: float = 0.3
    scales: tuple[float, ...] = (0.75, 0.82, 0.9, 1.0, 1.1, 1.2, 1.3)
    scale_spread: float = 0.15


USUAL = ChainSettings()


@dataclass(frozen=True, eq=False)
class Chain:
    """The vertebrae of a scan, from the top down.

    Attributes
    ----------
    candidates : Candidates
        Those in the chain, in its order.
    log_evidence : float
        Natural logarithm of the odds of a spine with this chain against none; `-inf` without a candidate.
    body_scale : float
        Size of the body, 1 for a typical adult.
    """

    candidates: Candidates
    log_evidence: float
    body_scale: float

    def __len__(self) -> int:
        """Number of vertebrae."""
        return len(self.candidates)

    @property
    def has_spine(self) -> bool:
        """Whether the evidence for a spine outweighs that against one."""
        return self.log_evidence > 0


@dataclass(frozen=True, eq=False)
class Votes:
    """What the networks say of a column, all that its levels are decided from.

    Attributes
    ----------
    level_log_probabilities : np.ndarray, (n, 27)
        Natural logarithms from the top down, by rank, place 0 for no vertebra.
    rib_probability : np.ndarray, (n,)
        That each carries a rib of at least 40 mm.
    centres_mm : np.ndarray, (n, 3)
        Centres of the bodies, RAS+ mm.
    sacrum : Sacrum or None
        The first sacral body below them.
    temperature : float
        What the levels' log-probabilities are divided by.
    """

    level_log_probabilities: np.ndarray
    rib_probability: np.ndarray
    centres_mm: np.ndarray
    sacrum: Sacrum | None = None
    temperature: float = 1.0

    @property
    def anchors(self) -> Anchors:
        """What is read beside the levels."""
        return Anchors(self.rib_probability, self.sacrum)


@dataclass(frozen=True, eq=False)
class Column:
    """The vertebrae of a scan, from the top down.

    Attributes
    ----------
    chain : Chain
        The peaks that follow one another best; it says too whether they are a spine.
    sacrum : Sacrum or None
        The first sacral body below them.
    """

    chain: Chain
    sacrum: Sacrum | None

    @property
    def found(self) -> Candidates:
        """The peaks that are vertebrae; none where there is no spine."""
        candidates = self.chain.candidates
        return candidates if self.chain.has_spine else take(candidates, np.zeros(0, int))

    @property
    def centres_mm(self) -> np.ndarray:
        """Centres of the bodies, RAS+ mm, (n, 3)."""
        return self.found.points_mm

    def votes(self, temperature: float) -> Votes:
        """Give what its levels are decided from."""
        found = self.found
        parts = (found.level_log_probabilities, found.rib_probability, found.points_mm)
        return Votes(*parts, self.sacrum if self.chain.has_spine else None, temperature)


def find_column(ct: Volume, predict: PredictTile, labels: PredictLabels, *, outside: str) -> Column:
    """Find the vertebrae of a scan.

    Parameters
    ----------
    ct, predict, outside
        As `utils.localisation.candidates.localise` takes them.
    labels : callable
        The labelling network, for a CT of the same spacing.

    Returns
    -------
    Column
    """
    scan = localise(ct, predict, outside=outside)
    vertebrae, sacra, bodies = read_candidates(scan, ct, labels, least=LEAST_HEAT)
    chain = chain_of(vertebrae)
    sacrum = sacrum_below(chain, sacra)
    centres_mm = halfway_to_peaks(chain.candidates.points_mm, bodies.points_mm)
    return Column(dataclasses.replace(chain, candidates=moved_to(chain.candidates, centres_mm)), sacrum)


def chain_of(candidates: Candidates, settings: ChainSettings = USUAL) -> Chain:
    """Find the most plausible chain of candidates.

    Parameters
    ----------
    candidates : Candidates
        In any order.
    settings : ChainSettings
        What a chain is weighed with.

    Returns
    -------
    Chain
        The best one also where the evidence speaks against a spine (`Chain.has_spine`).
    """
    if not len(candidates):
        return Chain(candidates, -np.inf, 1.0)
    ordered = take(candidates, np.argsort(-candidates.points_mm[:, 2], kind="stable"))
    steps = step_weights(ordered, settings)
    bends = _bends(ordered.points_mm, settings)
    places, scale, weight = _best_chain(peak_weights(ordered, settings), steps, bends, settings)
    return Chain(take(ordered, places), weight + settings.no_spine, settings.scales[scale])


def moved_to(candidates: Candidates, points_mm: np.ndarray) -> Candidates:
    """Give candidates that lie elsewhere, in RAS+ mm, (n, 3)."""
    points = transform_points(points_mm, np.eye(4), candidates.affine)
    return dataclasses.replace(candidates, points_voxels=points)


def take(candidates: Candidates, places: np.ndarray) -> Candidates:
    """Give the candidates at places, in their order."""
    return Candidates(
        candidates.points_voxels[places],
        candidates.affine,
        candidates.heat[places],
        candidates.level_log_probabilities[places],
        candidates.rib_probability[places],
    )


def peak_weights(candidates: Candidates, settings: ChainSettings) -> np.ndarray:
    """Give the log-odds, (n,), of each peak being a vertebra."""
    seen = np.clip(candidates.vertebra_log_odds, -settings.vertebra_limit, settings.vertebra_limit)
    return settings.heat_slope * (candidates.heat - settings.heat_middle) + seen


def step_weights(candidates: Candidates, settings: ChainSettings) -> np.ndarray:
    """Weigh every step from one candidate to another.

    Parameters
    ----------
    candidates : Candidates
        From the top down.
    settings : ChainSettings
        What they are weighed with.

    Returns
    -------
    np.ndarray, (scales, n, n)
        From upper (row) to lower (column), whether the step passes over a vertebra or not; -inf where the
        lower is not below.
    """
    points = candidates.points_mm
    between = points[None] - points[:, None]
    distance = np.linalg.norm(between, axis=2)
    below = between[..., 2] < -1e-6
    tilt = np.degrees(np.arccos(np.clip(-between[..., 2] / np.maximum(distance, 1e-6), -1, 1)))
    angle = -((tilt / settings.tilt_degrees) ** 2) / 2
    levels = _trusted_levels(candidates, settings)
    single, double = (
        _lengths(distance, levels, settings, skipped) + settings.levels * _agreement(levels, skipped)
        for skipped in (0, 1)
    )
    best = np.maximum(single, double + settings.skip) + angle
    return np.where(below, best, -np.inf)


def _trusted_levels(candidates: Candidates, settings: ChainSettings) -> np.ndarray:
    """Give the levels' probabilities, (n, 26), with the share that means nothing spread over all."""
    error = settings.level_error
    return (1 - error) * np.exp(candidates.levels_of_vertebra) + error / MAX_RANK


def _lengths(distance: np.ndarray, levels: np.ndarray, settings: ChainSettings, skipped: int) -> np.ndarray:
    """Give how well distances fit one step, or two, (scales, n, n): 0 at the expected distance."""
    expected = np.log(lengths_mm(skipped)) + np.log(settings.scales)[:, None]  # (scales, 26)
    logs = np.log(np.maximum(distance, 1e-6))[None, ..., None]
    misfit = (logs - expected[:, None, None]) / typical_steps().spread
    # A collapsed body, or a peak off its centre, must not break a chain: some steps spread wider.
    usual, odd = -(misfit**2) / 2, np.log(ODD_STEPS) - (misfit / ODD_SPREAD) ** 2 / 2
    return logsumexp(np.logaddexp(usual, odd) + np.log(levels)[None, :, None, :], axis=3)


def lengths_mm(skipped: int) -> np.ndarray:
    """Give the typical distance (26,) from a level to the next one, or with one vertebra between them."""
    mean = typical_steps().mean_mm
    return mean + np.append(mean[1:], mean[-1]) if skipped else mean


def _agreement(levels: np.ndarray, skipped: int) -> np.ndarray:
    """Give the log-ratio, (n, n), of the levels following one another against being independent."""
    return np.log(MAX_RANK * levels @ followers(skipped) @ levels.T)


@functools.cache
def followers(skipped: int) -> np.ndarray:
    """Give the probability (26, 26) that a level follows another, with so many between them."""
    rates = np.linalg.matrix_power(following_rates(), skipped + 1)
    # Below the last level nothing is known; a small share everywhere keeps logarithms finite.
    return 0.98 * rates + 0.02 / MAX_RANK


def _bends(points_mm: np.ndarray, settings: ChainSettings) -> np.ndarray:
    """Weigh the angle between a step and the one above it, (n, n, n) by top, middle, bottom."""
    between = points_mm[None] - points_mm[:, None]
    unit = between / np.maximum(np.linalg.norm(between, axis=2, keepdims=True), 1e-6)
    cosine = np.einsum("hic,ijc->hij", unit, unit)
    return -((np.degrees(np.arccos(np.clip(cosine, -1, 1))) / settings.bend_degrees) ** 2) / 2


def _best_chain(
    peaks: np.ndarray, steps: np.ndarray, bends: np.ndarray, settings: ChainSettings
) -> tuple[np.ndarray, int, float]:
    """Find the best chain: its places from the top down, the place of its scale, and its weight.

    `pair[s, i, j]` is the weight of the best chain that ends with the step from i to j. Candidates are
    ordered from the top down, so that all pairs that end at i are known before those that begin there.
    """
    count = len(peaks)
    pair = np.full(steps.shape, -np.inf)
    above = np.full(steps.shape, -1)
    for middle in range(count):
        onward = pair[:, :, middle, None] + bends[None, :, middle]  # (scales, top, bottom)
        top = onward.argmax(axis=1)
        best = np.take_along_axis(onward, top[:, None], axis=1)[:, 0]
        begins = peaks[middle] >= best
        above[:, middle] = np.where(begins, -1, top)
        pair[:, middle] = np.maximum(best, peaks[middle]) + steps[:, middle] + peaks
    return _trace(peaks, pair, above, settings)


def _trace(
    peaks: np.ndarray, pair: np.ndarray, above: np.ndarray, settings: ChainSettings
) -> tuple[np.ndarray, int, float]:
    prior = -((np.log(settings.scales) / settings.scale_spread) ** 2) / 2
    finished = pair + prior[:, None, None]
    scale, upper, lower = np.unravel_index(finished.argmax(), finished.shape)
    alone = int(peaks.argmax())
    if peaks[alone] >= finished[scale, upper, lower]:
        return np.array([alone]), int(prior.argmax()), float(peaks[alone])
    places = [int(lower), int(upper)]
    while (top := above[scale, places[-1], places[-2]]) >= 0:
        places.append(int(top))
    return np.array(places[::-1]), int(scale), float(finished[scale, upper, lower])


def sacrum_below(chain: Chain, sacra: Peaks, settings: ChainSettings = USUAL) -> Sacrum | None:
    """Find the first sacral body one step below a chain.

    Parameters
    ----------
    chain : Chain
        The vertebrae.
    sacra : Peaks
        Candidates for the centre of S1.
    settings : ChainSettings
        How heat counts.

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
    odds = settings.sacrum_slope * (sacra.heat - settings.sacrum_middle)
    odds = np.where(fits, odds - (np.log(steps) / SACRUM_SPREAD) ** 2 / 2, -np.inf)
    place, candidate = np.unravel_index(odds.argmax(), odds.shape)
    best = odds[place, candidate]
    return Sacrum(int(places[place]), float(expit(best))) if best > 0 else None
