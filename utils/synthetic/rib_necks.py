"""The necks of ribs beside a thoracic vertebra that is known by its mask alone.

A rib begins at the body's upper end plate and runs in front of the transverse process. Masks of vertebrae do
not show it, and those that a program makes of ribs begin beside the tip of that process: images drawn without
necks would teach that all bone beside a body is vertebra. Places and sizes are those of LIDC-IDRI-0001 from
the transverse processes on, and of anatomy books before these.
"""

from __future__ import annotations

import itertools

import numpy as np

#: Half of what a rib measures across its way, and along the spine as a multiple of that.
_RADIUS_MM, _HEIGHT = (3.2, 4.6), 1.5
#: The same of the head that is cut off.
_HEAD_RADIUS_MM = 3.9
#: How far a place of a rib may lie from the usual one along each axis, mm (standard deviation).
_SPREAD_MM = 1.2
#: Part of the voxels behind the centre, those most to the side, that are the tip of a transverse process.
_TIP_PERCENT = 3.0
#: Voxels that a vertebra must have behind its centre and before it.
_LEAST = 50


def rib_necks(
    bone: np.ndarray, centre: np.ndarray, spacing_mm: np.ndarray, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw head, neck and first part of both ribs of a thoracic vertebra.

    Parameters
    ----------
    bone : np.ndarray of bool, (P, R, I)
        The vertebra.
    centre : np.ndarray of float, (3,)
        Its centre of mass, in voxels of `bone`.
    spacing_mm : np.ndarray of float, (3,)
        Size of a voxel, mm.
    rng : np.random.Generator
        Source of what differs from rib to rib.

    Returns
    -------
    list of (np.ndarray of int (3,), np.ndarray of bool)
        First voxel, counted from that of `bone`, and mask of each rib; they may reach into the vertebra. None
        where a mask shows no body or no arch.
    """
    ribs = []
    for side, wall, top, tip in _sides(bone, centre, spacing_mm):
        outward = np.array([1.0, side, 1.0])
        way = np.array(
            [
                [-6.0, side * (wall + 2), top],
                tip + outward * (-6, -7, -5),
                tip + outward * (-6, 4, -4),
                tip + outward * (-3, 16, -2),
                tip + outward * (-2, 40, 6),
            ]
        )
        way += rng.normal(0, _SPREAD_MM, way.shape)
        ribs.append(_tube(way / spacing_mm + centre, float(rng.uniform(*_RADIUS_MM)), spacing_mm))
    return ribs


def rib_heads(
    bone: np.ndarray, centre: np.ndarray, spacing_mm: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Give where head and neck of both ribs usually lie beside a thoracic vertebra, to cut them off it.

    Somewhat farther to the side than where `rib_necks` draws them, so that body and transverse process stay:
    places found by eye in three chests of LIDC-IDRI and CMB-CRC.

    Parameters and result are those of `rib_necks`.
    """
    heads = []
    for side, wall, top, tip in _sides(bone, centre, spacing_mm):
        outward = np.array([1.0, side, 1.0])
        head, end = np.array([-7.0, side * (wall + 3), top + 1]), tip + outward * (-9, 5, -3)
        neck = (head + end) / 2 + (2, -side, 0)
        way = np.array([head, neck, end, end + outward * (6, 8, 3)])
        heads.append(_tube(way / spacing_mm + centre, _HEAD_RADIUS_MM, spacing_mm))
    return heads


def _sides(
    bone: np.ndarray, centre: np.ndarray, spacing_mm: np.ndarray
) -> list[tuple[float, float, float, np.ndarray]]:
    """Find what a rib lies at, on either side: its sign along R, the body's wall and top, and the tip of the
    transverse process, mm from the centre. None where a mask shows no body or no arch."""
    points = (np.argwhere(bone) - centre) * spacing_mm
    body, arch = points[points[:, 0] < -4], points[points[:, 0] > 0]
    if min(len(body), len(arch)) < _LEAST:
        return []
    top = float(np.percentile(body[:, 2], 3))
    found = []
    for side in (-1.0, 1.0):
        beside = side * arch[:, 1]
        tip = arch[beside >= np.percentile(beside, 100 - _TIP_PERCENT)].mean(axis=0)
        found.append((side, float(np.percentile(side * body[:, 1], 98)), top, tip))
    return found


def _tube(way: np.ndarray, radius_mm: float, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fill a tube around a way through voxels; give its first voxel and its mask."""
    half = radius_mm * np.array([1, 1, _HEIGHT])
    low = np.floor(way.min(axis=0) - half / spacing_mm).astype(int)
    high = np.ceil(way.max(axis=0) + half / spacing_mm).astype(int) + 1
    scale = (spacing_mm / half).astype(np.float32)
    axes = [(np.arange(b, e, dtype=np.float32) * s) for b, e, s in zip(low, high, scale)]
    inside = np.zeros(high - low, bool)
    for first, second in itertools.pairwise(way.astype(np.float32) * scale):
        step = second - first
        away = [axis - place for axis, place in zip(np.ix_(*axes), first)]
        along = sum(part * s for part, s in zip(away, step)) / max(float(step @ step), 1e-6)
        along = np.clip(along, 0, 1)
        inside |= sum(np.square(part - along * s) for part, s in zip(away, step)) <= 1
    return low, inside
