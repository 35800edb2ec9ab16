"""Anchors: what each says of the levels, against the votes too, and that it can be switched off."""

import numpy as np
import pytest

from tests.localisation.label_problems import votes_of_levels
from utils.localisation.evidence import (
    ANCHORS,
    RIBS,
    SACRUM_BELOW,
    SKULL_BASE,
    Anchors,
    Rates,
    Sacrum,
    anchor_weights,
    skull_place,
)
from utils.localisation.identify import identify
from utils.verse.labels import LEVEL_NAMES, MAX_RANK

VAGUE = 2.0


def rank(name):
    return LEVEL_NAMES.index(name) + 1


def votes_around(names, spread=VAGUE):
    """Votes that are vague about each level; "?" says nothing."""
    ranks = np.arange(1, MAX_RANK + 1)
    centres = [rank(name) if name != "?" else None for name in names]
    logits = [0 * ranks if c is None else -((ranks - c) ** 2) / (2 * spread**2) for c in centres]
    logits = np.array(logits, float)
    return votes_of_levels(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def identified(votes, gap=28.0, **anchors):
    centres = np.array([[0, 0, -gap * place] for place in range(len(votes))])
    return identify(votes, centres, anchors=Anchors(**anchors))


def test_the_last_rib_corrects_votes_that_are_one_level_off():
    votes = votes_around(["T9", "T10", "T11", "T12", "L1", "L2"])
    ribs = np.array([0.95, 0.97, 0.95, 0.05, 0.03, 0.05])
    found = identified(votes, rib_probability=ribs)
    assert found.names == ("T10", "T11", "T12", "L1", "L2", "L3")
    assert found.anchor == RIBS
    without = identified(votes, rib_probability=ribs, used=(SKULL_BASE, SACRUM_BELOW))
    assert without.names == ("T9", "T10", "T11", "T12", "L1", "L2")
    assert without.anchor == "none"


def test_ribs_at_every_vertebra_are_no_anchor_for_the_count():
    found = identified(votes_around(["T4", "T5", "T6", "T7"]), rib_probability=np.full(4, 0.95))
    assert found.names == ("T4", "T5", "T6", "T7")
    assert found.anchor == "none"


def test_ribs_that_are_not_known_say_nothing():
    votes = votes_around(["L1", "L2", "L3"])
    assert anchor_weights(votes, Anchors(np.full(3, np.nan))) == {}
    half = anchor_weights(votes, Anchors(np.array([np.nan, 0.9, 0.9])))[RIBS]
    np.testing.assert_allclose(half[0, 1:], half[0, 1])


def test_a_rib_weighs_what_its_error_rate_lets_it():
    weights = anchor_weights(votes_around(["T5"]), Anchors(np.array([1.0]), rates=Rates(rib=0.1)))[RIBS]
    expected = np.log(0.9 * 0.995 + 0.1 * 0.005) - np.log(0.9 * 0.002 + 0.1 * 0.998)
    np.testing.assert_allclose(weights[0, rank("T5")] - weights[0, rank("L3")], expected)


def test_the_sacrum_gives_the_last_lumbar_vertebra():
    votes = votes_around(["T12", "L1", "L2", "L3", "L4"], spread=3.0)
    found = identified(votes, gap=34.0, sacrum=Sacrum(4, 0.99))
    assert found.names == ("L1", "L2", "L3", "L4", "L5")
    assert found.anchor == SACRUM_BELOW
    ends = {codes[-1] for codes, _ in found.sequence_set}
    assert ends <= {23, 24, 25}  # L4, L5, L6


def test_l6_above_the_sacrum_is_possible_where_the_votes_insist():
    votes = votes_around(["L3", "L4", "L5", "L6"], spread=0.7)
    assert identified(votes, gap=34.0, sacrum=Sacrum(3, 0.99)).names == ("L3", "L4", "L5", "L6")


def test_a_doubtful_sacrum_weighs_less():
    votes = votes_around(["L1", "L2", "L3"], spread=1.5)
    sure, doubtful = (identified(votes, gap=34.0, sacrum=Sacrum(2, p)) for p in (0.99, 0.55))
    assert sure.names == ("L3", "L4", "L5")
    assert doubtful.names == ("L1", "L2", "L3")


def test_what_lies_below_the_last_vertebra_is_the_sacrum_itself():
    votes = votes_around(["L3", "L4", "L5", "?"])
    found = identified(votes, gap=34.0, sacrum=Sacrum(2, 0.99))
    assert found.names == ("L3", "L4", "L5", "-")


def test_c2_that_is_all_but_certain_counts_in_full_though_votes_are_tempered():
    votes = votes_around(["C2", "C3", "C5", "C6", "C7"], spread=1.5)
    certain = np.full(MAX_RANK, 0.03 / 25)
    certain[1] = 0.97
    votes[0, 1:] = np.log(certain)
    centres = np.array([[0, 0, -17.0 * place] for place in range(5)])
    hot = {"temperature": 4.0}
    with_skull = identify(votes, centres, anchors=Anchors(), **hot)
    without = identify(votes, centres, anchors=Anchors(used=()), **hot)
    assert with_skull.names == ("C2", "C3", "C4", "C5", "C6")
    assert with_skull.anchor == SKULL_BASE
    assert with_skull.sequence_probability > without.sequence_probability + 0.1
    assert skull_place(votes, 0.9) == 0
    assert skull_place(votes, 0.98) is None


def test_several_anchors_are_named_together():
    votes = votes_around(["T11", "T12", "L1", "L2", "L3", "L4", "L5"])
    ribs = np.array([0.95, 0.95, 0.05, 0.05, 0.05, 0.05, 0.05])
    found = identified(votes, rib_probability=ribs, sacrum=Sacrum(6, 0.99))
    assert found.anchor == f"{RIBS} and {SACRUM_BELOW}"


def test_contradicting_anchors_leave_a_wide_set():
    votes = votes_around(["?"] * 6)
    # The last rib says L4 at the bottom, the sacrum L5.
    ribs = np.array([0.97, 0.97, 0.03, 0.03, 0.03, 0.03])
    found = identified(votes, rib_probability=ribs, sacrum=Sacrum(5, 0.99))
    assert len(found.sequence_set) > 1
    assert {codes[-1] for codes, _ in found.sequence_set} >= {23, 24}


# Errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        (Anchors(np.ones(3)), r"Expected rib probabilities \(2,\), received \(3,\)"),
        (Anchors(sacrum=Sacrum(2, 0.9)), "Expected a sacrum below one of 2 vertebrae, received place 2"),
        (Anchors(used=("hips",)), "Expected anchors of C1/C2 in view, ribs, sacrum below, received hips"),
    ],
)
def test_anchors_that_do_not_fit_are_refused(anchors, message):
    with pytest.raises(ValueError, match=message):
        anchor_weights(votes_around(["T1", "T2"]), anchors)


def test_results_name_anchors_as_they_are_switched():
    assert ANCHORS == ("C1/C2 in view", "ribs", "sacrum below")
