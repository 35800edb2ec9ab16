"""The column of vertebrae in a scan: where each is, which it is, and whether there is one at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from utils.imaging.volume import Volume
from utils.localisation.anchors import Anchors, Sacrum, sacrum_below
from utils.localisation.chain import Chain, chain_of, take
from utils.localisation.identify import Identification, identify, votes_of_levels
from utils.localisation.peaks import Candidates, read_candidates
from utils.localisation.tiles import PredictTile, localise

#: Peaks of less heat are noise; the chain decides about all others.
LEAST_HEAT = 0.1


@dataclass(frozen=True, eq=False)
class Votes:
    """What the network says of a column, all that its levels are decided from.

    Attributes
    ----------
    level_log_probabilities : np.ndarray, (n, 26)
        Natural logarithms, by rank from C1, from the top down.
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


def find_column(ct: Volume, predict: PredictTile, *, outside: str) -> Column:
    """Find the vertebrae of a scan.

    Parameters
    ----------
    ct, predict, outside
        As `utils.localisation.tiles.localise` takes them.

    Returns
    -------
    Column
    """
    vertebrae, sacra = read_candidates(localise(ct, predict, outside=outside), least=LEAST_HEAT)
    chain = chain_of(vertebrae)
    return Column(chain, sacrum_below(chain, sacra))


def number_column(votes: Votes, *, fixed: Mapping[int, int] | None = None) -> Identification:
    """Decide the levels of a column.

    Parameters
    ----------
    votes : Votes
        What the network says of it.
    fixed : mapping of int to int, optional
        Codes that are known, by place from 0.

    Returns
    -------
    Identification

    Raises
    ------
    ValueError
        If no sequence has the fixed levels.
    """
    return identify(
        votes_of_levels(votes.level_log_probabilities),
        votes.centres_mm,
        temperature=votes.temperature,
        fixed=fixed,
        anchors=Anchors(votes.rib_probability, votes.sacrum),
    )
