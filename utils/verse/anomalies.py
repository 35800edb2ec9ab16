"""Anomalies of the levels of a spine, and how often VerSe has them.

Source of the counts: Sekuboyina et al., Medical Image Analysis 73 (2021) 102166.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from utils.verse.labels import LEVEL_NAMES, MAX_RANK, code_of_name

#: Levels that most people do not have: their absence is no gap.
SUPERNUMERARY = ("T13", "L6")
T12_ABSENT = "T12 absent"
#: Scans of VerSe with an anomaly, of all that there are.
_SCANS, _COUNTS = 374, {"L6": 44, "T13": 18, T12_ABSENT: 6}
#: All anomalies, in the order of the tables, with their share of the scans.
ANOMALY_RATES = {name: count / _SCANS for name, count in _COUNTS.items()}
ANOMALIES = tuple(ANOMALY_RATES)
RATE_L6, RATE_T13, RATE_NO_T12 = (ANOMALY_RATES[name] for name in ("L6", "T13", T12_ABSENT))
_T11, _T12, _L1 = (code_of_name(name) for name in ("T11", "T12", "L1"))


def anomalies_of(codes: Sequence[int]) -> list[str]:
    """Name the anomalies of the levels of one spine.

    Parameters
    ----------
    codes : sequence of int
        VerSe labels.

    Returns
    -------
    list of str
        Of `ANOMALIES`. T12 counts as absent only between T11 and L1: elsewhere it may lie outside the scan.
    """
    found = [name for name in SUPERNUMERARY if code_of_name(name) in codes]
    if {_T11, _L1} <= set(codes) and _T12 not in codes:
        found.append(T12_ABSENT)
    return sorted(found)


@functools.cache
def level_rates() -> np.ndarray:
    """Give the share of spines that have each level, (26,)."""
    rates = np.ones(MAX_RANK)
    for name, rate in (("T12", 1 - RATE_NO_T12), ("T13", RATE_T13), ("L6", RATE_L6)):
        rates[LEVEL_NAMES.index(name)] = rate
    return rates


@functools.cache
def following_rates() -> np.ndarray:
    """Give the probability that a level (column) is the next one below another (row), (26, 26).

    From T11 on T12 or, where it is absent, L1; from T12 on L1 or T13; below L5 comes L6, or no vertebra.
    """
    following = np.diag(np.ones(MAX_RANK - 1), 1)
    t11, t12, t13, l1, l5, l6 = (LEVEL_NAMES.index(n) for n in ("T11", "T12", "T13", "L1", "L5", "L6"))
    following[t11, [t12, l1]] = 1 - RATE_NO_T12, RATE_NO_T12
    following[t12, [t13, l1]] = RATE_T13, 1 - RATE_T13
    following[l5, l6] = RATE_L6
    return following
