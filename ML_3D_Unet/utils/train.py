"""The training loop: epochs over a dataset, on whatever strategy is current, with an exact resume.

A run lives in one directory, `model_dir`. It holds the checkpoints it resumes from, ``history.csv`` and
``curves.png``, ``last.keras`` and ``best.keras``. Start the same run again and it goes on after the last
checkpoint; on a CPU with deterministic operations the weights are the same, bit for bit, as if it
had never stopped, provided that the data of an epoch depend on nothing but the epoch's number.

    trainer = Trainer(model, learning_rate=1e-3, model_dir="work/model")
    history = trainer.train(train_ds, valid_ds, loss_fn=my_loss, EPOCHS=45, save_step=5)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tqdm.auto import tqdm

from .averages import MovingAverage
from .feeding import Data, EpochPart, Filled, dataset_of_epoch, is_dataset, on_replicas, takes_parts
from .history import (
    HISTORY_FIELDS,
    Row,
    describe_row,
    draw_curves,
    plateau_scale,
    read_history,
    validations_without_gain,
    write_history,
)
from .steps import EpochState, added_up, advanced, empty_state, weighted_sum
from .watch import ProgressBar, TensorBoardLog, WaitClock, first_example_panel

__all__ = ["HISTORY_FIELDS", "EpochPart", "RunOptions", "Trainer", "WorkerLost", "read_history"]

KEEP_CHECKPOINTS = 3
#: How TensorFlow says that a worker no longer answers, by what it was doing when it noticed.
_ERRORS_OF_A_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class WorkerLost(RuntimeError):
    """Another worker of the training ended or no longer answers."""


@dataclass(frozen=True)
class RunOptions:
    """What a run may do beside the plain loop; by default nothing of it.

    Attributes
    ----------
    accumulate : int
        Parts that a replica's batch is cut into, so that it needs the memory of one: gradients are added up
        over the parts, and the update is that of the whole batch (batch normalisation sees the parts).
    moving_average : float
        Decay of a moving average of the weights, which is then what is validated and saved; 0 is none.
    keep_last : bool
        Whether ``best.keras`` is always the last model: where validation shows other data than are meant.
    stop_after : int
        Validations without a lower loss after which the run ends; 0 for never.
    plateau_after : int
        Validations without a lower loss after which the learning rate is lowered; 0 for never.
    plateau_factor : float
        What the rate is multiplied by then.
    save_minutes : float
        Minutes between checkpoints within an epoch; 0 for none.
    tensorboard : bool
        Whether scalars and pictures are written to ``model_dir/tensorboard``.
    """

    accumulate: int = 1
    moving_average: float = 0.0
    keep_last: bool = False
    stop_after: int = 0
    plateau_after: int = 0
    plateau_factor: float = 0.5
    save_minutes: float = 0.0
    tensorboard: bool = False


class EpochResult(NamedTuple):
    """Means over the examples of one pass, how long it took, and the share of it spent waiting for data."""

    loss: float | None = None
    accuracy: float | None = None
    examples: int = 0
    seconds: float = 0.0
    waited: float = 0.0


def _make_optimizer(optimizer: keras.optimizers.Optimizer | str | None, learning_rate: float):
    """Give an optimizer from an instance (used as it is), a Keras name, or None (Adam)."""
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return optimizer
    if optimizer is not None and not isinstance(optimizer, str):
        raise ValueError(
            f"Expected optimizer to be None, a name or a Keras optimizer, received {optimizer!r}."
        )
    config = {"learning_rate": float(learning_rate)}
    return keras.optimizers.get({"class_name": optimizer or "adam", "config": config})


def _is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tell whether this process writes the files: always, unless it is a worker beside a chief."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    if resolver.task_type == "worker" and "chief" not in resolver.cluster_spec().jobs:
        return resolver.task_id == 0
    return resolver.task_type == "chief"


def _has_workers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


class Trainer:
    """Trains a Keras model with a loop of its own, on the strategy that is current when it is made.

    Parameters
    ----------
    model : keras.Model
        Made under the same strategy.
    optimizer : keras.optimizers.Optimizer or str, optional
        An instance is used as it is, with its own learning rate; None is Adam.
    learning_rate : float
        For an optimizer made here.
    model_dir : str or Path
        Where the run lives; made when it starts.
    prepare : callable (batch, training) -> (x, y) or (x, y, weight), optional
        Makes the examples of a replica from its share of a batch, compiled and on the replica's device;
        without it a batch must be such a tuple. `weight`, of shape (batch,), is 1 by default; an example of
        weight 0 fills up a batch and counts for nothing.
    learning_rate_schedule : callable (epoch from 0) -> float, optional
        Sets the learning rate at the beginning of every epoch.
    jit_compile : bool
        Compile forward and backward pass with XLA. Batch normalisation on several replicas cannot be
        compiled so: there it is left out, with a line that says so.
    check_every : int
        Steps between two looks at the loss: for the bar, and to stop at a loss that is not finite.
    options : RunOptions
        Accumulation, moving average, early stopping, plateaus, checkpoints by time, TensorBoard.
    panel : callable (x, y, prediction) -> pictures (n, height, width, 3), optional
        What TensorBoard shows of the first example of the validation, values from 0 to 1.

    Attributes
    ----------
    epoch : tf.Variable
        Epochs finished, int64. During an epoch it is that epoch's number from 0; a loss function that
        depends on the epoch must read it, as a Python number would be frozen when the step is traced.

    Raises
    ------
    ValueError
        If `optimizer` is none of these, or the model computes in float16 on several replicas: Keras looks for
        gradients that are not finite before it adds up those of all replicas, which would then disagree.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | str | None = None,
        learning_rate: float = 1e-3,
        model_dir: str | Path = "tf_ckpt",
        *,
        prepare: Callable[[Any, bool], tuple] | None = None,
        learning_rate_schedule: Callable[[int], float] | None = None,
        jit_compile: bool = False,
        check_every: int = 16,
        options: RunOptions = RunOptions(),
        panel: Callable[[Any, Any, Any], Any] | None = None,
    ) -> None:
        self.model = model
        self.model_dir = Path(model_dir)
        self.prepare = prepare
        self.learning_rate_schedule = learning_rate_schedule
        self.jit_compile = jit_compile
        self.check_every = check_every
        self.options = options
        self.panel = panel
        self.loss_fn: Callable | None = None
        self.accuracy_fn: Callable | None = None
        self.strategy = tf.distribute.get_strategy()
        self.is_chief = _is_chief(self.strategy)
        self.log = TensorBoardLog(self.model_dir / "tensorboard") if options.tensorboard else None
        with self.strategy.scope():
            self._build_state(optimizer, learning_rate)

    def _build_state(self, optimizer: Any, learning_rate: float) -> None:
        """Make everything a checkpoint holds; the optimizer's slots must exist before a step is traced."""
        self.optimizer = self._scaled_where_half(_make_optimizer(optimizer, learning_rate))
        self.optimizer.build(self.model.trainable_variables)
        self._first_rate = float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
        self.epoch = self._variable(0, tf.int64)
        self.best = self._variable(math.inf, tf.float64)
        # Where a checkpoint within an epoch was made: steps, sums of `EpochState`, seconds and those waited.
        self.step = self._variable(0, tf.int64)
        self.sums = self._variable([0.0] * 3, tf.float64)
        self.spent = self._variable([0.0] * 2, tf.float64)
        self.saves = self._variable(0, tf.int64)
        decay = self.options.moving_average
        self.average = MovingAverage(self.model, decay) if decay else None

    def _scaled_where_half(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Scale the loss of a float16 model, whose small gradients would else be 0."""
        is_half = any(layer.compute_dtype == "float16" for layer in self.model.layers)
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if (is_half or scales) and self.strategy.num_replicas_in_sync > 1:
            raise ValueError(
                f"Expected float32 or bfloat16 on {self.strategy.num_replicas_in_sync} replicas, received a "
                "model or an optimizer for float16, whose loss scale works on one replica only."
            )
        return keras.optimizers.LossScaleOptimizer(optimizer) if is_half and not scales else optimizer

    @staticmethod
    def _variable(value: Any, dtype: tf.DType) -> tf.Variable:
        aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA
        return tf.Variable(value, dtype=dtype, trainable=False, aggregation=aggregation)

    def _epoch_number(self) -> int:
        return int(self.epoch.numpy())

    # ------------------------------------------------------------------ one step

    def compute_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, Any]:
        """Run the model and give its loss and accuracy, one value an example or one a batch each.

        The one place that says what is learned: override it to train towards anything else.
        """
        prediction = self.model(x, training=training)
        return self.label_loss(y, prediction, training), self.label_accuracy(y, prediction)

    def label_loss(self, y: Any, prediction: Any, training: bool) -> Any:
        """Give the loss against the labels."""
        return self.loss_fn(y, prediction)

    def label_accuracy(self, y: Any, prediction: Any) -> Any:
        """Give the accuracy against the labels; 0 where none is asked for."""
        return 0.0 if self.accuracy_fn is None else self.accuracy_fn(y, prediction)

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
            loss, accuracy, gradients = added_up(run, examples, self.options.accumulate, total)
            self.optimizer.apply(gradients, self.model.trainable_variables)
        else:
            loss, accuracy = run(*examples, False)
        return tf.cast(tf.stack([loss, accuracy, count]), tf.float64)

    def _make_step(self, training: bool) -> Callable[[Any, EpochState], tuple[Any, EpochState]]:
        """Compile the step; training and validation differ by the flag alone.

        The examples are made by a function of its own, since what they are made of may vary in size: each
        size costs a compilation, and that of the network is the long one.
        """
        run = self._compiled(self._gradients if training else self._summed_losses)

        @tf.function
        def make_examples(batch):
            return self.strategy.run(self._replica_examples, args=(batch, training))

        @tf.function
        def advance(examples, state):
            sums = self.strategy.run(self._replica_step, args=(examples, run, training))
            if training and self.average is not None:
                self.average.update()
            return advanced(state, self.strategy.reduce("SUM", sums, axis=None))

        def step(batch, state):
            examples = make_examples(batch)
            return examples, advance(examples, state)

        return step

    def _compiled(self, function: Callable) -> Callable:
        """Give a function compiled with XLA where that is asked for and possible, else as it is."""
        if not self.jit_compile:
            return function
        if self.strategy.num_replicas_in_sync > 1:
            self._say("XLA is left out: it cannot compile the step for several replicas.")
            return function
        return tf.function(function, jit_compile=True)

    # ------------------------------------------------------------------ data

    def _distributed_epoch(self, data: Data, first_step: int, batch_size: int) -> Any:
        """Give what is iterated over in the current epoch, on the replicas."""
        dataset = dataset_of_epoch(data, self._epoch_number(), first_step, self.strategy)
        if takes_parts(data) and self.strategy.num_replicas_in_sync > 1:
            return dataset
        if not isinstance(dataset, tf.data.Dataset):
            return self._without_steps(dataset, first_step)
        if self._is_unbatched(dataset):
            dataset = dataset.batch(batch_size)
        return on_replicas(dataset, self.strategy)

    @staticmethod
    def _without_steps(distributed: tf.distribute.DistributedDataset, steps: int) -> Iterator[Any]:
        """Pass over the steps done before a resume: a distributed dataset cannot leave them out itself."""
        iterator = iter(distributed)
        for _ in range(steps):
            next(iterator, None)
        return iterator

    def _is_unbatched(self, dataset: tf.data.Dataset) -> bool:
        if self.prepare is not None:
            return False
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or len(spec) not in (2, 3):
            raise ValueError(
                f"Expected a dataset of pairs (x, y), triples (x, y, weight), or prepare, received elements "
                f"{spec}."
            )
        rank = tf.nest.flatten(spec[0])[0].shape.rank
        return rank is not None and rank == len(self.model.inputs[0].shape) - 1

    def _examples_in(self, batch: Any) -> int:
        """Count a global batch's examples from shapes alone, so that nothing waits for the device."""
        parts = self.strategy.experimental_local_results(tf.nest.flatten(batch)[0])
        workers = self.strategy.num_replicas_in_sync // len(parts)
        return sum(int(part.shape[0]) for part in parts) * workers

    def _batches(self, batches: Iterator[Any], size: int | None, seen: int) -> Iterator[tuple[Any, int]]:
        """Yield batches with their number of examples until `size` are reached, of which some were seen."""
        if size is not None and seen >= size:
            return
        for batch in batches:
            count = self._examples_in(batch)
            yield batch, count
            seen += count
            if size is not None and seen >= size:
                return

    # ------------------------------------------------------------------ one epoch

    def _run_pass(
        self, step: Callable, data: Data, size: int | None, *, training: bool, batch_size: int
    ) -> EpochResult:
        """Run one pass over the training or validation data, and give its means.

        Raises
        ------
        ValueError
            If there are no data.
        FloatingPointError
            If a loss is not finite.
        """
        state = self._state_on_resume() if training else empty_state()
        first_step, seen = int(state.step), int(state.sums[2])
        label = f"epoch {self._epoch_number() + 1} " + ("training" if training else "validation")
        clock = WaitClock()
        batches = clock.timed(self._distributed_epoch(data, first_step, batch_size))
        with ProgressBar(label, total=size, initial=seen, clock=clock, visible=self.is_chief) as bar:
            for index, (batch, count) in enumerate(self._batches(batches, size, seen), start=1):
                examples, state = step(batch, state)
                bar.advance(count)
                if index % self.check_every == 0:
                    bar.show(self._look_at(state, label)[0])
                self._after_step(examples, state, label, clock, training=training, is_first=index == 1)
            means, examples_seen = self._look_at(state, label)
        if not examples_seen:
            name = "train_ds" if training else "valid_ds"
            raise ValueError(f"Expected {name} to give at least one batch, received none in {label}.")
        seconds, waited = [clock.seconds, clock.waited] + training * self.spent.numpy()
        return EpochResult(means["loss"], means.get("accuracy"), examples_seen, seconds, waited)

    def _state_on_resume(self) -> EpochState:
        """Give what the training pass of this epoch had added up when it was last saved: mostly nothing."""
        return EpochState(self.sums.read_value(), self.step.read_value(), tf.zeros((), tf.int64))

    def _after_step(
        self,
        examples: tuple,
        state: EpochState,
        label: str,
        clock: WaitClock,
        *,
        training: bool,
        is_first: bool,
    ) -> None:
        """Do what is due between two steps: a checkpoint by time, or the picture of a validation."""
        if not self.is_chief:
            return
        if training and self._is_save_due():
            self._look_at(state, label)
            self._check_weights()
            self._save_within_epoch(state, clock)
        if not training and is_first and self.log is not None and self.panel is not None:
            x, y = (tf.nest.map_structure(self._first_local, part) for part in examples[:2])
            self.log.panel(first_example_panel(self.model, x, y, self.panel), self._epoch_number() + 1)

    def _first_local(self, values: Any) -> tf.Tensor:
        return self.strategy.experimental_local_results(values)[0]

    def _look_at(self, state: EpochState, label: str) -> tuple[dict[str, float], int]:
        """Wait for the device and give the means so far and the examples seen; stop at a loss not finite."""
        loss_sum, accuracy_sum, examples = state.sums.numpy()
        if int(state.bad_step):
            raise FloatingPointError(
                f"{self.model_dir}: expected a finite loss, received NaN or infinity in {label}, "
                f"step {int(state.bad_step)}. The checkpoints are of the time before."
            )
        means = {"loss": float(loss_sum / max(examples, 1))}
        if self.accuracy_fn is not None:
            means["accuracy"] = float(accuracy_sum / max(examples, 1))
        return means, round(examples)

    def _check_weights(self) -> None:
        """Stop before a checkpoint is written if an update left a weight not finite."""
        for variable in self.model.weights:
            if "float" in variable.dtype and not bool(tf.reduce_all(tf.math.is_finite(variable.value))):
                raise FloatingPointError(
                    f"{self.model_dir}: expected finite weights after epoch {self._epoch_number() + 1}, "
                    f"received NaN or infinity in {variable.path}."
                )

    # ------------------------------------------------------------------ files

    def _resume(self) -> list[Row]:
        """Restore the last checkpoint, if there is one, and give the history up to it."""
        self.model_dir.mkdir(parents=True, exist_ok=True)
        # Keras does not hand over the state of its random layers (dropout) to a checkpoint of the model.
        seeds = [variable.value for variable in self.model.variables if "seed_generator" in variable.path]
        names = ("model", "optimizer", "epoch", "best", "step", "sums", "spent", "saves", "average")
        parts = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        checkpoint = tf.train.Checkpoint(seeds=seeds, **parts)
        # Made by the first save otherwise, with a broadcast that workers who do not save would not answer.
        _ = checkpoint.save_counter
        self._manager = tf.train.CheckpointManager(checkpoint, str(self.model_dir), KEEP_CHECKPOINTS)
        if self._manager.latest_checkpoint:
            self._restore(checkpoint, self._manager.latest_checkpoint)
        self._last_save = time.monotonic()
        return read_history(self.model_dir / "history.csv", last_epoch=self._epoch_number())

    @staticmethod
    def _restore(checkpoint: tf.train.Checkpoint, path: str) -> None:
        try:
            checkpoint.restore(path).assert_existing_objects_matched()
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"{path}: expected a checkpoint of this model and optimizer, received another; choose "
                f"another model_dir. ({error})"
            ) from error

    def _is_save_due(self) -> bool:
        minutes = self.options.save_minutes
        return bool(minutes) and time.monotonic() - self._last_save >= 60 * minutes

    def _save_checkpoint(self) -> None:
        """Write a checkpoint under a number that no other has had, so that none is ever written over."""
        self.saves.assign_add(1)
        if self.is_chief:
            self._manager.save(checkpoint_number=int(self.saves.numpy()))
        self._last_save = time.monotonic()

    def _save_within_epoch(self, state: EpochState, clock: WaitClock) -> None:
        spent_before = self.spent.numpy()
        self.step.assign(state.step)
        self.sums.assign(state.sums)
        self.spent.assign(spent_before + tf.constant([clock.seconds, clock.waited], tf.float64))
        self._save_checkpoint()
        # The clock runs on; what it has shown so far is counted when it is read at the end.
        self.spent.assign(spent_before)

    def _save_epoch(self, history: list[Row]) -> None:
        """Write what an epoch leaves, the checkpoint last: what is not in it will be run again."""
        if self.is_chief:
            write_history(self.model_dir / "history.csv", history)
            if self.log is not None:
                self.log.scalars(history[-1])
        self.epoch.assign_add(1)
        for variable in (self.step, self.sums, self.spent):
            variable.assign(tf.zeros_like(variable))
        self._save_checkpoint()

    def _save_model(self, name: str) -> None:
        temporary = self.model_dir / f".{name}"
        self.model.save(temporary)
        temporary.replace(self.model_dir / name)

    def _save_models(self, row: Row) -> None:
        """Save the model as the last, and as the best if its validation loss is the lowest so far.

        Without validation data the training loss decides. With `keep_last` every model counts as the best.
        """
        loss = row["loss"] if row["val_loss"] is None else row["val_loss"]
        is_best = loss < float(self.best.numpy())
        if is_best:
            self.best.assign(loss)
        if self.is_chief:
            self._save_model("last.keras")
            if is_best or self.options.keep_last:
                self._save_model("best.keras")

    # ------------------------------------------------------------------ the run

    def _set_learning_rate(self, history: list[Row]) -> float:
        """Set the rate of an epoch where something says what it is, and give it."""
        rate, options = self._first_rate, self.options
        if self.learning_rate_schedule is not None:
            rate = self.learning_rate_schedule(self._epoch_number())
        if self.learning_rate_schedule is not None or options.plateau_after:
            scale = plateau_scale(history, options.plateau_after, options.plateau_factor)
            self.optimizer.learning_rate.assign(rate * scale)
        # By way of its text: the float32 nearest to 0.001 is to be reported as 0.001.
        return float(str(keras.ops.convert_to_numpy(self.optimizer.learning_rate)))

    def _say(self, text: str) -> None:
        if self.is_chief:
            tqdm.write(text)

    def _check_arguments(self, train_ds: Any, valid_ds: Any, loss_fn: Any, counts: dict[str, Any]) -> None:
        for name, data in (("train_ds", train_ds), ("valid_ds", valid_ds)):
            missing = data is None and name == "train_ds"
            if missing or not (data is None or callable(data) or is_dataset(data)):
                raise ValueError(
                    f"Expected {name} to be a dataset or a function epoch -> dataset, received {data!r}."
                )
        if not callable(loss_fn):
            raise ValueError(f"Expected loss_fn(y_true, y_pred), received {loss_fn!r}.")
        for name, count in counts.items():
            if count is not None and (isinstance(count, bool) or int(count) != count or count < 1):
                raise ValueError(f"Expected {name} to be a positive integer, received {count!r}.")

    def train(
        self,
        train_ds: Data | None = None,
        valid_ds: Data | None = None,
        train_size: int | None = None,
        validation_size: int | None = None,
        loss_fn: Callable | None = None,
        accuracy_fn: Callable | None = None,
        BATCH_SIZE: int = 1,
        EPOCHS: int = 1,
        save_step: int = 1,
    ) -> list[Row]:
        """Train until `EPOCHS` epochs are done, going on from the last checkpoint in `model_dir`.

        Losses are averaged over examples: over the replicas and the batches their sums and their numbers
        are added up, so that a smaller last batch counts for what it holds. Losses that layers add of
        themselves (weight regularisation) are not looked at.

        Parameters
        ----------
        train_ds, valid_ds : tf.data.Dataset, tf.distribute.DistributedDataset, or callable
            Batches (x, y) or (x, y, weight) of all replicas together, or what `prepare` makes them of; x and
            y may be nested, and the first axis of every tensor counts the examples. On several replicas a
            batch is filled up to a multiple of their number with examples of weight 0. Batches of the same
            size run the same compiled step; a smaller last one is compiled for itself. A callable gives the
            dataset of an epoch from its number, which starts at 0. A callable of (epoch, part) is told, by
            an `EpochPart`, which steps and whose batches are asked for; it gives the batches of single
            replicas, and nothing more is done to them.
        train_size, validation_size : int, optional
            Examples an epoch: where an endless dataset is left, and the length of the bar. None is until
            the dataset ends.
        loss_fn, accuracy_fn : callable (y_true, y_pred) -> tensor
            Values of shape [batch], or a scalar, the mean of the batch. The loss is needed.
        BATCH_SIZE : int
            Examples of all replicas together in a batch, for a dataset that gives single examples; batches
            are taken as they come.
        EPOCHS : int
            Epochs at the end, those before a resume included.
        save_step : int
            Every so many epochs, and after the last, the run validates, saves ``last.keras`` and
            ``best.keras`` and draws the curves. Checkpoint and history are written after every epoch.

        Returns
        -------
        list of dict
            A row an epoch, counted from 1, with the fields in `HISTORY_FIELDS`; None for what was not
            measured. Seconds, examples per second and the share of time spent waiting for data are those of
            the training alone.

        Raises
        ------
        ValueError
            If an argument is not what was expected, there are no data, or `model_dir` holds another run.
        FloatingPointError
            If a loss or a weight is not finite; it says in which epoch and step.
        WorkerLost
            If another worker of the same training ended.
        """
        sizes = {"train_size": train_size, "validation_size": validation_size, "BATCH_SIZE": BATCH_SIZE}
        self._check_arguments(
            train_ds, valid_ds, loss_fn, {**sizes, "EPOCHS": EPOCHS, "save_step": save_step}
        )
        self.loss_fn, self.accuracy_fn = loss_fn, accuracy_fn
        with self.strategy.scope(), self._naming_lost_workers():
            history = self._resume()
            self._announce(EPOCHS, has_validation=valid_ds is not None)
            run_training = self._make_pass(train_ds, train_size, BATCH_SIZE, training=True)
            run_validation = self._make_pass(valid_ds, validation_size, BATCH_SIZE, training=False)
            for number in range(self._epoch_number() + 1, EPOCHS + 1):
                if self._has_stopped(history):
                    break
                keep = number % save_step == 0 or number == EPOCHS
                row = self._run_epoch(run_training, run_validation if keep else None, history, keep=keep)
                self._save_epoch(history)
                self._say(describe_row(row, EPOCHS))
            self._wait_for_workers()
        return history

    def _wait_for_workers(self) -> None:
        """Let no worker go on before the chief has written the last file."""
        if _has_workers(self.strategy):
            count = tf.function(lambda: self.strategy.reduce("SUM", self.strategy.run(tf.ones, ((),)), None))
            float(count())

    @contextmanager
    def _naming_lost_workers(self) -> Iterator[None]:
        try:
            yield
        except _ERRORS_OF_A_LOST_WORKER as error:
            if not _has_workers(self.strategy):
                raise
            raise WorkerLost(
                f"{self.model_dir}: expected all workers to answer in epoch {self._epoch_number() + 1}, lost "
                "one or more. Start all workers again with the same command: the training goes on from its "
                f"last checkpoint. ({type(error).__name__})"
            ) from error

    def _announce(self, epochs: int, *, has_validation: bool) -> None:
        done = self._epoch_number()
        if done >= epochs:
            self._say(f"{self.model_dir}: training is already complete, {done} of {epochs} epochs.")
            return
        step = int(self.step.numpy())
        if done or step:
            where = f" and step {step} of the next" if step else ""
            self._say(f"{self.model_dir}: going on after epoch {done}{where}, of {epochs} epochs.")
        if not has_validation:
            self._say("No validation data: best.keras is the model with the lowest training loss.")

    def _has_stopped(self, history: list[Row]) -> bool:
        after = self.options.stop_after
        if not after or validations_without_gain(history) < after:
            return False
        self._say(
            f"{self.model_dir}: stopped after epoch {self._epoch_number()}, as {after} validations brought "
            "no lower loss."
        )
        return True

    def _make_pass(
        self, data: Data | None, size: int | None, batch_size: int, *, training: bool
    ) -> Callable[[], EpochResult] | None:
        """Give a function that runs one pass over `data`, its step compiled once; None without data."""
        if data is None:
            return None
        step = self._make_step(training)
        return lambda: self._run_pass(step, data, size, training=training, batch_size=batch_size)

    def _run_epoch(
        self,
        run_training: Callable[[], EpochResult],
        run_validation: Callable[[], EpochResult] | None,
        history: list[Row],
        *,
        keep: bool,
    ) -> Row:
        """Train for one epoch, validate if asked to, and add its row to the history.

        An epoch to `keep` leaves models and curves.
        """
        learning_rate = self._set_learning_rate(history)
        trained = run_training()
        self._check_weights()
        with self._as_saved() if keep else nullcontext():
            validated = run_validation() if run_validation else EpochResult()
            row = self._row(trained, validated, learning_rate)
            history.append(row)
            if keep:
                self._save_models(row)
        if keep and self.is_chief:
            draw_curves(self.model_dir / "curves.png", history)
        return row

    def _as_saved(self) -> AbstractContextManager[None]:
        """Let the model hold, for a block, what is validated and saved: the averages, if there are any."""
        return nullcontext() if self.average is None else self.average.in_place_of_weights()

    def _row(self, trained: EpochResult, validated: EpochResult, learning_rate: float) -> Row:
        return {
            "epoch": self._epoch_number() + 1,
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "val_loss": validated.loss,
            "val_accuracy": validated.accuracy,
            "learning_rate": learning_rate,
            "seconds": trained.seconds,
            "examples_per_second": trained.examples / max(trained.seconds, 1e-9),
            "data_wait_share": trained.waited / max(trained.seconds, 1e-9),
        }
