"""Scans whose vertebrae are known, votes on them, and predictions of them, all made up."""

from pathlib import Path

import numpy as np

from experiments.real.facts import ScanFacts
from tests.localisation.label_problems import votes_of_levels
from utils.imaging.centroids import Centroids, write_centroids
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.localisation.chain import Votes
from utils.prediction.column import column_json
from utils.prediction.derivatives import CENTROIDS_SUFFIX, COLUMN_SUFFIX, MASK_SUFFIX, case_path
from utils.verse.labels import LEVEL_NAMES, code_of_name, rank_of_code

#: A grid of 2 mm whose first axis runs to the left.
AFFINE = np.array([[-2.0, 0, 0, 60], [0, 2, 0, -60], [0, 0, 2, -20], [0, 0, 0, 1]])
SHAPE = (60, 60, 100)
STEP_MM = 30.0


def place(number, *, x=0.0, z=0.0):
    """The body of place 0, 1, ... from the top, in mm, or a point beside it."""
    return np.array([x, 0.0, 150 - STEP_MM * number + z])


def facts(levels, *, name="some", edge=(), cut=(), anchors=("last rib",), labels="eye", patient=None):
    """A scan with a straight spine; bodies at the edge follow below."""
    codes = [code_of_name(level) for level in levels]
    below = {code_of_name(level): place(len(codes) + n) for n, level in enumerate(edge)}
    return ScanFacts(
        name=name,
        ct=Path(f"{name}_ct.nii.gz"),
        patient=patient or name,
        points_mm={code: place(n) for n, code in enumerate(codes)},
        cut=frozenset(code_of_name(level) for level in cut),
        edge_mm=below,
        sacrum_mm=None,
        labels=labels,
        anchors=frozenset(anchors),
        is_certain=True,
        others=(),
    )


def votes_for(levels, points_mm, *, temperature=1.0, certainty=0.9):
    """Votes that give a level a share, and all others the rest evenly."""
    ranks = [rank_of_code(code_of_name(level)) - 1 for level in levels]
    shares = np.full((len(levels), len(LEVEL_NAMES)), (1 - certainty) / (len(LEVEL_NAMES) - 1))
    shares[np.arange(len(levels)), ranks] = certainty
    ribs = np.array([0.98 if level.startswith("T") else 0.02 for level in levels])
    return Votes(
        votes_of_levels(np.log(shares)), ribs, np.array(points_mm, float).reshape(-1, 3), None, temperature
    )


def mask_with(boxes):
    """A mask with a cube of 14 mm around the point of every code."""
    data = np.zeros(SHAPE, np.uint8)
    for code, point in boxes.items():
        i, j, k = np.round(np.linalg.solve(AFFINE, [*point, 1])[:3]).astype(int)
        data[i - 3 : i + 4, j - 3 : j + 4, k - 3 : k + 4] = code
    return Volume(data, AFFINE)


def write_prediction(folder, key, boxes, votes=None):
    """What infer.py writes of a scan, as far as it is scored."""
    mask = mask_with(boxes)
    write_volume(case_path(folder, key, MASK_SUFFIX), mask)
    centroids = Centroids(np.array([*boxes], int), np.array([*boxes.values()], float).reshape(-1, 3))
    write_centroids(case_path(folder, key, CENTROIDS_SUFFIX), centroids, mask.grid)
    if votes is not None:
        places = range(len(boxes))
        case_path(folder, key, COLUMN_SUFFIX).write_text(column_json(votes, places, [*boxes]))
