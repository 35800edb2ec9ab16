"""Local maxima of a heat: where they are to a tenth of a voxel, and what is read there."""

import numpy as np
import pytest

from utils.imaging.volume import Volume
from utils.localisation.candidates import (
    LocalisedScan,
    Peaks,
    Reading,
    find_peaks,
    halfway_to_peaks,
    moved_peaks,
    patches_at,
    read_candidates,
)
from utils.verse.labels import MAX_RANK

AFFINE = np.array([[0, -3.0, 0, 60], [-3.0, 0, 0, 50], [0, 0, -3.0, 90], [0, 0, 0, 1]])


def gaussians(points, heights, shape=(30, 28, 40), sigma=1.5):
    """The largest of Gaussians at voxel points."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    parts = [
        height * np.exp(-((grid - np.array(point)) ** 2).sum(-1) / (2 * sigma**2))
        for point, height in zip(points, heights)
    ]
    return np.max(parts, axis=0).astype(np.float32)


def found(points, heights, **keywords):
    return find_peaks(Volume(gaussians(points, heights), AFFINE), **{"least": 0.2, **keywords})


def test_gaussians_are_found_where_they_are_the_highest_first():
    points = np.array([[10.3, 12.8, 8.45], [12.0, 12.4, 15.2], [13.1, 11.9, 22.7]])
    peaks = found(points, [0.6, 0.9, 0.7])
    np.testing.assert_allclose(peaks.points_voxels, points[[1, 2, 0]], atol=0.1)
    np.testing.assert_allclose(peaks.heat, [0.9, 0.7, 0.6], atol=0.09)  # read at the nearest voxel
    assert np.all(np.diff(peaks.heat) < 0)
    world = points[[1, 2, 0]] @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    np.testing.assert_allclose(peaks.points_mm, world, atol=0.3)


def test_neighbours_of_the_upper_chest_stay_apart():
    peaks = found([[12, 12, 10], [12, 12, 15]], [0.8, 0.8])  # 15 mm
    np.testing.assert_allclose(np.sort(peaks.points_voxels[:, 2]), [10, 15], atol=0.1)


def test_low_near_and_surplus_peaks_are_left_out():
    points = [[8, 8, 8], [20, 20, 20], [8, 20, 30]]
    assert len(found(points, [0.9, 0.15, 0.5])) == 2
    assert found(points, [0.9, 0.4, 0.5], most=2).heat.tolist() == pytest.approx([0.9, 0.5])
    heat = np.zeros((9, 9, 9), np.float32)
    heat[4, 4, 4], heat[4, 4, 6] = 1.0, 0.8
    assert len(find_peaks(Volume(heat, AFFINE), least=0.2)) == 1  # 6 mm apart, one maximum after smoothing
    assert (
        len(
            find_peaks(
                Volume(gaussians([[12, 12, 10], [12, 12, 15]], [0.8, 0.7]), AFFINE), least=0.2, apart_mm=16.0
            )
        )
        == 1
    )


def test_a_body_centre_on_the_border_has_a_peak():
    peaks = found([[12, 12, 0], [12, 12, 39]], [0.8, 0.7])
    np.testing.assert_allclose(peaks.points_voxels[:, 2], [0, 39], atol=0.5)


def test_constant_heat_is_bounded_and_no_heat_has_no_peak():
    assert len(find_peaks(Volume(np.full((20, 20, 20), 0.5), AFFINE), least=0.2)) <= 80
    assert len(find_peaks(Volume(np.zeros((5, 5, 5)), AFFINE), least=0.2)) == 0


# What is read at the peaks ----------------------------------------------------------------------------


def scan_of(bodies, sacrum):
    """Heat of bodies and of sacra (points, heights), and a CT of the same frame."""
    heats = (Volume(gaussians(*each), AFFINE) for each in (bodies, sacrum))
    return LocalisedScan(*heats), Volume(np.zeros((30, 28, 40), np.int16), AFFINE)


def nothing_asked(ct, points):
    raise AssertionError("no point to ask about")


def test_levels_and_ribs_are_asked_at_the_centres_that_the_peaks_lead_to():
    asked = []

    def labels(ct, points):
        asked.append(points)
        levels = np.zeros((len(points), 1 + MAX_RANK))
        levels[points[:, 2] < 13, 19], levels[points[:, 2] > 13, 21] = 5, 5  # T12 above, L1 below
        levels[:, 0] = 2.0
        way = [1.0, 0.5, 0.0] if len(asked) == 1 else [0.25, 0.0, 0.0]
        return Reading(levels, points[:, 2] - 10, np.full((len(points), 3), way))

    scan, ct = scan_of(([[10, 12, 8], [12, 12, 18]], [0.9, 0.7]), ([[14, 12, 30]], [0.8]))
    vertebrae, sacra, _ = read_candidates(scan, ct, labels, least=0.2)
    np.testing.assert_allclose(
        asked,
        [[[x, y, 8], [x + 2, y, 18]] for x, y in ((10, 12), (11, 12.5), (11.25, 12.5))],
        atol=0.1,
    )
    np.testing.assert_allclose(vertebrae.points_voxels, asked[2])
    assert vertebrae.level_log_probabilities.argmax(axis=1).tolist() == [19, 21]
    np.testing.assert_allclose(np.exp(vertebrae.level_log_probabilities).sum(axis=1), 1)
    np.testing.assert_allclose(vertebrae.rib_probability, 1 / (1 + np.exp([2, -8])), atol=0.01)
    # 25 levels with a logit of 0 and one with 5, each a 26th, against 2.
    odds = np.log((25 + np.exp(5)) / 26) - 2
    np.testing.assert_allclose(vertebrae.vertebra_log_odds, odds)
    np.testing.assert_allclose(np.exp(vertebrae.levels_of_vertebra).sum(axis=1), 1)
    np.testing.assert_allclose(sacra.points_voxels, [[14, 12, 30]], atol=0.05)
    assert len(read_candidates(scan, ct, labels, least=0.8)[0]) == 1


def test_without_peaks_nobody_is_asked():
    scan, ct = scan_of(([[5, 5, 5]], [0.0]), ([[5, 5, 5]], [0.0]))
    vertebrae, sacra, _ = read_candidates(scan, ct, nothing_asked, least=0.1)
    assert len(vertebrae) == len(sacra) == 0
    assert vertebrae.level_log_probabilities.shape == (0, MAX_RANK + 1)
    assert vertebrae.vertebra_log_odds.shape == vertebrae.rib_probability.shape == (0,)


def test_logits_that_are_not_finite_are_refused():
    scan, ct = scan_of(([[12, 12, 10]], [0.9]), ([[5, 5, 5]], [0.0]))
    with pytest.raises(ValueError, match="Expected finite logits, received NaN"):
        read_candidates(scan, ct, lambda ct, points: reading(1, ways=np.nan), least=0.1)


def reading(count, ways=0.0):
    return Reading(np.zeros((count, 1 + MAX_RANK)), np.zeros(count), np.full((count, 3), ways))


def test_peaks_that_lead_to_one_centre_are_one_and_those_out_of_the_scan_none():
    points = np.array([[10.0, 10, 8], [10, 10, 12], [10, 10, 20], [10, 10, 1], [10, 10, 28]])
    peaks = Peaks(points, AFFINE, np.array([0.9, 0.8, 0.7, 0.6, 0.5]))
    ways = np.array([[0, 0, 2.5], [0, 0, -1], [0, 1, 0], [0, 0, -1.6], [0, 0, 1.4]])
    moved = moved_peaks(peaks, ways, (30, 30, 30))
    np.testing.assert_allclose(moved.points_voxels, [[10, 10, 10.5], [10, 11, 20], [10, 10, 29.4]])
    assert moved.heat.tolist() == [0.9, 0.7, 0.5]


# Patches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [4, 5])
def test_a_patch_has_its_point_in_the_middle_to_a_fraction_of_a_voxel(edge):
    """HU that grow linearly along each axis in another way are met exactly between voxels."""
    slope = np.array([7.0, 31.0, 1.0])
    grid = np.stack(np.meshgrid(*map(np.arange, (12, 13, 14)), indexing="ij"), -1)
    points = np.array([[5.0, 6.0, 7.0], [4.25, 6.5, 7.125]])
    patches = patches_at(Volume(grid @ slope, AFFINE), points, edge=edge, outside="air")
    within = np.stack(np.meshgrid(*[np.arange(edge) - (edge - 1) / 2] * 3, indexing="ij"), -1)
    assert patches.dtype == np.float32
    for patch, point in zip(patches, points):
        np.testing.assert_allclose(patch, (point + within) @ slope, rtol=1e-5)


@pytest.mark.parametrize(("outside", "hu"), [("air", -1024), ("edge", 500)])
def test_a_patch_shows_beyond_the_scan_what_the_training_showed(outside, hu):
    ct = Volume(np.full((9, 9, 9), 500, np.int16), AFFINE)
    (patch,) = patches_at(ct, np.array([[4.0, 4.0, 0.0]]), edge=5, outside=outside)
    np.testing.assert_array_equal(patch[:, :, :2], hu)
    np.testing.assert_array_equal(patch[:, :, 2:], 500)
    assert patches_at(ct, np.zeros((0, 3)), edge=5, outside=outside).shape == (0, 5, 5, 5)


def test_centres_move_half_the_way_to_the_peak_that_is_theirs():
    points = np.array([[0.0, 0, 0], [0, 0, 20], [0, 0, 50], [0, 0, 80]])
    # One beside the first; one between the first two, nearer to the second; one too far from the third.
    peaks = np.array([[4.0, 0, 0], [0, 0, 14], [0, 0, 60]])
    moved = halfway_to_peaks(points, peaks, apart_mm=9)
    np.testing.assert_allclose(moved, [[2, 0, 0], [0, 0, 17], [0, 0, 50], [0, 0, 80]])
    # A peak belongs to the centre that is nearest to it alone.
    shared = halfway_to_peaks(np.array([[0.0, 0, 0], [0, 0, 8]]), np.array([[0.0, 0, 3]]), apart_mm=9)
    np.testing.assert_allclose(shared, [[0, 0, 1.5], [0, 0, 8]])
    for none in (halfway_to_peaks(points[:0], peaks), halfway_to_peaks(points, peaks[:0])):
        assert none.shape[1] == 3
