"""Losses and scores, one number an example, in float32.

They follow Serrador et al. 2024. Means, never sums, go over the voxels: a sum over two million voxels
times a loss scale would overflow.
"""

from __future__ import annotations

import tensorflow as tf

from utils.verse.labels import MAX_RANK

#: The weight of false positives at which the released code stayed in every epoch.
CONSTANT_FP_WEIGHT = 0.131


def fp_weight(epoch: tf.Tensor, epochs: int, schedule: str = "ramp") -> tf.Tensor:
    """Give the weight of false positives in an epoch: .1 + .9 / (1 + exp(-(epoch - E/3) / (E/10))).

    Parameters
    ----------
    epoch : tf.Tensor or tf.Variable, scalar
        Epoch from 0. It must be a tensor: a Python number would be frozen at the first trace.
    epochs : int
        E, the number of epochs of the whole run.
    schedule : str
        "ramp", or "constant" for the weight of the released code.

    Returns
    -------
    tf.Tensor of float32, scalar
        The weight, growing from about .13 to 1.

    Raises
    ------
    ValueError
        If the schedule is not known.
    """
    if schedule not in ("ramp", "constant"):
        raise ValueError(f"Expected the schedule 'ramp' or 'constant', received {schedule!r}.")
    if schedule == "constant":
        return tf.constant(CONSTANT_FP_WEIGHT, tf.float32)
    progress = (tf.cast(epoch, tf.float32) - epochs / 3.0) / (epochs / 10.0)
    return 0.1 + 0.9 * tf.sigmoid(progress)


def vertebra_loss(truth: tf.Tensor, prediction: tf.Tensor, weight_of_fp: tf.Tensor) -> tf.Tensor:
    """Mean over the voxels of w * (weight_of_fp * FP + FN), with soft false positives and negatives.

    Parameters
    ----------
    truth : tf.Tensor of float32, (batch, P, R, I, 2)
        Channel 0 the vertebra (0 or 1), channel 1 the boundary weight w.
    prediction : tf.Tensor, (batch, P, R, I, 1)
        Probability of the vertebra.
    weight_of_fp : tf.Tensor of float32, scalar
        Weight of false positives.

    Returns
    -------
    tf.Tensor of float32, (batch,)
        Loss of each example.
    """
    vertebra, weight = truth[..., 0], truth[..., 1]
    probability = tf.cast(prediction[..., 0], tf.float32)
    false_positive = (1.0 - vertebra) * probability
    false_negative = vertebra * (1.0 - probability)
    return tf.reduce_mean(weight * (weight_of_fp * false_positive + false_negative), axis=[1, 2, 3])


def vertebra_dice(truth: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """Dice of target and prediction, both thresholded at .5; 1 where both are empty.

    Shapes are those of `vertebra_loss`.
    """
    vertebra = tf.cast(truth[..., 0] >= 0.5, tf.float32)
    found = tf.cast(prediction[..., 0] >= 0.5, tf.float32)
    axes = [1, 2, 3]
    overlap = tf.reduce_sum(vertebra * found, axes)
    size = tf.reduce_sum(vertebra, axes) + tf.reduce_sum(found, axes)
    return tf.where(size > 0.0, 2.0 * overlap / tf.maximum(size, 1.0), 1.0)


#: Part of the cross-entropy beside the soft Dice: its mean is over many voxels that are never in doubt.
ENTROPY_PART = 5.0


def occupancy_loss(truth: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """Cross-entropy on occupancies, less its least value, and a soft Dice that is 0 where they are met.

    The Dice has squares in its denominator (Milletari et al. 2016, V-Net): with plain sums a voxel that is
    half vertebra would be driven to 0 or 1. An empty target is met by an empty prediction.

    Parameters
    ----------
    truth : tf.Tensor of float32, (batch, P, R, I, 2)
        Channel 0 the share of a voxel that is vertebra, channel 1 the weight of its cross-entropy.
    prediction : tf.Tensor, (batch, P, R, I, 1)
        Predicted share.

    Returns
    -------
    tf.Tensor of float32, (batch,)
        Loss of each example.
    """
    wanted, weight = truth[..., 0], truth[..., 1]
    found = tf.cast(prediction[..., 0], tf.float32)
    axes = [1, 2, 3]
    entropy = tf.reduce_mean(weight * _divergence(wanted, found), axes)
    missed = tf.reduce_sum(tf.square(wanted - found), axes)
    size = tf.reduce_sum(tf.square(wanted), axes) + tf.reduce_sum(tf.square(found), axes)
    return ENTROPY_PART * entropy + missed / (size + 1.0)


def heatmap_loss(truth: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """Kullback-Leibler divergence, averaged over the voxels, plus one minus the soft Dice of both channels.

    Parameters
    ----------
    truth, prediction : tf.Tensor, (batch, P, R, I, 2)
        Heat and its complement; they sum to 1 in every voxel.

    Returns
    -------
    tf.Tensor of float32, (batch,)
        Loss of each example.
    """
    prediction = tf.cast(prediction, tf.float32)
    smallest = 1e-7
    ratio = tf.maximum(truth, smallest) / tf.maximum(prediction, smallest)
    divergence = tf.reduce_mean(tf.reduce_sum(truth * tf.math.log(ratio), axis=-1), axis=[1, 2, 3])
    return divergence + 1.0 - heatmap_dice(truth, prediction)


def heatmap_dice(truth: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """Soft Dice over both channels: 2 * sum(t * p) / (sum(t) + sum(p)). Shapes as in `heatmap_loss`."""
    prediction = tf.cast(prediction, tf.float32)
    axes = [1, 2, 3, 4]
    overlap = tf.reduce_mean(truth * prediction, axes)
    return 2.0 * overlap / (tf.reduce_mean(truth, axes) + tf.reduce_mean(prediction, axes))


def voxel_weights(truth: tf.Tensor, weight_of_fp: tf.Tensor) -> tf.Tensor:
    """Give what `vertebra_loss` weighs a voxel's error with: w in the vertebra, weight_of_fp * w elsewhere.

    Parameters
    ----------
    truth : tf.Tensor of float32, (batch, P, R, I, 2)
        Channel 0 the vertebra (0 to 1), channel 1 the boundary weight w.
    weight_of_fp : tf.Tensor of float32, scalar
        Weight of false positives.

    Returns
    -------
    tf.Tensor of float32, (batch, P, R, I, 1)
    """
    vertebra, weight = truth[..., :1], truth[..., 1:]
    return weight * (vertebra + weight_of_fp * (1.0 - vertebra))


def softened_divergence(
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    temperature: float,
    weights: tf.Tensor | float = 1.0,
    *,
    t_squared: bool = True,
) -> tf.Tensor:
    """Kullback-Leibler divergence of student from teacher at a temperature T, times T² unless told otherwise.

    For p = sigmoid(z / T) it is, voxel by voxel, p_t (z_t - z_s) / T + softplus(z_s / T) - softplus(z_t / T),
    which needs no logarithm of a probability that may be 0. The factor keeps the gradient's scale at any
    temperature (Hinton et al. 2015, Distilling the knowledge in a neural network).

    Parameters
    ----------
    teacher_logits, student_logits : tf.Tensor, (batch, P, R, I, 1)
        Outputs before the sigmoid.
    temperature : float
        T, above 0.
    weights : tf.Tensor of float32 or float
        Of the voxels, like the logits. The divergence is 0 for equal networks whatever they are.
    t_squared : bool
        Whether to multiply by T².

    Returns
    -------
    tf.Tensor of float32, (batch,)
        Mean over the voxels of each example, at least 0.
    """
    teacher, student = (
        tf.cast(logits, tf.float32) / temperature for logits in (teacher_logits, student_logits)
    )
    surplus = tf.math.softplus(student) - tf.math.softplus(teacher)
    divergence = tf.sigmoid(teacher) * (teacher - student) + surplus
    mean = tf.reduce_mean(weights * divergence, axis=[1, 2, 3, 4])
    return temperature**2 * mean if t_squared else mean


def logit_difference(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, weights: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """Give the mean of the weighted squared difference of two networks' logits: (batch,) in float32.

    Parameters are those of `softened_divergence`.
    """
    difference = tf.cast(teacher_logits, tf.float32) - tf.cast(student_logits, tf.float32)
    return tf.reduce_mean(weights * tf.square(difference), axis=[1, 2, 3, 4])


#: Weight of a voxel at a centre beside one of the background, whose voxels are a thousand times as many; and
#: how much wider than the heat this weight spreads, so that what lies between two bodies counts as well.
CENTRE_WEIGHT, WEIGHT_SPREAD = 40.0, 2.0
#: Parts of the ribs and of the way to the body's centre, a voxel along an axis, in the loss of the labelling
#: network.
RIB_PART, OFFSET_PART = 0.2, 0.2
#: What the labelling network gives of a point, in this order: logits of no vertebra's body and of the levels
#: by rank, logit of a rib, and the way to the centre of the body in voxels along P, R, I.
LEVELS, RIB, OFFSET = slice(0, 1 + MAX_RANK), 1 + MAX_RANK, slice(2 + MAX_RANK, 5 + MAX_RANK)
LABELLING_OUTPUTS = OFFSET.stop


def localiser_loss(truth: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """Divergence of the heat of bodies and of that of the first sacral body, each a weighted mean.

    Not a squared error, whose gradient vanishes where a sigmoid is near 0.

    Parameters
    ----------
    truth : tf.Tensor of float32, (batch, P, R, I, 3)
        See `utils.learning.localiser.localiser_target`.
    prediction : tf.Tensor of float32, (batch, P, R, I, 2)
        See `utils.learning.models.build_localiser`.

    Returns
    -------
    tf.Tensor of float32, (batch,)
        Loss of each example.
    """
    loss = 0.0
    for channel in range(2):
        wanted = truth[..., channel]
        # A Gaussian to the power of 1/s² is one of s times the width.
        weight = truth[..., 2] * (1.0 + (CENTRE_WEIGHT - 1.0) * wanted ** (1.0 / WEIGHT_SPREAD**2))
        loss += _mean_over_voxels(_divergence(wanted, prediction[..., channel]), weight)
    return loss


def localiser_dice(truth: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """Soft Dice of the heat of bodies; 0 where there is none. Shapes as in `localiser_loss`."""
    wanted, found = truth[..., 0], prediction[..., 0] * truth[..., 2]
    axes = [1, 2, 3]
    overlap = tf.reduce_sum(wanted * found, axes)
    return tf.math.divide_no_nan(2.0 * overlap, tf.reduce_sum(wanted, axes) + tf.reduce_sum(found, axes))


def labelling_loss(truth: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of what lies around a point; where a vertebra does, also of a rib, and the way to it.

    The way counts by its distance, not by its square: between two bodies it may lead to either.

    Parameters
    ----------
    truth : tf.Tensor of float32, (batch, 5)
        0 for no vertebra's body or its rank, whether it has a rib, and the way to its centre in voxels.
    found : tf.Tensor of float32, (batch, LABELLING_OUTPUTS)
        See `utils.learning.models.build_labelling_network`.

    Returns
    -------
    tf.Tensor of float32, (batch,)
        Loss of each example.
    """
    level = tf.cast(truth[:, 0], tf.int32)
    levels = tf.nn.sparse_softmax_cross_entropy_with_logits(level, found[:, LEVELS])
    ribs = tf.nn.sigmoid_cross_entropy_with_logits(truth[:, 1], found[:, RIB])
    way = tf.reduce_sum(tf.abs(truth[:, 2:] - found[:, OFFSET]), axis=-1)
    return levels + tf.where(level > 0, RIB_PART * ribs + OFFSET_PART * way, 0.0)


def labelling_accuracy(truth: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """Whether the most probable of no body and the levels is right, for each example."""
    level = tf.argmax(found[:, LEVELS], axis=-1, output_type=tf.int32)
    return tf.cast(level == tf.cast(truth[:, 0], tf.int32), tf.float32)


def _divergence(truth: tf.Tensor, probability: tf.Tensor) -> tf.Tensor:
    """Binary Kullback-Leibler divergence of a probability from the true one, 0 where they agree."""
    p, t = (tf.clip_by_value(values, 1e-6, 1.0 - 1e-6) for values in (probability, truth))
    return t * tf.math.log(t / p) + (1.0 - t) * tf.math.log((1.0 - t) / (1.0 - p))


def _mean_over_voxels(values: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Weighted mean over the voxels of each example; 0 where nothing weighs."""
    axes = [1, 2, 3]
    return tf.math.divide_no_nan(tf.reduce_sum(values * weight, axes), tf.reduce_sum(weight, axes))
