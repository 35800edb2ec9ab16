"""A whole scan under the network that finds and names vertebrae, tile by tile.

The network comes in as a function, so nothing here loads TensorFlow. Tiles overlap, and count less towards
their faces, where the network sees less.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from utils.imaging.crops import crop
from utils.imaging.intensities import LOWEST_HU, normalise_hu
from utils.imaging.volume import Volume

#: From a CT in [-1, 1], (P, R, I), to its outputs (P, R, I, channels).
PredictTile = Callable[[np.ndarray], np.ndarray]
#: Channels: heat of the bodies' centres, of the first sacral body, logit of a rib, and then levels.
BODY, SACRUM, RIB, LEVELS = 0, 1, 2, 3
#: Edges of tiles are multiples of this, as every level of the network halves them. One tile holds the trunk
#: of a large man at 3 mm, 48 cm deep and wide, and 58 cm of his length.
MULTIPLE, MOST_VOXELS = 16, (160, 160, 192)
#: Voxels that two tiles share at least, and the weight of a face beside that of the middle.
OVERLAP, LEAST_WEIGHT = 24, 0.05
#: Logits of ribs and levels change slowly: they are kept for every second voxel.
STEP = 2


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
