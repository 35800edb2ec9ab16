"""Code as users of the published module of this name write it: names and keywords of its interface alone.

Run by test_interface.py from the folder ML_3D_Unet, or with --project from the root of the project.

    python interface_code.py FOLDER [--project]
"""

# ruff: noqa: F403, F405

import sys

import tensorflow as tf

if "--project" in sys.argv:
    sys.path.insert(0, ".")
    from ML_3D_Unet.utils.kd import Trainer_KD
    from ML_3D_Unet.utils.layers import *
    from ML_3D_Unet.utils.layers_func import *
    from ML_3D_Unet.utils.train import Trainer
else:
    sys.path.insert(0, "")
    from utils.kd import Trainer_KD
    from utils.layers import *
    from utils.layers_func import *
    from utils.train import Trainer

FOLDER = sys.argv[1]
SIZE, BATCH_SIZE = 16, 2
ARGUMENTS = {
    "input_shape": (SIZE, SIZE, SIZE, 2),
    "n_convs": 1,
    "ksize": [3, 3, 3],
    "padding": "same",
    "pooling": "max",
    "norm": "batch_norm",
    "dropout": [0],
    "upsampling": True,
    "activation": "relu",
    "depth": 3,
}

print("layers:", all(issubclass(layer, tf.keras.layers.Layer) for layer in (
    ConvBlock, DownsampleBlock, EncoderBlock, DeconvBlock, UpsampleBlock, DecoderBlock, Unet3D_layer
)), issubclass(Unet3D, tf.keras.Model))  # fmt: skip

teacher = create_unet3d(n_filters=[4, 4, 8], **ARGUMENTS)
student = create_unet3d_class(n_filters=[2, 2, 4], **ARGUMENTS)
inputs = Input(shape=ARGUMENTS["input_shape"])
unet = Unet3D_layer(1, [2, 2, 4], [3, 3, 3], "same", "max", "batch_norm", [0], True, "relu", 3)
print("as layer:", Model(inputs=inputs, outputs=unet(inputs)).count_params() == student.count_params())
print("outputs:", teacher.output_shape, student.output_shape)


loss_fn = tf.keras.losses.binary_crossentropy
accuracy_fn = tf.keras.metrics.binary_accuracy


def dataset(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, SIZE, 2)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, (x[..., :1] > 0).astype("float32"))).batch(BATCH_SIZE)


strategy = tf.distribute.get_strategy()
train_ds = strategy.experimental_distribute_dataset(dataset(4, 0).repeat())
valid_ds = strategy.experimental_distribute_dataset(dataset(2, 1).repeat())
sizes = {"train_size": 4, "validation_size": 2}

model = create_unet3d_class(n_filters=[2, 2, 4], **ARGUMENTS)
trainer = Trainer(model, tf.keras.optimizers.Adam, 1e-3, f"{FOLDER}/alone")
for epochs in (2, 4, 4):
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

trainer = Trainer_KD(
    create_unet3d_class(n_filters=[2, 2, 4], **ARGUMENTS),
    create_unet3d(n_filters=[4, 4, 8], **ARGUMENTS),
    10,
    tf.keras.optimizers.Adam,
    1e-3,
    f"{FOLDER}/distilled",
)
trainer.train(
    train_ds=train_ds,
    valid_ds=valid_ds,
    **sizes,
    loss_fn=loss_fn,
    accuracy_fn=accuracy_fn,
    BATCH_SIZE=BATCH_SIZE,
    EPOCHS=3,
    save_step=1,
)

saved = tf.keras.models.load_model(f"{FOLDER}/distilled/best.keras")
print("saved:", saved.output_shape, saved.count_params() == student.count_params())
