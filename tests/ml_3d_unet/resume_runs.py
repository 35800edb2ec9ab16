"""A short training that is killed again and again. Started by test_resume.py, in processes of its own."""

from __future__ import annotations

import os
from pathlib import Path

SIZE, EPOCHS, STEPS = 8, 6, 60


def prepare_process() -> None:
    """Make a process exact and quiet, before it uses TensorFlow."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def make_trainer(folder: Path):
    """Give a trainer with all that a checkpoint must hold: averages, loss scale, dropout, moments of Adam."""
    import keras

    from ML_3D_Unet.utils.layers_func import create_unet3d
    from ML_3D_Unet.utils.train import RunOptions, Trainer

    keras.utils.set_random_seed(5)
    model = create_unet3d((SIZE,) * 3 + (1,), n_convs=1, n_filters=[2, 4], norm="batch_norm", dropout=0.2)
    # A scale that grows every seven steps, so that a resume at any step would show one that was lost.
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(1e-2), initial_scale=8.0, dynamic_growth_steps=7
    )
    options = RunOptions(moving_average=0.9, save_minutes=1e-3, accumulate=2)
    return Trainer(model, optimizer, model_dir=folder, options=options)


def data(epoch: int, part):
    """Give the examples of an epoch from a step on; they depend on epoch and step alone."""
    import tensorflow as tf

    def example(step):
        x = tf.random.stateless_normal((2, SIZE, SIZE, SIZE, 1), tf.stack([epoch, tf.cast(step, tf.int32)]))
        return x, tf.cast(x > 0, tf.float32)

    return tf.data.Dataset.range(part.first_step, STEPS).map(example)


def run(folder: str, began) -> None:
    """Train to the end; `began` is set when the first step is about to run."""
    prepare_process()
    import tensorflow as tf

    def data_after_sign(epoch, part):
        began.set()
        return data(epoch, part)

    trainer = make_trainer(Path(folder))
    trainer.train(
        data_after_sign,
        data,
        loss_fn=lambda y, p: tf.reduce_mean(tf.square(y - p), axis=[1, 2, 3, 4]),
        EPOCHS=EPOCHS,
        save_step=2,
    )
    save_variables(trainer, Path(folder) / "variables.npz")


def save_variables(trainer, path: Path) -> None:
    """Write everything that a further epoch would depend on."""
    import numpy as np

    variables = {
        "model": [v.value for v in trainer.model.variables],
        "optimizer": [v.value for v in trainer.optimizer.variables],
        "average": [*trainer.average.averages, trainer.average.updates],
        "run": [trainer.epoch, trainer.state.best],
    }
    arrays = {f"{name}_{k}": v.numpy() for name, group in variables.items() for k, v in enumerate(group)}
    np.savez(path, **arrays)
