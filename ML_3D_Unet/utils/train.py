"""The training loop: epochs over a dataset, on whatever strategy is current, with an exact resume.

A run lives in one directory, `model_dir`, see `RunDirectory`. It holds the checkpoints it resumes from,
``history.csv`` and ``curves.png``, ``last.keras`` and ``best.keras``. Start the same run again and it goes on
after the last checkpoint; on a CPU with deterministic operations the weights are the same, bit for bit, as if
it had never stopped, provided that the data of an epoch depend on nothing but the epoch's number.

    trainer = Trainer(model, learning_rate=1e-3, model_dir="work/model")
    history = trainer.train(train_ds, valid_ds, loss_fn=my_loss, EPOCHS=45, save_step=5)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tqdm.auto import tqdm

from .averages import MovingAverage
from .compilation import Choice, Compilation
from .feeding import Data, EpochPart, batches_of_epoch, counted
from .history import (
    HISTORY_FIELDS,
    EpochResult,
    Row,
    describe_row,
    plateau_scale,
    read_history,
    row_of_epoch,
    validations_without_gain,
)
from .optimizers import Optimizer, make_optimizer, scaled_where_half
from .options import PLAIN, RunOptions, check_arguments
from .run_directory import RunDirectory
from .run_state import RunState
from .steps import EpochState, StepMaker, empty_state
from .watch import ProgressBar, TensorBoardLog, WaitClock, first_example_panel
from .workers import WorkerLost, is_chief, naming_lost_workers, wait_for_workers

__all__ = ["HISTORY_FIELDS", "EpochPart", "RunOptions", "Trainer", "WorkerLost", "read_history"]


class Trainer:
    """Trains a Keras model with a loop of its own, on the strategy that is current when it is made.

    Parameters
    ----------
    model : keras.Model
        Made under the same strategy.
    optimizer : keras.optimizers.Optimizer, type, str, or None
        A class or a name, of which one is made; None is Adam. An instance is used as it is, with its own
        learning rate.
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
    jit_compile : bool or "auto"
        Compile forward and backward pass with XLA; "auto" times both at the first batch and takes the
        faster. Where XLA fails, and on several replicas, whose batch normalisation it cannot compile, it is
        left out with a line that says so.
    check_every : int
        Steps between two looks at the loss: for the bar, and to stop at a loss that is not finite.
    options : RunOptions
        Accumulation, moving average, early stopping, plateaus, checkpoints by time, TensorBoard.
    panel : callable (x, y, prediction) -> pictures (n, height, width, 3), optional
        What TensorBoard shows of the first example of the validation, values from 0 to 1.
    model_suffix : {'.keras', '.weights.h5'}
        Whether ``best`` and ``last`` are saved whole, or their weights alone. A run of whole models may be
        gone on with as one of weights: those of ``best`` and ``last`` are then taken from their files, which
        stay.

    Attributes
    ----------
    epoch : tf.Variable
        Epochs finished, int64. During an epoch it is that epoch's number from 0; a loss function that
        depends on the epoch must read it, as a Python number would be frozen when the step is traced.

    Raises
    ------
    ValueError
        If `optimizer` or `model_suffix` is none of these, or the model computes in float16 on several
        replicas, see `optimizers.scaled_where_half`.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Optimizer = None,
        learning_rate: float = 1e-3,
        model_dir: str | Path = "tf_ckpt",
        *,
        prepare: Callable[[Any, bool], tuple] | None = None,
        learning_rate_schedule: Callable[[int], float] | None = None,
        jit_compile: Choice = False,
        check_every: int = 16,
        options: RunOptions = PLAIN,
        panel: Callable[[Any, Any, Any], Any] | None = None,
        model_suffix: str = ".keras",
    ) -> None:
        self.model = model
        self.model_dir = Path(model_dir)
        self.learning_rate_schedule = learning_rate_schedule
        self.check_every = check_every
        self.options = options
        self.panel = panel
        self.loss_fn: Callable | None = None
        self.accuracy_fn: Callable | None = None
        self.strategy = tf.distribute.get_strategy()
        writes = is_chief(self.strategy)
        self.directory = RunDirectory(self.model_dir, model_suffix=model_suffix, writes=writes)
        self.log = TensorBoardLog(self.model_dir / "tensorboard") if options.tensorboard and writes else None
        with self.strategy.scope():
            self._build_state(optimizer, learning_rate)
        self._steps = self._step_maker(prepare, jit_compile)

    def _build_state(self, optimizer: Optimizer, learning_rate: float) -> None:
        """Make everything a checkpoint holds; the optimizer's slots must exist before a step is traced."""
        replicas = self.strategy.num_replicas_in_sync
        made = make_optimizer(optimizer, learning_rate)
        self.optimizer = scaled_where_half(made, self.model, replicas=replicas)
        self.optimizer.build(self.model.trainable_variables)
        self._first_rate = float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
        self.state = RunState()
        self.epoch = self.state.epoch
        decay = self.options.moving_average
        self.average = MovingAverage(self.model, decay) if decay else None

    def _step_maker(self, prepare: Callable | None, jit_compile: Choice) -> StepMaker:
        if jit_compile and self.strategy.num_replicas_in_sync > 1:
            self._say("XLA is left out: it cannot compile the step for several replicas.")
            jit_compile = False
        return StepMaker(
            self.strategy,
            self.model,
            self.optimizer,
            self.compute_losses,
            prepare=prepare,
            average=self.average,
            accumulate=self.options.accumulate,
            compilation=self._compilation(jit_compile) if jit_compile else None,
        )

    def _compilation(self, jit_compile: Choice) -> Compilation:
        changed = [variable.value for variable in self.model.non_trainable_variables]
        return Compilation(jit_compile, changed, self._say)

    def _say(self, text: str) -> None:
        if self.directory.writes:
            tqdm.write(text)

    # ------------------------------------------------------------------ what is learned

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
        state = self.state.of_epoch() if training else empty_state()
        seen = int(state.sums[2])
        label = f"epoch {self.state.finished() + 1} " + ("training" if training else "validation")
        clock = WaitClock()
        batches = clock.timed(self._batches(data, int(state.step), batch_size))
        with ProgressBar(label, total=size, initial=seen, clock=clock, visible=self.directory.writes) as bar:
            for index, (batch, count) in enumerate(counted(batches, size, seen, self.strategy), start=1):
                examples, state = step(batch, state)
                bar.advance(count)
                if index % self.check_every == 0:
                    bar.show(self._look_at(state, label)[0])
                self._after_step(examples, state, label, clock, training=training, is_first=index == 1)
            means, examples_seen = self._look_at(state, label)
        if not examples_seen:
            name = "train_ds" if training else "valid_ds"
            raise ValueError(f"Expected {name} to give at least one batch, received none in {label}.")
        seconds, waited = [clock.seconds, clock.waited] + training * self.state.spent.numpy()
        return EpochResult(means["loss"], means.get("accuracy"), examples_seen, seconds, waited)

    def _batches(self, data: Data, first_step: int, batch_size: int) -> Any:
        """Give the batches of the current epoch from a step on."""
        rank = None
        if self._steps.prepare is None:
            inputs = getattr(self.model, "inputs", None)  # only functional models have them
            rank = len(inputs[0].shape) if inputs else 0
        epoch = self.state.finished()
        return batches_of_epoch(data, epoch, first_step, self.strategy, batch_size=batch_size, rank=rank)

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
        if training and self._is_save_due():
            self._look_at(state, label)
            self._check_weights()
            with self.state.within_epoch(state, clock):
                self.directory.save_checkpoint(self.state.next_save())
        if not training and is_first and self.log is not None and self.panel is not None:
            x, y = (tf.nest.map_structure(self._first_local, part) for part in examples[:2])
            self.log.panel(first_example_panel(self.model, x, y, self.panel), self.state.finished() + 1)

    def _is_save_due(self) -> bool:
        minutes = self.options.save_minutes
        return bool(minutes) and self.directory.writes and self.directory.minutes_since_save() >= minutes

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
                    f"{self.model_dir}: expected finite weights after epoch {self.state.finished() + 1}, "
                    f"received NaN or infinity in {variable.path}."
                )

    # ------------------------------------------------------------------ what an epoch leaves

    def _resume(self) -> list[Row]:
        """Restore the last checkpoint, if there is one, and give the history up to it."""
        # Keras does not hand over the state of its random layers (dropout) to a checkpoint of the model.
        seeds = [variable.value for variable in self.model.variables if "seed_generator" in variable.path]
        parts = {"seeds": seeds, "model": self.model, "optimizer": self.optimizer, **self.state.variables()}
        if self.average is not None:
            parts["average"] = self.average
        self.directory.restore(parts)
        return self.directory.history(self.state.finished())

    def _save_epoch(self, history: list[Row]) -> None:
        """Write what an epoch leaves, the checkpoint last: what is not in it will be run again."""
        self.directory.save_history(history)
        if self.log is not None:
            self.log.scalars(history[-1])
        self.state.finish_epoch()
        self.directory.save_checkpoint(self.state.next_save())

    def _save_models(self, row: Row) -> None:
        """Save the model as the last, and as the best if its validation loss is the lowest so far.

        Without validation data the training loss decides. With `keep_last` every model counts as the best.
        """
        is_best = self.state.is_best(row["loss"] if row["val_loss"] is None else row["val_loss"])
        self.directory.save_model(self.model, "last")
        if is_best or self.options.keep_last:
            self.directory.save_model(self.model, "best")

    # ------------------------------------------------------------------ the run

    def _set_learning_rate(self, history: list[Row]) -> float:
        """Set the rate of an epoch where something says what it is, and give it."""
        rate, options = self._first_rate, self.options
        if self.learning_rate_schedule is not None:
            rate = self.learning_rate_schedule(self.state.finished())
        if self.learning_rate_schedule is not None or options.plateau_after:
            scale = plateau_scale(history, options.plateau_after, options.plateau_factor)
            self.optimizer.learning_rate.assign(rate * scale)
        # By way of its text: the float32 nearest to 0.001 is to be reported as 0.001.
        return float(str(keras.ops.convert_to_numpy(self.optimizer.learning_rate)))

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
            Values of shape (batch,), or a scalar, the mean of the batch. Values of more axes, such as the one
            a voxel of `keras.losses.binary_crossentropy`, are averaged over all but the first. The loss is
            needed.
        BATCH_SIZE : int
            Examples of all replicas together in a batch, for a dataset that gives single examples; batches
            are taken as they come.
        EPOCHS : int
            Epochs at the end, those before a resume included.
        save_step : int
            Every so many epochs, and after the last, the run validates, saves ``last`` and ``best`` and draws
            the curves. Checkpoint and history are written after every epoch.

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
        check_arguments(train_ds, valid_ds, loss_fn, {**sizes, "EPOCHS": EPOCHS, "save_step": save_step})
        self.loss_fn, self.accuracy_fn = loss_fn, accuracy_fn
        with self.strategy.scope(), naming_lost_workers(self.strategy, self._place):
            history = self._resume()
            self._announce(EPOCHS, has_validation=valid_ds is not None)
            run_training = self._make_pass(train_ds, train_size, BATCH_SIZE, training=True)
            run_validation = self._make_pass(valid_ds, validation_size, BATCH_SIZE, training=False)
            for number in range(self.state.finished() + 1, EPOCHS + 1):
                if self._has_stopped(history):
                    break
                keep = number % save_step == 0 or number == EPOCHS
                row = self._run_epoch(run_training, run_validation if keep else None, history, keep=keep)
                self._save_epoch(history)
                self._say(describe_row(row, EPOCHS))
            wait_for_workers(self.strategy)
        return history

    def _place(self) -> str:
        return f"{self.model_dir}: expected all workers to answer in epoch {self.state.finished() + 1}"

    def _announce(self, epochs: int, *, has_validation: bool) -> None:
        done = self.state.finished()
        if done >= epochs:
            self._say(f"{self.model_dir}: training is already complete, {done} of {epochs} epochs.")
            return
        step = int(self.state.step.numpy())
        if done or step:
            where = f" and step {step} of the next" if step else ""
            self._say(f"{self.model_dir}: going on after epoch {done}{where}, of {epochs} epochs.")
        if not has_validation:
            best = self.directory.model_file("best").name
            self._say(f"No validation data: {best} is the model with the lowest training loss.")

    def _has_stopped(self, history: list[Row]) -> bool:
        after = self.options.stop_after
        if not after or validations_without_gain(history) < after:
            return False
        self._say(
            f"{self.model_dir}: stopped after epoch {self.state.finished()}, as {after} validations brought "
            "no lower loss."
        )
        return True

    def _make_pass(
        self, data: Data | None, size: int | None, batch_size: int, *, training: bool
    ) -> Callable[[], EpochResult] | None:
        """Give a function that runs one pass over `data`, its step compiled once; None without data."""
        if data is None:
            return None
        step = self._steps.make(training)
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
            row = row_of_epoch(self.state.finished() + 1, trained, validated, learning_rate)
            history.append(row)
            if keep:
                self._save_models(row)
        if keep:
            self.directory.draw_curves(history)
        return row

    def _as_saved(self) -> AbstractContextManager[None]:
        """Let the model hold, for a block, what is validated and saved: the averages, if there are any."""
        return nullcontext() if self.average is None else self.average.in_place_of_weights()
