"""The published interface, from its facts alone: what each layer takes, holds, gives and comes back from.

That code written for it runs from both places it may be imported from is tested by test_interface.py.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils import layers, layers_func
from ML_3D_Unet.utils.kd import Trainer_KD
from ML_3D_Unet.utils.layers import create_unet3d_class
from ML_3D_Unet.utils.layers_func import create_unet3d
from ML_3D_Unet.utils.train import Trainer

FULL = (128, 128, 128, 2)
FILTERS, KERNELS, RATES = [2, 3, 4], [[3, 3, 3], [3, 3, 1], [1, 3, 3]], [0.5, 0.25]
DOWN = "n_convs n_filters ksize padding norm pooling dropout activation depth id"
UP = "n_convs n_filters ksize padding activation norm dropout depth upsampling id"
WHOLE = "n_convs n_filters ksize padding pooling norm dropout upsampling activation depth"
#: Every class with its arguments in their order, and values for them.
CLASSES = {
    "ConvBlock": (
        "n_convs n_filters ksize padding norm activation depth id",
        (2, 4, 3, "same", "batch_norm", "relu", 4, 1),
    ),
    "DownsampleBlock": (DOWN, (2, 4, [3, 3, 3], "same", "batch_norm", "avg", 0.5, "relu", 3, "encoder")),
    "EncoderBlock": (DOWN, (2, FILTERS, KERNELS, "same", "batch_norm", "avg", RATES, "relu", 3, "encoder")),
    "DeconvBlock": (
        "n_filters padding norm activation depth id",
        (4, "same", "batch_norm", "relu", 1, "decoder"),
    ),
    "UpsampleBlock": (UP, (2, 4, [3, 3, 3], "same", "relu", "batch_norm", 0.5, 3, False, 7)),
    "DecoderBlock": (UP, (2, FILTERS, 3, "same", "relu", "batch_norm", RATES, 3, True, "decoder")),
    "Unet3D_layer": (WHOLE, (2, FILTERS, [3, 3, 3], "same", "avg", None, RATES, False, "relu", 3)),
    "Unet3D": (WHOLE, (2, FILTERS, KERNELS, "same", "max", "batch_norm", RATES, True, "elu", 3)),
}
NETWORK = {
    **{"n_convs": 2, "n_filters": FILTERS, "ksize": [3, 3, 3], "padding": "same", "pooling": "avg"},
    **{"norm": "batch_norm", "dropout": RATES, "upsampling": True, "activation": "relu", "depth": 3},
}


def made(name):
    return getattr(layers, name)(*CLASSES[name][1])


def sizes(model):
    """Parameters, trainable variables and others."""
    return model.count_params(), len(model.trainable_variables), len(model.non_trainable_variables)


def as_model(function, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, function(inputs))


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_have_their_order_and_are_attributes_and_configuration(name):
    names, values = CLASSES[name]
    layer = made(name)
    config = layer.get_config()
    again = type(layer).from_config(config)
    for argument, value in zip(names.split(), values, strict=True):
        for held in (getattr(layer, argument), getattr(again, argument), config[argument]):
            assert held == value and type(held) is type(value), argument
    assert again.get_config() == config


@pytest.mark.parametrize("name", ["ConvBlock", "DownsampleBlock", "EncoderBlock"])
def test_a_block_its_copy_and_its_function_have_the_same_sizes_at_full_size(name):
    layer = made(name)
    copy = type(layer).from_config(layer.get_config())
    arguments = {key: value for key, value in zip(CLASSES[name][0].split(), CLASSES[name][1]) if key != "id"}
    functions = {
        "ConvBlock": layers_func.n_conv_block,
        "DownsampleBlock": layers_func.downsample_block,
        "EncoderBlock": layers_func.encoder_unet3d,
    }
    named = {} if name == "EncoderBlock" else {"name": "encoder"}
    flat = as_model(lambda x: functions[name](x, **arguments, **named), FULL)
    assert sizes(as_model(layer, FULL)) == sizes(as_model(copy, FULL)) == sizes(flat)


def test_convolution_block_has_the_parameters_worked_out_by_hand():
    # 27 taps from 2 to 4 and from 4 to 4 channels with bias, and four numbers a channel of a normalisation.
    expected = 27 * 2 * 4 + 4 + 4 * 4 + 27 * 4 * 4 + 4 + 4 * 4
    assert sizes(as_model(made("ConvBlock"), FULL)) == (expected, 8, 4)


def test_encoder_gives_its_output_and_a_dictionary_by_level_that_decoder_and_blocks_take():
    inputs = keras.Input(FULL)
    x, layers_to_concat = made("EncoderBlock")(inputs)
    assert x.shape == (None, 32, 32, 32, 4)
    assert {level: skip.shape for level, skip in layers_to_concat.items()} == {
        "1": (None, 128, 128, 128, 2),
        "2": (None, 64, 64, 64, 3),
    }
    assert made("DecoderBlock")(x, layers_to_concat).shape == (None, 128, 128, 128, 2)
    for level, size in (("2", 64), ("1", 128)):
        joined = made("UpsampleBlock")(x, layers_to_concat[level])
        assert joined.shape == (None, size, size, size, 4)
    assert made("DeconvBlock")(x).shape == (None, 64, 64, 64, 4)


def test_functions_of_encoder_and_decoder_take_and_give_the_dictionary_first():
    inputs = keras.Input((8, 8, 8, 1))
    layers_to_concat, x = layers_func.encoder_unet3d(inputs, n_filters=FILTERS, depth=3)
    assert list(layers_to_concat) == ["1", "2"]
    up = layers_func.upsample_block(layers_to_concat, x, n_filters=3, depth=2)
    assert up.shape == (None, 4, 4, 4, 3)
    out = layers_func.decoder_unet3d(layers_to_concat, x, n_filters=FILTERS, depth=3)
    assert out.shape == (None, 8, 8, 8, 2)


@pytest.mark.parametrize("arguments", [NETWORK, {**NETWORK, "upsampling": False, "norm": None}])
def test_networks_of_every_form_have_the_same_sizes_at_full_size(arguments):
    flat, one_layer = create_unet3d(FULL, **arguments), create_unet3d_class(FULL, **arguments)
    subclassed = layers.Unet3D(**arguments)
    assert subclassed(keras.Input(FULL)).shape == (None, 128, 128, 128, 1)
    assert sizes(flat) == sizes(one_layer) == sizes(subclassed)


def test_parameters_of_the_published_networks_at_full_size():
    for n_filters, expected in (([16, 32, 64, 128], 1_476_817), ([8, 16, 32, 64], 370_345)):
        arguments = {**NETWORK, "n_filters": n_filters, "dropout": [0], "depth": 4}
        assert create_unet3d_class(FULL, **arguments).count_params() == expected
        assert create_unet3d(FULL, **arguments).count_params() == expected


def test_the_model_may_be_called_with_further_keywords():
    model, x = layers.Unet3D(**NETWORK), np.ones((1, 8, 8, 8, 2), "float32")
    np.testing.assert_array_equal(model(x, trainable=True), model(x))


def test_order_of_arguments_of_the_class_form_and_of_the_functions():
    def names(function):
        kinds = inspect.signature(function).parameters.values()
        return " ".join(kind.name for kind in kinds if kind.kind == kind.POSITIONAL_OR_KEYWORD)

    assert names(create_unet3d_class) == f"input_shape {WHOLE}"
    shared = "x n_convs n_filters ksize padding"
    assert names(layers_func.n_conv_block) == f"{shared} norm activation depth name"
    assert names(layers_func.downsample_block) == f"{shared} activation pooling norm dropout depth name"
    assert names(layers_func.upsample_block).startswith("layers_to_concat x n_convs")
    assert names(layers_func.encoder_unet3d) == f"{shared} activation pooling norm dropout depth"
    assert names(layers_func.decoder_unet3d).startswith("layers_to_concat x n_convs")
    assert names(Trainer.__init__) == "self model optimizer learning_rate model_dir"
    order = "self student_model teacher_model temperature optimizer learning_rate model_dir"
    assert names(Trainer_KD.__init__) == order


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("create", [create_unet3d, create_unet3d_class])
def test_one_triple_is_one_kernel_also_at_depth_3(create):
    triple = create(FULL, **{**NETWORK, "ksize": [3, 1, 5]})
    # Every convolution but the last has 15 taps: those from 2, 3 and 4 channels and the joined ones.
    pairs = [(2, 2), (2, 2), (2, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4), (7, 3), (3, 3), (5, 2), (2, 2)]
    assert triple.count_params() == sum(15 * a * b + 5 * b for a, b in pairs) + 3


@pytest.mark.parametrize("create", [create_unet3d, create_unet3d_class])
@pytest.mark.parametrize(
    ("norm", "others"), [(None, 0), (False, 0), ("batch_norm", 24), (True, 24), ("instance_norm", 0)]
)
def test_kinds_of_normalisation(create, norm, others):
    model = create((8, 8, 8, 1), **{**NETWORK, "norm": norm, "dropout": None})
    assert sizes(model)[2] == others


@pytest.mark.parametrize("create", [create_unet3d, create_unet3d_class])
def test_sizes_and_rates_may_be_arrays(create):
    arrays = {"n_filters": np.array(FILTERS), "ksize": np.array(KERNELS), "dropout": np.array(RATES)}
    lists = {"n_filters": FILTERS, "ksize": KERNELS, "dropout": RATES}
    models = [create((8, 8, 8, 1), **{**NETWORK, **values}) for values in (arrays, lists)]
    assert [w.shape for w in models[0].weights] == [w.shape for w in models[1].weights]


def test_functions_leave_out_keywords_that_nothing_takes_and_hand_on_those_of_the_convolutions():
    model = create_unet3d((8, 8, 8, 1), **NETWORK, strange=3, use_bias=False)
    plain = create_unet3d((8, 8, 8, 1), **NETWORK)
    # Without biases of 4 × 2 + 2 × 3 + 2 × 4 + 2 × 3 + 2 × 2 filters; the last convolution keeps its own.
    assert plain.count_params() - model.count_params() == 32
    with pytest.raises((TypeError, ValueError), match="strange"):
        create_unet3d_class((8, 8, 8, 1), **NETWORK, strange=3)


# ---------------------------------------------------------------- trainers

CUBE = (8, 8, 8, 1)
SMALL = {**NETWORK, "n_convs": 1, "n_filters": [2, 4], "dropout": [0], "depth": 2}
LOSSES = {
    "loss_fn": tf.keras.losses.binary_crossentropy,
    "accuracy_fn": tf.keras.metrics.binary_accuracy,
}


def endless(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, *CUBE)).astype("float32")
    pairs = tf.data.Dataset.from_tensor_slices((x, (x > 0).astype("float32"))).batch(2).repeat()
    return tf.distribute.get_strategy().experimental_distribute_dataset(pairs)


def data():
    sizes_of_data = {"train_size": 4, "validation_size": 2, "BATCH_SIZE": 2, "save_step": 1}
    return {"train_ds": endless(4, 0), "valid_ds": endless(2, 1), **sizes_of_data, **LOSSES}


def test_a_trainer_resumes_and_says_when_it_is_done(tmp_path, capsys):
    model = create_unet3d(CUBE, **SMALL)
    trainer = Trainer(model, tf.keras.optimizers.Adam, 2e-3, str(tmp_path / "run"))
    assert isinstance(trainer.optimizer, keras.optimizers.Adam)
    assert float(trainer.optimizer.learning_rate) == pytest.approx(2e-3)
    lengths = [len(trainer.train(**data(), EPOCHS=epochs)) for epochs in (2, 4, 4)]
    assert lengths == [2, 4, 4]
    said = capsys.readouterr().out
    assert "going on after epoch 2, of 4 epochs" in said and "already complete, 4 of 4 epochs" in said
    assert int(trainer.optimizer.iterations) == 4 * 2  # two steps an epoch


def test_losses_of_keras_that_give_a_value_a_voxel_are_averaged(tmp_path):
    model = create_unet3d(CUBE, **SMALL)
    trainer = Trainer(model, tf.keras.optimizers.SGD, 0.0, tmp_path)
    (row,) = trainer.train(**data(), EPOCHS=1)
    batches = [next(iter(endless(2, 1)))]
    y, p = batches[0][1].numpy().astype("float64"), model(batches[0][0]).numpy().astype("float64")
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert row["val_loss"] == pytest.approx(expected, rel=1e-4)
    assert row["val_accuracy"] == pytest.approx(((p > 0.5) == (y > 0.5)).mean(), abs=1e-6)


def test_a_student_in_class_form_learns_from_a_flat_teacher(tmp_path):
    student, teacher = (
        create_unet3d_class(CUBE, **{**SMALL, "n_filters": [2, 2]}),
        create_unet3d(CUBE, **SMALL),
    )
    trainer = Trainer_KD(student, teacher, 10, tf.keras.optimizers.Adam, 1e-3, str(tmp_path / "run"))
    divergence = tf.keras.losses.KLDivergence()
    histories = trainer.train(**data(), EPOCHS=3, distillation_fn=divergence)
    assert {name: len(rows) for name, rows in histories.items()} == {
        "teacher": 3,
        "student_scratch": 3,
        "student": 3,
    }
    assert all(np.isfinite(row["loss"]) for rows in histories.values() for row in rows)
    folders = {path.name for path in tmp_path.iterdir()}
    assert folders == {"run", "run_student_scratch", "run_teacher_scratch"}
