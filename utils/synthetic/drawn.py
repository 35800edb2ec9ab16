"""Draw whole scans for the localiser: phantoms of the wide ranges in fields of view of many kinds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.synthetic.coarse_scan import draw_coarse_scan, scan_coarsely
from utils.synthetic.drawn_scan import DrawnScan
from utils.synthetic.no_spine import NO_SPINE_KINDS, NO_SPINE_SHARES, draw_no_spine
from utils.synthetic.phantom.anatomy import Anatomy, rotation_of
from utils.synthetic.phantom.cage import cage_of
from utils.synthetic.phantom.ranges import WIDE
from utils.synthetic.phantom.shapes import BodyGrid
from utils.synthetic.phantom.subject import draw_subject
from utils.synthetic.phantom.tissue import render_tissue
from utils.synthetic.phantom.wide_values import draw_tissue_within

#: Share of fields of view with both walls of the chest, and of those around the spine alone.
TRUNK_SHARE, SPINE_SHARE = 0.5, 0.3
_PHANTOM_STREAM, _KIND_STREAM = 40, 41
_FINEST_MM, _COARSEST_MM, _MAX_VOXELS = 1.8, 2.6, 2.5e6
#: First and last level in sight of a chest, a belly, both, and a neck, and how often they are drawn.
_STRETCHES = (
    ((5, 9), (16, 21), 0.4),
    ((13, 17), (21, 24), 0.2),
    ((4, 9), (22, 24), 0.2),
    ((0, 1), (5, 14), 0.2),
)


@dataclass(frozen=True, eq=False)
class FieldOfView:
    """A box in a turned body frame: `frame` (3, 3) holds its axes as columns, `low` and `high` are in mm."""

    kind: str
    frame: np.ndarray
    low: np.ndarray
    high: np.ndarray


def draw_phantom_scan(seed: int, number: int, *, spacing_mm: float = 3.0) -> DrawnScan:
    """Draw a phantom of the wide ranges and scan it coarsely.

    Parameters
    ----------
    seed, number : int
        Fix all that is drawn.
    spacing_mm : float
        Edge of the scan's voxels.

    Returns
    -------
    DrawnScan
        Of kind "phantom", with the lengths of all ribs of the subject.
    """
    rng = np.random.default_rng([seed, number, _PHANTOM_STREAM])
    anatomy = draw_subject(rng, ranges=WIDE)
    values = draw_tissue_within(rng, anatomy, WIDE)
    view = draw_field_of_view(rng, anatomy)
    scan = draw_coarse_scan(rng, slice_mm=WIDE.slice_mm, noise_hu=WIDE.noise_hu)
    step_mm = float(np.clip(np.cbrt(np.prod(view.high - view.low) / _MAX_VOXELS), _FINEST_MM, _COARSEST_MM))
    grid = _grid_around(view, step_mm)
    hu = _turned(render_tissue(anatomy, values, grid).hu, grid, view)
    ct = scan_coarsely(hu, scan, step_mm=step_mm, spacing_mm=spacing_mm)
    points = {
        v.code: voxel
        for v in anatomy.vertebrae
        if _is_inside(voxel := _voxel(v.origin, view, spacing_mm), ct)
    }
    sacrum = _voxel(anatomy.sacrum[0], view, spacing_mm)
    ribs = dict(anatomy.habitus.ribs_mm)
    return DrawnScan(ct, spacing_mm, points, sacrum if _is_inside(sacrum, ct) else None, ribs, "phantom")


def draw_scan(seed: int, number: int, *, spacing_mm: float = 3.0, no_spine_share: float = 0.15) -> DrawnScan:
    """Draw a scan with a spine, or in the given share of the numbers one without (see `draw_no_spine`)."""
    rng = np.random.default_rng([seed, number, _KIND_STREAM])
    if rng.random() >= no_spine_share:
        return draw_phantom_scan(seed, number, spacing_mm=spacing_mm)
    kind = str(rng.choice(NO_SPINE_KINDS, p=NO_SPINE_SHARES))
    return draw_no_spine(seed, number, kind=kind, spacing_mm=spacing_mm)


def draw_field_of_view(rng: np.random.Generator, anatomy: Anatomy) -> FieldOfView:
    """Draw what a scan shows.

    Half of the fields of view hold the trunk with both walls of the chest, others the surroundings of the
    spine, the rest lies somewhere in between, off the middle. They begin and end anywhere, also within
    vertebrae; those from C1 on may show the skull, those down to the last vertebra the sacrum.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    anatomy : Anatomy
        A subject with a habitus.

    Returns
    -------
    FieldOfView
        The box; two in five are turned by a few degrees.
    """
    draw = rng.random()
    kind = "trunk" if draw < TRUNK_SHARE else "spine" if draw < TRUNK_SHARE + SPINE_SHARE else "part"
    frame = rotation_of(rng.normal(0, (7, 4, 8))) if rng.random() < 0.4 else np.eye(3)
    first, last = _draw_stretch(rng, len(anatomy.vertebrae), kind)
    seen = anatomy.vertebrae[first : last + 1]
    centres = np.array([v.origin for v in seen]) @ frame
    ends = [0.5 * v.size.height * rng.uniform(-1, 2.5) for v in (seen[0], seen[-1])]
    if first == 0 and rng.random() < 0.6:
        ends[0] = rng.uniform(20, 130)
    if last == len(anatomy.vertebrae) - 1 and rng.random() < 0.8:
        ends[1] = rng.uniform(30, 140)
    low, high = _margins(rng, anatomy, seen, kind)
    low = np.append(centres[:, :2].min(0) - low, centres[:, 2].min() - ends[0])
    high = np.append(centres[:, :2].max(0) + high, centres[:, 2].max() + ends[1])
    high[2] = max(high[2], low[2] + 40)
    return FieldOfView(kind, frame, low, high)


def _draw_stretch(rng: np.random.Generator, count: int, kind: str) -> tuple[int, int]:
    """Draw the indices of the first and the last vertebra: as clinics scan, or any 3 to 26."""
    if kind == "trunk" or rng.random() < 0.3:
        firsts, lasts, _ = _STRETCHES[rng.choice(len(_STRETCHES), p=[share for *_, share in _STRETCHES])]
        first, last = int(rng.integers(firsts[0], firsts[1] + 1)), int(rng.integers(lasts[0], lasts[1] + 1))
        return first, min(last, count - 1)
    length = int(min(rng.integers(3, 12) if rng.random() < 0.75 else rng.integers(12, 27), count))
    # A start before the first or after the last possible one is moved there: ends come often enough.
    first = int(np.clip(rng.integers(-4, count - length + 6), 0, count - length))
    return first, first + length - 1


def _margins(rng: np.random.Generator, anatomy: Anatomy, seen: tuple, kind: str) -> tuple[np.ndarray, ...]:
    """How far beyond the body centres the box reaches: towards (front, left) and (back, right), mm."""
    near = rng.uniform((25, 25), (90, 75)), rng.uniform((45, 25), (85, 75))
    if kind == "spine":
        return near
    _, _, depth, width = cage_of(anatomy).at(np.array([v.origin[2] for v in seen])).max(1)
    wide = np.array([2 * depth - 20, width + anatomy.fat_mm])
    front = wide * (rng.uniform(0.9, 1.25), 1) + (0, rng.uniform(5, 60))
    back = np.array([rng.uniform(60, 120), wide[1] + rng.uniform(5, 60)])
    if kind == "trunk":
        return front, back
    share = rng.uniform(0.15, 1, 4)
    return near[0] * (1 - share[:2]) + front * share[:2], near[1] * (1 - share[2:]) + back * share[2:]


def _grid_around(view: FieldOfView, step_mm: float) -> BodyGrid:
    """The voxels to render: those of an upright box begin in its corner, a turned one lies within them."""
    if np.array_equal(view.frame, np.eye(3)):
        return BodyGrid(view.low + step_mm / 2, step_mm, _counts(view, step_mm))
    box = np.array([view.low, view.high])
    corners = np.array([[box[a, 0], box[b, 1], box[c, 2]] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    corners = corners @ view.frame.T
    low, high = corners.min(0) - step_mm, corners.max(0) + step_mm
    return BodyGrid(low, step_mm, tuple(int(n) for n in np.ceil((high - low) / step_mm) + 1))


def _counts(view: FieldOfView, step_mm: float) -> tuple[int, int, int]:
    return tuple(int(n) for n in np.ceil((view.high - view.low) / step_mm))


def _turned(hu: np.ndarray, grid: BodyGrid, view: FieldOfView) -> np.ndarray:
    """The rendered values on a grid of the same step along the axes of the field of view."""
    if np.array_equal(view.frame, np.eye(3)):
        return hu
    start = view.frame @ (view.low + grid.step_mm / 2)
    offset = (start - grid.origin) / grid.step_mm
    shape = _counts(view, grid.step_mm)
    return ndimage.affine_transform(hu, view.frame, offset, shape, order=1, mode="nearest")


def _voxel(point: np.ndarray, view: FieldOfView, spacing_mm: float) -> np.ndarray:
    return (view.frame.T @ point - view.low) / spacing_mm - 0.5


def _is_inside(voxel: np.ndarray, ct: np.ndarray) -> bool:
    return bool(np.all(voxel >= -0.5) and np.all(voxel <= np.array(ct.shape) - 0.5))
