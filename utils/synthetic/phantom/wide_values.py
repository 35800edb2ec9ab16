"""What the tissue of a subject of the wide ranges is made of: any bone, any phase of contrast, inlays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from utils.synthetic.phantom.anatomy import Anatomy
from utils.synthetic.phantom.inlays import draw_inlays
from utils.synthetic.phantom.ranges import USUAL, Ranges
from utils.synthetic.phantom.values import BoneValues, TissueValues, Vessel, draw_tissue

#: Lowest and highest HU of arteries, veins, heart, liver and kidneys, by phase of the contrast.
PHASES = {
    "none": ((35, 50), (35, 48), (35, 50), (35, 65), (25, 40)),
    "early": ((220, 480), (40, 90), (180, 400), (50, 80), (100, 200)),
    "portal": ((120, 200), (120, 200), (120, 180), (90, 140), (150, 250)),
    "late": ((80, 120), (80, 120), (80, 115), (70, 110), (120, 220)),
}
_ARTERIES = (0, 2, 3, 4, 5)


def draw_tissue_within(rng: np.random.Generator, anatomy: Anatomy, ranges: Ranges = USUAL) -> TissueValues:
    """Draw the values of one scan.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    anatomy : Anatomy
        The subject.
    ranges : Ranges
        `USUAL` gives what `draw_tissue` gives.

    Returns
    -------
    TissueValues
        What `render_tissue` needs.
    """
    values = draw_tissue(rng, anatomy)
    if ranges == USUAL:
        return values
    count = len(anatomy.vertebrae)
    phase = PHASES[str(rng.choice(list(PHASES), p=(0.45, 0.2, 0.25, 0.1)))]
    artery, vein, heart, liver, kidney = (float(rng.uniform(*bounds)) for bounds in phase)
    gassy = rng.random() < ranges.rate_worn
    return replace(
        values,
        bone=draw_wide_bone(rng, count, ranges),
        vessels=tuple(_filled(k, vessel, artery, vein) for k, vessel in enumerate(values.vessels)),
        organ_hu=liver,
        heart_hu=heart,
        kidney_hu=kidney,
        disc_gas=rng.random(count) < ranges.rate_gas_disc * gassy,
        inlays=draw_inlays(rng, anatomy, ranges),
    )


def _filled(k: int, vessel: Vessel, artery: float, vein: float) -> Vessel:
    return replace(vessel, hu=artery if k in _ARTERIES else vein)


def draw_wide_bone(rng: np.random.Generator, count: int, ranges: Ranges) -> BoneValues:
    """Draw the bone of a subject with so many vertebrae: thin bone has a thin and dim cortex more often."""
    dense = rng.uniform(0, 1)
    low, high = ranges.cancellous_hu
    body = low + (high - low) * dense

    def along(bounds: tuple[float, float]) -> float:
        """A part of it follows the density of the bone; the rest is its own, more often high than low."""
        return bounds[0] + (bounds[1] - bounds[0]) * (0.35 * dense + 0.65 * rng.uniform(0, 1) ** 0.6)

    return BoneValues(
        body=body,
        arch=body + rng.uniform(20, 180),
        cortex=along(ranges.cortex_hu),
        shell_mm=along(ranges.shell_mm),
        texture=rng.uniform(15, 70),
        spread=rng.normal(0, 10, count),
    )
