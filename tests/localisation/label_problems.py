"""Label problems drawn from stated rates: a true column, the votes on it, and the anchors in view.

Everything is drawn as `identify` supposes it to be: levels start and follow at VerSe's rates, vertebrae are
missed and false ones found at given rates, gaps spread as stated, and a vote is the likelihood of one look
whose confusion is known. So the probabilities that come out must mean what they say.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from utils.localisation.chain import Votes
from utils.localisation.evidence import Anchors, ColumnVotes, Rates, Sacrum, rib_rates
from utils.localisation.steps import typical_steps
from utils.verse.anomalies import following_rates, level_rates
from utils.verse.labels import LEVEL_NAMES, MAX_RANK, code_of_rank

RATES = Rates(missed=0.04, no_vertebra=0.03)
#: Spread of the level that a look at a vertebra gives; looks in the middle of the chest are the vaguest.
SPREADS = np.interp(np.arange(MAX_RANK), [0, 2, 8, 15, 20, 25], [0.5, 1.4, 2.0, 2.4, 1.6, 1.2])


@dataclass(frozen=True, eq=False)
class Problem:
    """A column and its true codes, 0 for what is no vertebra."""

    column: ColumnVotes
    codes: tuple[int, ...]


def confusion():
    """Probability (26, 26) of the level seen (column) of a vertebra of each level (row)."""
    ranks = np.arange(MAX_RANK)
    table = np.exp(-((ranks[None] - ranks[:, None]) ** 2) / (2 * SPREADS[:, None] ** 2)) + 0.002
    return table / table.sum(axis=1, keepdims=True)


def draw_problem(rng, *, anchored=None, claim=1.0):
    """One problem; `claim` multiplies the votes, which say too much where it is over 1."""
    anchored = rng.uniform() < 0.5 if anchored is None else anchored
    ranks, ended = _draw_levels(rng, int(rng.integers(3, 13)))
    found, points = _search(rng, ranks)
    anchors = _anchors(rng, found, ended) if anchored else Anchors(used=(), rates=RATES)
    column = ColumnVotes(_votes(rng, found) * claim, points, anchors)
    return Problem(column, tuple(code_of_rank(rank) if rank else 0 for rank in found))


def _draw_levels(rng, count):
    """Ranks from a start that is as likely anywhere, and whether the spine ended there."""
    start = level_rates() / level_rates().sum()
    ranks = [int(rng.choice(MAX_RANK, p=start)) + 1]
    while len(ranks) < count:
        following = following_rates()[ranks[-1] - 1]
        if rng.uniform() >= following.sum():
            return ranks, True
        ranks.append(int(rng.choice(MAX_RANK, p=following / following.sum())) + 1)
    return ranks, False


def _search(rng, ranks):
    """Ranks and centres of what is found of a column: some are missed, and false ones lie between."""
    steps = typical_steps().mean_mm[np.array(ranks) - 1] * (1 + rng.normal(0, 0.08, len(ranks)))
    depths = np.concatenate([[0], np.cumsum(steps)[:-1]])
    inner = np.isin(np.arange(len(ranks)), [0, len(ranks) - 1], invert=True)
    kept = ~(inner & (rng.uniform(size=len(ranks)) < RATES.missed))
    found = list(zip(depths[kept], np.array(ranks)[kept].tolist()))
    for (upper, _), (lower, _) in pairwise(tuple(found)):
        if rng.uniform() < RATES.no_vertebra:
            found.append((upper + rng.uniform(0.4, 0.6) * (lower - upper), 0))
    found.sort()
    return [rank for _, rank in found], np.array([[0, 0, -depth] for depth, _ in found])


def _votes(rng, found):
    """The likelihoods of the level seen, scaled to sum to one over levels; a false one shows any level."""
    table = confusion()
    chances = [table[rank - 1] if rank else np.full(MAX_RANK, 1 / MAX_RANK) for rank in found]
    seen = [int(rng.choice(MAX_RANK, p=chance)) for chance in chances]
    likelihood = table[:, seen].T
    return votes_of_levels(np.log(likelihood / likelihood.sum(axis=1, keepdims=True)))


def _anchors(rng, found, ended):
    """Ribs read with the stated error; the sacrum where the spine ends, and now and then by mistake."""
    has = np.array([rng.uniform() < (rib_rates()[rank - 1] if rank else 0.5) for rank in found])
    read = np.where(rng.uniform(size=len(found)) < RATES.rib, ~has, has).astype(float)
    wrong = rng.uniform() < RATES.sacrum
    sacrum = Sacrum(len(found) - 1, 1.0) if ended != wrong else None
    return Anchors(rib_probability=read, sacrum=sacrum, rates=RATES)


def votes_of_levels(levels, none=-np.log(MAX_RANK)):
    """Votes (n, 27) of those on levels (n, 26), without a word on whether there is a vertebra, or with one."""
    return np.column_stack([np.broadcast_to(none, len(levels)), levels])


def votes_for(names, *, strength=3.0, step_mm=25.0, **keywords):
    """Votes for levels a step apart; "?" is a vertebra that the network knows nothing of."""
    logits = np.zeros((len(names), MAX_RANK))
    for place, name in enumerate(names):
        if name != "?":
            logits[place, LEVEL_NAMES.index(name)] = strength
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    centres = np.array([[3.0, -7.0, 300 - step_mm * place] for place in range(len(names))])
    parts = {"rib_probability": np.full(len(names), np.nan), **keywords}
    return Votes(votes_of_levels(logits), parts.pop("rib_probability"), centres, **parts)
