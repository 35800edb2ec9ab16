"""The flat 3D U-Net: sizes, order of layers, arguments, and blocks with weights set by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils.layers import dropout_per_level, filters_per_level, ksize_per_level
from ML_3D_Unet.utils.layers_func import (
    create_unet3d,
    decoder_unet3d,
    downsample_block,
    encoder_unet3d,
    n_conv_block,
    upsample_block,
)
from ML_3D_Unet.utils.normalisation import FUSED_CHANNELS, GroupNormalization
from tests import forked

CUBE = np.arange(8, dtype="float32").reshape(1, 2, 2, 2, 1)


def kinds(model, prefix):
    return [type(layer).__name__ for layer in model.layers if layer.name.startswith(prefix)]


def set_kernels(model, value=1.0):
    """Set every kernel to `value` and every bias to 0."""
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, value if variable.name == "kernel" else 0.0))


@pytest.mark.parametrize(
    ("channels", "n_filters", "expected"), [(2, [16, 32, 64, 128], 1_476_817), (2, [8, 16, 32, 64], 370_345)]
)
def test_parameters_of_the_published_networks(channels, n_filters, expected):
    model = create_unet3d((16, 16, 16, channels), n_filters=n_filters, norm="batch_norm", dropout=[0])
    assert model.count_params() == expected


def test_parameters_of_the_network_without_stem():
    # A convolution of 27 taps has 27·in·out + out, its normalisation 4·out; then 8·2 + 2 for the output.
    convs = [(1, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32), (48, 16), (16, 16), (24, 8), (8, 8)]
    expected = sum(27 * a * b + b + 4 * b for a, b in convs) + 18
    arguments = {"n_filters": [8, 16, 32], "norm": "batch_norm", "stem": False}
    model = create_unet3d((8, 8, 16, 1), n_outputs=2, final_activation="softmax", **arguments)
    assert model.count_params() == expected == 89_162
    probabilities = model(np.random.default_rng(0).normal(size=(1, 8, 8, 16, 1)))
    np.testing.assert_allclose(np.sum(probabilities, axis=-1), 1, rtol=1e-6)


def test_transposed_convolutions_have_weights_and_are_normalised():
    shared = {"n_filters": [2, 4], "norm": "batch_norm", "stem": False}
    repeated = create_unet3d((4, 4, 4, 1), **shared)
    transposed = create_unet3d((4, 4, 4, 1), upsampling=False, **shared)
    # 8 taps from 4 to 2 filters with bias and normalisation; the next convolution has 2 channels fewer.
    assert transposed.count_params() - repeated.count_params() == (8 * 4 * 2 + 2 + 4 * 2) - 27 * 2 * 2
    assert kinds(transposed, "decoder_1_up") == ["Conv3DTranspose", "BatchNormalization", "Activation"]
    assert transposed.output_shape == (None, 4, 4, 4, 1)


def test_order_of_layers_and_place_of_dropout():
    model = create_unet3d((4, 4, 4, 1), n_convs=1, n_filters=[2, 4], norm="batch_norm", dropout=0.5)
    block = ["Conv3D", "BatchNormalization", "Activation"]
    assert kinds(model, "stem") == block
    assert kinds(model, "encoder_1") == [*block, "MaxPooling3D", "Dropout"]
    assert kinds(model, "encoder_2") == block
    assert kinds(model, "decoder_1") == ["UpSampling3D", "Concatenate", "Dropout", *block]
    assert [layer.name for layer in model.layers[-2:]] == ["last_logits", "output"]


def test_norm_none_leaves_out_normalisation_and_momentum_is_handed_on():
    plain = create_unet3d((4, 4, 4, 1), n_convs=1, n_filters=[2, 4])
    assert "BatchNormalization" not in kinds(plain, "")
    normed = create_unet3d((4, 4, 4, 1), n_convs=1, n_filters=[2, 4], norm="batch_norm", norm_momentum=0.9)
    momenta = [
        layer.momentum for layer in normed.layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert momenta == [0.9] * 4


def test_normalisation_of_an_instance_knows_no_other_and_no_average():
    model = create_unet3d((4, 8, 4, 1), n_convs=1, n_filters=[2, 4], norm="instance_norm")
    norms = [layer for layer in model.layers if "norm" in layer.name]
    assert len(norms) == 4 and all(isinstance(norm, keras.layers.GroupNormalization) for norm in norms)
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 4, 1)).astype("float32") * [[[[[1]]]], [[[[9]]]]] + 5
    for training in (True, False):
        alone = [model(part[None], training=training)[0] for part in x]
        np.testing.assert_allclose(model(x, training=training), alone, rtol=1e-4, atol=1e-6)
    middle = keras.Model(model.inputs, norms[0].output)(x)
    np.testing.assert_allclose(np.mean(middle, axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(middle, axis=(1, 2, 3)), 1, atol=0.05)


@pytest.mark.parametrize("channels", [1, FUSED_CHANNELS])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_normalisation_of_an_instance_sums_many_voxels_in_half_precision(precision, channels):
    layer = GroupNormalization(dtype=f"mixed_{precision}")
    # Sums over these voxels are beyond the largest float16, 65504.
    x = np.random.default_rng(0).normal(40, 20, size=(1, 32, 32, 32, channels))
    mean, spread = (np.asarray(of(x, axis=(1, 2, 3), keepdims=True)) for of in (np.mean, np.std))
    found = layer(x)
    assert found.dtype == precision
    np.testing.assert_allclose(tf.cast(found, "float32"), (x - mean) / spread, atol=0.05)


@pytest.mark.parametrize("channels", [2, FUSED_CHANNELS, 2 * FUSED_CHANNELS])
def test_fused_normalisation_is_that_of_keras(channels):
    rng = np.random.default_rng(0)
    x, pull = (rng.normal(2, 3, size=(3, 4, 5, 6, channels)).astype("float32") for _ in range(2))
    values = [rng.normal(1, 0.5, channels).astype("float32") for _ in range(2)]
    found = []
    for layer in (GroupNormalization(), keras.layers.GroupNormalization(groups=-1)):
        layer.build(x.shape)
        layer.set_weights(values)
        with tf.GradientTape() as tape:
            shown = tf.constant(x)
            tape.watch(shown)
            answer = layer(shown)
            loss = tf.reduce_sum(answer * pull)
        slopes = tape.gradient(loss, [shown, *(each.value for each in layer.trainable_variables)])
        found.append([answer.numpy(), *(slope.numpy() for slope in slopes)])
    for ours, keras_s in zip(*found, strict=True):
        np.testing.assert_allclose(ours, keras_s, rtol=1e-3, atol=1e-4)


def test_fused_normalisation_is_known_to_files_and_to_inputs_of_any_size(tmp_path):
    inputs = keras.Input((None, None, None, FUSED_CHANNELS))
    model = keras.Model(inputs, GroupNormalization()(inputs))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, FUSED_CHANNELS)).astype("float32")
    model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    run = tf.function(loaded, input_signature=[tf.TensorSpec((None, None, None, None, FUSED_CHANNELS))])
    np.testing.assert_allclose(run(x), model(x), atol=1e-5)


def test_last_layers_stay_in_float32_under_mixed_precision():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        model = create_unet3d((4, 4, 4, 1), n_convs=1, n_filters=[2, 4])
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    dtypes = {layer.name: layer.compute_dtype for layer in model.layers}
    assert dtypes["decoder_1_0_conv"] == "bfloat16"
    assert dtypes["last_logits"] == dtypes["output"] == "float32"
    assert model(np.zeros((1, 4, 4, 4, 1))).dtype == "float32"


def test_saved_model_loads_without_custom_objects(tmp_path):
    model = create_unet3d((4, 4, 4, 1), n_filters=[2, 4], norm="batch_norm", dropout=0.1, upsampling=False)
    model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 4, 1)).astype("float32")
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize(("pooling", "expected"), [("max", 7.0), ("avg", 3.5)])
def test_downsample_block_gives_what_is_joined_and_what_goes_down(pooling, expected):
    inputs = keras.Input((2, 2, 2, 1))
    outputs = downsample_block(inputs, n_convs=1, n_filters=1, ksize=1, pooling=pooling)
    model = keras.Model(inputs, outputs)
    set_kernels(model)
    conv_out, below = model(CUBE)
    np.testing.assert_array_equal(conv_out, CUBE)
    np.testing.assert_array_equal(below, np.full((1, 1, 1, 1, 1), expected))


def test_upsample_block_joins_the_level_named_by_depth():
    skip, below = keras.Input((2, 2, 2, 1)), keras.Input((1, 1, 1, 1))
    out = upsample_block({"1": skip, "2": below}, below, n_convs=1, n_filters=1, ksize=1, depth=1)
    model = keras.Model([skip, below], out)
    set_kernels(model)
    np.testing.assert_array_equal(model([CUBE, np.full((1, 1, 1, 1, 1), 10.0)]), CUBE + 10)


def test_n_conv_block_repeats_the_convolution():
    inputs = keras.Input((2, 2, 2, 1))
    model = keras.Model(inputs, n_conv_block(inputs, n_convs=3, n_filters=1, ksize=1, activation=None))
    set_kernels(model, value=-2.0)
    np.testing.assert_array_equal(model(CUBE), -8 * CUBE)


def test_encoder_and_decoder_can_be_put_together_by_hand():
    inputs = keras.Input((8, 8, 8, 1))
    skips, below = encoder_unet3d(inputs, n_convs=1, n_filters=[2, 4, 8])
    assert {level: skip.shape[1:] for level, skip in skips.items()} == {"1": (8, 8, 8, 2), "2": (4, 4, 4, 4)}
    assert below.shape == (None, 2, 2, 2, 8)
    assert decoder_unet3d(skips, below, n_convs=1, n_filters=[2, 4, 8]).shape == (None, 8, 8, 8, 2)


@pytest.mark.parametrize(
    ("ksize", "depth", "expected"),
    [
        (None, 2, ((3, 3, 3),) * 2),
        (5, 2, ((5, 5, 5),) * 2),
        ((3, 3, 1), 3, ((3, 3, 1),) * 3),
        ([3, 3, 1], 2, ((3, 3, 1),) * 2),
        ([[3, 3, 1], [3, 3, 3], [1, 1, 1]], 3, ((3, 3, 1), (3, 3, 3), (1, 1, 1))),
    ],
)
def test_ksize_is_a_scalar_one_triple_or_one_triple_a_level(ksize, depth, expected):
    assert ksize_per_level(ksize, depth) == expected


@pytest.mark.parametrize("ksize", [0, 2.5, "3", [3, 3], [3, 3, 3, 3], [[3, 3, 3]] * 2, [[3, 3, 3], 3, 3, 3]])
def test_any_other_ksize_is_refused(ksize):
    with pytest.raises(ValueError, match=r"Expected ksize to be .* received"):
        create_unet3d((8, 8, 8, 1), n_filters=[2, 4, 8, 16], ksize=ksize)


def test_kernels_a_level_reach_their_levels():
    kernels = [[3, 3, 1], [1, 1, 3]]
    model = create_unet3d((4, 4, 4, 1), n_convs=1, n_filters=[2, 4], ksize=kernels)
    found = {
        layer.name: layer.kernel_size for layer in model.layers if isinstance(layer, keras.layers.Conv3D)
    }
    assert found == {
        "stem_0_conv": (3, 3, 1),
        "encoder_1_0_conv": (3, 3, 1),
        "encoder_2_0_conv": (1, 1, 3),
        "decoder_1_0_conv": (3, 3, 1),
        "last_logits": (1, 1, 1),
    }


@pytest.mark.parametrize(
    ("dropout", "expected"),
    [
        (None, (0, 0, 0)),
        (0.2, (0.2, 0.2, 0.2)),
        ([0], (0, 0, 0)),
        ([0.25, 0.5], (0.25, 0.5, 0)),
        ([0.25, 0.5, 0.5], (0.25, 0.5, 0.5)),
    ],
)
def test_dropout_is_padded_with_zeros(dropout, expected):
    assert dropout_per_level(dropout, 4) == expected


@pytest.mark.parametrize("dropout", [1, -0.1, "0.5", [0.1] * 4, [0.1, 1.0]])
def test_any_other_dropout_is_refused(dropout):
    with pytest.raises(ValueError, match=r"Expected dropout to be .* at most 3 .* received"):
        create_unet3d((8, 8, 8, 1), n_filters=[2, 4, 8, 16], dropout=dropout)


def test_filters_follow_depth_and_depth_follows_filters():
    assert filters_per_level(None, 3) == (8, 16, 32)
    assert filters_per_level([2, 4], None) == (2, 4)
    with pytest.raises(ValueError, match="depth=3 levels, received 2"):
        filters_per_level([2, 4], 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (8, 8, 6, 1)}, r"multiples of 4.* received \(8, 8, 6, 1\)"),
        ({"input_shape": (8, 8, 8)}, "three sizes and the channels"),
        ({"padding": "valid"}, "Expected padding to be one of .* received 'valid'"),
        ({"pooling": "min"}, "Expected pooling to be one of .* received 'min'"),
        ({"norm": "group"}, "Expected norm to be one of .* received 'group'"),
        ({"n_filters": [4]}, "Expected n_filters to be .* received"),
        ({"n_convs": 0}, "Expected n_convs to be a positive integer, received 0"),
        ({"n_outputs": 1.5}, "Expected n_outputs to be a positive integer, received 1.5"),
    ],
)
def test_wrong_arguments_say_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_unet3d(**{"input_shape": (8, 8, 8, 1), "n_filters": [2, 4, 8], **arguments})


def test_upsample_block_names_the_levels_there_are():
    x = keras.Input((2, 2, 2, 1))
    with pytest.raises(ValueError, match=r"levels \['1', '2'\] .* received 3"):
        upsample_block({"1": x, "2": x}, x, depth=3)


def test_imports_from_its_own_folder_and_needs_nothing_of_the_project():
    code = "import sys, utils.layers_func, utils.train; print('ML_3D_Unet' in sys.modules, utils.__path__)"
    folder = forked.PROJECT / "ML_3D_Unet"
    done = forked.run("-c", code, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["False", f"['{folder / 'utils'}']"]
