"""The class form of the 3D U-Net: the same numbers as the flat one, and what a configuration gives back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils import layers
from ML_3D_Unet.utils.layers import Unet3D, create_unet3d_class, fresh_copy, logits_model
from ML_3D_Unet.utils.layers_func import create_unet3d
from tests import forked
from tests.ml_3d_unet.test_layers_func import CUBE, set_kernels

SHAPE = (8, 8, 8, 2)
X = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype("float32")
#: Every argument with something else than its default at least once.
VARIANTS = {
    "plain": {},
    "normed": {"norm": "batch_norm", "norm_momentum": 0.9, "dropout": [0]},
    "synchronised": {"norm": "batch_norm", "norm_synchronized": True},
    "transposed": {"upsampling": False, "norm": "batch_norm", "pooling": "avg"},
    "kernels": {"ksize": [[3, 3, 1], [1, 1, 3], [3, 3, 3]], "n_convs": 3},
    "one triple": {"ksize": (3, 1, 3), "activation": "elu"},
    "scalar": {"ksize": 5, "n_convs": 1, "depth": 3},
    "softmax": {"n_outputs": 2, "final_activation": "softmax", "stem": False},
    "dropout": {"dropout": [0.25, 0.5], "kernel_initializer": "he_normal"},
    "functions": {"activation": keras.activations.gelu, "final_activation": keras.activations.tanh},
}


def in_all_forms(**arguments):
    """The flat model, the model of one layer with its weights, and the subclassed one with them too."""
    arguments = {"n_filters": [2, 3, 4], **arguments}
    flat = create_unet3d(SHAPE, **arguments)
    subclassed = Unet3D(**arguments)
    subclassed.build((None, *SHAPE))
    models = [flat, create_unet3d_class(SHAPE, **arguments), subclassed]
    for model in models[1:]:
        model.set_weights(flat.get_weights())
    return models


@pytest.fixture(params=list(VARIANTS))
def models(request):
    return in_all_forms(**VARIANTS[request.param])


# ---------------------------------------------------------------- the same network


def test_all_forms_give_the_same_numbers(models):
    flat, *others = models
    for model in others:
        assert [w.shape for w in model.weights] == [w.shape for w in flat.weights]
        assert model.count_params() == flat.count_params()
        np.testing.assert_array_equal(model(X), flat(X))


@pytest.mark.parametrize("n_filters", [[16, 32, 64, 128], [8, 16, 32, 64]])
def test_parameters_of_the_published_networks(n_filters):
    model = create_unet3d_class((16, 16, 16, 2), n_filters=n_filters, norm="batch_norm", dropout=[0])
    assert model.count_params() == {16: 1_476_817, 8: 370_345}[n_filters[0]]


def test_training_moves_the_statistics_alike():
    models = in_all_forms(norm="batch_norm", norm_momentum=0.5)
    outputs = [model(X, training=True) for model in models]
    for model, output in zip(models[1:], outputs[1:]):
        np.testing.assert_array_equal(output, outputs[0])
        for a, b in zip(model.non_trainable_weights, models[0].non_trainable_weights):
            np.testing.assert_array_equal(a, b)
    moved = models[1].non_trainable_weights[0]
    assert np.abs(np.array(moved)).max() > 0  # means begin at 0


def test_dropout_only_in_training():
    model = create_unet3d_class(SHAPE, n_filters=[2, 3, 4], dropout=0.5)
    np.testing.assert_array_equal(model(X), model(X, training=False))
    assert not np.array_equal(model(X, training=True), model(X, training=True))


def test_gradients_reach_every_weight():
    model = in_all_forms(norm="batch_norm")[1]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(X, training=True)))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert len(gradients) == len(model.trainable_variables) and all(g is not None for g in gradients)


def test_compiled_with_xla_it_gives_the_same():
    model = in_all_forms(norm="batch_norm")[1]
    compiled = tf.function(lambda x: model(x, training=False), jit_compile=True)
    np.testing.assert_allclose(compiled(X), model(X), atol=1e-5)


# ---------------------------------------------------------------- blocks by hand


def test_conv_block_by_hand():
    block = layers.ConvBlock(n_convs=3, n_filters=1, ksize=1, activation=None)
    block.build(CUBE.shape)
    set_kernels(block, value=-2.0)
    np.testing.assert_array_equal(block(CUBE), -8 * CUBE)
    assert block.compute_output_shape((None, 2, 2, 2, 1)) == (None, 2, 2, 2, 1)


@pytest.mark.parametrize(("pooling", "expected"), [("max", 7.0), ("avg", 3.5)])
def test_downsample_block_by_hand(pooling, expected):
    block = layers.DownsampleBlock(n_convs=1, n_filters=1, ksize=1, pooling=pooling)
    block.build(CUBE.shape)
    set_kernels(block)
    conv_out, below = block(CUBE)
    np.testing.assert_array_equal(conv_out, CUBE)
    np.testing.assert_array_equal(below, np.full((1, 1, 1, 1, 1), expected))


def test_deconv_block_by_hand():
    one = np.full((1, 1, 1, 1, 1), 3.0, "float32")
    transposed = layers.DeconvBlock(n_filters=2, activation=None)
    transposed.build(one.shape)
    set_kernels(transposed, 2.0)
    np.testing.assert_array_equal(transposed(one), np.full((1, 2, 2, 2, 2), 6.0))


def test_upsample_block_by_hand():
    block = layers.UpsampleBlock(n_convs=1, n_filters=1, ksize=1)
    below = np.full((1, 1, 1, 1, 1), 10.0, "float32")
    block.build(below.shape, CUBE.shape)
    set_kernels(block)
    np.testing.assert_array_equal(block(below, CUBE), CUBE + 10)


@pytest.mark.parametrize("upsampling", [True, False])
def test_upsample_block_doubles_as_often_as_its_skip_asks_for(upsampling):
    block = layers.UpsampleBlock(n_convs=1, n_filters=1, ksize=1, upsampling=upsampling)
    below, skip = np.full((1, 1, 1, 1, 1), 10.0, "float32"), np.ones((1, 4, 4, 4, 1), "float32")
    block.build(below.shape, skip.shape)
    set_kernels(block)
    np.testing.assert_array_equal(block(below, skip), np.full((1, 4, 4, 4, 1), 11.0))


def test_encoder_and_decoder_can_be_put_together_by_hand():
    x = np.zeros((1, 8, 8, 8, 1), "float32")
    encoder = layers.EncoderBlock(n_convs=1, n_filters=[2, 4, 8])
    below, skips = encoder(x)
    assert {level: skip.shape[1:] for level, skip in skips.items()} == {"1": (8, 8, 8, 2), "2": (4, 4, 4, 4)}
    assert below.shape == (1, 2, 2, 2, 8)
    assert encoder.shapes(x.shape) == ((1, 2, 2, 2, 8), {"1": (1, 8, 8, 8, 2), "2": (1, 4, 4, 4, 4)})
    assert layers.DecoderBlock(n_convs=1, n_filters=[2, 4, 8])(below, skips).shape == (1, 8, 8, 8, 2)


# ---------------------------------------------------------------- configurations and files


@pytest.mark.parametrize(
    "block",
    [
        layers.ConvBlock(3, 5, (3, 1, 3), norm="batch_norm", activation="elu", norm_momentum=0.9, name="a"),
        layers.DownsampleBlock(1, 4, pooling="avg", dropout=0.2, name="b"),
        layers.EncoderBlock(1, [2, 4], ksize=[[3, 3, 1], [1, 1, 3]], dropout=[0.1], depth=2),
        layers.DeconvBlock(4, "same", "batch_norm", keras.activations.gelu, depth=1, id=3),
        layers.UpsampleBlock(2, 4, dropout=0.1, depth=1, upsampling=False, norm_synchronized=True),
        layers.DecoderBlock(1, (2, 4), use_bias=False),
        layers.UnetLogits(2, False, n_filters=[2, 4], pooling="avg"),
        layers.Unet3D_layer(n_filters=[2, 4], n_outputs=3, final_activation="softmax", stem=False),
        layers.Unet3D_layer(n_filters=[2, 4], activation=keras.activations.gelu, dtype="mixed_bfloat16"),
    ],
    ids=lambda block: type(block).__name__,
)
def test_every_layer_comes_back_from_its_configuration(block):
    config = block.get_config()
    again = type(block).from_config(config)
    assert again.get_config() == config
    stored = keras.saving.serialize_keras_object(block)
    assert keras.saving.deserialize_keras_object(stored).get_config() == config
    assert stored["registered_name"] == f"ML_3D_Unet>{type(block).__name__}"


def test_saved_models_load_without_custom_objects(models, tmp_path):
    for model in models:
        model.save(tmp_path / "net.keras")
        loaded = keras.models.load_model(tmp_path / "net.keras")
        np.testing.assert_array_equal(loaded(X), model(X))
        for output in logits_model(loaded)(X):
            assert output.shape == model(X).shape


def test_logits_are_those_before_the_last_activation(models):
    activation = {"sigmoid": tf.sigmoid, "softmax": tf.nn.softmax}.get(
        models[0].layers[-1].activation.__name__, tf.tanh
    )
    for model in models:
        output, logits = logits_model(model)(X, training=False)
        np.testing.assert_array_equal(output, model(X))
        np.testing.assert_allclose(activation(logits), output, atol=1e-6)
        assert logits.dtype == "float32"


def test_logits_share_the_weights_and_know_training():
    for model in in_all_forms(norm="batch_norm"):
        both = logits_model(model)
        before = both(X)[1]
        assert not np.allclose(both(X, training=True)[1], before)
        assert not np.allclose(both(X)[1], before)  # the statistics have moved
        model.set_weights([0 * w for w in model.get_weights()])
        np.testing.assert_array_equal(both(X)[1], 0)


def test_a_model_without_logits_is_named():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="dense")], name="other")
    with pytest.raises(ValueError, match=r"received 'other' with the layers \['dense'\]"):
        logits_model(model)


def test_a_fresh_copy_has_the_same_shape_and_other_weights(models):
    for model in models:
        copy = fresh_copy(model)
        assert type(copy) is type(model)
        assert [w.shape for w in copy.weights] == [w.shape for w in model.weights]
        assert not np.array_equal(copy.get_weights()[0], model.get_weights()[0])
        copy.set_weights(model.get_weights())
        np.testing.assert_array_equal(copy(X), model(X))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_precision_survives_a_file_and_the_last_layers_stay_in_float32(policy, tmp_path):
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = create_unet3d_class(SHAPE, n_convs=1, n_filters=[2, 4], norm="batch_norm")
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    for found in (model, loaded, fresh_copy(model)):
        half = policy.removeprefix("mixed_")
        logits = found.layers[-1].logits
        assert logits.encoder.bottleneck.parts[0].compute_dtype == half
        assert (
            logits.last_logits.compute_dtype == found.layers[-1].output_activation.compute_dtype == "float32"
        )
        assert found.output.dtype == "float32"
    # By XLA, as TensorFlow itself pools no float16 on a CPU.
    outputs = [tf.function(found, jit_compile=True)(X) for found in (model, loaded)]
    np.testing.assert_array_equal(*outputs)
    assert keras.mixed_precision.dtype_policy().name == "float32"


# ---------------------------------------------------------------- refusals, and where it is imported


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (8, 8, 6, 1)}, r"multiples of 4.* received \(8, 8, 6, 1\)"),
        ({"padding": "valid"}, "Expected padding to be one of .* received 'valid'"),
        ({"pooling": "min"}, "Expected pooling to be one of .* received 'min'"),
        ({"norm": "group"}, "Expected norm to be one of .* received 'group'"),
        ({"n_filters": [4]}, "Expected n_filters to be .* received"),
        ({"n_convs": 0}, "Expected n_convs to be a positive integer, received 0"),
        ({"ksize": [3, 3]}, r"Expected ksize to be .* received \[3, 3\]"),
        ({"dropout": [0.1] * 3}, r"Expected dropout to be .* at most 2 .* received"),
        ({"n_outputs": 1.5}, "Expected n_outputs to be a positive integer, received 1.5"),
        ({"depth": 4}, "depth=4 levels, received 3"),
    ],
)
def test_wrong_arguments_say_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_unet3d_class(**{"input_shape": (8, 8, 8, 1), "n_filters": [2, 4, 8], **arguments})


def run_in(folder, code):
    done = forked.run("-c", code, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_a_file_moves_between_both_ways_to_import(tmp_path):
    """Saved with the folder as working directory, loaded from the project's root, and the reverse."""
    code = (
        "import keras; from {module} import create_unet3d_class; import numpy as np, os;"
        "x = np.ones((1, 4, 4, 4, 1), 'float32'); own, other = {names};"
        "model = create_unet3d_class((4, 4, 4, 1), n_filters=[2, 4], norm='batch_norm');"
        "model.save(own); print(float(np.sum(model(x))));"
        "found = keras.models.load_model(other) if os.path.exists(other) else model;"
        "print(float(np.sum(found(x))))"
    )
    names = [str(tmp_path / name) for name in ("inside.keras", "outside.keras")]
    inside = run_in(forked.PROJECT / "ML_3D_Unet", code.format(module="utils.layers", names=names))
    outside = run_in(forked.PROJECT, code.format(module="ML_3D_Unet.utils.layers", names=names[::-1]))
    assert outside[1] == inside[0] != outside[0]
    again = run_in(
        forked.PROJECT / "ML_3D_Unet", code.format(module="utils.layers", names=[*names[:1], names[1]])
    )
    assert again[1] == outside[0]
