"""A moving average of a model's weights, kept beside them on the same devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf


class MovingAverage(tf.Module):
    """Averages of all floating-point weights of a model, the statistics of batch normalisation included.

    Keras' own average (`use_ema` of its optimizers) leaves the statistics out, so that averaged weights
    would be used with statistics of other weights.

    Parameters
    ----------
    model : keras.Model
        Built, under the strategy that is current.
    decay : float
        Share of the old average that each update keeps, in [0, 1). Update t keeps at most
        (1 + t) / (10 + t), so that the first weights, which are random, are soon forgotten.

    Raises
    ------
    ValueError
        If `decay` is outside [0, 1).
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"Expected the decay of the moving average to be in [0, 1), received {decay!r}.")
        self.decay = decay
        self.weights = [weight.value for weight in model.weights if "float" in weight.dtype]
        made = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.averages = [tf.Variable(weight, **made) for weight in self.weights]
        self.updates = tf.Variable(0, dtype=tf.int64, **made)

    def update(self) -> None:
        """Move the averages towards the weights; called once a step, outside the replicas."""
        count = tf.cast(self.updates, tf.float32)
        keep = tf.minimum(self.decay, (1.0 + count) / (10.0 + count))
        for average, weight in zip(self.averages, self.weights):
            average.assign(average + (1.0 - tf.cast(keep, average.dtype)) * (weight - average))
        self.updates.assign_add(1)

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Let the model hold the averages for the length of a block, and its own weights again after it."""
        own = [weight.numpy() for weight in self.weights]
        for weight, average in zip(self.weights, self.averages):
            weight.assign(average.numpy())
        try:
            yield
        finally:
            for weight, value in zip(self.weights, own):
                weight.assign(value)
