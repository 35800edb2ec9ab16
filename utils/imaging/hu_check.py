"""Whether the numbers of a scan are Hounsfield units, told by air, fat, muscle and bone together.

`hu_histograms.csv` holds how the voxels of scans, and of parts of scans, are typically shared out on the
scale, fitted on drawn scans by `experiments/fit_hu_histograms.py`. The numbers of a scan are compared with it
as they are, and as what they would be if they had gone wrong in one of the known ways (`MEANINGS`). What
explains them best is what they are.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.imaging.intensities import LOWEST_HU

#: Bins of the table, in HU: the lower end of the first, the upper end of the last, and their width.
LOWEST_BIN_HU, HIGHEST_BIN_HU, BIN_HU = -1100, 3100, 20
BINS = (HIGHEST_BIN_HU - LOWEST_BIN_HU) // BIN_HU
#: By how many nats a voxel another meaning must explain the numbers better. Of the scans that the table was
#: fitted on, none as it is reached -.5 and no part of one .3; none with wrong numbers fell below .85.
DOUBT_NATS = 0.5
#: Share of voxels that no histogram explains, such as metal and overshoot, and their density for each unit.
_STRANGE_SHARE, _STRANGE_DENSITY = 1e-3, 1e-4
#: Voxels that are looked at; the fewest that say something; and the fewest different numbers, drawings having
#: fewer.
_MOST_VOXELS, _FEWEST_VOXELS, _FEWEST_NUMBERS = 1_000_000, 100, 30
#: Cortical bone reaches it in HU; tissue does where numbers are stored with 1024 added.
_STORED_BONE = 1500
#: The lowest number of a scan is padding or clipped air if it has this share; a scan has two such at most.
_PADDED_SHARE, _MOST_PADDINGS = 0.005, 2

_TOO_MUCH, _TOO_LITTLE = "probably not rescaled to HU", "probably rescaled twice, so no HU"
_GREY, _NOT_NEGATIVE = "probably grey levels and no HU", "none of them negative, so probably no HU"


class Meaning(NamedTuple):
    """What numbers may be: HU = `gain` * number + `offset`. `words` say it; "" for Hounsfield units."""

    words: str
    gain: float
    offset: float


#: Hounsfield units first, then the ways in which numbers go wrong.
MEANINGS = (
    Meaning("", 1, 0),
    *(Meaning(_TOO_MUCH, 1, offset) for offset in (-1000, -1024)),
    *(Meaning(_TOO_LITTLE, 1, offset) for offset in (1000, 1024)),
    Meaning("probably ten times HU", 0.1, 0),
    Meaning("probably ten times HU, not rescaled", 0.1, -1024),
    Meaning("probably a tenth of HU", 10, 0),
    # Windows from white to black of 4095, 2000 and 400 HU: in 8 bits, from 0 to 1, from -1 to 1.
    *(
        Meaning(_GREY, width / units, lowest - start * width / units)
        for width, lowest in ((4095, -1024), (2000, -1000), (400, -160))
        for start, units in ((0, 255), (0, 1), (-1, 2))
    ),
)


def wrong_numbers(data: np.ndarray) -> str:
    """Say what is probably wrong with the numbers of a scan.

    Parameters
    ----------
    data : np.ndarray
        Its voxels, finite numbers.

    Returns
    -------
    str
        "" if they look like Hounsfield units, or if so few voxels are no padding that nothing can be told.
        Numbers none of which is negative, padding aside, never look like them.
    """
    values, counts = telling_numbers(data)
    if counts.sum() < _FEWEST_VOXELS:
        return ""
    if len(values) >= _FEWEST_NUMBERS:
        fits = fits_of(values, counts)
        best = int(fits.argmax())
        if fits[best] > fits[0] + DOUBT_NATS:
            return MEANINGS[best].words
    # Most scans are known by the voxels that were looked at.
    if any(np.any((each > LOWEST_HU) & (each < 0)) for each in (values, data)):
        return ""
    # Air and fat are negative, and no part of a body is without fat.
    return _TOO_MUCH if values[-1] > _STORED_BONE else _NOT_NEGATIVE


def telling_numbers(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give numbers of evenly spread voxels and how often each is there, without padding and clipped air.

    Parameters
    ----------
    data : np.ndarray
        A scan.

    Returns
    -------
    values, counts : np.ndarray of float64 and of int, (n,)
        From the lowest number up.
    """
    step = max(1, int(np.ceil(np.cbrt(data.size / _MOST_VOXELS))))
    values, counts = np.unique(data[(slice(None, None, step),) * data.ndim], return_counts=True)
    begin, enough = 0, _PADDED_SHARE * counts.sum()
    while begin < min(_MOST_PADDINGS, len(counts)) and counts[begin] >= enough:
        begin += 1
    return values[begin:].astype(np.float64), counts[begin:]


def fits_of(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Give how well each of `MEANINGS` explains numbers.

    Parameters
    ----------
    values, counts : np.ndarray, (n,)
        Numbers, and how often each is there.

    Returns
    -------
    np.ndarray of float64, (len(MEANINGS),)
        Mean log density of a number, in nats, under the typical histogram that fits best.
    """
    return np.array([_fit(values, counts, meaning) for meaning in MEANINGS])


def _fit(values: np.ndarray, counts: np.ndarray, meaning: Meaning) -> float:
    of_scans, of_parts = typical_histograms()
    # Parts, such as bone alone, explain almost anything: a scan with wrong numbers is an ordinary one.
    typical = of_scans if meaning.words else np.concatenate([of_scans, of_parts])
    shares = histogram(meaning.gain * values + meaning.offset, counts)
    strange = _STRANGE_SHARE * _STRANGE_DENSITY
    # The density of a number is that of its HU times the gain.
    density = (1 - _STRANGE_SHARE) * meaning.gain / BIN_HU * typical + strange
    return float((np.log(density) @ shares).max() + (1 - shares.sum()) * np.log(strange))


def histogram(hu: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Give the share of each bin of the table, (`BINS`,); what lies beyond them is missing in their sum."""
    places = np.floor((hu - LOWEST_BIN_HU) / BIN_HU)
    inside = (places >= 0) & (places < BINS)
    return np.bincount(places[inside].astype(np.intp), counts[inside], BINS) / counts.sum()


@functools.cache
def typical_histograms() -> tuple[np.ndarray, np.ndarray]:
    """Read the table.

    Returns
    -------
    of_scans, of_parts : np.ndarray of float64, (n, `BINS`)
        Shares of the bins, the sum of each 1: of whole scans and the surroundings of the spine; of bone alone
        and of any box.

    Raises
    ------
    ValueError
        If the table has other bins.
    """
    path = Path(__file__).with_name("hu_histograms.csv")
    with path.open(newline="") as file:
        (_, *names), *rows = csv.reader(file)
    shares = np.array(rows, np.float64)[:, 1:].T
    if shares.shape[1] != BINS:
        raise ValueError(f"{path}: expected {BINS} bins, found {shares.shape[1]}.")
    shares /= shares.sum(axis=1, keepdims=True)
    is_scan = np.array([name.startswith("scan") for name in names])
    return shares[is_scan], shares[~is_scan]
