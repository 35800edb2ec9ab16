"""The bones of a drawn subject, as solids in the body frame: vertebrae, ribs, sacrum, skull.

Nothing is drawn at random here. In a vertebra's own frame the origin is the centre of its body, and coordinates are
(posterior, right, inferior) in mm. The two halves of each facet joint are cut by one pair of parallel planes, so that
neighbours come as close as the joint space and never overlap there.
"""

from __future__ import annotations

import numpy as np

from utils.verse.phantom.anatomy import Anatomy, Vertebra
from utils.verse.phantom.shapes import Body, Cut, Plate, Solid

RIB, SACRUM, SKULL = 101, 102, 103
POSTERIOR, RIGHT, INFERIOR = np.eye(3)
SIDES = (1, -1)


def bones(anatomy: Anatomy) -> list[tuple[int, Solid]]:
    """Every bone with its code: a VerSe code, or `RIB`, `SACRUM`, `SKULL`; vertebrae come first."""
    joints = [facet_joints(anatomy, k) for k in range(len(anatomy.vertebrae))]
    found = []
    for k, vertebra in enumerate(anatomy.vertebrae):
        above = joints[k - 1] if k else _condyle_joints(vertebra)
        found.append((vertebra.code, vertebra_solid(vertebra, above, joints[k])))
    found += [(RIB, rib) for vertebra in anatomy.vertebrae for rib in rib_solids(anatomy, vertebra)]
    found.append((SACRUM, sacrum_solid(anatomy, joints[-1])))
    found += [(SACRUM, wing) for wing in _iliac_wings(anatomy)]
    return found + [(SKULL, part) for part in skull_solids(anatomy.vertebrae[0])]


class Joint:
    """One facet joint: its middle, the normal from the lower vertebra to the upper, size and gap, in mm."""

    def __init__(self, point: np.ndarray, normal: np.ndarray, sizes: tuple[float, float], gap_mm: float):
        self.point, self.normal = point, normal / np.linalg.norm(normal)
        self.radius_mm, self.reach_mm = sizes
        self.gap_mm = gap_mm

    def face(self, sign: int) -> np.ndarray:
        """A point on the face of the upper (+1) or lower (-1) vertebra."""
        return self.point + sign * self.normal * self.gap_mm / 2

    def cut(self, sign: int) -> Cut:
        """What the upper (+1) or lower (-1) vertebra has to leave to the other."""
        return Cut(self.face(sign), -sign * self.normal, self.reach_mm)


# Where the joint lies (depths of the canal behind the body; mm beside the canal), which way the upper vertebra's
# half faces (posterior, away from the middle, inferior), thickness of a process, reach of the cut; all at size 1.
_JOINTS = {
    "atlas": ((-0.45, 4.5), (0.0, -0.25, -1.0), (5.0, 8.5)),
    "cervical": ((0.3, 5.0), (0.7, 0.0, -0.7), (4.6, 7.0)),
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
        lower = Vertebra(upper.code, upper.size, *anatomy.sacrum, upper.facet_gap_mm)
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
        found.append(Joint(np.mean(ends, axis=0), direction, (sizes[0] * small, sizes[1] * small), gap))
    return tuple(found)


def _joint_end(vertebra: Vertebra, sign: int, side: int, depth: float, beside: float) -> np.ndarray:
    size = vertebra.size
    p = size.depth / 2 + depth * size.canal_depth
    return vertebra.world(p, side * (size.canal_width / 2 + beside), sign * (size.height + size.disc) / 2)


def _condyle_joints(atlas: Vertebra) -> tuple[Joint, ...]:
    scale = atlas.size.width / 12
    return tuple(
        Joint(
            atlas.world(0, side * 15 * scale, -6 * scale),
            atlas.rotation @ np.array([0.1, -0.45 * side, -1.0]),
            (5.0, 9.0),
            0.8,
        )
        for side in SIDES
    )


def vertebra_solid(vertebra: Vertebra, above: tuple[Joint, ...], below: tuple[Joint, ...]) -> Solid:
    """One vertebra from its body, arch, processes, and the facet joints it shares with its neighbours."""
    if vertebra.name == "C1":
        return _atlas_solid(vertebra, above, below)
    plates = [*_arch(vertebra), _spinous_process(vertebra), *_transverse_processes(vertebra)]
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


def _arch(vertebra: Vertebra) -> list[Plate]:
    """Pedicles and laminae."""
    size, region = vertebra.size, vertebra.region
    thick = {"cervical": 2.2, "thoracic": 2.9, "lumbar": 3.2}[region]
    tall = {"cervical": 3.6, "thoracic": 6.0, "lumbar": 6.5}[region] * size.height / _typical_height(region)
    half_width, half_height = size.pedicle_width / 2, size.pedicle_height / 2
    plates = []
    for side in SIDES:
        upper, lower = _pillar(vertebra, side), _pillar(vertebra, side, lower=True)
        inward = 0.0 if region != "cervical" else 3.0
        root = [
            size.depth / 2 - 4,
            side * min(size.canal_width / 2 + half_width - inward, size.width / 2 - 2),
            upper[2],
        ]
        wide = (half_height - half_width * 0.8, half_height - half_width)
        wide = tuple(max(w, 0.0) for w in wide)
        plates.append(Plate(np.array(root), upper, (half_width, half_width), INFERIOR, wide))
        plates.append(Plate(upper, lower, (half_width * 0.9, thick + 1), INFERIOR, (1.5, tall * 0.6)))
        middle = [size.depth / 2 + size.canal_depth + thick + 0.5, 0, 0.2 * size.height]
        plates.append(Plate(lower, np.array(middle), (thick, thick), INFERIOR, (tall, tall)))
    return plates


def _typical_height(region: str) -> float:
    return {"cervical": 13.5, "thoracic": 20.0, "lumbar": 27.0}[region]


def _spinous_process(vertebra: Vertebra) -> Plate:
    size = vertebra.size
    thick, tall = {"cervical": (2.3, 1.8), "thoracic": (2.8, 3.2), "lumbar": (3.2, 7.5)}[vertebra.region]
    root = np.array([size.depth / 2 + size.canal_depth + 3, 0, 0.25 * size.height])
    drop = np.radians(size.spinous_drop)
    tip = root + size.spinous_length * np.array([np.cos(drop), 0, np.sin(drop)])
    return Plate(root, tip, (thick, thick * 1.25), INFERIOR, (tall, tall * 0.9))


def _transverse_processes(vertebra: Vertebra) -> list[Plate]:
    size, region = vertebra.size, vertebra.region
    if region == "cervical":
        return [plate for side in SIDES for plate in _cervical_transverse(vertebra, side)]
    plates = []
    for side in SIDES:
        root = _pillar(vertebra, side)
        back = 1.05 * size.canal_depth if region == "thoracic" else 0.75 * size.canal_depth
        tip = np.array([size.depth / 2 + back, side * (size.transverse_span / 2 - 4), -0.16 * size.height])
        if vertebra.name in ("T1", "T2", "T3"):
            tip[0] -= 3
        radius = (4.2, 4.0) if region == "thoracic" else (3.6, 2.8)
        plates.append(Plate(root, tip, radius, INFERIOR, (1.0, 1.5) if region == "thoracic" else (2.5, 3.0)))
    return plates


def _cervical_transverse(vertebra: Vertebra, side: int) -> list[Plate]:
    """The two bars around the hole of the vertebral artery, and the trough that joins them."""
    size = vertebra.size
    tip = side * (size.transverse_span / 2 - 3)
    front = np.array([-0.1 * size.depth, side * (size.width / 2 - 1), 0])
    front_tip = np.array([0.1 * size.depth, tip * 0.92, 1.0])
    back_tip = np.array([0.45 * size.depth, tip, 2.0])
    return [
        Plate(front, front_tip, (2.0, 2.2), INFERIOR, (1.5, 1.0)),
        Plate(_pillar(vertebra, side), back_tip, (2.6, 2.4), INFERIOR, (1.0, 1.0)),
        Plate(front_tip, back_tip, (2.0, 2.0), INFERIOR),
    ]


def _hollows(vertebra: Vertebra) -> tuple[Plate, ...]:
    """The spinal canal, and in the neck the holes of the vertebral arteries."""
    size = vertebra.size
    centre = size.depth / 2 + size.canal_depth / 2
    radius = size.canal_depth / 2
    wide = max(size.canal_width / 2 - radius, 0.0)
    tall = 1.6 * size.height
    canal = Plate(
        np.array([centre, 0, -tall]), np.array([centre, 0, tall]), (radius, radius), RIGHT, (wide, wide)
    )
    found = [canal]
    if vertebra.region == "cervical":
        for side in SIDES:
            x = np.array([0.22 * size.depth, side * (size.width / 2 + 4.2), 0])
            down = np.array([0, 0, size.height])
            found.append(Plate(x - down, x + down, (2.6, 2.6), RIGHT))
    return tuple(plate.placed(vertebra.origin, vertebra.rotation) for plate in found)


def _process(vertebra: Vertebra, root: np.ndarray, joint: Joint, sign: int) -> Plate:
    """An articular process from its root (own frame) to a joint; the joint's cut flattens its end."""
    start = vertebra.world(*root)
    end = joint.face(sign) + sign * joint.normal * joint.radius_mm * 0.55
    across = np.cross(joint.normal, end - start)
    return Plate(start, end, (joint.radius_mm * 0.85, joint.radius_mm), across, (0.5, joint.radius_mm * 0.5))


def _dens(axis: Vertebra) -> list[Plate]:
    """The dens of C2, and the shoulders that carry C1."""
    size = axis.size
    scale = size.width / 18
    top = -size.height / 2
    dens = Plate(
        np.array([-1.0, 0, top + 4]), np.array([-1.5, 0, top - 14 * scale]), (5.6 * scale, 4.4 * scale), RIGHT
    )
    shoulders = [
        Plate(
            np.array([0, side * 5.0, top + 5]),
            np.array([1.0, side * 15.5 * scale, top + 3]),
            (5.5, 5.0),
            POSTERIOR,
            (1.0, 3.0),
        )
        for side in SIDES
    ]
    links = [
        Plate(
            np.array([1.0, side * 15.0 * scale, top + 4]),
            _pillar(axis, side),
            (4.5, 4.0),
            INFERIOR,
            (1.0, 1.0),
        )
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
        front = np.array([-10.5 * s, 0, 0]), np.array([-5 * s, side * 12.5 * s, 0])
        back = np.array([9 * s, side * 19 * s, 0]), np.array([25 * s, side * 10 * s, 1.0])
        plates += [
            Plate(*front, (2.8 * s, 2.6 * s), INFERIOR, (2.5, 2.5)),
            Plate(*mass, (5.6 * s, 5.6 * s), POSTERIOR, (3.0, 3.0)),
            Plate(front[1], mass[0] + (0, 0, 3.5 * s), (2.6 * s, 3.5 * s), INFERIOR, (2.0, 2.0)),
            Plate(mass[0] + (3, 0, 3.5 * s), back[0], (3.2 * s, 2.8 * s), INFERIOR, (1.0, 1.0)),
            Plate(*back, (2.6 * s, 2.6 * s), INFERIOR, (1.5, 2.0)),
            Plate(back[1], np.array([29 * s, 0, 1.5]), (2.6 * s, 3.2 * s), INFERIOR, (2.0, 2.5)),
            Plate(
                np.array([2, side * 20 * s, 0]),
                np.array([5, side * (half_span - 4), 1]),
                (3.2, 3.6),
                INFERIOR,
            ),
        ]
    ring = tuple(plate.placed(atlas.origin, atlas.rotation) for plate in plates)
    cuts = tuple(j.cut(-1) for j in above) + tuple(j.cut(+1) for j in below)
    return Solid(ring, cuts=cuts, blend_mm=1.5)


def cage_at(anatomy: Anatomy, vertebra: Vertebra) -> tuple[np.ndarray, float, float]:
    """The rib cage's ellipse at a level: centre in the body frame, half depth, half width, mm."""
    number = {"cervical": 0, "lumbar": 13}.get(vertebra.region) or int(vertebra.name[1:] or 0)
    number = 0 if vertebra.region == "cervical" else number
    levels = [0, 1, 2, 3, 4, 6, 8, 10, 12, 14]
    size = anatomy.stature * (0.5 + 0.5 * anatomy.girth)
    half_depth = size * float(np.interp(number, levels, [32, 40, 52, 62, 71, 83, 90, 92, 92, 88]))
    half_width = size * float(np.interp(number, levels, [50, 58, 80, 96, 108, 122, 130, 132, 128, 122]))
    behind = vertebra.size.depth / 2 + 1.25 * vertebra.size.canal_depth
    centre = np.array([vertebra.origin[0] + behind - half_depth, vertebra.origin[1], vertebra.origin[2]])
    return centre, half_depth, half_width


def rib_solids(anatomy: Anatomy, vertebra: Vertebra) -> list[Solid]:
    """Both ribs of a thoracic vertebra, each as a chain of short flat bars, head first."""
    if vertebra.region != "thoracic":
        return []
    number, size = int(vertebra.name[1:]), vertebra.size
    reach = np.radians({10: 125, 11: 85, 12: 55, 13: 45}.get(number, 150))
    centre, half_depth, half_width = cage_at(anatomy, vertebra)
    solids = []
    for side in SIDES:
        at = -0.5 if number < 11 else -0.15
        head = vertebra.world(size.depth / 2 - 4.5, side * (size.width / 2 + 2.6), at * size.height)
        neck = vertebra.world(
            size.depth / 2 + 0.8 * size.canal_depth - 4,
            side * (size.transverse_span / 2 - 3),
            -0.3 * size.height,
        )
        begin = np.arcsin(min((size.transverse_span / 2 + 12) / half_width, 0.9))
        angles = np.linspace(begin, max(reach, begin + 0.3), 12)
        arc = centre + np.stack(
            [half_depth * np.cos(angles), side * half_width * np.sin(angles), 8 + 26 * (angles - begin)], -1
        )
        path = np.stack([head, neck, *arc])
        thick = 2.6 * anatomy.stature
        down = np.array([0.25, 0.1, 1.0])
        solids += [
            Solid((Plate(a, b, (thick, thick), down, (1.2 if k < 1 else 2.8,) * 2),))
            for k, (a, b) in enumerate(zip(path, path[1:]))
        ]
    return solids


def sacrum_solid(anatomy: Anatomy, joints: tuple[Joint, ...]) -> Solid:
    """The sacrum: a first body, segments that taper and curve backwards then down, and the wings beside them."""
    origin, rotation = anatomy.sacrum
    s = anatomy.stature
    path = np.array([(0, 0), (2, 26), (6, 48), (8, 66), (4, 82), (-3, 94)], float) * s
    plates = []
    for k, (a, b) in enumerate(zip(path, path[1:])):
        wide = tuple(np.array([16, 14, 11, 8, 6, 4.0])[[k, k + 1]] * s)
        radius = tuple(np.array([9, 9, 8, 7, 5, 4.0])[[k, k + 1]] * s)
        plates.append(Plate(np.array([a[0], 0, a[1]]), np.array([b[0], 0, b[1]]), radius, RIGHT, wide))
    for side in SIDES:
        plates.append(
            Plate(
                np.array([4, side * 20, -2]) * s,
                np.array([14, side * 48, 10]) * s,
                (9 * s, 8 * s),
                INFERIOR,
                (3, 20 * s),
            )
        )
        plates.append(
            Plate(
                np.array([14, side * 18, 0]) * s,
                np.array([26, side * 14, 20]) * s,
                (6 * s, 5 * s),
                INFERIOR,
                (2, 8),
            )
        )
    plates.append(
        Plate(np.array([38, 0, 8]) * s, np.array([34, 0, 70]) * s, (4 * s, 3 * s), RIGHT, (12 * s, 5))
    )
    plates = [plate.placed(origin, rotation) for plate in plates]
    for side, joint in zip(SIDES, joints):
        start = origin + rotation @ (np.array([20, side * 19, -2]) * s)
        end = joint.face(-1) - joint.normal * joint.radius_mm * 0.55
        plates.append(
            Plate(start, end, (6 * s, joint.radius_mm), np.cross(joint.normal, end - start), (1, 3))
        )
    body = Body(origin, rotation, 16 * s, 25 * s, (30 * s, 27 * s, 26 * s), 0.08)
    return Solid(tuple(plates), body, cuts=tuple(j.cut(-1) for j in joints), blend_mm=4.0)


def _iliac_wings(anatomy: Anatomy) -> list[Solid]:
    origin, rotation = anatomy.sacrum
    s = anatomy.stature
    found = []
    for side in SIDES:
        back = Plate(
            np.array([30, side * 50, 0]) * s,
            np.array([0, side * 66, 0]) * s,
            (7 * s, 5 * s),
            INFERIOR,
            (26, 36),
        )
        front = Plate(
            np.array([0, side * 66, 0]) * s,
            np.array([-75, side * 112, -8]) * s,
            (4 * s, 6 * s),
            INFERIOR,
            (36, 22),
        )
        found += [Solid((plate.placed(origin, rotation),)) for plate in (back, front)]
    return found


def skull_solids(atlas: Vertebra) -> list[Solid]:
    """The base of the skull behind and beside C1, and the jaw in front of the neck."""
    s = atlas.size.width / 12
    parts = [
        Plate(np.array([-12, 0, -22]), np.array([-36, 0, -50]), (4, 6), RIGHT, (8, 10)),
        Plate(np.array([26, 0, -16]), np.array([60, 0, -24]), (2.5, 3), RIGHT, (14, 40)),
        Plate(np.array([60, 0, -24]), np.array([82, 0, -70]), (3, 4), RIGHT, (40, 62)),
    ]
    for side in SIDES:
        parts += [
            Plate(
                np.array([0, side * 15, -12.5]), np.array([2, side * 17, -17]), (5.5, 5.5), POSTERIOR, (5, 5)
            ),
            Plate(np.array([0, side * 17, -20]), np.array([-8, side * 56, -30]), (5, 8), POSTERIOR, (6, 10)),
            Plate(np.array([26, side * 20, -17]), np.array([0, side * 18, -19]), (3, 4), RIGHT, (6, 4)),
            Plate(
                np.array([-22, side * 50, -22]), np.array([-36, side * 46, 36]), (4, 4.5), POSTERIOR, (10, 8)
            ),
            Plate(np.array([-40, side * 45, 36]), np.array([-92, side * 10, 46]), (5, 5.5), INFERIOR, (8, 9)),
        ]
    scaled = [Plate(p.start * s, p.end * s, p.radius, p.across, p.extent) for p in parts]
    solids = [Solid((plate.placed(atlas.origin, atlas.rotation),)) for plate in scaled]
    cuts = tuple(joint.cut(+1) for joint in _condyle_joints(atlas))
    return [Solid(solid.plates, cuts=cuts) for solid in solids]
