"""What the levels of a column were decided from, on disk, and what of it a count holds on to."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.localisation.label_problems import votes_for
from utils.localisation.evidence import Sacrum
from utils.localisation.identify import number_column
from utils.prediction.column import Reading, anchor_readings, column_json, read_column, readings_by_label
from utils.verse.labels import code_of_name


def codes(*names):
    return tuple(code_of_name(name) for name in names)


@pytest.mark.parametrize("sacrum", [None, Sacrum(2, 0.97)])
def test_what_the_network_said_reads_back(tmp_path, sacrum):
    known = {"rib_probability": np.array([0.9, 0.8, 0.1]), "sacrum": sacrum, "temperature": 1.7}
    votes = votes_for(["T11", "T12", "L1"], **known)
    path = tmp_path / "sub-a_column.json"
    path.write_text(column_json(votes, [0, 2], codes("T11", "L1")))
    read, labels = read_column(path)
    assert labels == [code_of_name("T11"), 0, code_of_name("L1")]
    np.testing.assert_allclose(read.level_log_probabilities, votes.level_log_probabilities, atol=5e-4)
    np.testing.assert_allclose(read.rib_probability, votes.rib_probability)
    np.testing.assert_allclose(read.centres_mm, votes.centres_mm)
    assert (read.sacrum, read.temperature) == (sacrum, 1.7)
    assert number_column(read, places=[0, 2]).codes == number_column(votes, places=[0, 2]).codes


def test_a_column_without_vertebrae_reads_back(tmp_path):
    path = tmp_path / "sub-a_column.json"
    path.write_text(column_json(votes_for([]), [], ()))
    votes, labels = read_column(path)
    assert labels == [] and votes.centres_mm.shape == (0, 3)
    assert number_column(votes, places=[]).codes == ()


def test_no_file_is_a_count_and_another_file_is_named(tmp_path):
    path = tmp_path / "sub-a_column.json"
    assert read_column(path) is None
    good = json.loads(column_json(votes_for(["T12", "L1"]), [0, 1], codes("T12", "L1")))
    row = good["vertebrae"][0]
    others = [
        *([], {"vertebrae": [{}], "sacrum": None, "temperature": 1}),
        {**good, "sacrum": {"above": 2, "probability": 0.9}},
        *({**good, "vertebrae": [{**row, "label": label}]} for label in (26, -1, "x")),
        {**good, "vertebrae": [{**row, "level_log_probabilities": [0.0] * 26}]},
        {**good, "vertebrae": [{**row, "rib_probability": [0.1, 0.2]}]},
    ]
    for text in ("{", *map(json.dumps, others)):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"^{path}: expected what is known of a column"):
            read_column(path)


def test_anchors_are_read_with_their_place_and_probability():
    ribs = np.array([0.99, 0.98, 0.9, 0.25, 0.0])
    votes = votes_for(["T10", "T11", "T12", "L1", "L2"], rib_probability=ribs, sacrum=Sacrum(4, 0.8))
    assert anchor_readings(votes) == [
        Reading("ribs", "last rib", 2, pytest.approx(0.9 * 0.75)),
        Reading("sacrum below", "sacrum below", 4, 0.8),
    ]


def test_c2_is_an_anchor_where_it_is_all_but_certain():
    certain, vague = votes_for(["C2", "C3"], strength=9.0), votes_for(["C2", "C3"], strength=0.5)
    (reading,) = anchor_readings(certain)
    assert (reading.anchor, reading.text, reading.place) == ("C1/C2 in view", "C1 or C2", 0)
    assert reading.probability == pytest.approx(np.exp(certain.level_log_probabilities[0, 2]))
    assert anchor_readings(vague) == []


@pytest.mark.parametrize(
    "ribs", [(0.9, 0.9, 0.9), (0.1, 0.1, 0.1), (0.1, 0.1, 0.9), (np.nan, np.nan, np.nan)]
)
def test_ribs_that_do_not_end_in_view_are_no_anchor(ribs):
    assert anchor_readings(votes_for(["T10", "T11", "T12"], rib_probability=np.array(ribs))) == []


def test_of_two_ends_of_the_ribs_the_lower_one_counts():
    ribs = np.array([0.9, 0.1, 0.9, 0.1])
    (reading,) = anchor_readings(votes_for(["T11", "T12", "L1", "L2"], rib_probability=ribs))
    assert reading.place == 2


def test_what_is_read_at_a_vertebra_without_an_outline_has_no_label_in_the_mask():
    ribs = np.array([0.99, 0.9, 0.1])
    votes = votes_for(["T11", "T12", "L1"], rib_probability=ribs, sacrum=Sacrum(2, 0.8))
    rib, sacrum = anchor_readings(votes)
    t11, t12, l1 = codes("T11", "T12", "L1")
    assert readings_by_label(votes, [t11, t12, l1]) == {t12: [rib], l1: [sacrum]}
    assert readings_by_label(votes, [t11, 0, l1]) == {l1: [sacrum]}


def test_a_column_without_vertebrae_has_no_anchor():
    assert anchor_readings(votes_for([])) == []
