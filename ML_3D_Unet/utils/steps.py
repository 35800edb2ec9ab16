"""The arithmetic of a training step: sums instead of means, chunks instead of large batches.

Means over a global batch are taken once, at the end, from sums and numbers of examples. Means of the means of
replicas or chunks would give the examples of a smaller share more weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class EpochState(NamedTuple):
    """What a pass over the data has added up so far; it stays on the device until it is looked at."""

    sums: tf.Tensor  # float64 [3]: loss and accuracy, each summed over the examples, and the examples
    step: tf.Tensor  # int64: steps done
    bad_step: tf.Tensor  # int64: first step, from 1, whose loss was not finite; 0 while there is none


def empty_state() -> EpochState:
    """Give the state before the first step."""
    return EpochState(tf.zeros(3, tf.float64), tf.zeros((), tf.int64), tf.zeros((), tf.int64))


def advanced(state: EpochState, sums: tf.Tensor) -> EpochState:
    """Add one step's sums, and remember the step if it is the first whose loss is not finite."""
    step = state.step + 1
    is_first = tf.logical_and(state.bad_step == 0, tf.logical_not(tf.math.is_finite(sums[0])))
    return EpochState(state.sums + sums, step, tf.where(is_first, step, state.bad_step))


def weighted_sum(values: tf.Tensor, weight: tf.Tensor, name: str) -> tf.Tensor:
    """Sum per-example values by their weights; a scalar counts as the mean of the examples.

    Parameters
    ----------
    values : tensor, (batch,) or scalar
        What a loss or an accuracy function gave.
    weight : tensor of float32, (batch,)
        Weight of each example.
    name : str
        Name of the function, for the error.

    Returns
    -------
    tensor of float32, scalar

    Raises
    ------
    ValueError
        If `values` has any other shape.
    """
    values = tf.cast(tf.convert_to_tensor(values), tf.float32)
    if values.shape.rank == 0:
        return values * tf.reduce_sum(weight)
    if values.shape.rank == 1:
        return tf.reduce_sum(values * weight)
    raise ValueError(
        f"Expected {name} to give one value an example (shape [batch]) or one a batch (a scalar), "
        f"received shape {values.shape}."
    )


def chunks(examples: Any, number: int) -> Iterator[Any]:
    """Cut examples into `number` parts along the first axis, as equal as they can be, none of them empty.

    Parameters
    ----------
    examples : nested tensors
        Of a first axis whose length is known when the step is traced.
    number : int
        Parts wanted; fewer are given where there are fewer examples.

    Yields
    ------
    nested tensors
        Structured as `examples`.
    """
    flat = tf.nest.flatten(examples)
    count = flat[0].shape[0]
    sizes = [len(part) for part in np.array_split(np.arange(count), min(number, count))]
    for parts in zip(*(tf.split(tensor, sizes) for tensor in flat)):
        yield tf.nest.pack_sequence_as(examples, list(parts))


def added_up(gradients_fn: Callable, examples: Any, number: int, total: tf.Tensor) -> tuple:
    """Add up losses and gradients over chunks of a batch, one chunk after the other.

    Parameters
    ----------
    gradients_fn : callable (x, y, weight, total) -> (loss, accuracy, gradients)
        Sums over the examples, and gradients of the loss divided by `total`.
    examples : tuple (x, y, weight)
        The whole batch of one replica.
    number : int
        Number of chunks.
    total : tensor, scalar
        Sum of the weights over all chunks and replicas.

    Returns
    -------
    tuple of tensor, tensor, list of tensor
        As of one call with the whole batch.
    """
    if number == 1:
        return gradients_fn(*examples, total)
    result = None
    for chunk in chunks(examples, number):
        # Each chunk waits for the one before, or all would be in memory at the same time.
        done = [tensor for tensor in tf.nest.flatten(result) if tensor is not None]
        with tf.control_dependencies(done):
            chunk = tf.nest.map_structure(tf.identity, chunk)
        found = gradients_fn(*chunk, total)
        result = found if result is None else tf.nest.map_structure(_sum_of_two, result, found)
    return result


def _sum_of_two(first: tf.Tensor | None, second: tf.Tensor | None) -> tf.Tensor | None:
    """Add two gradients; a variable that the loss does not depend on has none."""
    return None if first is None else first + second


def per_example(values: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Give one float32 value an example; a scalar is the mean of the `count` examples, so each gets it."""
    values = tf.cast(tf.convert_to_tensor(values), tf.float32)
    return tf.fill([count], values) if values.shape.rank == 0 else values
