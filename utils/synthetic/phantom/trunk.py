"""Soft tissue of a subject of the wide ranges: a whole trunk to the skin, arms and table with it.

The chest holds lungs that reach behind the bodies, a mediastinum with heart, great vessels and airways, and
domes of a diaphragm; the belly holds liver, spleen, stomach, kidneys, bowel and fat. All of it hangs on the
spine, as in `soft_tissue`, and within the rib cage.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from utils.synthetic.phantom import soft
from utils.synthetic.phantom.anatomy import Anatomy
from utils.synthetic.phantom.cage import ROUNDNESS, cage_of, cartilages, level_point, shoulder_joint
from utils.synthetic.phantom.inlays import paint_shape, shape_window
from utils.synthetic.phantom.shapes import POSTERIOR, RIGHT, SIDES, BodyGrid, Plate
from utils.synthetic.phantom.soft import AIR_HU, FAT_HU, GAS_HU, LUNG_HU, MUSCLE_HU, Course
from utils.synthetic.phantom.values import TissueValues

_WALL_MM = 6.0
#: How far the diaphragm reaches below the last lung that is seen, in levels.
_RECESS_LEVELS = 1.6


@dataclass(frozen=True, eq=False)
class _Scene:
    """All that the painters share: the grid's axes, the course of the body, textures, values, names."""

    anatomy: Anatomy
    values: TissueValues
    grid: BodyGrid
    course: Course
    rng: np.random.Generator
    coarse: np.ndarray
    fine: np.ndarray
    u: np.ndarray
    v: np.ndarray
    levels: dict[str, np.ndarray]

    def place(self, level: str, u: float, v: float, down: float = 0.0) -> np.ndarray:
        """A point in the body frame, mm: from a level's centre, at stature 1."""
        return self.levels[level] + np.array([u, v, down]) * self.anatomy.stature

    def organ(self, name: str, u: float = 0.0, v: float = 0.0, *, below: float = 0.0) -> np.ndarray:
        """A point in the body frame, mm: from the level of an organ, or so many levels below it."""
        number = self.anatomy.habitus.organ_levels[name] + below
        return level_point(self.anatomy, number) + np.array([u, v, 0]) * self.anatomy.stature


def trunk_tissue(
    anatomy: Anatomy, values: TissueValues, grid: BodyGrid, rng: np.random.Generator
) -> np.ndarray:
    """Paint air, skin, fat, muscle, chest, belly, arms, head, table, vessels, and the contents of the canal.

    Parameters
    ----------
    anatomy : Anatomy
        A subject with a habitus.
    values : TissueValues
        What it is made of.
    grid : BodyGrid
        The voxels to fill.
    rng : np.random.Generator
        Source of textures, and of the sizes of organs.

    Returns
    -------
    np.ndarray of float32, shape grid.shape
        Hounsfield units without bone.
    """
    scene = _scene(anatomy, values, grid, rng)
    hu, outside = _paint_skin(scene)
    cavity = _cavity(scene)
    lowest = _diaphragm(scene)
    i = grid.axes()[2]
    _paint_belly(hu, scene, cavity, lowest)
    _paint_chest(hu, scene, cavity & (i < lowest))
    _paint_neck_and_head(hu, scene)
    _paint_canal(hu, scene)
    hu[outside] = AIR_HU
    _paint_face(hu, scene, outside)
    _paint_head(hu, scene)
    _paint_table(hu, scene)
    _paint_arms(hu, scene)
    return hu


def _scene(anatomy: Anatomy, values: TissueValues, grid: BodyGrid, rng: np.random.Generator) -> _Scene:
    course = soft.course_of(anatomy, grid)
    p, r, _ = grid.axes()
    levels = {v.name: v.origin for v in anatomy.vertebrae} | {"S1": anatomy.sacrum[0]}
    # Organs lie where they lie, whether or not the level beside them is counted.
    levels.setdefault("T12", (levels["T11"] + levels["L1"]) / 2)
    return _Scene(
        anatomy,
        values,
        grid,
        course,
        rng,
        coarse=soft.smooth_field(rng, grid, 22.0),
        fine=soft.smooth_field(rng, grid, 8.0),
        u=p - course.spine_p,
        v=r - course.spine_r,
        levels=levels,
    )


def _rounded(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of powers of two coordinates, each (P, 1, I) or (1, R, I): 1 on the wall of a superellipse."""
    return np.abs(a) ** np.float32(ROUNDNESS) + np.abs(b) ** np.float32(ROUNDNESS)


def _shrunk(half_mm: np.ndarray, by_mm: float) -> np.ndarray:
    """What `_rounded` gives on a wall so far inside a wall of a half width."""
    return np.maximum(1 - by_mm / half_mm, 0) ** np.float32(ROUNDNESS)


def _paint_skin(scene: _Scene) -> tuple[np.ndarray, np.ndarray]:
    """Skin, fat and muscle everywhere, and where the trunk's outside is."""
    course, i = scene.course, scene.grid.axes()[2]
    cage = cage_of(scene.anatomy).at(i.ravel())[:, None, None].astype(np.float32)
    fat, muscle = scene.anatomy.fat_mm * 0.8, 14.0
    # The trunk holds the cage with its muscles: from the apex of the lungs down the skin is never nearer.
    neck = [scene.levels[name][2] for name in ("C7", "T1")]
    chest = np.interp(i, neck, (0, 1)).astype(np.float32)
    half_depth = np.maximum(course.half_depth, chest * (cage[2] + fat + 0.6 * muscle))
    half_width = np.maximum(course.half_width, chest * (cage[3] + fat + muscle))
    half_width = half_width + _shoulder_width(scene, i)
    back = course.trunk_p + course.half_depth
    wall = _rounded((scene.grid.axes()[0] - back + half_depth) / half_depth, scene.v / half_width)
    half = np.minimum(half_depth, half_width)
    hu = np.where(wall > 0.97, np.float32(20), FAT_HU + 8 * scene.fine).astype(np.float32)
    inner = wall < _shrunk(half, fat) * (1 + 0.06 * scene.coarse)
    muscles = MUSCLE_HU + 6 * scene.coarse + 5 * scene.fine
    # Fat runs between the muscles in sheets.
    muscles -= 80 * (np.abs(scene.coarse) < 0.05)
    np.copyto(hu, muscles, where=inner)
    return hu, wall > 1


def _shoulder_width(scene: _Scene, i: np.ndarray) -> np.ndarray:
    """What the shoulders add to the trunk's half width around T1, mm."""
    up = scene.anatomy.habitus.arms == "up"
    names = [scene.levels[name][2] for name in ("C6", "T1", "T3", "T5")]
    return np.interp(i, names, [0, 60 if up else 50, 25, 0]).astype(np.float32)


def _cavity(scene: _Scene) -> np.ndarray:
    """Inside of the rib cage and, below it, of the belly's wall."""
    p, r, i = scene.grid.axes()
    at = cage_of(scene.anatomy).at(i.ravel())[:, None, None].astype(np.float32)
    wall = _rounded((p - at[0]) / at[2], (r - at[1]) / at[3])
    return (wall < _shrunk(np.minimum(at[2], at[3]), _WALL_MM)) & (
        i > scene.levels["T1"][2] - 45 * scene.anatomy.stature
    )


def _diaphragm(scene: _Scene) -> np.ndarray:
    """Height of the diaphragm below which the belly lies, mm along I, shape (P, R, 1)."""
    p, r, _ = scene.grid.axes()
    centre, s = scene.levels["T10"], scene.anatomy.stature
    u, v = (p - centre[0]) / s, (r - centre[1]) / s
    ends = [scene.organ(f"base {side}", below=_RECESS_LEVELS)[2] for side in ("left", "right")]
    lowest = np.interp(v, (-30, 30), ends) + 0.32 * np.clip(u, -160, 0) * s
    domes = [
        rise * np.clip(1 - np.square((u + 65) / 95) - np.square((v - side * 66) / 78), 0, 1) ** 0.75
        for side, rise in zip(SIDES, scene.rng.uniform((45, 65), (95, 125)))
    ]
    return (lowest - s * np.maximum(*domes)).astype(np.float32)


def _paint_chest(hu: np.ndarray, scene: _Scene, chest: np.ndarray) -> None:
    """Lungs, and between them the mediastinum."""
    s, u, beside, i = scene.anatomy.stature, scene.u, np.abs(scene.v), scene.grid.axes()[2]
    margin = scene.course.body_width + scene.anatomy.habitus.lung_margin_mm
    middle = np.interp(u / s, [-150, -105, -60, -32, -18], [8, 22, 26, 22, 0]) * s
    # Beside the bodies and the arches the lungs come up to the bone; behind them ribs and muscles begin.
    near = np.where(u > -20 * s, margin + np.maximum(u - 14 * s, 0) * 1.2, middle).astype(np.float32)
    # The lungs taper to a dome on either side, which slopes down to the front as the first ribs do.
    tops = [scene.organ(f"apex {side}")[2] - 6 * s for side in ("left", "right")]
    down = 16 * np.square((beside / s - 48) / 42) + 0.35 * np.maximum(-u / s - 15, 0)
    lung = chest & (beside > near) & (i > np.interp(scene.v, (-1, 1), tops) + s * np.minimum(down, 45))
    hu[chest] = (FAT_HU * 0.75 + 50 * np.clip(scene.coarse + 0.3, 0, 2))[chest]
    grain = LUNG_HU + 35 * scene.coarse + 25 * scene.fine + np.clip(u, -60, 40)
    grain += 750 * np.clip(scene.fine - 1.6, 0, 1)  # vessels
    np.copyto(hu, grain, where=lung)
    _paint_illness(hu, scene, lung)
    np.copyto(hu, np.float32(48), where=(beside < near) & (u > -14 * s) & chest)
    _paint_heart(hu, scene)
    _paint_great_vessels(hu, scene)


def _paint_illness(hu: np.ndarray, scene: _Scene, lung: np.ndarray) -> None:
    """Fluid behind the lungs, or lung without air, now and then, on one side or both."""
    chance = scene.rng.random(3)
    sides = scene.v * scene.rng.choice([-1, 1]) > (0 if chance[2] < 0.6 else -1e4)
    if chance[0] < 0.12:
        level = scene.rng.uniform(-30, 15)
        hu[lung & (scene.u > level) & sides] = 15.0
    if chance[1] < 0.15:
        dense = lung & sides & (scene.coarse > scene.rng.uniform(0.2, 1.5))
        hu[dense] = (20 + 60 * scene.fine)[dense]


def _paint_heart(hu: np.ndarray, scene: _Scene) -> None:
    blood, muscle = scene.values.heart_hu, min(scene.values.heart_hu, 90.0)
    size = scene.rng.uniform(0.85, 1.2)
    centre = scene.organ("heart", -82, -22)
    radii = np.array([52, 60, 55]) * size * scene.anatomy.stature
    paint_ellipsoid(hu, scene.grid, centre, radii, muscle)
    chambers = (((8, -22, 12), (26, 24, 34)), ((-22, 12, 0), (20, 26, 36)), ((28, 4, -18), (20, 32, 22)))
    for offset, half in chambers:
        scale = size * scene.anatomy.stature
        paint_ellipsoid(hu, scene.grid, centre + np.multiply(offset, scale), np.multiply(half, scale), blood)


def _paint_great_vessels(hu: np.ndarray, scene: _Scene) -> None:
    """Aorta with its arch, pulmonary arteries, veins of the chest, oesophagus, airways."""
    artery, vein = scene.values.vessels[0].hu, scene.values.vessels[1].hu
    place, s = scene.place, scene.anatomy.stature

    def at(level: float, u: float, v: float) -> np.ndarray:
        """From the fork of the airways, which lies at 5."""
        return scene.organ("hilum", u, v, below=level - 5)

    aorta = [at(7, -75, 6), at(5, -78, 12), at(4, -62, 4), at(4, -36, -14), at(5, -24, -22)]
    aorta += [at(6, -24, -22), place("T9", -24, -22), place("T10", -24, -22), place("T12", -28, -10)]
    heart = scene.values.heart_hu
    lines = [
        (aorta, 13.0, artery),
        ([at(7, -85, -10), at(5, -65, -22), at(6, -48, -48)], 12.0, heart),
        ([at(5, -62, -15), at(6, -50, 10), at(6, -48, 45)], 11.0, heart),
        ([at(2, -52, 24), at(4, -62, 24), at(7, -66, 30)], 9.0, vein),
        ([place("C7", -28, -3), place("T5", -24, -4), place("T11", -34, -6)], 7.0, 35.0),
    ]
    lines += [([at(6, -48, side * 40), at(9, -30, side * 70)], 6.0, heart) for side in SIDES]
    airway = AIR_HU + 30
    lines += [([place("C6", -32, 0), at(2, -38, 0), at(5, -42, 3)], 8.5, airway)]
    lines += [([at(5, -42, 3), at(6, -45, side * 38)], 6.0, airway) for side in SIDES]
    for points, radius, value in lines:
        for a, b in pairwise(points):
            paint_shape(hu, scene.grid, Plate(a, b, (radius * s,) * 2, RIGHT), value)
    for plate in cartilages(scene.anatomy):
        paint_shape(hu, scene.grid, plate, 110.0)


def paint_ellipsoid(
    hu: np.ndarray, grid: BodyGrid, centre: np.ndarray, radii: np.ndarray, value: float | np.ndarray
) -> None:
    """Fill an ellipsoid along the axes of a grid: `hu` (shape grid.shape) is changed in place, mm and HU."""
    window = grid.window(centre - radii, centre + radii)
    if any(s.stop <= s.start for s in window):
        return
    parts = [np.square((axis - x) / half) for axis, x, half in zip(grid.axes(window), centre, radii)]
    inner = value[window] if isinstance(value, np.ndarray) else np.float32(value)
    np.copyto(hu[window], inner, where=parts[0] + parts[1] + parts[2] < 1)


def _paint_belly(hu: np.ndarray, scene: _Scene, cavity: np.ndarray, lowest: np.ndarray) -> None:
    """Fat and bowel before the spine, liver, spleen, stomach, kidneys, psoas."""
    s, u, v, i = scene.anatomy.stature, scene.u, scene.v, scene.grid.axes()[2]
    beside = np.abs(v)
    belly = cavity & (i >= lowest) & (u < np.where(beside > 40 * s, 12, -14) * s)
    hu[belly] = (FAT_HU + 8 * scene.fine)[belly]
    loops = belly & (u < -30 * s) & (i > scene.levels["T12"][2])
    hu[loops] = soft.bowel(scene.values, scene.coarse, scene.fine)[loops]
    liver_hu = (scene.values.organ_hu + 5 * scene.fine).astype(np.float32)
    r = scene.grid.axes()[1] - scene.levels["L1"][1]
    below = lowest + scene.rng.uniform(105, 165) * s * np.maximum(1 - np.square((r - 75 * s) / (125 * s)), 0)
    np.copyto(hu, liver_hu, where=belly & (i < below) & (u < np.where(beside > 45 * s, 8, -22) * s))
    organs = (
        (("spleen", -10, -88), (42, 30, 52), scene.values.organ_hu),
        (("stomach", -85, -60), (45, 46, 55), 35.0),
        (("stomach", -118, -55), (14, 36, 42), GAS_HU),
    )
    for where, half, value in organs:
        paint_ellipsoid(hu, scene.grid, scene.organ(*where), np.multiply(half, s), value)
    for side, name in zip(SIDES, ("kidney right", "kidney left")):
        centre = scene.organ(name, -6, side * 60)
        paint_ellipsoid(hu, scene.grid, centre, np.array([29, 32, 62]) * s, FAT_HU)
        paint_ellipsoid(hu, scene.grid, centre, np.array([25, 28, 55]) * s, scene.values.kidney_hu)
        paint_ellipsoid(
            hu, scene.grid, centre - np.array([0, side * 14, 0]), np.array([10, 12, 25]) * s, FAT_HU
        )
    psoas = np.square((u + 4) / (20 * s)) + np.square((beside - scene.course.body_width - 15) / (14 * s))
    np.copyto(hu, np.float32(MUSCLE_HU + 5), where=psoas < scene.course.lumbar)
    for vessel in scene.values.vessels[:4]:
        lower = max(vessel.extent[0], float(scene.levels["T12"][2]))
        soft.paint_tube(hu, (u, v, i), _from(vessel, lower))
    soft.paint_plaques(hu, (u, v, i), scene.values.plaques)


def _from(vessel: soft.Vessel, height: float) -> soft.Vessel:
    return soft.Vessel(vessel.offset, vessel.radius_mm, vessel.hu, (height, vessel.extent[1]))


def _paint_neck_and_head(hu: np.ndarray, scene: _Scene) -> None:
    """Airway and vessels of the neck; a skull with its brain, and the mouth below it."""
    at, i = scene.place, scene.grid.axes()[2]
    for vessel in scene.values.vessels[4:]:
        soft.paint_tube(hu, (scene.u, scene.v, i), vessel)
    throat = [at("C1", -32, 0, -30), at("C3", -24, 0), at("C6", -32, 0)]
    for a, b in pairwise(throat):
        paint_shape(hu, scene.grid, Plate(a, b, (7.0, 7.0), RIGHT), AIR_HU)
    paint_shape(hu, scene.grid, Plate(at("C1", -75, 0, -45), at("C1", -40, 0, -38), (9, 9), RIGHT), -950.0)


def _paint_face(hu: np.ndarray, scene: _Scene, outside: np.ndarray) -> None:
    """Flesh of face and jaw where the neck has ended, and fat under its skin."""
    atlas, s = scene.anatomy.vertebrae[0], scene.anatomy.stature
    flesh = hu.copy()
    for centre, half in (((-58, 0, -38), (66, 66, 72)), ((-62, 0, 22), (48, 58, 48))):
        for inset, value in ((0, FAT_HU), (7, MUSCLE_HU)):
            radii = np.array(half) * s - inset
            paint_ellipsoid(flesh, scene.grid, atlas.world(*np.multiply(centre, s)), radii, value)
    np.copyto(hu, flesh, where=outside)


def _paint_head(hu: np.ndarray, scene: _Scene) -> None:
    """Scalp, skull and brain above C1."""
    atlas, s = scene.anatomy.vertebrae[0], scene.anatomy.stature
    centre = atlas.world(-12 * s, 0, -92 * s)
    for half, value in (((102, 82, 86), 20.0), ((96, 76, 80), 900.0), ((90, 70, 73), 35.0)):
        paint_ellipsoid(hu, scene.grid, centre, np.multiply(half, s), value)


def _paint_canal(hu: np.ndarray, scene: _Scene) -> None:
    soft.fill_canal(hu, scene.grid.axes()[:2], scene.course)


def _paint_arms(hu: np.ndarray, scene: _Scene) -> None:
    """Muscles, fat and skin of shoulders and upper arms."""
    s, muscles = scene.anatomy.stature, (MUSCLE_HU + 8 * scene.coarse).astype(np.float32)
    for side in SIDES:
        joint, way = shoulder_joint(scene.anatomy, side)
        limbs = [Plate(joint, joint + way, (44 * s, 36 * s), POSTERIOR)]
        neck = scene.place("T2", 0, side * 60)
        limbs.append(Plate(neck, joint, (46 * s, 44 * s), POSTERIOR))
        for plate, inset, value in [(limb, 0.0, FAT_HU) for limb in limbs] + [
            (limb, 9.0, muscles) for limb in limbs
        ]:
            thin = Plate(plate.start, plate.end, tuple(x - inset for x in plate.radius), plate.across)
            _paint_over_air(hu, scene.grid, thin, value, is_fat=inset == 0)


def _paint_over_air(
    hu: np.ndarray, grid: BodyGrid, plate: Plate, value: float | np.ndarray, *, is_fat: bool
) -> None:
    """Paint a limb where there is air outside the body, or, its muscles, fat."""
    window = shape_window(grid, plate)
    if any(s.stop <= s.start for s in window):
        return
    part = hu[window]
    free = part < -990 if is_fat else (part < -60) & (part > -140)
    before = part.copy()
    paint_shape(hu, grid, plate, value)
    part[~free] = before[~free]


def _paint_table(hu: np.ndarray, scene: _Scene) -> None:
    """The scanner's table, behind, before or beside the body: a curved shell with foam in it."""
    p, r, _ = scene.grid.axes()
    lying = scene.anatomy.habitus.lying
    body = np.argwhere((hu > -500).any(2)) * scene.grid.step_mm
    if not len(body):
        return
    first, last = body.min(0) + scene.grid.origin[:2], body.max(0) + scene.grid.origin[:2]
    middle = (first + last) / 2
    depth = {
        "supine": (p - last[0], r - middle[1]),
        "prone": (first[0] - p, r - middle[1]),
        "right": (r - last[1], p - middle[0]),
        "left": (first[1] - r, p - middle[0]),
    }[lying]
    below = depth[0] + np.square(depth[1]) / 1400 - scene.rng.uniform(1, 6)
    free = (hu < -990) & (np.abs(depth[1]) < 210)[..., :1]
    shell, foam = (below > 0) & (below < 3), (below >= 3) & (below < 26)
    np.copyto(hu, np.float32(scene.rng.uniform(-350, 100)), where=free & shell)
    np.copyto(hu, np.float32(scene.rng.uniform(-960, -850)), where=free & foam)
