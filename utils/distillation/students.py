"""Students of the segmentation network: one from scratch, and one for each way to learn from the teacher.

All students have one architecture, begin with the same weights, and see the same examples in the same order
for the same number of steps, so what tells them apart is the loss. Each has a directory of its own,
`work/models/student_runs/<name>`; the best of those with a teacher is copied to `work/models/student`.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ML_3D_Unet.utils.history import read_history
from ML_3D_Unet.utils.kd import DistillingTrainer
from ML_3D_Unet.utils.train import Trainer
from utils.files import sha256_of, written_whole
from utils.learning import losses, models, panels, training
from utils.learning.runtime import Runtime, set_seed
from utils.learning.vertebrae import segmentation_batch_builder
from utils.settings import (
    SETTINGS_FILE,
    AugmentationSettings,
    DistillationSettings,
    RunSettings,
    SegmentationTrainingSettings,
    load_settings,
)

SCRATCH = "scratch"
#: What of a student's settings is its own; the rest is the teacher's.
_OWN_SETTINGS = (*(field.name for field in dataclasses.fields(RunSettings)), "work_dir", "filters", "seed")


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
    *arguments, **keywords
        Those of `DistillingTrainer` and `VertebraLoss`.
    """

    def __init__(self, *arguments: Any, voxels: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.voxels = voxels

    def teacher_loss(self, y: tf.Tensor, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """Give the loss against the teacher of every example."""
        weights = losses.voxel_weights(y, self.weight_of_fp()) if self.voxels == "loss" else 1.0
        return self.distillation_fn(teacher, student, weights)


def variants(settings: DistillationSettings) -> list[Variant]:
    """Give the students to train: from scratch first, then one for each temperature and method."""
    students = [Variant(SCRATCH, "student")]
    if "soft" in settings.methods:
        students += [_soft_variant(temperature) for temperature in dict.fromkeys(settings.temperatures)]
    if "logits" in settings.methods:
        students.append(Variant("logits", "student + KD (logits)", losses.logit_difference))
    return students


def _soft_variant(temperature: float) -> Variant:
    def divergence(
        teacher_logits: tf.Tensor, student_logits: tf.Tensor, weights: tf.Tensor | float
    ) -> tf.Tensor:
        return losses.softened_divergence(teacher_logits, student_logits, temperature, weights)

    return Variant(f"soft-t{temperature:g}", f"student + KD (soft, T = {temperature:g})", divergence)


def teacher_directory(settings: DistillationSettings) -> Path:
    """Give the directory of the teacher."""
    return settings.teacher or settings.work_dir / "models" / "segmentation"


def student_directory(settings: DistillationSettings) -> Path:
    """Give the directory that the best student with a teacher is copied to."""
    return settings.work_dir / "models" / "student"


def run_directory(settings: DistillationSettings, variant: Variant) -> Path:
    """Give the directory of one student's training."""
    return settings.work_dir / "models" / "student_runs" / variant.name


def student_settings(found: dict[str, Any], settings: DistillationSettings) -> SegmentationTrainingSettings:
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
        If the teacher's lack a field.
    """
    fields = {field.name: field for field in dataclasses.fields(SegmentationTrainingSettings)}
    # What is None by default may be younger than the teacher.
    needed = {name for name, kind in fields.items() if kind.default is not None}
    missing = sorted(needed - set(found) - set(_OWN_SETTINGS))
    if missing:
        raise ValueError(
            f"{teacher_directory(settings) / SETTINGS_FILE}: expected the settings of a segmentation "
            f"network, found none of {', '.join(missing)}."
        )
    own = {name: getattr(settings, name) for name in _OWN_SETTINGS}
    read = {name: _as_tuple(found.get(name)) for name in fields if name not in own}
    read["augmentation"] = AugmentationSettings(**{k: _as_tuple(v) for k, v in found["augmentation"].items()})
    changed = {} if settings.epochs is None else {"epochs": settings.epochs}
    return SegmentationTrainingSettings(**{**read, **own, **changed})


def _as_tuple(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def read_facts(settings: DistillationSettings) -> tuple[SegmentationTrainingSettings, dict[str, Any]]:
    """Read what students are trained with, and what must be the same when their training is gone on with.

    Returns
    -------
    SegmentationTrainingSettings
        See `student_settings`.
    dict
        "spacing_mm" of the data, and what is learned from which teacher: another one is another run.

    Raises
    ------
    ValueError
        If there is no teacher, or it is one for data of another spacing.
    """
    directory, source = teacher_directory(settings), settings.work_dir / "segmentation"
    if not (directory / models.MODEL_FILE).is_file():
        raise ValueError(
            f"{directory}: expected a trained segmentation network, found none; run train_segmentation.py "
            "first."
        )
    spacing_mm = training.prepared_facts(source, settings.preset, ("spacing_mm",))["spacing_mm"]
    found = load_settings(directory)
    if found.get("spacing_mm") != spacing_mm:
        raise ValueError(
            f"{directory}: expected a teacher for data of {spacing_mm} mm as in {source}, found one for "
            f"{found.get('spacing_mm')} mm."
        )
    digest = sha256_of(directory / models.MODEL_FILE)
    names = ("distillation_weight", "distillation_voxels")
    facts = {"spacing_mm": spacing_mm, "teacher_sha256": digest, **{n: getattr(settings, n) for n in names}}
    return student_settings(found, settings), facts


def train_students(settings: DistillationSettings, chosen: Runtime) -> list[str]:
    """Train all students, and copy the best of those with a teacher to `work_dir/models/student`.

    Parameters
    ----------
    settings : DistillationSettings
        All of the stage.
    chosen : Runtime
        What the training runs on.

    Returns
    -------
    list of str
        A line for every bad case.

    Raises
    ------
    ValueError
        If there is no teacher, or no data for it.
    """
    students, source = variants(settings), settings.work_dir / "segmentation"
    student, facts = read_facts(settings)
    data, held_out, bad = training.read_splits(source, chosen)
    for variant in students:
        print(f"{variant.title}: {run_directory(settings, variant)}", flush=True)
        trainer = _make_trainer(variant, student, settings, facts, chosen)
        trainer.train(
            **training.segmentation_arguments(data, held_out, student, spacing_mm=facts["spacing_mm"])
        )
    if chosen.is_chief:
        _copy_best(settings, students[1:])
    return bad


def _make_trainer(
    variant: Variant,
    student: SegmentationTrainingSettings,
    settings: DistillationSettings,
    facts: dict[str, Any],
    chosen: Runtime,
) -> Trainer:
    """Give the trainer of one student in its directory; all students begin with the same weights."""
    set_seed(student.seed)
    directory = run_directory(settings, variant)
    if variant.distillation_fn is None:  # it goes on whatever the teacher
        facts = {"spacing_mm": facts["spacing_mm"]}
    with chosen.strategy.scope():
        network = models.build_segmentation_network(student, replicas=chosen.replicas)
        training.claim_directory(student, directory, {**facts, "student": variant.name}, chosen)
        keywords = {
            "model_dir": directory,
            "prepare": segmentation_batch_builder(student, facts["spacing_mm"]),
            "schedule": student.fp_weight_schedule,
            "epochs": student.epochs,
            "panel": panels.vertebra_panel,
            **training.trainer_keywords(student, chosen),
        }
        if variant.distillation_fn is None:
            return training.VertebraTrainer(network, **keywords)
        teacher = models.compute_in(_teacher(settings), chosen.precision)
        distilling = {
            "distillation_weight": settings.distillation_weight,
            "distill_on": "logits",
            "voxels": settings.distillation_voxels,
        }
        trainer = VertebraDistiller(network, teacher, **distilling, **keywords)
        trainer.distillation_fn = variant.distillation_fn
        return trainer


def _teacher(settings: DistillationSettings) -> keras.Model:
    return models.load_model(teacher_directory(settings))[0]


def _copy_best(settings: DistillationSettings, students: list[Variant]) -> None:
    """Copy the student of the lowest validation loss (without validation, training loss), and settings."""

    def lowest_loss(variant: Variant) -> float:
        rows = read_history(run_directory(settings, variant) / "history.csv", last_epoch=sys.maxsize)
        validated = [row["val_loss"] for row in rows if row["val_loss"] is not None]
        return min(validated or [row["loss"] for row in rows])

    best = run_directory(settings, min(students, key=lowest_loss))
    for name in (models.MODEL_FILE, SETTINGS_FILE):
        with written_whole(student_directory(settings) / name) as temporary:
            shutil.copyfile(best / name, temporary)
