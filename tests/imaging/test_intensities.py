"""The map from Hounsfield units to what the networks see, and back."""

import numpy as np

from utils.imaging.intensities import denormalise_hu, normalise_hu


def test_intensities_map_the_window_to_minus_one_and_one():
    hu = np.array([-2048, -1024, 1023.5, 3071, 9000])
    found = normalise_hu(hu)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(denormalise_hu(found), [-1024, -1024, 1023.5, 3071, 3071], atol=1e-3)


def test_int16_does_not_overflow():
    np.testing.assert_allclose(normalise_hu(np.array([-32768, 32767], np.int16)), [-1, 1], atol=1e-6)
