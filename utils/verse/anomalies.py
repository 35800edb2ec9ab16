"""Anomalies of the levels of a spine, and how often VerSe has them.

Source of the counts: Sekuboyina et al., Medical Image Analysis 73 (2021) 102166.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.verse.labels import code_of_name

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
