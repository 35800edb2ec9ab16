"""What the walk and the numbering know of a case, in the words of its quality file."""

import dataclasses

import numpy as np

from utils.imaging.volume import Volume
from utils.localisation.identify import Identification
from utils.prediction.case import ANATOMICAL, CasePrediction, Numbering
from utils.prediction.case_facts import facts_of_labels, relabelled_quality, walk_remarks
from utils.prediction.quality import REMARK_KINDS, CaseQuality, Remark
from utils.walk.records import CALLS_USED_UP, FoundVertebra, WalkResult

EMPTY = np.zeros((1, 1, 1))


def vertebra(index=0):
    """A vertebra of which only its centre's place matters."""
    return FoundVertebra(np.zeros(3, int), EMPTY, EMPTY > 0, np.zeros(3), 1.0, index=index)


def walked(vertebrae, *, remarks=(), missed=()):
    """What a walk along centres found."""
    labels = Volume(np.zeros((1, 1, 1), np.uint8), np.eye(4))
    return WalkResult(tuple(vertebrae), labels, remarks=remarks, missed=missed)


def identification(**changes):
    """Two vertebrae that are more likely T12 and L1 than T11 and T12."""
    parts = {
        "codes": (19, 20),
        "probabilities": (0.7, 0.7),
        "sequence_probability": 0.7,
        "second_codes": (18, 19),
        "second_probability": 0.2,
        "anchor": "ribs",
        "sequence_set": (((19, 20), 0.7), ((18, 19), 0.2), ((20, 0), 0.06)),
    }
    return Identification(**{**parts, **changes})


def test_a_vertebra_found_but_not_outlined_is_a_gap_at_the_one_above_it():
    found = walked([vertebra(index=1), vertebra(index=4)], missed=(0, 2, 3, 5))
    text = "a vertebra was found {}, but could not be outlined"
    assert walk_remarks(found, ["T4", "T7"]) == [
        Remark("gap", None, text.format("above the first")),
        Remark("gap", "T4", text.format("below T4")),
        Remark("gap", "T4", text.format("below T4")),
        Remark("gap", "T7", text.format("below T7")),
    ]
    assert [remark.vertebra for remark in walk_remarks(walked([], missed=(0, 1)), [])] == [None, None]


def test_remarks_on_the_whole_walk_come_first():
    found = walked([vertebra()], remarks=(CALLS_USED_UP,), missed=(1,))
    kinds = [(remark.kind, remark.vertebra) for remark in walk_remarks(found, ["T4"])]
    assert kinds == [("other", None), ("gap", "T4")]


def test_every_remark_of_the_walk_has_a_kind_that_the_page_knows():
    found = walked([vertebra()], remarks=(CALLS_USED_UP,), missed=(1,))
    assert {remark.kind for remark in walk_remarks(found, ["T4"])} <= set(REMARK_KINDS)


def test_labels_say_what_they_hold_on_to():
    assert facts_of_labels(None, None) == {"anchor": None}
    assert facts_of_labels(None, "L1") == {"anchor": "first label given"}
    assert facts_of_labels(identification(), None) == {
        **{"anchor": "ribs", "sequence_probability": 0.7},
        **{"second_names": ("T11", "T12"), "second_probability": 0.2},
        "sequences": ((("T12", "L1"), 0.7), (("T11", "T12"), 0.2), (("L1", "-"), 0.06)),
    }
    alone = identification(second_codes=(), second_probability=0.0)
    assert facts_of_labels(alone, None)["second_names"] is None


def test_new_labels_keep_what_is_known_of_the_scan_and_drop_what_names_vertebrae():
    remarks = (Remark("hu doubt", None, "no air"), Remark("partial", "2", "cut off"))
    known = CaseQuality("sub-a", "count", seconds=3.5, network_calls=21, warnings=remarks)
    volume = Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    row = {"name": "T12", "mean_probability": 0.9, "converged": 1}
    prediction = CasePrediction(
        *("sub-a", volume, volume, Numbering((19,), ANATOMICAL), (row,), {}), identification=identification()
    )
    found = relabelled_quality(prediction, known)
    assert (found.kind, found.anchor, found.seconds, found.network_calls) == (
        *("anatomical", "ribs", 3.5, 21),
    )
    assert found.warnings == (Remark("hu doubt", None, "no air"),)
    assert found.sequences[0] == (("T12", "L1"), 0.7) and not found.no_spine
    assert relabelled_quality(prediction, None).seconds is None
    assert relabelled_quality(prediction, dataclasses.replace(known, no_spine=True)).no_spine
