"""Scores of predicted masks of the real scans."""

import numpy as np
import pytest

from experiments.real.facts import read_facts
from experiments.real.masks import CONVENTIONS, reference_of, score_mask, score_scan, summary
from tests.imaging.examples import DATA, needs_data
from utils.imaging.nifti import read_mask, write_volume
from utils.imaging.volume import Volume
from utils.prediction.derivatives import MASK_SUFFIX, case_path


def column(*codes, shape=(30, 30, 60), first=5):
    data = np.zeros(shape, np.uint8)
    for place, code in enumerate(codes):
        data[8:20, 8:20, first + 14 * place : first + 14 * place + 10] = code
    return Volume(data, np.eye(4))


def test_a_score_worked_out_by_hand():
    reference, predicted = column(20, 21, 22), column(19, 20)
    predicted.data[8:20, 8:20, 19:24] = 0  # half of what lies where L2 is
    predicted.data[25:28, 25:28, 50:55] = 7  # nowhere near
    scores = score_mask(reference, predicted).set_index("level")
    assert scores.loc["L1", ["dice", "volume", "complete"]].tolist() == [1, 1, True]
    assert scores.loc["L2", "dice"] == pytest.approx(2 / 3) and scores.loc["L2", "volume"] == 0.5
    assert scores.loc["L3", "dice"] == 0 and np.isnan(scores.loc["L3", "volume"])
    assert "false C7" in scores.index and len(scores) == 4


def test_vertebrae_at_the_border_are_not_complete():
    scores = score_mask(column(20, 21, first=0), column(20, 21, first=0))
    assert scores["complete"].tolist() == [False, True]


def test_a_summary_has_a_row_a_convention():
    scores = score_mask(column(8, 9, 20), column(8, 9))
    table = summary(scores.assign(scan="x", labels="program", convention="as it is"))
    row = table.iloc[0]
    assert (row["complete"], row["found"], row["false"]) == (3, 2, 0)
    assert row["Dice"] == pytest.approx(2 / 3) and row["T1-T7"] == 1


@needs_data
def test_a_reference_scores_one_as_it_is_and_less_at_another_convention(tmp_path):
    facts = read_facts()["abdomen_ct"]
    assert CONVENTIONS[facts.labels] == "totalsegmentator"
    path = DATA.parent / reference_of(facts)
    write_volume(case_path(tmp_path, "sub-abdomen_ct", MASK_SUFFIX), read_mask(path))
    table = summary(score_scan(DATA.parent, facts, tmp_path)).set_index("convention")
    assert table.loc["as it is", "Dice"] == 1 and table.loc["as it is", "found"] == 5
    assert 0.93 < table.loc["VerSe's", "Dice"] < 0.99
    assert 0.9 < table.loc["VerSe's", "volume"] < 0.99
