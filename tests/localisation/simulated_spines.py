"""Simulated spines: true body centres, and the candidate peaks that a network would give for them.

No image: points along a curved column, and what goes wrong with peaks (noise, false ones beside the spine,
missing and doubled ones). The world is RAS+, the frame (P, R, I) at 3 mm.
"""

from dataclasses import dataclass

import numpy as np

from tests.localisation.label_problems import votes_of_levels
from utils.localisation.candidates import Candidates
from utils.localisation.steps import typical_steps
from utils.verse.labels import LEVEL_NAMES, MAX_RANK

AFFINE = np.array([[0, -3.0, 0, 200], [-3.0, 0, 0, 200], [0, 0, -3.0, 900], [0, 0, 0, 1]])
#: Tilt of each level in degrees, positive where the column, followed downwards, goes backwards.
TILTS = np.array([-12, -11, -7, -2, 4, 10, 16, 21, 21, 19, 15, 11, 6, 2, -2, -6, -9, -12, -14, -14.5, -14.5])
TILTS = np.concatenate([TILTS, [-11, -4, 6, 18, 24]])
COMMON = tuple(rank for rank in range(1, MAX_RANK + 1) if LEVEL_NAMES[rank - 1] not in ("T13", "L6"))


@dataclass(frozen=True, eq=False)
class Spine:
    """True ranks and centres in mm, from the top down."""

    ranks: np.ndarray
    points_mm: np.ndarray


def draw_spine(rng, *, count=None, first=None, scale=None, noise=0.07, curve=None, cobb_degrees=None):
    """A stretch of a spine; what is not given is drawn."""
    count = int(rng.integers(5, 20)) if count is None else count
    first = int(rng.integers(0, len(COMMON) - count + 1)) if first is None else first
    scale = rng.uniform(0.8, 1.2) if scale is None else scale
    curve = rng.uniform(0.4, 1.7) if curve is None else curve
    cobb_degrees = rng.uniform(0, 40) if cobb_degrees is None else cobb_degrees
    ranks = np.array(COMMON[first : first + count])
    lengths = scale * typical_steps().mean_mm[ranks - 1] * np.exp(rng.normal(0, noise, count))
    tilts = np.radians(curve * TILTS[ranks - 1] + rng.normal(0, 4, count))
    depth = np.cumsum(lengths) / 220
    sideways = np.radians(cobb_degrees / 2) * np.sin(2 * np.pi * (depth + rng.uniform()))
    steps = np.stack(
        [np.sin(sideways), -np.sin(tilts) * np.cos(sideways), -np.cos(tilts) * np.cos(sideways)], 1
    )
    points = np.concatenate([np.zeros((1, 3)), np.cumsum((lengths[:, None] * steps)[:-1], axis=0)])
    return Spine(ranks, points + np.array([0, 0, 600.0]))


def draw_candidates(
    spine, rng, *, missing=0.05, doubled=0.06, false=(4, 8), jitter_mm=1.5, heat=(15, 3), false_heat=(2.2, 5)
):
    """Peaks of a spine, and which of its bodies each is (-1: none)."""
    shown = rng.uniform(size=len(spine.ranks)) >= missing
    bodies = np.flatnonzero(shown)
    points = spine.points_mm[bodies] + rng.normal(0, jitter_mm, (len(bodies), 3))
    twice = np.flatnonzero(rng.uniform(size=len(bodies)) < doubled)
    offset = rng.normal(size=(len(twice), 3))
    offset *= 8 / np.linalg.norm(offset, axis=1, keepdims=True)
    strays = false_points(spine, rng, int(rng.integers(false[0], false[1] + 1)))
    heats = np.concatenate([rng.beta(*heat, len(bodies)), rng.beta(*heat, len(twice)) * 0.8])
    heats = np.concatenate([heats, rng.beta(*false_heat, len(strays))])
    which = np.concatenate([bodies, np.full(len(twice) + len(strays), -1)])
    near = spine.ranks[
        np.concatenate([bodies, bodies[twice], rng.integers(0, len(spine.ranks), len(strays))])
    ]
    all_points = np.concatenate([points, points[twice] + offset, strays])
    seen = draw_seen(rng, np.repeat([0, 1, 2], [len(bodies), len(twice), len(strays)]))
    return candidates_at(all_points, heats, level_votes(near, rng), seen=seen), which


def draw_seen(rng, kinds):
    """Log-odds of a vertebra at bodies, beside one (8 mm), and elsewhere.

    As the heat, they spread as on drawn scans that were held out; those beside a body are assumed.
    """
    return rng.normal(np.array([2.7, 0.0, -6.0])[kinds], np.array([0.9, 2.0, 4.4])[kinds])


def false_points(spine, rng, count):
    """Points beside the spine: heart, aorta, ribs."""
    beside = spine.points_mm[rng.integers(0, len(spine.points_mm), count)]
    angle = rng.uniform(-2.4, 2.4, count)  # to the front and to the sides
    away = rng.uniform(25, 80, count)[:, None]
    shift = np.stack([np.sin(angle), np.cos(angle), rng.uniform(-0.4, 0.4, count)], 1)
    return beside + away * shift


def level_votes(ranks, rng, *, right=0.5, spread=1.3):
    """Log-probabilities (n, 26) around ranks that are right with a probability, else a few levels off."""
    off = np.where(rng.uniform(size=len(ranks)) < right, 0, np.rint(rng.normal(0, spread, len(ranks))))
    seen = np.clip(ranks + off, 1, MAX_RANK)
    logits = -((np.arange(1, MAX_RANK + 1) - seen[:, None]) ** 2) / (2 * spread**2)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def candidates_at(points_mm, heat, levels=None, rib=None, *, seen=3.0):
    """Candidates at points in the world; `seen`: log-odds of a vertebra around them, by default high."""
    points_mm, heat = np.asarray(points_mm, float).reshape(-1, 3), np.asarray(heat, float)
    levels = np.full((len(heat), MAX_RANK), -np.log(MAX_RANK)) if levels is None else levels
    rib = np.full(len(heat), 0.5) if rib is None else rib
    inverse = np.linalg.inv(AFFINE)
    votes = votes_of_levels(levels, -np.log(MAX_RANK) - np.asarray(seen))
    return Candidates(points_mm @ inverse[:3, :3].T + inverse[:3, 3], AFFINE, heat, votes, rib)
