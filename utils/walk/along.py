"""The walk along known centres: one vertebra for every centre, from the top down.

The segmentation network sees a patch of the CT around a centre, and the *memory*, the vertebrae found so far,
and gives the vertebra whose centre that is. The centres say how many vertebrae there are and where each lies,
so nothing is searched for: every centre gets a patch, and what is new in its answer belongs to it. Nothing
given to one vertebra is given to another.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from utils.imaging.centroids import BEHIND_MM, MIDDLE_MM
from utils.imaging.volume import Volume
from utils.walk.look import PatchReader, Sight, field_of, is_cut, pieces, vertebra_of, without_specks
from utils.walk.records import CALLS_USED_UP, FoundVertebra, PredictPatch, WalkResult, WalkSettings

#: What is looked for lies within this distance of where the centre of mass should be.
NEAR_MM = 12.0
#: A vertebra holds a centre by its voxels within this distance of it.
BALL_MM = 8.0
#: Most centres, as they are numbered in bytes.
MOST_CENTRES = 255


def walk_along(
    ct: Volume, centres: np.ndarray, predict: PredictPatch, *, settings: WalkSettings
) -> WalkResult:
    """Segment the vertebra at every centre, from the top down.

    Parameters
    ----------
    ct : Volume
        CT in the working grid, oriented (P, R, I), in [-1, 1].
    centres : np.ndarray, (n, 3)
        Centres of the vertebral bodies, voxel indices of `ct`, from the top down.
    predict : callable
        A segmentation network that is told the place of its target.
    settings : WalkSettings
        How to walk.

    Returns
    -------
    WalkResult
        The vertebrae from the top down, each with the index of its centre, and the centres without one.

    Raises
    ------
    ValueError
        If `centres` has another shape or too many rows, or if `predict` gives another shape than the
        patch's, or NaN.
    """
    centres = np.asarray(centres, float)
    if centres.ndim != 2 or centres.shape[1] != 3:
        raise ValueError(f"Expected centres of shape (n, 3), received {centres.shape}.")
    if len(centres) > MOST_CENTRES:
        raise ValueError(f"Expected at most {MOST_CENTRES} centres, received {len(centres)}.")
    reader, field = PatchReader(ct, predict, settings), field_of(ct)
    masses = centres_of_mass(centres, settings.spacing_mm)
    labels = Volume(np.zeros(ct.shape, np.uint8), ct.affine)
    found: list[FoundVertebra] = []
    for index in range(len(centres)):
        before = reader.calls
        vertebra = _look(masses[index], reader, labels.data, settings)
        if vertebra is None or not _holds(vertebra, index, centres, settings):
            reader.note(f"centre {index + 1}: no vertebra")
            continue
        facts = {"index": index, "converged": True, "partial": is_cut(vertebra, field)}
        found.append(dataclasses.replace(vertebra, calls=reader.calls - before, **facts))
        labels.data[vertebra.box][vertebra.mask] = len(found)
        reader.note(f"centre {index + 1}: accepted", vertebra)
    given = {vertebra.index for vertebra in found}
    missed = tuple(index for index in range(len(centres)) if index not in given)
    remarks = (CALLS_USED_UP,) if reader.exhausted else ()
    return WalkResult(tuple(found), labels, reader.calls, remarks, tuple(reader.trace), missed)


def centres_of_mass(centres: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Tell where the centre of mass of every vertebra should lie: behind its body, square to the spine.

    Parameters
    ----------
    centres : np.ndarray, (n, 3)
        Centres of the bodies, voxels of a (P, R, I) grid, from the top down.
    spacing_mm : float
        Edge of a voxel.

    Returns
    -------
    np.ndarray, (n, 3)
        Voxels.
    """
    backwards = np.array([1.0, 0.0, 0.0])
    down = np.gradient(centres, axis=0) if len(centres) > 1 else np.zeros_like(centres)
    # Where centres have no direction, one alone or two in one place, a vertebra leans nowhere.
    squares = np.maximum((down**2).sum(axis=1, keepdims=True), 1e-12)
    behind = backwards - down[:, :1] * down / squares
    behind /= np.maximum(np.linalg.norm(behind, axis=1, keepdims=True), 1e-12)
    return centres + BEHIND_MM / spacing_mm * behind


def _holds(vertebra: FoundVertebra, index: int, centres: np.ndarray, settings: WalkSettings) -> bool:
    """Whether a vertebra holds its centre, and more of what is around it than of any other's.

    Else one that is not seen would be given the next one, the next one the one below, and so on.
    """
    voxels = np.argwhere(vertebra.mask) + vertebra.begin
    near = BALL_MM / settings.spacing_mm
    counts = [np.count_nonzero(((voxels - centre) ** 2).sum(axis=1) <= near**2) for centre in centres]
    return 0 < counts[index] == max(counts)


def _look(
    point: np.ndarray, reader: PatchReader, labels: np.ndarray, settings: WalkSettings
) -> FoundVertebra | None:
    """Ask the network for the vertebra about a point; None if there is too little of it."""
    sight = reader.read(point + np.divide(MIDDLE_MM, settings.spacing_mm), labels)
    if sight is None:
        return None
    piece = _piece_near(point, sight, without_specks(sight.mask & (labels[sight.box] == 0)), settings)
    if not piece.any() or np.count_nonzero(piece) * settings.spacing_mm**3 < settings.min_volume_mm3:
        return None
    return vertebra_of(sight.begin, sight.probability, piece, settings.probability_threshold)


def _piece_near(point: np.ndarray, sight: Sight, mask: np.ndarray, settings: WalkSettings) -> np.ndarray:
    """Give the piece of a mask that has most of the ball around a point, else the largest."""
    numbers, sizes = pieces(mask)
    axes = np.ix_(*(np.arange(size) + first for size, first in zip(mask.shape, sight.begin)))
    squares = sum((axis - own) ** 2 for axis, own in zip(axes, point))
    near = np.bincount(numbers[squares <= (NEAR_MM / settings.spacing_mm) ** 2], minlength=len(sizes))
    near[0] = 0
    return (numbers == np.argmax(near if near.any() else sizes)) & mask
