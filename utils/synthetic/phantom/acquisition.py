"""Third step of the phantom: scan the rendered body.

A scan has a field of view, a spacing and an orientation of its own, blur, noise, drift and padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine
from scipy import ndimage

from utils.imaging.grids import corners_of
from utils.imaging.intensities import whole_hu
from utils.synthetic.phantom.anatomy import Anatomy, rotation_of
from utils.synthetic.phantom.shapes import BodyGrid, bounds_of
from utils.synthetic.phantom.tissue import Tissue
from utils.synthetic.phantom.vertebra import vertebra_solids
from utils.verse.conventions import growth_mm
from utils.verse.labels import rank_of_code

# From the body frame (posterior, right, inferior) to the scanner's RAS+ millimetres of a NIfTI affine.
RAS_FROM_PRI = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, -1]])
#: The ends of the body frame's axes.
_BODY_AXES = (("A", "P"), ("L", "R"), ("S", "I"))
STYLES = ("2019", "2020-ax", "2020-sag")
#: Masks reach this far beyond the bone, as those of VerSe do.
MASK_BEYOND_MM = growth_mm("bone")
# About what a core renders in ten seconds.
MAX_VOXELS = 9e6


@dataclass(frozen=True)
class Acquisition:
    """One scan's geometry and faults.

    Attributes
    ----------
    affine : np.ndarray, shape (4, 4)
        From voxels to RAS+ mm.
    shape : tuple of int
        Voxels.
    noise_hu, noise_mm : float
        Standard deviation of the noise, and how far it is correlated.
    blur_mm : float
        Standard deviation of the point spread in the plane.
    drift_hu : float
        Amplitude of the slow change of intensity across the scan.
    padding_hu : int or None
        Value outside the scanner's circle; None where the circle holds the whole scan.
    seed : int
        Seed of noise and drift.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    noise_hu: float
    noise_mm: float
    blur_mm: float
    drift_hu: float
    padding_hu: int | None
    seed: int

    @property
    def spacing_mm(self) -> np.ndarray:
        """Voxel size along the array's axes, mm, shape (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def voxels_of(self, points: np.ndarray) -> np.ndarray:
        """Map points (n, 3) of the body frame to voxel indices (n, 3)."""
        return apply_affine(np.linalg.inv(self.affine), np.asarray(points) @ RAS_FROM_PRI.T)


def draw_acquisition(
    rng: np.random.Generator,
    anatomy: Anatomy,
    *,
    style: str = "2019",
    whole: tuple[int, int] | None = None,
) -> Acquisition:
    """Draw one scan of a subject.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    anatomy : Anatomy
        The subject.
    style : str
        "2019" (PIR, about 1 mm), "2020-ax" (LPS, thick axial slices), "2020-sag" (PIR, thick sagittal
        slices); "2020" is drawn from the last two.
    whole : tuple of int, optional
        Codes of the first and the last vertebra that must be seen whole; drawn if left out.

    Returns
    -------
    Acquisition
        What `acquire` needs.

    Raises
    ------
    ValueError
        If the style is unknown.
    """
    if style == "2020":
        style = STYLES[1 + int(rng.random() < 0.4)]
    if style not in STYLES:
        raise ValueError(f"Expected a style of {STYLES} or '2020', received {style!r}.")
    first, last = whole if whole is not None else _draw_stretch(rng, anatomy)
    oblique = style != "2019" and rng.random() < 0.5
    frame = rotation_of(rng.uniform(-9, 9, 3) if oblique else np.zeros(3))
    low, high = _draw_box(rng, anatomy, (first, last), frame)
    spacing = _draw_spacing(rng, style, high - low)
    axes = "LPS" if style == "2020-ax" else "PIR"
    padded = rng.random() < (0.15 if style == "2019" else 0.4)
    affine, shape = _place(frame, (low, high), spacing, axes)
    return Acquisition(
        affine,
        shape,
        noise_hu=float(rng.uniform(12, 55)),
        noise_mm=float(rng.uniform(0.3, 0.8)),
        blur_mm=float(rng.uniform(0.3, 0.7)),
        drift_hu=float(rng.uniform(0, 20)),
        padding_hu=int(rng.choice([-2048, -1024])) if padded else None,
        seed=int(rng.integers(2**31)),
    )


def _draw_stretch(rng: np.random.Generator, anatomy: Anatomy) -> tuple[int, int]:
    """First and last vertebra to be seen whole: mostly four to ten, now and then most of the spine."""
    total = len(anatomy.vertebrae)
    count = int(rng.integers(4, 11)) if rng.random() < 0.9 else int(rng.integers(11, 25))
    count = min(count, total)
    # Beyond the ends and back: most scans of VerSe reach L5, many C1, and few show only the middle.
    start = int(np.clip(rng.integers(-4, total - count + 10), 0, total - count))
    return anatomy.vertebrae[start].code, anatomy.vertebrae[start + count - 1].code


def _draw_box(
    rng: np.random.Generator, anatomy: Anatomy, stretch: tuple[int, int], frame: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Field of view around a stretch of vertebrae: lowest and highest corner in the turned body frame, mm."""
    first, last = (rank_of_code(code) for code in stretch)
    parts = [s for code, s in vertebra_solids(anatomy) if first <= rank_of_code(code) <= last]
    bounds = [bounds_of(points @ frame, radii, 0.0) for points, radii in (s.corners() for s in parts)]
    low = np.min([b[0] for b in bounds], axis=0)
    high = np.max([b[1] for b in bounds], axis=0)
    wide = rng.random() < 0.12
    before, behind = rng.uniform((10, 3), (70, 30))
    sides = rng.uniform(4, 28, 2)
    if wide:
        before, behind, sides = before + 50, behind + 20, sides + rng.uniform(30, 80)
    ends = np.where(rng.random(2) < 0.8, rng.uniform(1, 12, 2), rng.uniform(12, 30, 2))
    return low - np.array([before, sides[0], ends[0]]), high + np.array([behind, sides[1], ends[1]])


def _draw_spacing(rng: np.random.Generator, style: str, size_mm: np.ndarray) -> np.ndarray:
    """Spacing along posterior, right and inferior, mm; coarser where the field of view is large."""
    volume = float(np.prod(size_mm))
    if style == "2019":
        return np.array([1.0, 2.0 if rng.random() < 0.15 else 1.0, 1.0])
    fine = rng.choice([0.3, 0.4, 0.5, 0.6, 0.7, 0.8], p=(0.05, 0.1, 0.2, 0.25, 0.2, 0.2))
    if volume > 4.5e6:
        fine = rng.uniform(0.7, 1.0) if volume < 8e6 else rng.uniform(0.9, 1.3)
    thick = rng.choice([0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0])
    if style == "2020-ax":
        return np.array([fine, fine, max(thick, fine)])
    return np.array([fine, max(thick, 1.5), fine])


def _place(
    frame: np.ndarray, box: tuple[np.ndarray, np.ndarray], spacing: np.ndarray, axes: str
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of an array with the given axis codes that fills a turned box."""
    low, high = box
    counts = np.ceil((high - low) / spacing).astype(int)
    affine, shape = np.eye(4), []
    start = low + spacing / 2
    for column, (k, sign) in enumerate(orientations.axcodes2ornt(axes, _BODY_AXES).astype(int)):
        direction = np.zeros(3)
        direction[k] = sign
        affine[:3, column] = RAS_FROM_PRI @ frame @ direction * spacing[k]
        shape.append(int(counts[k]))
        if sign < 0:
            start[k] += (counts[k] - 1) * spacing[k]
    affine[:3, 3] = RAS_FROM_PRI @ frame @ start
    return affine, tuple(shape)


def whole_codes(anatomy: Anatomy, scan: Acquisition) -> list[int]:
    """Codes of the vertebrae that lie wholly inside the scan: those that get a label."""
    return [code for code, inside in _visible(anatomy, scan) if inside.all()]


def cut_codes(anatomy: Anatomy, scan: Acquisition) -> list[int]:
    """Codes of the vertebrae that the scan cuts: a tenth or more of their corners are seen, but not all."""
    return [code for code, inside in _visible(anatomy, scan) if 0.1 <= inside.mean() < 1]


def _visible(anatomy: Anatomy, scan: Acquisition) -> list[tuple[int, np.ndarray]]:
    """For each vertebra, which of the balls that span it lie inside the scan and its circle."""
    found = []
    for code, solid in vertebra_solids(anatomy):
        points, radii = solid.corners()
        voxels, reach = scan.voxels_of(points), radii[:, None] / scan.spacing_mm
        inside = ((voxels - reach > -0.6) & (voxels + reach < np.array(scan.shape) - 0.4)).all(1)
        if scan.padding_hu is not None:
            inside &= _beyond_circle(scan, np.moveaxis(voxels, -1, 0)) < -radii
        found.append((code, inside))
    return found


def _beyond_circle(scan: Acquisition, voxels: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    """Distance in mm outside the scanner's circle around its axis, negative inside; voxels (3, ...)."""
    directions = RAS_FROM_PRI.T @ scan.affine[:3, :3]
    in_plane = [k for k in range(3) if np.argmax(np.abs(directions[:, k])) != 2]
    centred = [(voxels[k] - (scan.shape[k] - 1) / 2) * scan.spacing_mm[k] for k in in_plane]
    sides = [scan.shape[k] * scan.spacing_mm[k] / 2 for k in in_plane]
    # A little wider than the longer side: it takes the corners only.
    radius = max(max(sides) * 1.02, 0.86 * float(np.hypot(*sides)))
    return np.hypot(*centred) - radius


def grid_of(scan: Acquisition, step_mm: float) -> BodyGrid:
    """The grid in the body frame that holds a scan with a small margin; coarser for a very large one."""
    corners = apply_affine(scan.affine, corners_of(scan.shape)) @ RAS_FROM_PRI
    volume = float(np.prod(corners.max(0) - corners.min(0)))
    step_mm = max(step_mm, float(np.cbrt(volume / MAX_VOXELS)))
    low, high = corners.min(0) - 2 * step_mm, corners.max(0) + 2 * step_mm
    return BodyGrid(low, step_mm, tuple(int(n) for n in np.ceil((high - low) / step_mm).astype(int) + 1))


def acquire(tissue: Tissue, scan: Acquisition, whole: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan a rendered body.

    Parameters
    ----------
    tissue : Tissue
        The body on a grid that holds the scan.
    scan : Acquisition
        Geometry and faults.
    whole : list of int
        Codes to label; every other bone stays in the image without a label.

    Returns
    -------
    ct : np.ndarray of int16, shape scan.shape
        Hounsfield units.
    mask : np.ndarray of uint8, shape scan.shape
        VerSe codes of the vertebrae in `whole`.
    bone : np.ndarray of uint8, shape scan.shape
        Codes of all bones, those cut and those that VerSe does not label among them.
    """
    matrix, offset = _sampling(tissue.grid, scan)
    sigma = _blur_sigma(tissue.grid, scan)
    blurred = ndimage.gaussian_filter(tissue.hu, sigma, truncate=3.0)
    hu = _sample(blurred, matrix, offset, scan.shape, order=1)
    distance = _sample(tissue.distance, matrix, offset, scan.shape, order=1)
    nearest = _sample(tissue.nearest, matrix, offset, scan.shape, order=0)
    bone = np.where(distance < 0, nearest, 0).astype(np.uint8)
    is_labelled = (distance < MASK_BEYOND_MM) & np.isin(nearest, whole)
    mask = np.where(is_labelled, nearest, 0).astype(np.uint8)
    hu += _noise(scan)
    ct = whole_hu(hu)
    if scan.padding_hu is not None:
        index = np.indices(scan.shape, np.float32, sparse=True)
        outside = np.broadcast_to(_beyond_circle(scan, index) > 0, scan.shape)
        ct[outside], mask[outside], bone[outside] = scan.padding_hu, 0, 0
    return ct, mask, bone


def _sampling(grid: BodyGrid, scan: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset from the scan's voxels to the grid's."""
    matrix = RAS_FROM_PRI.T @ scan.affine[:3, :3] / grid.step_mm
    offset = (RAS_FROM_PRI.T @ scan.affine[:3, 3] - grid.origin) / grid.step_mm
    return matrix, offset


def _sample(
    array: np.ndarray, matrix: np.ndarray, offset: np.ndarray, shape: tuple, *, order: int
) -> np.ndarray:
    """Resample; axes that are only permuted and scaled go the separable way, which is far quicker."""
    source = np.argmax(np.abs(matrix), axis=0)
    aligned = np.count_nonzero(np.abs(matrix) > 1e-6) == 3
    if not aligned:
        return ndimage.affine_transform(array, matrix, offset, shape, order=order, mode="nearest")
    turned = np.transpose(array, source)
    scale = np.array([matrix[source[k], k] for k in range(3)])
    return ndimage.affine_transform(turned, scale, offset[source], shape, order=order, mode="nearest")


def _blur_sigma(grid: BodyGrid, scan: Acquisition) -> np.ndarray:
    """Blur along the grid's axes, in its voxels: point spread in the plane, thickness across it."""
    directions = np.abs(RAS_FROM_PRI.T @ scan.affine[:3, :3] / scan.spacing_mm)
    sigma = np.zeros(3)
    for k in range(3):
        # A slice of thickness t averages over t, as a Gaussian of t / sqrt(12) does.
        sigma[np.argmax(directions[:, k])] = max(scan.blur_mm, scan.spacing_mm[k] / np.sqrt(12))
    return sigma / grid.step_mm


def _noise(scan: Acquisition) -> np.ndarray:
    """Noise, correlated a little, and a slow drift across the scan, HU."""
    rng = np.random.default_rng(scan.seed)
    noise = rng.standard_normal(scan.shape, np.float32)
    noise = ndimage.gaussian_filter(noise, scan.noise_mm / scan.spacing_mm, truncate=2.5)
    noise *= np.float32(scan.noise_hu / max(noise[::3, ::3, ::3].std(), 1e-6))
    for x in np.ix_(*(np.linspace(-1, 1, n, dtype=np.float32) for n in scan.shape)):
        slope, bow = rng.normal(0, 0.5, 2) * scan.drift_hu
        noise += np.float32(slope) * x + np.float32(bow) * x * x
    return noise
