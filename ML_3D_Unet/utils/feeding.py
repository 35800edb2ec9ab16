"""From what `Trainer.train` is given as data to the batches of one epoch on the devices that train.

Whatever the number of replicas, an epoch holds every example once: a batch that cannot be shared out evenly
is filled up with repeated examples of weight 0, so that none is lost, none counts twice, and no replica
goes without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

DATASETS = (tf.data.Dataset, tf.distribute.DistributedDataset)
Data = tf.data.Dataset | tf.distribute.DistributedDataset | Callable[..., Any]


class EpochPart(NamedTuple):
    """What one input pipeline is asked for of an epoch. There is one pipeline a worker process."""

    first_step: int = 0
    """Steps to leave out at the beginning, because they were done before a resume."""
    pipeline: int = 0
    """Number of this pipeline, from 0."""
    pipelines: int = 1
    """Number of pipelines."""
    replicas: int = 1
    """Replicas of all pipelines; each pipeline feeds an equal share of them, a batch each a step."""


class Filled(NamedTuple):
    """A batch that was filled up, and the weight of each of its examples: 1, or 0 for a repeated one."""

    batch: Any
    weight: tf.Tensor


def count_examples(tensors: Any) -> tf.Tensor:
    """Give the length of the first axis, which counts the examples."""
    return tf.shape(tf.nest.flatten(tensors)[0])[0]


def is_dataset(data: Any) -> bool:
    """Tell a dataset of TensorFlow, distributed or not, from a function that gives one."""
    return isinstance(data, DATASETS)


def takes_parts(data: Any) -> bool:
    """Tell whether `data` is a function of an epoch and its `EpochPart`, and not of the epoch alone."""
    return not is_dataset(data) and "part" in inspect.signature(data).parameters


def filled_to_replicas(dataset: tf.data.Dataset, replicas: int) -> tf.data.Dataset:
    """Fill every batch up to a multiple of the replicas by repeating its first example with weight 0.

    Parameters
    ----------
    dataset : tf.data.Dataset
        Batches; the first axis of every tensor counts the examples.
    replicas : int
        Number that shares a batch.

    Returns
    -------
    tf.data.Dataset of Filled
    """
    is_tuple = isinstance(dataset.element_spec, tuple)

    def fill(*parts: Any) -> Filled:
        batch = parts if is_tuple else parts[0]
        count = count_examples(batch)
        places = tf.range((count + replicas - 1) // replicas * replicas)
        is_real = places < count
        chosen = tf.where(is_real, places, 0)
        repeated = tf.nest.map_structure(lambda tensor: tf.gather(tensor, chosen), batch)
        return Filled(repeated, tf.cast(is_real, tf.float32))

    return dataset.map(fill, num_parallel_calls=tf.data.AUTOTUNE)


def dataset_of_epoch(data: Data, epoch: int, first_step: int, strategy: tf.distribute.Strategy) -> Any:
    """Give the data of an epoch from a step on; those of a dataset are not shared out over the replicas yet.

    Parameters
    ----------
    data : dataset, or callable (epoch) or (epoch, part)
        See `Trainer.train`.
    epoch, first_step : int
        From 0.
    strategy : tf.distribute.Strategy
        What the training runs on.

    Returns
    -------
    tf.data.Dataset or tf.distribute.DistributedDataset
        A function of parts gives its dataset distributed already, or as it is where there is one replica.

    Raises
    ------
    ValueError
        If a function gives anything else.
    """
    if not takes_parts(data):
        dataset = data if is_dataset(data) else data(epoch)
        dataset = _checked(dataset, epoch)
        return dataset.skip(first_step) if isinstance(dataset, tf.data.Dataset) else dataset
    if strategy.num_replicas_in_sync == 1:
        return _checked(data(epoch, EpochPart(first_step)), epoch)

    def of_pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        pipelines = (context.input_pipeline_id, context.num_input_pipelines)
        return _checked(data(epoch, EpochPart(first_step, *pipelines, context.num_replicas_in_sync)), epoch)

    return strategy.distribute_datasets_from_function(of_pipeline)


def _checked(dataset: Any, epoch: int) -> Any:
    if not is_dataset(dataset):
        raise ValueError(f"Expected a dataset of epoch {epoch}, received {dataset!r}.")
    return dataset


def on_replicas(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> Any:
    """Share the batches of a dataset out over the replicas, and bring them to the devices ahead of time."""
    if strategy.num_replicas_in_sync > 1:
        filled = filled_to_replicas(dataset, strategy.num_replicas_in_sync)
        return strategy.experimental_distribute_dataset(filled)
    gpus = tf.config.list_logical_devices("GPU")
    return prefetched_on(dataset, gpus[0].name) if gpus else dataset


def prefetched_on(dataset: tf.data.Dataset, device: str) -> tf.data.Dataset:
    """Copy batches to a device while it still works on the one before."""
    return dataset.apply(tf.data.experimental.prefetch_to_device(device, buffer_size=2))


def batches_of_epoch(
    data: Data,
    epoch: int,
    first_step: int,
    strategy: tf.distribute.Strategy,
    *,
    batch_size: int,
    rank: int | None,
) -> Any:
    """Give what is iterated over in an epoch, on the replicas.

    Parameters
    ----------
    data, epoch, first_step, strategy
        See `dataset_of_epoch`.
    batch_size : int
        Examples in a batch, for a dataset that gives single examples.
    rank : int, optional
        Axes of a batch of the model's input: elements of one less are single examples. None if it is not the
        model that receives them.

    Returns
    -------
    iterable
        Batches of all replicas together.

    Raises
    ------
    ValueError
        If a function gives no dataset, or the dataset gives no pairs or triples where batches are to be made.
    """
    dataset = dataset_of_epoch(data, epoch, first_step, strategy)
    if takes_parts(data) and strategy.num_replicas_in_sync > 1:
        return dataset
    if not isinstance(dataset, tf.data.Dataset):
        return _without_steps(dataset, first_step)
    if rank is not None and _is_unbatched(dataset, rank):
        dataset = dataset.batch(batch_size)
    return on_replicas(dataset, strategy)


def _without_steps(distributed: tf.distribute.DistributedDataset, steps: int) -> Iterator[Any]:
    """Pass over the steps done before a resume: a distributed dataset cannot leave them out itself."""
    iterator = iter(distributed)
    for _ in range(steps):
        next(iterator, None)
    return iterator


def _is_unbatched(dataset: tf.data.Dataset, rank: int) -> bool:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            "Expected a dataset of pairs (x, y), triples (x, y, weight), or prepare, received elements "
            f"{spec}."
        )
    return tf.nest.flatten(spec[0])[0].shape.rank == rank - 1


def counted(
    batches: Iterator[Any], size: int | None, seen: int, strategy: tf.distribute.Strategy
) -> Iterator[tuple[Any, int]]:
    """Yield batches with their number of examples until `size` are reached, of which some were seen."""
    if size is not None and seen >= size:
        return
    for batch in batches:
        count = _examples_in(batch, strategy)
        yield batch, count
        seen += count
        if size is not None and seen >= size:
            return


def _examples_in(batch: Any, strategy: tf.distribute.Strategy) -> int:
    """Count a global batch's examples from shapes alone, so that nothing waits for the device."""
    parts = strategy.experimental_local_results(tf.nest.flatten(batch)[0])
    workers = strategy.num_replicas_in_sync // len(parts)
    return sum(int(part.shape[0]) for part in parts) * workers
