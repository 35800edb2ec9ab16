"""Code as users of the published module of this name write it: names and keywords of its interface alone.

Run by test_interface.py from the folder ML_3D_Unet, or with --project from the root of the project.

    python interface_code.py FOLDER [--project]
"""

import sys

import numpy as np
import tensorflow as tf

if "--project" in sys.argv:
    sys.path.insert(0, ".")
    from ML_3D_Unet.utils.kd import Trainer_KD
    from ML_3D_Unet.utils.layers import (
        ConvBlock,
        DecoderBlock,
        DeconvBlock,
        DownsampleBlock,
        EncoderBlock,
        Unet3D,
        Unet3D_layer,
        UpsampleBlock,
        create_unet3d_class,
    )
    from ML_3D_Unet.utils.layers_func import create_unet3d
    from ML_3D_Unet.utils.train import Trainer
else:
    sys.path.insert(0, "")
    from utils.kd import Trainer_KD
    from utils.layers import (
        ConvBlock,
        DecoderBlock,
        DeconvBlock,
        DownsampleBlock,
        EncoderBlock,
        Unet3D,
        Unet3D_layer,
        UpsampleBlock,
        create_unet3d_class,
    )
    from utils.layers_func import create_unet3d
    from utils.train import Trainer

FOLDER = sys.argv[1]
SIZE, BATCH_SIZE = 16, 2
ARGUMENTS = {
    "input_shape": (SIZE, SIZE, SIZE, 2),
    "n_convs": 2,
    "ksize": [3, 3, 3],
    "padding": "same",
    "pooling": "max",
    "norm": "batch_norm",
    "dropout": [0],
    "upsampling": True,
    "activation": "relu",
    "depth": 4,
}

print("layers:", all(issubclass(layer, tf.keras.layers.Layer) for layer in (
    ConvBlock, DownsampleBlock, EncoderBlock, DeconvBlock, UpsampleBlock, DecoderBlock, Unet3D_layer
)), issubclass(Unet3D, tf.keras.Model))  # fmt: skip

teacher = create_unet3d(n_filters=[4, 4, 8, 8], **ARGUMENTS)
student = create_unet3d_class(n_filters=[2, 2, 4, 4], **ARGUMENTS)
print("outputs:", teacher.output_shape, student.output_shape)


def loss_fn(y_true, y_pred):
    return tf.reduce_mean(tf.keras.losses.binary_crossentropy(y_true, y_pred), axis=[1, 2, 3])


def accuracy_fn(y_true, y_pred):
    return tf.reduce_mean(tf.cast(tf.equal(y_true > 0.5, y_pred > 0.5), tf.float32), axis=[1, 2, 3, 4])


def distillation_fn(teacher_soft, student_soft):
    return tf.reduce_mean(tf.square(teacher_soft - student_soft), axis=[1, 2, 3, 4])


def dataset(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, SIZE, 2)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, (x[..., :1] > 0).astype("float32"))).batch(BATCH_SIZE)


strategy = tf.distribute.get_strategy()
train_ds = strategy.experimental_distribute_dataset(dataset(4, 0))
valid_ds = strategy.experimental_distribute_dataset(dataset(2, 1))
sizes = {"train_size": 4, "validation_size": 2}

for epochs in (2, 4, 4):
    model = create_unet3d_class(n_filters=[2, 2, 4, 4], **ARGUMENTS)
    trainer = Trainer(model=model, optimizer=None, learning_rate=1e-3, model_dir=f"{FOLDER}/alone")
    trainer.train(
        train_ds=train_ds,
        valid_ds=valid_ds,
        **sizes,
        loss_fn=loss_fn,
        accuracy_fn=accuracy_fn,
        BATCH_SIZE=BATCH_SIZE,
        EPOCHS=epochs,
        save_step=1,
    )

for epochs in (1, 2):
    trainer = Trainer_KD(
        student_model=create_unet3d_class(n_filters=[2, 2, 4, 4], **ARGUMENTS),
        teacher_model=create_unet3d(n_filters=[4, 4, 8, 8], **ARGUMENTS),
        temperature=2,
        optimizer=tf.keras.optimizers.Adam(1e-3),
        learning_rate=1e-3,
        model_dir=f"{FOLDER}/distilled",
    )
    trainer.train(
        train_ds=train_ds,
        valid_ds=valid_ds,
        **sizes,
        loss_fn=loss_fn,
        accuracy_fn=accuracy_fn,
        distillation_fn=distillation_fn,
        BATCH_SIZE=BATCH_SIZE,
        EPOCHS=epochs,
        save_step=1,
    )

saved = tf.keras.models.load_model(f"{FOLDER}/distilled/best.keras")
print("saved:", saved.output_shape, saved.count_params() == student.count_params())
