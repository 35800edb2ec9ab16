"""Second step of the phantom: give the drawn bones and the body around them Hounsfield units, on one grid.

Bone is painted over soft tissue in proportion to how much of a voxel it fills. Values are those of the literature and of
clinical scans: cortical bone 500-1300 HU, cancellous bone 80-300 HU, muscle 50, fat -100, lung -850, contrast in
vessels 150-350, calcified plaques 200-900.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.verse.phantom.anatomy import Anatomy
from utils.verse.phantom.shapes import FAR_MM, Body, Grid, Solid, body_distance, solid_distance
from utils.verse.phantom.skeleton import RIB, bones, cage_at

AIR_HU, FAT_HU, MUSCLE_HU, LUNG_HU = -1000.0, -100.0, 52.0, -860.0
# How far outside a bone its name is still known, so that a mask can be read off at any finer spacing.
NAME_MARGIN_MM = 2.5


@dataclass(frozen=True)
class BoneValues:
    """Bone of one subject: HU of cancellous bone in bodies and arches, of cortex; thickness of the cortex in mm."""

    body: float
    arch: float
    cortex: float
    shell_mm: float
    texture: float
    spread: np.ndarray


@dataclass(frozen=True)
class Vessel:
    """A tube beside the spine: offset (P, R) from the bodies' centre line in mm, radius, HU, extent in mm along I."""

    offset: tuple[float, float]
    radius_mm: float
    hu: float
    extent: tuple[float, float]


@dataclass(frozen=True)
class TissueValues:
    """All that the tissue step draws: bone, vessels, plaques, gas, and the seed of its textures."""

    bone: BoneValues
    vessels: tuple[Vessel, ...]
    plaques: np.ndarray
    bowel_contrast_hu: float
    organ_hu: float
    disc_hu: np.ndarray
    disc_gas: np.ndarray
    seed: int


@dataclass(frozen=True)
class Tissue:
    """A body in Hounsfield units.

    Attributes
    ----------
    grid : Grid
        Where the voxels lie in the body frame.
    hu : np.ndarray of float32, shape grid.shape
        Hounsfield units.
    distance : np.ndarray of float32, shape grid.shape
        Signed distance to the nearest bone, mm; `FAR_MM` where none is near.
    nearest : np.ndarray of uint8, shape grid.shape
        Code of that bone: a VerSe code, `RIB`, `SACRUM`, `SKULL`, 0 where none is near.
    """

    grid: Grid
    hu: np.ndarray
    distance: np.ndarray
    nearest: np.ndarray

    @property
    def region(self) -> np.ndarray:
        """Code of the bone that each voxel belongs to, 0 outside bones."""
        return np.where(self.distance < 0, self.nearest, 0).astype(np.uint8)

    @property
    def labels(self) -> np.ndarray:
        """VerSe codes of all vertebrae in the grid, whether cut by its border or not."""
        region = self.region
        region[region >= RIB] = 0
        return region


def draw_tissue(rng: np.random.Generator, anatomy: Anatomy) -> TissueValues:
    """Draw the values of one scan: bone density, contrast phase, plaques, gas.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    anatomy : Anatomy
        The subject.

    Returns
    -------
    TissueValues
        What `render_tissue` needs.
    """
    count = len(anatomy.vertebrae)
    dense = rng.uniform(0, 1)
    body = 90 + 170 * dense
    bone = BoneValues(
        body=body,
        arch=body + rng.uniform(120, 260),
        cortex=rng.uniform(480, 760) + 250 * dense,
        shell_mm=rng.uniform(0.8, 1.25),
        texture=rng.uniform(30, 70),
        spread=rng.normal(0, 15, count),
    )
    vessels = _draw_vessels(rng, anatomy)
    return TissueValues(
        bone,
        vessels,
        _draw_plaques(rng, vessels),
        bowel_contrast_hu=float(rng.uniform(150, 350)) if rng.random() < 0.4 else 30.0,
        organ_hu=float(rng.uniform(40, 60) + (rng.uniform(30, 70) if rng.random() < 0.6 else 0)),
        disc_hu=rng.uniform(60, 110, count),
        disc_gas=rng.random(count) < 0.06,
        seed=int(rng.integers(2**31)),
    )


def _draw_vessels(rng: np.random.Generator, anatomy: Anatomy) -> tuple[Vessel, ...]:
    contrast = rng.random() < 0.65
    artery = float(rng.uniform(150, 350)) if contrast else 42.0
    vein = float(rng.uniform(100, 220)) if contrast else 40.0
    levels = {v.name: v for v in anatomy.vertebrae}
    top, fork, neck = (levels[name].origin[2] for name in ("T4", "L4", "C3"))
    s = anatomy.stature
    shift = rng.normal(0, 3, 4)
    return (
        Vessel((-30 * s, -14 + shift[0]), rng.uniform(9, 14) * s, artery, (top, fork)),
        Vessel((-32 * s, 17 + shift[1]), rng.uniform(8, 11) * s, vein, (levels["T9"].origin[2], fork)),
        Vessel((-30 * s, -22 + shift[2]), 5.5 * s, artery, (fork, fork + 120)),
        Vessel((-30 * s, 22 + shift[3]), 5.5 * s, artery, (fork, fork + 120)),
        Vessel((-16 * s, -27), 3.6 * s, artery, (neck - 40, top)),
        Vessel((-16 * s, 27), 3.6 * s, artery, (neck - 40, top)),
        Vessel((-14 * s, -35), 5.0 * s, vein, (neck - 40, top)),
        Vessel((-14 * s, 35), 5.5 * s, vein, (neck - 40, top)),
    )


def _draw_plaques(rng: np.random.Generator, vessels: tuple[Vessel, ...]) -> np.ndarray:
    """Calcified plaques of the artery walls: offset P and R, I, radius in mm, HU; shape (n, 5)."""
    rows = []
    for vessel in vessels[:1] + vessels[2:6]:
        for _ in range(rng.poisson(rng.choice([0.5, 6.0, 16.0]))):
            angle = rng.uniform(0, 2 * np.pi)
            p, r = vessel.offset + vessel.radius_mm * np.array([np.cos(angle), np.sin(angle)])
            rows.append((p, r, rng.uniform(*vessel.extent), rng.uniform(1.2, 3.5), rng.uniform(200, 900)))
    return np.array(rows).reshape(-1, 5)


def render_tissue(anatomy: Anatomy, values: TissueValues, grid: Grid) -> Tissue:
    """Fill a grid with the body of a subject.

    Parameters
    ----------
    anatomy : Anatomy
        The subject.
    values : TissueValues
        Values drawn by `draw_tissue`.
    grid : Grid
        The voxels to fill.

    Returns
    -------
    Tissue
        Hounsfield units, and which bone lies where.
    """
    rng = np.random.default_rng(values.seed)
    hu = _soft_tissue(anatomy, values, grid, rng)
    _paint_discs(hu, anatomy, values, grid)
    distance = np.full(grid.shape, FAR_MM, np.float32)
    nearest = np.zeros(grid.shape, np.uint8)
    bone_hu = np.zeros(grid.shape, np.float32)
    for index, (code, solid) in enumerate(bones(anatomy)):
        window = grid.window(*solid.bounds(3.0))
        if all(s.stop > s.start for s in window):
            spread = values.bone.spread[index] if index < len(values.bone.spread) else 0.0
            field, body = solid_distance(solid, grid, window)
            closer = field < distance[window]
            distance[window][closer] = field[closer]
            nearest[window][closer & (field < NAME_MARGIN_MM)] = code
            bone_hu[window][closer] = _bone_hu(field, body, values.bone, spread)[closer]
    filled = np.clip(0.5 - distance / np.float32(grid.step_mm), 0, 1)
    bone_hu += values.bone.texture * _texture(rng, grid)
    hu += filled * (bone_hu - hu)
    return Tissue(grid, hu, distance, nearest)


def _bone_hu(field: np.ndarray, body: np.ndarray, values: BoneValues, spread: float) -> np.ndarray:
    """Cancellous bone under a cortex that fades over its own thickness."""
    inside = np.where(body < 0.5, np.float32(values.body + spread), np.float32(values.arch + spread))
    shell = np.clip(1.4 + field / np.float32(values.shell_mm), 0, 1)
    return inside + shell * (np.float32(values.cortex) - inside)


def _texture(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Trabeculae: noise of unit variance, correlated over about a millimetre."""
    noise = rng.standard_normal(grid.shape, np.float32)
    sigma = 0.8 / grid.step_mm
    noise = ndimage.gaussian_filter(noise, sigma, truncate=2.5)
    return noise / np.float32(max(noise[::4, ::4, ::4].std(), 1e-6))


def smooth_field(rng: np.random.Generator, grid: Grid, length_mm: float) -> np.ndarray:
    """A random field of about unit variance that changes over `length_mm`, shape grid.shape."""
    counts = [int(np.ceil(n * grid.step_mm / length_mm)) + 2 for n in grid.shape]
    field = rng.standard_normal(counts, np.float32) * np.float32(1.6)
    for axis, n in enumerate(grid.shape):
        x = np.arange(n) * grid.step_mm / length_mm
        left = np.floor(x).astype(int)
        # A smooth step between the knots instead of a straight line: no kinks to be learnt.
        weight = (x - left) ** 2 * (3 - 2 * (x - left))
        matrix = np.zeros((n, counts[axis]), np.float32)
        matrix[np.arange(n), left] = 1 - weight
        matrix[np.arange(n), left + 1] += weight
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return field


def _paint_discs(hu: np.ndarray, anatomy: Anatomy, values: TissueValues, grid: Grid) -> None:
    """Discs between the bodies, one now and then with a gas cleft (vacuum phenomenon)."""
    for k, (upper, lower) in enumerate(zip(anatomy.vertebrae[1:], anatomy.vertebrae[2:])):
        top = upper.world(0, 0, upper.size.height / 2)
        bottom = lower.world(0, 0, -lower.size.height / 2)
        height = float(np.linalg.norm(bottom - top))
        size = upper.size
        disc = Body(
            (top + bottom) / 2,
            upper.rotation,
            size.depth / 2 * 1.02,
            size.width / 2,
            (height + 5, height + 7, height + 4),
            -0.04,
        )
        _fill(hu, disc, grid, float(values.disc_hu[k]))
        if values.disc_gas[k]:
            cleft = Body(
                disc.origin, disc.rotation, size.depth * 0.3, size.width * 0.25, (1.5, 2.2, 1.2), 0.0
            )
            _fill(hu, cleft, grid, -500.0)


def _fill(hu: np.ndarray, body: Body, grid: Grid, value: float) -> None:
    corners = body.corners()
    window = grid.window(corners.min(0) - 1, corners.max(0) + 1)
    if all(s.stop > s.start for s in window):
        filled = np.clip(0.5 - body_distance(body, grid.axes(window)) / np.float32(grid.step_mm), 0, 1)
        hu[window] += filled * (value - hu[window])


@dataclass(frozen=True)
class _Course:
    """What changes along the body, for every slice of the grid: everything in mm, shape (1, 1, n)."""

    spine_p: np.ndarray
    spine_r: np.ndarray
    half_depth: np.ndarray
    half_width: np.ndarray
    trunk_p: np.ndarray
    cage_p: np.ndarray
    cage_depth: np.ndarray
    cage_width: np.ndarray
    canal_p: np.ndarray
    canal_r: np.ndarray
    canal_width: np.ndarray
    canal_depth: np.ndarray
    body_width: np.ndarray
    thorax: np.ndarray
    lumbar: np.ndarray


def _course(anatomy: Anatomy, grid: Grid) -> _Course:
    i = grid.axes()[2].ravel()
    vertebrae = anatomy.vertebrae
    at = anatomy.body_centres()[:, 2]

    def along(values: list[float], heights: np.ndarray = at) -> np.ndarray:
        return np.interp(i, heights, values).astype(np.float32)[None, None]

    sacrum = anatomy.sacrum[0]
    spine = np.vstack([anatomy.body_centres(), sacrum, sacrum + anatomy.sacrum[1] @ [5, 0, 80]])
    names = {v.name: v.origin[2] for v in vertebrae}
    marks = np.array([at[0] - 30, at[0] + 20, names["C6"], names["T3"], names["T8"], names["L2"], sacrum[2]])
    s, girth = anatomy.stature, anatomy.stature * anatomy.girth
    depth = np.array([92, 66, 60, 85, 108, 108, 112]) * np.array([s, s, s, girth, girth, girth, girth])
    width = np.array([78, 64, 66, 165, 160, 155, 178]) * np.array([s, s, s, girth, girth, girth, girth])
    skin = [v.size.depth / 2 + v.size.canal_depth + 4 + _tail(v) for v in vertebrae]
    back = np.maximum(spine[:-2, 0] + skin, 0) if False else spine[:-2, 0] + skin
    back = ndimage.maximum_filter1d(back, 3) + anatomy.fat_mm
    cages = [cage_at(anatomy, v) for v in vertebrae]
    canals = np.array([v.world(v.size.depth / 2 + v.size.canal_depth / 2, 0, 0) for v in vertebrae])
    half_depth = along(list(depth), marks)
    return _Course(
        spine_p=along(list(spine[:, 0]), spine[:, 2]),
        spine_r=along(list(spine[:, 1]), spine[:, 2]),
        half_depth=half_depth,
        half_width=along(list(width), marks),
        trunk_p=along(list(ndimage.gaussian_filter1d(back, 1.5))) - half_depth,
        cage_p=along([c[0][0] for c in cages]),
        cage_depth=along([c[1] for c in cages]),
        cage_width=along([c[2] for c in cages]),
        canal_p=along(list(canals[:, 0]), canals[:, 2]),
        canal_r=along(list(canals[:, 1]), canals[:, 2]),
        canal_width=along([v.size.canal_width / 2 for v in vertebrae]),
        canal_depth=along([v.size.canal_depth / 2 for v in vertebrae]),
        body_width=along([v.size.width / 2 for v in vertebrae]),
        thorax=along([0, 1, 1, 0], np.array([names["T1"] - 12, names["T2"], names["T11"], names["L1"]])),
        lumbar=along([0, 1], np.array([names["T11"], names["L2"]])),
    )


def _tail(vertebra: object) -> float:
    return vertebra.size.spinous_length * float(np.cos(np.radians(vertebra.size.spinous_drop)))


def _soft_tissue(anatomy: Anatomy, values: TissueValues, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Air, skin, fat, muscle, lungs, organs, gas, vessels, and the contents of the canal."""
    course = _course(anatomy, grid)
    p, r, i = grid.axes()
    coarse = smooth_field(rng, grid, 14.0)
    u, v = p - course.spine_p, r - course.spine_r
    trunk = np.sqrt(np.square((p - course.trunk_p) / course.half_depth) + np.square(v / course.half_width))
    under_skin = (1 - trunk) * np.minimum(course.half_depth, course.half_width)
    hu = np.where(under_skin > anatomy.fat_mm + 4 * coarse, MUSCLE_HU + 6 * coarse, FAT_HU).astype(np.float32)
    hu[(coarse > 1.6) & (u > 0)] = FAT_HU * 0.6  # fat between the muscles of the back
    cage = np.sqrt(np.square((p - course.cage_p) / course.cage_depth) + np.square(v / course.cage_width))
    _fill_cavity(hu, (u, v, cage, coarse), course, values, smooth_field(rng, grid, 9.0))
    _fill_vessels(hu, (u, v, i), values)
    _fill_canal(hu, (p, r), course)
    hu[under_skin < 2.0] = 10.0
    hu[under_skin < 0] = AIR_HU
    return hu


def _fill_cavity(
    hu: np.ndarray, place: tuple[np.ndarray, ...], course: _Course, values: TissueValues, fine: np.ndarray
) -> None:
    """Lungs in the chest; fat, organs, bowel with gas or contrast in the belly; airway in the neck."""
    u, v, cage, coarse = place
    beside = np.abs(v)
    # The lungs reach back beside the bodies; the mediastinum between them widens towards the front.
    middle = course.body_width + 7 + np.clip(-u - 12, 0, 45) * 0.75
    lung = (cage < 0.93) & (beside > middle) & (course.thorax > 0.5)
    belly = (cage < 0.95) & (u < -course.body_width * 0.72) & (course.lumbar > 0.3) & (course.thorax <= 0.5)
    mediastinum = (cage < 0.9) & (u < -14) & (course.thorax > 0.5) & ~lung & (coarse < -0.3)
    hu[mediastinum] = FAT_HU
    hu[lung] = (LUNG_HU + 60 * np.clip(fine, -1, 4) + 500 * (fine > 2.7))[lung]
    content = np.where(coarse > 0.1, values.organ_hu, FAT_HU)
    content[(coarse > 1.0) & (fine > 0.3)] = values.bowel_contrast_hu
    content[(coarse > 1.0) & (fine > 1.2)] = -850.0
    hu[belly] = content[belly].astype(np.float32)
    psoas = np.square((u + 4) / 20) + np.square((beside - course.body_width - 15) / 14) < course.lumbar
    hu[psoas & (course.thorax < 0.9)] = MUSCLE_HU + 5
    airway = (np.square((u + 34) / 8) + np.square(v / 9) < 1) & (course.lumbar == 0) & (course.thorax < 0.9)
    hu[airway] = AIR_HU + 20


def _fill_vessels(hu: np.ndarray, place: tuple[np.ndarray, ...], values: TissueValues) -> None:
    u, v, i = place
    heights = i.ravel()
    for vessel in values.vessels:
        rows = np.flatnonzero((heights > vessel.extent[0]) & (heights < vessel.extent[1]))
        if rows.size:
            span = slice(rows[0], rows[-1] + 1)
            p, r = vessel.offset
            square = np.square(u[:, :, span] - p) + np.square(v[:, :, span] - r)
            hu[:, :, span][square < vessel.radius_mm**2] = vessel.hu
    for p, r, height, radius, value in values.plaques:
        rows = np.flatnonzero(np.abs(heights - height) < 2 * radius)
        if rows.size:
            span = slice(rows[0], rows[-1] + 1)
            square = np.square(u[:, :, span] - p) + np.square(v[:, :, span] - r)
            square = square + np.square((i[:, :, span] - height) / 2)
            hu[:, :, span][square < radius**2] = value


def _fill_canal(hu: np.ndarray, place: tuple[np.ndarray, ...], course: _Course) -> None:
    """Epidural fat, fluid and the cord."""
    u = (place[0] - course.canal_p) / (course.canal_depth + 1)
    v = (place[1] - course.canal_r) / (course.canal_width + 1)
    radius = np.square(u) + np.square(v)
    hu[radius < 1.1] = -40.0
    hu[radius < 0.72] = 18.0
    hu[radius < 0.3] = 38.0
