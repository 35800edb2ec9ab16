"""The two trainings: prepared data in, a model directory out.

Each reads what pre-processing left, builds its network, and hands both to the project's one training
loop (`ML_3D_Unet.utils.train.Trainer`). A model directory holds `best.keras`, `last.keras`,
`history.csv`, `curves.png`, the checkpoints of the resume, and `settings.json`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from ML_3D_Unet.utils.train import Trainer
from utils.learning import datasets, losses, models, runtime
from utils.learning.heatmap import heatmap_batch_builder
from utils.learning.vertebrae import segmentation_batch_builder
from utils.settings import (
    HeatmapTrainingSettings,
    SegmentationTrainingSettings,
    load_settings,
    save_settings,
    settings_as_json,
)

#: Settings that may change between a run and its resume without making it another run.
_FREE_SETTINGS = ("epochs", "device", "work_dir", "skip_bad")


class VertebraTrainer(Trainer):
    """The training loop with the weight of false positives that rises from epoch to epoch.

    In validation the weight is 1: under a rising one, losses of different epochs could not be compared, and
    the first epochs would look best.

    Parameters
    ----------
    schedule : str
        "ramp" or "constant", see `utils.learning.losses.fp_weight`.
    epochs : int
        Epochs of the whole run, which the ramp is stretched to.
    *arguments, **keywords
        Those of `Trainer`.
    """

    def __init__(self, *arguments: Any, schedule: str, epochs: int, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.schedule, self.epochs = schedule, epochs

    def compute_losses(self, x: Any, y: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Give loss and Dice of every example; the epoch is read from its variable inside the step."""
        prediction = self.model(x, training=training)
        weight = tf.constant(1.0)
        if training:
            weight = losses.fp_weight(self.epoch, self.epochs, self.schedule)
        return losses.vertebra_loss(y, prediction, weight), losses.vertebra_dice(y, prediction)


def train_heatmap(settings: HeatmapTrainingSettings) -> int:
    """Train the heatmap network on `work_dir/heatmap` and leave it in `work_dir/models/heatmap`.

    Parameters
    ----------
    settings : HeatmapTrainingSettings
        All of the training.

    Returns
    -------
    int
        Exit status: 0, or 1 after a line that says what is wrong.
    """
    return _reporting(_train_heatmap, settings)


def train_segmentation(settings: SegmentationTrainingSettings) -> int:
    """Train the segmentation network on `work_dir/segmentation`, into `work_dir/models/segmentation`.

    Parameters and result are those of `train_heatmap`.
    """
    return _reporting(_train_segmentation, settings)


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


def _reporting(train: Callable[[Any], list[str]], settings: Any) -> int:
    """Run a training; what is wrong with files or numbers is one line and exit status 1."""
    device = runtime.choose_device(settings.device, settings.preset)
    try:
        runtime.set_seed(settings.seed, exact=device == "cpu")
        bad = train(settings)
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if bad and not settings.skip_bad else 0


def _train_heatmap(settings: HeatmapTrainingSettings) -> list[str]:
    source, directory = settings.work_dir / "heatmap", settings.work_dir / "models" / "heatmap"
    facts = _prepared_facts(source, settings.preset, ("spacing_mm", "heatmap_shape"))
    cases, bad = datasets.read_heatmap_cases(source / "training")
    held_out, bad_held_out = datasets.read_heatmap_cases(source / "validation")
    bad = _named([*bad, *bad_held_out])
    _expect_cases(cases, source / "training")
    # Before the directory is claimed: settings that make no network must not stand in it.
    network = models.build_heatmap_network(settings, cases[0].ct_hu.shape)
    _claim_directory(settings, directory, facts)
    trainer = Trainer(
        network,
        learning_rate=settings.learning_rate,
        model_dir=directory,
        prepare=heatmap_batch_builder(settings),
        learning_rate_schedule=_schedule(settings),
    )
    trainer.train(
        datasets.heatmap_dataset(cases, settings, training=True),
        datasets.heatmap_dataset(held_out, settings, training=False) if held_out else None,
        train_size=settings.examples_per_epoch or len(cases),
        validation_size=len(held_out) or None,
        loss_fn=losses.heatmap_loss,
        accuracy_fn=losses.heatmap_dice,
        BATCH_SIZE=settings.batch_size,
        EPOCHS=settings.epochs,
        save_step=settings.validate_every,
    )
    return bad


def _train_segmentation(settings: SegmentationTrainingSettings) -> list[str]:
    source, directory = settings.work_dir / "segmentation", settings.work_dir / "models" / "segmentation"
    facts = _prepared_facts(source, settings.preset, ("spacing_mm",))
    data, bad = datasets.read_segmentation_data(source / "training").without_bad_cases()
    held_out, bad_held_out = datasets.read_segmentation_data(source / "validation").without_bad_cases()
    bad = _named([*bad, *bad_held_out])
    _expect_cases(data.vertebrae, source / "training")
    # Before the directory is claimed: settings that make no network must not stand in it.
    network = models.build_segmentation_network(settings)
    _claim_directory(settings, directory, facts)
    spacing_mm = facts["spacing_mm"]
    trainer = VertebraTrainer(
        network,
        learning_rate=settings.learning_rate,
        model_dir=directory,
        prepare=segmentation_batch_builder(settings, spacing_mm),
        learning_rate_schedule=_schedule(settings),
        schedule=settings.fp_weight_schedule,
        epochs=settings.epochs,
    )
    pipeline = {"settings": settings, "spacing_mm": spacing_mm}
    trainer.train(
        datasets.segmentation_dataset(data, training=True, **pipeline),
        datasets.segmentation_dataset(held_out, training=False, **pipeline) if held_out.vertebrae else None,
        train_size=datasets.examples_in_epoch(data, settings),
        validation_size=len(held_out.vertebrae) or None,
        loss_fn=losses.vertebra_loss,
        accuracy_fn=losses.vertebra_dice,
        BATCH_SIZE=settings.batch_size,
        EPOCHS=settings.epochs,
        save_step=settings.validate_every,
    )
    return bad


def _named(bad: list[str]) -> list[str]:
    """Print a line for every bad case, and give them back."""
    for line in bad:
        print(f"bad case: {line}", file=sys.stderr)
    return bad


def _schedule(settings: HeatmapTrainingSettings | SegmentationTrainingSettings) -> Callable[[int], float]:
    return cosine_schedule(settings.learning_rate, settings.final_learning_rate, settings.epochs)


def _prepared_facts(source: Path, preset: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Read what pre-processing noted down, and refuse data that were prepared under another preset."""
    found = load_settings(source)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{source / 'settings.json'}: expected {missing}, found {sorted(found)}.")
    if found.get("preset") != preset:
        raise ValueError(
            f"{source}: expected data prepared with --preset {preset}, found preset {found.get('preset')!r}."
        )
    return {name: found[name] for name in names}


def _expect_cases(cases: Any, folder: Path) -> None:
    if not cases:
        raise ValueError(
            f"{folder}: expected prepared cases, found none; run the pre-processing script first."
        )


def _claim_directory(settings: Any, directory: Path, facts: dict[str, Any]) -> None:
    """Write the run's settings beside its model, unless the directory holds a run with other settings."""
    wanted = {**settings_as_json(settings), **facts}
    if (directory / "settings.json").is_file():
        found = load_settings(directory)
        differing = sorted(
            name for name in wanted if name not in _FREE_SETTINGS and found.get(name) != wanted[name]
        )
        if differing:
            raise ValueError(
                f"{directory}: expected a run with the same settings to go on with, found other values of "
                f"{', '.join(differing)}; delete the directory or choose another --work-dir."
            )
        if found.get("epochs") != wanted["epochs"]:
            print(
                f"{directory}: {found.get('epochs')} epochs before, {wanted['epochs']} now: what follows the "
                "length of the run (learning rate, weight of false positives) is stretched from here on."
            )
    save_settings(settings, directory, **facts)
