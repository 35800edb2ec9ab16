"""Where organs of drawn trunks lie along the spine, and how their ribs run, against real chests."""

import numpy as np
import pytest

from utils.synthetic.phantom.cage import ROUNDNESS, cage_of, cut_path, level_point, rib_path
from utils.synthetic.phantom.ranges import ORGAN_LEVELS, WIDE
from utils.synthetic.phantom.shapes import SIDES, BodyGrid
from utils.synthetic.phantom.subject import draw_subject
from utils.synthetic.phantom.trunk import trunk_tissue
from utils.synthetic.phantom.wide_values import draw_tissue_within

#: Level of the top of each lung and of its last air behind the spine's front (T1 is 1, L1 is 13): medians of
#: the chests and the belly of `experiments/real/centres.json` that show them, air being below -500 HU.
REAL_LUNGS = {("right", "top"): 1.2, ("left", "top"): 1.0, ("right", "end"): 13.1, ("left", "end"): 12.4}
#: By rib of LIDC-IDRI-0001: how far below its body's centre the lateral-most point lies, and the front end,
#: means of both sides, mm.
REAL_RIBS = {1: (6, 24), 2: (2, 28), 3: (8, 42), 4: (16, 58), 6: (35, 82), 8: (66, 95), 10: (80, 89)}


@pytest.fixture(scope="module")
def subjects():
    return [draw_subject(np.random.default_rng([77, n]), ranges=WIDE) for n in range(40)]


def level_of(subject, height):
    numbers = np.linspace(-3, 16, 400)
    return np.interp(height, [level_point(subject, number)[2] for number in numbers], numbers)


def lung_levels(subject, number):
    """Level of the top and the end of the air of both lungs on a grid of 6 mm."""
    values = draw_tissue_within(np.random.default_rng([78, number]), subject, WIDE)
    low, high = level_point(subject, -2), level_point(subject, 15)
    shape = (40, 50, int((high[2] - low[2]) / 6))
    grid = BodyGrid(np.array([low[0] - 120, low[1] - 150, low[2]]), 6.0, shape)
    hu = trunk_tissue(subject, values, grid, np.random.default_rng(values.seed))
    course = np.array([level_point(subject, n) for n in np.linspace(-2, 15, 100)])
    p, r, i = grid.axes()
    u, v = (axis - np.interp(i, course[:, 2], course[:, k]) for k, axis in enumerate((p, r)))
    # Within the ribs, beside the airways: no air around neck and arms.
    at = cage_of(subject).at(i.ravel())[:, None, None]
    ribs = np.abs((p - at[0]) / at[2]) ** ROUNDNESS + np.abs((r - at[1]) / at[3]) ** ROUNDNESS
    air = (hu < -500) & (ribs < 0.85) & (u > -70) & (i > level_point(subject, -0.3)[2])
    found = {}
    for side, name in zip(SIDES, ("right", "left")):
        rows = i.ravel()[(air & (side * v > 20)).sum((0, 1)) > 4]
        found[name, "top"] = level_of(subject, rows.min())
        behind = i.ravel()[(air & (side * v > 20) & (u > -15)).sum((0, 1)) > 2]
        found[name, "end"] = level_of(subject, behind.max()) if len(behind) else np.nan
    return found


def test_the_lungs_lie_about_where_they_lie_in_people_and_spread_widely(subjects):
    levels = [lung_levels(subject, number) for number, subject in enumerate(subjects[:24])]
    for key, real in REAL_LUNGS.items():
        found = np.array([level[key] for level in levels])
        assert np.nanmedian(found) == pytest.approx(real, abs=0.7), key
        assert np.nanpercentile(found, 95) - np.nanpercentile(found, 5) > 1.2, key


def test_organs_are_drawn_around_their_medians_each_for_itself(subjects):
    names = [name for name in ORGAN_LEVELS if name != "base left"]
    drawn = np.array([[s.habitus.organ_levels[name] for name in names] for s in subjects])
    shifts = drawn - [ORGAN_LEVELS[name] for name in names]
    assert np.abs(shifts).max() <= 1.5 and np.abs(shifts).max(0).min() > 1.1
    alike = np.corrcoef(shifts.T) - np.eye(len(names))
    assert np.abs(alike).max() < 0.6  # 40 draws: three and a half standard errors


def rib_of(subject, number, side):
    vertebra = next(v for v in subject.vertebrae if v.name == f"T{number}")
    length = subject.habitus.ribs_mm[vertebra.code][SIDES.index(side)]
    return cut_path(rib_path(subject, vertebra, side), 0, length) - vertebra.origin


@pytest.mark.parametrize("number", REAL_RIBS)
def test_ribs_fall_as_in_people(subjects, number):
    ribs = [(rib_of(subject, number, side), side) for subject in subjects for side in SIDES]
    lateral = np.median([rib[np.argmax(side * rib[:, 1]), 2] for rib, side in ribs])
    front = np.median([rib[-1, 2] for rib, _ in ribs])
    # One person's ribs: within a little more than half a level.
    np.testing.assert_allclose((lateral, front), REAL_RIBS[number], atol=14)


def test_the_first_rib_is_a_short_arc_to_the_front(subjects):
    for number, low, high in ((1, 90, 130), (2, 150, 205)):
        ribs = [rib_of(subject, number, SIDES[0]) for subject in subjects]
        lengths = [np.linalg.norm(np.diff(rib, axis=0), axis=1).sum() for rib in ribs]
        assert low < np.median(lengths) < high
        # It passes its lateral-most point and comes back towards the breastbone.
        turned = [rib[:, 1].max() - rib[-1, 1] for rib in ribs]
        assert np.median(turned) > 4
        assert np.median([rib[-1, 0] for rib in ribs]) < -45


def test_a_level_between_two_bodies_is_between_their_centres(subjects):
    first, second = (next(v for v in subjects[0].vertebrae if v.name == name) for name in ("T4", "T5"))
    expected = 0.75 * first.origin + 0.25 * second.origin
    np.testing.assert_allclose(level_point(subjects[0], 4.25), expected)
