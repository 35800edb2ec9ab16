"""What the walk and the labelling know of a case, in the words of its quality file."""

import numpy as np

from utils.imaging.volume import Volume
from utils.localisation.identify import Identification
from utils.prediction.case_facts import facts_of_labels, relabelled_quality, walk_remarks
from utils.prediction.derivatives import ANATOMICAL, CasePrediction, Numbering
from utils.prediction.quality import REMARK_KINDS, CaseQuality, Remark
from utils.walk.records import CALLS_USED_UP, REMARKS, FoundVertebra

EMPTY = np.zeros((1, 1, 1))


def vertebra(*remarks):
    """A vertebra of which only the remarks matter."""
    return FoundVertebra(np.zeros(3, int), EMPTY, EMPTY > 0, np.zeros(3), 1.0, remarks=remarks)


def identification(**changes):
    """Two vertebrae that are more likely T12 and L1 than T11 and T12."""
    parts = {
        "codes": (19, 20),
        "probabilities": (0.7, 0.7),
        "complete": (1.0, 1.0),
        "sequence_probability": 0.7,
        "second_codes": (18, 19),
        "second_probability": 0.2,
        "decisive": (0.5, 0.5),
        "anchor": "last rib",
    }
    return Identification(**{**parts, **changes})


def test_remarks_of_the_walk_stand_at_their_vertebra_and_a_gap_at_the_one_above_it():
    found = walk_remarks((), [vertebra(), vertebra("gap above", "leak"), vertebra("no convergence")], "345")
    assert [(remark.kind, remark.vertebra) for remark in found] == [("gap", "3"), ("leak", "4")]
    assert found[0].text == "a vertebra may be missing above 4"


def test_remarks_on_the_whole_walk_come_first():
    found = walk_remarks((CALLS_USED_UP,), [vertebra("leak")], ["T4"])
    assert [(remark.kind, remark.vertebra) for remark in found] == [("other", None), ("leak", "T4")]


def test_every_remark_of_the_walk_has_a_kind_that_the_page_knows():
    found = walk_remarks((CALLS_USED_UP,), [vertebra(), vertebra(*REMARKS)], "12")
    assert {remark.kind for remark in found} <= set(REMARK_KINDS) and len(found) == 3


def test_labels_say_what_they_hold_on_to():
    assert facts_of_labels(None, None) == {"anchor": None}
    assert facts_of_labels(None, "L1") == {"anchor": "first label given"}
    assert facts_of_labels(identification(), None) == {
        **{"anchor": "last rib", "sequence_probability": 0.7},
        **{"second_names": ("T11", "T12"), "second_probability": 0.2},
    }
    alone = identification(second_codes=(), second_probability=0.0)
    assert facts_of_labels(alone, None)["second_names"] is None


def test_new_labels_keep_what_is_known_of_the_scan_and_drop_what_names_vertebrae():
    known = CaseQuality(
        *("sub-a", "count", None, None, None, None, 3.5, 21),
        (Remark("hu doubt", None, "no air"), Remark("leak", "2", "cut off")),
    )
    volume = Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    row = {"name": "T12", "mean_probability": 0.9, "converged": 1}
    prediction = CasePrediction(
        *("sub-a", volume, volume, Numbering((19,), ANATOMICAL), (row,), {}), identification=identification()
    )
    found = relabelled_quality(prediction, known)
    assert (found.kind, found.anchor, found.seconds, found.network_calls) == (
        *("anatomical", "last rib", 3.5, 21),
    )
    assert found.warnings == (Remark("hu doubt", None, "no air"),)
    assert relabelled_quality(prediction, None).seconds is None
