"""Where the steps of `utils/localisation/steps.csv` come from: distances of neighbouring body centres.

Three sources meet, with a subject's stature divided out of each:

- the published means, rounded (`PUBLISHED_MM`; compare Busscher et al., European Spine Journal 19 (2010)
  1104), with the weight of ten subjects;
- drawn anatomies of `utils.synthetic.phantom` (after Panjabi et al., Spine 1991 and 1992), with the weight
  of five: they show how much a step varies within a subject;
- centroid files of VerSe, one subject each. A file is scaled to the published means first.

The spread is that of the logarithm of a step within one subject. It is at least 10 %, since a peak is half a
voxel off now and then, and at least 16 % from C7 to T5, where bodies of a bent upper chest are 15 to 18 mm
apart.

Reads centroid files and the masks beside them; writes the table. Half a minute:

    python -m benchmarks.step_distances ../shared/data/VerSe19
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from utils.imaging.centroids import read_centroids
from utils.imaging.nifti import read_mask
from utils.synthetic.phantom.anatomy import draw_anatomy
from utils.verse.cases import index_cases
from utils.verse.labels import LEVEL_NAMES, MAX_RANK, rank_of_code

TABLE = Path(__file__).parents[1] / "utils" / "localisation" / "steps.csv"
PUBLISHED_MM = np.array(
    (16, *[17] * 5, 18, 20, 21, 21, 22, 22, 23, 24, 25, 26, 27, 29, 31, 32, 33, 35, 36, 36, 35, 34), float
)
PUBLISHED_WEIGHT, DRAWN_WEIGHT, DRAWN = 10.0, 5.0, 200
LEAST_SPREAD, LEAST_UPPER_CHEST, UPPER_CHEST = 0.1, 0.16, ("C7", "T1", "T2", "T3", "T4", "T5")


def steps_of(codes: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Give the distance from each level to the next one below it, (26,), NaN where there is none."""
    steps = np.full(MAX_RANK, np.nan)
    ranks = [rank_of_code(code) for code in codes]
    for upper, distance in enumerate(np.linalg.norm(np.diff(points_mm, axis=0), axis=1)):
        steps[ranks[upper] - 1] = distance
    return steps


def drawn_logs(count: int) -> np.ndarray:
    """Give the logarithms of the steps of drawn subjects over the published ones, stature divided out."""
    drawn = [draw_anatomy(np.random.default_rng(seed)) for seed in range(count)]
    steps = [steps_of([v.code for v in one.vertebrae], one.body_centres()) / one.stature for one in drawn]
    return np.log(np.array(steps) / PUBLISHED_MM)


def measured_logs(tree: Path) -> np.ndarray:
    """Give those of the centroid files of a VerSe tree, (subjects, 26), each scaled to the published."""
    found = []
    for case in index_cases(tree):
        if case.centroids is not None and case.mask is not None:
            centroids = read_centroids(case.centroids, read_mask(case.mask).grid)
            found.append(np.log(steps_of(centroids.codes, centroids.points_mm) / PUBLISHED_MM))
    logs = np.array(found).reshape(-1, MAX_RANK)
    return logs - np.nanmedian(logs, axis=1, keepdims=True)


def table_of(drawn: np.ndarray, measured: np.ndarray) -> list[tuple[str, float, float]]:
    """Give level, mean step in mm, and spread of its logarithm, from the top down."""
    known = np.isfinite(drawn).any(axis=0)  # nobody drawn has a step below L6
    total, spread = np.nansum(measured, axis=0), np.full(MAX_RANK, LEAST_SPREAD)
    total[known] += DRAWN_WEIGHT * np.nanmean(drawn[:, known], axis=0)
    spread[known] = np.maximum(np.nanstd(drawn[:, known], axis=0), LEAST_SPREAD)
    weight = PUBLISHED_WEIGHT + DRAWN_WEIGHT * known + np.isfinite(measured).sum(axis=0)
    upper = np.isin(LEVEL_NAMES, UPPER_CHEST)
    spread[upper] = np.maximum(spread[upper], LEAST_UPPER_CHEST)
    means = PUBLISHED_MM * np.exp(total / weight)
    return [(name, round(m, 1), round(s, 3)) for name, m, s in zip(LEVEL_NAMES, means, spread)]


def main(tree: Path) -> None:
    """Compute the table from a VerSe tree, and write it."""
    rows = table_of(drawn_logs(DRAWN), measured_logs(tree))
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("level", "mean_mm", "spread"), *rows])
    print(f"{TABLE}: {len(rows)} levels")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
