"""Scan a rendered volume for the localiser: slices as exact averages, one spacing, noise, padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.imaging.intensities import whole_hu

_INFERIOR = 2


@dataclass(frozen=True)
class CoarseScan:
    """How a volume is scanned.

    Attributes
    ----------
    slice_axis : int
        Axis of (P, R, I) across the slices.
    slice_mm, pitch_mm : float
        Thickness of the slices, and the distance of their centres.
    pixel_mm : float
        Width over which the other two axes are averaged.
    sharpen : float
        Share of the detail that a kernel adds, negative where it takes some away.
    noise_hu, noise_voxels : float
        Standard deviation of the noise in the result, and over how many voxels it is alike.
    streaks : float
        How much louder the noise is along R, where the body is wide.
    padding_hu : int or None
        Value outside the scanner's circle.
    seed : int
        Seed of the noise.
    """

    slice_axis: int
    slice_mm: float
    pitch_mm: float
    pixel_mm: float
    sharpen: float
    noise_hu: float
    noise_voxels: float
    streaks: float
    padding_hu: int | None
    seed: int


def draw_coarse_scan(
    rng: np.random.Generator, *, slice_mm: tuple[float, float], noise_hu: tuple[float, float]
) -> CoarseScan:
    """Draw how a volume is scanned: slices within bounds of thickness, noise within those at 1 mm."""
    thickness = float(
        rng.choice([1, 1.25, 1.5, 2, 2.5, 3, 4, 5]) if rng.random() < 0.7 else rng.uniform(*slice_mm)
    )
    loud = float(np.exp(rng.uniform(*np.log(noise_hu))))
    # Voxels of 3 mm average over many finer ones, whose noise is not independent of one another.
    return CoarseScan(
        slice_axis=int(rng.choice([_INFERIOR, 1, 0], p=(0.8, 0.12, 0.08))),
        slice_mm=float(np.clip(thickness, *slice_mm)),
        pitch_mm=thickness * float(rng.choice([0.5, 0.8, 1.0], p=(0.15, 0.15, 0.7))),
        pixel_mm=float(rng.uniform(1.0, 3.3)),
        sharpen=float(rng.uniform(-0.5, 0.6)),
        noise_hu=loud / float(rng.uniform(2.0, 4.5)),
        noise_voxels=float(rng.uniform(0, 0.7)),
        streaks=float(rng.choice([0, rng.uniform(0.5, 2)])),
        padding_hu=int(rng.choice([-1024, -2048])) if rng.random() < 0.15 else None,
        seed=int(rng.integers(2**31)),
    )


def slab_means(
    volume: np.ndarray, axis: int, *, step_mm: float, centres_mm: np.ndarray, thickness_mm: float
) -> np.ndarray:
    """Average a volume over slabs, exactly: its voxels are boxes of one value.

    Parameters
    ----------
    volume : np.ndarray
        Voxels of edge `step_mm` along the axis; the first one begins at 0 mm.
    axis : int
        Across the slabs.
    step_mm : float
        Edge of a voxel.
    centres_mm : np.ndarray of float, (n,)
        Middles of the slabs.
    thickness_mm : float
        Of each slab. What reaches beyond the volume takes the value of its edge.

    Returns
    -------
    np.ndarray of float32
        The same shape but for n along the axis: differences of the integral, divided by the thickness.
    """
    count = volume.shape[axis]
    edges = np.arange(count + 1) * step_mm
    weights = np.zeros((len(centres_mm), count), np.float32)
    for row, centre in enumerate(centres_mm):
        low, high = centre - thickness_mm / 2, centre + thickness_mm / 2
        share = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)
        share[0] += max(min(high, 0.0) - low, 0)
        share[-1] += max(high - max(low, edges[-1]), 0)
        weights[row] = share / thickness_mm
    moved = np.tensordot(weights, volume.astype(np.float32, copy=False), axes=(1, axis))
    return np.moveaxis(moved, 0, axis)


def scan_coarsely(hu: np.ndarray, scan: CoarseScan, *, step_mm: float, spacing_mm: float) -> np.ndarray:
    """Scan a volume, and bring it to one spacing.

    Parameters
    ----------
    hu : np.ndarray of float32, (P, R, I)
        Hounsfield units, voxels of edge `step_mm`.
    scan : CoarseScan
        How.
    step_mm, spacing_mm : float
        Edges of the voxels before and after; both grids begin at the same corner.

    Returns
    -------
    np.ndarray of int16, (P, R, I)
        As many voxels of edge `spacing_mm` as fit into the volume.
    """
    counts = [max(int(n * step_mm / spacing_mm), 1) for n in hu.shape]
    for axis in sorted(range(3), key=lambda k: k == scan.slice_axis):
        centres = (np.arange(counts[axis]) + 0.5) * spacing_mm
        if axis == scan.slice_axis:
            hu = _through_slices(hu, axis, scan, step_mm=step_mm, centres_mm=centres)
        else:
            width = max(scan.pixel_mm, step_mm)
            hu = slab_means(hu, axis, step_mm=step_mm, centres_mm=centres, thickness_mm=width)
    hu = hu + scan.sharpen * (hu - ndimage.gaussian_filter(hu, 0.7, truncate=2.5))
    ct = whole_hu(np.maximum(hu + _coarse_noise(scan, hu), -1024))
    if scan.padding_hu is not None:
        ct[_outside_circle(ct.shape)] = scan.padding_hu
    return ct


def _through_slices(
    hu: np.ndarray, axis: int, scan: CoarseScan, *, step_mm: float, centres_mm: np.ndarray
) -> np.ndarray:
    """Average over slices; between their centres values are interpolated, finer slices are averaged."""
    length = hu.shape[axis] * step_mm
    slices = np.arange(scan.pitch_mm / 2, max(length, scan.pitch_mm), scan.pitch_mm)
    stack = slab_means(hu, axis, step_mm=step_mm, centres_mm=slices, thickness_mm=scan.slice_mm)
    spacing_mm = centres_mm[1] - centres_mm[0] if len(centres_mm) > 1 else scan.pitch_mm
    if scan.pitch_mm < spacing_mm:
        how = {"step_mm": scan.pitch_mm, "centres_mm": centres_mm, "thickness_mm": spacing_mm}
        return slab_means(stack, axis, **how)
    places = np.clip(centres_mm / scan.pitch_mm - 0.5, 0, len(slices) - 1)
    left = np.minimum(places.astype(int), max(len(slices) - 2, 0))
    right = np.minimum(left + 1, len(slices) - 1)
    weight = (places - left).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
    return stack.take(left, axis) * (1 - weight) + stack.take(right, axis) * weight


def _coarse_noise(scan: CoarseScan, hu: np.ndarray) -> np.ndarray:
    """Noise that is louder where beams cross much tissue, as a row along R with shoulders."""
    rng = np.random.default_rng(scan.seed)
    noise = rng.standard_normal(hu.shape, np.float32)
    if scan.noise_voxels > 0.1:
        noise = ndimage.gaussian_filter(noise, scan.noise_voxels, truncate=2.5)
        noise /= max(float(noise.std()), 1e-6)
    tissue = np.clip(hu + 1000, 0, None).mean(axis=1, keepdims=True) / 1000
    if scan.streaks:
        rows = ndimage.gaussian_filter1d(rng.standard_normal(hu.shape, np.float32), 6.0, axis=1)
        noise += scan.streaks * np.square(tissue) * rows / max(float(rows.std()), 1e-6)
    return noise * np.float32(scan.noise_hu) * (0.5 + 0.7 * tissue)


def _outside_circle(shape: tuple[int, int, int]) -> np.ndarray:
    """Whether voxels lie outside the circle that the longer side of an axial slice spans."""
    p, r = ((np.arange(n) - (n - 1) / 2)[:, None] for n in shape[:2])
    return np.broadcast_to(np.hypot(p, r.T)[..., None] > max(shape[:2]) / 2, shape)
