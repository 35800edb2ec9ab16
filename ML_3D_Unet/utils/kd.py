"""Knowledge distillation: a small network learns from the labels and from a large one trained before.

    trainer = Trainer_KD(student, teacher, temperature=2, learning_rate=1e-3, model_dir="work/student")
    histories = trainer.train(train_ds, valid_ds, loss_fn=my_loss, distillation_fn=my_divergence, EPOCHS=45)

Teacher, distilled student, and the student from scratch that it is compared with are three models with
three directories. A run that is broken off in any of the three trainings goes on there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from .feeding import Data
from .history import Row
from .layers import fresh_copy, logits_model
from .optimizers import Optimizer, own_optimizer
from .steps import per_example
from .train import Trainer

DISTILL_ON = ("probabilities", "logits")


def softened(logits: tf.Tensor, temperature: float) -> tf.Tensor:
    """Give the probabilities of logits divided by a temperature, in float32.

    Parameters
    ----------
    logits : tensor, (batch, ..., channels)
        One channel is a sigmoid's, several are a softmax's.
    temperature : float
        Above 1 it makes probabilities less certain (Hinton et al. 2015, Distilling the knowledge in a neural
        network).

    Returns
    -------
    tensor of float32, shape of `logits`
    """
    scaled = tf.cast(logits, tf.float32) / temperature
    return tf.sigmoid(scaled) if logits.shape[-1] == 1 else tf.nn.softmax(scaled)


def divergence(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Give the Kullback-Leibler divergence of the student's probabilities from the teacher's.

    Parameters
    ----------
    teacher, student : tensor, (batch, ..., channels)
        One channel is the probability of the one of two classes, several are those of as many.

    Returns
    -------
    tensor of float32, (batch, ...)
        In nats, from 0.
    """
    if teacher.shape[-1] == 1:
        teacher, student = (tf.concat([p, 1.0 - p], axis=-1) for p in (teacher, student))
    return keras.losses.kl_divergence(teacher, student)


class DistillingTrainer(Trainer):
    """The training loop with a loss of two parts; the labels alone count in validation.

    Parameters
    ----------
    student, teacher : keras.Model
        Both with logits, see `layers.logits_model`. The teacher is run without training and never changed.
    temperature : float
        See `softened`.
    distillation_weight : float
        Share w of the distillation in the loss: (1 - w) · hard + w · soft.
    distill_on : {'probabilities', 'logits'}
        What `distillation_fn` receives: softened probabilities, or logits as they are.
    *arguments, **keywords
        Those of `Trainer` behind the model.

    Attributes
    ----------
    distillation_fn : callable (teacher, student) -> tensor
        Values of shape (batch,) or (batch, ...), of which the mean is taken, or a scalar; `divergence` unless
        it is set before `train`.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        *arguments: Any,
        temperature: float = 1.0,
        distillation_weight: float = 0.5,
        distill_on: str = "probabilities",
        **keywords: Any,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"Expected temperature to be a positive number, received {temperature!r}.")
        if not 0 <= distillation_weight <= 1:
            raise ValueError(
                f"Expected distillation_weight to be from 0 to 1, received {distillation_weight!r}."
            )
        if distill_on not in DISTILL_ON:
            raise ValueError(f"Expected distill_on to be one of {DISTILL_ON}, received {distill_on!r}.")
        super().__init__(student, *arguments, **keywords)
        self.temperature, self.distillation_weight = float(temperature), float(distillation_weight)
        self.distill_on = distill_on
        self.distillation_fn: Callable = divergence
        self._student, self._teacher = logits_model(student), logits_model(teacher)

    def compute_losses(self, x: Any, y: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Give the loss of both parts in training, and that of the labels in validation."""
        if not training:
            return super().compute_losses(x, y, training)
        prediction, logits = self._student(x, training=True)
        teacher_logits = tf.stop_gradient(self._teacher(x, training=False)[1])
        soft = self.teacher_loss(y, self._seen(teacher_logits), self._seen(logits))
        count, weight = tf.shape(logits)[0], self.distillation_weight
        hard = per_example(self.label_loss(y, prediction, training), count)
        loss = (1.0 - weight) * hard + weight * per_example(soft, count)
        return loss, self.label_accuracy(y, prediction)

    def teacher_loss(self, y: Any, teacher: tf.Tensor, student: tf.Tensor) -> Any:
        """Give the loss against the teacher; override it where it depends on the labels too."""
        return self.distillation_fn(teacher, student)

    def _seen(self, logits: tf.Tensor) -> tf.Tensor:
        return logits if self.distill_on == "logits" else softened(logits, self.temperature)


class Trainer_KD:
    """Trains a teacher, a student from scratch, and a student that learns from the teacher.

    Parameters
    ----------
    student_model, teacher_model : keras.Model
        Made under the strategy that is current. In either form of the U-Net, or any model with a layer
        ``last_logits``.
    temperature : float
        What logits are divided by before they become the probabilities that `distillation_fn` compares.
    optimizer : keras.optimizers.Optimizer, type, str, or None
        Each of the three trainings has one of its own: of a class or a name, None being Adam, or made from an
        instance's configuration.
    learning_rate : float
        For an optimizer that is no instance.
    model_dir : str or Path
        Directory of the distilled student. Those of the others have the same name with ``_teacher_scratch``
        and ``_student_scratch`` behind it.
    distillation_weight, distill_on
        See `DistillingTrainer`.
    teacher_trained, student_trained : bool
        True leaves out the training of the teacher, whose weights are used as they are, and that of the
        student from scratch.
    **keywords
        Those of `Trainer`, for all three.

    Attributes
    ----------
    model : keras.Model
        `student_model`, which is distilled.
    scratch_model : keras.Model
        A fresh copy of the student with weights of its own, for the training from scratch.
    """

    def __init__(
        self,
        student_model: keras.Model,
        teacher_model: keras.Model,
        temperature: float = 1.0,
        optimizer: Optimizer = None,
        learning_rate: float = 1e-3,
        model_dir: str | Path = "tf_ckpt",
        *,
        distillation_weight: float = 0.5,
        distill_on: str = "probabilities",
        teacher_trained: bool = False,
        student_trained: bool = False,
        **keywords: Any,
    ) -> None:
        self.model, self.teacher_model = student_model, teacher_model
        self.scratch_model = None if student_trained else fresh_copy(student_model)
        self.model_dir = Path(model_dir)
        self._teacher_trained = teacher_trained
        how = {"optimizer": optimizer, "learning_rate": learning_rate}
        self._teacher_trainer = self._plain(teacher_model, "teacher", how, keywords)
        self._scratch_trainer = self._plain(self.scratch_model, "student", how, keywords)
        self._trainer = DistillingTrainer(
            student_model,
            teacher_model,
            own_optimizer(optimizer),
            learning_rate,
            self.model_dir,
            temperature=temperature,
            distillation_weight=distillation_weight,
            distill_on=distill_on,
            **keywords,
        )

    def _plain(self, model: keras.Model | None, name: str, how: dict, keywords: dict) -> Trainer | None:
        """Give the ordinary trainer of a model in its own directory; none for one that is trained."""
        if model is None or (name == "teacher" and self._teacher_trained):
            return None
        folder = self.model_dir.with_name(f"{self.model_dir.name}_{name}_scratch")
        return Trainer(model, own_optimizer(how["optimizer"]), how["learning_rate"], folder, **keywords)

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
        *,
        distillation_fn: Callable | None = None,
    ) -> dict[str, list[Row]]:
        """Train the teacher and the student from scratch, unless they are trained, then distil.

        All three see the same data for as many epochs. The student learns from the teacher with the lowest
        validation loss, its ``best``. Losses and accuracies of validation are against the labels, for
        all three alike.

        Parameters
        ----------
        train_ds, valid_ds, train_size, validation_size, loss_fn, accuracy_fn, BATCH_SIZE, EPOCHS, save_step
            See `Trainer.train`.
        distillation_fn : callable (teacher, student) -> tensor, optional
            Distance of softened probabilities, or of logits: values of shape (batch,), or a scalar; those of
            more axes are averaged. Where gradients of both parts are to have one scale at any temperature, it
            multiplies by the square of the temperature. None is `divergence`, for probabilities.

        Returns
        -------
        dict of str to list of rows
            Histories under "teacher", "student_scratch" and "student"; those left out are empty.

        Raises
        ------
        ValueError
            If an argument is not what was expected.
        """
        if distillation_fn is None and self._trainer.distill_on == "probabilities":
            distillation_fn = divergence
        if not callable(distillation_fn):
            raise ValueError(f"Expected distillation_fn(teacher, student), received {distillation_fn!r}.")
        shared = {
            **{"train_ds": train_ds, "valid_ds": valid_ds, "train_size": train_size},
            **{"validation_size": validation_size, "loss_fn": loss_fn, "accuracy_fn": accuracy_fn},
            **{"BATCH_SIZE": BATCH_SIZE, "EPOCHS": EPOCHS, "save_step": save_step},
        }
        histories = {"teacher": [], "student_scratch": []}
        if self._teacher_trainer is not None:
            histories["teacher"] = self._teacher_trainer.train(**shared)
            self._teacher_trainer.directory.load_weights(self.teacher_model, "best")
        if self._scratch_trainer is not None:
            histories["student_scratch"] = self._scratch_trainer.train(**shared)
        self._trainer.distillation_fn = distillation_fn
        return {**histories, "student": self._trainer.train(**shared)}
