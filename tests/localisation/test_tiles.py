"""A scan under a network tile by tile: what comes out is what the network says of the whole scan."""

import numpy as np
import pytest

from utils.imaging.intensities import normalise_hu
from utils.imaging.volume import Volume
from utils.localisation.candidates import MULTIPLE, OVERLAP, localise

AFFINE = np.array([[0, -3.0, 0, 60], [-3.0, 0, 0, 50], [0, 0, -3.0, 90], [0, 0, 0, 1]])


def scan(*shape):
    return Volume(np.random.default_rng(0).integers(-1000, 2000, shape).astype(np.int16), AFFINE)


def pointwise(ct):
    """Both channels are functions of the voxel alone."""
    return ct[..., None] * np.array([0.1, 1.0], np.float32) + np.float32(0.2)


@pytest.mark.parametrize(
    ("shape", "most"),
    [
        ((32, 48, 64), (160, 160, 192)),  # one tile, exactly
        ((33, 47, 61), (160, 160, 192)),  # one tile, over the border
        ((9, 10, 11), (160, 160, 192)),  # smaller than any tile
        ((33, 50, 135), (32, 48, 64)),  # many tiles
        ((32, 49, 64), (32, 48, 64)),  # two, which share nearly everything
    ],
    ids=str,
)
def test_tiles_blend_to_what_the_network_says_of_the_whole_scan(shape, most):
    shapes = []

    def network(ct):
        shapes.append(ct.shape)
        return pointwise(ct)

    ct = scan(*shape)
    found = localise(ct, network, outside="edge", most=most)
    assert all(not size % MULTIPLE and size <= limit for tile in shapes for size, limit in zip(tile, most))
    expected = pointwise(normalise_hu(ct.data))
    for volume, channel in ((found.heat, 0), (found.sacrum, 1)):
        assert volume.shape == shape and volume.data.dtype == np.float32
        np.testing.assert_array_equal(volume.affine, AFFINE)
        np.testing.assert_allclose(volume.data, expected[..., channel], atol=1e-5)


def test_where_tiles_overlap_the_one_counts_more_that_sees_more():
    """The network tells a tile by its number; it sees little at its faces."""
    numbers = iter(range(10))

    def network(ct):
        return np.full((*ct.shape, 2), next(numbers), np.float32)

    heat = localise(scan(32, 32, 64 + 64 - OVERLAP), network, outside="edge", most=(32, 32, 64)).heat.data
    line = heat[16, 16]
    assert np.all(line[:40] == 0) and np.all(line[64:] == 1)
    assert np.all(np.diff(line[40:64]) > 0) and line[51] < 0.5 < line[52]
    assert line[40] < 0.06 and line[63] > 0.94


@pytest.mark.parametrize(("outside", "hu"), [("air", -1024), ("edge", 500)])
def test_beyond_the_scan_is_what_the_training_showed(outside, hu):
    seen = []

    def network(ct):
        seen.append(ct)
        return np.zeros((*ct.shape, 2), np.float32)

    localise(Volume(np.full((20, 30, 10), 500, np.int16), AFFINE), network, outside=outside)
    (tile,) = seen
    assert tile.shape == (32, 32, 16) and tile.dtype == np.float32
    np.testing.assert_allclose(tile[:20, :30, :10], normalise_hu(np.float32(500)))
    np.testing.assert_allclose(tile[20:], normalise_hu(np.float32(hu)))
    np.testing.assert_allclose(tile[:, :, 10:], normalise_hu(np.float32(hu)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(wrong):
    def network(ct):
        outputs = np.zeros((*ct.shape, 2), np.float32)
        outputs[3, 3, 3, 1] = wrong
        return outputs

    with pytest.raises(ValueError, match="Expected finite heat, received NaN or infinite numbers"):
        localise(scan(16, 16, 16), network, outside="edge")
