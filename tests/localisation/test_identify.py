"""The decision on the levels of a column: against all sequences of short columns, and on known cases."""

import itertools

import numpy as np
import pytest

from utils.localisation import identify as module
from utils.localisation.evidence import MOST_MISSED, Anchors, Rates, gap_ratios, uniform_votes
from utils.localisation.identify import identify, names_of
from utils.verse.labels import LEVEL_NAMES, MAX_RANK, code_of_name

CLASSES = MAX_RANK + 1


def rank(name):
    return LEVEL_NAMES.index(name) + 1


def votes_for(names, strength=4.0, blur=0.0):
    """Votes that favour each name by `strength`; "-" is not a vertebra, "?" says nothing."""
    logits = np.zeros((len(names), CLASSES))
    logits[:, 0] = -3.0
    for place, name in enumerate(names):
        if name == "-":
            logits[place, 0] = strength
        elif name != "?":
            logits[place, rank(name)] = strength
            for near in (rank(name) - 1, rank(name) + 1):
                if 1 <= near <= MAX_RANK:
                    logits[place, near] += blur
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def line(gaps):
    """Centres on a line, `gaps` mm apart."""
    centres = np.zeros((len(gaps) + 1, 3))
    centres[1:, 2] = -np.cumsum(gaps)
    return centres


def labelled(names, gaps, **keywords):
    votes = names if isinstance(names, np.ndarray) else votes_for(names)
    return identify(votes, line(gaps), **keywords)


# Against all sequences ------------------------------------------------------------------------------

FOLLOWS = {rank(name): {rank(name) + 1: 1.0} for name in LEVEL_NAMES[:-1]}
FOLLOWS[rank("T11")] = {rank("T12"): 1 - 6 / 374, rank("L1"): 6 / 374}
FOLLOWS[rank("T12")] = {rank("L1"): 1 - 18 / 374, rank("T13"): 18 / 374}
FOLLOWS[rank("L5")] = {rank("L6"): 44 / 374}
EXISTS = {rank("T12"): 1 - 6 / 374, rank("T13"): 18 / 374, rank("L6"): 44 / 374}


def ways(upper, lower):
    """Every way down from one rank to another: (levels between, probability)."""
    found = []
    for following, share in FOLLOWS.get(upper, {}).items():
        if following == lower:
            found.append((0, share))
        else:
            found += [(between + 1, share * chance) for between, chance in ways(following, lower)]
    return found


def weight_of(sequence, emissions, ratios):
    """The weight, not its logarithm, of a sequence of ranks, straight from the definition."""
    weight = np.prod([np.exp(emissions[place, r]) for place, r in enumerate(sequence)])
    seen = [(place, r) for place, r in enumerate(sequence) if r]
    if seen:
        weight *= EXISTS.get(seen[0][1], 1.0) / 26
    for (upper, r), (lower, s) in itertools.pairwise(seen):
        ratio = ratios[upper, lower, r - 1]
        weight *= sum(
            chance * 0.01**missed * np.exp(-((ratio - missed - 1) ** 2) / (2 * 0.25**2))
            for missed, chance in ways(r, s)
            if missed <= MOST_MISSED
        )
    return weight


def none_of(shares, temperature):
    """What speaks for no vertebra at each place: it looks like none, or like the vertebra beside it."""
    return [
        0.9 * shares[place, 0] ** (1 / temperature)
        + 0.1
        * max(
            sum(shares[place, r] * shares[beside, r] for r in range(1, CLASSES)) ** (1 / temperature)
            if 0 <= beside < len(shares)
            else 0.0
            for beside in (place - 1, place + 1)
        )
        for place in range(len(shares))
    ]


def random_case(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 5))
    first = int(generator.choice([1, 8, 16, 17, 18, 19, 20, 22]))
    allowed = [0, *range(first, min(first + 5, MAX_RANK + 1))]
    votes = np.full((count, CLASSES), -np.inf)
    votes[:, allowed] = np.log(generator.dirichlet(np.full(len(allowed), 0.7), count))
    centres = line(generator.uniform(12, 75, count - 1))
    return votes, centres, allowed, float(generator.uniform(0.6, 3.0))


@pytest.mark.parametrize("block", range(10))
def test_best_second_and_posterior_are_those_of_all_sequences(block):
    for seed in range(30 * block, 30 * block + 30):
        votes, centres, allowed, temperature = random_case(seed)
        found = identify(votes, centres, temperature=temperature)
        emissions = votes / temperature + np.log(0.98)
        emissions[:, 0] = np.log(none_of(np.exp(votes), temperature)) + np.log(0.02)
        ratios = gap_ratios(centres)
        sequences = list(itertools.product(allowed, repeat=len(votes)))
        all_weights = np.array([weight_of(sequence, emissions, ratios) for sequence in sequences])
        order = np.argsort(-all_weights)
        shares = all_weights / all_weights.sum()
        codes = [module._codes(np.array(sequences[place])) for place in order[:2]]
        assert found.codes == codes[0]
        np.testing.assert_allclose(found.sequence_probability, shares[order[0]], rtol=1e-9)
        np.testing.assert_allclose(found.second_probability, shares[order[1]], rtol=1e-9, atol=1e-300)
        if shares[order[1]] > 0:
            assert found.second_codes == codes[1]
        for place, r in enumerate(sequences[order[0]]):
            has = np.array([sequence[place] == r for sequence in sequences])
            np.testing.assert_allclose(found.probabilities[place], shares[has].sum(), rtol=1e-7)


# Known cases ----------------------------------------------------------------------------------------


def test_a_doubtful_vertebra_takes_the_level_between_its_neighbours():
    found = labelled(["L1", "?", "L3", "L5"], [34, 35, 36])
    assert found.names == ("L1", "L2", "L3", "L4")
    assert found.names != found.second_names
    assert 0 < found.second_probability < found.sequence_probability < 1


@pytest.mark.parametrize(
    "names",
    [
        ("T10", "T11", "L1", "L2"),
        ("T11", "T12", "T13", "L1", "L2"),
        ("L3", "L4", "L5", "L6"),
        ("T11", "T12", "L1", "L2", "L3", "L4", "L5"),
    ],
    ids="-".join,
)
def test_variants_are_found_where_the_votes_are_clear(names):
    assert labelled(votes_for(names, strength=8), [33] * (len(names) - 1)).names == names


def test_variants_cost_what_they_are_rare():
    # One vertebra for L6 against one for L5: the common spine wins, unless the vote is clear.
    votes = votes_for(["?", "?", "L6"], strength=3.0)
    votes[2, rank("L5")] = votes[2, rank("L6")] - 1.0
    assert labelled(votes, [36, 36]).names == ("L3", "L4", "L5")
    votes[2, rank("L5")] = votes[2, rank("L6")] - 2.5
    assert labelled(votes, [36, 36]).names == ("L4", "L5", "L6")


def test_a_miss_is_taken_from_the_gap_and_from_nothing_else():
    names = ["T5", "T6", "T8", "T9", "T10"]
    assert labelled(names, [24, 48, 24, 25]).names == tuple(names)
    # Without the gap the same votes are taken for errors of one level.
    assert "T7" in labelled(names, [24, 24, 24, 25]).names
    # And a gap is a miss although no vote says so.
    assert labelled(["T5", "T6", "?", "?"], [24, 24, 48]).names == ("T5", "T6", "T7", "T9")


def test_what_is_no_vertebra_gets_no_label_and_its_neighbours_follow_each_other():
    found = labelled(["L1", "L2", "-", "L3", "L4"], [35, 17, 18, 35])
    assert found.names == ("L1", "L2", "-", "L3", "L4")
    assert found.codes[2] == 0
    assert labelled(["L4", "L5", "-"], [36, 30]).names == ("L4", "L5", "-")


def test_a_vertebra_that_was_found_twice_counts_once():
    # All look like vertebrae, and each a little like its neighbours.
    votes = votes_for(["C1", "C1", "C2", "C3", "C4"], strength=6.0, blur=2.0)
    votes[:, 0] = -12.0
    steps = line([12, 15, 17, 17])
    found, without = (
        identify(votes, steps, anchors=Anchors(np.zeros(5), rates=rates), temperature=2.0)
        for rates in (Rates(), Rates(doubles=0.0))
    )
    assert found.names == ("-", "C1", "C2", "C3", "C4") and found.sequence_probability > 0.75
    # Without doubles two errors of the anchor and five of the votes are likelier than one none.
    assert without.names == ("C1", "C2", "C3", "C4", "C5") and without.sequence_probability > 0.9


def test_neighbours_that_agree_on_nothing_are_not_doubles():
    found = labelled(["T6", "T7", "T8", "T9"], [22, 22, 23])
    before = identify(
        votes_for(["T6", "T7", "T8", "T9"]), line([22, 22, 23]), anchors=Anchors(rates=Rates(doubles=0.0))
    )
    assert found.names == before.names == ("T6", "T7", "T8", "T9")
    assert found.sequence_probability == pytest.approx(before.sequence_probability, abs=0.01)


def test_temperature_makes_the_same_answer_less_sure():
    sharp, flat = (labelled(["L1", "L2", "L3"], [35, 35], temperature=t) for t in (1.0, 4.0))
    assert sharp.codes == flat.codes
    assert sharp.sequence_probability > flat.sequence_probability


def test_votes_alone_hold_on_to_nothing_and_a_level_that_is_named_is_given():
    assert labelled(["L3", "L4", "L5"], [35, 36]).anchor == "none"
    assert labelled(["?", "?"], [20], fixed={0: code_of_name("C1")}).anchor == "given"


def test_fixed_levels_overrule_the_votes_and_the_rest_follows():
    names = votes_for(["T10", "T11", "T12", "L1"], strength=1.0)
    assert labelled(names, [30] * 3, fixed={2: code_of_name("L1")}).names == ("T11", "T12", "L1", "L2")
    assert labelled(names, [30] * 3, fixed={0: code_of_name("T12")}).names == ("T12", "L1", "L2", "L3")
    found = labelled(names, [30] * 3, fixed={1: code_of_name("T12"), 2: code_of_name("T13")})
    assert found.names == ("T11", "T12", "T13", "L1")
    assert found.probabilities[1:3] == pytest.approx((1, 1))


def test_levels_follow_a_fixed_one_however_sure_their_votes_are():
    votes = votes_for(["T10", "T11", "T12", "L1", "-"], strength=12.0)
    found = labelled(votes, [30] * 4, fixed={0: code_of_name("T4")})
    assert found.names == ("T4", "T5", "T6", "T7", "-")  # what is no vertebra is none under any name
    assert labelled(votes_for(["L3", "L4", "L5"], strength=12.0), [35] * 2, fixed={0: 25}).names == (
        *("L6", "-", "-"),  # below the last level there is no other choice
    )


def test_fixed_levels_serve_without_any_network():
    found = identify(*uniform_votes(5), fixed={2: code_of_name("T12")})
    assert found.names == ("T10", "T11", "T12", "L1", "L2")


def test_impossible_fixes_are_named():
    with pytest.raises(ValueError, match="downwards, received 1=T12, 2=T11"):
        labelled(["T11", "T12"], [30], fixed={0: code_of_name("T12"), 1: code_of_name("T11")})
    with pytest.raises(ValueError, match="up to 2, received 3=T12"):
        labelled(["T11", "T12"], [30], fixed={2: code_of_name("T12")})


def test_empty_and_single_columns():
    nothing = identify(np.zeros((0, CLASSES)), np.zeros((0, 3)))
    assert (nothing.codes, nothing.sequence_probability, nothing.anchor) == ((), 1.0, "none")
    assert labelled(["L3"], []).names == ("L3",)
    assert names_of((0, 28)) == ("-", "T13")


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"Expected arrays \(n, 27\)"):
        identify(np.zeros((2, 26)), np.zeros((2, 3)))


def test_a_centre_that_is_not_known_says_nothing():
    names = [name for name in LEVEL_NAMES if name not in ("T13", "L6")]
    centres = line([20.0] * (len(names) - 1))
    centres[5] = np.nan
    found = identify(votes_for(names), centres)
    assert found.names == tuple(names)
