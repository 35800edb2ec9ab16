"""The one table of anomalies and their rates."""

import ast
from pathlib import Path

import numpy as np
import pytest

from utils.localisation import evidence
from utils.synthetic.phantom import anatomy
from utils.verse import anomalies
from utils.verse.anomalies import ANOMALIES, ANOMALY_RATES, anomalies_of
from utils.verse.labels import LEVEL_NAMES

ROOT = Path(__file__).resolve().parents[2]


def test_rates_are_those_of_the_paper():
    assert ANOMALY_RATES == {"L6": 44 / 374, "T13": 18 / 374, "T12 absent": 6 / 374}
    assert ANOMALIES == ("L6", "T13", "T12 absent")


def test_what_reckons_with_anomalies_takes_their_rates_from_the_table():
    for name in ("RATE_L6", "RATE_T13", "RATE_NO_T12"):
        assert getattr(anatomy, name) is getattr(anomalies, name)
    assert evidence.following_rates is anomalies.following_rates


def test_levels_follow_one_another_at_those_rates():
    following, place = anomalies.following_rates(), {name: n for n, name in enumerate(LEVEL_NAMES)}
    assert following[place["C7"], place["T1"]] == 1
    assert following[place["T11"], place["L1"]] == 6 / 374
    assert following[place["T12"], place["T13"]] == 18 / 374
    assert following[place["L5"], place["L6"]] == 44 / 374
    np.testing.assert_allclose(following[: place["L5"]].sum(axis=1), 1)
    assert anomalies.level_rates()[[place["T12"], place["T13"]]].tolist() == [1 - 6 / 374, 18 / 374]


def test_no_other_module_counts_the_scans_of_verse():
    counted = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "utils").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == 374
    ]
    assert counted == ["utils/verse/anomalies.py"]


@pytest.mark.parametrize(
    ("codes", "found"),
    [
        ((18, 19, 20), []),
        ((18, 19, 28, 20), ["T13"]),
        ((24, 25), ["L6"]),
        ((18, 20), ["T12 absent"]),
        ((17, 18), []),  # T12 may lie below the scan
        ((18, 28, 20, 25), ["L6", "T12 absent", "T13"]),
    ],
)
def test_anomalies_of_levels(codes, found):
    assert anomalies_of(codes) == found
