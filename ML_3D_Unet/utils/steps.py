"""The training step: what each replica does, compiled, and the arithmetic of it.

It adds up sums instead of means, and goes through a large batch in chunks. Means over a global batch are
taken once, at the end, from sums and numbers of examples: means of the means of replicas or chunks would give
the examples of a smaller share more weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from .averages import MovingAverage
from .compilation import Compilation
from .feeding import Filled


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


def per_example(values: Any, count: tf.Tensor, name: str = "a loss") -> tf.Tensor:
    """Give one value an example of what a loss or an accuracy function gave.

    Parameters
    ----------
    values : tensor, (), (batch,) or (batch, ...)
        A scalar is the mean of the examples, so each gets it. Several values an example, as losses of Keras
        give for volumes, are averaged.
    count : tensor, scalar
        Number of examples.
    name : str
        Name of the function, for the error.

    Returns
    -------
    tensor of float32, (batch,)

    Raises
    ------
    ValueError
        If it is not known how many axes `values` has.
    """
    values = tf.cast(tf.convert_to_tensor(values), tf.float32)
    if values.shape.rank is None:
        raise ValueError(
            f"Expected {name} to give a scalar or a tensor whose first axis counts the examples, received "
            "one of an unknown number of axes."
        )
    if values.shape.rank == 0:
        return tf.fill([count], values)
    return tf.reduce_mean(values, axis=range(1, values.shape.rank)) if values.shape.rank > 1 else values


def weighted_sum(values: Any, weight: tf.Tensor, name: str) -> tf.Tensor:
    """Sum what a loss or an accuracy function gave by the weights of the examples.

    Parameters
    ----------
    values : tensor, (), (batch,) or (batch, ...)
        See `per_example`.
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
        If it is not known how many axes `values` has.
    """
    values = tf.cast(tf.convert_to_tensor(values), tf.float32)
    if values.shape.rank == 0:
        return values * tf.reduce_sum(weight)
    return tf.reduce_sum(per_example(values, tf.shape(weight)[0], name) * weight)


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


@dataclass(frozen=True, eq=False)
class StepMaker:
    """Makes the compiled steps of a training, see `make`.

    Attributes
    ----------
    strategy : tf.distribute.Strategy
        What the steps run on.
    model : keras.Model
        Whose weights are trained.
    optimizer : keras.optimizers.Optimizer
        Built for the model.
    compute_losses : callable (x, y, training) -> (loss, accuracy)
        See `Trainer.compute_losses`.
    prepare : callable (batch, training) -> (x, y) or (x, y, weight), optional
        See `Trainer`.
    average : MovingAverage, optional
        Moved after every training step.
    accumulate : int
        Parts that a replica's batch is cut into.
    compilation : Compilation, optional
        Whether forward and backward pass are compiled with XLA; by default they are not.
    """

    strategy: tf.distribute.Strategy
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    compute_losses: Callable
    prepare: Callable | None = None
    average: MovingAverage | None = None
    accumulate: int = 1
    compilation: Compilation | None = None

    def make(self, training: bool) -> Callable[[Any, EpochState], tuple[Any, EpochState]]:
        """Compile a step, (batch, state) -> (examples, state).

        Training and validation differ by the flag alone.

        The examples are made by a function of its own, since what they are made of may vary in size: each
        size costs a compilation, and that of the network is the long one.
        """
        run = self._gradients if training else self._summed_losses
        chosen: list[Callable] = []

        @tf.function
        def make_examples(batch):
            return self.strategy.run(self._replica_examples, args=(batch, training))

        @tf.function
        def advance(examples, state):
            sums = self.strategy.run(self._replica_step, args=(examples, chosen[0], training))
            if training and self.average is not None:
                self.average.update()
            return advanced(state, self.strategy.reduce("SUM", sums, axis=None))

        def step(batch, state):
            examples = make_examples(batch)
            if not chosen:  # before `advance` is traced with it
                chosen.append(self._chosen(run, examples, training))
            return examples, advance(examples, state)

        return step

    def _chosen(self, run: Callable, examples: tuple, training: bool) -> Callable:
        """Give forward and backward pass in the form that they are to run in, compiled or not."""
        if self.compilation is None:
            return run
        count = tf.reduce_sum(examples[2])
        part = tf.nest.map_structure(lambda each: each[: -(-len(each) // self.accumulate)], examples)
        return self.compilation.choose(run, (*part, count if training else False))

    def _replica_examples(self, batch: Any, training: bool) -> tuple[Any, Any, tf.Tensor]:
        """Make one replica's examples: x, y, and the weight of each."""
        batch, fill = batch if isinstance(batch, Filled) else (batch, None)
        x, y, *weights = self.prepare(batch, training) if self.prepare else batch
        weight = tf.ones(tf.shape(tf.nest.flatten(x)[0])[:1])
        for factor in (*weights, *([] if fill is None else [fill])):
            weight *= tf.cast(factor, tf.float32)
        return x, y, weight

    def _summed_losses(self, x: Any, y: Any, weight: tf.Tensor, training: bool) -> tuple:
        loss, accuracy = self.compute_losses(x, y, training)
        return weighted_sum(loss, weight, "loss_fn"), weighted_sum(accuracy, weight, "accuracy_fn")

    def _gradients(self, x: Any, y: Any, weight: tf.Tensor, total: tf.Tensor) -> tuple:
        """Give some examples' sums, and their share of the gradient of the mean over the global batch."""
        with tf.GradientTape() as tape:
            loss, accuracy = self._summed_losses(x, y, weight, True)
            objective = self.optimizer.scale_loss(tf.math.divide_no_nan(loss, total))
        return loss, accuracy, tape.gradient(objective, self.model.trainable_variables)

    def _replica_step(self, examples: tuple, run: Callable, training: bool) -> tf.Tensor:
        """Run one replica's share of a step: with `run` its losses, in training also gradients and an update.

        A dataset that came distributed may leave a replica without examples, which layers cannot take: in
        validation it is passed over.
        """
        if tf.nest.flatten(examples)[0].shape[0] == 0:
            if training:
                raise ValueError(
                    "Expected every replica to receive examples in training, received none on one; hand over "
                    "the dataset itself, which Trainer fills up, or drop the remainder."
                )
            return tf.zeros(3, tf.float64)
        count = tf.reduce_sum(examples[2])
        if training:
            total = tf.distribute.get_replica_context().all_reduce("SUM", count)
            loss, accuracy, gradients = added_up(run, examples, self.accumulate, total)
            self.optimizer.apply(gradients, self.model.trainable_variables)
        else:
            loss, accuracy = run(*examples, False)
        return tf.cast(tf.stack([loss, accuracy, count]), tf.float64)
