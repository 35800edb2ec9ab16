"""The training loop: epochs over a dataset, on whatever strategy is current, with an exact resume.

A run lives in one directory, `model_dir`. It holds the checkpoints it resumes from, ``history.csv`` and
``curves.png``, ``last.keras`` and ``best.keras``. Start the same run again and it goes on after the last
epoch it finished; on a CPU with deterministic operations the weights are the same, bit for bit, as if it
had never stopped, provided that the data of an epoch depend on nothing but the epoch's number.

    trainer = Trainer(model, learning_rate=1e-3, model_dir="work/model")
    history = trainer.train(train_ds, valid_ds, loss_fn=my_loss, EPOCHS=45, save_step=5)
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tqdm.auto import tqdm

HISTORY_FIELDS = (
    "epoch",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "seconds",
    "examples_per_second",
)
KEEP_CHECKPOINTS = 3

Row = dict[str, int | float | None]
Data = tf.data.Dataset | tf.distribute.DistributedDataset | Callable[[int], Any]


_DATASETS = (tf.data.Dataset, tf.distribute.DistributedDataset)


class EpochState(NamedTuple):
    """What a pass over the data has added up so far; it stays on the device until it is looked at."""

    sums: tf.Tensor  # float64 [3]: loss and accuracy, each summed over the examples, and the examples
    step: tf.Tensor  # int64: steps done
    bad_step: tf.Tensor  # int64: first step, from 1, whose loss was not finite; 0 while there is none


class EpochResult(NamedTuple):
    """Means over the examples of one pass, and how long it took."""

    loss: float | None
    accuracy: float | None
    examples: int
    seconds: float


def _empty_state() -> EpochState:
    return EpochState(tf.zeros(3, tf.float64), tf.zeros((), tf.int64), tf.zeros((), tf.int64))


def _advance(state: EpochState, sums: tf.Tensor) -> EpochState:
    """Add one step's sums, and remember the step if it is the first whose loss is not finite."""
    step = state.step + 1
    is_first = tf.logical_and(state.bad_step == 0, tf.logical_not(tf.math.is_finite(sums[0])))
    return EpochState(state.sums + sums, step, tf.where(is_first, step, state.bad_step))


def _count_examples(tensors: Any) -> tf.Tensor:
    return tf.shape(tf.nest.flatten(tensors)[0])[0]


def _sum_over_examples(values: tf.Tensor, count: tf.Tensor, name: str) -> tf.Tensor:
    """Sum per-example values; a scalar counts as the mean of its `count` examples."""
    values = tf.cast(tf.convert_to_tensor(values), tf.float32)
    if values.shape.rank == 0:
        return values * count
    if values.shape.rank == 1:
        return tf.reduce_sum(values)
    raise ValueError(
        f"Expected {name} to give one value an example (shape [batch]) or one a batch (a scalar), "
        f"received shape {values.shape}."
    )


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
    return resolver.task_type == "chief" or (resolver.task_type == "worker" and resolver.task_id == 0)


def _trim_to_replicas(dataset: tf.data.Dataset, replicas: int) -> tf.data.Dataset:
    """Cut every batch to a multiple of the replicas, and leave out batches smaller than that.

    A replica without an example would put a mean over nothing, NaN, into batch normalisation's averages.
    """

    is_tuple = isinstance(dataset.element_spec, tuple)

    def trim(*parts):
        batch = parts if is_tuple else parts[0]
        keep = _count_examples(batch) // replicas * replicas
        return tf.nest.map_structure(lambda tensor: tensor[:keep], batch)

    trimmed = dataset.map(trim, num_parallel_calls=tf.data.AUTOTUNE)
    return trimmed.filter(lambda *batch: _count_examples(batch) > 0)


def read_history(path: Path, *, last_epoch: int) -> list[Row]:
    """Read the rows of a history up to `last_epoch`; an absent file has none.

    Rows beyond it belong to an epoch that ended without its checkpoint, and will be run again.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [
            {key: float(text) if text else None for key, text in row.items()} for row in csv.DictReader(file)
        ]
    return [{**row, "epoch": int(row["epoch"])} for row in rows if row["epoch"] <= last_epoch]


def write_history(path: Path, history: list[Row]) -> None:
    """Write the history as CSV, whole, under a temporary name that is then renamed."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_FIELDS)
        writer.writeheader()
        writer.writerows(history)
    temporary.replace(path)


def draw_curves(path: Path, history: list[Row]) -> None:
    """Draw loss and accuracy of training and validation over the epochs as a PNG."""
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            rows = [row for row in history if row[key] is not None]
            if rows:
                axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], ".-", label=label)
        axes.set(xlabel="epoch", title=name)
        if axes.lines:
            axes.legend()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def _describe(row: Row, epochs: int) -> str:
    """Give the line printed after an epoch."""
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    values = [f"{name} {row[name]:.4f}" for name in names if row[name] is not None]
    speed = f"{row['seconds']:.1f} s, {row['examples_per_second']:.2f} examples/s"
    return f"epoch {row['epoch']}/{epochs}: {', '.join(values)} ({speed})"


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
    prepare : callable (batch, training) -> (x, y), optional
        Run on every batch inside the compiled step; without it a batch must be a pair (x, y).
    learning_rate_schedule : callable (epoch from 0) -> float, optional
        Sets the learning rate at the beginning of every epoch.
    jit_compile : bool
        Compile forward and backward pass with XLA. Batch normalisation on several replicas cannot be
        compiled so: there it is left out, with a line that says so.
    check_every : int
        Steps between two looks at the loss: for the bar, and to stop at a loss that is not finite.

    Attributes
    ----------
    epoch : tf.Variable
        Epochs finished, int64. During an epoch it is that epoch's number from 0; a loss function that
        depends on the epoch must read it, as a Python number would be frozen when the step is traced.

    Raises
    ------
    ValueError
        If `optimizer` is none of these.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | str | None = None,
        learning_rate: float = 1e-3,
        model_dir: str | Path = "tf_ckpt",
        *,
        prepare: Callable[[Any, bool], tuple[Any, Any]] | None = None,
        learning_rate_schedule: Callable[[int], float] | None = None,
        jit_compile: bool = False,
        check_every: int = 16,
    ) -> None:
        self.model = model
        self.model_dir = Path(model_dir)
        self.prepare = prepare
        self.learning_rate_schedule = learning_rate_schedule
        self.jit_compile = jit_compile
        self.check_every = check_every
        self.loss_fn: Callable | None = None
        self.accuracy_fn: Callable | None = None
        self.strategy = tf.distribute.get_strategy()
        self.is_chief = _is_chief(self.strategy)
        with self.strategy.scope():
            self._build_state(optimizer, learning_rate)

    def _build_state(self, optimizer: Any, learning_rate: float) -> None:
        """Make everything a checkpoint holds; the optimizer's slots must exist before a step is traced."""
        self.optimizer = _make_optimizer(optimizer, learning_rate)
        is_half = any(layer.compute_dtype == "float16" for layer in self.model.layers)
        if is_half and not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(self.model.trainable_variables)
        one_value = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.epoch = tf.Variable(0, dtype=tf.int64, name="epoch", **one_value)
        self.best = tf.Variable(math.inf, dtype=tf.float64, name="best", **one_value)

    def _epoch_number(self) -> int:
        return int(self.epoch.numpy())

    # ------------------------------------------------------------------ one step

    def compute_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, Any]:
        """Run the model and give its loss and accuracy, one value an example or one a batch each.

        The one place that says what is learned: override it to train towards anything else.
        """
        prediction = self.model(x, training=training)
        accuracy = 0.0 if self.accuracy_fn is None else self.accuracy_fn(y, prediction)
        return self.loss_fn(y, prediction), accuracy

    def _summed_losses(self, x: Any, y: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.cast(_count_examples(x), tf.float32)
        loss, accuracy = self.compute_losses(x, y, training)
        return (
            _sum_over_examples(loss, count, "loss_fn"),
            _sum_over_examples(accuracy, count, "accuracy_fn"),
        )

    def _gradients(self, x: Any, y: Any, global_count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list]:
        """Give this replica's sums, and its share of the gradient of the mean over the global batch."""
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss, accuracy = self._summed_losses(x, y, True)
            objective = self.optimizer.scale_loss(loss / global_count)
        return loss, accuracy, tape.gradient(objective, variables)

    def _replica_step(self, batch: Any, gradients_fn: Callable | None) -> tf.Tensor:
        """Run one replica's share of a step, with an update if `gradients_fn` is given.

        The last batch of a validation may leave a replica without examples, which layers cannot take.
        """
        training = gradients_fn is not None
        if tf.nest.flatten(batch)[0].shape[0] == 0:
            return tf.zeros(3, tf.float64)
        x, y = self.prepare(batch, training) if self.prepare else batch
        count = tf.cast(_count_examples(x), tf.float32)
        if training:
            context = tf.distribute.get_replica_context()
            loss, accuracy, gradients = gradients_fn(x, y, context.all_reduce("SUM", count))
            self.optimizer.apply(gradients, self.model.trainable_variables)
        else:
            loss, accuracy = self._summed_losses(x, y, False)
        return tf.cast(tf.stack([loss, accuracy, count]), tf.float64)

    def _make_step(self, training: bool) -> Callable[[Any, EpochState], EpochState]:
        """Compile the step; training and validation differ by the flag alone."""
        gradients_fn = self._make_gradients_fn() if training else None

        @tf.function
        def step(batch, state):
            sums = self.strategy.run(self._replica_step, args=(batch, gradients_fn))
            return _advance(state, self.strategy.reduce("SUM", sums, axis=None))

        return step

    def _make_gradients_fn(self) -> Callable:
        if not self.jit_compile:
            return self._gradients
        if self.strategy.num_replicas_in_sync > 1:
            self._say("XLA is left out: it cannot compile the step for several replicas.")
            return self._gradients
        return tf.function(self._gradients, jit_compile=True)

    # ------------------------------------------------------------------ data

    def _dataset_of_epoch(self, data: Data, *, training: bool, batch_size: int) -> Any:
        """Give what is iterated over in the current epoch, distributed over the replicas."""
        dataset = data
        if not isinstance(data, _DATASETS):
            dataset = data(self._epoch_number())
        if not isinstance(dataset, _DATASETS):
            raise ValueError(f"Expected a dataset of epoch {self._epoch_number()}, received {dataset!r}.")
        if not isinstance(dataset, tf.data.Dataset):
            return dataset
        if self._is_unbatched(dataset):
            dataset = dataset.batch(batch_size)
        replicas = self.strategy.num_replicas_in_sync
        if training and replicas > 1:
            dataset = _trim_to_replicas(dataset, replicas)
        return self.strategy.experimental_distribute_dataset(dataset)

    def _is_unbatched(self, dataset: tf.data.Dataset) -> bool:
        if self.prepare is not None:
            return False
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or len(spec) != 2:
            raise ValueError(f"Expected a dataset of pairs (x, y), or prepare, received elements {spec}.")
        rank = tf.nest.flatten(spec[0])[0].shape.rank
        return rank is not None and rank == len(self.model.inputs[0].shape) - 1

    def _examples_in(self, batch: Any) -> int:
        """Count a global batch's examples from shapes alone, so that nothing waits for the device."""
        parts = self.strategy.experimental_local_results(tf.nest.flatten(batch)[0])
        workers = self.strategy.num_replicas_in_sync // len(parts)
        return sum(int(part.shape[0]) for part in parts) * workers

    def _batches(self, data: Data, size: int | None, **how) -> Iterator[tuple[Any, int]]:
        """Yield the batches of one epoch with their number of examples, `size` examples if it is given."""
        seen = 0
        for batch in self._dataset_of_epoch(data, **how):
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
        name, state, began = ("train_ds" if training else "valid_ds"), _empty_state(), time.monotonic()
        label = f"epoch {self._epoch_number() + 1} " + ("training" if training else "validation")
        batches = self._batches(data, size, training=training, batch_size=batch_size)
        with tqdm(total=size, desc=label, unit=" examples", leave=False, disable=not self.is_chief) as bar:
            for index, (batch, count) in enumerate(batches, start=1):
                state = step(batch, state)
                bar.update(count)
                if index % self.check_every == 0:
                    bar.set_postfix(self._look_at(state, label)[0])
            means, examples = self._look_at(state, label)
        if not examples:
            raise ValueError(f"Expected {name} to give at least one batch, received none in {label}.")
        return EpochResult(means["loss"], means.get("accuracy"), examples, time.monotonic() - began)

    def _look_at(self, state: EpochState, label: str) -> tuple[dict[str, float], int]:
        """Wait for the device and give the means so far and the examples seen; stop at a loss not finite."""
        loss_sum, accuracy_sum, examples = state.sums.numpy()
        if int(state.bad_step):
            raise FloatingPointError(
                f"{self.model_dir}: expected a finite loss, received NaN or infinity in {label}, "
                f"step {int(state.bad_step)}. The checkpoints are of the epochs before."
            )
        means = {"loss": float(loss_sum / max(examples, 1))}
        if self.accuracy_fn is not None:
            means["accuracy"] = float(accuracy_sum / max(examples, 1))
        return means, int(examples)

    def _check_weights(self) -> None:
        """Stop before a checkpoint is written if the last step's update left a weight not finite."""
        for variable in self.model.weights:
            if "float" in variable.dtype and not bool(tf.reduce_all(tf.math.is_finite(variable.value))):
                raise FloatingPointError(
                    f"{self.model_dir}: expected finite weights after epoch {self._epoch_number() + 1}, "
                    f"received NaN or infinity in {variable.path}."
                )

    # ------------------------------------------------------------------ files

    def _resume(self) -> tuple[tf.train.CheckpointManager, list[Row]]:
        """Restore the last checkpoint, if there is one, and the history up to it."""
        self.model_dir.mkdir(parents=True, exist_ok=True)
        # Keras does not hand over the state of its random layers (dropout) to a checkpoint of the model.
        seeds = [variable.value for variable in self.model.variables if "seed_generator" in variable.path]
        checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self.optimizer, epoch=self.epoch, best=self.best, seeds=seeds
        )
        manager = tf.train.CheckpointManager(checkpoint, str(self.model_dir), KEEP_CHECKPOINTS)
        if manager.latest_checkpoint:
            try:
                checkpoint.restore(manager.latest_checkpoint).assert_existing_objects_matched()
            except (ValueError, AssertionError) as error:
                raise ValueError(
                    f"{manager.latest_checkpoint}: expected a checkpoint of this model and optimizer, "
                    f"received another; choose another model_dir. ({error})"
                ) from error
        return manager, read_history(self.model_dir / "history.csv", last_epoch=self._epoch_number())

    def _save_model(self, name: str) -> None:
        temporary = self.model_dir / f".{name}"
        self.model.save(temporary)
        temporary.replace(self.model_dir / name)

    def _save_models(self, row: Row) -> None:
        """Save the model as the last, and as the best if its validation loss is the lowest so far.

        Without validation data the training loss decides.
        """
        self._save_model("last.keras")
        loss = row["loss"] if row["val_loss"] is None else row["val_loss"]
        if loss < float(self.best.numpy()):
            self.best.assign(loss)
            self._save_model("best.keras")

    def _save_epoch(self, manager: tf.train.CheckpointManager, history: list[Row], keep: bool) -> None:
        """Write what an epoch leaves, the checkpoint last: what is not in it will be run again.

        `keep` epochs also leave models and curves.
        """
        if keep and self.is_chief:
            self._save_models(history[-1])
            draw_curves(self.model_dir / "curves.png", history)
        if self.is_chief:
            write_history(self.model_dir / "history.csv", history)
        self.epoch.assign_add(1)
        if self.is_chief:
            manager.save(checkpoint_number=self._epoch_number())

    # ------------------------------------------------------------------ the run

    def _set_learning_rate(self) -> float:
        if self.learning_rate_schedule is not None:
            self.optimizer.learning_rate.assign(self.learning_rate_schedule(self._epoch_number()))
        # By way of its text: the float32 nearest to 0.001 is to be reported as 0.001.
        return float(str(keras.ops.convert_to_numpy(self.optimizer.learning_rate)))

    def _say(self, text: str) -> None:
        if self.is_chief:
            tqdm.write(text)

    def _check_arguments(self, train_ds: Any, valid_ds: Any, loss_fn: Any, counts: dict[str, Any]) -> None:
        for name, data in (("train_ds", train_ds), ("valid_ds", valid_ds)):
            missing = data is None and name == "train_ds"
            if missing or not (data is None or callable(data) or isinstance(data, _DATASETS)):
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
            Batches (x, y) of all replicas together, or what `prepare` makes them of; x and y may be nested,
            and the first axis of every tensor counts the examples. A callable gives the dataset of an epoch
            from its number, which starts at 0. On several replicas a training batch is cut to a multiple
            of their number, because none may go without an example. Batches of the same size run the same
            compiled step; a smaller last one is compiled for itself.
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
            measured. Seconds and examples per second are those of the training alone.

        Raises
        ------
        ValueError
            If an argument is not what was expected, there are no data, or `model_dir` holds another run.
        FloatingPointError
            If a loss or a weight is not finite; it says in which epoch and step.
        """
        sizes = {"train_size": train_size, "validation_size": validation_size, "BATCH_SIZE": BATCH_SIZE}
        self._check_arguments(
            train_ds, valid_ds, loss_fn, {**sizes, "EPOCHS": EPOCHS, "save_step": save_step}
        )
        self.loss_fn, self.accuracy_fn = loss_fn, accuracy_fn
        with self.strategy.scope():
            manager, history = self._resume()
            self._announce(EPOCHS, has_validation=valid_ds is not None)
            run_training = self._make_pass(train_ds, train_size, BATCH_SIZE, training=True)
            run_validation = self._make_pass(valid_ds, validation_size, BATCH_SIZE, training=False)
            for number in range(self._epoch_number() + 1, EPOCHS + 1):
                keep = number % save_step == 0 or number == EPOCHS
                row = self._run_epoch(run_training, run_validation if keep else None)
                history.append(row)
                self._save_epoch(manager, history, keep)
                self._say(_describe(row, EPOCHS))
        return history

    def _announce(self, epochs: int, *, has_validation: bool) -> None:
        done = self._epoch_number()
        if done >= epochs:
            self._say(f"{self.model_dir}: training is already complete, {done} of {epochs} epochs.")
            return
        if done:
            self._say(f"{self.model_dir}: going on after epoch {done} of {epochs}.")
        if not has_validation:
            self._say("No validation data: best.keras is the model with the lowest training loss.")

    def _make_pass(
        self, data: Data | None, size: int | None, batch_size: int, *, training: bool
    ) -> Callable[[], EpochResult] | None:
        """Give a function that runs one pass over `data`, its step compiled once; None without data."""
        if data is None:
            return None
        step = self._make_step(training)
        return lambda: self._run_pass(step, data, size, training=training, batch_size=batch_size)

    def _run_epoch(
        self, run_training: Callable[[], EpochResult], run_validation: Callable[[], EpochResult] | None
    ) -> Row:
        """Train for one epoch, validate if asked to, and give the row of the history."""
        learning_rate = self._set_learning_rate()
        trained = run_training()
        self._check_weights()
        validated = run_validation() if run_validation else EpochResult(None, None, 0, 0.0)
        return {
            "epoch": self._epoch_number() + 1,
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "val_loss": validated.loss,
            "val_accuracy": validated.accuracy,
            "learning_rate": learning_rate,
            "seconds": trained.seconds,
            "examples_per_second": trained.examples / max(trained.seconds, 1e-9),
        }
