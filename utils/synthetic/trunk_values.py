"""What a drawn trunk looks like: tissues with contrast or without, bone, skin, table, the scan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from utils.synthetic.appearance import Appearance, draw_appearance
from utils.synthetic.organs import TISSUES

_ENHANCED = ("heart", "artery", "vein", "lower_vein", "portal", "kidney", "liver", "spleen", "bright")
_BONY = ("bone", "rib", "vertebra", "rim")
#: Contrast of each phase in these tissues, HU: none, arteries of the lungs, arteries, veins, late.
_PHASES = {
    "none": ((0, 0),) * 9,
    "lung": ((200, 450), (80, 300), (300, 900), (0, 20), (0, 20), (0, 30), (0, 5), (0, 20), (150, 350)),
    "artery": (
        (150, 350),
        (200, 400),
        (100, 500),
        (0, 60),
        (20, 80),
        (80, 180),
        (5, 25),
        (50, 150),
        (80, 300),
    ),
    "vein": (
        (90, 170),
        (90, 170),
        (80, 160),
        (80, 160),
        (100, 190),
        (110, 190),
        (40, 80),
        (60, 100),
        (60, 160),
    ),
    "late": ((30, 80), (30, 80), (30, 80), (30, 80), (30, 80), (80, 160), (15, 45), (20, 60), (30, 80)),
}


@dataclass(frozen=True, eq=False)
class TrunkValues:
    """All that one image draws; lengths in mm, intensities in HU.

    Attributes
    ----------
    hu, gain : np.ndarray of float32, (number of tissues,)
        Mean of every tissue, and how much of the real CT's detail is kept.
    look : Appearance
        Bone, its cortex, blur, noise, streaks and drift; the rest is not used.
    bone_hu : float
        Cancellous bone of ribs and flat bones.
    plate : float
        Cortex of end plates as a multiple of the other cortex.
    fat_mm : tuple of float, 2
        Fat that is added around the trunk; depth under the real skin to which all soft tissue is fat.
    table : tuple of float, 4
        Axis (0 or 1) and sign of the side on which the table lies, its distance and its HU.
    slab_axis : int
        Axis along which slices follow each other.
    slab_mm : float
        Their thickness.
    """

    hu: np.ndarray
    gain: np.ndarray
    look: Appearance
    bone_hu: float
    plate: float
    fat_mm: tuple[float, float]
    table: tuple[float, float, float, float]
    slab_axis: int
    slab_mm: float


def draw_values(rng: np.random.Generator, medians: np.ndarray, *, position: str) -> TrunkValues:
    """Draw what one trunk looks like.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    medians : np.ndarray of float, (number of tissues,)
        HU of the tissues in the real CT.
    position : str
        "supine", "prone", "right" or "left": where the table lies.

    Returns
    -------
    TrunkValues
        What `utils.synthetic.trunk` paints with.
    """
    noise_hu = float(np.exp(rng.uniform(np.log(4), np.log(40))))
    look = dataclasses.replace(draw_appearance(rng), noise_hu=noise_hu)
    means = _draw_means(rng)
    hu = np.array([means[name] for name in TISSUES], np.float32)
    axis, sign = {"supine": (0, 1), "prone": (0, -1), "right": (1, 1), "left": (1, -1)}[position]
    bare = rng.random() < 0.3
    return TrunkValues(
        hu=hu,
        gain=_draw_gain(rng, hu, medians),
        look=look,
        bone_hu=float(look.bone.body + rng.uniform(-20, 120)),
        plate=float(rng.uniform(1.0, 2.2)),
        fat_mm=(0.0 if rng.random() < 0.4 else rng.uniform(0, 30), rng.uniform(0, 14)),
        table=(axis, sign, np.inf if bare else rng.uniform(0, 20), rng.uniform(-500, 150)),
        slab_axis=int(rng.choice(3, p=[0.08, 0.12, 0.8])),
        slab_mm=float(rng.uniform(1, 5)),
    )


def _draw_means(rng: np.random.Generator) -> dict[str, float]:
    """HU of every tissue."""
    phase = str(rng.choice(list(_PHASES), p=[0.35, 0.15, 0.2, 0.2, 0.1]))
    contrast = dict(zip(_ENHANCED, (rng.uniform(*bounds) for bounds in _PHASES[phase])))
    muscle = rng.uniform(25, 70)
    means = {
        **dict.fromkeys(TISSUES, muscle),
        **{name: rng.uniform(25, 55) + contrast[name] for name in _ENHANCED},
        "air": -1000.0,
        "fat": rng.uniform(-120, -80),
        "soft": muscle + rng.uniform(-20, 10),
        "gas": rng.uniform(-950, -750),
        "disc": rng.uniform(50, 120),
        "lung": rng.uniform(-900, -750),
        "lung_vessel": rng.uniform(-500, -150) + 0.4 * contrast["artery"],
        "airway": rng.uniform(-1000, -930),
        "hollow": rng.uniform(-10, 45) if rng.random() < 0.7 else rng.uniform(100, 400),
        "gland": rng.uniform(20, 50) + 0.7 * contrast["liver"],
        "cord": rng.uniform(10, 45),
        "cartilage": rng.uniform(60, 140),
    }
    return {**means, "liver": means["liver"] + rng.uniform(-30, 25)}


def _draw_gain(rng: np.random.Generator, hu: np.ndarray, medians: np.ndarray) -> np.ndarray:
    """How much of the real detail each tissue keeps: where contrast made it, as much as there is contrast."""
    gain = rng.uniform(0.2, 1.0, len(TISSUES))
    enhanced = np.isin(TISSUES, _ENHANCED)
    share = (hu - 40) / np.maximum(np.abs(medians - 40), 60)
    gain[enhanced] *= np.clip(share, 0.1, 1.2)[enhanced]
    gain[np.isin(TISSUES, _BONY)] = rng.uniform(0, 0.4)
    # The real detail of what is outside is its table.
    gain[TISSUES.index("air")] = 0.0
    return gain.astype(np.float32)
