"""One vertebra as a solid in the body frame, and the facet joints it shares with its neighbours.

Nothing is drawn at random here. In a vertebra's own frame the origin is the centre of its body, and
coordinates are (posterior, right, inferior) in mm. The two halves of each facet joint are cut by one pair of
parallel planes, so that neighbours come as close as the joint space and never overlap there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from utils.synthetic.phantom.anatomy import Anatomy, Size, Vertebra
from utils.synthetic.phantom.shapes import INFERIOR, POSTERIOR, RIGHT, SIDES, Body, Cut, Plate, Solid


@lru_cache(maxsize=2)
def vertebra_solids(anatomy: Anatomy) -> tuple[tuple[int, Solid], ...]:
    """Every vertebra with its VerSe code, from C1 downwards."""
    joints = [facet_joints(anatomy, k) for k in range(len(anatomy.vertebrae))]
    above = [condyle_joints(anatomy.vertebrae[0]), *joints]
    return tuple((v.code, vertebra_solid(v, a, b)) for v, a, b in zip(anatomy.vertebrae, above, joints))


@dataclass(frozen=True)
class Joint:
    """One facet joint.

    Attributes
    ----------
    point : np.ndarray, shape (3,)
        Its middle, mm.
    normal : np.ndarray, shape (3,)
        Unit vector from the lower vertebra's face to the upper's.
    radius_mm, reach_mm : float
        Half thickness of the processes that meet in it, and how far around its middle neither crosses it.
    gap_mm : float
        Joint space.
    """

    point: np.ndarray
    normal: np.ndarray
    radius_mm: float
    reach_mm: float
    gap_mm: float

    def face(self, sign: int) -> np.ndarray:
        """A point on the face of the upper (+1) or lower (-1) vertebra."""
        return self.point + sign * self.normal * self.gap_mm / 2

    def cut(self, sign: int) -> Cut:
        """What the upper (+1) or lower (-1) vertebra has to leave to the other."""
        return Cut(self.face(sign), -sign * self.normal, self.reach_mm)


# Where the joint lies (depths of the canal behind the body; mm beside the canal), on which side of it the
# upper vertebra is (posterior, away from the middle, inferior), thickness of a process, reach of the cut.
_JOINTS = {
    "atlas": ((-0.45, 4.5), (0.0, -0.25, -1.0), (5.0, 8.5)),
    "cervical": ((0.3, 5.0), (0.7, 0.0, -0.7), (5.2, 7.0)),
    "thoracic": ((0.78, 2.5), (0.95, 0.0, -0.3), (4.2, 7.5)),
    "lumbar": ((0.68, 4.5), (0.6, -0.8, 0.0), (5.2, 10.0)),
}


def _joint_kind(upper: Vertebra) -> str:
    if upper.name == "C1":
        return "atlas"
    if upper.name == "C7":
        return "thoracic"
    return "lumbar" if upper.name in ("T12", "T13") or upper.region == "lumbar" else upper.region


def facet_joints(anatomy: Anatomy, k: int) -> tuple[Joint, ...]:
    """Right and left joint below the k-th vertebra; below the last one they are the sacrum's."""
    upper = anatomy.vertebrae[k]
    if k + 1 < len(anatomy.vertebrae):
        lower = anatomy.vertebrae[k + 1]
    else:
        lower = replace(upper, origin=anatomy.sacrum[0], rotation=anatomy.sacrum[1])
    kind = _joint_kind(upper)
    (depth, beside), normal, sizes = _JOINTS[kind]
    turn = upper.rotation + lower.rotation
    scale = lower.size.width / (45.0 if kind == "lumbar" else 30.0 if kind == "thoracic" else 19.0)
    found = []
    for side, gap in zip(SIDES, upper.facet_gap_mm):
        if kind == "atlas":
            ends = [lower.world(0.5, side * 15.5 * scale, -lower.size.height / 2 - 1.0)]
        else:
            ends = [_joint_end(v, sign, side, depth, beside * scale) for v, sign in ((upper, 1), (lower, -1))]
        direction = turn @ (np.array(normal) * (1, side, 1))
        small = float(np.clip(scale, 0.75, 1.25))
        direction = direction / np.linalg.norm(direction)
        found.append(Joint(np.mean(ends, axis=0), direction, sizes[0] * small, sizes[1] * small, gap))
    return tuple(found)


def _joint_end(vertebra: Vertebra, sign: int, side: int, depth: float, beside: float) -> np.ndarray:
    size = vertebra.size
    p = size.depth / 2 + depth * size.canal_depth
    return vertebra.world(p, side * (size.canal_width / 2 + beside), sign * (size.height + size.disc) / 2)


def condyle_joints(atlas: Vertebra) -> tuple[Joint, ...]:
    """Right and left joint between the skull, above, and C1."""
    scale = atlas.size.width / 12
    found = []
    for side in SIDES:
        normal = atlas.rotation @ np.array([0.1, -0.45 * side, -1.0])
        point = atlas.world(0, side * 15 * scale, -6 * scale)
        found.append(Joint(point, normal / np.linalg.norm(normal), 5.0, 9.0, 0.8))
    return tuple(found)


def vertebra_solid(vertebra: Vertebra, above: tuple[Joint, ...], below: tuple[Joint, ...]) -> Solid:
    """One vertebra from its body, arch, processes, and the facet joints it shares with its neighbours."""
    if vertebra.name == "C1":
        return _atlas_solid(vertebra, above, below)
    plates = [*_arch(vertebra), _spinous_process(vertebra), *_transverse_processes(vertebra)]
    plates += _spurs(vertebra)
    if vertebra.name == "C2":
        plates += _dens(vertebra)
    plates = [plate.placed(vertebra.origin, vertebra.rotation) for plate in plates]
    for side, upper_joint, lower_joint in zip(SIDES, above, below):
        if vertebra.name != "C2":
            plates.append(_process(vertebra, _pillar(vertebra, side), upper_joint, -1))
        plates.append(_process(vertebra, _pillar(vertebra, side, lower=True), lower_joint, +1))
    return Solid(
        tuple(plates),
        _body(vertebra),
        hollows=_hollows(vertebra),
        cuts=tuple(j.cut(-1) for j in above) + tuple(j.cut(+1) for j in below),
        blend_mm=2.5 if vertebra.region == "lumbar" else 1.8,
    )


def _body(vertebra: Vertebra) -> Body:
    size = vertebra.size
    waist = 0.05 if vertebra.region == "cervical" else 0.11
    return Body(vertebra.origin, vertebra.rotation, size.depth / 2, size.width / 2, size.heights, waist)


def _pillar(vertebra: Vertebra, side: int, *, lower: bool = False) -> np.ndarray:
    """Where the articular processes spring from: behind the pedicle, or lower, on the lamina's flank."""
    size = vertebra.size
    outward = size.pedicle_width / 2 + (2.5 if vertebra.region == "cervical" else 0.0)
    if lower:
        p, r, i = 0.75, size.canal_width / 2 + 0.4 * outward, 0.12
    else:
        p, r, i = 0.42, size.canal_width / 2 + outward, -0.14
    if vertebra.region == "cervical":
        p -= 0.25
    return np.array([size.depth / 2 + p * size.canal_depth, side * r, i * size.height])


#: Half thickness and half height of the laminae, and the height of a typical body, mm.
_LAMINAE = {"cervical": (2.5, 3.6, 13.5), "thoracic": (3.3, 6.0, 20.0), "lumbar": (3.3, 6.5, 27.0)}


def _arch(vertebra: Vertebra) -> list[Plate]:
    """Pedicles and laminae."""
    size, region = vertebra.size, vertebra.region
    thick, tall, typical = _LAMINAE[region]
    thick, tall = thick * vertebra.quirks.thickness, tall * size.height / typical
    half_width, half_height = size.pedicle_width / 2, size.pedicle_height / 2
    inward = 0.0 if region != "cervical" else 3.0
    beside = min(size.canal_width / 2 + half_width - inward, size.width / 2 - 2)
    wide = max(half_height - half_width * 0.8, 0.0), max(half_height - half_width, 0.0)
    plates = []
    for side in SIDES:
        upper, lower = _pillar(vertebra, side), _pillar(vertebra, side, lower=True)
        root = (size.depth / 2 - 4, side * beside, upper[2])
        corner, middle = _lamina(vertebra, side, thick)
        plates += [
            Plate(root, upper, (half_width, half_width), INFERIOR, wide),
            Plate(upper, lower, (half_width * 0.9, thick + 1), INFERIOR, (1.5, tall * 0.6)),
            Plate(lower, corner, (thick + 0.5, thick), INFERIOR, (tall * 0.9, tall)),
            Plate(corner, middle, (thick, thick), INFERIOR, (tall, tall)),
        ]
    return plates


def _lamina(vertebra: Vertebra, side: int, thick: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the lamina turns around the canal's corner, and where it meets the other one."""
    size = vertebra.size
    radius, wide = _canal_section(size)
    away = (radius + thick + 0.3) * np.sqrt(0.5)
    centre = size.depth / 2 + size.canal_depth / 2
    corner = np.array([centre + away, side * (wide + away), 0.16 * size.height])
    return corner, np.array([size.depth / 2 + size.canal_depth + thick + 0.5, 0, 0.22 * size.height])


def _canal_section(size: Size) -> tuple[float, float]:
    """The canal's section: half its depth, and half the straight part of its width."""
    radius = size.canal_depth / 2
    return radius, max(size.canal_width / 2 - radius, 0.0)


def _spurs(vertebra: Vertebra) -> list[Plate]:
    """Bone spurs that lean out over the disc from the body's rim."""
    size, found = vertebra.size, []
    for angle, end, length in vertebra.quirks.spurs:
        out = np.array([-np.cos(angle), np.sin(angle), 0])
        rim = out * (size.depth / 2, size.width / 2, 0) * 0.93 + (0, 0, end * (size.height / 2 - 2.5))
        tip = rim + out * length + (0, 0, end * vertebra.quirks.spur_rise * min(length, size.disc))
        found.append(Plate(rim, tip, (2.4, 1.3), np.cross(out, INFERIOR), (3.5, 1.5)))
    return found


def _spinous_process(vertebra: Vertebra) -> Plate:
    size = vertebra.size
    thick, tall = {"cervical": (2.4, 2.2), "thoracic": (2.9, 3.2), "lumbar": (3.2, 7.5)}[vertebra.region]
    thick *= vertebra.quirks.thickness
    root = np.array([size.depth / 2 + size.canal_depth + 3, 0, 0.25 * size.height])
    drop = np.radians(size.spinous_drop)
    turn = vertebra.quirks.spinous_turn
    way = np.array([np.cos(drop) * np.cos(turn), np.cos(drop) * np.sin(turn), np.sin(drop)])
    tip = root + size.spinous_length * way
    return Plate(root, tip, (thick, thick * 1.25), INFERIOR, (tall, tall * 0.9))


def _transverse_processes(vertebra: Vertebra) -> list[Plate]:
    size, region = vertebra.size, vertebra.region
    if region == "cervical":
        return [plate for side in SIDES for plate in _cervical_transverse(vertebra, side)]
    thoracic, lumbar = (1.05, (4.8, 4.6), (1.0, 1.5)), (0.75, (3.6, 2.8), (2.5, 3.0))
    back, radius, extent = thoracic if region == "thoracic" else lumbar
    plates = []
    for side, lift in zip(SIDES, vertebra.quirks.transverse_lift):
        root = _pillar(vertebra, side)
        p = size.depth / 2 + back * size.canal_depth
        tip = np.array([p, side * (size.transverse_span / 2 - 4), -0.16 * size.height])
        tip[2] -= np.tan(lift) * abs(tip[1] - root[1])
        plates.append(Plate(root, tip, radius, INFERIOR, extent))
    return plates


def _cervical_transverse(vertebra: Vertebra, side: int) -> list[Plate]:
    """The two bars around the hole of the vertebral artery, and the trough that joins them."""
    size = vertebra.size
    tip = side * (size.transverse_span / 2 - 3)
    front = (-0.1 * size.depth, side * (size.width / 2 - 1), 0)
    front_tip, back_tip = (0.1 * size.depth, tip * 0.92, 1.0), (0.45 * size.depth, tip, 2.0)
    return [
        Plate(front, front_tip, (2.0, 2.2), INFERIOR, (1.5, 1.0)),
        Plate(_pillar(vertebra, side), back_tip, (2.6, 2.4), INFERIOR, (1.0, 1.0)),
        Plate(front_tip, back_tip, (2.0, 2.0), INFERIOR),
    ]


def _hollows(vertebra: Vertebra) -> tuple[Plate, ...]:
    """The spinal canal, and in the neck the holes of the vertebral arteries."""
    size = vertebra.size
    centre = size.depth / 2 + size.canal_depth / 2
    radius, wide = _canal_section(size)
    tall = 1.6 * size.height
    found = [Plate((centre, 0, -tall), (centre, 0, tall), (radius, radius), RIGHT, (wide, wide))]
    if vertebra.region == "cervical":
        for side in SIDES:
            p, r = 0.22 * size.depth, side * (size.width / 2 + 4.4)
            found.append(Plate((p, r, -size.height), (p, r, size.height), (2.6, 2.6), RIGHT))
    return tuple(plate.placed(vertebra.origin, vertebra.rotation) for plate in found)


def _process(vertebra: Vertebra, root: np.ndarray, joint: Joint, sign: int) -> Plate:
    """An articular process from its root (own frame) to a joint; the joint's cut flattens its end."""
    start = vertebra.world(*root)
    end = joint.face(sign) + sign * joint.normal * joint.radius_mm * 0.55
    across = np.cross(joint.normal, end - start)
    return Plate(start, end, (joint.radius_mm * 0.85, joint.radius_mm), across, (0.5, joint.radius_mm * 0.5))


def _dens(axis: Vertebra) -> list[Plate]:
    """The dens of C2, and the shoulders that carry C1."""
    scale, top = axis.size.width / 18, -axis.size.height / 2
    dens = Plate((-1.0, 0, top + 4), (-1.5, 0, top - 14 * scale), (5.6 * scale, 4.4 * scale), RIGHT)
    beside = 15.5 * scale
    shoulders = [
        Plate((0, side * 5.0, top + 5), (1.0, side * beside, top + 3), (5.5, 5.0), POSTERIOR, (1.0, 3.0))
        for side in SIDES
    ]
    links = [
        Plate((1.0, side * 15.0 * scale, top + 4), _pillar(axis, side), (4.5, 4.0), INFERIOR, (1.0, 1.0))
        for side in SIDES
    ]
    return [dens, *shoulders, *links]


def _atlas_solid(atlas: Vertebra, above: tuple[Joint, ...], below: tuple[Joint, ...]) -> Solid:
    """C1: a ring of two arches and two lateral masses around the dens and the cord; it has no body."""
    s = atlas.size.width / 12
    half_span = atlas.size.transverse_span / 2
    plates = []
    for side in SIDES:
        mass = [np.array([1.0, side * 16 * s, i * s]) for i in (-3.5, 3.5)]
        front = (-10.5 * s, 0, 0), (-5 * s, side * 12.5 * s, 0)
        back = (9 * s, side * 19 * s, 0), (25 * s, side * 10 * s, 1.0)
        plates += [
            Plate(*front, (2.8 * s, 2.6 * s), INFERIOR, (2.5, 2.5)),
            Plate(*mass, (5.6 * s, 5.6 * s), POSTERIOR, (3.0, 3.0)),
            Plate(front[1], mass[0] + (0, 0, 3.5 * s), (2.6 * s, 3.5 * s), INFERIOR, (2.0, 2.0)),
            Plate(mass[0] + (3, 0, 3.5 * s), back[0], (3.2 * s, 2.8 * s), INFERIOR, (1.0, 1.0)),
            Plate(*back, (2.6 * s, 2.6 * s), INFERIOR, (1.5, 2.0)),
            Plate(back[1], (29 * s, 0, 1.5), (2.6 * s, 3.2 * s), INFERIOR, (2.0, 2.5)),
            Plate((2, side * 20 * s, 0), (5, side * (half_span - 4), 1), (3.2, 3.6), INFERIOR),
        ]
    ring = tuple(plate.placed(atlas.origin, atlas.rotation) for plate in plates)
    cuts = tuple(j.cut(-1) for j in above) + tuple(j.cut(+1) for j in below)
    return Solid(ring, cuts=cuts, blend_mm=1.5)
