"""Where bone ends in masks: constants, and what a phantom's masks measure."""

import numpy as np
import pytest

from experiments.real.convention import distances_beyond
from utils.imaging.volume import Volume
from utils.synthetic.phantom.make import make_phantom
from utils.verse.conventions import BEYOND_MM, growth_mm


def test_growth_goes_both_ways():
    assert growth_mm("verse") == 0
    assert growth_mm("bone", "totalsegmentator") == pytest.approx(
        BEYOND_MM["totalsegmentator"] - BEYOND_MM["bone"]
    )
    assert growth_mm("bone") == -growth_mm("verse", "bone") > 0


@pytest.mark.parametrize("names", [("verse", "mine"), ("mine", "verse")])
def test_an_unknown_source_is_named(names):
    with pytest.raises(ValueError, match="received 'mine'"):
        growth_mm(*names)


def test_masks_of_phantoms_measure_what_those_of_verse_do():
    found = []
    for seed in range(3):
        phantom = make_phantom(seed, style="2019", whole=(20, 21))
        ct, mask = (Volume(array, phantom.affine) for array in (phantom.ct.astype(np.float32), phantom.mask))
        lines = distances_beyond(ct, mask)
        assert len(lines) > 2000
        found.append(np.median(lines))
    assert np.mean(found) == pytest.approx(BEYOND_MM["verse"], abs=0.25)


def test_a_block_measures_what_its_mask_reaches_beyond():
    hu = np.zeros((40, 40, 40), np.float32)
    hu[10:30, 10:30, 10:30] = 800.0
    hu[12:28, 12:28, 12:28] = 200.0
    for beyond in (-1, 0, 1):
        mask = np.zeros(hu.shape, np.uint8)
        mask[10 - beyond : 30 + beyond, 10 - beyond : 30 + beyond, 10 - beyond : 30 + beyond] = 20
        lines = distances_beyond(Volume(hu, np.eye(4)), Volume(mask, np.eye(4)))
        assert np.median(lines) == pytest.approx(beyond, abs=0.3)
