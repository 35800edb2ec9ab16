"""Processes that train together: who writes, who waits, and what happens when one is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf

#: How TensorFlow says that a worker no longer answers, by what it was doing when it noticed.
_ERRORS_OF_A_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class WorkerLost(RuntimeError):
    """Another worker of the training ended or no longer answers."""


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tell whether this process writes the files: always, unless it is a worker beside a chief."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    if resolver.task_type == "worker" and "chief" not in resolver.cluster_spec().jobs:
        return resolver.task_id == 0
    return resolver.task_type == "chief"


def _has_workers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def wait_for_workers(strategy: tf.distribute.Strategy) -> None:
    """Let no worker go on before the chief has written the last file."""
    if _has_workers(strategy):
        count = tf.function(lambda: strategy.reduce("SUM", strategy.run(tf.ones, ((),)), None))
        float(count())


@contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy, place: Callable[[], str]) -> Iterator[None]:
    """Turn the errors by which TensorFlow shows that a worker is gone into a `WorkerLost`.

    Parameters
    ----------
    strategy : tf.distribute.Strategy
        Of the training; without workers errors stay what they are.
    place : callable () -> str
        Begins the message: which run expected its workers to answer, and when.
    """
    try:
        yield
    except _ERRORS_OF_A_LOST_WORKER as error:
        if not _has_workers(strategy):
            raise
        raise WorkerLost(
            f"{place()}, lost one or more. Start all workers again with the same command: the training goes "
            f"on from its last checkpoint. ({type(error).__name__})"
        ) from error
