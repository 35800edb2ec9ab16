"""What is stated of the real scans holds together, and what cannot be right is refused."""

import json

import numpy as np
import pytest

from experiments.real.facts import ANCHORS, FACTS_FILE, read_facts
from utils.verse.labels import code_of_name, rank_of_code

FACTS = read_facts()
WITH_SPINE = [name for name, facts in FACTS.items() if facts.points_mm]


def test_there_are_eight_spines_and_a_thigh():
    assert len(WITH_SPINE) == 8
    assert [name for name in FACTS if name not in WITH_SPINE] == ["sts001"]
    by_source = [FACTS[name].labels for name in WITH_SPINE]
    assert {source: by_source.count(source) for source in by_source} == {"program": 2, "expert": 1, "eye": 5}


@pytest.mark.parametrize("name", WITH_SPINE)
def test_levels_follow_each_other_at_the_distance_of_neighbours(name):
    facts = FACTS[name]
    ranks = [rank_of_code(code) for code in facts.points_mm]
    left_out = {rank_of_code(code_of_name("T13"))}
    assert ranks == [rank for rank in range(ranks[0], ranks[-1] + 1) if rank not in left_out]
    points = list(facts.points_mm.values())
    if facts.sacrum_mm is not None:
        assert list(facts.points_mm)[-1] == code_of_name("L5")
        points.append(facts.sacrum_mm)
    distances = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert (distances > 12).all() and (distances < 45).all(), distances
    assert (np.diff([point[2] for point in points]) < 0).all()


@pytest.mark.parametrize("name", WITH_SPINE)
def test_only_the_ends_are_cut_or_at_the_edge(name):
    facts = FACTS[name]
    codes = list(facts.points_mm)
    assert facts.cut <= {codes[0], codes[-1]}
    ranks = [rank_of_code(code) for code in codes]
    assert {rank_of_code(code) for code in facts.edge_mm} <= {ranks[0] - 1, ranks[-1] + 1}


@pytest.mark.parametrize("name", FACTS)
def test_anchors_in_view_are_there(name):
    facts = FACTS[name]
    assert facts.anchors <= set(ANCHORS)
    assert ("sacrum" in facts.anchors) == (facts.sacrum_mm is not None)
    assert ("C2" in facts.anchors) == (code_of_name("C2") in facts.points_mm)
    if "last rib" in facts.anchors:
        assert code_of_name("T12") in facts.points_mm


def test_the_organs_of_the_chest_are_of_the_patient_of_the_chest():
    (owner,) = [facts for facts in FACTS.values() if any("chest-total" in str(path) for path in facts.others)]
    assert owner is FACTS["chest_ct"]
    assert len({facts.patient for facts in FACTS.values()}) == len(FACTS)


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("vertebrae", {"T0": [1, 2, 3]}, "T0"),
        ("vertebrae", {"T1": [1, 2]}, "three finite coordinates"),
        ("cut", ["L4"], "23"),
        ("anchors", ["navel"], "navel"),
        ("labels", "guess", "guess"),
        ("sure", None, "certain"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path, key, value, named):
    scan = json.loads(FACTS_FILE.read_text())["scans"]["cmbcrc01068"]
    path = tmp_path / "centres.json"
    path.write_text(json.dumps({"scans": {"some": {**scan, key: value}}}))
    with pytest.raises(ValueError, match=rf"centres\.json, some: .*{named}"):
        read_facts(path)


def test_a_missing_fact_is_named(tmp_path):
    scan = json.loads(FACTS_FILE.read_text())["scans"]["cmbcrc01068"]
    del scan["patient"]
    path = tmp_path / "centres.json"
    path.write_text(json.dumps({"scans": {"some": scan}}))
    with pytest.raises(ValueError, match=r"some: expected the fact 'patient', found none"):
        read_facts(path)
