"""Candidates for the vertebrae of a scan: peaks of the heat of the whole scan, and what lies around each.

Networks come in as functions, so nothing here loads TensorFlow. The localiser gives the heat, tile by tile:
tiles overlap, and count less towards their faces, where the network sees less. A candidate begins as a local
maximum of the heat. The labelling network, shown a patch around it, tells where the body's centre lies; there
it is asked what it sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.special import expit, log_softmax, logsumexp

from utils.imaging.crops import crop, overlap
from utils.imaging.grids import transform_points
from utils.imaging.intensities import LOWEST_HU, normalise_hu
from utils.imaging.volume import Volume
from utils.verse.labels import MAX_RANK

#: From a CT in [-1, 1], (P, R, I), to its outputs (P, R, I, channels).
PredictTile = Callable[[np.ndarray], np.ndarray]
#: Channels of a tile: heat of the bodies and of the first sacral body.
BODY, SACRUM = 0, 1
#: Edges of tiles are multiples of this, as every level of the network halves them. One tile holds the trunk
#: of a large man at 3 mm, 48 cm deep and wide, and 58 cm of his length.
MULTIPLE, MOST_VOXELS = 16, (160, 160, 192)
#: Voxels that two tiles share at least, and the weight of a face beside that of the middle.
OVERLAP, LEAST_WEIGHT = 24, 0.05
#: Two peaks nearer than this are one: bodies of the upper chest are at least 15 mm apart.
LEAST_APART_MM = 6.0
#: The same of the centres that peaks lead to; they are nearer to one another where they are one body's.
CENTRES_APART_MM = 9.0
#: So often a peak is moved: where the way to a centre is long, the first one leads near it, the next to it.
MOVES = 2
#: A whole spine has at most 25 vertebrae; three times as many candidates leave room for false ones.
MOST_PEAKS = 80
#: Smoothing before the search, in voxels: enough to break plateaus and the ripple between tiles.
SMOOTHING_VOXELS = 0.6
#: A fraction of the peak below which heat counts as none when the top is fitted.
_LEAST_FRACTION = 1e-3


@dataclass(frozen=True, eq=False)
class LocalisedScan:
    """What the localiser says of a scan.

    Attributes
    ----------
    heat : Volume of float32, (P, R, I)
        Heat of the bodies' centres.
    sacrum : Volume of float32, (P, R, I)
        Heat of the centre of the first sacral body.
    """

    heat: Volume
    sacrum: Volume


@dataclass(frozen=True, eq=False)
class Peaks:
    """Local maxima of a heat, the highest first.

    Attributes
    ----------
    points_voxels : np.ndarray of float64, (n, 3)
        Where they are, in voxel indices with fractions.
    affine : np.ndarray of float64, (4, 4)
        Voxel index to world, in mm, RAS+.
    heat : np.ndarray of float64, (n,)
        How high they are.
    """

    points_voxels: np.ndarray
    affine: np.ndarray
    heat: np.ndarray

    def __len__(self) -> int:
        """Number of peaks."""
        return len(self.heat)

    @property
    def points_mm(self) -> np.ndarray:
        """The points in the world, mm, RAS+, (n, 3)."""
        return transform_points(self.points_voxels, self.affine, np.eye(4))


@dataclass(frozen=True, eq=False)
class Candidates(Peaks):
    """Peaks of the vertebral heat, with what the labelling network says of the place.

    Attributes
    ----------
    level_log_probabilities : np.ndarray of float64, (n, 27)
        Natural logarithms, by rank, place 0 for no vertebra.
    rib_probability : np.ndarray of float64, (n,)
        That a vertebra there carries a rib of at least 40 mm, on either side.
    """

    level_log_probabilities: np.ndarray
    rib_probability: np.ndarray

    @property
    def vertebra_log_odds(self) -> np.ndarray:
        """Logarithm of the odds of a vertebra against none, (n,), both as frequent before the look."""
        levels = self.level_log_probabilities
        return logsumexp(levels[:, 1:], axis=1) - np.log(MAX_RANK) - levels[:, 0]

    @property
    def levels_of_vertebra(self) -> np.ndarray:
        """Log-probabilities of the levels, (n, 26), if there is a vertebra."""
        return log_softmax(self.level_log_probabilities[:, 1:], axis=1)


@dataclass(frozen=True, eq=False)
class Reading:
    """What the labelling network says of points.

    Attributes
    ----------
    level_logits : np.ndarray of float64, (n, 27)
        Of no vertebra's body, then of the levels by rank.
    rib_logits : np.ndarray of float64, (n,)
        Of a rib of at least 40 mm.
    ways_voxels : np.ndarray of float64, (n, 3)
        From each point to the centre of the body that it lies in.
    """

    level_logits: np.ndarray
    rib_logits: np.ndarray
    ways_voxels: np.ndarray

    def __post_init__(self) -> None:
        """Raise a `ValueError` if a number is not finite."""
        parts = (self.level_logits, self.rib_logits, self.ways_voxels)
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("Expected finite logits, received NaN or infinite numbers from the network.")


#: From a CT in HU, (P, R, I), and points in it, (n, 3) in voxels, to what lies around each.
PredictLabels = Callable[[Volume, np.ndarray], Reading]


# Tiles ---------------------------------------------------------------------------------------------


def localise(
    ct: Volume, predict: PredictTile, *, outside: str, most: Sequence[int] = MOST_VOXELS
) -> LocalisedScan:
    """Give what the network says of every voxel of a scan.

    Parameters
    ----------
    ct : Volume
        CT in HU at the network's spacing, axes (P, R, I).
    predict : callable
        The localiser.
    outside : str
        What it was shown beyond the scan, "air" or "edge".
    most : sequence of int, (3,)
        Largest tile, of multiples of `MULTIPLE`; most scans are one.

    Returns
    -------
    LocalisedScan

    Raises
    ------
    ValueError
        If the network gives a number that is not finite.
    """
    shape = [min(-(-size // MULTIPLE) * MULTIPLE, limit) for size, limit in zip(ct.shape, most)]
    heat, weights = np.zeros((*ct.shape, 2), np.float32), np.zeros(ct.shape, np.float32)
    window = _window(shape)
    for begin in itertools.product(*(_begins(size, edge) for size, edge in zip(ct.shape, shape))):
        tile = crop(ct, begin, shape, fill=_fill(outside)).data
        found = np.asarray(predict(normalise_hu(tile)), np.float32)
        if not np.isfinite(found).all():
            raise ValueError("Expected finite heat, received NaN or infinite numbers from the network.")
        in_scan, in_tile = overlap(begin, shape, ct.shape)
        weights[in_scan] += window[in_tile]
        heat[in_scan] += window[in_tile][..., None] * found[in_tile]
    heat /= weights[..., None]
    bodies, sacrum = (Volume(np.ascontiguousarray(heat[..., c]), ct.affine) for c in (BODY, SACRUM))
    return LocalisedScan(bodies, sacrum)


def _fill(outside: str) -> float | Literal["edge"]:
    return float(LOWEST_HU) if outside == "air" else "edge"


def _begins(size: int, edge: int) -> list[int]:
    """Give where tiles of an edge begin on an axis, evenly apart."""
    if size <= edge:
        return [0]
    count = int(np.ceil((size - OVERLAP) / (edge - OVERLAP)))
    return np.linspace(0, size - edge, count).astype(int).tolist()


def _window(shape: Sequence[int]) -> np.ndarray:
    """Give the weights of a tile's voxels: 1 in the middle, falling over the overlap."""
    window = np.ones((), np.float32)
    for size in shape:
        depth = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
        window = window[..., None] * np.clip(depth / OVERLAP, LEAST_WEIGHT, 1).astype(np.float32)
    return window


# Peaks ---------------------------------------------------------------------------------------------


def find_peaks(
    heat: Volume, *, least: float, apart_mm: float = LEAST_APART_MM, most: int = MOST_PEAKS
) -> Peaks:
    """Find the local maxima of a heat, among the 26 neighbours of each voxel.

    Parameters
    ----------
    heat : Volume of float
        One channel; its affine may have any axes.
    least : float
        Heat that a peak has at least.
    apart_mm : float
        A peak nearer than this to a higher one is left out.
    most : int
        Number of peaks that are kept at most, the highest ones.

    Returns
    -------
    Peaks
        The place along each axis is the top of a parabola through the logarithms of three voxels, which is
        exact for a Gaussian.
    """
    data = np.asarray(heat.data, np.float32)
    smooth = ndimage.gaussian_filter(data, SMOOTHING_VOXELS, mode="nearest")
    is_peak = (smooth == ndimage.maximum_filter(smooth, 3, mode="nearest")) & (data >= least)
    voxels = np.argwhere(is_peak)
    voxels = voxels[np.argsort(-smooth[is_peak], kind="stable")]
    points = voxels + _offsets(smooth, voxels)
    world = transform_points(points, heat.affine, np.eye(4))
    kept = _far_from_higher(world, apart_mm, most)
    return Peaks(points[kept], heat.affine, data[tuple(voxels[kept].T)].astype(np.float64))


def read_candidates(
    scan: LocalisedScan, ct: Volume, labels: PredictLabels, *, least: float
) -> tuple[Candidates, Peaks, Peaks]:
    """Find vertebrae and sacra in what the networks say of a scan.

    Parameters
    ----------
    scan : LocalisedScan
        The heat.
    ct : Volume
        The scan itself, in HU.
    labels : callable
        The labelling network; it is asked at the peaks, and where it says that the centres lie.
    least : float
        Heat that a peak has at least.

    Returns
    -------
    vertebrae : Candidates
        The highest first.
    sacra : Peaks
        Of the centre of S1; a scan with one sacrum may have several candidates.
    bodies : Peaks
        Of the vertebral heat, where no candidate was moved yet.

    Raises
    ------
    ValueError
        If the labelling network gives a number that is not finite.
    """
    bodies, sacra = find_peaks(scan.heat, least=least), find_peaks(scan.sacrum, least=least)
    peaks = bodies
    for _ in range(MOVES):
        peaks = moved_peaks(peaks, _asked(labels, ct, peaks).ways_voxels, ct.shape)
    said = _asked(labels, ct, peaks)
    levels, ribs = log_softmax(said.level_logits, axis=1), expit(said.rib_logits)
    return Candidates(peaks.points_voxels, peaks.affine, peaks.heat, levels, ribs), sacra, bodies


def _asked(labels: PredictLabels, ct: Volume, peaks: Peaks) -> Reading:
    """Ask what lies around peaks; nobody is asked if there is none."""
    if len(peaks):
        return labels(ct, peaks.points_voxels)
    return Reading(np.zeros((0, 1 + MAX_RANK)), np.zeros(0), np.zeros((0, 3)))


def moved_peaks(
    peaks: Peaks, ways_voxels: np.ndarray, shape: Sequence[int], *, apart_mm: float = CENTRES_APART_MM
) -> Peaks:
    """Move peaks, and leave one of those that come together, none of those that leave the scan.

    Parameters
    ----------
    peaks : Peaks
        The highest first.
    ways_voxels : np.ndarray, (n, 3)
        How far each is moved.
    shape : sequence of int, (3,)
        Shape of the scan.
    apart_mm : float
        A peak that comes nearer than this to a higher one is left out.

    Returns
    -------
    Peaks
    """
    moved = peaks.points_voxels + ways_voxels
    inside = np.all((moved > -0.5) & (moved < np.array(shape) - 0.5), axis=1)
    points, heat = moved[inside], peaks.heat[inside]
    kept = _far_from_higher(transform_points(points, peaks.affine, np.eye(4)), apart_mm, len(points))
    return Peaks(points[kept], peaks.affine, heat[kept])


def halfway_to_peaks(
    points_mm: np.ndarray, peaks_mm: np.ndarray, *, apart_mm: float = CENTRES_APART_MM
) -> np.ndarray:
    """Move centres half the way to the peak that is theirs: two networks say where a body is.

    Parameters
    ----------
    points_mm : np.ndarray, (n, 3)
        Where the labelling network leads.
    peaks_mm : np.ndarray, (m, 3)
        Peaks of the heat.
    apart_mm : float
        A peak is a centre's own if it is the nearest to it, if no other centre is nearer to the peak, and if
        it is nearer than this.

    Returns
    -------
    np.ndarray, (n, 3)
        Centres without a peak stay.
    """
    if not len(points_mm) or not len(peaks_mm):
        return points_mm
    away = np.linalg.norm(points_mm[:, None] - peaks_mm, axis=2)
    nearest, places = away.argmin(axis=1), np.arange(len(points_mm))
    is_own = (away.min(axis=1) < apart_mm) & (away.argmin(axis=0)[nearest] == places)
    return np.where(is_own[:, None], (points_mm + peaks_mm[nearest]) / 2, points_mm)


def patches_at(ct: Volume, points_voxels: np.ndarray, *, edge: int, outside: str) -> np.ndarray:
    """Cut a cube around each point, interpolated linearly, so that the point is its middle.

    Parameters
    ----------
    ct : Volume
        CT in HU, axes (P, R, I).
    points_voxels : np.ndarray, (n, 3)
        Voxel indices with fractions; they may lie beyond the border.
    edge : int
        Edge of the cubes.
    outside : str
        What they show beyond the scan, "air" or "edge".

    Returns
    -------
    np.ndarray of float32, (n, edge, edge, edge)
        In HU.
    """
    begins = np.asarray(points_voxels, float) - (edge - 1) / 2
    patches = np.zeros((len(begins), *(edge,) * 3), np.float32)
    for patch, begin in zip(patches, begins):
        first = np.floor(begin)
        part = (begin - first).astype(np.float32)
        block = crop(ct, first, (edge + 1,) * 3, fill=_fill(outside)).data.astype(np.float32)
        for share in part:  # along the first axis, which then becomes the last
            block = np.moveaxis((1 - share) * block[:-1] + share * block[1:], 0, -1)
        patch[:] = block
    return patches


def _offsets(heat: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Give how far the top of a parabola lies from each voxel along each axis, at most half a voxel."""
    offsets = np.zeros(voxels.shape)
    middle = heat[tuple(voxels.T)]
    for axis in range(3):
        sides = []
        for step in (-1, 1):
            beside = voxels.copy()
            beside[:, axis] = np.clip(beside[:, axis] + step, 0, heat.shape[axis] - 1)
            sides.append(np.log(np.maximum(heat[tuple(beside.T)] / middle, _LEAST_FRACTION)))
        bend = sides[0] + sides[1]
        shift = (sides[0] - sides[1]) / (2 * np.minimum(bend, -1e-9))
        offsets[:, axis] = np.where(bend < -1e-9, np.clip(shift, -0.5, 0.5), 0.0)
    return offsets


def _far_from_higher(points_mm: np.ndarray, apart_mm: float, most: int) -> list[int]:
    """Give the places of the points, ordered by falling height, that lie apart from all kept before them."""
    kept: list[int] = []
    for place, point in enumerate(points_mm):
        if len(kept) == most:
            break
        if not kept or np.linalg.norm(points_mm[kept] - point, axis=1).min() >= apart_mm:
            kept.append(place)
    return kept
