"""Draw a subject within given ranges: the usual one of `draw_anatomy`, or one that is not tame.

Ribs and names belong together, by VerSe's rule: a vertebra with a rib of 40 mm or more, on either side, is
thoracic. So the lowest thoracic vertebra of a subject always has such a rib, T13 as well as T12. A subject
whose last ribs are all shorter has no T12 by that rule: it is drawn as one whose T12 is absent, and whose
L1 carries the stumps, of 0 to 39 mm. Half of these keep their count of 24 vertebrae above the sacrum, so
that the last is an L6. Cervical ribs and other lumbar ribs stay below 40 mm for the same reason.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from utils.synthetic.phantom.anatomy import (
    Anatomy,
    Quirks,
    Size,
    assemble,
    draw_anatomy,
    draw_levels,
    draw_quirks,
    draw_sizes,
    draw_stature,
    draw_tilts,
)
from utils.synthetic.phantom.cage import Build
from utils.synthetic.phantom.ranges import ORGAN_LEVELS, THORACIC_RIB_MM, USUAL, Ranges
from utils.verse.labels import code_of_name, name_of_code

#: Lengths of the ribs 1 to 10 along their arc, from the head to the cartilage, mm.
_RIB_MM = (115, 180, 230, 260, 280, 295, 300, 290, 265, 230)
_SEVERITIES = ((0.55, 0.75, 1.0), (0.9, 0.6, 0.95), (0.5, 0.45, 0.6))


def draw_subject(rng: np.random.Generator, *, keep: tuple[int, ...] = (), ranges: Ranges = USUAL) -> Anatomy:
    """Draw one subject.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    keep : tuple of int
        VerSe codes that it must have.
    ranges : Ranges
        `USUAL` gives what `draw_anatomy` gives.

    Returns
    -------
    Anatomy
        The subject; with a habitus unless the ranges are the usual ones.
    """
    if ranges.rib_scale is None:
        return draw_anatomy(rng, keep=keep)
    names = _draw_names(rng, [name_of_code(code) for code in keep], ranges)
    stature = draw_stature(rng)
    sizes = draw_sizes(rng, names, stature)
    sizes = _wilder_sizes(rng, names, sizes, ranges)
    tilts = _bent(rng, names, draw_tilts(rng, names, sizes), ranges)
    gaps = rng.uniform(0.2, 1.2, (len(names), 2))
    quirks = _wilder_quirks(rng, names, ranges)
    habitus = _draw_habitus(rng, names, stature, ranges)
    return assemble(rng, names, stature, sizes=sizes, tilts=tilts, gaps=gaps, quirks=quirks, habitus=habitus)


def _draw_names(rng: np.random.Generator, keep: list[str], ranges: Ranges) -> list[str]:
    names = draw_levels(rng, keep, (ranges.rate_t13, ranges.rate_l6, ranges.rate_no_t12))
    counts_24 = rng.random() < 0.5
    if "T12" not in names and "L6" not in names and counts_24:
        names.append("L6")
    return names


def _wilder_sizes(
    rng: np.random.Generator, names: list[str], sizes: list[Size], ranges: Ranges
) -> list[Size]:
    """Crowd the upper chest, steepen its spinous processes, narrow discs, collapse bodies."""
    crowded = rng.random() < ranges.rate_crowded
    pitch = rng.uniform(*ranges.upper_pitch_mm)
    longer, steeper = rng.uniform(*ranges.spinous_scale), rng.uniform(*ranges.spinous_drop_deg)
    brittle, worn = rng.random(2) < (ranges.rate_brittle, ranges.rate_worn)
    found = []
    for name, size in zip(names, sizes):
        if crowded and name in ("T1", "T2", "T3", "T4", "T5"):
            disc = rng.uniform(*ranges.upper_disc_mm)
            size = _with_heights(replace(size, disc=disc), np.full(3, (pitch - disc) / size.height))
        elif worn and rng.random() < ranges.rate_narrow_disc:
            size = replace(size, disc=size.disc * rng.uniform(0.25, 0.7))
        if name.startswith("T"):
            drop = min(size.spinous_drop + steeper, 68.0)
            size = replace(size, spinous_length=size.spinous_length * longer, spinous_drop=drop)
        if brittle and not name.startswith("C") and rng.random() < ranges.rate_collapsed:
            size = _with_heights(size, _draw_collapse(rng))
        found.append(size)
    return found


def _draw_collapse(rng: np.random.Generator) -> np.ndarray:
    """Draw the anterior, middle and posterior height that a collapse leaves, as shares (wedge most often)."""
    left = np.array(_SEVERITIES[rng.choice(3, p=(0.55, 0.3, 0.15))])
    return 1 - rng.uniform(0.4, 1.15) * (1 - left)


def _with_heights(size: Size, factors: np.ndarray) -> Size:
    heights = tuple((np.array(size.heights) * factors).tolist())
    return replace(size, heights=heights, height=(heights[0] + heights[2]) / 2)


def _bent(rng: np.random.Generator, names: list[str], tilts: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Bend the chest to a drawn kyphosis; the neck keeps a share of the tilt that T1 gains."""
    tilts = tilts.copy()
    kyphosis, share = rng.uniform(*ranges.kyphosis_deg), rng.uniform(*ranges.neck_share)
    first, upper = names.index("T1"), names.index("T4")
    lower = names.index("T12") if "T12" in names else names.index("T11")
    sagittal = tilts[:, 0]
    straight = np.interp(np.arange(len(sagittal)), [upper, lower], [0.5, -0.5])
    gain = (kyphosis - (sagittal[upper] - sagittal[lower])) * straight
    # Above T4 the bend fades upwards into the neck, below T12 into the loin.
    gain[:first] = gain[upper] * np.interp(np.arange(first), [0, first], [share - 0.3, share])
    gain[first:upper] = gain[upper] * np.interp(np.arange(first, upper), [first, upper], [share, 1])
    fade = np.arange(lower, len(sagittal))
    gain[lower:] = gain[lower] * np.interp(fade, [lower, min(lower + 4, fade[-1])], [1, 0])
    tilts[:, 0] = np.clip(sagittal + gain, -60, 65)
    return tilts


def _wilder_quirks(rng: np.random.Generator, names: list[str], ranges: Ranges) -> list[Quirks]:
    """Spurs of a worn spine, and bridges of a stiff one."""
    mean = rng.uniform(*ranges.spurs) if rng.random() < ranges.rate_worn else 0.0
    quirks = [draw_quirks(rng, name, mean) for name in names]
    if rng.random() >= ranges.rate_bridged:
        return quirks
    first = int(rng.integers(5, len(names) - 4))
    last = min(first + int(rng.integers(2, 9)), len(names) - 1)
    side, found = rng.normal(0.5, 0.4), []  # flowing bone lies to the front and the right
    for k, quirk in enumerate(quirks):
        ends = [end for end, is_in in ((-1.0, first < k <= last), (1.0, first <= k < last)) if is_in]
        bridge = tuple((side + rng.normal(0, 0.1), end, rng.uniform(5, 8)) for end in ends)
        found.append(replace(quirk, spurs=quirk.spurs + bridge, spur_rise=0.62) if bridge else quirk)
    return found


def _draw_habitus(rng: np.random.Generator, names: list[str], stature: float, ranges: Ranges) -> Build:
    return Build(
        _draw_ribs(rng, names, stature, ranges),
        rib_slope=float(rng.uniform(0.7, 1.25)),
        cage_scale=(float(rng.uniform(0.85, 1.2)), float(rng.uniform(0.88, 1.1))),
        lung_margin_mm=float(rng.uniform(0, 7)),
        arms=str(rng.choice(["up", "down", "away"], p=(0.5, 0.25, 0.25))),
        lying=str(rng.choice(["supine", "prone", "right", "left"], p=(0.8, 0.1, 0.05, 0.05))),
        organ_levels=_draw_organ_levels(rng, ranges),
    )


def _draw_organ_levels(rng: np.random.Generator, ranges: Ranges) -> dict[str, float]:
    """Each organ for itself, so that none tells the level of another; the lungs share most of the breath."""
    shifts = dict(zip(ORGAN_LEVELS, rng.uniform(*ranges.organ_shift, len(ORGAN_LEVELS))))
    breath = shifts["base right"]
    shifts["base left"] = 0.7 * breath + 0.3 * shifts["base left"]
    return {name: float(level + shifts[name]) for name, level in ORGAN_LEVELS.items()}


def _draw_ribs(
    rng: np.random.Generator, names: list[str], stature: float, ranges: Ranges
) -> dict[int, tuple[float, float]]:
    """Draw lengths of the right and the left rib of every level that has one."""
    whole = rng.uniform(*ranges.rib_scale) * stature
    found = {}
    for name in names:
        if name.startswith("T"):
            found[name] = _draw_pair(rng, int(name[1:]), whole, ranges)
    if "T12" not in names or rng.random() < ranges.rate_lumbar_rib:
        found["L1"] = tuple(rng.uniform(*ranges.stump_mm, 2))
    if rng.random() < ranges.rate_cervical_rib:
        found["C7"] = tuple(rng.uniform(*ranges.stump_mm, 2) * (rng.random(2) < 0.7))
    return {code_of_name(name): (float(pair[0]), float(pair[1])) for name, pair in found.items()}


def _draw_pair(rng: np.random.Generator, number: int, whole: float, ranges: Ranges) -> np.ndarray:
    """Draw the two ribs of a thoracic level: alike, at least one of them as long as the rule asks."""
    if number <= len(_RIB_MM):
        return np.array(_RIB_MM[number - 1] * whole * np.exp(rng.normal(0, 0.03, 2)))
    low, high = {11: ranges.rib_11_mm, 12: ranges.rib_12_mm, 13: ranges.rib_13_mm}[number]
    while True:
        pair = np.clip(rng.uniform(low, high) + rng.normal(0, 12, 2), low, high)
        if rng.random() < 0.1:
            pair = rng.uniform(low, high, 2)
        if pair.max() >= THORACIC_RIB_MM:
            return pair
