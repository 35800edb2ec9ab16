"""Losses and scores on examples of one and two voxels, worked out by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from utils.learning import losses


def voxels(*rows):
    """Give a batch of one example, (1, voxels, 1, 1, channels)."""
    return tf.reshape(tf.constant(rows, tf.float32), [1, len(rows), 1, 1, -1])


def test_vertebra_loss_of_two_voxels():
    truth = voxels([1.0, 9.0], [0.0, 2.0])
    prediction = voxels([0.25], [0.5])
    # (9 * .75 + 2 * .5 * .5) / 2
    np.testing.assert_allclose(losses.vertebra_loss(truth, prediction, tf.constant(0.5)), [3.625])


def test_vertebra_loss_is_one_number_an_example():
    truth = tf.concat([voxels([1.0, 1.0]), voxels([0.0, 4.0])], 0)
    prediction = tf.cast(tf.concat([voxels([1.0]), voxels([0.5])], 0), tf.float16)
    found = losses.vertebra_loss(truth, prediction, tf.constant(0.25))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, [0.0, 0.5])


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        ((1, 1, 0, 0), (0.9, 0.5, 0.49, 0.1), 1.0),
        ((1, 1, 0, 0), (0.9, 0.1, 0.8, 0.1), 0.5),
        ((1, 0, 0, 0), (0.9, 0.9, 0.9, 0.1), 0.5),
        ((0, 0, 0, 0), (0.1, 0.2, 0.3, 0.4), 1.0),
        ((0, 0, 0, 0), (0.1, 0.2, 0.3, 0.6), 0.0),
        ((1, 0, 0, 0), (0.1, 0.2, 0.3, 0.4), 0.0),
    ],
)
def test_vertebra_dice(truth, prediction, expected):
    pairs = voxels(*[[t, 5.0] for t in truth])
    np.testing.assert_allclose(losses.vertebra_dice(pairs, voxels(*[[p] for p in prediction])), [expected])


def test_heatmap_loss_of_a_perfect_binary_map_is_0():
    truth = voxels([1.0, 0.0], [0.0, 1.0], [0.0, 1.0])
    np.testing.assert_allclose(losses.heatmap_loss(truth, truth), [0.0], atol=1e-6)
    np.testing.assert_allclose(losses.heatmap_dice(truth, truth), [1.0], atol=1e-6)


def test_heatmap_loss_of_one_voxel():
    truth, prediction = voxels([0.5, 0.5]), voxels([0.25, 0.75])
    divergence = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    dice = 2 * (0.125 + 0.375) / (1 + 1)
    np.testing.assert_allclose(losses.heatmap_dice(truth, prediction), [dice], rtol=1e-6)
    np.testing.assert_allclose(losses.heatmap_loss(truth, prediction), [divergence + 1 - dice], rtol=1e-6)


def test_heatmap_divergence_is_a_mean_over_voxels():
    truth = voxels([1.0, 0.0], [0.0, 1.0])
    prediction = voxels([0.5, 0.5], [0.0, 1.0])
    expected = 0.5 * math.log(2) + 1 - 2 * 1.5 / 4
    np.testing.assert_allclose(losses.heatmap_loss(truth, prediction), [expected], rtol=1e-6)


def test_heatmap_loss_stays_finite_for_certain_errors():
    truth, prediction = voxels([1.0, 0.0]), tf.cast(voxels([0.0, 1.0]), tf.float16)
    np.testing.assert_allclose(losses.heatmap_loss(truth, prediction), [math.log(1e7) + 1], rtol=1e-5)


def localiser_voxels(*rows):
    """Truth and prediction from rows (truth of 3 numbers, heat, sacrum)."""
    return voxels(*[row[0] for row in rows]), voxels(*[list(row[1:]) for row in rows])


#: A body, and background: body, sacrum, counts.
AT_CENTRE, BACKGROUND = (1.0, 0.0, 1.0), (0.0, 0.0, 1.0)


def test_localiser_loss_is_0_at_the_truth():
    truth, prediction = localiser_voxels((AT_CENTRE, 1, 0), (BACKGROUND, 0, 0))
    np.testing.assert_allclose(losses.localiser_loss(truth, prediction), [0.0], atol=1e-6)
    np.testing.assert_allclose(losses.localiser_dice(truth, prediction), [1.0])


def test_localiser_heat_is_a_weighted_mean_of_divergences():
    truth, prediction = localiser_voxels(
        (AT_CENTRE, 0.5, 0), ((0.5, 0.0, 1.0), 0.4, 0), (BACKGROUND, 0.2, 0.3)
    )
    # A voxel weighs 1 + 39 times the heat of a Gaussian twice as wide; those of the sacral channel 1 each.
    between = 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6)
    weight = 1 + 39 * 0.5**0.25
    body = (40 * math.log(2) + weight * between - math.log(0.8)) / (41 + weight)
    expected = body - math.log(0.7) / 3
    np.testing.assert_allclose(losses.localiser_loss(truth, prediction), [expected], rtol=1e-4)
    # 2 * (1 * .5 + .5 * .4) / (1.5 + 1.1)
    np.testing.assert_allclose(losses.localiser_dice(truth, prediction), [1.4 / 2.6], rtol=1e-6)


def test_what_hides_an_unlabelled_vertebra_has_no_loss():
    hidden = (0.0, 0.0, 0.0)
    truth, prediction = localiser_voxels((hidden, 1, 1), (BACKGROUND, 0, 0))
    np.testing.assert_allclose(losses.localiser_loss(truth, prediction), [0.0], atol=1e-7)
    # Nor is anything divided by 0 where there is nothing to learn.
    truth, prediction = localiser_voxels((hidden, 1, 1))
    np.testing.assert_allclose(losses.localiser_loss(truth, prediction), [0.0])
    np.testing.assert_allclose(losses.localiser_dice(truth, prediction), [0.0])


def test_labelling_loss_hears_rib_and_way_of_vertebrae_alone():
    found = np.zeros((3, 31), np.float32)
    found[:, losses.RIB], found[:, losses.OFFSET] = 9.0, (1.0, -2.0, 0.5)
    truth = tf.constant([[0.0] * 5, [8.0, 1.0, 1.0, -2.0, 0.5], [8.0, 0.0, 0.0, -1.0, 1.0]])
    rib, no_rib = math.log1p(math.exp(-9)), math.log1p(math.exp(9))
    expected = math.log(27) + 0.2 * np.array([0.0, rib, no_rib + 2.5])
    np.testing.assert_allclose(losses.labelling_loss(truth, tf.constant(found)), expected, rtol=1e-5)


def test_labelling_accuracy_counts_no_vertebra_as_a_class():
    found = np.zeros((3, 31), np.float32)
    found[[0, 1, 2], [0, 5, 6]] = 1.0
    found[:, 27:] = 5.0  # neither the rib nor the way is a class
    truth = tf.constant([[0.0] * 5, [5.0, *[0.0] * 4], [7.0, 1.0, *[0.0] * 3]])
    np.testing.assert_allclose(losses.labelling_accuracy(truth, tf.constant(found)), [1, 1, 0])


@pytest.mark.parametrize(
    ("epoch", "expected"),
    # E = 45: the middle of the ramp is epoch 15, its width 4.5; exp(10 / 3) = 28.0316.
    [(0, 0.1 + 0.9 / 29.0316), (15, 0.55), (24, 0.1 + 0.9 / (1 + math.exp(-2))), (44, 0.99857)],
)
def test_weight_of_false_positives_rises(epoch, expected):
    found = losses.fp_weight(tf.Variable(epoch, dtype=tf.int64), 45)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_constant_weight_is_that_of_the_released_code():
    epochs = [0, 15, 44]
    found = [float(losses.fp_weight(tf.constant(epoch), 45, "constant")) for epoch in epochs]
    # The published ramp's value at the first epoch, at which the released code stays.
    assert found == pytest.approx([round(0.1 + 0.9 / (1 + math.exp(15 / 4.5)), 3)] * 3) == [0.131] * 3


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"'ramp' or 'constant', received 'linear'"):
        losses.fp_weight(tf.constant(0), 45, "linear")


# ---------------------------------------------------------------- occupancies


def occupancy_loss(wanted, found, weight=1.0):
    truth = np.stack([wanted, np.full_like(wanted, weight)], axis=-1)[None].astype(np.float32)
    return float(
        losses.occupancy_loss(tf.constant(truth), tf.constant(found[None, ..., None], tf.float32))[0]
    )


def test_occupancies_are_met_exactly_by_themselves_alone():
    wanted = np.random.default_rng(0).choice([0, 0.125, 0.5, 0.875, 1], (4, 4, 4)).astype(np.float32)
    assert occupancy_loss(wanted, wanted) == pytest.approx(0, abs=1e-5)
    for towards in (0.0, 1.0):
        assert occupancy_loss(wanted, 0.9 * wanted + 0.1 * towards) > 1e-3
    bits = (wanted >= 0.5).astype(np.float32)
    assert occupancy_loss(wanted, bits) > 0.1


def test_occupancy_loss_worked_out_by_hand():
    # One voxel of eight is half vertebra, found as a quarter.
    wanted, found = np.zeros((2, 2, 2), np.float32), np.full((2, 2, 2), 1e-9, np.float32)
    wanted[0, 0, 0], found[0, 0, 0] = 0.5, 0.25
    divergence = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    expected = losses.ENTROPY_PART * divergence / 8 + 0.0625 / (0.25 + 0.0625 + 1)
    assert occupancy_loss(wanted, found) == pytest.approx(expected, abs=1e-4)
    weighted = occupancy_loss(wanted, found, weight=3.0) - occupancy_loss(wanted, found)
    assert weighted == pytest.approx(2 * losses.ENTROPY_PART * divergence / 8, abs=1e-4)


def test_an_empty_target_wants_an_empty_prediction():
    empty = np.zeros((4, 4, 4), np.float32)
    assert occupancy_loss(empty, empty + 1e-7) == pytest.approx(0, abs=1e-4)
    assert occupancy_loss(empty, empty + 0.5) > 0.9
