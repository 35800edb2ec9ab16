"""Soft tissue of the phantom: skin, fat, muscle, lungs, organs, gas, vessels, and the spinal canal.

All of it hangs on the spine's centre line: offsets along posterior and right are taken from the body centres,
interpolated at each height, so that the vessels and the canal follow the curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.synthetic.noise import KNOT_SD, smooth_steps
from utils.synthetic.phantom.anatomy import Anatomy, Vertebra
from utils.synthetic.phantom.shapes import BodyGrid
from utils.synthetic.phantom.skeleton import cage_at
from utils.synthetic.phantom.values import TissueValues, Vessel

AIR_HU, FAT_HU, MUSCLE_HU, LUNG_HU, GAS_HU = -1000.0, -100.0, 52.0, -860.0, -850.0


def smooth_field(rng: np.random.Generator, grid: BodyGrid, length_mm: float) -> np.ndarray:
    """A random field of about unit variance that changes over `length_mm`, shape grid.shape."""
    counts = [int(np.ceil(n * grid.step_mm / length_mm)) + 2 for n in grid.shape]
    field = rng.standard_normal(counts, np.float32) * KNOT_SD
    for axis, n in enumerate(grid.shape):
        left, weight = smooth_steps(np.arange(n) * grid.step_mm / length_mm)
        matrix = np.zeros((n, counts[axis]), np.float32)
        matrix[np.arange(n), left] = 1 - weight
        matrix[np.arange(n), left + 1] += weight
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return field


@dataclass(frozen=True)
class Course:
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
    apex: np.ndarray
    base: np.ndarray
    lumbar: np.ndarray


def course_of(anatomy: Anatomy, grid: BodyGrid) -> Course:
    """Give the course of the body of a subject over the slices of a grid."""
    slices = grid.axes()[2].ravel()
    vertebrae, sizes = anatomy.vertebrae, [v.size for v in anatomy.vertebrae]
    at = anatomy.body_centres()[:, 2]

    def along(values: list[float] | np.ndarray, heights: list[float] | np.ndarray = at) -> np.ndarray:
        return np.interp(slices, heights, values).astype(np.float32)[None, None]

    sacrum, turn = anatomy.sacrum
    spine = np.vstack([anatomy.body_centres(), sacrum, sacrum + turn @ [5, 0, 80]])
    names = {v.name: v.origin[2] for v in vertebrae}
    cages = [cage_at(anatomy, v) for v in vertebrae]
    canals = np.array([v.world(v.size.depth / 2 + v.size.canal_depth / 2, 0, 0) for v in vertebrae])
    heights, depths, widths, back = _trunk(anatomy, names)
    return Course(
        spine_p=along(spine[:, 0], spine[:, 2]),
        spine_r=along(spine[:, 1], spine[:, 2]),
        half_depth=along(depths, heights),
        half_width=along(widths, heights),
        trunk_p=along(back) - along(depths, heights),
        cage_p=along([centre[0] for centre, _, _ in cages]),
        cage_depth=along([depth for _, depth, _ in cages]),
        cage_width=along([width for _, _, width in cages]),
        canal_p=along(canals[:, 0], canals[:, 2]),
        canal_r=along(canals[:, 1], canals[:, 2]),
        canal_width=along([size.canal_width / 2 for size in sizes]),
        canal_depth=along([size.canal_depth / 2 for size in sizes]),
        body_width=along([size.width / 2 for size in sizes]),
        apex=along([0, 1], [names["T1"] - 15, names["T3"]]),
        base=along([1, 0], [names["T8"], names["L1"] + 10]),
        lumbar=along([0, 1], [names["T11"], names["L2"]]),
    )


def _trunk(anatomy: Anatomy, names: dict[str, float]) -> tuple[np.ndarray, ...]:
    """The skin's ellipse: its half depths and half widths at given heights; its back at each vertebra."""
    top, pelvis = anatomy.vertebrae[0].origin[2], anatomy.sacrum[0][2]
    heights = np.array([top - 30, top + 20, names["C6"], names["T3"], names["T8"], names["L2"], pelvis])
    size = anatomy.stature * np.array([1, 1, 1, *[anatomy.girth] * 4])
    depths = size * (92, 66, 60, 85, 108, 108, 112)
    widths = size * (78, 64, 66, 165, 160, 155, 178)
    tips = [v.size.depth / 2 + v.size.canal_depth + 4 + _tail(v) for v in anatomy.vertebrae]
    back = ndimage.maximum_filter1d(anatomy.body_centres()[:, 0] + tips, 3) + anatomy.fat_mm
    return heights, depths, widths, ndimage.gaussian_filter1d(back, 1.5)


def _tail(vertebra: Vertebra) -> float:
    return vertebra.size.spinous_length * float(np.cos(np.radians(vertebra.size.spinous_drop)))


def soft_tissue(
    anatomy: Anatomy, values: TissueValues, grid: BodyGrid, rng: np.random.Generator
) -> np.ndarray:
    """Air, skin, fat, muscle, lungs, organs, gas, vessels, and the contents of the canal."""
    course = course_of(anatomy, grid)
    p, r, i = grid.axes()
    coarse = smooth_field(rng, grid, 14.0)
    u, v = p - course.spine_p, r - course.spine_r
    trunk = np.sqrt(np.square((p - course.trunk_p) / course.half_depth) + np.square(v / course.half_width))
    under_skin = (1 - trunk) * np.minimum(course.half_depth, course.half_width)
    hu = np.where(under_skin > anatomy.fat_mm + 4 * coarse, MUSCLE_HU + 6 * coarse, FAT_HU).astype(np.float32)
    hu[(coarse > 1.6) & (u > 0)] = FAT_HU * 0.6  # fat between the muscles of the back
    cage = np.sqrt(np.square((p - course.cage_p) / course.cage_depth) + np.square(v / course.cage_width))
    _fill_cavity(hu, (u, v, cage, coarse), course, values, smooth_field(rng, grid, 9.0))
    for vessel in values.vessels:
        paint_tube(hu, (u, v, i), vessel)
    paint_plaques(hu, (u, v, i), values.plaques)
    fill_canal(hu, (p, r), course)
    hu[under_skin < 2.0] = 10.0
    hu[under_skin < 0] = AIR_HU
    return hu


def _fill_cavity(
    hu: np.ndarray, place: tuple[np.ndarray, ...], course: Course, values: TissueValues, fine: np.ndarray
) -> None:
    """Lungs in the chest; fat, organs, bowel with gas or contrast in the belly; airway in the neck."""
    u, v, cage, coarse = place
    beside = np.abs(v)
    # The lungs reach back beside the bodies; the mediastinum between them widens towards the front.
    middle = course.body_width + 7 + np.clip(-u - 12, 0, 45) * 0.75
    # The diaphragm is a dome, the lung's apex another: high in the middle of each, low at the ribs.
    dome = 0.1 + 0.75 * np.maximum(1 - np.square(cage), 0)
    chest = (course.base > dome) & (course.apex > 0.15 + 0.7 * np.minimum(np.square(cage), 1))
    lung = (cage < 0.93) & (beside > middle) & chest
    hu[(cage < 0.9) & (u < -14) & chest & ~lung & (coarse < -0.3)] = FAT_HU
    hu[lung] = (LUNG_HU + 60 * np.clip(fine, -1, 4) + 500 * (fine > 2.7))[lung]
    belly = (cage < 0.95) & (u < -course.body_width * 0.72) & (course.base <= dome)
    liver = belly & (v > 8) & (course.base > 0) & (coarse > -1.3)
    hu[belly] = bowel(values, coarse, fine)[belly]
    hu[liver] = np.float32(values.organ_hu)
    psoas = np.square((u + 4) / 20) + np.square((beside - course.body_width - 15) / 14) < course.lumbar
    hu[psoas & ~chest] = MUSCLE_HU + 5
    hu[(np.square((u + 34) / 8) + np.square(v / 9) < 1) & (course.apex < 1)] = AIR_HU + 20


def bowel(values: TissueValues, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Loops in fat, some of them filled with contrast or gas."""
    content = np.where(coarse > 0.1, np.float32(values.organ_hu), np.float32(FAT_HU))
    content[(coarse > 1.0) & (fine > 0.3)] = values.bowel_contrast_hu
    content[(coarse > 1.0) & (fine > 1.2)] = GAS_HU
    return content


def paint_tube(hu: np.ndarray, place: tuple[np.ndarray, ...], vessel: Vessel) -> None:
    """Fill a vessel.

    Parameters
    ----------
    hu : np.ndarray of float32, (P, R, I)
        Changed in place.
    place : tuple of np.ndarray, (P, 1, I), (1, R, I) and (1, 1, I)
        Where the voxels lie: mm along P and R from the spine's centre line, and along it, in the unit of the
        vessel's extent.
    vessel : Vessel
        The vessel.
    """
    u, v, along = place
    rows = np.flatnonzero((along > vessel.extent[0]) & (along < vessel.extent[1]))
    if rows.size:
        part = np.s_[:, :, rows[0] : rows[-1] + 1]
        p, r = vessel.offset
        square = np.square(u[part] - p) + np.square(v[part] - r)
        np.copyto(hu[part], np.float32(vessel.hu), where=square < vessel.radius_mm**2)


def paint_plaques(hu: np.ndarray, place: tuple[np.ndarray, ...], plaques: np.ndarray) -> None:
    """Paint calcified plaques (n, 5) at places as those of `paint_tube`."""
    u, v, i = place
    for p, r, height, radius, value in plaques:
        rows = np.flatnonzero(np.abs(i - height) < 2 * radius)
        if rows.size:
            span = slice(rows[0], rows[-1] + 1)
            square = np.square(u[:, :, span] - p) + np.square(v[:, :, span] - r)
            square = square + np.square((i[:, :, span] - height) / 2)
            hu[:, :, span][square < radius**2] = value


def fill_canal(hu: np.ndarray, place: tuple[np.ndarray, ...], course: Course) -> None:
    """Epidural fat, fluid and the cord."""
    u = (place[0] - course.canal_p) / (course.canal_depth + 1)
    v = (place[1] - course.canal_r) / (course.canal_width + 1)
    radius = np.square(u) + np.square(v)
    hu[radius < 1.1] = -40.0
    hu[radius < 0.72] = 18.0
    hu[radius < 0.3] = 38.0
