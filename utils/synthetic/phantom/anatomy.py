"""First step of the phantom: draw one subject's spine, level by level - sizes, curve, pose, collapse.

The means follow Panjabi et al., "Cervical human vertebrae", Spine 16 (1991) 861-869, "Thoracic human
vertebrae", Spine 16 (1991) 888-901, and "Human lumbar vertebrae", Spine 17 (1992) 299-306, with body
heights raised by about a tenth to the values seen on CT. Curvature follows the usual ranges of adults:
kyphosis about 40 degrees, lumbar lordosis about 55. Variants (L6, T13, no T12) come at the
rate at which VerSe has them.

The *body frame* is millimetres along posterior, right, inferior, like the project's working volumes.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from utils.verse.anomalies import RATE_L6, RATE_NO_T12, RATE_T13
from utils.verse.labels import LEVEL_NAMES, code_of_name, name_of_code, region_of_code

# Between subjects of all ages and both sexes body heights spread by a tenth and more.
STATURE_SD, HEIGHT_SD, PROPORTION_SD = 0.09, 0.055, 0.04
RATE_COLLAPSED_SPINE, RATE_COLLAPSED = 0.22, 0.2
#: Degrees, as the tilts of the levels.
SACRAL_TILT = 38.0


@dataclass(frozen=True)
class Size:
    """Sizes of one vertebra in mm (`spinous_drop` in degrees); `heights`: anterior, middle, posterior."""

    height: float
    width: float
    depth: float
    canal_width: float
    canal_depth: float
    pedicle_width: float
    pedicle_height: float
    spinous_length: float
    spinous_drop: float
    transverse_span: float
    disc: float
    heights: tuple[float, float, float]


#: Names of the columns of sizes in `vertebra_sizes.csv`.
_COLUMNS = tuple(field.name for field in fields(Size) if field.name != "heights")


@functools.cache
def _mean_sizes() -> dict[str, dict[str, float]]:
    """Read the mean sizes of every level in mm (`spinous_drop` in degrees), and its sagittal tilt.

    Height, width and depth are those of the body, `spinous_drop` is counted from the endplate, `disc` is the
    height of the disc below. The tilt is in degrees, positive where the body's axis, followed downwards,
    leans backwards.
    """
    with Path(__file__).with_name("vertebra_sizes.csv").open(newline="") as file:
        return {row.pop("level"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}


@dataclass(frozen=True)
class Quirks:
    """How one vertebra departs from symmetry and from its level.

    Attributes
    ----------
    spinous_turn : float
        How far the spinous process points to the right, radians.
    transverse_lift : tuple of float
        How far the right and the left transverse process point upwards, radians.
    thickness : float
        Thickness of arch and processes, 1 on average.
    spurs : tuple of (float, float, float)
        Bone spurs on the rim of the body: angle from the front in radians, -1 at the upper rim or 1 at the
        lower, length in mm.
    spur_rise : float
        How far spurs rise over the disc, as a share of their length and of the disc's height; from .5 on, two
        that face each other are a bridge.
    """

    spinous_turn: float
    transverse_lift: tuple[float, float]
    thickness: float
    spurs: tuple[tuple[float, float, float], ...]
    spur_rise: float = 0.35


@dataclass(frozen=True)
class Vertebra:
    """One vertebra: VerSe code, sizes, and pose in the body frame.

    Attributes
    ----------
    code : int
        VerSe label.
    size : Size
        Its sizes.
    origin : np.ndarray, shape (3,)
        Centre of the body (of C1: of the dens within its ring), mm.
    rotation : np.ndarray, shape (3, 3)
        Columns: its own posterior, right, inferior direction.
    facet_gap_mm : tuple of float
        Joint space below it, right and left.
    quirks : Quirks
        What makes it unlike its neighbours.
    """

    code: int
    size: Size
    origin: np.ndarray
    rotation: np.ndarray
    facet_gap_mm: tuple[float, float]
    quirks: Quirks

    @property
    def name(self) -> str:
        """Anatomical name, such as "T12"."""
        return name_of_code(self.code)

    @property
    def region(self) -> str:
        """Region of the spine: cervical, thoracic or lumbar."""
        return region_of_code(self.code)

    def world(self, *point: float) -> np.ndarray:
        """Where a point of the vertebra's own frame lies in the body frame, mm."""
        return self.origin + self.rotation @ np.asarray(point, float)


@dataclass(frozen=True)
class Habitus:
    """Ribs and trunk of a subject of the wide ranges.

    Attributes
    ----------
    ribs_mm : mapping of int to tuple of float, 2
        VerSe code, and lengths along the arc of its right and left rib, mm; 0 where there is none.
    rib_slope : float
        How far ribs descend a mm of their way around the cage, 1 on average.
    cage_scale : tuple of float, 2
        Factors of the cage's half depth and half width.
    lung_margin_mm : float
        Soft tissue between lung and vertebral bodies.
    arms : str
        "up", "down" or "away".
    lying : str
        "supine", "prone", "right" or "left": where the table is.
    """

    ribs_mm: Mapping[int, tuple[float, float]]
    rib_slope: float
    cage_scale: tuple[float, float]
    lung_margin_mm: float
    arms: str
    lying: str


@dataclass(frozen=True, eq=False)  # compared by identity, so that what follows from it can be cached
class Anatomy:
    """One subject.

    Attributes
    ----------
    vertebrae : tuple of Vertebra
        From C1 downwards.
    stature : float
        Size of the whole body, 1 on average.
    fat_mm : float
        Thickness of the fat under the skin.
    girth : float
        Circumference of the trunk for its stature, 1 on average.
    sacrum : tuple of np.ndarray
        Centre of the sacrum's first body, and its axes.
    habitus : Habitus or None
        Ribs and trunk of a subject of the wide ranges; None for the usual ribs and trunk.
    """

    vertebrae: tuple[Vertebra, ...]
    stature: float
    fat_mm: float
    girth: float
    sacrum: tuple[np.ndarray, np.ndarray]
    habitus: Habitus | None = None

    def vertebra(self, code: int) -> Vertebra:
        """The vertebra with a VerSe code; `ValueError` where the subject has none."""
        for vertebra in self.vertebrae:
            if vertebra.code == code:
                return vertebra
        raise ValueError(f"Expected one of {[v.code for v in self.vertebrae]}, received {code}.")

    def body_centres(self) -> np.ndarray:
        """Centres of all bodies in the body frame, shape (n, 3), mm."""
        return np.array([v.origin for v in self.vertebrae])


def draw_anatomy(rng: np.random.Generator, *, keep: tuple[int, ...] = ()) -> Anatomy:
    """Draw one subject's whole spine, C1 to the sacrum.

    Parameters
    ----------
    rng : np.random.Generator
        Source of all its randomness.
    keep : tuple of int
        VerSe codes that this subject must have (a T13, say), whatever the draw of variants.

    Returns
    -------
    Anatomy
        The subject.
    """
    names = draw_levels(rng, [name_of_code(code) for code in keep])
    stature = draw_stature(rng)
    sizes = draw_sizes(rng, names, stature)
    tilts = draw_tilts(rng, names, sizes)
    gaps = rng.uniform(0.2, 1.2, (len(names), 2))
    worn = rng.choice([0.0, 0.3, 1.2])
    quirks = [draw_quirks(rng, name, worn) for name in names]
    return assemble(rng, names, stature, sizes=sizes, tilts=tilts, gaps=gaps, quirks=quirks)


def draw_stature(rng: np.random.Generator) -> float:
    """Draw the size of a body, 1 on average."""
    return float(np.clip(rng.normal(1.0, STATURE_SD), 0.76, 1.24))


def assemble(
    rng: np.random.Generator,
    names: list[str],
    stature: float,
    *,
    sizes: list[Size],
    tilts: np.ndarray,
    gaps: np.ndarray,
    quirks: list[Quirks],
    habitus: Habitus | None = None,
) -> Anatomy:
    """Stack the vertebrae whose sizes and angles are drawn, and draw the trunk's fat and girth.

    Parameters
    ----------
    rng : np.random.Generator
        Source of fat and girth.
    names : list of str
        Levels from C1 down.
    stature : float
        Size of the body.
    sizes, quirks : list
        Of each level.
    tilts : np.ndarray of float, (n + 1, 3)
        Angles of each level and the sacrum, degrees; see `rotation_of`.
    gaps : np.ndarray of float, (n, 2)
        Joint spaces below each, mm.
    habitus : Habitus, optional
        Ribs and trunk of the wide ranges.

    Returns
    -------
    Anatomy
        The subject.
    """
    origins, rotations = stack(sizes, tilts)
    vertebrae = tuple(
        Vertebra(code_of_name(n), s, o, r, (float(g[0]), float(g[1])), q)
        for n, s, o, r, g, q in zip(names, sizes, origins, rotations, gaps, quirks)
    )
    return Anatomy(
        vertebrae,
        stature,
        fat_mm=float(rng.uniform(8, 32)),
        girth=float(rng.uniform(0.85, 1.2)),
        sacrum=(origins[-1], rotations[-1]),
        habitus=habitus,
    )


def draw_levels(
    rng: np.random.Generator,
    keep: list[str],
    rates: tuple[float, float, float] = (RATE_T13, RATE_L6, RATE_NO_T12),
) -> list[str]:
    """Draw the names of a subject's levels; `rates` of T13, L6 and an absent T12, `keep` must be there."""
    has_t13, has_l6, no_t12 = rng.random(3) < rates
    absent = {"T13"} if not has_t13 else set()
    absent |= {"L6"} if not has_l6 else set()
    # A twelfth rib pair is missing or a thirteenth is there, never both.
    absent |= {"T12"} if no_t12 and not has_t13 and "T13" not in keep else set()
    return [name for name in LEVEL_NAMES if name not in absent - set(keep)]


def draw_quirks(rng: np.random.Generator, name: str, worn: float) -> Quirks:
    """Draw how one vertebra departs from symmetry; `worn` is its mean number of spurs."""
    spurs = []
    for _ in range(rng.poisson(worn)):
        longest = 2.5 if name.startswith("C") else 5.0
        spurs.append((rng.normal(0, 0.9), float(rng.choice([-1, 1])), rng.uniform(1.0, longest)))
    lift = rng.normal(0, 0.1, 2)
    return Quirks(rng.normal(0, 0.06), (lift[0], lift[1]), float(np.exp(rng.normal(0, 0.08))), tuple(spurs))


def draw_sizes(rng: np.random.Generator, names: list[str], stature: float) -> list[Size]:
    """Draw the sizes of the levels of one spine."""
    proportions = np.exp(rng.normal(0, PROPORTION_SD, len(_COLUMNS)))
    proportions[0] = np.exp(rng.normal(0, HEIGHT_SD))
    proportions[_COLUMNS.index("spinous_drop")] = 1 / stature  # an angle does not grow with the body
    proportions[_COLUMNS.index("disc")] = np.exp(rng.normal(-0.05, 0.2))
    brittle = rng.random() < RATE_COLLAPSED_SPINE
    sizes = []
    for name in names:
        noise = np.exp(rng.normal(0, 0.03, len(_COLUMNS)))
        values = (
            np.array([_mean_sizes()[name][column] for column in _COLUMNS]) * stature * proportions * noise
        )
        heights = (values[0] * _draw_heights(rng, name, brittle)).tolist()
        values[0] = (heights[0] + heights[2]) / 2
        sizes.append(Size(*values.tolist(), heights=tuple(heights)))
    return sizes


def _draw_heights(rng: np.random.Generator, name: str, brittle: bool) -> np.ndarray:
    """Anterior, middle and posterior height as fractions of the level's height."""
    normal = np.array([1.0, 0.9, 1.0]) + rng.normal(0, 0.02, 3)
    if name.startswith("L"):
        normal[0] += 0.04 * (int(name[1:]) - 2)  # lumbar bodies are taller in front, L5 most of all
    wedge, biconcave, crush = ((0.6, 0.75, 1.0), (0.92, 0.62, 0.95), (0.55, 0.5, 0.65))
    kind = (wedge, biconcave, crush)[rng.choice(3, p=(0.55, 0.3, 0.15))]
    severity = rng.uniform(0.4, 1.15)
    if not (brittle and rng.random() < RATE_COLLAPSED) or name.startswith("C"):
        return normal
    return normal * (1 - severity * (1 - np.array(kind)))


def draw_tilts(rng: np.random.Generator, names: list[str], sizes: list[Size]) -> np.ndarray:
    """Sagittal, coronal and axial angle of each vertebra and of the sacrum, degrees, shape (n + 1, 3)."""
    n = len(names)
    sagittal = np.array([*(_mean_sizes()[name]["tilt"] for name in names), SACRAL_TILT]) * rng.uniform(
        0.65, 1.3
    )
    sagittal = sagittal + rng.normal(0, 3) + np.interp(np.arange(n + 1), [0, n / 2, n], rng.normal(0, 4, 3))
    # A wedged body bends the spine forwards: everything above it leans.
    wedging = [np.degrees((s.heights[2] - s.heights[0]) / s.depth) for s in sizes]
    excess = np.array([max(w, 0.0) for w in wedging])
    lean = np.array([*np.cumsum(excess[::-1])[::-1], 0.0]) - excess.sum() / 2
    sagittal = np.clip(sagittal + 0.5 * lean + rng.normal(0, 1.2, n + 1), -45, 50)
    amplitude = rng.gamma(1.2, 3.0) if rng.random() < 0.7 else rng.uniform(6, 16)
    waves, phase = rng.uniform(0.6, 1.6), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * waves * np.arange(n + 1) / n + phase)
    coronal = min(amplitude, 16.0) * wave + rng.normal(0, 2) + rng.normal(0, 0.8, n + 1)
    # The curve of scoliosis turns the vertebrae as well, most where it is farthest to the side.
    axial = min(amplitude, 16.0) * 0.6 * np.roll(wave, 2) + rng.normal(0, 3) + rng.normal(0, 0.8, n + 1)
    return np.stack([sagittal, coronal, axial], axis=1)


def rotation_of(angles_deg: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) for a sagittal, coronal and axial angle in degrees; columns P, R, I."""
    s, c, a = np.radians(angles_deg)
    tilt = np.array([[np.cos(s), 0, np.sin(s)], [0, 1, 0], [-np.sin(s), 0, np.cos(s)]])
    lean = np.array([[1, 0, 0], [0, np.cos(c), np.sin(c)], [0, -np.sin(c), np.cos(c)]])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return tilt @ lean @ turn


def stack(sizes: list[Size], tilts: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Place the vertebrae on top of each other, the sacrum last: origins and rotations."""
    rotations = [rotation_of(angles) for angles in tilts]
    origins = [np.zeros(3)]
    below = [*sizes[1:], replace(sizes[-1], height=28.0)]
    for k, (size, lower) in enumerate(zip(sizes, below)):
        down, down_lower = rotations[k][:, 2], rotations[k + 1][:, 2]
        middle = (down + down_lower) / np.linalg.norm(down + down_lower)
        step = size.height / 2 * down + size.disc * middle + lower.height / 2 * down_lower
        if k == 0:  # C1 rides on the shoulders of C2, its ring around the dens
            step = (size.height / 2 + size.disc / 2 + lower.height / 2) * down_lower
        origins.append(origins[-1] + step)
    return origins, rotations
