"""Candidates for the vertebrae of a scan: the whole scan under the network, and the peaks of its heat.

The network comes in as a function, so nothing here loads TensorFlow. Tiles overlap, and count less towards
their faces, where the network sees less. A candidate is a local maximum of the heat, with what the network
says of the vertebra there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import expit, log_softmax

from utils.imaging.crops import crop
from utils.imaging.grids import transform_points
from utils.imaging.intensities import LOWEST_HU, normalise_hu
from utils.imaging.volume import Volume

#: From a CT in [-1, 1], (P, R, I), to its outputs (P, R, I, channels).
PredictTile = Callable[[np.ndarray], np.ndarray]
#: Channels: heat of the bodies, heat of the first sacral body, logit of a rib, then those of levels.
BODY, SACRUM, RIB, LEVELS = 0, 1, 2, 3
#: Edges of tiles are multiples of this, as every level of the network halves them. One tile holds the trunk
#: of a large man at 3 mm, 48 cm deep and wide, and 58 cm of his length.
MULTIPLE, MOST_VOXELS = 16, (160, 160, 192)
#: Voxels that two tiles share at least, and the weight of a face beside that of the middle.
OVERLAP, LEAST_WEIGHT = 24, 0.05
#: Logits of ribs and levels change slowly: they are kept for every second voxel.
STEP = 2
#: Two peaks nearer than this are one: bodies of the upper chest are at least 15 mm apart.
LEAST_APART_MM = 6.0
#: A whole spine has at most 25 vertebrae; three times as many candidates leave room for false ones.
MOST_PEAKS = 80
#: Smoothing before the search, in voxels: enough to break plateaus and the ripple between tiles.
SMOOTHING_VOXELS = 0.6
#: A fraction of the peak below which heat counts as none when the top is fitted.
_LEAST_FRACTION = 1e-3


@dataclass(frozen=True, eq=False)
class LocalisedScan:
    """What the network says of a scan.

    Attributes
    ----------
    heat : Volume of float32, (P, R, I)
        Heat of the bodies' centres.
    sacrum : Volume of float32, (P, R, I)
        Heat of the centre of the first sacral body.
    logits : np.ndarray of float32, (P / 2, R / 2, I / 2, channels)
        Of a rib, then of the levels, for cubes of 2 voxels an edge.
    """

    heat: Volume
    sacrum: Volume
    logits: np.ndarray


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
    """Peaks of the vertebral heat, with what the network says of the vertebra there.

    Attributes
    ----------
    level_log_probabilities : np.ndarray of float64, (n, 26)
        Natural logarithms, by rank from C1.
    rib_probability : np.ndarray of float64, (n,)
        That it carries a rib of at least 40 mm, on either side.
    """

    level_log_probabilities: np.ndarray
    rib_probability: np.ndarray


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
        The network.
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
    fill = float(LOWEST_HU) if outside == "air" else "edge"
    shape = [min(-(-size // MULTIPLE) * MULTIPLE, limit) for size, limit in zip(ct.shape, most)]
    whole = tuple(size + size % STEP for size in ct.shape)
    heat, logits = np.zeros((*whole, LEVELS - 1), np.float32), None
    weights = np.zeros(whole, np.float32)
    window = _window(shape)
    for begin in itertools.product(*(_begins(size, edge) for size, edge in zip(whole, shape))):
        tile = crop(ct, begin, shape, fill=fill).data
        found = np.asarray(predict(normalise_hu(tile)), np.float32)
        if not np.isfinite(found).all():
            raise ValueError("Expected finite heat, received NaN or infinite numbers from the network.")
        if logits is None:
            logits = np.zeros((*(size // STEP for size in whole), found.shape[-1] - RIB), np.float32)
        here = tuple(slice(b, min(b + e, n)) for b, e, n in zip(begin, shape, whole))
        own = tuple(slice(0, s.stop - s.start) for s in here)
        weights[here] += window[own]
        heat[here] += window[own][..., None] * found[own][..., :RIB]
        coarse = tuple(slice(s.start // STEP, s.stop // STEP) for s in here)
        thinned = tuple(slice(None, s.stop, STEP) for s in own)
        logits[coarse] += window[thinned][..., None] * found[thinned][..., RIB:]
    heat /= weights[..., None]
    logits /= weights[::STEP, ::STEP, ::STEP, None]
    inside = tuple(slice(size) for size in ct.shape)
    bodies, sacrum = (Volume(np.ascontiguousarray(heat[inside][..., c]), ct.affine) for c in (BODY, SACRUM))
    return LocalisedScan(bodies, sacrum, logits)


def _begins(size: int, edge: int) -> list[int]:
    """Give where tiles of an edge begin on an axis, at even voxels, evenly apart."""
    if size <= edge:
        return [0]
    count = int(np.ceil((size - OVERLAP) / (edge - OVERLAP)))
    return (np.linspace(0, size - edge, count) // STEP * STEP).astype(int).tolist()


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


def read_candidates(scan: LocalisedScan, *, least: float) -> tuple[Candidates, Peaks]:
    """Find vertebrae and sacra in what the network says of a scan.

    Parameters
    ----------
    scan : LocalisedScan
        Heat, and the logits of ribs and levels.
    least : float
        Heat that a peak has at least.

    Returns
    -------
    vertebrae : Candidates
        Logits are interpolated linearly at the peaks, then turned into probabilities.
    sacra : Peaks
        Of the centre of S1; a scan with one sacrum may have several candidates.
    """
    peaks = find_peaks(scan.heat, least=least)
    logits = values_at(scan.logits, (peaks.points_voxels - (STEP - 1) / 2) / STEP)
    parts = (peaks.points_voxels, peaks.affine, peaks.heat)
    vertebrae = Candidates(*parts, log_softmax(logits[:, 1:], axis=1), expit(logits[:, 0]))
    return vertebrae, find_peaks(scan.sacrum, least=least)


def values_at(channels: np.ndarray, points_voxels: np.ndarray) -> np.ndarray:
    """Interpolate channels linearly at points.

    Parameters
    ----------
    channels : np.ndarray of float, (P, R, I, C)
        Values.
    points_voxels : np.ndarray, (n, 3)
        Voxel indices with fractions; beyond the border the values there hold.

    Returns
    -------
    np.ndarray of float64, (n, C)
    """
    points = np.clip(points_voxels, 0, np.array(channels.shape[:3]) - 1)
    low = np.floor(points).astype(int)
    high = np.minimum(low + 1, np.array(channels.shape[:3]) - 1)
    part = points - low
    total = np.zeros((len(points), channels.shape[3]))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        total += weight[:, None] * channels[tuple(np.where(corner, high, low).T)]
    return total


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
