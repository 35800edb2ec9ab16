"""A small column of blocks that stands for a spine, and networks that answer as trained, or badly."""

from __future__ import annotations

import zlib

import numpy as np
from scipy import ndimage

from utils.imaging.centroids import BEHIND_MM, MIDDLE_MM
from utils.imaging.crops import crop
from utils.imaging.volume import Volume
from utils.walk.look import largest_piece

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


class Scripted:
    """A network that gives masks as they are scripted, told by nothing but the CT and the memory of a patch.

    Its CT (`coded_ct`) holds the number of every voxel, so a patch tells where it lies. The target is the
    top-most vertebra of which the memory holds at most half of what the patch shows. It refuses to be asked
    the same twice.

    Parameters
    ----------
    ranks : Volume
        The true ranks on the working grid.
    moved : tuple of int
        Voxels (P, R, I) that every prediction is displaced by.
    dropped : set of int
        Ranks that are not predicted, as if they did not exist.
    silent : set of int
        Ranks that nothing is predicted for while they are the target.
    leak : float
        Share of the next vertebra, from its top, that is predicted with each.
    noisy : bool
        Whether a fifth of the voxels at the surface flip, with specks all over the patch.
    """

    def __init__(self, ranks, *, moved=(0, 0, 0), dropped=(), silent=(), leak=0.0, noisy=False):
        data = np.where(np.isin(ranks.data, list(dropped)), 0, ranks.data).astype(np.uint8)
        self.own = Volume(ndimage.shift(data, moved, order=0), ranks.affine)
        self.silent, self.leak, self.noisy = set(silent), leak, noisy
        self.ranks = np.unique(self.own.data[self.own.data > 0])
        self.parts = {rank: self._part_of_next(rank) for rank in self.ranks} if leak else {}
        self.asked = []

    def coded_ct(self) -> Volume:
        """The number of every voxel; exact in single precision up to 2 ** 24 voxels."""
        shape = self.own.shape
        return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), self.own.affine)

    def mask(self, rank: int) -> np.ndarray:
        """What is scripted for a vertebra, without the noise."""
        return (self.own.data == rank) | self.parts.get(rank, False)

    def given(self, rank: int) -> np.ndarray:
        """What is scripted for a vertebra, with some noise where there is noise, without its specks."""
        return largest_piece(self._noisy(self.mask(rank), int(rank))) if self.noisy else self.mask(rank)

    def __call__(self, ct: np.ndarray, memory: np.ndarray) -> np.ndarray:
        key = zlib.crc32(ct.tobytes() + memory.tobytes())
        assert key not in self.asked, "the same patch with the same memory"
        self.asked.append(key)
        begin = self._begin(ct)
        shown = crop(self.own, begin, ct.shape, fill=0).data
        voxels = np.bincount(shown.ravel(), minlength=256)
        known = np.bincount(shown[memory > 0], minlength=256)
        left = [rank for rank in self.ranks if voxels[rank] and known[rank] <= voxels[rank] / 2]
        if not left or left[0] in self.silent:
            return np.zeros(ct.shape, np.float32)
        target = shown == left[0]
        if left[0] in self.parts:
            target |= crop(Volume(self.parts[left[0]], self.own.affine), begin, ct.shape, fill=0).data
        return (self._noisy(target, key) if self.noisy else target).astype(np.float32)

    def _begin(self, ct: np.ndarray) -> list[int]:
        # Inside the scan, the voxel's index grows with its place in the patch; at the padded edges it rests.
        indices = np.unravel_index(np.rint(ct).astype(int), self.own.shape)
        lines = (indices[0][:, 0, 0], indices[1][0, :, 0], indices[2][0, 0])
        offsets = [np.unique(line - np.arange(len(line)), return_counts=True) for line in lines]
        return [int(values[np.argmax(counts)]) for values, counts in offsets]

    def _part_of_next(self, rank: int) -> np.ndarray:
        below = self.ranks[self.ranks > rank]
        part = self.own.data == (below[0] if below.size else 0)
        if not below.size:
            return np.zeros_like(part)
        voxels = np.cumsum(part.sum(axis=(0, 1)))
        part[:, :, np.searchsorted(voxels, self.leak * voxels[-1]) + 1 :] = False
        return part

    @staticmethod
    def _noisy(mask: np.ndarray, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        surface = ndimage.binary_dilation(mask) ^ ndimage.binary_erosion(mask)
        return (mask ^ (surface & (rng.random(mask.shape) < 0.2))) | (rng.random(mask.shape) < 0.01)
