"""Draw scans without a spine: thighs, arms, heads above C1, air, noise, values as of magnetic resonance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from utils.synthetic.coarse_scan import draw_coarse_scan, scan_coarsely
from utils.synthetic.drawn_scan import DrawnScan
from utils.synthetic.limbs import draw_limb
from utils.synthetic.phantom.inlays import paint_shape
from utils.synthetic.phantom.ranges import WIDE
from utils.synthetic.phantom.shapes import POSTERIOR, RIGHT, SIDES, BodyGrid, Plate
from utils.synthetic.phantom.soft import AIR_HU, FAT_HU, MUSCLE_HU, smooth_field
from utils.synthetic.phantom.subject import draw_subject
from utils.synthetic.phantom.trunk import paint_ellipsoid, trunk_tissue
from utils.synthetic.phantom.wide_values import draw_tissue_within

LIMBS = ("thigh", "arm")
NO_SPINE_KINDS = (*LIMBS, "head", "air", "noise", "mr")
#: How often each kind is drawn: bones of limbs are what is mistaken for a spine.
NO_SPINE_SHARES = (0.4, 0.27, *((1 - 0.67) / 4,) * 4)
_STEP_MM, _STREAM = 2.2, 42
#: What covers the place of the spine in a picture as of magnetic resonance, mm.
_COVER_MM = 45.0


def draw_no_spine(seed: int, number: int, *, kind: str, spacing_mm: float = 3.0) -> DrawnScan:
    """Draw a scan in which there is no vertebra.

    Parameters
    ----------
    seed, number : int
        Fix all that is drawn.
    kind : str
        "thigh" or "arm" (see `utils.synthetic.limbs.draw_limb`), "head" (a skull above C1),
        "air", "noise", or "mr" (a trunk without its spine, values of 0 to 1200 units).
    spacing_mm : float
        Edge of the scan's voxels.

    Returns
    -------
    DrawnScan
        Without points.

    Raises
    ------
    ValueError
        If the kind is unknown.
    """
    if kind not in NO_SPINE_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(NO_SPINE_KINDS)}, received {kind!r}.")
    rng = np.random.default_rng([seed, number, _STREAM, NO_SPINE_KINDS.index(kind)])
    scan = draw_coarse_scan(rng, slice_mm=WIDE.slice_mm, noise_hu=WIDE.noise_hu)
    draw = {"head": _head, "air": _air, "noise": _noise, "mr": _mr}
    hu, step_mm = draw_limb(rng, kind=kind) if kind in LIMBS else (draw[kind](rng), _STEP_MM)
    if kind in ("air", "noise", "mr"):
        scan = replace(
            scan, noise_hu=0.0 if kind == "noise" else scan.noise_hu * 0.3, streaks=0.0, padding_hu=None
        )
    return DrawnScan(scan_coarsely(hu, scan, step_mm=step_mm, spacing_mm=spacing_mm), spacing_mm, kind=kind)


def _grid(size_mm: np.ndarray) -> BodyGrid:
    """Voxels around the origin in P and R, downwards from it in I."""
    counts = tuple(int(n) for n in np.ceil(size_mm / _STEP_MM))
    return BodyGrid(np.array([-size_mm[0] / 2, -size_mm[1] / 2, 0.0]), _STEP_MM, counts)


def _head(rng: np.random.Generator) -> np.ndarray:
    s, length = rng.uniform(0.85, 1.1), rng.uniform(80, 180)
    grid = _grid(np.array([rng.uniform(190, 260), rng.uniform(160, 240), length]))
    hu = np.full(grid.shape, AIR_HU, np.float32)
    centre = np.array([*rng.normal(0, 6, 2), rng.uniform(60, 110)])
    skull, texture = rng.uniform(700, 1500), smooth_field(rng, grid, 14.0)
    brain = (35 + 5 * texture - 25 * (texture > 1.5)).astype(np.float32)
    shells = (((104, 82, 104), 25.0), ((98, 76, 98), skull), ((91, 69, 91), brain))
    for half, value in shells:
        paint_ellipsoid(hu, grid, centre, np.multiply(half, s), value)
    if rng.random() < 0.7:
        _face(hu, grid, rng, centre, s)
    return hu


def _face(hu: np.ndarray, grid: BodyGrid, rng: np.random.Generator, centre: np.ndarray, s: float) -> None:
    """Soft tissue, base of the skull, orbits, cavities of the nose and the jaws."""
    paint_ellipsoid(hu, grid, centre + np.array([-45, 0, 75]) * s, np.array([60, 62, 70]) * s, MUSCLE_HU)
    base = Plate(
        centre + np.array([-60, 0, 45]) * s, centre + np.array([35, 0, 62]) * s, (4, 5), RIGHT, (28, 40)
    )
    paint_shape(hu, grid, base, 700.0)
    for side in SIDES:
        ear = centre + np.array([5, side * 45, 58]) * s
        paint_ellipsoid(hu, grid, ear, np.array([14.0, 26, 12]) * s, rng.uniform(700, 1400))
        eye = centre + np.array([-78, side * 32, 40]) * s
        paint_ellipsoid(hu, grid, eye, np.array([20.0, 17, 17]) * s, FAT_HU)
        paint_ellipsoid(hu, grid, eye, np.array([12.0, 12, 12]) * s, 15.0)
        cheek = centre + np.array([-68, side * 30, 78]) * s
        paint_ellipsoid(hu, grid, cheek, np.array([20.0, 17, 20]) * s, 500.0)
        paint_ellipsoid(hu, grid, cheek, np.array([17.0, 14, 17]) * s, AIR_HU)
    nose = Plate(centre + np.array([-92, 0, 70]) * s, centre + np.array([-40, 0, 72]) * s, (8, 8), POSTERIOR)
    paint_shape(hu, grid, nose, AIR_HU)


def _draw_shape(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.uniform(100, 350, 3) / _STEP_MM)


def _air(rng: np.random.Generator) -> np.ndarray:
    """Air, at times with the scanner's table in it."""
    hu = np.full(_draw_shape(rng), AIR_HU, np.float32)
    if rng.random() < 0.5:
        p, r = np.ogrid[: hu.shape[0], : hu.shape[1]]
        below = p - 0.7 * hu.shape[0] + np.square(r - hu.shape[1] / 2) / 600
        hu[(below > 0) & (below < 1.5)] = rng.uniform(-350, 100)
        hu[(below >= 1.5) & (below < 12)] = rng.uniform(-960, -850)
    return hu


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Noise of any loudness and grain around any value."""
    noise = rng.standard_normal(_draw_shape(rng), np.float32)
    noise = ndimage.gaussian_filter(noise, rng.choice([0.5, rng.uniform(1, 6)]))
    return rng.uniform(-1000, 300) + rng.uniform(30, 600) * noise / max(float(noise.std()), 1e-6)


def _mr(rng: np.random.Generator) -> np.ndarray:
    """Soft tissue of a trunk in units as of magnetic resonance, with muscle in the place of the spine."""
    anatomy = draw_subject(rng, ranges=WIDE)
    values = draw_tissue_within(rng, anatomy, WIDE)
    first = int(rng.integers(5, 18))
    middle = anatomy.vertebrae[first].origin
    size = rng.uniform((180, 250, 80), (300, 420, 260))
    low = middle - size * (0.7, 0.5, 0.3)
    grid = BodyGrid(low, _STEP_MM, tuple(int(n) for n in size / _STEP_MM))
    hu = trunk_tissue(anatomy, values, grid, rng)
    _cover_spine(hu, grid, anatomy.body_centres())
    air, fat, soft = rng.uniform((0, 200, 100), (40, 1100, 600))
    units = np.interp(
        hu, [-1000, -850, -120, -80, 20, 80, 300], [air, 2 * air, fat, fat, soft, soft, 0.3 * soft]
    )
    shade = 1 + 0.25 * smooth_field(rng, grid, 150.0)
    return np.clip(units * shade, 0, 1200).astype(np.float32)


def _cover_spine(hu: np.ndarray, grid: BodyGrid, centres: np.ndarray) -> None:
    p, r, i = grid.axes()
    u, v = (axis - np.interp(i, centres[:, 2], centres[:, k]) for k, axis in enumerate((p, r)))
    cover = np.square(u - 20) + np.square(v) < _COVER_MM**2
    np.copyto(hu, np.float32(MUSCLE_HU), where=cover & (hu > -500))
