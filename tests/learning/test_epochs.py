"""Balance, order, and the sharing out of an epoch over devices."""

import numpy as np
import pytest

from ML_3D_Unet.utils.train import EpochPart
from utils.learning import epochs
from utils.settings import SegmentationTrainingSettings

SETTINGS = SegmentationTrainingSettings(patch_voxels=8, batch_size=2, examples_per_epoch=5, seed=3)


def test_whole_ratios_are_exact():
    # Level 20 thrice, 21 once, 3 thrice: every level ends with three.
    ranks = [20, 20, 21, 3, 3, 20, 3]
    assert epochs.balanced_positions(ranks, 0).tolist() == [0, 1, 2, 2, 2, 3, 4, 5, 6]


def test_fractions_are_decided_by_chance_once_a_seed():
    ranks = [5] * 3 + [6] * 2  # 1.5 times each
    draws = [np.bincount(epochs.balanced_positions(ranks, seed)) for seed in range(400)]
    assert all((counts[:3] == 1).all() and set(counts[3:]) <= {1, 2} for counts in draws)
    np.testing.assert_allclose(np.mean(draws, axis=0)[3:], 1.5, atol=0.08)
    again = np.bincount(epochs.balanced_positions(ranks, 7))
    np.testing.assert_array_equal(again, draws[7])


@pytest.mark.parametrize("count", [3, 5, 12])
def test_passes_go_on_from_epoch_to_epoch(count):
    items = np.array([4, 8, 8, 15, 16])
    orders = [epochs.epoch_order(items, count, seed=1, epoch=epoch) for epoch in range(10)]
    assert [len(epoch) for epoch in orders] == [count] * 10
    passes = np.concatenate(orders).reshape(-1, 5)
    assert all(sorted(one) == [4, 8, 8, 15, 16] for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) > 1


def test_an_epoch_of_0_is_one_pass():
    found = epochs.epoch_order(np.arange(6), 0, seed=1, epoch=4)
    assert sorted(found) == list(range(6))
    assert found.tolist() != epochs.epoch_order(np.arange(6), 0, seed=2, epoch=4).tolist()


def test_examples_in_an_epoch(data):
    # Levels T12, T13, L1, L1, L2: 2 + 2 + 1 + 1 + 2.
    whole = SegmentationTrainingSettings(patch_voxels=8)
    assert epochs.examples_in_epoch(data, whole) == 8
    assert epochs.examples_in_epoch(data, SETTINGS) == 5


def test_positions_by_hand():
    # 7 examples, batches of 2 on 2 replicas: 4 a step, so that one position fills the second step up.
    positions, weights = epochs.batch_positions(7, 2, EpochPart(replicas=2))
    assert positions.tolist() == [[0, 1], [2, 3], [4, 5], [6, 0]]
    assert weights.tolist() == [[1, 1], [1, 1], [1, 1], [1, 0]] and weights.dtype == np.float32
    # The second of two pipelines feeds replica 1; the first step is left out.
    positions, weights = epochs.batch_positions(7, 2, EpochPart(1, pipeline=1, pipelines=2, replicas=2))
    assert positions.tolist() == [[6, 0]] and weights.tolist() == [[1, 0]]


@pytest.mark.parametrize(("pipelines", "replicas"), [(1, 1), (1, 3), (2, 2), (2, 6), (3, 3)])
@pytest.mark.parametrize("count", [1, 5, 12, 13])
def test_replicas_share_an_epoch(count, pipelines, replicas):
    parts = [
        epochs.batch_positions(count, 2, EpochPart(0, pipeline, pipelines, replicas))
        for pipeline in range(pipelines)
    ]
    steps = -(-count // (2 * replicas))
    shown = []
    for positions, weights in parts:
        assert positions.shape == weights.shape == (steps * replicas // pipelines, 2)
        shown += positions[weights == 1].tolist()
        assert set(positions.ravel().tolist()) <= set(range(count))
    assert sorted(shown) == list(range(count))


@pytest.mark.parametrize("first_step", range(4))
def test_first_step_is_skipping(first_step):
    part = EpochPart(0, 1, 2, 4)
    whole = epochs.batch_positions(23, 2, part)
    found = epochs.batch_positions(23, 2, part._replace(first_step=first_step))
    for one, rest in zip(whole, found):
        np.testing.assert_array_equal(one[2 * first_step :], rest)


@pytest.mark.parametrize("part", [EpochPart(pipelines=2, replicas=3), EpochPart(0, 2, 2, 2)])
def test_parts_that_do_not_fit_are_refused(part):
    with pytest.raises(ValueError, match="divides the replicas, received EpochPart"):
        epochs.batch_positions(5, 2, part)
