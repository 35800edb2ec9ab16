"""How far votes on levels are trusted: a temperature, fitted on columns whose levels are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from utils.localisation.evidence import NO_VERTEBRA, ColumnVotes, emissions_of, log_likelihoods
from utils.localisation.identify import ColumnWeights, posterior, sequence_weight
from utils.verse.labels import rank_of_code

#: Range of temperatures, and the least log-probability of a true sequence that counts in fitting one.
TEMPERATURES, LEAST_LOG_PROBABILITY = (0.25, 20.0), -50.0


def true_log_probability(
    known: ColumnVotes,
    codes: Sequence[int],
    *,
    temperature: float,
    transitions: Mapping[tuple[int, int], np.ndarray] | None = None,
) -> float:
    """Give the log-probability of the true sequence of a column, its anchors heard.

    Parameters
    ----------
    known : ColumnVotes
        What is known of the column.
    codes : sequence of int
        The truth: VerSe's codes, 0 for what is no vertebra.
    temperature : float
        What the votes are divided by.
    transitions : mapping, optional
        Those of the column, where they are at hand: they do not change with the temperature.

    Returns
    -------
    float
        -inf for a sequence that the rules do not allow.
    """
    emissions = emissions_of(log_likelihoods(known, temperature), {}, known.rates.no_vertebra)
    column = ColumnWeights(emissions, known.transitions if transitions is None else transitions)
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
    transitions = [known.transitions for known in columns]

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        logs = [
            true_log_probability(known, codes, temperature=temperature, transitions=steps)
            for known, codes, steps in zip(columns, truths, transitions)
        ]
        # A sequence that the rules do not allow (L6 below T12, say) must not rule every temperature out.
        return -float(np.mean(np.maximum(logs, LEAST_LOG_PROBABILITY)))

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.02}).x))
