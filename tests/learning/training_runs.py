"""Trainings that need a process of their own, for deterministic operations. Started by test_training.py.

    python -m tests.learning.training_runs FOLDER

FOLDER holds `whole` and `broken`, each with all prepared data. Trains on the one unbroken, and on
the other stopped after its first epoch and started again; the last line printed is JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow as tf

from ML_3D_Unet.utils.train import Trainer
from tests.learning import examples
from utils.learning import models, training
from utils.settings import load_settings


def stop_after_first_epoch(self, *arguments):
    save_epoch(self, *arguments)
    raise KeyboardInterrupt


save_epoch = Trainer._save_epoch


TRAININGS = {
    "segmentation": (training.train_segmentation, examples.training_settings),
    "heatmap": (training.train_heatmap, examples.localiser_settings),
    "labelling": (training.train_labelling, examples.labelling_settings),
}


def differing_weights(folder: Path, stage: str) -> int:
    weights = []
    for name in ("whole", "broken"):
        directory = folder / name / "models" / stage
        network = models.build_network(load_settings(directory), source=directory)
        network.load_weights(directory / "last.weights.h5")
        weights.append(network.get_weights())
    return sum(not np.array_equal(a, b) for a, b in zip(*weights))


def compare(folder: Path, stage: str) -> dict:
    train, settings_of = TRAININGS[stage]
    status = [train(settings_of(folder / "whole"))]
    stopped = False
    with mock.patch.object(Trainer, "_save_epoch", stop_after_first_epoch):
        try:
            train(settings_of(folder / "broken"))
        except KeyboardInterrupt:
            stopped = True
    halfway = examples.history_of(folder / "broken" / "models" / stage)
    status.append(train(settings_of(folder / "broken")))
    return {
        "status": status,
        "stopped": stopped,
        "epochs_before": [row["epoch"] for row in halfway],
        "differing_weights": differing_weights(folder, stage),
    }


if __name__ == "__main__":
    tf.config.experimental.enable_op_determinism()
    print(json.dumps({stage: compare(Path(sys.argv[1]), stage) for stage in TRAININGS}))
