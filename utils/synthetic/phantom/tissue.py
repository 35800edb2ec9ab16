"""Second step of the phantom: give the drawn bones and the body around them Hounsfield units, on one grid.

Bone is painted over soft tissue in proportion to how much of a voxel it fills. Values are those of clinical
scans: cortical bone 700-1500 HU, cancellous bone 90-300, muscle 50, fat -100, lung -860, contrast in vessels
150-350, calcified plaques 200-900.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from utils.synthetic.phantom.anatomy import Anatomy
from utils.synthetic.phantom.inlays import paint_inlays
from utils.synthetic.phantom.shapes import FAR_MM, Body, BodyGrid, body_distance, solid_distance
from utils.synthetic.phantom.skeleton import RIB, bones
from utils.synthetic.phantom.soft import soft_tissue
from utils.synthetic.phantom.trunk import trunk_tissue
from utils.synthetic.phantom.values import BoneValues, TissueValues

# How far outside a bone its name is still known, so that a mask can be read off at any finer spacing.
NAME_MARGIN_MM = 2.5


@dataclass(frozen=True)
class Tissue:
    """A body in Hounsfield units.

    Attributes
    ----------
    grid : BodyGrid
        Where the voxels lie in the body frame.
    hu : np.ndarray of float32, shape grid.shape
        Hounsfield units.
    distance : np.ndarray of float32, shape grid.shape
        Signed distance to the nearest bone, mm; `FAR_MM` where none is near.
    nearest : np.ndarray of uint8, shape grid.shape
        Code of that bone: a VerSe code, `RIB`, `SACRUM`, `SKULL`, 0 where none is near.
    """

    grid: BodyGrid
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


def render_tissue(anatomy: Anatomy, values: TissueValues, grid: BodyGrid) -> Tissue:
    """Fill a grid with the body of a subject.

    Parameters
    ----------
    anatomy : Anatomy
        The subject.
    values : TissueValues
        Values drawn by `draw_tissue`.
    grid : BodyGrid
        The voxels to fill.

    Returns
    -------
    Tissue
        Hounsfield units, and which bone lies where.
    """
    rng = np.random.default_rng(values.seed)
    paint_trunk = soft_tissue if anatomy.habitus is None else trunk_tissue
    hu = paint_trunk(anatomy, values, grid, rng)
    _paint_discs(hu, anatomy, values, grid)
    distance = np.full(grid.shape, FAR_MM, np.float32)
    nearest = np.zeros(grid.shape, np.uint8)
    blur_mm = 0.0 if anatomy.habitus is None else grid.step_mm
    bone_hu = np.zeros(grid.shape, np.float32)
    for index, (code, solid) in enumerate(bones(anatomy)):
        window = grid.window(*solid.bounds(3.0))
        if all(s.stop > s.start for s in window):
            spread = values.bone.spread[index] if index < len(values.bone.spread) else 0.0
            field, body = solid_distance(solid, grid, window)
            closer = field < distance[window]
            distance[window][closer] = field[closer]
            nearest[window][closer & (field < NAME_MARGIN_MM)] = code
            value = _bone_hu(field, body, values.bone, spread, blur_mm)
            bone_hu[window][closer] = value[closer]
    filled = np.clip(0.5 - distance / np.float32(grid.step_mm), 0, 1)
    bone_hu += values.bone.texture * _texture(rng, grid)
    hu += filled * (bone_hu - hu)
    paint_inlays(hu, grid, values.inlays)
    return Tissue(grid, hu, distance, nearest)


def _bone_hu(
    field: np.ndarray, body: np.ndarray, values: BoneValues, spread: float, blur_mm: float
) -> np.ndarray:
    """Cancellous bone under a cortex that fades over its own thickness, averaged over `blur_mm`."""
    in_body = body < 0.5
    inside = np.where(in_body, np.float32(values.body + spread), np.float32(values.arch + spread))
    # The arch carries the joints on a thicker cortex.
    thickness = np.where(in_body, np.float32(values.shell_mm), np.float32(1.5 * values.shell_mm))
    shell = np.clip(1.25 + field / thickness, 0, 1) if blur_mm == 0 else _shell(field, thickness, blur_mm)
    return inside + shell * (np.float32(values.cortex) - inside)


def _shell(field: np.ndarray, thickness: np.ndarray, width_mm: float) -> np.ndarray:
    """Mean share of cortex in the bone of a cube that a flat cortex, thinner than the cube, passes through.

    It is the integral of the share over depth, between the faces of the cube that lie in the bone.
    """
    near = np.minimum(field - width_mm / 2, 0) / thickness
    far = np.minimum(field + width_mm / 2, 0) / thickness

    def whole(depth: np.ndarray) -> np.ndarray:
        ramp = np.clip(depth + 1.25, 0, 1)
        return ramp * ramp / 2 + np.maximum(depth + 0.25, 0)

    return (whole(far) - whole(near)) / np.maximum(far - near, np.float32(1e-3))


def _texture(rng: np.random.Generator, grid: BodyGrid) -> np.ndarray:
    """Trabeculae: noise of unit variance, correlated over about a millimetre."""
    noise = rng.standard_normal(grid.shape, np.float32)
    sigma = 0.8 / grid.step_mm
    noise = ndimage.gaussian_filter(noise, sigma, truncate=2.5)
    return noise / np.float32(max(noise[::4, ::4, ::4].std(), 1e-6))


def _paint_discs(hu: np.ndarray, anatomy: Anatomy, values: TissueValues, grid: BodyGrid) -> None:
    """Discs between the bodies, one now and then with a gas cleft (vacuum phenomenon)."""
    for k, (upper, lower) in enumerate(zip(anatomy.vertebrae[1:], anatomy.vertebrae[2:])):
        top = upper.world(0, 0, upper.size.height / 2)
        bottom = lower.world(0, 0, -lower.size.height / 2)
        height = float(np.linalg.norm(bottom - top))
        size = upper.size
        heights = (height + 5, height + 7, height + 4)
        middle, half_depth = (top + bottom) / 2, size.depth / 2 * 1.02
        disc = Body(middle, upper.rotation, half_depth, size.width / 2, heights, waist=-0.04)
        _fill(hu, disc, grid, float(values.disc_hu[k]))
        if values.disc_gas[k]:
            thin = {"heights": (1.5, 2.2, 1.2), "waist": 0.0}
            cleft = replace(disc, half_depth=size.depth * 0.3, half_width=size.width * 0.25, **thin)
            _fill(hu, cleft, grid, -500.0)


def _fill(hu: np.ndarray, body: Body, grid: BodyGrid, value: float) -> None:
    corners = body.corners()
    window = grid.window(corners.min(0) - 1, corners.max(0) + 1)
    if all(s.stop > s.start for s in window):
        filled = np.clip(0.5 - body_distance(body, grid.axes(window)) / np.float32(grid.step_mm), 0, 1)
        hu[window] += filled * (value - hu[window])
