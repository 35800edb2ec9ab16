"""From a scan to its column: centres and levels, the sacrum, and whether there is a spine."""

import dataclasses

import numpy as np
import pytest

from tests.localisation.label_problems import votes_for
from tests.localisation.simulated_spines import AFFINE, candidates_at, draw_spine, level_votes
from tests.walk.column import heat_of
from utils.imaging.volume import Volume
from utils.localisation.candidates import BODY, SACRUM, Reading
from utils.localisation.chain import chain_of, find_column, sacrum_below
from utils.localisation.identify import number_column
from utils.verse.labels import LEVEL_NAMES, MAX_RANK, code_of_name

SHAPE = (48, 32, 64)
NAMES = ("T11", "T12", "L1", "L2", "L3", "L4", "L5")


def spine():
    """Centres of T11 to L5 and of S1 in mm, in the frame of a small scan."""
    first = LEVEL_NAMES.index("T11")
    points = draw_spine(
        np.random.default_rng(2), count=7, first=first, scale=0.75, noise=0.02, cobb_degrees=0.0
    ).points_mm
    points = np.vstack([points, points[-1] + [0, -16.0, -20.0]])
    affine = AFFINE.copy()
    affine[:3, 3] = points.mean(axis=0) - AFFINE[:3, :3] @ (np.array(SHAPE) / 2)
    return points, affine


def networks_for(points, affine, *, height=0.9, beside=(0.0, 0.0, 0.0)):
    """One that finds the points, all but the last as vertebrae, and one for the levels; ribs down to T12.

    The second one leads `beside` the points, in voxels.
    """
    inverse = np.linalg.inv(affine)
    voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
    heats = [heat_of([voxel], SHAPE, affine, sigma=1.5).data * height for voxel in voxels]
    outputs = np.zeros((*SHAPE, 2), np.float32)
    outputs[..., BODY], outputs[..., SACRUM] = np.max(heats[:-1], axis=0), heats[-1]

    def labels(ct, asked):
        levels, ribs = np.zeros((len(asked), 1 + MAX_RANK)), np.zeros(len(asked))
        nearest = np.linalg.norm(voxels[None, :-1] - asked[:, None], axis=2).argmin(axis=1)
        for row, place in enumerate(nearest):
            levels[row, 1 + LEVEL_NAMES.index(NAMES[place])] = 4.0
            ribs[row] = 3.0 if NAMES[place].startswith("T") else -3.0
        return Reading(levels, ribs, voxels[nearest] + beside - asked)

    return (lambda ct: outputs), labels


def found_by(networks, affine):
    return find_column(Volume(np.zeros(SHAPE, np.int16), affine), *networks, outside="edge")


def test_a_column_is_found_with_its_sacrum_and_numbered():
    points, affine = spine()
    column = found_by(networks_for(points, affine), affine)
    np.testing.assert_allclose(column.centres_mm, points[:-1], atol=0.5)
    assert column.sacrum.above == 6 and column.sacrum.probability > 0.9
    votes = column.votes(1.5)
    assert votes.temperature == 1.5 and votes.sacrum == column.sacrum
    np.testing.assert_allclose(votes.rib_probability, [0.95, 0.95, *[0.05] * 5], atol=0.15)
    found = number_column(votes)
    assert found.names == NAMES and "sacrum below" in found.anchor
    assert number_column(votes, fixed={0: code_of_name("T10")}).names[0] == "T10"


def test_centres_lie_halfway_between_what_both_networks_say():
    points, affine = spine()
    beside = np.array([2.0, -1.0, 0.0])
    column = found_by(networks_for(points, affine, beside=beside), affine)
    halfway_mm = affine[:3, :3] @ beside / 2
    np.testing.assert_allclose(column.centres_mm, points[:-1] + halfway_mm, atol=0.5)
    np.testing.assert_array_equal(column.votes(1.0).centres_mm, column.centres_mm)


@pytest.mark.parametrize("height", [0.35, 0.0])
def test_without_a_spine_there_are_no_centres(height):
    points, affine = spine()
    column = found_by(networks_for(points, affine, height=height), affine)
    assert not column.chain.has_spine and column.centres_mm.shape == (0, 3)
    # What is not believed stays known to the chain alone; heat that is noise has none.
    assert bool(len(column.chain)) == bool(height)
    votes = column.votes(1.0)
    assert votes.level_log_probabilities.shape == (0, MAX_RANK + 1) and votes.sacrum is None
    assert number_column(votes).codes == ()


def test_where_no_vertebra_is_seen_none_is_taken():
    points, affine = spine()
    heat, labels = networks_for(points, affine)

    def sees_none(ct, asked):
        said = labels(ct, asked)
        levels = said.level_logits + 20 * np.eye(1 + MAX_RANK)[0]
        return dataclasses.replace(said, level_logits=levels)

    blind = heat, sees_none
    assert found_by((heat, labels), affine).chain.has_spine
    assert not found_by(blind, affine).chain.has_spine


# Some vertebrae of a column -----------------------------------------------------------------------


def test_a_vertebra_that_was_not_outlined_still_votes():
    # The one vertebra that is known has no voxels.
    votes = votes_for(["?", "?", "T9", "?"], strength=6.0)
    found = number_column(votes, places=[0, 1, 3])
    assert found.names == ("T7", "T8", "T10")
    assert found.probabilities == number_column(votes).of_places([0, 1, 3]).probabilities
    names = ("level_log_probabilities", "rib_probability", "centres_mm")
    rest = dataclasses.replace(votes, **{name: getattr(votes, name)[[0, 1, 3]] for name in names})
    assert found.sequence_probability > 5 * number_column(rest).sequence_probability


def test_fixed_places_are_counted_among_the_vertebrae_found():
    votes = votes_for(["?"] * 5)
    found = number_column(votes, places=[1, 2, 4], fixed={2: code_of_name("L1")})
    assert found.names == ("T10", "T11", "L1")
    with pytest.raises(ValueError, match="Expected a place up to 3, received 4=L1"):
        number_column(votes, places=[1, 2, 4], fixed={3: code_of_name("L1")})


def test_sequences_that_differ_in_what_was_not_found_alone_are_one():
    votes = votes_for(["T9", "T10", "?"], strength=9.0, step_mm=25.0)
    votes.level_log_probabilities[2, 18:20] = np.log([0.5, 0.5])  # T11, or T12 with one missed between
    whole, part = number_column(votes), number_column(votes, places=[0, 1])
    assert len({names[:2] for names, _ in whole.sequence_set}) == len(part.sequence_set)
    shares = [sum(share for _, share in found.sequence_set) for found in (whole, part)]
    assert shares[1] == pytest.approx(shares[0])


# The sacrum of a chain ------------------------------------------------------------------------------


def lumbar_chain(with_s1=False):
    """A chain L1 to L5, and the point one step below."""
    spine = draw_spine(np.random.default_rng(2), count=5, first=19, scale=1.0, noise=0.02, cobb_degrees=0.0)
    below = spine.points_mm[-1] + [0, -22.0, -27.0]
    points = np.vstack([spine.points_mm, below]) if with_s1 else spine.points_mm
    ranks = np.append(spine.ranks, 26)[: len(points)]
    votes = level_votes(ranks, np.random.default_rng(2), right=1.0)
    return chain_of(candidates_at(points, np.full(len(points), 0.8), votes)), below


def test_the_sacrum_one_step_below_a_chain_is_found():
    chain, below = lumbar_chain()
    found = sacrum_below(chain, candidates_at([below, below + np.array([0, 90, 0])], [0.7, 0.9]))
    assert found.above == 4
    assert found.probability > 0.95


def test_a_sacrum_in_the_chain_leaves_the_vertebra_above_it():
    chain, below = lumbar_chain(with_s1=True)
    assert len(chain) == 6
    assert sacrum_below(chain, candidates_at([below + np.array([1, 0, 0])], [0.7])).above == 4


@pytest.mark.parametrize("shift", [[0, 0, 120.0], [0, 0, -80.0], [150.0, 0, 0]])
def test_peaks_elsewhere_are_no_sacrum(shift):
    chain, below = lumbar_chain()
    assert sacrum_below(chain, candidates_at([below + shift], [0.9])) is None


def test_weak_or_no_peaks_are_no_sacrum():
    chain, below = lumbar_chain()
    assert sacrum_below(chain, candidates_at([below], [0.2])) is None
    assert sacrum_below(chain, candidates_at(np.zeros((0, 3)), [])) is None
    assert sacrum_below(chain_of(candidates_at(np.zeros((0, 3)), [])), candidates_at([below], [0.9])) is None
