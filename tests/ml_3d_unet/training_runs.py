"""Runs that need a process of their own: to be killed, or to have two devices. Started by test_train.py.

    python -m tests.ml_3d_unet.training_runs killed|resumed|mirrored FOLDER

`resumed` and `mirrored` print one line of JSON, their last.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ML_3D_Unet.utils.layers_func import create_unet3d
from ML_3D_Unet.utils.train import Trainer

SIZE, EPOCHS, KILLED_EPOCH = 8, 4, 2


def squared_error(y_true, y_pred):
    return tf.reduce_mean(tf.square(y_true - y_pred), axis=[1, 2, 3, 4])


def examples(count, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, SIZE, 1)).astype("float32")
    return x, (x > 0).astype("float32")


def make_model(norm="batch_norm", dropout=0.2):
    keras.utils.set_random_seed(5)
    return create_unet3d((SIZE,) * 3 + (1,), n_convs=1, n_filters=[2, 4], norm=norm, dropout=dropout)


def dataset_of_epoch(epoch, *, kill):
    """Three batches of a dataset that depends on the epoch; `kill` ends the process before the last."""

    def die(index):
        if kill and epoch == KILLED_EPOCH and index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    batches = tf.data.Dataset.from_tensor_slices(examples(6, seed=epoch)).batch(2).enumerate()
    return batches.map(lambda index, pair: (tf.numpy_function(die, [index], tf.int64), pair)).map(
        lambda _, pair: pair
    )


def train(folder, *, kill):
    trainer = Trainer(make_model(), learning_rate=1e-2, model_dir=folder)
    valid = tf.data.Dataset.from_tensor_slices(examples(3, seed=99)).batch(2)

    def loss_fn(y_true, y_pred):  # differs from epoch to epoch
        return squared_error(y_true, y_pred) * (1 + tf.cast(trainer.epoch, tf.float32))

    history = trainer.train(
        lambda epoch: dataset_of_epoch(epoch, kill=kill), valid, loss_fn=loss_fn, EPOCHS=EPOCHS, save_step=2
    )
    return trainer, history


def compare_resumed(folder):
    """Go on with the killed run, run another unbroken, and tell what differs between them."""
    pair = [train(folder / name, kill=False) for name in ("killed", "unbroken")]
    states = [[v.numpy() for v in (*t.model.variables, *t.optimizer.variables)] for t, _ in pair]
    losses = [[(row["epoch"], row["loss"], row["val_loss"]) for row in history] for _, history in pair]
    differing = [a.tolist() for a, b in zip(*states) if not np.array_equal(a, b)]
    best = [
        keras.models.load_model(folder / name / "best.keras").get_weights() for name in ("killed", "unbroken")
    ]
    return {
        "variables": len(states[0]),
        "differing": differing,
        "same_losses": losses[0] == losses[1],
        "same_best": all(np.array_equal(a, b) for a, b in zip(*best)),
        "epochs": [epoch for epoch, _, _ in losses[0]],
    }


def weights_after_training(strategy, folder, count, **model_arguments):
    """Train for two epochs on `count` examples in batches of 4; give weights and history."""
    with strategy.scope():
        trainer = Trainer(make_model(**model_arguments), "sgd", 0.5, folder)
    batches = tf.data.Dataset.from_tensor_slices(examples(count)).batch(4)
    history = trainer.train(batches, batches, loss_fn=squared_error, EPOCHS=2)
    return trainer.model.get_weights(), history


def compare_mirrored(folder):
    """Train on two devices and on one, and tell how far the results lie apart."""
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    two, one = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.get_strategy()
    # 6 examples are a batch of 4 and one of 2.
    runs = [
        weights_after_training(strategy, folder / str(index), 6, norm=None, dropout=None)
        for index, strategy in enumerate((one, two))
    ]
    distance = max(float(np.abs(a - b).max()) for a, b in zip(runs[0][0], runs[1][0]))
    losses = [[[row["loss"], row["val_loss"]] for row in history] for _, history in runs]
    # 5 examples: the fifth is left out of training, and is one replica's alone in validation.
    weights, history = weights_after_training(two, folder / "odd", 5)
    saved = keras.models.load_model(folder / "odd" / "last.keras")
    expected = float(tf.reduce_mean(squared_error(examples(5)[1], saved(examples(5)[0]))))
    resumed = weights_after_training(two, folder / "odd", 5)
    return {
        "distance": distance,
        "losses": losses,
        "odd_is_finite": all(bool(np.isfinite(w).all()) for w in weights),
        "odd_val_loss": [history[-1]["val_loss"], expected],
        "restored": all(np.array_equal(a, b) for a, b in zip(weights, resumed[0])),
    }


if __name__ == "__main__":
    mode, run_folder = sys.argv[1], Path(sys.argv[2])
    tf.config.experimental.enable_op_determinism()
    if mode == "killed":
        train(run_folder / "killed", kill=True)
    else:
        print(json.dumps((compare_resumed if mode == "resumed" else compare_mirrored)(run_folder)))
