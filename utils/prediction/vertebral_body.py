"""The body of a segmented vertebra, parted from its arch, and its end plates: geometry of one mask.

The vertebra is looked at in a frame of its own: P, R, I through the centre of its body, I along the mean of
the normals of its end plates. An end plate is a quadratic surface fitted to where the mask ends above or
below the body; its line in the mid-sagittal plane runs through the anterior and the posterior rim, as a
reader would draw it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.imaging.grids import transform_points
from utils.imaging.volume import Grid

#: Distance of the samples in a vertebra's own frame, and how far they reach from its centre, mm (P, R, I).
_STEP_MM, _REACH_MM = 0.7, (34.0, 42.0, 34.0)
#: Half the width of the band around the mid-sagittal plane in which walls and rims are looked for, mm.
_WALL_BAND_MM = 4.0
#: Share of the body's depth and width in which an end plate is fitted: rims are round, and bear spurs.
_PLATE_SHARE = 0.85
#: The middle of a vertebra lies at least so far behind the centre of its body (of VerSe's about 11), mm.
_LEAST_BEHIND_MM = 1.0
#: The fewest columns that an end plate is fitted to.
_LEAST_COLUMNS = 30
#: Rims are looked for at this share of the way to the plate; the posterior one stands back from the canal's
#: wall by so much at most, mm.
_RIM_AT, _OVERHANG_MM = 0.88, 3.5
#: The body's width is taken in front of its middle, at this share of half its depth, where it is this share
#: of the largest one; a body is at least as wide as this, mm.
_WIDTH_AT, _WIDTH_THERE, _LEAST_WIDTH_MM = 0.4, 0.96, 8.0
#: Radius of the ball that parts the body from what is thin at its side: transverse processes, spurs, mm.
_BALL_MM = 3.0
#: The frame turns with the end plates found in it, so they are looked for as often as this.
_TURNS = 3


@dataclass(frozen=True, eq=False)
class Plate:
    """One end plate.

    Attributes
    ----------
    centre_mm : np.ndarray, (3,)
        Its middle, world mm (RAS+).
    backward, rightward : np.ndarray, (3,)
        Directions in the plate from its anterior to its posterior rim, and to the patient's right, world.
    """

    centre_mm: np.ndarray
    backward: np.ndarray
    rightward: np.ndarray

    @property
    def sagittal_deg(self) -> float:
        """By how much the plate descends backwards, degrees, seen from the side."""
        return float(np.degrees(np.arctan2(-self.backward[2], -self.backward[1])))

    @property
    def coronal_deg(self) -> float:
        """By how much the plate descends to the right, degrees, seen from the front."""
        return float(np.degrees(np.arctan2(-self.rightward[2], self.rightward[0])))


@dataclass(frozen=True, eq=False)
class Body:
    """The body of one vertebra.

    Attributes
    ----------
    centre_mm : np.ndarray, (3,)
        Its centre, world mm (RAS+).
    axes : np.ndarray, (3, 3)
        Columns: its posterior, right, inferior direction, world.
    half_mm : np.ndarray, (3,)
        Half its depth, width and height at its middle.
    heights_mm : tuple of float, 3
        Anterior, middle and posterior height in the mid-sagittal plane.
    upper, lower : Plate
        Its end plates.
    mask : np.ndarray of bool
        Its voxels in the vertebra's box.
    """

    centre_mm: np.ndarray
    axes: np.ndarray
    half_mm: np.ndarray
    heights_mm: tuple[float, float, float]
    upper: Plate
    lower: Plate
    mask: np.ndarray


def find_body(mask: np.ndarray, grid: Grid, centre: np.ndarray, down: np.ndarray) -> Body | None:
    """Part the body of a vertebra from its arch, and find its end plates.

    Parameters
    ----------
    mask : np.ndarray of bool, (i, j, k)
        One vertebra in its box.
    grid : Grid
        The box's grid.
    centre : np.ndarray, (3,)
        About where the body's centre lies (`body_centre`), world mm.
    down : np.ndarray, (3,)
        About where the spine goes on, world.

    Returns
    -------
    Body or None
        None where no body with two end plates is found.
    """
    middle = transform_points(np.argwhere(mask).mean(axis=0), grid.affine, np.eye(4))[0]
    if np.linalg.norm(np.cross(down, middle - centre)) < _LEAST_BEHIND_MM * np.linalg.norm(down):
        return None  # without an arch behind it
    axes = _frame(down, middle - centre)
    surfaces = _surfaces(_Samples.of(mask, grid, centre, axes))
    for _ in range(_TURNS):
        if surfaces is None:
            return None
        centre = centre + axes @ surfaces.middle_mm
        axes = _frame(axes @ surfaces.down, axes[:, 0])
        surfaces = _surfaces(_Samples.of(mask, grid, centre, axes))
    return None if surfaces is None else _body(mask, grid, centre, axes, surfaces)


@dataclass(frozen=True, eq=False)
class _Samples:
    """A vertebra's mask in its own frame: `inside` (P, R, I), and where the samples lie along each axis."""

    inside: np.ndarray
    p: np.ndarray
    r: np.ndarray
    i: np.ndarray

    @staticmethod
    def of(mask: np.ndarray, grid: Grid, centre: np.ndarray, axes: np.ndarray) -> _Samples:
        counts = [int(np.ceil(reach / _STEP_MM)) for reach in _REACH_MM]
        along = [np.arange(-n, n + 1) * _STEP_MM for n in counts]
        to_index = np.linalg.inv(grid.affine)
        matrix = to_index[:3, :3] @ axes * _STEP_MM
        offset = to_index[:3, :3] @ centre + to_index[:3, 3] - matrix @ counts
        shape = tuple(len(places) for places in along)
        inside = ndimage.affine_transform(mask.astype(np.float32), matrix, offset, shape, order=1)
        return _Samples(inside, *along)


@dataclass(frozen=True, eq=False)
class _Section:
    """The body's section at its middle: where it begins and ends along P and R, mm."""

    front: float
    back: float
    left: float
    right: float

    @property
    def middle(self) -> np.ndarray:
        """Middle of the section (P, R)."""
        return np.array([self.front + self.back, self.left + self.right]) / 2

    @property
    def half(self) -> np.ndarray:
        """Half its depth and half its width."""
        return np.array([self.back - self.front, self.right - self.left]) / 2

    def terms(self, p: np.ndarray | float, r: np.ndarray | float) -> np.ndarray:
        """Terms of an end plate's surface: 1, u, v, u² + v², with u, v from -1 to 1 in the section."""
        u, v = (
            (np.asarray(p) - self.middle[0]) / self.half[0],
            (np.asarray(r) - self.middle[1]) / self.half[1],
        )
        return np.stack([np.ones_like(u + v), u + 0 * v, v + 0 * u, u * u + v * v], axis=-1)


@dataclass(frozen=True, eq=False)
class _Surfaces:
    """What was found in a vertebra's own frame, mm from its origin.

    Attributes
    ----------
    section : _Section
        The body's section at its middle.
    plates : np.ndarray, (2, 4)
        I of the upper and the lower end plate, by the section's terms.
    rims : tuple of float, 2
        P of the anterior and the posterior rim in the mid-sagittal plane.
    wall : np.ndarray, (3,)
        P of the front wall of the canal as a polynomial of I, the highest power first.
    """

    section: _Section
    plates: np.ndarray
    rims: tuple[float, float]
    wall: np.ndarray

    def at(self, p: float) -> np.ndarray:
        """I of the upper and the lower end plate in the mid-sagittal plane, (2,)."""
        return self.plates @ self.section.terms(p, self.section.middle[1])

    @property
    def slopes(self) -> np.ndarray:
        """Slope of the upper and the lower plate along P, from rim to rim, and along R, (2, 2)."""
        front, back = self.rims
        return np.stack(
            [(self.at(back) - self.at(front)) / (back - front), self.plates[:, 2] / self.section.half[1]], 1
        )

    @property
    def middle_mm(self) -> np.ndarray:
        """The middle of the body."""
        p, r = self.section.middle
        return np.array([p, r, self.at(p).mean()])

    @property
    def down(self) -> np.ndarray:
        """The mean of the plates' normals."""
        along, across = self.slopes.mean(axis=0)
        return np.array([-along, -across, 1.0]) / np.linalg.norm([along, across, 1.0])


def _surfaces(samples: _Samples) -> _Surfaces | None:
    """Find the walls and the end plates of the body whose centre is the origin."""
    solid = samples.inside >= 0.5
    wall = _canal_wall(samples, solid) if solid[tuple(n // 2 for n in solid.shape)] else None
    if wall is None:
        return None
    at_middle = solid[:, :, np.abs(samples.i) <= 2.0].mean(axis=2) >= 0.5
    section = _section(samples, at_middle, float(np.polyval(wall, 0.0)))
    if section is None:
        return None
    reach = section.terms(samples.p[:, None], samples.r[None])[..., 3]
    used = at_middle & (reach <= _PLATE_SHARE**2)
    plates = [_fitted(samples, ends, used, section) for ends in _ends_of_columns(samples, solid)]
    if any(plate is None for plate in plates):
        return None
    rims = _rims(samples, solid, np.array(plates), section)
    return _Surfaces(section, np.array(plates), rims, wall)


def _section(samples: _Samples, solid: np.ndarray, back: float) -> _Section | None:
    """Find where the body begins and ends, from its section (P, R); None where it is no body's."""
    start, centre = (n // 2 for n in solid.shape)
    front = -_end_of(solid[start::-1, centre])
    middle, half = (back + front) / 2, (back - front) / 2
    # The body's width is that of its front half, to which no process is joined.
    rows = np.nonzero(np.abs(samples.p - middle + _WIDTH_AT * half) <= 0.2 * half)[0]
    sides = [
        sign * float(np.median([_end_of(solid[row, centre::sign]) for row in rows])) / _WIDTH_THERE
        for sign in (-1, 1)
        if len(rows)
    ]
    if not sides or sides[1] - sides[0] < _LEAST_WIDTH_MM:
        return None
    return _Section(front, back, *sides)


def _canal_wall(samples: _Samples, solid: np.ndarray) -> np.ndarray | None:
    """Fit where the body ends behind, in a band around the mid-sagittal plane, as a polynomial of I."""
    band = np.abs(samples.r) <= _WALL_BAND_MM
    start = len(samples.p) // 2
    behind = solid[start:][:, band]
    # The canal is a gap behind the body: what is solid up to the last sample has none.
    has_gap = ~behind.all(axis=0) & behind[0]
    first = np.where(has_gap, behind.argmin(axis=0), -1)
    places, values = [], []
    for index, height in enumerate(samples.i):
        known = first[:, index][has_gap[:, index]]
        if len(known) * 2 >= band.sum():
            places.append(height)
            values.append((np.median(known) - 0.5) * _STEP_MM)
    if len(places) < 6:
        return None
    places, values = np.array(places), np.array(values)
    # Heights at which the section leads into the lamina or over the end plate are no wall.
    for _ in range(4):
        wall = np.polyfit(places, values, 2 if len(places) >= 10 else 1)
        off = np.abs(np.polyval(wall, places) - values)
        kept = off <= max(1.0, 2.5 * np.median(off))
        if kept.all() or kept.sum() < 6:
            break
        places, values = places[kept], values[kept]
    return np.concatenate([np.zeros(3 - len(wall)), wall])


def _end_of(line: np.ndarray) -> float:
    """Give how far a line of samples, from the first one on, is solid, mm."""
    return (float(line.argmin() if not line.all() else len(line)) - 0.5) * _STEP_MM


def _ends_of_columns(samples: _Samples, solid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give where the mask ends above and below the middle in every column along I, mm; NaN where nowhere."""
    middle = len(samples.i) // 2
    found = []
    for sign in (-1, 1):
        half, values = solid[:, :, middle::sign], samples.inside[:, :, middle::sign]
        outside = np.where(half[:, :, 0] & ~half.all(axis=2), half.argmin(axis=2), 1)
        last, first = (
            np.take_along_axis(values, (outside - back)[:, :, None], axis=2)[:, :, 0] for back in (1, 0)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.clip((last - 0.5) / (last - first), 0, 1)
        ends = sign * (outside - 1 + share) * _STEP_MM
        found.append(np.where(half[:, :, 0] & ~half.all(axis=2), ends, np.nan))
    return found[0], found[1]


def _fitted(samples: _Samples, ends: np.ndarray, used: np.ndarray, section: _Section) -> np.ndarray | None:
    """Fit an end plate's surface, leaving out what lies far off: spurs, ends of the arch."""
    rows, columns = np.nonzero(used & np.isfinite(ends))
    terms, i = section.terms(samples.p[rows], samples.r[columns]), ends[rows, columns]
    for _ in range(3):
        if len(i) < _LEAST_COLUMNS:
            return None
        plate = np.linalg.lstsq(terms, i, rcond=None)[0]
        off = np.abs(terms @ plate - i)
        kept = off <= max(1.0, 3 * np.median(off))
        terms, i = terms[kept], i[kept]
    return plate


def _rims(samples: _Samples, solid: np.ndarray, plates: np.ndarray, section: _Section) -> tuple[float, float]:
    """Give P of the anterior and the posterior rim in the mid-sagittal plane."""
    band = np.abs(samples.r - section.middle[1]) <= _WALL_BAND_MM
    start = len(samples.p) // 2
    fronts, backs = [], []
    for depth in (section.terms(samples.p, section.middle[1]) @ plates.T).T:
        # A bit inside the plate, where the body is at its widest and its rim not yet round.
        rows = np.rint((_RIM_AT * depth - samples.i[0]) / _STEP_MM).astype(int).clip(0, len(samples.i) - 1)
        along = solid[np.arange(len(rows)), :, rows][:, band].mean(axis=1) >= 0.5
        if along[start]:  # else the mask is ragged there
            fronts.append(-_end_of(along[start::-1]))
            backs.append(min(_end_of(along[start:]), section.back + _OVERHANG_MM))
    # Of the two plates the rim that stands out less, since spurs lengthen the other; a body is waisted.
    front, back = max(fronts, default=section.front), min(backs, default=section.back)
    return min(front, section.front), max(back, section.back)


def _body(mask: np.ndarray, grid: Grid, centre: np.ndarray, axes: np.ndarray, surfaces: _Surfaces) -> Body:
    index = np.argwhere(mask)
    own = (index @ grid.affine[:3, :3].T + grid.affine[:3, 3] - centre) @ axes
    in_front = np.zeros_like(mask)
    heights = np.clip(own[:, 2], *np.sort(surfaces.at(0.0)))
    in_front[mask] = own[:, 0] <= np.polyval(surfaces.wall, heights) + 0.5
    front, back = surfaces.rims
    places = [surfaces.at(p) for p in (front, surfaces.section.middle[0], back)]
    plates = []
    for side, (along, across) in enumerate(surfaces.slopes):
        place = np.array([*surfaces.section.middle, places[1][side]])
        backward, rightward = axes @ [1.0, 0.0, along], axes @ [0.0, 1.0, across]
        plates.append(
            Plate(
                centre + axes @ place,
                backward / np.linalg.norm(backward),
                rightward / np.linalg.norm(rightward),
            )
        )
    half = [*surfaces.section.half, float(np.diff(places[1])[0]) / 2]
    return Body(
        centre + axes @ surfaces.middle_mm,
        axes,
        np.array(half),
        tuple(float(np.diff(place)[0]) for place in places),
        plates[0],
        plates[1],
        _without_thin(in_front, grid.spacing_mm, np.argmin(np.abs(own).sum(axis=1)), index),
    )


def _without_thin(part: np.ndarray, spacing_mm: np.ndarray, at: int, index: np.ndarray) -> np.ndarray:
    """Keep what a ball can reach inside a part, from the voxel nearest to the middle on."""
    inside_mm = ndimage.distance_transform_edt(np.pad(part, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    ball = inside_mm > _BALL_MM
    pieces, _ = ndimage.label(ball)
    core = pieces == pieces[tuple(index[at])] if pieces[tuple(index[at])] else ball
    if not core.any():
        return part
    return part & (
        ndimage.distance_transform_edt(~core, sampling=spacing_mm) <= _BALL_MM + spacing_mm.max() / 2
    )


def _frame(down: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Give orthonormal axes P, R, I as columns: I along `down`, P as near to `backward` as that allows."""
    i = down / np.linalg.norm(down)
    p = backward - (backward @ i) * i
    p = p / np.linalg.norm(p)
    # In RAS+ the cross product of posterior (-y) and inferior (-z) is right (+x).
    return np.stack([p, np.cross(p, i), i], axis=1)
