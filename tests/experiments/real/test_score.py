"""Scores of made-up findings in scans whose vertebrae are known."""

import dataclasses
import math

import numpy as np
import pytest

from experiments.real import score
from experiments.real.findings import Finding, finding_of_votes, read_prediction
from experiments.real.score import ScanScore, codes_near, one_to_one, score_scan, score_table
from tests.experiments.real.known_scans import (
    STEP_MM,
    facts,
    mask_with,
    place,
    votes_for,
    write_prediction,
)
from utils.verse.labels import code_of_name

T11, T12, L1, L2 = map(code_of_name, ("T11", "T12", "L1", "L2"))
SCAN = facts(["T11", "T12", "L1"], cut=["T11"], edge=["L2"])


def peaks(points_mm, codes):
    return Finding(tuple(codes), np.array(points_mm, float).reshape(-1, 3))


# Peaks


def test_peaks_at_their_bodies_are_right():
    scored = score_scan(SCAN, peaks([place(n) for n in range(3)], [T11, T12, L1]))
    assert (scored.bodies, scored.own, scored.false, scored.right) == (3, (T11, T12, L1), 0, 3)
    assert scored.is_right and scored.missed == () and scored.holds_truth is None


@pytest.mark.parametrize("off_mm, is_own", [(11.9, True), (12.1, False)])
def test_a_peak_is_a_bodys_own_up_to_twelve_millimetres(off_mm, is_own):
    scored = score_scan(SCAN, peaks([place(1, x=off_mm)], [T12]))
    assert scored.own == ((T12,) if is_own else ()) and scored.false == (not is_own)


@pytest.mark.parametrize("off_mm, is_own", [(7.9, True), (8.1, False)])
def test_between_close_bodies_it_is_half_their_distance(off_mm, is_own):
    upper = np.array([0.0, 0, 16])
    close = dataclasses.replace(SCAN, points_mm={T11: upper, T12: np.zeros(3)}, edge_mm={})
    assert (score_scan(close, peaks([[off_mm, 0, 0]], [T12])).own == (T12,)) == is_own
    assert score.reach_of_bodies(close).tolist() == [8, 8]


def test_of_two_peaks_at_a_body_one_is_false():
    scored = score_scan(SCAN, peaks([place(1, z=9), place(1), place(2)], [T11, T12, L1]))
    assert scored.truth == (0, T12, L1) and scored.missed == (T11,)
    assert (scored.false, scored.right, scored.is_right) == (1, 2, False)


def test_as_many_as_may_be_are_paired():
    # The nearest pair first would leave the other two without a partner.
    distance = np.array([[1.0, 2.0], [3.0, np.inf]])
    assert one_to_one(distance) == [(0, 1), (1, 0)]
    assert one_to_one(np.full((2, 2), np.inf)) == [] and one_to_one(np.zeros((0, 3))) == []


def test_one_peak_at_a_body_at_the_edge_counts_neither_way():
    bodies = [place(n) for n in range(3)]
    scored = score_scan(SCAN, peaks([*bodies, place(3)], [T11, T12, L1, L1]))
    assert scored.truth == (T11, T12, L1, L2) and scored.right == 3 and scored.is_right
    scored = score_scan(SCAN, peaks([*bodies, place(3), place(3, z=-15)], [T11, T12, L1, L2, 0]))
    assert scored.false == 1


def test_levels_off_by_one_are_all_wrong():
    scored = score_scan(SCAN, peaks([place(n) for n in range(3)], [T12, L1, L2]))
    assert (len(scored.own), scored.right, scored.is_right) == (3, 0, False)


def test_where_there_is_no_spine_nothing_is_right():
    thigh = facts([], anchors=())
    assert score_scan(thigh, peaks([], [])).is_right
    scored = score_scan(thigh, peaks([place(0)], [L1]))
    assert (scored.bodies, scored.false, scored.is_right) == (0, 1, False)


# How sure the labels are


def test_the_truth_lies_in_the_stated_set_or_does_not():
    points = [place(n) for n in range(3)]
    sure = score_scan(SCAN, finding_of_votes(votes_for(["T11", "T12", "L1"], points, certainty=0.999)))
    assert sure.is_right and sure.holds_truth and len(sure.sequences) == 1 and sure.confidence > 0.95
    wrong = score_scan(SCAN, finding_of_votes(votes_for(["T10", "T11", "T12"], points, certainty=0.999)))
    assert wrong.right == 0 and wrong.holds_truth is False
    doubtful = finding_of_votes(votes_for(["T10", "T11", "T12"], points, certainty=0.999, temperature=20))
    doubtful = score_scan(SCAN, doubtful)
    assert len(doubtful.sequences) > 2 and doubtful.holds_truth and doubtful.confidence < wrong.confidence


# Masks


@pytest.mark.parametrize("reach_mm, found", [(4.0, set()), (7.9, set()), (8.1, {L1}), (30.0, {L1})])
def test_labels_near_a_point_are_measured_to_the_middle_of_voxels(reach_mm, found):
    # The cube's voxels reach 6 mm from its middle.
    mask = mask_with({L1: place(2)})
    assert codes_near(mask, place(2, x=14), reach_mm=reach_mm) == found
    assert codes_near(mask, place(2, x=500), reach_mm=reach_mm) == set()


@pytest.mark.parametrize("off_mm, is_own", [(8.0, True), (12.0, False)])
def test_a_vertebra_is_a_bodys_own_by_a_voxel(off_mm, is_own):
    centre = place(1, x=off_mm)
    finding = Finding((T12,), centre[None], mask_with({T12: centre}))
    assert (score_scan(SCAN, finding).own == (T12,)) == is_own


@pytest.mark.parametrize("off_mm, is_own", [(14.0, True), (16.0, False)])
def test_a_vertebra_is_a_bodys_own_by_its_centroid(off_mm, is_own):
    finding = Finding((T12,), place(1, z=off_mm)[None], mask_with({T12: place(1)}))
    assert (score_scan(SCAN, finding).own == (T12,)) == is_own


def test_two_bodies_merged_into_one_vertebra_have_one(tmp_path):
    mask = mask_with({T12: place(0)})
    mask.data[mask_with({T12: place(1)}).data > 0] = T12
    scored = score_scan(SCAN, Finding((T12,), place(0, z=-STEP_MM / 2)[None], mask))
    assert len(scored.own) <= 1 and len(scored.missed) >= 2


def test_predictions_are_read_with_what_stands_beside_them(tmp_path):
    points = [place(n) for n in range(3)]
    boxes = dict(zip((T11, T12, L1), points))
    write_prediction(tmp_path, "sub-some_ct", boxes, votes_for(["T11", "T12", "L1"], points))
    found = read_prediction(SCAN, tmp_path)
    scored = score_scan(SCAN, found)
    assert found.codes == (T11, T12, L1) and scored.is_right and scored.holds_truth
    np.testing.assert_allclose(found.points_mm, points, atol=0.1)
    write_prediction(tmp_path / "older", "sub-some_ct", boxes)
    scored = score_scan(SCAN, read_prediction(SCAN, tmp_path / "older"))
    assert scored.is_right and math.isnan(scored.confidence)


def test_a_prediction_without_a_vertebra_is_read(tmp_path):
    write_prediction(tmp_path, "sub-some_ct", {}, votes_for([], []))
    scored = score_scan(SCAN, read_prediction(SCAN, tmp_path))
    assert scored.own == () and len(scored.missed) == 3 and scored.false == 0


# The table


def test_the_table_sums_by_source_and_where_an_anchor_is_in_view():
    expert = dataclasses.replace(SCAN, labels="expert")
    thigh = facts([], name="thigh", anchors=())
    free = dataclasses.replace(SCAN, name="free", anchors=frozenset())
    scores = [
        ScanScore(expert, (T11, T12, L1), (T11, T12, L1), 0.9, ((T11, T12, L1),)),
        ScanScore(free, (T12, L1), (T12, 0), 0.5, ((T12, L1), (T11, T12))),
        ScanScore(thigh, (L1,), (0,)),
    ]
    table = score_table(scores).set_index("scan").fillna("–")
    assert list(table.index) == [
        "some",
        "free",
        "thigh",
        "all by expert",
        "all by eye",
        "all",
        "all with an anchor",
    ]
    rows = table[["bodies", "own", "false", "levels right", "scan right", "truth in set"]]
    assert rows.loc["free"].tolist() == ["3 (2)", "1 (1)", "1", "1 of 1", "no", "no"]
    assert rows.loc["all by expert"].tolist() == ["3 (2)", "3 (2)", "0", "3 of 3", "1 of 1", "1 of 1"]
    assert rows.loc["all by eye"].tolist() == ["3 (2)", "1 (1)", "1", "1 of 1", "0 of 1", "0 of 1"]
    assert rows.loc["all"].tolist() == ["6 (4)", "4 (3)", "2", "4 of 4", "1 of 3", "1 of 2"]
    assert rows.loc["all with an anchor"].tolist() == ["3 (2)", "3 (2)", "0", "3 of 3", "1 of 1", "1 of 1"]
    assert table.loc["all", "confidence"] == pytest.approx(0.7) and table.loc["all", "95 % set"] == 1.5
    assert table.loc["free", "bodies without"] == "T11 L1"


def test_the_picture_shows_what_was_found_and_what_is_known():
    finding = peaks([place(0), place(1, x=3)], [T11, 0])
    ct = mask_with({T11: place(0)})
    figure = score.picture_of(ct, score_scan(SCAN, finding), finding, what="peaks")
    assert "some, peaks: 2 of 3 bodies, 0 false, 1 levels right" in figure.get_suptitle()
    coronal = figure.axes[0]
    circles = [line for line in coronal.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(circles[0].get_ydata(), [150, 120, 90])
    assert [text.get_text() for text in coronal.texts] == ["1 T11", "2 -"]


def test_the_command_scores_predictions(tmp_path, capsys, monkeypatch):
    write_prediction(tmp_path / "pred", "sub-some_ct", {T12: place(1), L1: place(2)})
    monkeypatch.setattr(score, "read_facts", lambda: {"some": SCAN})
    monkeypatch.setattr(score, "available_scans", lambda shared, names: {"some": SCAN})
    output = tmp_path / "table.md"
    assert score.main(["--predictions", str(tmp_path / "pred"), "--output", str(output)]) == 0
    assert "2 of 2" in output.read_text() and output.read_text() in capsys.readouterr().out
    assert score.main(["--predictions", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit, match="2"):
        score.main([])
