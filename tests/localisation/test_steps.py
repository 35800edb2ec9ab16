"""The table of steps: complete, and near what is measured."""

import numpy as np

from utils.localisation.steps import typical_steps
from utils.verse.labels import LEVEL_NAMES


def test_the_table_has_every_level_and_grows_downwards():
    steps = typical_steps()
    assert steps.mean_mm.shape == steps.spread.shape == (26,)
    assert steps.mean_mm[LEVEL_NAMES.index("C4")] < steps.mean_mm[LEVEL_NAMES.index("T6")] < 25
    assert 30 < steps.mean_mm[LEVEL_NAMES.index("L1")] < 36
    assert np.all((steps.spread >= 0.1) & (steps.spread <= 0.2))


def test_a_bent_upper_chest_with_15_mm_steps_lies_within_two_spreads():
    steps = typical_steps()
    upper = [LEVEL_NAMES.index(name) for name in ("T1", "T2", "T3")]
    # A small adult, nine tenths of the typical size.
    assert np.all((np.log(0.9 * steps.mean_mm) - np.log(15))[upper] < 2 * steps.spread[upper])
