"""The same training on one device, on two mirrored ones, and by two workers. Started by test_replicas.py.

    python -m tests.ml_3d_unet.replica_runs one|mirrored FOLDER
    TF_CONFIG=... python -m tests.ml_3d_unet.replica_runs workers FOLDER [STEP TO DIE AT]

Writes FOLDER/result_<rank>.npz: weights after the steps, for Adam its first moments after one.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ML_3D_Unet.utils.kd import Trainer_KD
from ML_3D_Unet.utils.layers_func import create_unet3d
from ML_3D_Unet.utils.optimizers import KernelMuon
from ML_3D_Unet.utils.train import Trainer, WorkerLost

SIZE, BATCH, STEPS = 8, 4, 20
#: An epoch ends with a batch that two replicas cannot share out: its last example is alone in it.
EXAMPLES = BATCH * (STEPS - 1) + 1


def example(epoch: int, position: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng([epoch, position]).normal(size=(SIZE,) * 3 + (1,)).astype("float32")
    return x, (x > 0.3 * (position % 3)).astype("float32")


def data(epoch: int, part, *, dies_at: int | None = None) -> tf.data.Dataset:
    """Give this pipeline's share of an epoch by position; the last batch is filled up with weight 0."""
    share, per_replica = part.replicas // part.pipelines, BATCH // part.replicas
    replicas = range(part.pipeline * share, (part.pipeline + 1) * share)

    def batches():
        for step in range(part.first_step, STEPS):
            if step == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            for replica in replicas:
                first = step * BATCH + replica * per_replica
                places = range(first, first + per_replica)
                pairs = [example(epoch, place % EXAMPLES) for place in places]
                weight = np.array([place < EXAMPLES for place in places], "float32")
                yield (*(np.stack(arrays) for arrays in zip(*pairs)), weight)

    cube = tf.TensorSpec((per_replica, SIZE, SIZE, SIZE, 1))
    signature = (cube, cube, tf.TensorSpec((per_replica,)))
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def loss_fn(y_true, y_pred):
    return tf.reduce_mean(tf.square(y_true - y_pred), axis=[1, 2, 3, 4])


def make_trainer(strategy, optimizer, folder) -> Trainer:
    keras.utils.set_random_seed(5)
    with strategy.scope():
        model = create_unet3d(
            (SIZE,) * 3 + (1,), n_convs=1, n_filters=[2, 4], norm="batch_norm", norm_synchronized=True
        )
        return Trainer(model, optimizer, 0.5 if optimizer == "sgd" else 1e-3, folder)


def train(strategy, folder: Path) -> None:
    sgd = make_trainer(strategy, "sgd", folder / "sgd")
    history = sgd.train(data, data, loss_fn=loss_fn)
    adam = make_trainer(strategy, "adam", folder / "adam")
    adam.train(data, train_size=BATCH, loss_fn=loss_fn)
    distilled = distil(strategy, folder / "kd")
    kernels = train_kernels(strategy, folder / "muon")
    moments = [v for v in adam.optimizer.variables if "momentum" in v.path]
    # Each worker holds its own copy of the weights; all must agree.
    rank = strategy.cluster_resolver.task_id if strategy.cluster_resolver else 0
    arrays = {f"weight_{k}": array for k, array in enumerate(sgd.model.get_weights())}
    arrays |= {f"moment_{k}": v.numpy() for k, v in enumerate(moments)}
    arrays |= {f"distilled_{k}": array for k, array in enumerate(distilled)}
    arrays |= {f"kernel_{k}": array for k, array in enumerate(kernels)}
    losses = [history[-1]["loss"], history[-1]["val_loss"]]
    np.savez(folder / f"result_{rank}.npz", losses=losses, **arrays)


def train_kernels(strategy, folder) -> list[np.ndarray]:
    """Train kernels of several channels by Muon for two steps; give the weights."""
    keras.utils.set_random_seed(5)
    with strategy.scope():
        layers = [keras.layers.Conv3D(8, 3, padding="same", activation="relu") for _ in range(3)]
        model = keras.Sequential([keras.Input((SIZE,) * 3 + (1,)), *layers, keras.layers.Conv3D(1, 1)])
        trainer = Trainer(model, KernelMuon, 1e-3, folder)
    trainer.train(data, train_size=2 * BATCH, loss_fn=loss_fn)
    return model.get_weights()


def distil(strategy, folder) -> list[np.ndarray]:
    """Train a teacher and both students for two steps; give the weights of the one that is distilled."""
    keras.utils.set_random_seed(5)
    with strategy.scope():
        shared = {"norm": "batch_norm", "norm_synchronized": True, "n_convs": 1}
        models = [create_unet3d((SIZE,) * 3 + (1,), n_filters=f, **shared) for f in ([2, 2], [2, 4])]
        trainer = Trainer_KD(*models, 2.0, "sgd", 0.5, folder, student_trained=True)
    trainer.train(data, train_size=2 * BATCH, loss_fn=loss_fn, distillation_fn=loss_fn)
    return trainer.model.get_weights()


def train_until_lost(strategy, folder: Path, dies_at: int | None) -> int:
    """Train three epochs, of which this worker may not see the end of the second; give the exit status."""
    trainer = make_trainer(strategy, "sgd", folder)

    def mortal(epoch, part):
        return data(epoch, part, dies_at=dies_at if epoch == 1 else None)

    try:
        history = trainer.train(mortal, loss_fn=loss_fn, EPOCHS=3)
    except WorkerLost as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"epochs: {len(history)}")
    return 0


def make_strategy(mode: str) -> tf.distribute.Strategy:
    if mode == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    return (
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        if mode == "mirrored"
        else tf.distribute.get_strategy()
    )


if __name__ == "__main__":
    chosen = make_strategy(sys.argv[1])
    if len(sys.argv) > 3:
        sys.exit(train_until_lost(chosen, Path(sys.argv[2]), int(sys.argv[3])))
    train(chosen, Path(sys.argv[2]))
