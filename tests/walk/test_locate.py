"""Questions to the heatmap, with answers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from utils.imaging.grids import resized_grid
from utils.imaging.intensities import normalise_hu
from utils.imaging.resampling import heatmap_ct
from utils.imaging.volume import Volume
from utils.walk.locate import heat_at, locate_spine, point_below, top_of_spine

# Heatmap of 4 x 4 x 6 voxels of 6 x 6 x 10 mm over a scan of 12 x 12 x 30 voxels of 2 mm (P, R, I).
FINE = np.array([[0, 2, 0, 5], [-2, 0, 0, 6], [0, 0, -2, 7], [0, 0, 0, 1]], float)
COARSE = resized_grid(Volume(np.zeros((12, 12, 30)), FINE).grid, (4, 4, 6))


def test_heat_is_linear_between_its_voxels():
    heat = Volume(np.broadcast_to(np.arange(6, dtype=np.float32) / 10, (4, 4, 6)), COARSE.affine)
    # Five fine slices make a coarse one: fine slice 2 is the centre of coarse slice 0, slice 7 of 1.
    points = np.array([[5, 5, 2], [5, 5, 7], [5, 5, 4.5], [5, 5, -3], [5, 5, 40]])
    np.testing.assert_allclose(heat_at(heat, points, FINE), [0.0, 0.1, 0.05, 0.0, 0.5], atol=1e-6)


def spine_heat() -> Volume:
    """Heat .2, .4, .3, .1, .6, .1 at the hottest voxel of each slice, which lies at (2, 1)."""
    data = np.zeros((4, 4, 6), np.float32)
    data[2, 1] = [0.2, 0.4, 0.3, 0.1, 0.6, 0.1]
    data[0, 0] = 0.05
    return Volume(data, COARSE.affine)


def test_the_top_of_the_spine():
    # Coarse (2, 1, 1): three fine voxels make one along P and R, five along I.
    np.testing.assert_allclose(top_of_spine(spine_heat(), FINE, threshold=0.3), [7, 4, 7])
    np.testing.assert_allclose(top_of_spine(spine_heat(), FINE, threshold=0.2), [7, 4, 2])
    assert top_of_spine(spine_heat(), FINE, threshold=0.61) is None


def test_the_point_below():
    start = np.array([3.0, 3.0, 7.0])  # in coarse slice 1

    def below(distance_mm: float) -> np.ndarray | None:
        return point_below(spine_heat(), start, FINE, distance_mm=distance_mm, threshold=0.3)

    np.testing.assert_allclose(below(10), [7, 4, 12])
    np.testing.assert_allclose(below(20), [7, 4, 22])  # slice 3 is cold and passed over
    assert below(40) is None
    assert below(400) is None


def test_the_network_sees_what_the_preparation_writes():
    ct = Volume(np.random.default_rng(0).normal(0, 300, (12, 12, 30)).astype(np.float32), FINE)
    seen = []

    def predict(small: np.ndarray) -> np.ndarray:
        seen.append(small)
        return np.full((4, 4, 6), 0.5)

    heat = locate_spine(ct, predict, shape=(4, 4, 6))
    np.testing.assert_array_equal(seen[0], normalise_hu(heatmap_ct(ct, (4, 4, 6)).data))
    np.testing.assert_allclose(heat.affine, COARSE.affine)
    assert heat.data.dtype == np.float32


@pytest.mark.parametrize(
    ("answer", "message"), [(np.zeros((4, 4, 5)), "shape"), (np.full((4, 4, 6), np.nan), "finite")]
)
def test_a_broken_heatmap_is_named(answer, message):
    with pytest.raises(ValueError, match=message):
        locate_spine(Volume(np.zeros((12, 12, 30)), FINE), lambda ct: answer, shape=(4, 4, 6))
