"""The table of steps: how far the centre of each level's body lies from the next one below it.

`steps.csv` holds the mean in mm and the spread of the logarithm within a subject of typical stature. It comes
from published means, drawn anatomies and centroid files; `benchmarks/step_distances.py` computes it. Between
subjects all steps grow or shrink together: that is the body scale of whoever uses the table.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.verse.labels import LEVEL_NAMES


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps by rank, from C1 downwards.

    Attributes
    ----------
    mean_mm : np.ndarray, (26,)
        Distance of a level's body centre to the one below it; of the last lumbar one to that of S1.
    spread : np.ndarray, (26,)
        Standard deviation of the logarithm of the distance within a subject.
    """

    mean_mm: np.ndarray
    spread: np.ndarray


@functools.cache
def typical_steps() -> Steps:
    """Read the table.

    Returns
    -------
    Steps

    Raises
    ------
    ValueError
        If the table does not hold every level in its order.
    """
    path = Path(__file__).with_name("steps.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    levels = tuple(row["level"] for row in rows)
    if levels != LEVEL_NAMES:
        raise ValueError(f"{path}: expected the levels C1 to L6, found {levels}.")
    return Steps(*(np.array([float(row[name]) for row in rows]) for name in ("mean_mm", "spread")))
