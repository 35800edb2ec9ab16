"""What one scan's tissue is made of, drawn: bone density, contrast in the vessels, plaques, gas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from utils.synthetic.phantom.anatomy import Anatomy
from utils.synthetic.phantom.shapes import Body, Plate


@dataclass(frozen=True)
class BoneValues:
    """Bone of one subject.

    Attributes
    ----------
    body, arch, cortex : float
        HU of cancellous bone in bodies, of bone inside arches and processes, of the cortex.
    shell_mm : float
        Thickness of the bodies' cortex.
    texture : float
        Standard deviation that the trabeculae add, HU.
    spread : np.ndarray, shape (n,)
        What each vertebra's density adds, HU.
    """

    body: float
    arch: float
    cortex: float
    shell_mm: float
    texture: float
    spread: np.ndarray


@dataclass(frozen=True)
class Vessel:
    """A tube along the spine.

    Attributes
    ----------
    offset : array of float, (2,)
        Way (P, R) from the spine's centre line, mm.
    radius_mm, hu : float
        Its radius, and what fills it.
    extent : tuple of float, 2
        Where it begins and ends: mm on I in a phantom, levels in an image of a label map.
    """

    offset: ArrayLike
    radius_mm: float
    hu: float
    extent: tuple[float, float]


@dataclass(frozen=True)
class Inlay:
    """What lies in a bone and is not bone: its shape, and its value in HU."""

    shape: Plate | Body
    hu: float


@dataclass(frozen=True)
class TissueValues:
    """All that the tissue step draws: bone, vessels, plaques, gas, and the seed of its textures.

    Only the trunk of the wide ranges uses `heart_hu` and `kidney_hu`; inlays are painted after all bone.
    """

    bone: BoneValues
    vessels: tuple[Vessel, ...]
    plaques: np.ndarray
    bowel_contrast_hu: float
    organ_hu: float
    disc_hu: np.ndarray
    disc_gas: np.ndarray
    seed: int
    heart_hu: float = 42.0
    kidney_hu: float = 35.0
    inlays: tuple[Inlay, ...] = ()


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
    bone = draw_bone(rng, count)
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


def draw_bone(rng: np.random.Generator, count: int) -> BoneValues:
    """Draw the bone of one subject with so many vertebrae: cancellous 90-260 HU, cortex 750-1500 HU."""
    dense = rng.uniform(0, 1)
    body = 90 + 170 * dense
    return BoneValues(
        body=body,
        arch=body + rng.uniform(40, 200),
        cortex=rng.uniform(750, 1150) + 350 * dense,
        shell_mm=rng.uniform(0.8, 1.2),
        texture=rng.uniform(30, 70),
        spread=rng.normal(0, 15, count),
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
