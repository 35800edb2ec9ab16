"""Draw scans of thighs and arms: any pose, bones from thin and dull to thick and bright, cut anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from utils.synthetic.limb_bones import ARM_PLACES, THIGH_PLACES, Limb, Part, draw_arm, draw_thigh
from utils.synthetic.phantom.inlays import paint_inlays, paint_shape
from utils.synthetic.phantom.shapes import RIGHT, SIDES, BodyGrid, Plate, plate_distance
from utils.synthetic.phantom.soft import AIR_HU, FAT_HU, smooth_field
from utils.synthetic.phantom.values import Inlay

_FINEST_MM, _COARSEST_MM, _MAX_VOXELS = 1.6, 3.0, 0.9e6
_SKIN_HU, _SKIN_MM = 20.0, 2.0
_METAL_HU = 3071.0
#: Muscles are so many times longer than wide, and between so many are drawn.
_SLENDER, _MUSCLES = 5.0, (5, 13)
_HIP_SHARE, _BOTH_SHARE, _METAL_SHARE = 0.5, 0.4, 0.25


@dataclass(frozen=True)
class LimbValues:
    """HU of cortex, marrow, spongy bone, muscle and blood; thickness of the fat under the skin, mm."""

    cortex: float
    marrow: float
    spongy: float
    muscle: float
    blood: float
    fat_mm: float


def draw_limb(rng: np.random.Generator, *, kind: str) -> tuple[np.ndarray, float]:
    """Draw a limb in a field of view.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    kind : str
        "thigh": half of the fields of view hold a hip, others a knee or a shaft alone; else an arm, with the
        shoulder, the elbow, one shaft or the forearm.

    Returns
    -------
    hu : np.ndarray of float32, (P, R, I)
        Hounsfield units.
    step_mm : float
        Edge of its voxels.
    """
    limbs, place = _draw_limbs(rng, kind)
    values = draw_limb_values(rng)
    grid = _draw_grid(rng, limbs[0].places[place], share=1.0 if kind == "thigh" else 0.7)
    hu = _paint_flesh(rng, grid, limbs, values)
    _paint_masses(hu, grid, rng, limbs[0], values)
    spongy = (values.spongy + 0.15 * abs(values.spongy) * smooth_field(rng, grid, 6.0)).astype(np.float32)
    for limb in limbs:
        for bone in limb.bones:
            _paint_bone(hu, grid, bone, (values.cortex, values.marrow, spongy))
    if rng.random() < _METAL_SHARE:
        paint_inlays(hu, grid, _draw_metal(rng, limbs[0]))
    return hu, grid.step_mm


def _draw_limbs(rng: np.random.Generator, kind: str) -> tuple[list[Limb], str]:
    """Draw one limb or both legs, and what the field of view lies around."""
    side = int(rng.choice(SIDES))
    if kind != "thigh":
        return [draw_arm(rng, side, origin=np.zeros(3))], str(rng.choice(ARM_PLACES))
    limbs = [draw_thigh(rng, side, origin=np.zeros(3))]
    if rng.random() < _BOTH_SHARE:
        limbs.append(draw_thigh(rng, -side, origin=np.array([0, -side * rng.uniform(165, 195), 0.0])))
    others = (1 - _HIP_SHARE) / 2
    return limbs, str(rng.choice(THIGH_PLACES, p=(_HIP_SHARE, others, others)))


def draw_limb_values(rng: np.random.Generator) -> LimbValues:
    """Draw the looks of one subject: from the dull bone of the old to bright cortex, at times contrast."""
    cortex = rng.uniform(250, 1700)
    return LimbValues(
        cortex=float(cortex),
        marrow=float(min(rng.uniform(-90, 300), 0.6 * cortex)),
        spongy=float(min(rng.uniform(-20, 450), 0.8 * cortex)),
        muscle=float(rng.uniform(25, 75)),
        blood=float(rng.uniform(150, 500) if rng.random() < 0.3 else rng.uniform(30, 60)),
        fat_mm=float(rng.uniform(2, 35)),
    )


def _draw_grid(rng: np.random.Generator, place: np.ndarray, *, share: float) -> BodyGrid:
    """Draw a field of view off the middle of what it shows, narrow ones more often than wide ones."""
    across = share * (rng.uniform(90, 240) if rng.random() < 0.65 else rng.uniform(240, 420))
    size = np.array([across * rng.uniform(0.7, 1), across, rng.uniform(80, 320)])
    middle = place + rng.uniform(-0.3, 0.3, 3) * size
    step_mm = float(np.clip(np.cbrt(np.prod(size) / _MAX_VOXELS), _FINEST_MM, _COARSEST_MM))
    return BodyGrid(middle - size / 2, step_mm, tuple(int(n) for n in np.ceil(size / step_mm)))


def _paint_flesh(
    rng: np.random.Generator, grid: BodyGrid, limbs: list[Limb], values: LimbValues
) -> np.ndarray:
    """Air, skin, fat and muscles, HU."""
    depth = np.full(grid.shape, np.inf, np.float32)
    for shape in (shape for limb in limbs for shape in limb.flesh):
        np.minimum(depth, plate_distance(shape, grid.axes()), out=depth)
    coarse = smooth_field(rng, grid, 45.0)
    line = next(iter(limbs[0].shafts.values()))
    hu = _muscles(rng, grid, line[-1] - line[0], values, coarse)
    fat = depth > -_SKIN_MM - values.fat_mm * (1 + 0.3 * coarse)
    hu[fat] = (FAT_HU + 6 * coarse)[fat]
    hu[depth > -_SKIN_MM] = _SKIN_HU
    hu[depth > 0] = AIR_HU
    return hu


def _muscles(
    rng: np.random.Generator, grid: BodyGrid, way: np.ndarray, values: LimbValues, warp: np.ndarray
) -> np.ndarray:
    """Slender muscles, each of its own value, with fat where two of them meet.

    Muscles are the cells of random points, in a space that is compressed along the limb. Up to a part that
    is the same for all, the squared distance to a point is linear in the coordinates, which makes it cheap.
    """
    along = way / np.linalg.norm(way)
    metric = np.eye(3) - (1 - _SLENDER**-2) * np.outer(along, along)
    size = np.array(grid.shape) * grid.step_mm
    places = grid.origin + rng.random((int(rng.integers(*_MUSCLES)), 3)) * size
    axes = [axis - np.float32(middle) for axis, middle in zip(grid.axes(), grid.origin + size / 2)]
    nearest, second = np.full(grid.shape, np.inf, np.float32), np.full(grid.shape, np.inf, np.float32)
    hu = np.zeros(grid.shape, np.float32)
    for place in places - grid.origin - size / 2:
        slope = (-2 * metric @ place).astype(np.float32)
        square = (slope[0] * axes[0] + slope[1] * axes[1]) + (slope[2] * axes[2] + place @ metric @ place)
        square += np.float32(rng.normal(0, 900)) * warp
        closer = square < nearest
        np.minimum(second, np.where(closer, nearest, square), out=second)
        np.copyto(nearest, square, where=closer)
        fatty = rng.uniform(20, 120) if rng.random() < 0.15 else 0.0
        hu[closer] = values.muscle + rng.normal(0, 6) - fatty
    # Halfway between points d apart, the squares differ by 2 d for every mm: d is some 60 mm.
    hu[second - nearest < 120 * rng.uniform(0.3, 3.5)] = FAT_HU * 0.8
    return hu


def _paint_masses(
    hu: np.ndarray, grid: BodyGrid, rng: np.random.Generator, limb: Limb, values: LimbValues
) -> None:
    """An artery and a vein beside the shaft, and at times a tumour with a dead or bright core."""
    line = next(iter(limb.shafts.values()))
    for blood in (values.blood, 0.6 * values.blood + 15):
        beside = rng.uniform(18, 40) * _unit(rng)
        ends = line[0] + beside, line[-1] + beside
        _paint_in_flesh(hu, grid, Plate(*ends, (rng.uniform(3, 6), 3.0), RIGHT), blood)
    if rng.random() < 0.3:
        centre = grid.origin + rng.uniform(0.15, 0.85, 3) * grid.shape * grid.step_mm
        size = rng.uniform(12, 50)
        lump = Plate(
            centre, centre + rng.uniform(5, 60) * _unit(rng), (size, size * rng.uniform(0.6, 1)), RIGHT
        )
        _paint_in_flesh(hu, grid, lump, rng.uniform(15, 90))
        core = replace(lump, radius=tuple(0.55 * x for x in lump.radius))
        _paint_in_flesh(
            hu, grid, core, float(rng.choice([rng.uniform(0, 30), rng.uniform(90, 500)], p=(0.8, 0.2)))
        )


def _unit(rng: np.random.Generator) -> np.ndarray:
    way = rng.normal(0, 1, 3)
    return way / max(np.linalg.norm(way), 1e-6)


def _paint_in_flesh(hu: np.ndarray, grid: BodyGrid, shape: Plate, value: float) -> None:
    """Fill what of a shape lies within the skin."""
    paint_shape(hu, grid, shape, np.where(hu > -500, np.float32(value), hu))


def _paint_bone(
    hu: np.ndarray, grid: BodyGrid, bone: tuple[Part, ...], looks: tuple[float, float, np.ndarray]
) -> None:
    """The outsides of all parts with cortex, then their insides: so that parts melt together."""
    cortex, marrow, spongy = looks
    for part in bone:
        paint_shape(hu, grid, part.shape, cortex if part.hollow else min(cortex, 900.0))
    for part in sorted(bone, key=lambda part: part.hollow):
        inner = tuple(max(x - part.wall_mm, 0.5) for x in part.shape.radius)
        paint_shape(hu, grid, replace(part.shape, radius=inner), marrow if part.hollow else spongy)


def _draw_metal(rng: np.random.Generator, limb: Limb) -> tuple[Inlay, ...]:
    """A nail along a shaft, a plate with screws beside it, or the head and stem of an artificial joint."""
    line = limb.shafts[str(rng.choice(sorted(limb.shafts)))]
    draw: Callable = (_nail, _plate, _stem)[int(rng.integers(3))]
    return tuple(Inlay(shape, _METAL_HU) for shape in draw(rng, line, limb))


def _nail(rng: np.random.Generator, line: np.ndarray, limb: Limb) -> list[Plate]:
    radius = rng.uniform(4, 6)
    first, last = (0, len(line) - 1) if rng.random() < 0.6 else (1, 3)
    return [
        Plate(a, b, (radius, radius), RIGHT) for a, b in zip(line[first:last], line[first + 1 : last + 1])
    ]


def _plate(rng: np.random.Generator, line: np.ndarray, limb: Limb) -> list[Plate]:
    first = int(rng.integers(0, len(line) - 2))
    start, end = line[first], line[first + 2]
    beside = np.cross(end - start, _unit(rng))
    beside *= rng.uniform(12, 18) / max(np.linalg.norm(beside), 1e-6)
    bar = Plate(start + beside, end + beside, (2.5, 2.5), np.cross(end - start, beside), (4.0, 4.0))
    middles = [start + share * (end - start) for share in np.linspace(0.1, 0.9, int(rng.integers(2, 6)))]
    return [bar, *(Plate(x + beside, x - 0.9 * beside, (2.0, 2.0), RIGHT) for x in middles)]


def _stem(rng: np.random.Generator, line: np.ndarray, limb: Limb) -> list[Plate]:
    head = next(iter(limb.places.values()))
    ball, shaft, radius = head + 1.0, next(iter(limb.shafts.values())), rng.uniform(13, 22)
    return [
        Plate(head, ball, (radius, radius), RIGHT),
        Plate(head, shaft[0], (7.0, 9.0), RIGHT),
        Plate(shaft[0], shaft[2], (8.0, 5.0), RIGHT),
    ]
