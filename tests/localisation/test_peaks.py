"""Local maxima of a heat: where they are to a tenth of a voxel, and what is read there."""

import numpy as np
import pytest

from utils.imaging.volume import Volume
from utils.localisation.candidates import LocalisedScan, find_peaks, read_candidates, values_at
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


def test_values_between_voxels_are_linear_and_those_beyond_the_border_are_the_border():
    rng = np.random.default_rng(0)
    slope, offset = rng.normal(size=(3, 4)), rng.normal(size=4)
    grid = np.stack(np.meshgrid(*map(np.arange, (6, 5, 4)), indexing="ij"), -1)
    points = rng.uniform(0, 3, (7, 3))
    np.testing.assert_allclose(values_at(grid @ slope + offset, points), points @ slope + offset)
    edge = values_at(grid @ slope + offset, np.array([[-2.0, 0, 0], [9, 4, 3]]))
    np.testing.assert_allclose(edge, np.array([[0, 0, 0], [5, 4, 3]]) @ slope + offset)


def logits_along(values):
    """Logits (of a rib, and of the levels) for cubes of 2 voxels, from a function of a voxel's place on I."""
    centres = 2 * np.arange(20) + 0.5  # a cube's middle lies between its two voxels
    return np.broadcast_to(values(centres), (15, 14, 20, 1 + MAX_RANK)).astype(np.float32)


def test_levels_ribs_and_sacra_are_read_from_their_channels():
    bodies = gaussians([[10, 12, 8], [12, 12, 18]], [0.9, 0.7])
    sacrum = gaussians([[14, 12, 30]], [0.8])

    def values(place):
        logits = np.zeros((len(place), 1 + MAX_RANK))
        logits[place < 13, 1 + 18], logits[place > 13, 1 + 20] = 5, 5  # T12 above, L1 below
        return logits

    scan = LocalisedScan(Volume(bodies, AFFINE), Volume(sacrum, AFFINE), logits_along(values))
    vertebrae, sacra = read_candidates(scan, least=0.2)
    assert vertebrae.level_log_probabilities.argmax(axis=1).tolist() == [18, 20]
    np.testing.assert_allclose(np.exp(vertebrae.level_log_probabilities).sum(axis=1), 1)
    np.testing.assert_allclose(sacra.points_voxels, [[14, 12, 30]], atol=0.05)
    assert len(read_candidates(scan, least=0.8)[0]) == 1


@pytest.mark.parametrize("depth", [11.0, 11.3, 12.5, 20.0, 20.7])
def test_logits_are_read_where_the_peak_is_between_the_middles_of_cubes(depth):
    """A logit that grows linearly with the depth is met exactly at the peak."""
    slope = 0.1

    def values(place):
        return (slope * (place - 15))[:, None] * np.eye(1 + MAX_RANK)[0]

    bodies = Volume(gaussians([[12, 12, depth]], [0.9]), AFFINE)
    scan = LocalisedScan(bodies, bodies, logits_along(values))
    (peak,), _ = (part.points_voxels for part in read_candidates(scan, least=0.5))
    (rib,) = read_candidates(scan, least=0.5)[0].rib_probability
    assert peak[2] == pytest.approx(depth, abs=0.1)
    assert np.log(rib / (1 - rib)) == pytest.approx(slope * (peak[2] - 15), abs=1e-4)


def test_without_peaks_there_are_no_candidates():
    nothing = Volume(np.zeros((30, 28, 40), np.float32), AFFINE)
    scan = LocalisedScan(nothing, nothing, logits_along(lambda place: np.zeros((len(place), 1 + MAX_RANK))))
    vertebrae, sacra = read_candidates(scan, least=0.1)
    assert len(vertebrae) == len(sacra) == 0
    assert vertebrae.level_log_probabilities.shape == (0, MAX_RANK)
