"""The bones of a drawn subject, as solids in the body frame: vertebrae, ribs, sacrum, pelvis, skull."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from utils.synthetic.phantom.anatomy import Anatomy, Vertebra
from utils.synthetic.phantom.cage import girdle_solids, wide_rib_solids
from utils.synthetic.phantom.shapes import INFERIOR, POSTERIOR, RIGHT, SIDES, Body, Plate, Solid
from utils.synthetic.phantom.vertebra import Joint, condyle_joints, facet_joints, vertebra_solids

RIB, SACRUM, SKULL, GIRDLE = 101, 102, 103, 104


def bones(anatomy: Anatomy) -> list[tuple[int, Solid]]:
    """Every bone with its code: a VerSe code, or `RIB`, `SACRUM`, `SKULL`, `GIRDLE`; vertebrae first."""
    found = list(vertebra_solids(anatomy))
    found += [(RIB, rib) for vertebra in anatomy.vertebrae for rib in rib_solids(anatomy, vertebra)]
    found.append((SACRUM, sacrum_solid(anatomy, facet_joints(anatomy, len(anatomy.vertebrae) - 1))))
    found += [(SACRUM, wing) for wing in _iliac_wings(anatomy)]
    if anatomy.habitus is not None:
        found += [(GIRDLE, part) for part in girdle_solids(anatomy)]
    return found + [(SKULL, part) for part in skull_solids(anatomy.vertebrae[0])]


def cage_at(anatomy: Anatomy, vertebra: Vertebra) -> tuple[np.ndarray, float, float]:
    """The rib cage's ellipse at a level: centre in the body frame, half depth, half width, mm."""
    number = {"cervical": 0, "lumbar": 13, "thoracic": int(vertebra.name[1:])}[vertebra.region]
    levels = [0, 1, 2, 3, 4, 6, 8, 10, 12, 14]
    size = anatomy.stature * (0.5 + 0.5 * anatomy.girth)
    half_depth = size * float(np.interp(number, levels, [32, 40, 52, 62, 71, 83, 90, 92, 92, 88]))
    half_width = size * float(np.interp(number, levels, [50, 58, 80, 96, 108, 122, 130, 132, 128, 122]))
    behind = vertebra.size.depth / 2 + 1.25 * vertebra.size.canal_depth
    centre = np.array([vertebra.origin[0] + behind - half_depth, vertebra.origin[1], vertebra.origin[2]])
    return centre, half_depth, half_width


def rib_solids(anatomy: Anatomy, vertebra: Vertebra) -> list[Solid]:
    """Both ribs of a thoracic vertebra, each as a chain of short flat bars, head first."""
    if anatomy.habitus is not None:
        return wide_rib_solids(anatomy, vertebra)
    if vertebra.region != "thoracic":
        return []
    number, size = int(vertebra.name[1:]), vertebra.size
    reach = np.radians({10: 125, 11: 85, 12: 55, 13: 45}.get(number, 150))
    centre, half_depth, half_width = cage_at(anatomy, vertebra)
    solids = []
    for side in SIDES:
        at = -0.5 if number < 11 else -0.15
        head = vertebra.world(size.depth / 2 - 4.5, side * (size.width / 2 + 2.6), at * size.height)
        beside = side * (size.transverse_span / 2 - 3)
        neck = vertebra.world(size.depth / 2 + 0.8 * size.canal_depth - 4, beside, -0.3 * size.height)
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
            for k, (a, b) in enumerate(pairwise(path))
        ]
    return solids


def sacrum_solid(anatomy: Anatomy, joints: tuple[Joint, ...]) -> Solid:
    """The sacrum: a first body, segments that taper and curve backwards, and the wings beside them."""
    origin, rotation = anatomy.sacrum
    s = anatomy.stature
    own = _sacral_segments() + [plate for side in SIDES for plate in _sacral_wing(side)]
    own.append(Plate((38, 0, 8), (34, 0, 70), (4, 3), RIGHT, (12, 5)))
    plates = [_thickened(plate, s).placed(origin, rotation, scale=s) for plate in own]
    for side, joint in zip(SIDES, joints):
        start = origin + rotation @ (np.array([20, side * 19, -2]) * s)
        end = joint.face(-1) - joint.normal * joint.radius_mm * 0.55
        across = np.cross(joint.normal, end - start)
        plates.append(Plate(start, end, (6 * s, joint.radius_mm), across, (1, 3)))
    body = Body(origin, rotation, 16 * s, 25 * s, (30 * s, 27 * s, 26 * s), 0.08)
    return Solid(tuple(plates), body, cuts=tuple(j.cut(-1) for j in joints), blend_mm=4.0)


def _thickened(plate: Plate, s: float) -> Plate:
    radius, extent = ((s * a, s * b) for a, b in (plate.radius, plate.extent))
    return replace(plate, radius=radius, extent=extent)


def _sacral_segments() -> list[Plate]:
    """The fused bodies: posterior, inferior, half width and half thickness of each end, mm at stature 1."""
    rows = [(0, 0, 16, 9), (2, 26, 14, 9), (6, 48, 11, 8), (8, 66, 8, 7), (4, 82, 6, 5), (-3, 94, 4, 4)]
    return [
        Plate((p, 0.0, i), (q, 0.0, j), (thick, thick_below), RIGHT, (wide, wide_below))
        for (p, i, wide, thick), (q, j, wide_below, thick_below) in pairwise(rows)
    ]


def _sacral_wing(side: int) -> list[Plate]:
    return [
        Plate((4.0, side * 20, -2), (14.0, side * 48, 10), (9, 8), INFERIOR, (3, 20)),
        Plate((14.0, side * 18, 0), (26.0, side * 14, 20), (6, 5), INFERIOR, (2, 8)),
    ]


def _iliac_wings(anatomy: Anatomy) -> list[Solid]:
    (origin, rotation), s = anatomy.sacrum, anatomy.stature
    parts = []
    for side in SIDES:
        middle = (0.0, side * 66, 0)
        parts.append(Plate((30.0, side * 50, 0), middle, (7, 5), INFERIOR, (26, 36)))
        parts.append(Plate(middle, (-75.0, side * 112, -8), (4, 6), INFERIOR, (36, 22)))
    return [Solid((_thickened(part, s).placed(origin, rotation, scale=s),)) for part in parts]


def skull_solids(atlas: Vertebra) -> list[Solid]:
    """The base of the skull behind and beside C1, and the jaw in front of the neck."""
    parts = [
        Plate((-12, 0, -22), (-36, 0, -50), (4, 6), RIGHT, (8, 10)),
        Plate((26, 0, -16), (60, 0, -24), (2.5, 3), RIGHT, (14, 40)),
        Plate((60, 0, -24), (82, 0, -70), (3, 4), RIGHT, (40, 62)),
    ]
    for side in SIDES:
        parts += [
            Plate((0, side * 15, -12.5), (2, side * 17, -17), (5.5, 5.5), POSTERIOR, (5, 5)),
            Plate((0, side * 17, -20), (-8, side * 56, -30), (5, 8), POSTERIOR, (6, 10)),
            Plate((26, side * 20, -17), (0, side * 18, -19), (3, 4), RIGHT, (6, 4)),
            Plate((-22, side * 50, -22), (-36, side * 46, 36), (4, 4.5), POSTERIOR, (10, 8)),
            Plate((-40, side * 45, 36), (-92, side * 10, 46), (5, 5.5), INFERIOR, (8, 9)),
        ]
    cuts = tuple(joint.cut(+1) for joint in condyle_joints(atlas))
    scale = atlas.size.width / 12
    placed = [part.placed(atlas.origin, atlas.rotation, scale=scale) for part in parts]
    return [Solid((plate,), cuts=cuts) for plate in placed]
