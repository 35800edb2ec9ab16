"""What is plausible in a column of vertebrae: distances, volumes, leaks, borders, heat without a vertebra.

Pure functions. Everything is measured against the neighbours, since levels differ: the distance of their
centres grows from about 15 mm in the neck to 38 mm at L5, the volume from 13 to 80 cubic cm.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.imaging.grids import transform_points
from utils.imaging.volume import Volume
from utils.walk.locate import SLICE_AXIS
from utils.walk.records import FoundVertebra

#: Distance of neighbours, relative to those above and below, from which one between them is missing. Real
#: columns have up to 1.4 (C2 to C3), with one missing 1.7 and more.
GAP_DISTANCE = 1.55
#: The same for the free space between bodies, relative to their height: real columns have up to .56, with
#: one missing .67 and more in all levels but a bent upper thorax. Needs no neighbours.
GAP_FREE_SPACE = 0.75
#: Most vertebrae that are looked for in one gap; more are left to a second start.
MOST_MISSING = 6
#: Volume relative to the neighbours from which a prediction may hold two vertebrae. Adjacent ones differ
#: by up to a third (L1 and T12, C2 and C3).
LEAK_VOLUME = 1.25
#: The same below a vertebra that leaked: what the network did once it does again.
LEAK_VOLUME_BELOW_LEAK = 1.05
#: A vertebra that the border cuts counts for its neighbours' volume above this share of the column's largest.
_LEFT_OVER = 0.7
#: Volume relative to the neighbours outside which a vertebra is remarked on, and is not taken in a gap.
ODD_VOLUMES, TAKEN_VOLUMES = (0.5, 1.7), (0.3, 2.5)
#: Least volume of the next vertebra relative to the two above it.
_LEAST_VOLUME = 0.2
#: Most that a centre lies in front of, behind or beside its neighbour's, relative to the height between them.
_MOST_ASIDE = 1.5
#: In a column of so many nothing says which one strays.
_LEAST_COLUMN = 3
#: What a leak is asked for with: the upper share of a prediction's height, too little to hold anything of a
#: second vertebra; then, if the network does not take that for one, upper shares of its voxels: nearly all
#: of the first of two, and more than half of one with a small leak.
_LEAK_HEIGHT, _LEAK_VOXELS = 0.3, (0.42, 0.52)
#: A second vertebra is at least this share of a prediction. Less may be the second leaking into the first: it
#: must be more where no neighbours speak against a prediction.
LEAK_SHARE, FIRST_LEAK_SHARE = 0.15, 0.24
#: What the second vertebra leaves is at least this share of the prediction. The border between the two is not
#: the flat one of the upper part: so much lies on its other sides. The first lies above the second, by this
#: share of the height of both, or is solid in the last share of the prediction: where the border of a scan
#: cuts a bent spine, the first may lie before the second.
_LEAK_LEFT, _LEAK_UNEVEN, _LEAK_ABOVE, _LEAK_SOLID = 0.02, 0.02, 0.15, 0.2
#: A prediction up to this volume, relative to its neighbours, is left whole where a cut would leave less than
#: that.
_WHOLE_VOLUME, _CUT_VOLUME = 1.45, 0.65
#: Where no neighbours speak, the upper of two is at least this share of the lower; less is what the border of
#: a scan leaves of a vertebra, given together with the first whole one.
_LEAST_FIRST = 0.4
#: Share of the upper part from which on the network has given the same vertebra again.
_LEAK_UPPER = 0.25
#: Distance of neighbours where no others say it, in mm: as in the mid thorax.
USUAL_DISTANCE_MM = 25.0


@dataclass(frozen=True, eq=False)
class Gap:
    """A place between neighbours where vertebrae are missing."""

    upper: FoundVertebra
    lower: FoundVertebra
    expected: tuple[np.ndarray, ...]
    """Where the centres of the missing ones would be, voxel index (3,) each, from the top down."""

    @property
    def distance_voxels(self) -> float:
        """Distance between a missing one and the next."""
        return float(np.linalg.norm(self.lower.centre - self.upper.centre)) / (len(self.expected) + 1)


def volume_voxels(vertebra: FoundVertebra) -> int:
    """Give the volume of a vertebra in voxels."""
    return int(np.count_nonzero(vertebra.mask))


def usual_volume(column: Sequence[FoundVertebra], height: float) -> float | None:
    """Give the volume that neighbours speak for: the mean of the two nearest.

    Parameters
    ----------
    column : sequence of FoundVertebra
        From the top down. What the border of the scan has left of a vertebra does not count.
    height : float
        Voxel index on the I axis; those above it are asked first, since the walk comes from there.

    Returns
    -------
    float or None
        Voxels; None if there is no vertebra.
    """
    largest = max((volume_voxels(each) for each in column), default=0)
    counted = [each for each in column if not each.partial or volume_voxels(each) > _LEFT_OVER * largest]
    above = [each for each in counted if each.centre[2] < height][-2:]
    below = [each for each in counted if each.centre[2] >= height][:2]
    near = above or below
    return float(np.mean([volume_voxels(each) for each in near])) if near else None


def usual_distance(column: Sequence[FoundVertebra], index: int) -> float | None:
    """Give the distance, in voxels, that neighbours speak for between `column[index]` and the next.

    The median of the two distances above and the two below; None if there is none.
    """
    distances = distances_voxels(column)
    near = [*distances[max(0, index - 2) : index], *distances[index + 1 : index + 3]]
    return float(np.median(near)) if near else None


def distances_voxels(column: Sequence[FoundVertebra]) -> np.ndarray:
    """Give the distance from every centre to the next, in voxels, (n - 1,)."""
    centres = np.array([each.centre for each in column]).reshape(-1, 3)
    return np.linalg.norm(np.diff(centres, axis=0), axis=1)


def free_space(upper: FoundVertebra, lower: FoundVertebra) -> float:
    """Give the free space between the bodies of two vertebrae, relative to the bodies' height.

    The body is what lies in front of the mask's centre; the outer twentieths of its height are left out.
    """
    (_, upper_end), (lower_begin, _) = _body_range(upper), _body_range(lower)
    heights = [end - begin for begin, end in (_body_range(upper), _body_range(lower))]
    return (lower_begin - upper_end) / max(float(np.mean(heights)), 1.0)


def _body_range(vertebra: FoundVertebra) -> tuple[float, float]:
    p, _, i = np.nonzero(vertebra.mask)
    in_front = i[p <= p.mean()] + vertebra.begin[2]
    low, high = np.percentile(in_front, (5, 95))
    return float(low), float(high)


def gaps_in(column: Sequence[FoundVertebra]) -> list[Gap]:
    """Give the places where the distance of neighbours says that vertebrae were skipped.

    Parameters
    ----------
    column : sequence of FoundVertebra
        From the top down.
    """
    gaps = []
    for index, distance in enumerate(distances_voxels(column)):
        upper, lower = column[index], column[index + 1]
        missing = _missing_between(upper, lower, distance, usual_distance(column, index))
        if missing:
            shares = np.arange(1, missing + 1) / (missing + 1)
            expected = tuple(upper.centre + share * (lower.centre - upper.centre) for share in shares)
            gaps.append(Gap(upper, lower, expected))
    return gaps


def _missing_between(upper: FoundVertebra, lower: FoundVertebra, distance: float, usual: float | None) -> int:
    by_distance = 0
    if usual is not None and distance >= GAP_DISTANCE * usual:
        by_distance = round(distance / max(usual, 1.0)) - 1
    free = free_space(upper, lower)
    # Bodies and discs of one missing vertebra: 1.4 heights.
    by_space = 0 if free < GAP_FREE_SPACE else max(1, round(free / 1.4))
    return min(max(by_distance, by_space), MOST_MISSING)


def fills(vertebra: FoundVertebra, gap: Gap) -> str:
    """Say why a vertebra cannot be the one that is missing in a gap; "" if it can."""
    line = gap.lower.centre - gap.upper.centre
    way = float((vertebra.centre - gap.upper.centre) @ line / (line @ line))
    margin = 0.4 / (len(gap.expected) + 1)
    if not margin <= way <= 1 - margin:
        return "lies outside the gap"
    aside = np.linalg.norm(vertebra.centre - gap.upper.centre - way * line)
    if aside > gap.distance_voxels:
        return "lies beside the column"
    return odd_volume(vertebra, [gap.upper, gap.lower], TAKEN_VOLUMES)


def odd_volume(
    vertebra: FoundVertebra, neighbours: Sequence[FoundVertebra], bounds: tuple[float, float] = ODD_VOLUMES
) -> str:
    """Say how the volume of a vertebra is out of proportion to its neighbours'; "" if it is not."""
    whole = [volume_voxels(each) for each in neighbours if not each.partial]
    if not whole or vertebra.partial:
        return ""
    share = volume_voxels(vertebra) / np.mean(whole)
    if bounds[0] <= share <= bounds[1]:
        return ""
    return f"has {share:.2f} times the volume of its neighbours"


def follows_above(vertebra: FoundVertebra, column: Sequence[FoundVertebra], *, most_voxels: float) -> str:
    """Say why a vertebra cannot be one above the column's first; "" if it can."""
    first = column[0]
    away = vertebra.centre - first.centre
    usual = usual_distance(column, -1) if len(column) > 1 else None
    least = 0.4 * usual if usual is not None and not first.partial else 1.0
    if -away[2] < least:
        return "does not lie above the first"
    if np.linalg.norm(away) > most_voxels or np.linalg.norm(away[:2]) > _MOST_ASIDE * -away[2]:
        return "lies beside the column"
    return odd_volume(vertebra, column[:2], TAKEN_VOLUMES)


def follows_below(
    vertebra: FoundVertebra,
    above: FoundVertebra,
    column: Sequence[FoundVertebra],
    *,
    most_aside_voxels: float,
) -> str:
    """Say why a vertebra cannot be the next one below `above`, one of the column; "" if it can.

    Remnants that the border has left of vertebrae may lie beside each other by up to `most_aside_voxels`.
    """
    away = vertebra.centre - above.centre
    if away[2] <= 0:
        return "does not lie below the one before it"
    if np.linalg.norm(away[:2]) > max(_MOST_ASIDE * away[2], most_aside_voxels):
        return "lies beside the column"
    nearest = [each for each in column if each.centre[2] <= above.centre[2]][-2:]
    # No upper bound: what lies above may be a remnant that the border has left.
    return odd_volume(vertebra, nearest, (_LEAST_VOLUME, np.inf))


def strays(column: Sequence[FoundVertebra], *, most_aside_voxels: float) -> list[FoundVertebra]:
    """Give what lies so far beside the others along P and R that it is of no spine, worst first.

    The others are up to two above and two below; in a column of three or fewer nothing is said. A spine may
    lean by as much as a vertebra lies above or below their middle, and by `most_aside_voxels` more.
    """
    left, found = list(column), []
    while len(left) > _LEAST_COLUMN:
        excess = []
        for index, vertebra in enumerate(left):
            others = [*left[max(0, index - 2) : index], *left[index + 1 : index + 3]]
            away = np.abs(vertebra.centre - np.median([each.centre for each in others], axis=0))
            excess.append(np.linalg.norm(away[:2]) - away[2] - most_aside_voxels)
        worst = int(np.argmax(excess))
        if excess[worst] <= 0:
            break
        found.append(left.pop(worst))
    return found


# Leaks ---------------------------------------------------------------------------------------------


def upper_parts(mask: np.ndarray) -> list[np.ndarray]:
    """Give the upper parts of a prediction that a leak is asked for with, the smaller one first.

    Parameters
    ----------
    mask : np.ndarray of bool
        The prediction, axes (P, R, I).
    """
    voxels = np.cumsum(mask.sum(axis=(0, 1)))
    heights = np.flatnonzero(mask.any(axis=(0, 1)))
    shares = [int(np.searchsorted(voxels, share * voxels[-1])) for share in _LEAK_VOXELS]
    ends = {heights[0] + max(1, round(_LEAK_HEIGHT * len(heights))), shares[0], shares[1] + 1}
    return [mask & (np.arange(mask.shape[2]) < end) for end in sorted(ends) if end > heights[0]]


def topmost(mask: np.ndarray, share: float) -> np.ndarray:
    """Give the topmost slices of a mask that hold a share of its voxels, at least one."""
    voxels = np.cumsum(mask.sum(axis=(0, 1)))
    top = mask.copy()
    top[:, :, int(np.searchsorted(voxels, share * voxels[-1])) + 1 :] = False
    return top


def is_leak(
    mask: np.ndarray, upper: np.ndarray, answer: np.ndarray, *, least_voxels: float, least_share: float
) -> bool | None:
    """Tell from the network's answer whether a prediction holds a second vertebra.

    The upper part of the prediction goes into the memory, and the network is asked for the next one. Below
    one whole vertebra it gives another, outside the prediction. Where two were taken for one, it gives the
    second, inside the prediction, and leaves the rest of the first alone, whatever part of it was in the
    memory. If it completes the first instead, nothing is left but the flat part that was in the memory.

    Parameters
    ----------
    mask : np.ndarray of bool
        The prediction.
    upper : np.ndarray of bool
        The part of it that was in the memory.
    answer : np.ndarray of bool
        What the network gave then, in the same box.
    least_voxels : float
        Volume of the smallest vertebra.
    least_share : float
        Least share of the prediction that the second vertebra has: `LEAK_SHARE` or, where no neighbour says
        that the prediction is too large, `FIRST_LEAK_SHARE`.

    Returns
    -------
    bool or None
        None if the answer is the same vertebra again: the network did not take the upper part for one.
    """
    voxels = np.count_nonzero(mask)
    inside, left = answer & mask, mask & ~answer
    in_upper = np.count_nonzero(answer & upper)
    # Opened: where two answers merely differ at the surface, nothing is left.
    left_below = np.count_nonzero(ndimage.binary_opening(left & ~upper))
    if (
        np.count_nonzero(inside) >= least_share * voxels
        and np.count_nonzero(left) >= max(least_voxels, _LEAK_LEFT * voxels)
        and in_upper + left_below >= _LEAK_UNEVEN * voxels
        and (
            _height_above(left, inside) >= _LEAK_ABOVE
            or np.count_nonzero(ndimage.binary_opening(left)) >= _LEAK_SOLID * voxels
        )
    ):
        return True
    return None if in_upper > _LEAK_UPPER * np.count_nonzero(upper) else False


def leaves_enough(cut: np.ndarray, whole: np.ndarray, usual: float | None) -> bool:
    """Tell whether a cut leaves a vertebra of plausible volume, or the whole is too large to be one.

    Below T12 vertebrae grow fast: one that is merely large must not be cut in two because the network, shown
    its upper part as known, gives the rest together with the next one.

    Parameters
    ----------
    cut, whole : np.ndarray of bool
        Masks.
    usual : float or None
        Volume that the neighbours speak for, in voxels; None where there are none.
    """
    if usual is None:
        return True
    return np.count_nonzero(whole) > _WHOLE_VOLUME * usual or np.count_nonzero(cut) >= _CUT_VOLUME * usual


def is_piece_above(upper: np.ndarray, lower: np.ndarray) -> bool:
    """Tell whether the upper of two vertebrae that were taken for one is a piece that the border has left.

    Measured by it, all below would seem too large.

    Parameters
    ----------
    upper, lower : np.ndarray of bool
        The two parts of the prediction.
    """
    return np.count_nonzero(upper) < _LEAST_FIRST * np.count_nonzero(lower)


def _height_above(upper: np.ndarray, lower: np.ndarray) -> float:
    """Give how far the middle of one mask lies above that of another, relative to the height of both."""
    heights = np.flatnonzero((upper | lower).any(axis=(0, 1)))
    return float(np.nonzero(lower)[2].mean() - np.nonzero(upper)[2].mean()) / len(heights)


# Borders -------------------------------------------------------------------------------------------


def search_points(field: tuple[slice, ...], step: float) -> list[np.ndarray]:
    """Give points that patches are placed on to find a spine anywhere in a scan.

    Parameters
    ----------
    field : tuple of slice
        The box that the scan shows, as of `field_of`.
    step : float
        Voxels between two points along each axis: half of a patch, so that all lies well inside of one.

    Returns
    -------
    list of np.ndarray, (3,)
        From the top down; at one height from the middle of the scan outwards.
    """
    axes = []
    for side in field:
        count = max(1, round((side.stop - side.start) / step) - 1)
        between = (side.stop - side.start) / (count + 1)
        axes.append(side.start + between * np.arange(1, count + 1))
    middle = [(side.start + side.stop) / 2 for side in field[:2]]
    places = sorted(itertools.product(*axes[:2]), key=lambda place: np.hypot(*np.subtract(place, middle)))
    return [np.array([*place, height]) for height in axes[2] for place in places]


# Heat ----------------------------------------------------------------------------------------------


def heat_profile(heat: Volume, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the largest heat of every slice of a heatmap, and where the slice lies.

    Returns
    -------
    profile, heights : np.ndarray (k,)
        Heat, and index on the I axis in the grid of `affine`.
    """
    profile = np.moveaxis(heat.data, SLICE_AXIS, 0).max(axis=(1, 2))
    slices = np.zeros((len(profile), 3))
    slices[:, SLICE_AXIS] = np.arange(len(profile))
    return profile, transform_points(slices, heat.affine, affine)[:, SLICE_AXIS]


def uncovered_runs(
    hot: np.ndarray, heights: np.ndarray, covered: Sequence[tuple[float, float]], *, least: float
) -> list[tuple[float, float]]:
    """Give the stretches of spine that nothing covers.

    Parameters
    ----------
    hot : np.ndarray of bool (k,)
        Whether a slice has the heat of the spine.
    heights : np.ndarray (k,)
        Where the slices lie.
    covered : sequence of (begin, end)
        Heights that are covered.
    least : float
        Shortest stretch that is given.

    Returns
    -------
    list of (begin, end)
        From the top down.
    """
    free = hot.copy()
    for begin, end in covered:
        free &= (heights < begin) | (heights > end)
    steps = np.diff(np.concatenate([[0], free.astype(int), [0]]))
    begins, ends = heights[np.flatnonzero(steps == 1)], heights[np.flatnonzero(steps == -1) - 1]
    return [(float(begin), float(end)) for begin, end in zip(begins, ends) if end - begin >= least]
