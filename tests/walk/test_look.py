"""What the network is shown of a patch that reaches beyond the scan."""

import numpy as np
import pytest

from utils.imaging.volume import Volume
from utils.walk.look import PatchReader, without_beyond
from utils.walk.records import FoundVertebra, WalkResult, WalkSettings


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


def test_what_lies_beyond_a_turned_scan_is_of_no_vertebra():
    mask = np.zeros((4, 4, 6), bool)
    mask[1:3, 1:3, 1:5] = True
    probability = np.where(mask, 0.9, 0.1).astype(np.float16)
    vertebrae = [
        FoundVertebra(np.array(begin), probability, mask, np.zeros(3)) for begin in ([0, 0, 0], [6, 0, 0])
    ]
    labels = np.zeros((10, 4, 6), np.uint8)
    labels[0:4][mask], labels[6:10][mask] = 1, 2
    beyond = np.zeros(labels.shape, bool)
    beyond[:5, :, 3:] = True
    found = without_beyond(WalkResult(tuple(vertebrae), Volume(labels, np.eye(4))), beyond, 0.5)
    cut, whole = found.vertebrae
    assert cut.partial and not whole.partial
    np.testing.assert_array_equal(cut.mask, mask & (np.arange(6) < 3))
    assert (cut.probability[1:3, 1:3, 3:5] < 0.5).all() and (cut.probability[cut.mask] >= 0.5).all()
    np.testing.assert_array_equal(whole.mask, mask)
    np.testing.assert_array_equal(found.labels.data, np.where(beyond, 0, labels))
