"""A network without batch normalisation that gives what the one with it gives."""

import warnings

import keras
import numpy as np
import pytest

from ML_3D_Unet.utils.folding import without_large_arrays, without_norms
from ML_3D_Unet.utils.layers import ConvBlock, create_unet3d_class
from ML_3D_Unet.utils.layers_func import create_unet3d

SHAPE = (8, 8, 8, 2)


def trained(model: keras.Model) -> keras.Model:
    """Give every weight and every statistic a value that the training could have left."""
    rng = np.random.default_rng(5)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            continue
        low, high = (0.3, 2.0) if weight.path.endswith(("gamma", "variance")) else (-0.5, 0.5)
        weight.assign(rng.uniform(low, high, weight.shape))
    return model


def norms_of(model: keras.Model) -> list[keras.layers.Layer]:
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


def check_equal(model: keras.Model) -> keras.Model:
    before = model.get_weights()
    folded = without_norms(model)
    image = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype(np.float32)
    expected = model(image, training=False).numpy()
    np.testing.assert_allclose(folded(image, training=False).numpy(), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01  # or a saturated output would hide a difference
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)
    return folded


@pytest.mark.parametrize("create", [create_unet3d, create_unet3d_class])
def test_normalisation_of_each_example_stays(create):
    keras.utils.set_random_seed(2)
    model = trained(create(SHAPE, n_filters=[2, 3], norm="instance_norm"))
    assert norms_of(model) == [] and check_equal(model).count_params() == model.count_params()


@pytest.mark.parametrize("create", [create_unet3d, create_unet3d_class])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"upsampling": False},
        {"use_bias": False},
        {"stem": False, "n_outputs": 2, "final_activation": "softmax"},
        {"dropout": 0.3, "pooling": "avg"},
    ],
    ids=lambda arguments: "-".join(arguments) or "segmentation",
)
def test_networks_of_both_forms_give_the_same_without_norms(create, arguments):
    keras.utils.set_random_seed(2)
    model = trained(create(SHAPE, n_filters=[4, 5, 6], norm="batch_norm", **arguments))
    folded = check_equal(model)
    assert norms_of(model) and not norms_of(folded)
    assert folded.input_shape == model.input_shape and folded.output_shape == model.output_shape


@pytest.mark.parametrize("create", [create_unet3d, create_unet3d_class])
def test_a_network_without_norms_is_given_back(create):
    model = create(SHAPE, n_filters=[2, 3], norm=None)
    assert without_norms(model) is model


def test_the_output_of_a_folded_network_can_be_saved_and_read(tmp_path):
    model = trained(create_unet3d_class(SHAPE, n_filters=[2, 3], norm="batch_norm"))
    folded = check_equal(model)
    folded.save(tmp_path / "folded.keras")
    image = np.ones((1, *SHAPE), np.float32)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "folded.keras")(image), folded(image))


def test_a_block_of_one_convolution_worked_out_by_hand():
    image = keras.Input((1, 1, 1, 1))
    model = keras.Model(image, ConvBlock(1, 1, 1, norm="batch_norm", activation=None, name="one")(image))
    kernel, bias, gamma, beta, mean, variance = 2.0, 3.0, 5.0, 7.0, 11.0, 4.0
    model.set_weights(
        [
            np.full(weight.shape, value)
            for weight, value in zip(model.weights, (kernel, bias, gamma, beta, mean, variance))
        ]
    )
    factor = gamma / np.sqrt(variance + 1e-3)
    folded = without_norms(model)
    found_kernel, found_bias = folded.get_weights()
    np.testing.assert_allclose(found_kernel.item(), kernel * factor, rtol=1e-6)
    np.testing.assert_allclose(found_bias.item(), (bias - mean) * factor + beta, rtol=1e-6)


def test_a_norm_that_cannot_be_folded_stays():
    image = keras.Input(SHAPE)
    first = keras.layers.BatchNormalization()(image)  # after no convolution
    seen_twice = keras.layers.Conv3D(2, 1)(first)  # its output goes past the norm too
    active = keras.layers.Conv3D(2, 1, activation="relu")(keras.layers.BatchNormalization()(seen_twice))
    joined = keras.layers.Add()([seen_twice, keras.layers.BatchNormalization()(active)])
    plain = keras.layers.Conv3D(3, 1, use_bias=False)(joined)
    last = keras.layers.BatchNormalization(scale=False)(plain)
    folded = check_equal(trained(keras.Model(image, last)))
    assert len(norms_of(folded)) == 3


def test_joined_channels_are_convolved_part_by_part():
    keras.utils.set_random_seed(0)
    model = create_unet3d((None, None, None, 2), n_filters=[8, 12, 16], norm="instance_norm", n_outputs=3)
    lighter = without_large_arrays(model)
    assert [type(layer).__name__ for layer in lighter.layers].count("Concatenate") == 0
    patch = np.random.default_rng(0).normal(size=(2, 8, 12, 16, 2)).astype(np.float32)
    with warnings.catch_warnings():  # Keras warns of an input that is none of the form it knows
        warnings.simplefilter("error")
        np.testing.assert_allclose(lighter(patch).numpy(), model(patch).numpy(), atol=1e-5)
    # Parts of few channels stay joined, and so does what is not convolved.
    whole = without_large_arrays(model, least_channels=9)
    assert "Concatenate" in [type(layer).__name__ for layer in whole.layers]
    inputs = keras.Input((4, 4, 4, 8))
    joined = keras.layers.Concatenate()([inputs, keras.layers.ReLU()(inputs)])
    plain = keras.Model(inputs, joined)
    constant = np.ones((1, 4, 4, 4, 8), np.float32)
    np.testing.assert_array_equal(without_large_arrays(plain)(constant), plain(constant))


def test_repeated_voxels_are_convolved_before_they_are_repeated():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((None, None, None, 3))
    twice = layers.UpSampling3D(2)(inputs)
    alone = layers.Conv3D(4, 3, padding="same", activation="relu", name="alone")(twice)
    joined = layers.Conv3D(5, 3, padding="same", name="joined")(layers.Concatenate()([twice, alone]))
    # What is not a plain convolution of the whole array stays.
    others = [layers.Conv3D(2, 1)(twice), layers.Conv3D(2, 3)(twice), layers.Conv3D(2, 3, strides=2)(twice)]
    model = trained(keras.Model(inputs, [joined, alone, twice, *others]))
    lighter = without_large_arrays(model, least_channels=3)
    kinds = [type(layer).__name__ for layer in lighter.layers]
    assert kinds.count("Conv3DTranspose") == 2 and "Concatenate" not in kinds
    image = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
    for found, expected in zip(lighter(image), model(image), strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)
    unet = create_unet3d((None, None, None, 2), n_filters=[8, 12, 16], norm="instance_norm")
    assert "UpSampling3D" in [type(layer).__name__ for layer in unet.layers]
    assert "UpSampling3D" not in [type(layer).__name__ for layer in without_large_arrays(unet).layers]
