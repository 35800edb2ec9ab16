"""What disease and surgery leave in bones: sclerotic end plates, cement, screws and rods, with streaks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from utils.synthetic.phantom.anatomy import Anatomy, Vertebra
from utils.synthetic.phantom.ranges import Ranges
from utils.synthetic.phantom.shapes import (
    RIGHT,
    SIDES,
    Body,
    BodyGrid,
    Plate,
    body_distance,
    bounds_of,
    plate_distance,
)
from utils.synthetic.phantom.values import Inlay

#: What is as bright as this is metal and casts streaks, HU.
METAL_HU = 2900.0
_STREAK_REACH_MM = 70.0


def draw_inlays(rng: np.random.Generator, anatomy: Anatomy, ranges: Ranges) -> tuple[Inlay, ...]:
    """Draw sclerosis, cement and screws of one subject, in the order in which they are painted."""
    worn, cement, screws = rng.random(3) < (ranges.rate_worn, ranges.rate_cement, ranges.rate_screws)
    below_neck = [v for v in anatomy.vertebrae if v.region != "cervical"]
    found: list[Inlay] = []
    for vertebra in anatomy.vertebrae[1:]:
        if worn and rng.random() < ranges.rate_sclerosis:
            found += _sclerosis(rng, vertebra)
    if cement:
        for k in rng.choice(len(below_neck), int(rng.integers(1, 4)), replace=False):
            found += _cement(rng, below_neck[k])
    if screws:
        first = int(rng.integers(0, len(below_neck) - 2))
        found += _screws(rng, below_neck[first : first + int(rng.integers(2, 6))])
    return tuple(found)


def _sclerosis(rng: np.random.Generator, vertebra: Vertebra) -> list[Inlay]:
    """A dense layer under one end plate or both."""
    size, found = vertebra.size, []
    for end in (-1, 1):
        if rng.random() < 0.7:
            thick, share = rng.uniform(2, 6), rng.uniform(0.6, 0.95)
            centre = vertebra.world(0, 0, end * (size.height / 2 - thick / 2))
            half = (share * size.depth / 2, share * size.width / 2)
            plate = Body(centre, vertebra.rotation, *half, (thick,) * 3, 0.0)
            found.append(Inlay(plate, float(rng.uniform(350, 900))))
    return found


def _cement(rng: np.random.Generator, vertebra: Vertebra) -> list[Inlay]:
    """Two or three clouds of bone cement in a body."""
    size, found = vertebra.size, []
    for _ in range(int(rng.integers(2, 4))):
        a, b = (
            vertebra.world(*(rng.uniform(-0.25, 0.25, 3) * (size.depth, size.width, size.height)))
            for _ in range(2)
        )
        found.append(Inlay(Plate(a, b, tuple(rng.uniform(3, 7, 2)), RIGHT), float(rng.uniform(1200, 2600))))
    return found


def _screws(rng: np.random.Generator, vertebrae: list[Vertebra]) -> list[Inlay]:
    """Pedicle screws of neighbours, and the rods that join their heads."""
    thick, found = rng.uniform(2.2, 3.3), []
    for side in SIDES:
        heads = []
        for vertebra in vertebrae:
            size = vertebra.size
            beside = size.canal_width / 2 + size.pedicle_width / 2
            tip = vertebra.world(-0.25 * size.depth, side * 0.6 * beside, -0.1 * size.height)
            back = size.depth / 2 + size.canal_depth + 12
            heads.append(vertebra.world(back, side * (beside + 6), -0.2 * size.height))
            found.append(Inlay(Plate(tip, heads[-1], (thick, thick), RIGHT), 3071.0))
        found += [Inlay(Plate(a, b, (2.8, 2.8), RIGHT), 3071.0) for a, b in pairwise(heads)]
    return found


def shape_window(grid: BodyGrid, shape: Plate | Body) -> tuple[slice, ...]:
    """Give the part of a grid that a shape lies in, with a margin."""
    radii = np.repeat(shape.radius, 2) if isinstance(shape, Plate) else np.zeros(8)
    return grid.window(*bounds_of(shape.corners(), radii, 1.0 + grid.step_mm))


def paint_shape(hu: np.ndarray, grid: BodyGrid, shape: Plate | Body, value: float | np.ndarray) -> None:
    """Fill a shape, in proportion to how much of a voxel it fills.

    Parameters
    ----------
    hu : np.ndarray of float32, shape grid.shape
        Changed in place.
    grid : BodyGrid
        Its voxels.
    shape : Plate or Body
        What to fill.
    value : float or np.ndarray of float32, shape grid.shape
        With which value.
    """
    window = shape_window(grid, shape)
    if any(s.stop <= s.start for s in window):
        return
    distance = (plate_distance if isinstance(shape, Plate) else body_distance)(shape, grid.axes(window))
    filled = np.clip(0.5 - distance / np.float32(grid.step_mm), 0, 1)
    inner = value[window] if isinstance(value, np.ndarray) else np.float32(value)
    hu[window] += filled * (inner - hu[window])


def paint_inlays(hu: np.ndarray, grid: BodyGrid, inlays: tuple[Inlay, ...]) -> None:
    """Paint inlays in their order into `hu` (shape grid.shape), and the streaks of metal around them."""
    for inlay in inlays:
        paint_shape(hu, grid, inlay.shape, inlay.hu)
    metal = [inlay.shape for inlay in inlays if inlay.hu > METAL_HU]
    for number, shape in enumerate(metal):
        _paint_streaks(hu, grid, shape, number)


def _paint_streaks(hu: np.ndarray, grid: BodyGrid, shape: Plate, number: int) -> None:
    """Bright and dark rays from where metal crosses each axial slice, as from hardened beams."""
    p, r, i = grid.axes()
    rows = shape_window(grid, shape)[2]
    way = np.asarray(shape.end) - shape.start
    for row in range(rows.start, rows.stop):
        share = np.clip((i[0, 0, row] - shape.start[2]) / (way[2] if abs(way[2]) > 1 else 1.0), 0, 1)
        centre = np.asarray(shape.start) + share * way
        u, v = p[:, :, 0] - centre[0], r[:, :, 0] - centre[1]
        angle, distance = np.arctan2(u, v), np.hypot(u, v)
        rays = np.cos(9 * angle + number) + np.cos(14 * angle + 2.1 * number + 0.7 * row)
        body = hu[:, :, row] > -950
        hu[:, :, row] += np.where(body, 110 * rays * np.exp(-distance / _STREAK_REACH_MM), 0)
