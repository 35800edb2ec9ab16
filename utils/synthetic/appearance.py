"""What an image drawn from a label map looks like: bones, soft tissues, vessels, the scan, its field of view.

All priors are Hounsfield units and millimetres, those of the phantom where it has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.synthetic.label_maps import level_of
from utils.synthetic.phantom.soft import AIR_HU, FAT_HU, LUNG_HU, MUSCLE_HU
from utils.synthetic.phantom.values import BoneValues, Vessel
from utils.verse.conventions import growth_mm
from utils.verse.labels import MAX_CODE, code_of_name

_C1, _T1, _T5, _T12 = (level_of(code_of_name(name)) for name in ("C1", "T1", "T5", "T12"))
_T2, _T7, _T8 = (level_of(code_of_name(name)) for name in ("T2", "T7", "T8"))
_L1, _L4, _L5 = (level_of(code_of_name(name)) for name in ("L1", "L4", "L5"))
#: Farther than this a field of view never leaves the column, mm.
_WIDE_MM = 400.0
#: Soft tissue that a mask of VerSe's convention holds around the bone, and how much that varies, mm.
RIM_MM, RIM_SPREAD_MM = growth_mm("bone"), 0.1


@dataclass(frozen=True)
class Appearance:
    """All that one image draws; lengths in mm, intensities in HU.

    Attributes
    ----------
    bone : BoneValues
        Cancellous bone, arches, cortex.
    cortex_share, rim_mm : float
        Thickness of the cortex as a part of the drawn one; width of what masks hold outside of it, mm.
    unevenness : float
        How much the cortex varies along the surface, as a part of its HU.
    rib_hu : float
        Ribs and pelvis.
    fat_hu, muscle_hu, organ_hu, disc_hu, bowel_hu, lung_hu : float
        Means of the soft tissues.
    fattiness : float
        Field value above which soft tissue is fat: the lower, the more.
    lengths_mm : tuple of float, 2
        Coarse and fine length of the soft tissue's fields.
    girth, skin_fat_mm : float
        Size of the trunk as a part of the usual one; fat under the skin at the back.
    lung_base : float
        Level at which the lungs end.
    vessels : tuple of Vessel
        Vessels, with contrast or without, and the airway.
    table_mm : float
        Distance of the table behind the back; beyond reach for none.
    blur_mm : np.ndarray, (3,)
        Standard deviation of the point spread along P, R and I, which correlates the noise too.
    noise_hu, streak_hu, drift_hu : float
        Noise; streaks along R; slow change across the image.
    margins : np.ndarray, (3, 2)
        How far the field of view reaches beyond the labels at both ends of every axis: mm along P and R,
        parts of the way to the next vertebra along I.
    seed : int
        Seed of fields and noise.
    chamber_hu, heart_mm : float
        Blood in the heart; half width of the heart, mm.
    heart_at : tuple of float, 3
        Its middle: (P, R) from the spine's centres, mm, and level.
    mediastinum : tuple of float, 2
        Half width of what lies between the lungs, in mm, at a vertebra of .7 of the size of a lumbar one, and
        how much it grows for each mm further to the front.
    """

    bone: BoneValues
    cortex_share: float
    rim_mm: float
    unevenness: float
    rib_hu: float
    fat_hu: float
    muscle_hu: float
    organ_hu: float
    disc_hu: float
    bowel_hu: float
    lung_hu: float
    fattiness: float
    lengths_mm: tuple[float, float]
    girth: float
    skin_fat_mm: float
    lung_base: float
    vessels: tuple[Vessel, ...]
    table_mm: float
    blur_mm: np.ndarray
    noise_hu: float
    streak_hu: float
    drift_hu: float
    margins: np.ndarray
    seed: int
    chamber_hu: float
    heart_mm: float
    heart_at: tuple[float, float, float]
    mediastinum: tuple[float, float]


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """Draw what one image looks like.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.

    Returns
    -------
    Appearance
        What `label_image` needs.
    """
    blur, thick = rng.uniform(0.6, 1.4, 3), rng.uniform(1.0, 5.0)
    # A slice of thickness t averages over t, as a Gaussian of t / sqrt(12) does; most are axial.
    axis = int(rng.choice(3, p=[0.0, 0.3, 0.7]))
    blur[axis] = max(blur[axis], thick / np.sqrt(12))
    contrast = rng.random() < 0.65
    return Appearance(
        bone=_draw_bone(rng),
        cortex_share=rng.uniform(0.7, 1.2),
        rim_mm=RIM_MM + rng.normal(0, RIM_SPREAD_MM),
        unevenness=rng.uniform(0.1, 0.35),
        rib_hu=rng.uniform(250, 700),
        fat_hu=FAT_HU + rng.uniform(-15, 15),
        muscle_hu=MUSCLE_HU + rng.uniform(-15, 15),
        organ_hu=rng.uniform(40, 60) + (rng.uniform(30, 70) if contrast else 0.0),
        disc_hu=rng.uniform(60, 110),
        bowel_hu=rng.uniform(150, 350) if rng.random() < 0.4 else 30.0,
        lung_hu=LUNG_HU + rng.uniform(-40, 60),
        fattiness=rng.uniform(0.2, 1.6),
        lengths_mm=(rng.uniform(10, 22), rng.uniform(6, 10)),
        girth=rng.uniform(0.85, 1.25),
        skin_fat_mm=rng.uniform(3, 40),
        lung_base=rng.uniform(_T12 - 2, _L1),
        vessels=_draw_vessels(rng, contrast=contrast),
        table_mm=rng.uniform(2, 25) if rng.random() < 0.5 else _WIDE_MM,
        blur_mm=blur,
        noise_hu=float(np.exp(rng.uniform(np.log(5), np.log(70)))),
        streak_hu=rng.uniform(5, 30) if rng.random() < 0.3 else 0.0,
        drift_hu=rng.uniform(0, 20),
        margins=_draw_margins(rng),
        seed=int(rng.integers(2**31)),
        chamber_hu=rng.uniform(90, 450) if contrast else 42.0,
        heart_mm=rng.uniform(38, 62),
        heart_at=(rng.uniform(-100, -74), rng.uniform(-26, -2), rng.uniform(_T7, _T8 + 0.5)),
        mediastinum=(rng.uniform(16, 33), rng.uniform(-0.25, 0.75)),
    )


def _draw_bone(rng: np.random.Generator) -> BoneValues:
    """Cancellous bone of 10-260 HU under a cortex of 250-1500 HU; the thinner, the duller.

    In three of ten images the arches are denser by up to 600 HU: worn facet joints, whose bone is sclerotic.
    """
    dense = rng.random()
    worn = rng.uniform(0, 600) if rng.random() < 0.3 else 0.0
    return BoneValues(
        body=10 + 250 * dense,
        arch=10 + 250 * dense + rng.uniform(20, 200) + worn,
        cortex=250 + 1250 * np.clip(0.7 * dense + rng.uniform(-0.1, 0.4), 0, 1),
        shell_mm=rng.uniform(0.4, 1.2) + 0.4 * dense,
        texture=rng.uniform(10, 30 + 50 * dense),
        spread=rng.normal(0, 20, MAX_CODE) + _draw_dense(rng.spawn(1)[0]),
    )


def _draw_dense(rng: np.random.Generator) -> np.ndarray:
    """One vertebra in ten is up to 300 HU denser than the others: collapsed, or sclerotic."""
    return np.where(rng.random(MAX_CODE) < 0.1, rng.uniform(0, 300, MAX_CODE), 0.0)


def _draw_vessels(rng: np.random.Generator, *, contrast: bool) -> tuple[Vessel, ...]:
    """Aorta, both venae cavae, iliac arteries, kidneys' contrast apart; carotids, and the airway."""
    artery = float(rng.uniform(150, 350)) if contrast else 42.0
    vein = float(rng.uniform(100, 220)) if contrast else 40.0
    shift = rng.normal(0, 3, 4)
    aorta = float(rng.uniform(9, 14))
    tubes = (
        ((-42, -14 + shift[0]), aorta, artery, (_T1 + 4, _L4)),
        ((-82, 10 + shift[0]), 1.3 * aorta, artery, (_T5 - 1, _T8)),
        ((-76, 30 + shift[1]), 9.0, vein, (_T2, _T7)),
        ((-44, 17 + shift[1]), float(rng.uniform(8, 11)), vein, (_T12 - 3, _L4)),
        ((-40, -22 + shift[2]), 5.5, artery, (_L4, _L5 + 4)),
        ((-40, 22 + shift[3]), 5.5, artery, (_L4, _L5 + 4)),
        ((-22, -27), 3.6, artery, (_C1, _T1 + 3)),
        ((-22, 27), 3.6, artery, (_C1, _T1 + 3)),
        ((-20, -35), 5.0, vein, (_C1, _T1 + 3)),
        ((-20, 35), 5.5, vein, (_C1, _T1 + 3)),
        ((-38, 0), 8.5, AIR_HU + 20, (_C1, _T5)),
    )
    # In single precision, as the places of voxels are.
    return tuple(Vessel(np.float32(offset), radius, hu, levels) for offset, radius, hu, levels in tubes)


def _draw_margins(rng: np.random.Generator) -> np.ndarray:
    """Field of view beyond the labels: within the next vertebra along I, near by or far off along P and R."""
    margins = np.full((3, 2), _WIDE_MM)
    if rng.random() < 0.5:
        margins[:2] = rng.uniform(4, 90, (2, 2))
    margins[2] = rng.uniform(0, 0.8, 2)
    return margins
