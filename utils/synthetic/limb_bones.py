"""Skeletons of a thigh with hip and knee and of an arm with shoulder and elbow, from capsules and bars.

Places are in mm from the head of the femur or of the humerus, along posterior, lateral, inferior of an
adult of middle size; sizes are those of anatomy text books, rounded. No part of it is a vertebra or a sacrum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from utils.synthetic.phantom.anatomy import rotation_of
from utils.synthetic.phantom.shapes import INFERIOR, POSTERIOR, RIGHT, Plate

#: Steepest angle of a shaft to the axis of the scanner, degrees.
STEEPEST_DEG = 45.0
#: Where a field of view of a limb may lie.
THIGH_PLACES, ARM_PLACES = ("hip", "knee", "shaft"), ("shoulder", "elbow", "shaft", "forearm")
_PIECES = 5


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a bone: its outside, the thickness of its cortex, mm, and whether it holds marrow only."""

    shape: Plate
    wall_mm: float
    hollow: bool


@dataclass(frozen=True, eq=False)
class Limb:
    """One limb, in the body frame.

    Attributes
    ----------
    bones : tuple of tuple of Part
        One for each bone: parts of one bone melt together.
    flesh : tuple of Plate
        What lies within any of these is inside the skin.
    shafts : dict of str to np.ndarray (n, 3)
        Middle line of each long bone, mm.
    places : dict of str to np.ndarray (3,)
        Joints, and what else a field of view may be centred on, mm.
    """

    bones: tuple[tuple[Part, ...], ...]
    flesh: tuple[Plate, ...]
    shafts: dict[str, np.ndarray]
    places: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class _Frame:
    """Where local coordinates (posterior, lateral, inferior) lie: lateral is right or left by `side`."""

    origin: np.ndarray
    rotation: np.ndarray
    side: int
    scale: float

    def at(self, *place: float) -> np.ndarray:
        mirrored = np.array(place) * (1, self.side, 1)
        return self.origin + self.scale * (self.rotation @ mirrored)

    def bar(self, start: tuple, end: tuple, radius: tuple, *, wide: tuple = ((0, 1, 0), 0.0, 0.0)) -> Plate:
        across = self.rotation @ (np.array(wide[0]) * (1, self.side, 1))
        sizes = (tuple(self.scale * float(x) for x in pair) for pair in (radius, wide[1:]))
        thick, extent = sizes
        return Plate(self.at(*start), self.at(*end), thick, across, extent)

    def moved(self, place: tuple, angles_deg: tuple) -> _Frame:
        """A frame at a place within this one, turned against it."""
        return replace(
            self, origin=self.at(*place), rotation=self.rotation @ rotation_of(np.array(angles_deg))
        )


def draw_tilt(rng: np.random.Generator, steepest_deg: float) -> np.ndarray:
    """Draw a rotation (3, 3): tilted in any plane by up to an angle in degrees, turned around itself."""
    plane, angle = rng.uniform(0, 2 * np.pi), rng.uniform(0, steepest_deg)
    return rotation_of(np.array([angle * np.cos(plane), angle * np.sin(plane), rng.normal(0, 20)]))


def draw_thigh(rng: np.random.Generator, side: int, *, origin: np.ndarray) -> Limb:
    """Draw one leg and its side of the pelvis, without a sacrum.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    side : int
        1 for a right, -1 for a left one.
    origin : np.ndarray of float, (3,)
        Middle of the hip joint, mm.

    Returns
    -------
    Limb
        Its places are "hip", "knee" and "shaft".
    """
    scale = rng.uniform(0.85, 1.15)
    pelvis = _Frame(origin, draw_tilt(rng, 20), side, scale)
    leg = replace(pelvis, rotation=draw_tilt(rng, STEEPEST_DEG))
    end = (rng.uniform(-12, 12), rng.uniform(5, 25), rng.uniform(380, 440))
    shank = leg.moved(end, (_draw_bend(rng), 0, rng.normal(0, 8)))
    thick, wall = rng.uniform(10, 18), rng.uniform(0.12, 0.6)
    shaft = _bowed(leg, (0, 42, 30), end, bow=(rng.uniform(-22, 4), rng.normal(0, 5)))
    tibia = _bowed(shank, (0, 0, 45), (0, -5, 380), bow=(0, rng.normal(0, 4)))
    femur = (*_tube(shaft, thick * scale, wall), *_hip_end(leg, rng), *_knee_end(leg, end, rng))
    lower = (*_tube(tibia, rng.uniform(9, 14) * scale, wall), *_plateau(shank))
    fibula = _tube(_bowed(shank, (20, 34, 50), (14, 28, 380), bow=(0, 0)), rng.uniform(4, 7), wall)
    patella = leg.bar(np.add(end, (-42, 0, -14)), np.add(end, (-44, 0, 4)), (8, 7), wide=((0, 1, 0), 12, 9))
    places = {"hip": origin, "knee": leg.at(*end), "shaft": shaft[_PIECES // 2]}
    flesh = (*_leg_flesh(leg, shank, end, rng), _buttock(pelvis, rng))
    bones = (*_half_pelvis(pelvis, rng), femur, (_joint(patella, 1.5),), lower, fibula)
    return Limb(bones, flesh, {"femur": shaft, "tibia": tibia}, places)


def _draw_bend(rng: np.random.Generator) -> float:
    """Draw how far a knee or an elbow is bent, degrees: as often hardly as by any angle up to 120."""
    return float(rng.uniform(0, 15) if rng.random() < 0.5 else rng.uniform(15, 120))


def _bowed(frame: _Frame, start: tuple, end: tuple, *, bow: tuple[float, float]) -> np.ndarray:
    """The middle line of a shaft that is bowed along P and laterally, mm."""
    share = np.linspace(0, 1, _PIECES + 1)[:, None]
    line = np.add(start, share * np.subtract(end, start)) + 4 * share * (1 - share) * np.array([*bow, 0])
    return np.array([frame.at(*x) for x in line])


def _tube(line: np.ndarray, radius: float, wall: float) -> tuple[Part, ...]:
    """A hollow shaft, of a cortex that is thickest in the middle: a share of the radius."""
    middle = np.abs(np.linspace(-1, 1, len(line)))
    radii = radius * (1 + 0.35 * middle**3)
    found = []
    for (a, b), (start, end) in zip(pairwise(radii), pairwise(line)):
        found.append(Part(Plate(start, end, (a, b), RIGHT), wall * radius * (1.1 - 0.4 * middle[1]), True))
    return tuple(found)


def _joint(shape: Plate, wall_mm: float = 1.2) -> Part:
    return Part(shape, wall_mm, False)


def _hip_end(leg: _Frame, rng: np.random.Generator) -> tuple[Part, ...]:
    """Head, neck and trochanters of the femur."""
    head, high, wide = rng.uniform(20, 26), rng.uniform(-8, 14), rng.uniform(-10, 8)
    return tuple(
        _joint(shape)
        for shape in (
            leg.bar((0, -1, -1), (0, 1, 1), (head, head)),
            leg.bar((0, 4, 3), (3, 42 + wide, 28), (16, 19)),
            leg.bar((6, 48 + wide, high), (3, 44 + wide / 2, 50), (14, 18), wide=((1, 0, 0), 7, 2)),
            leg.bar((12, 26, 58), (8, 36, 66), (8, 13)),
        )
    )


def _knee_end(leg: _Frame, end: tuple, rng: np.random.Generator) -> tuple[Part, ...]:
    """The flare of the femur and its condyles."""
    flare = leg.bar(np.add(end, (0, 0, -90)), np.add(end, (-4, 0, -12)), (15, 20), wide=((0, 1, 0), 1, 20))
    size, depth = rng.uniform(17, 22), rng.uniform(12, 20)
    condyles = [
        leg.bar(np.add(end, (-8, x, -6)), np.add(end, (depth, 1.15 * x, -2)), (size, size)) for x in (-22, 22)
    ]
    return tuple(_joint(shape) for shape in (flare, *condyles))


def _plateau(shank: _Frame) -> tuple[Part, ...]:
    top = shank.bar((2, 0, 36), (0, 0, 70), (13, 14), wide=((0, 1, 0), 24, 4))
    bump = shank.bar((-20, 0, 58), (-14, 0, 80), (8, 8))
    return _joint(top), _joint(bump)


def _half_pelvis(pelvis: _Frame, rng: np.random.Generator) -> tuple[tuple[Part, ...], ...]:
    """Ilium, acetabulum, ischium and pubis around the hip joint."""
    b, thick = pelvis.bar, rng.uniform(0.8, 1.2)
    ilium = b((8, -6, -36), (25, 12, -135), (9, 4), wide=((1, -0.3, 0), 20, 62))
    roof = b((-6, -10, -33), (-2, 16, -33), (6, 5), wide=((1, 0, 0), 14, 12))
    back = b((32, -14, -22), (30, -6, 18), (8, 6), wide=((0, 1, 0), 8, 6))
    floor = b((0, -35, -25), (4, -33, 20), (5, 5), wide=((1, 0, 0), 20, 16))
    seat = b((30, -16, 14), (30, -24, 82), (13 * thick, 15 * thick))
    upper = b((-14, -28, 10), (-38, -74, 34), (9 * thick, 8 * thick))
    body = b((-38, -76, 30), (-34, -76, 62), (8, 7), wide=((0, 1, 0), 4, 2))
    lower = b((-33, -73, 62), (24, -30, 92), (6, 8))
    return (tuple(_joint(shape, 1.6) for shape in (ilium, roof, back, floor, seat, upper, body, lower)),)


def _leg_flesh(leg: _Frame, shank: _Frame, end: tuple, rng: np.random.Generator) -> tuple[Plate, ...]:
    """Thigh and calf: their bones lie off the middle, by as much as there are muscles."""
    size = rng.uniform(45, 85)
    away = np.array([rng.uniform(-15, 25), -rng.uniform(0, 40), 0])
    wide = rng.normal(0, 1, 3), rng.uniform(0, 35), rng.uniform(0, 15)
    thigh = leg.bar(
        np.add(away, (0, 38, -10)), np.add(end, 0.3 * away), (size, rng.uniform(48, 62)), wide=wide
    )
    calf = shank.bar((10, 0, 20), (12, 0, 400), (rng.uniform(45, 65), 42))
    return thigh, calf


def _buttock(pelvis: _Frame, rng: np.random.Generator) -> Plate:
    size = rng.uniform(70, 95)
    deep = rng.uniform(10, 45)
    return pelvis.bar((deep, -25, -260), (deep, -30, 5), (size, size), wide=((0, 1, 0), 60, 60))


def draw_arm(rng: np.random.Generator, side: int, *, origin: np.ndarray) -> Limb:
    """Draw one arm and its side of the shoulder girdle, parameters as of `draw_thigh`.

    Returns
    -------
    Limb
        Its places are "shoulder", "elbow", "shaft" and "forearm".
    """
    scale = rng.uniform(0.85, 1.15)
    girdle = _Frame(origin, draw_tilt(rng, 20), side, scale)
    raised = rotation_of(np.array([180.0 if rng.random() < 0.3 else 0.0, 0, 0]))
    arm = replace(girdle, rotation=draw_tilt(rng, STEEPEST_DEG) @ raised)
    end = (rng.uniform(-8, 8), rng.uniform(0, 12), rng.uniform(270, 320))
    fore = arm.moved(end, (-_draw_bend(rng), rng.normal(0, 8), rng.uniform(-70, 70)))
    wall = rng.uniform(0.15, 0.6)
    shaft = _bowed(arm, (0, 14, 22), end, bow=(rng.normal(0, 5), rng.normal(0, 4)))
    ulna = _bowed(fore, (5, -9, 0), (0, -16, 240), bow=(rng.normal(4, 3), 0))
    radius = _bowed(fore, (-4, 12, 16), (0, 18, 240), bow=(0, rng.normal(6, 4)))
    humerus = (
        *_tube(shaft, rng.uniform(8, 13) * scale, wall),
        *_shoulder_end(arm, rng),
        *_elbow_end(arm, end),
    )
    lower = [(*_tube(line, rng.uniform(5, 8), wall), _joint(fore.bar(*ends)))
             for line, ends in ((ulna, ((12, -9, -18), (6, -9, 20), (10, 9))),
                                (radius, ((-4, 12, 13), (-4, 12, 18), (11, 11))))]  # fmt: skip
    size = rng.uniform(30, 52)
    away = rng.normal(0, 8, 3) * (1, 1, 0)
    flesh = (arm.bar((0, 8, -2), np.add(away, (0, 5, 90)), (58, size)),
             arm.bar(np.add(away, (0, 5, 60)), end, (size, rng.uniform(32, 42))),
             fore.bar((0, 0, 0), (0, 0, 260), (rng.uniform(34, 46), 27)),
             girdle.bar((0, -70, 20), (0, -70, 330), (75, 95), wide=((0, 1, 0), 25, 30)))  # fmt: skip
    places = {
        "shoulder": origin,
        "elbow": arm.at(*end),
        "shaft": shaft[_PIECES // 2],
        "forearm": fore.at(0, 0, 130),
    }
    shafts = {"humerus": shaft, "radius": radius}
    return Limb((*_girdle(girdle), humerus, *lower), flesh, shafts, places)


def _shoulder_end(arm: _Frame, rng: np.random.Generator) -> tuple[Part, ...]:
    head = rng.uniform(19, 25)
    ball, bump = arm.bar((0, -1, 0), (0, 1, 2), (head, head)), arm.bar((-4, 16, -4), (0, 15, 30), (10, 13))
    return _joint(ball), _joint(bump)


def _elbow_end(arm: _Frame, end: tuple) -> tuple[Part, ...]:
    flare = arm.bar(np.add(end, (0, 0, -45)), np.add(end, (0, 0, -8)), (9, 7), wide=((0, 1, 0), 1, 20))
    roll = arm.bar(np.add(end, (-2, -20, 0)), np.add(end, (-2, 20, 0)), (10, 11))
    return _joint(flare), _joint(roll)


def _girdle(girdle: _Frame) -> tuple[tuple[Part, ...], ...]:
    """Shoulder blade and clavicle."""
    b = girdle.bar
    socket = b((4, -31, -6), (6, -31, 14), (5, 6), wide=((1, 0, 0), 10, 12))
    blade = b((14, -38, 8), (55, -92, 50), (6, 3), wide=(tuple(INFERIOR), 12, 62))
    ridge = b((48, -95, -8), (10, 8, -38), (6, 7), wide=(tuple(POSTERIOR), 2, 8))
    beak = b((-8, -36, -12), (-34, -20, -10), (7, 6))
    clavicle = b((2, 0, -42), (-30, -75, -36), (6, 6)), b((-30, -75, -36), (-48, -140, -18), (6, 10))
    scapula = tuple(_joint(shape, 1.5) for shape in (socket, blade, ridge, beak))
    return scapula, tuple(_joint(shape, 2.0) for shape in clavicle)
