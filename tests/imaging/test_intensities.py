"""The map from Hounsfield units to what the networks see, and back."""

import re
from pathlib import Path

import numpy as np

from utils.imaging.intensities import denormalise_hu, normalise_hu, whole_hu


def test_intensities_map_the_window_to_minus_one_and_one():
    hu = np.array([-2048, -1024, 1023.5, 3071, 9000])
    found = normalise_hu(hu)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(denormalise_hu(found), [-1024, -1024, 1023.5, 3071, 3071], atol=1e-3)


def test_int16_does_not_overflow():
    np.testing.assert_allclose(normalise_hu(np.array([-32768, 32767], np.int16)), [-1, 1], atol=1e-6)


def test_whole_hounsfield_units_are_rounded_and_within_the_range():
    hu = np.array([-1024.4, -1025.6, 0.5, 1.5, -0.5, 3071.2, 4e9], np.float32)
    found = whole_hu(hu)
    assert found.dtype == np.int16 and found.tolist() == [-1024, -1024, 0, 2, 0, 3071, 3071]
    assert hu[0] == np.float32(-1024.4)  # what was given stays as it is


def test_the_map_stands_in_one_place():
    # The range may be named elsewhere; what is made of it may not.
    root = Path(__file__).resolve().parents[2]
    repeated = [
        path.relative_to(root).as_posix()
        for folder in ("utils", "benchmarks")
        for path in (root / folder).rglob("*.py")
        if re.search(r"low, high = .*HU_RANGE|HU_RANGE\[1\] - ", path.read_text())
    ]
    assert repeated == []
