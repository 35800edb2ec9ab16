"""Students of the segmentation network: one from scratch, and one for each way to learn from the teacher.

All students have one architecture, begin with the same weights, and see the same examples in the same order
for the same number of steps, so what tells them apart is the loss. Each has a directory of its own,
`work/models/student_runs/<student>`; the best of those with a teacher is copied to `work/models/student`.
With `--name X` these are `work/models/X_runs/<student>` and `work/models/X`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from ML_3D_Unet.utils.history import read_history
from ML_3D_Unet.utils.kd import DistillingTrainer
from ML_3D_Unet.utils.train import Trainer
from utils import settings as stages
from utils.files import sha256_of
from utils.learning import losses, models, panels, training, training_data
from utils.learning.model_files import copy_model, has_model, model_file
from utils.learning.prepared_data import SegmentationData
from utils.learning.runtime import Runtime, set_seed
from utils.learning.vertebrae import segmentation_batch_builder
from utils.settings import SETTINGS_FILE, load_settings

SCRATCH = "scratch"
#: What of a student's settings is its own; the rest is the teacher's.
_OWN_SETTINGS = (
    *(field.name for field in dataclasses.fields(stages.RunSettings)),
    *("work_dir", "name", "filters", "seed"),
)
#: What settings of earlier teachers lack, and how they were trained.
_LATER_SETTINGS = {
    **{"network": "unet", "patch_shares": (1.0, 0.0, 0.0), "memory_error": 0.0, "centre_error_mm": 0.0},
    **{"outside": "edge", "cut_share": 0.0, "targets": "bits", "boundary_weight": False},
    "t13": True,
}


@dataclass(frozen=True)
class Variant:
    """One student.

    Attributes
    ----------
    name : str
        Name of its directory.
    title : str
        What tables call it.
    distillation_fn : callable (teacher logits, student logits, voxel weights) -> tf.Tensor (batch,), optional
        Loss against the teacher; None for the student from scratch.
    """

    name: str
    title: str
    distillation_fn: Callable[[tf.Tensor, tf.Tensor, tf.Tensor | float], tf.Tensor] | None = None


class VertebraDistiller(training.VertebraLoss, DistillingTrainer):
    """The training loop of a student: the loss of vertebrae against the labels, one against the teacher.

    Parameters
    ----------
    voxels : str
        "even", or "loss" for weights as in the loss against the labels, see `DistillationSettings`.
    reduction : str
        "mean" or "sum" over the voxels of the loss against the labels, see `DistillationSettings`.
    *arguments, **keywords
        Those of `DistillingTrainer` and `VertebraLoss`.
    """

    def __init__(self, *arguments: Any, voxels: str, reduction: str = "mean", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.voxels, self.reduction = voxels, reduction

    def label_loss(self, y: tf.Tensor, prediction: tf.Tensor, training: bool) -> tf.Tensor:
        """Give the loss against the labels of every example; in validation always the mean, to compare."""
        loss = super().label_loss(y, prediction, training)
        if not training or self.reduction == "mean":
            return loss
        return loss * tf.cast(tf.reduce_prod(tf.shape(prediction)[1:4]), tf.float32)

    def teacher_loss(self, y: tf.Tensor, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """Give the loss against the teacher of every example."""
        weights = losses.voxel_weights(y, self.weight_of_fp()) if self.voxels == "loss" else 1.0
        return self.distillation_fn(teacher, student, weights)


def variants(settings: stages.DistillationSettings) -> list[Variant]:
    """Give the students to train: from scratch first, then one for each temperature and method."""
    students = [Variant(SCRATCH, "student")]
    if "soft" in settings.methods:
        temperatures = dict.fromkeys(settings.temperatures)
        students += [_soft_variant(each, t_squared=settings.t_squared) for each in temperatures]
    if "logits" in settings.methods:
        students.append(Variant("logits", "student + KD (logits)", losses.logit_difference))
    return students


def _soft_variant(temperature: float, *, t_squared: bool) -> Variant:
    def divergence(teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | float) -> tf.Tensor:
        return losses.softened_divergence(teacher, student, temperature, weights, t_squared=t_squared)

    return Variant(f"soft-t{temperature:g}", f"student + KD (soft, T = {temperature:g})", divergence)


def teacher_directory(settings: stages.DistillationSettings) -> Path:
    """Give the directory of the teacher."""
    return settings.segmentation or settings.work_dir / "models" / "segmentation"


def student_directory(settings: stages.DistillationSettings) -> Path:
    """Give the directory that the best student with a teacher is copied to."""
    return training.model_directory(settings)


def run_directory(settings: stages.DistillationSettings, variant: Variant) -> Path:
    """Give the directory of one student's training."""
    return settings.work_dir / "models" / f"{settings.name}_runs" / variant.name


def student_settings(
    found: dict[str, Any], settings: stages.DistillationSettings
) -> stages.SegmentationTrainingSettings:
    """Give the settings that students are trained with: the teacher's, but for size, seed and how they run.

    Parameters
    ----------
    found : dict
        Contents of the teacher's `settings.json`.
    settings : DistillationSettings
        Those of this stage.

    Returns
    -------
    SegmentationTrainingSettings

    Raises
    ------
    ValueError
        If the teacher's lack a field, or do not go with what is the student's own.
    """
    fields = {field.name: field for field in dataclasses.fields(stages.SegmentationTrainingSettings)}
    # What is None by default may be younger than the teacher.
    needed = {name for name, kind in fields.items() if kind.default is not None}
    missing = sorted(needed - set(found) - set(_OWN_SETTINGS) - set(_LATER_SETTINGS))
    if missing:
        raise ValueError(
            f"{teacher_directory(settings) / SETTINGS_FILE}: expected the settings of a segmentation "
            f"network, found none of {', '.join(missing)}."
        )
    own = {name: getattr(settings, name) for name in _OWN_SETTINGS}
    found = {**_LATER_SETTINGS, **found}
    read = {name: _as_tuple(found[name]) for name in fields if name in found}
    ranges = {name: _as_tuple(value) for name, value in found["augmentation"].items()}
    left_out = tuple(dict.fromkeys([*found.get("exclude", ()), *settings.exclude]))
    changed = {"exclude": left_out, **({} if settings.epochs is None else {"epochs": settings.epochs})}
    try:
        read["augmentation"] = stages.AugmentationSettings(**ranges)
        return stages.SegmentationTrainingSettings(**{**read, **own, **changed})
    except ValueError as error:
        raise ValueError(f"{teacher_directory(settings) / SETTINGS_FILE}: {error}") from None


def _as_tuple(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Inputs:
    """What students are trained with.

    Attributes
    ----------
    settings : SegmentationTrainingSettings
        See `student_settings`.
    data, held_out : SegmentationData
        Training and validation, without the cases that teacher or students leave out.
    bad : list of str
        A line for every bad case.
    facts, teacher_facts : dict
        What must be the same when a training is gone on with: of the data, and of what is learned from which
        teacher.
    """

    settings: stages.SegmentationTrainingSettings
    data: SegmentationData
    held_out: SegmentationData
    bad: list[str]
    facts: dict[str, Any]
    teacher_facts: dict[str, Any]


def read_inputs(settings: stages.DistillationSettings, chosen: Runtime) -> Inputs:
    """Read the settings of the teacher, and data of its spacing.

    Raises
    ------
    ValueError
        If there is no teacher, or no data of its spacing.
    """
    directory = teacher_directory(settings)
    if not has_model(directory):
        raise ValueError(
            f"{directory}: expected a trained segmentation network, found none; run train_segmentation.py "
            "first."
        )
    student = student_settings(load_settings(directory), settings)
    folder, facts = training_data.prepared_folder(
        "segmentation", work_dir=settings.work_dir, preset=settings.preset, spacing_mm=student.spacing_mm
    )
    data, held_out, bad = training_data.read_segmentation_splits(
        folder, chosen, exclude=settings.exclude, also_without=student.exclude, t13=student.t13
    )
    facts |= training_data.case_facts(data, held_out, student)
    names = ("distillation_weight", "distillation_voxels", "t_squared", "reduction")
    teacher_facts = {name: getattr(settings, name) for name in names}
    teacher_facts["teacher_sha256"] = sha256_of(model_file(directory))
    return Inputs(student, data, held_out, bad, facts, teacher_facts)


def train_students(inputs: Inputs, settings: stages.DistillationSettings, chosen: Runtime) -> None:
    """Train all students, and copy the best of those with a teacher to `work_dir/models/<name>`.

    Parameters
    ----------
    inputs : Inputs
        Settings and data.
    settings : DistillationSettings
        All of the stage.
    chosen : Runtime
        What the training runs on.

    Raises
    ------
    ValueError
        If a student's directory holds another training.
    """
    students = variants(settings)
    examples = (inputs.data, inputs.held_out, inputs.settings)
    for variant in students:
        print(f"{variant.title}: {run_directory(settings, variant)}", flush=True)
        trainer = _make_trainer(variant, inputs, settings, chosen)
        trainer.train(**training.segmentation_arguments(*examples, spacing_mm=inputs.settings.spacing_mm))
    if chosen.is_chief:
        _copy_best(settings, students[1:])


def _make_trainer(
    variant: Variant, inputs: Inputs, settings: stages.DistillationSettings, chosen: Runtime
) -> Trainer:
    """Give the trainer of one student in its directory; all students begin with the same weights."""
    student = inputs.settings
    set_seed(student.seed)
    directory = run_directory(settings, variant)
    # The student from scratch goes on whatever the teacher.
    of_teacher = {} if variant.distillation_fn is None else inputs.teacher_facts
    facts = {**inputs.facts, **of_teacher, "student": variant.name}
    with chosen.strategy.scope():
        network = models.build_segmentation_network(student, replicas=chosen.replicas)
        training.claim_directory(student, directory, facts, chosen)
        keywords = {
            "model_dir": directory,
            "prepare": segmentation_batch_builder(student, student.spacing_mm),
            "schedule": training.fp_schedule(student),
            "epochs": student.epochs,
            "panel": panels.vertebra_panel,
            **training.trainer_keywords(student, chosen),
        }
        if variant.distillation_fn is None:
            return training.VertebraTrainer(network, **keywords)
        teacher = models.compute_in(models.load_model(teacher_directory(settings))[0], chosen.precision)
        distilling = {
            "distillation_weight": settings.distillation_weight,
            "distill_on": "logits",
            "voxels": settings.distillation_voxels,
            "reduction": settings.reduction,
        }
        trainer = VertebraDistiller(network, teacher, **distilling, **keywords)
        trainer.distillation_fn = variant.distillation_fn
        return trainer


def _copy_best(settings: stages.DistillationSettings, students: list[Variant]) -> None:
    """Copy the student of the lowest validation loss (without validation, training loss), and settings."""

    def lowest_loss(variant: Variant) -> float:
        rows = read_history(run_directory(settings, variant) / "history.csv", last_epoch=sys.maxsize)
        validated = [row["val_loss"] for row in rows if row["val_loss"] is not None]
        return min(validated or [row["loss"] for row in rows])

    best = run_directory(settings, min(students, key=lowest_loss))
    copy_model(best, student_directory(settings))
