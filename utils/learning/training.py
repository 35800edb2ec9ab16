"""The trainings: prepared data in, a model directory out.

Each reads what pre-processing left, builds its network, and hands both to the project's one training
loop (`ML_3D_Unet.utils.train.Trainer`). A model directory holds `best.weights.h5`,
`last.weights.h5`, `history.csv`, `curves.png`, the checkpoints of the resume, and `settings.json`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ML_3D_Unet.utils.optimizers import KernelMuon
from ML_3D_Unet.utils.train import RunOptions, Trainer, WorkerLost
from utils import settings as stages
from utils.learning import datasets, epochs, losses, models, panels, runtime, training_data
from utils.learning.heatmap import heatmap_batch_builder
from utils.learning.labelling import labelling_batch_builder
from utils.learning.localiser import localiser_batch_builder
from utils.learning.model_files import WEIGHTS_SUFFIX
from utils.learning.prepared_data import SegmentationData
from utils.learning.runtime import Runtime
from utils.learning.vertebrae import segmentation_batch_builder
from utils.settings import load_settings, save_settings, settings_as_json

#: Settings whose product is the number of examples of an update.
_BATCH_SETTINGS = ("batch_size", "accumulate")
#: Settings that may change between a run and its resume without making it another run.
_FREE_SETTINGS = (
    *("epochs", "device", "work_dir", "skip_bad", "save_minutes", "tensorboard", "stop_after", "keep_last"),
    # What "auto" comes to is compared instead, as "computed_in" and "replica_count".
    *("precision", "replicas"),
    # How it is computed, not what.
    "xla",
    # Of what is left out the cases that take part are compared, and the name is that of the folder.
    *("name", "exclude"),
    # The networks that a fit of the confidence uses change nothing of the training before it.
    *("segmentation", "heatmap"),
)
#: Optimizers by the names that settings have for them.
OPTIMIZERS = {"adam": keras.optimizers.Adam, "muon": KernelMuon}
#: What a training notes down in its model's `settings.json` beside its settings.
RUN_FACTS = (
    *("spacing_mm", "data_spacing_mm", "training_cases", "validation_cases"),
    *("computed_in", "replica_count"),
)


class VertebraLoss:
    """What makes a `Trainer` one of vertebrae: the weight of false positives that rises from epoch to epoch.

    In validation the weight is 1: under a rising one, losses of different epochs could not be compared, and
    the first epochs would look best.

    Parameters
    ----------
    schedule : str or None
        "ramp" or "constant", see `utils.learning.losses.fp_weight`; None for a loss that has no such weight.
    epochs : int
        Epochs of the whole run, which the ramp is stretched to.
    *arguments, **keywords
        Those of `Trainer`.
    """

    def __init__(self, *arguments: Any, schedule: str | None, epochs: int, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.schedule, self.epochs = schedule, epochs

    def label_loss(self, y: tf.Tensor, prediction: tf.Tensor, training: bool) -> tf.Tensor:
        """Give the loss of every example; the epoch is read from its variable inside the step."""
        if self.schedule is None:
            return self.loss_fn(y, prediction)
        return self.loss_fn(y, prediction, self.weight_of_fp() if training else tf.constant(1.0))

    def weight_of_fp(self) -> tf.Tensor:
        """Give the weight of false positives in the current epoch; 1 for a loss without one."""
        if self.schedule is None:
            return tf.constant(1.0)
        return losses.fp_weight(self.epoch, self.epochs, self.schedule)


class VertebraTrainer(VertebraLoss, Trainer):
    """The training loop of the segmentation network."""


def train_heatmap(settings: stages.HeatmapTrainingSettings) -> int:
    """Train the heatmap network on the prepared data, and leave it in `work_dir/models/<name>`.

    Parameters
    ----------
    settings : HeatmapTrainingSettings
        All of the training.

    Returns
    -------
    int
        Exit status: 0, or 1 after a line that says what is wrong.
    """
    return run_training(_train_heatmap, settings)


def train_labelling(settings: stages.LabellingTrainingSettings) -> int:
    """Train the labelling network on the prepared scans of the heatmap stage, into `work_dir/models/<name>`.

    Parameters and result are those of `train_heatmap`.
    """
    return run_training(_train_labelling, settings)


def train_segmentation(settings: stages.SegmentationTrainingSettings) -> int:
    """Train the segmentation network on the prepared data, into `work_dir/models/<name>`.

    Parameters and result are those of `train_heatmap`.
    """
    return run_training(_train_segmentation, settings)


def cosine_schedule(first: float, last: float, epochs: int) -> Callable[[int], float]:
    """Give the learning rate of an epoch, falling along half a cosine from `first` to `last`.

    Parameters
    ----------
    first, last : float
        Rates of the first and of the last epoch.
    epochs : int
        Epochs of the run.

    Returns
    -------
    callable of int to float
        Rate of an epoch, from 0.
    """

    def rate(epoch: int) -> float:
        progress = min(1.0, epoch / max(1, epochs - 1))
        return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress))

    return rate


def run_training(train: Callable[[Any, Runtime], list[str]], settings: Any) -> int:
    """Run a training on what its settings ask for; what goes wrong is one line.

    Parameters
    ----------
    train : callable (settings, Runtime) -> list of str
        The training; gives a line for every bad case.
    settings : RunSettings
        With `seed` and `preset`.

    Returns
    -------
    int
        Exit status: 0; 1 for bad cases that were not to be left out, for wrong files or numbers, and for a
        lost worker.
    """
    chosen = runtime.start_runtime(settings, settings.preset)
    try:
        runtime.set_seed(settings.seed, exact=chosen.device == "cpu")
        bad = train(settings, chosen)
    except (ValueError, FloatingPointError, OSError, WorkerLost) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (tf.errors.ResourceExhaustedError, MemoryError):
        print(f"error: {_out_of_memory(settings, chosen)}", file=sys.stderr)
        return 1
    return 1 if bad and not settings.skip_bad else 0


def _out_of_memory(settings: Any, chosen: Runtime) -> str:
    """Say in a line what helps: gradients of small batches are added up, so that the update is the same."""
    batch = getattr(settings, "batch_size", None)  # students have that of their teacher
    smaller = "" if batch is None else "--batch-size 1 "
    parts = settings.accumulate * (batch or 2)
    return (
        f"expected a batch to fit into the memory of the {chosen.device.upper()}, found it used up; go on "
        f"from the last checkpoint with {smaller}--accumulate {parts}, which gives the same updates."
    )


def trainer_keywords(settings: stages.RunSettings, chosen: Runtime) -> dict[str, Any]:
    """Give what every training of the project hands to its `Trainer` alike.

    Parameters
    ----------
    settings : RunSettings
        With `learning_rate`, `final_learning_rate` and `epochs`.
    chosen : Runtime
        What the training runs on.

    Returns
    -------
    dict
        Keyword arguments of `Trainer`.
    """
    options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(RunOptions)}
    return {
        "optimizer": OPTIMIZERS[settings.optimizer],
        "learning_rate": settings.learning_rate,
        "learning_rate_schedule": cosine_schedule(
            settings.learning_rate, settings.final_learning_rate, settings.epochs
        ),
        "jit_compile": chosen.compiles_network,
        "model_suffix": WEIGHTS_SUFFIX,
        "options": RunOptions(**options),
    }


def _train_heatmap(settings: stages.HeatmapTrainingSettings, chosen: Runtime) -> list[str]:
    return (_train_localiser if settings.target == "centres" else _train_spine_heatmap)(settings, chosen)


def _train_localiser(settings: stages.HeatmapTrainingSettings, chosen: Runtime) -> list[str]:
    place = _place_of_data(settings)
    folder, facts = training_data.prepared_folder("heatmap", **place, target=settings.target)
    data, held_out, bad = training_data.read_spine_splits(folder, chosen, exclude=settings.exclude)
    facts |= training_data.case_facts(data, held_out, settings)
    with chosen.strategy.scope():
        network = models.build_localiser(settings, replicas=chosen.replicas)
        models.take_over_weights(network, settings.start_from)
        keywords = {"prepare": localiser_batch_builder(settings), "panel": panels.localiser_panel}
        trainer = _claim_trainer(Trainer, network, settings, facts, chosen, **keywords)
    trainer.train(
        **_epoch_arguments(datasets.localiser_dataset, data, held_out, settings),
        loss_fn=losses.localiser_loss,
        accuracy_fn=losses.localiser_dice,
    )
    return bad


def _train_labelling(settings: stages.LabellingTrainingSettings, chosen: Runtime) -> list[str]:
    place = _place_of_data(settings)
    folder, facts = training_data.prepared_folder("heatmap", **place, target="centres")
    data, held_out, bad = training_data.read_spine_splits(folder, chosen, exclude=settings.exclude)
    facts |= training_data.case_facts(data, held_out, settings)
    with chosen.strategy.scope():
        network = models.build_labelling_network(settings, replicas=chosen.replicas)
        models.take_over_weights(network, settings.start_from)
        keywords = {"prepare": labelling_batch_builder(settings)}
        trainer = _claim_trainer(Trainer, network, settings, facts, chosen, **keywords)
    trainer.train(
        **_epoch_arguments(datasets.labelling_dataset, data, held_out, settings),
        loss_fn=losses.labelling_loss,
        accuracy_fn=losses.labelling_accuracy,
    )
    return bad


def _train_spine_heatmap(settings: stages.HeatmapTrainingSettings, chosen: Runtime) -> list[str]:
    place = _place_of_data(settings)
    folder, facts = training_data.prepared_folder("heatmap", **place, target=settings.target)
    cases, held_out, bad = training_data.read_heatmap_splits(folder, chosen, exclude=settings.exclude)
    facts |= training_data.case_facts(cases, held_out, settings)
    with chosen.strategy.scope():
        # Before the directory is claimed: settings that make no network must not stand in it.
        network = models.build_heatmap_network(settings, cases[0].ct_hu.shape, replicas=chosen.replicas)
        models.take_over_weights(network, settings.start_from)
        keywords = {"prepare": heatmap_batch_builder(settings), "panel": panels.heatmap_panel}
        trainer = _claim_trainer(Trainer, network, settings, facts, chosen, **keywords)
    trainer.train(
        **_epoch_arguments(datasets.heatmap_dataset, cases, held_out, settings),
        loss_fn=losses.heatmap_loss,
        accuracy_fn=losses.heatmap_dice,
    )
    return bad


def _train_segmentation(settings: stages.SegmentationTrainingSettings, chosen: Runtime) -> list[str]:
    needs = {"needs_fine_masks": settings.targets == "occupancies"}
    folder, facts = training_data.prepared_folder("segmentation", **_place_of_data(settings), **needs)
    splits = {"exclude": settings.exclude, "t13": settings.t13}
    data, held_out, bad = training_data.read_segmentation_splits(folder, chosen, **splits)
    facts |= training_data.case_facts(data, held_out, settings)
    with chosen.strategy.scope():
        # Before the directory is claimed: settings that make no network must not stand in it.
        network = models.build_segmentation_network(settings, replicas=chosen.replicas)
        models.take_over_weights(network, settings.start_from)
        keywords = {
            "prepare": segmentation_batch_builder(settings, facts["spacing_mm"]),
            "panel": panels.vertebra_panel,
            "schedule": fp_schedule(settings),
            "epochs": settings.epochs,
        }
        trainer = _claim_trainer(VertebraTrainer, network, settings, facts, chosen, **keywords)
    trainer.train(**segmentation_arguments(data, held_out, settings, spacing_mm=facts["spacing_mm"]))
    return bad


def fp_schedule(settings: stages.SegmentationTrainingSettings) -> str | None:
    """Give how the weight of false positives goes on; None for occupancies, whose loss has none."""
    return settings.fp_weight_schedule if settings.targets == "bits" else None


def segmentation_arguments(
    data: SegmentationData,
    held_out: SegmentationData,
    settings: stages.SegmentationTrainingSettings,
    *,
    spacing_mm: float,
) -> dict[str, Any]:
    """Give what `Trainer.train` takes for a training on patches.

    Parameters
    ----------
    data, held_out : SegmentationData
        Training and validation; without a vertebra in the second there is no validation.
    settings : SegmentationTrainingSettings
        Patches, augmentation, epochs and batches.
    spacing_mm : float
        Spacing of the working grid.

    Returns
    -------
    dict
        Keyword arguments.
    """
    dataset = partial(datasets.segmentation_dataset, spacing_mm=spacing_mm)
    loss = losses.occupancy_loss if settings.targets == "occupancies" else losses.vertebra_loss
    functions = {"loss_fn": loss, "accuracy_fn": losses.vertebra_dice}
    return {**_epoch_arguments(dataset, data, held_out, settings), **functions}


def _epoch_arguments(
    dataset: Callable[..., datasets.EpochDataset],
    data: epochs.SplitData,
    held_out: epochs.SplitData,
    settings: epochs.TrainingSettings,
) -> dict[str, Any]:
    """Give what all trainings hand to `Trainer.train` alike; `dataset` makes the pipeline of a split."""
    return {
        "train_ds": dataset(data, settings, training=True),
        "valid_ds": dataset(held_out, settings, training=False) if len(held_out) else None,
        "train_size": epochs.examples_in_epoch(data, settings),
        "validation_size": len(held_out) or None,
        "EPOCHS": settings.epochs,
        "save_step": settings.validate_every,
    }


def model_directory(settings: stages.RunSettings) -> Path:
    """Give the directory of a training's model, `work_dir/models/<name>`."""
    return settings.work_dir / "models" / settings.name


def _claim_trainer(
    kind: type[Trainer],
    network: keras.Model,
    settings: stages.RunSettings,
    facts: dict[str, Any],
    chosen: Runtime,
    **keywords: Any,
) -> Trainer:
    """Claim the directory of a training, and give its trainer, which takes the keywords."""
    directory = model_directory(settings)
    claim_directory(settings, directory, facts, chosen)
    return kind(network, model_dir=directory, **keywords, **trainer_keywords(settings, chosen))


def _place_of_data(settings: stages.RunSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("work_dir", "preset", "spacing_mm")}


def _examples_an_update(settings: Mapping[str, Any]) -> int:
    return math.prod(settings[name] for name in _BATCH_SETTINGS if name in settings)


def claim_directory(settings: Any, directory: Path, facts: dict[str, Any], chosen: Runtime) -> None:
    """Write the run's settings beside its model, once for all workers.

    Raises
    ------
    ValueError
        If the directory holds a run with other settings; the text names them.
    """
    if not chosen.is_chief:
        return
    facts = {**facts, "computed_in": chosen.precision, "replica_count": chosen.replicas}
    wanted = {**settings_as_json(settings), **facts}
    if (directory / "settings.json").is_file():
        # A setting that is younger than the run has its default.
        found = {**settings_as_json(type(settings)()), **load_settings(directory)}
        free = set(_FREE_SETTINGS)
        if _examples_an_update(found) == _examples_an_update(wanted):
            free |= set(_BATCH_SETTINGS)  # as after memory has run out
        differing = sorted(name for name in wanted if name not in free and found.get(name) != wanted[name])
        if differing:
            raise ValueError(
                f"{directory}: expected a run with the same settings to go on with, found other values of "
                f"{', '.join(differing)}; delete the directory or choose another --name."
            )
        if found.get("epochs") != wanted["epochs"]:
            print(
                f"{directory}: {found.get('epochs')} epochs before, {wanted['epochs']} now: what follows the "
                "length of the run (learning rate, weight of false positives) is stretched from here on."
            )
    save_settings(settings, directory, **facts)
