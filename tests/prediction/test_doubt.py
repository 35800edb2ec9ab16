"""The number by which a report sorts its scans."""

from __future__ import annotations

import pytest

from utils.prediction.doubt import UNREADABLE, WEIGHTS, doubt_parts
from utils.prediction.quality import (
    GAP,
    HU_DOUBT,
    LOW_PROBABILITY,
    NOTHING_FOUND,
    PARTIAL,
    REMARK_KINDS,
    CaseQuality,
)


def known(probability=None, sequences=0):
    likely = tuple(((f"T{number + 1}",), 0.2) for number in range(sequences))
    return CaseQuality("sub-a", "anatomical", sequence_probability=probability, sequences=likely)


@pytest.mark.parametrize(
    ("quality", "kinds", "expected"),
    [
        (None, (), {}),
        (known(), (PARTIAL,), {}),
        (known(1.0, 1), (), {}),
        (known(0.75, 4), (), {"sequences": 0.75, "labels": 0.25}),
        (known(0.75), (LOW_PROBABILITY, GAP), {"gap": 1.0, "low probability": 0.5, "labels": 0.25}),
        (known(), (NOTHING_FOUND, UNREADABLE), {"nothing found": 3.0, "unreadable": 3.0}),
        (None, (HU_DOUBT,), {"hu doubt": 1.0}),
    ],
)
def test_doubt_is_the_sum_of_what_is_known(quality, kinds, expected):
    found = doubt_parts(quality, kinds)
    assert found == expected and list(found) == list(expected)


def test_every_kind_has_a_weight_and_no_result_outweighs_all_doubt_about_labels():
    assert set(WEIGHTS) == {*REMARK_KINDS, UNREADABLE}
    assert WEIGHTS[NOTHING_FOUND] > 1 + 1  # the most that probability and sequences can give
