"""The rib cage of a subject of the wide ranges: a rounded tube, and ribs, cartilages and sternum on its wall.

A section of the cage is a superellipse, flatter at the back than an ellipse: behind and beside the bodies
lies lung, and each rib runs backwards before it turns. A rib follows the wall and descends; its length along
the arc, from its head to its cartilage, is the drawn one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from utils.synthetic.phantom.anatomy import Anatomy, Habitus, Vertebra
from utils.synthetic.phantom.shapes import INFERIOR, RIGHT, SIDES, Plate, Solid

#: Exponent of the superellipses of cage and skin.
ROUNDNESS = 2.4
_LEVELS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14)
_HALF_DEPTHS = (32, 44, 58, 70, 80, 92, 100, 104, 102, 92)
_HALF_WIDTHS = (50, 66, 88, 102, 112, 123, 131, 134, 130, 122)
#: How far the cage's back lies behind the canal, by the level's number.
_BEHIND = ((0, 1, 2, 3, 5), (-5.0, -1.0, 4.0, 7.0, 10.0))
#: How far a rib descends on each mm of its way around the cage, by its number, and how far it begins from the
#: middle of its body, in heights of the body. Ribs spring off at the upper end plate, the last two lower.
#: Measured in the ribs of LIDC-IDRI-0001: from the neck to the lateral-most point rib 1 falls by 20 mm, rib 2
#: by 24, 4 by 40, 6 by 56, 8 by 72, 10 by 80.
_SLOPES = ((1, 2, 4, 6, 8, 10, 12), (0.42, 0.32, 0.34, 0.38, 0.44, 0.5, 0.52))
_NECKS = ((9, 11, 12), (-0.3, -0.1, 0.0))
_BAR_MM, _RIB_HALF_MM = 22.0, 2.6
#: Angle from the back at which the cartilages reach the sternum, radians.
_STERNUM = 2.95


@dataclass(frozen=True)
class Build(Habitus):
    """A habitus with the levels of organs.

    Attributes
    ----------
    organ_levels : mapping of str to float
        Where each of `ORGAN_LEVELS` lies along the spine, as a level's number: C7 0, T1 1, T12 12, L1 13.
    """

    organ_levels: Mapping[str, float]


def level_point(anatomy: Anatomy, number: float) -> np.ndarray:
    """Give the point of the spine's course, (3,), mm, at a level's number: C7 0, T1 1, T12 12, L1 13.

    The course is straight between body centres. T13 lies between T12 and L1 and has no number; an absent T12
    lies between its neighbours, for organs do not follow the count of the vertebrae.
    """
    first = {"C": -7, "T": 0, "L": 12}
    found = {first[v.name[0]] + int(v.name[1:]): v.origin for v in anatomy.vertebrae if v.name != "T13"}
    numbers, points = np.array([*found]), np.array([*found.values()])
    return np.array([np.interp(number, numbers, column) for column in points.T])


@dataclass(frozen=True, eq=False)
class Cage:
    """The cage's section at any height: by `heights` (n,) centre P, R, half depth, width (n, 4), mm."""

    heights: np.ndarray
    sections: np.ndarray

    def at(self, height: ArrayLike) -> np.ndarray:
        """Give centre P and R, half depth and half width at heights (n,), mm, shape (4, n)."""
        return np.array([np.interp(height, self.heights, column) for column in self.sections.T])

    def wall(self, angle: ArrayLike, height: ArrayLike, side: int, out_mm: float = 0.0) -> np.ndarray:
        """Give points of the wall, (n, 3), at angles from the back, `out_mm` outside it."""
        p, r, depth, width = self.at(height)
        cos, sin = np.cos(angle), np.sin(angle)
        away_p = np.sign(cos) * np.abs(cos) ** (2 / ROUNDNESS) * (depth + out_mm)
        away_r = np.abs(sin) ** (2 / ROUNDNESS) * (width + out_mm)
        return np.stack(np.broadcast_arrays(p + away_p, r + side * away_r, height), -1)


@lru_cache(maxsize=2)
def cage_of(anatomy: Anatomy) -> Cage:
    """Give the cage of a subject that has a habitus."""
    size = anatomy.stature * (0.5 + 0.5 * anatomy.girth)
    deeper, wider = anatomy.habitus.cage_scale
    rows = []
    for vertebra in anatomy.vertebrae:
        number = {"cervical": 0, "lumbar": 13, "thoracic": int(vertebra.name[1:])}[vertebra.region]
        depth = deeper * size * float(np.interp(number, _LEVELS, _HALF_DEPTHS))
        width = wider * size * float(np.interp(number, _LEVELS, _HALF_WIDTHS))
        behind = vertebra.size.depth / 2 + vertebra.size.canal_depth + np.interp(number, *_BEHIND)
        rows.append((vertebra.origin[0] + behind - depth, vertebra.origin[1], depth, width))
    return Cage(anatomy.body_centres()[:, 2], np.array(rows))


def rib_path(anatomy: Anatomy, vertebra: Vertebra, side: int) -> np.ndarray:
    """Give the course of a rib and its cartilage to the sternum, head first: points (n, 3), mm."""
    size, number = vertebra.size, _rib_number(vertebra)
    # The heads of ribs 2 to 10 lie at the disc above, the others on their own bodies.
    at = -0.5 if 1 < number < 11 and vertebra.region == "thoracic" else -0.15
    head = vertebra.world(size.depth / 2 - 4.5, side * (size.width / 2 + 2.6), at * size.height)
    neck = _neck(vertebra, side)
    arc = _arc(anatomy, vertebra, side)
    # A lumbar rib sits on the tip of the transverse process, a thoracic one begins at the body.
    return np.stack([neck, *arc] if vertebra.region == "lumbar" else [head, neck, *arc])


def _rib_number(vertebra: Vertebra) -> int:
    return {"cervical": 1, "lumbar": 12, "thoracic": int(vertebra.name[1:])}[vertebra.region]


def _neck(vertebra: Vertebra, side: int) -> np.ndarray:
    """Where a rib meets the transverse process, which reaches less far back the higher it lies."""
    size, number = vertebra.size, _rib_number(vertebra)
    back = size.depth / 2 + np.interp(number, (1, 3), (0.5, 0.8)) * size.canal_depth - 4
    beside = side * (size.transverse_span / 2 - 3)
    return vertebra.world(back, beside, np.interp(number, *_NECKS) * size.height)


def _arc(anatomy: Anatomy, vertebra: Vertebra, side: int) -> np.ndarray:
    # A rib goes on from its neck, which a kyphosis lifts over its body.
    cage, start, number = cage_of(anatomy), _neck(vertebra, side)[2], _rib_number(vertebra)
    slope = anatomy.habitus.rib_slope * float(np.interp(number, *_SLOPES))
    _, _, _, width = cage.at(start)
    begin = np.arcsin(min((vertebra.size.transverse_span / 2 + 8) / width, 0.95) ** (ROUNDNESS / 2))
    angles = np.linspace(begin, _STERNUM, 40)
    level = cage.wall(angles, np.full(40, start), side)
    ways = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(level, axis=0), axis=1))])
    return cage.wall(angles, start + slope * ways, side)


def cut_path(path: np.ndarray, first_mm: float, last_mm: float) -> np.ndarray:
    """Give the piece of a path (n, 3) between two lengths along it, in bars of about `_BAR_MM`."""
    ways = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    last_mm = min(last_mm, ways[-1])
    if last_mm <= first_mm:
        return np.empty((0, 3))
    steps = np.linspace(first_mm, last_mm, int((last_mm - first_mm) / _BAR_MM) + 2)
    corners = ways[(ways > first_mm) & (ways < min(last_mm, 60.0))]  # neck and angle turn sharply
    steps = np.union1d(steps, corners)
    return np.stack([np.interp(steps, ways, path[:, k]) for k in range(3)], -1)


def wide_rib_solids(anatomy: Anatomy, vertebra: Vertebra) -> list[Solid]:
    """Both ribs of a vertebra, each as a chain of flat bars whose ends lie its length apart."""
    lengths = anatomy.habitus.ribs_mm.get(vertebra.code, (0.0, 0.0))
    thick = _RIB_HALF_MM * anatomy.stature
    solids = []
    # The first rib lies flat, the second leans, the others stand on their edge.
    upright = float(np.interp(_rib_number(vertebra), (1, 2, 3), (0.25, 0.7, 1.0)))
    for side, length in zip(SIDES, lengths):
        # The rounded ends of the bars are part of the length.
        path = cut_path(rib_path(anatomy, vertebra, side), thick, length - thick)
        for k, (a, b) in enumerate(pairwise(path)):
            wide = 1.2 if k < 1 else 2.8
            outward = np.cross(b - a, INFERIOR) / np.linalg.norm(b - a)
            down = upright * np.array([0.25, 0.1, 1.0]) + (1 - upright) * outward
            solids.append(Solid((Plate(a, b, (thick, thick), down, (wide, wide)),)))
    return solids


def cartilages(anatomy: Anatomy) -> list[Plate]:
    """Give the cartilages of the ribs 1 to 7, from the bone's end to the sternum."""
    plates = []
    for vertebra in anatomy.vertebrae:
        if vertebra.region == "thoracic" and int(vertebra.name[1:]) <= 7:
            for side, length in zip(SIDES, anatomy.habitus.ribs_mm.get(vertebra.code, ())):
                path = cut_path(rib_path(anatomy, vertebra, side), length, 1e4)
                plates += [Plate(a, b, (4.5, 4.5), INFERIOR, (1.5, 1.5)) for a, b in pairwise(path)]
    return plates


def girdle_solids(anatomy: Anatomy) -> list[Solid]:
    """Sternum, scapulae, clavicles and the upper arm bones."""
    levels, cage, s = anatomy.habitus.organ_levels, cage_of(anatomy), anatomy.stature
    top, low = (level_point(anatomy, levels[name])[2] for name in ("sternum", "xiphoid"))
    front = [cage.wall(np.pi, np.array(h), 1) for h in (top, (top + low) / 2, low)]
    plates = [
        Plate(front[0], front[1], (5 * s, 4 * s), RIGHT, (18 * s, 12 * s)),
        Plate(front[1], front[2], (4 * s, 4 * s), RIGHT, (14 * s, 12 * s)),
    ]
    for side in SIDES:
        plates += _shoulder(anatomy, cage, side, front[0])
    return [Solid((plate,)) for plate in plates]


def shoulder_joint(anatomy: Anatomy, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the centre of the head of the upper arm bone, and the way to the elbow, mm."""
    s, up = anatomy.stature, anatomy.habitus.arms == "up"
    middle = level_point(anatomy, anatomy.habitus.organ_levels["shoulder"] + (0 if up else 1))
    joint = middle + np.array([-25.0, side * (140 if up else 165), -20 if up else 5]) * s
    way = {"up": (-30, side * 40, -260), "down": (20, side * 35, 280), "away": (-60, side * 260, 0)}
    return joint, np.array(way[anatomy.habitus.arms], float) * s


def _shoulder(anatomy: Anatomy, cage: Cage, side: int, notch: np.ndarray) -> list[Plate]:
    s, (joint, way) = anatomy.stature, shoulder_joint(anatomy, side)
    tip = anatomy.habitus.organ_levels["scapula"]
    high, low = (level_point(anatomy, number)[2] for number in (tip - 4.8, tip))
    inner, outer = (cage.wall(angle, high, side, 14 * s) for angle in (0.55, 1.05))
    low = cage.wall(0.75, low, side, 14 * s)
    socket = joint - np.array([-4, side * 26, 0]) * s
    across = outer - inner
    wide = float(np.linalg.norm(across)) / 2
    clavicle = notch + np.array([0, side * 22 * s, -8]), joint + np.array([0, -side * 12, -30 * s])
    return [
        Plate((inner + outer) / 2, low, (1.6 * s, 2 * s), across, (wide, 4.0)),
        Plate(inner, socket + np.array([12 * s, 0, -10]), (2.2 * s, 4 * s), INFERIOR, (4, 6)),
        Plate(outer, socket, (4 * s, 8 * s), INFERIOR, (6, 10)),
        Plate(*clavicle, (5 * s, 5 * s), RIGHT),
        Plate(joint, joint + 0.12 * way, (23 * s, 15 * s), RIGHT),
        Plate(joint + 0.1 * way, joint + way, (11 * s, 11 * s), RIGHT),
    ]
