"""A small column of blocks that stands for a spine, and networks that answer as trained."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from utils.imaging.centroids import BEHIND_MM, MIDDLE_MM
from utils.imaging.volume import Volume

# P to the back (-y), R to the right (+x), I down (-z), 2 mm.
AFFINE = np.array([[0, 2, 0, 11], [-2, 0, 0, -7], [0, 0, -2, 300], [0, 0, 0, 1]], float)
CENTRES = np.array([[20, 22, 14 + 10 * i] for i in range(6)], float)
SHAPE = (40, 44, 84)
BLOCK_VOXELS = 9 * 11 * 7
SPACING_MM = 2.0
#: The blocks have no arch: a body's centre is given so far in front of the middle of its block.
BODIES = CENTRES - [BEHIND_MM / SPACING_MM, 0, 0]
#: HU of rank 1 is 200, of rank 2 is 400, and so on; the background is air.
HU_A_RANK = 200


def column() -> Volume:
    """Six blocks of 9 x 11 x 7 voxels (5544 mm3), ranks 1 to 6, with the centres `CENTRES`."""
    ranks = np.zeros(SHAPE, np.float32)
    for rank, (p, r, i) in enumerate(CENTRES.astype(int), start=1):
        ranks[p - 4 : p + 5, r - 5 : r + 6, i - 3 : i + 4] = rank
    return Volume(ranks, AFFINE)


def column_ct() -> Volume:
    """The column as a CT, int16 HU."""
    ranks = column().data
    return Volume(np.where(ranks > 0, ranks * HU_A_RANK, -1000).astype(np.int16), AFFINE)


def heat_of(points_voxels: np.ndarray, shape: tuple[int, ...], affine: np.ndarray, *, sigma: float) -> Volume:
    """The training target of the heatmap network."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    heat = sum(np.exp(-((((grid - point) / sigma) ** 2).sum(-1)) / 2) for point in points_voxels)
    return Volume((heat / heat.max()).astype(np.float32), affine)


def oracle(ct: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """What the network is trained to give: the top-most vertebra of the patch that is not in the memory.

    The "CT" holds the ranks themselves, so that a pure function of the patch can know the answer.
    """
    ranks = ct.astype(np.uint8)
    present = np.bincount(ranks.ravel(), minlength=256) > 0
    found = np.bincount(ranks[memory > 0], minlength=256) > 0
    left = np.flatnonzero(present & ~found)
    left = left[left > 0]
    return (ranks == left[0]).astype(np.float32) if left.size else np.zeros(ct.shape, np.float32)


def told(ct, memory):
    """What the network is trained to give: the vertebra whose centre of mass lies nearest to its place.

    The "CT" holds the ranks themselves, so that a pure function of the patch can know the answer.
    """
    ranks = np.rint(ct).astype(int)
    present = [rank for rank in np.unique(ranks) if rank]
    if not present:
        return np.zeros(ct.shape, np.float32)
    place = np.array(ct.shape) / 2 - np.divide(MIDDLE_MM, SPACING_MM)
    middles = np.array(ndimage.center_of_mass(ranks > 0, ranks, present))
    return (ranks == present[np.argmin(np.linalg.norm(middles - place, axis=1))]).astype(np.float32)
