"""Where a run is: the variables that a checkpoint holds beside a model and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from .steps import EpochState
from .watch import WaitClock


def _variable(value: Any, dtype: tf.DType) -> tf.Variable:
    aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return tf.Variable(value, dtype=dtype, trainable=False, aggregation=aggregation)


class RunState:
    """How far a run has come; made under the strategy that is current.

    Attributes
    ----------
    epoch : tf.Variable
        Epochs finished, int64; during an epoch its number from 0.
    best : tf.Variable
        Lowest loss so far, float64.
    step, sums, spent : tf.Variable
        Where a checkpoint within an epoch was made: steps; the sums of `EpochState`; seconds, and those
        waited.
    saves : tf.Variable
        Checkpoints written so far, int64.
    """

    def __init__(self) -> None:
        self.epoch = _variable(0, tf.int64)
        self.best = _variable(math.inf, tf.float64)
        self.step = _variable(0, tf.int64)
        self.sums = _variable([0.0] * 3, tf.float64)
        self.spent = _variable([0.0] * 2, tf.float64)
        self.saves = _variable(0, tf.int64)

    def variables(self) -> dict[str, tf.Variable]:
        """Give all variables by the names that checkpoints know them by."""
        return dict(vars(self))

    def finished(self) -> int:
        """Give the number of epochs that are finished."""
        return int(self.epoch.numpy())

    def of_epoch(self) -> EpochState:
        """Give what the training of this epoch had added up when it was last saved: mostly nothing."""
        return EpochState(self.sums.read_value(), self.step.read_value(), tf.zeros((), tf.int64))

    def next_save(self) -> int:
        """Give the number of the next checkpoint."""
        self.saves.assign_add(1)
        return int(self.saves.numpy())

    def finish_epoch(self) -> None:
        """Count an epoch, and begin the next."""
        self.epoch.assign_add(1)
        for variable in (self.step, self.sums, self.spent):
            variable.assign(tf.zeros_like(variable))

    @contextmanager
    def within_epoch(self, state: EpochState, clock: WaitClock) -> Iterator[None]:
        """Hold for a block, in which a checkpoint is written, what an epoch has added up so far."""
        spent_before = self.spent.numpy()
        self.step.assign(state.step)
        self.sums.assign(state.sums)
        self.spent.assign(spent_before + tf.constant([clock.seconds, clock.waited], tf.float64))
        yield
        # The clock runs on; what it has shown so far is counted when it is read at the end.
        self.spent.assign(spent_before)

    def is_best(self, loss: float) -> bool:
        """Tell whether a loss is the lowest so far, and remember it if it is."""
        if not loss < float(self.best.numpy()):
            return False
        self.best.assign(loss)
        return True
