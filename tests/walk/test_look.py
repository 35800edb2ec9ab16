"""What the network is shown of a patch that reaches beyond the scan."""

import numpy as np
import pytest

from utils.imaging.volume import Volume
from utils.walk.look import PatchReader
from utils.walk.records import WalkSettings


@pytest.mark.parametrize("outside", ["air", "edge"])
def test_a_patch_beyond_the_scan_shows_air_or_the_edge_and_no_memory(outside):
    shown = []

    def predict(ct, memory):
        shown.append((ct, memory))
        return np.zeros(ct.shape, np.float32)

    scan = np.random.default_rng(0).uniform(-0.9, 0.9, (6, 7, 9)).astype(np.float32)
    volume, memory = Volume(scan, np.eye(4)), np.ones(scan.shape, np.uint8)
    settings = WalkSettings(patch_voxels=8, spacing_mm=2.0, outside=outside)
    reader = PatchReader(volume, predict, settings)
    # Begins 4 voxels before the scan on P, with it on R and 2 after its begin on I.
    assert reader.read(np.array([0, 4, 6]), memory) is None
    ((ct, seen),) = shown
    inside = np.zeros((8, 8, 8), bool)
    inside[4:, :7, :7] = True
    part = scan[:4, :, 2:9]
    np.testing.assert_array_equal(ct[4:, :7, :7], part)
    np.testing.assert_array_equal(seen == 1, inside)
    expected = np.pad(part, ((4, 0), (0, 1), (0, 1)), mode="edge")
    np.testing.assert_array_equal(ct, np.where(inside | (outside == "edge"), expected, -1))


def test_a_walk_goes_on_as_before_where_nothing_is_said():
    assert WalkSettings().outside == "edge"
