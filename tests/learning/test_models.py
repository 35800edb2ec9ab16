"""The networks' sizes as published, and what comes back from a model directory."""

import json
import warnings

import h5py
import keras
import numpy as np
import pytest

from utils.imaging.intensities import normalise_hu
from utils.learning import models
from utils.learning.model_files import find_model_file, has_model
from utils.presets import preset_settings
from utils.settings import (
    HeatmapTrainingSettings,
    LabellingTrainingSettings,
    SegmentationTrainingSettings,
    save_settings,
)

PUBLISHED = {"network": "unet", "patch_kinds": "paper"}
TINY = SegmentationTrainingSettings(filters=(2, 3), patch_voxels=8, **PUBLISHED)
INSTANCE = SegmentationTrainingSettings(filters=(2, 3), patch_voxels=8, norm="instance", **PUBLISHED)


@pytest.mark.parametrize(
    ("filters", "parameters"), [((16, 32, 64, 128), 1_476_817), ((8, 16, 32, 64), 370_345)]
)
def test_segmentation_networks_have_the_published_size(filters, parameters):
    network = models.build_segmentation_network(
        SegmentationTrainingSettings(filters=filters, patch_voxels=16, **PUBLISHED)
    )
    assert network.count_params() == parameters
    assert network.input_shape == (None, 16, 16, 16, 2)
    assert network.output_shape == (None, 16, 16, 16, 1)


def test_presets_build_teacher_and_student():
    sizes = {
        preset: preset_settings(SegmentationTrainingSettings, preset) for preset in ("paper", "full", "small")
    }
    assert {name: (s.filters, s.patch_voxels) for name, s in sizes.items()} == {
        "paper": ((16, 32, 64, 128), 128),
        "full": ((16, 32, 64, 128), 128),
        "small": ((8, 16, 32, 64), 56),
    }


def test_heatmap_network_has_the_published_size():
    settings = preset_settings(HeatmapTrainingSettings, "paper")
    network = models.build_heatmap_network(settings, (64, 64, 128))
    assert network.count_params() == 89_162
    assert network.input_shape == (None, 64, 64, 128, 1)
    assert network.output_shape == (None, 64, 64, 128, 2)


def test_heatmap_channels_sum_to_1():
    network = models.build_heatmap_network(HeatmapTrainingSettings(filters=(2, 3, 4)), (8, 8, 12))
    ct = np.random.default_rng(0).normal(size=(1, 8, 8, 12, 1)).astype(np.float32)
    np.testing.assert_allclose(network(ct).numpy().sum(axis=-1), 1.0, atol=1e-6)


def test_momentum_reaches_every_normalisation():
    settings = SegmentationTrainingSettings(filters=(2, 3, 4, 5), patch_voxels=8, norm_momentum=0.87)
    spine = HeatmapTrainingSettings(target="spine", filters=(2, 3), norm="batch", norm_momentum=0.87)
    for network in (
        models.build_segmentation_network(settings),
        models.build_heatmap_network(spine, (8, 8, 8)),
    ):
        norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert norms and all(norm.momentum == 0.87 for norm in norms)


@pytest.fixture
def directory(tmp_path):
    """A model directory as a training leaves it."""
    keras.utils.set_random_seed(1)
    models.save_weights(models.build_segmentation_network(TINY), tmp_path)
    save_settings(TINY, tmp_path, spacing_mm=1.5)
    return tmp_path


@pytest.fixture
def earlier(tmp_path):
    """A model directory as trainings left it when architecture and weights were one file."""
    keras.utils.set_random_seed(1)
    models.build_segmentation_network(TINY).save(tmp_path / "best.keras")
    (tmp_path / "settings.json").write_text(json.dumps({"spacing_mm": 1.5, "patch_voxels": 8}))
    return tmp_path


@pytest.mark.parametrize("kind", ["directory", "earlier"])
def test_model_and_settings_come_back(request, kind):
    folder = request.getfixturevalue(kind)
    keras.utils.set_random_seed(1)
    original = models.build_segmentation_network(TINY)
    loaded, settings = models.load_model(folder)
    patch = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(loaded(patch), original(patch))
    assert settings["spacing_mm"] == 1.5 and settings["patch_voxels"] == 8
    assert settings.get("stage", "SegmentationTrainingSettings") == "SegmentationTrainingSettings"


HEATMAP = HeatmapTrainingSettings(target="spine", filters=(2, 3), norm="instance", norm_momentum=0.8)
LOCALISER = HeatmapTrainingSettings(filters=(2, 3, 4), crop_voxels=(4, 8, 12), norm_momentum=0.8)
LABELLING = LabellingTrainingSettings(filters=(2, 3), patch_voxels=9)


@pytest.mark.parametrize(
    "settings, network, facts",
    [
        (HEATMAP, lambda: models.build_heatmap_network(HEATMAP, (4, 6, 8)), {"heatmap_shape": (4, 6, 8)}),
        (INSTANCE, lambda: models.build_segmentation_network(INSTANCE), {"student": "logits"}),
        (LOCALISER, lambda: models.build_localiser(LOCALISER), {}),
        (LABELLING, lambda: models.build_labelling_network(LABELLING), {}),
    ],
)
def test_every_network_is_built_from_its_settings(tmp_path, settings, network, facts):
    original = network()
    rng = np.random.default_rng(0)
    for weight in original.weights:
        weight.assign(rng.uniform(0.2, 1, weight.shape))
    models.save_weights(original, tmp_path)
    save_settings(settings, tmp_path, younger_than_this=[1, 2], **facts)
    loaded, found = models.load_model(tmp_path)
    assert found["younger_than_this"] == [1, 2]
    # A localiser sees whole scans, whatever it was trained on.
    expected = models.build_localiser(LOCALISER, shape=(None,) * 3) if settings is LOCALISER else original
    assert loaded.input_shape == expected.input_shape and loaded.output_shape == expected.output_shape
    image = rng.normal(size=(2, *original.input_shape[1:])).astype(np.float32)
    np.testing.assert_array_equal(loaded(image, training=False), original(image, training=False))


def test_the_localiser_gives_heat_at_every_voxel():
    network = models.build_localiser(HeatmapTrainingSettings())
    assert network.input_shape == (None, 64, 96, 96, 1)
    assert network.output_shape == (None, 64, 96, 96, 2)
    # Two convolutions of 3 x 3 x 3 with bias and norm a block, on the way down and, on what skips and comes
    # from below, up. The scan comes with its window of bone; the heat is read from the last two levels.
    encoder = (
        (2, 12),
        (12, 12),
        (12, 24),
        (24, 24),
        (24, 48),
        (48, 48),
        (48, 64),
        (64, 64),
        (64, 96),
        (96, 96),
    )
    decoder = (
        (96 + 64, 64),
        (64, 64),
        (64 + 48, 48),
        (48, 48),
        (48 + 24, 24),
        (24, 24),
        (24 + 12, 12),
        (12, 12),
    )
    blocks = sum((27 * before + 3) * after for before, after in (*encoder, *decoder))
    heat = (27 * (24 + 12) + 1) * 2
    assert network.count_params() == blocks + heat


def test_a_window_of_bone_comes_with_the_scan():
    network = models.build_localiser(LOCALISER)
    windows = keras.Model(network.input, network.get_layer("windows").output)
    hu = np.full((1, *LOCALISER.crop_voxels, 1), -1024.0)
    hu[0, 0, 0, :3, 0] = [100.0, 300.0, -100.0]
    found = windows(normalise_hu(hu)).numpy()[0, 0, 0, :4]
    np.testing.assert_allclose(found[:, 0], normalise_hu(np.array([100, 300, -100, -1024])), atol=1e-6)
    np.testing.assert_allclose(found[:, 1], np.tanh([0.0, 1.0, -1.0, -5.62]), atol=1e-4)


def test_the_labelling_network_gives_28_logits_and_a_way():
    network = models.build_labelling_network(LabellingTrainingSettings())
    assert network.input_shape == (None, 54, 54, 54, 1) and network.output_shape == (None, 31)
    # Convolutions without bias, two a level but one in the first, normalised; a narrow one; two dense layers.
    convolutions = ((2, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 96), (96, 96))
    expected = sum((27 * before + 2) * after for before, after in convolutions)
    expected += 97 * 48 + (4**3 * 48 + 1) * 96 + 97 * 31
    assert network.count_params() == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_localiser_begins_without_heat_and_its_heads_compute_in_float32(precision):
    network = models.compute_in(models.build_localiser(LOCALISER), precision)
    heads = ("window", "window_tanh", "windows", "last_logits", "output")
    assert {network.get_layer(name).compute_dtype for name in heads} == {"float32"}
    assert network.get_layer("encoder_1_0_conv").compute_dtype == precision
    ct = np.random.default_rng(0).normal(size=(2, *LOCALISER.crop_voxels, 1)).astype(np.float32)
    found = network(ct, training=False)
    assert found.dtype == "float32"
    assert ((found > 0) & (found < 1)).numpy().all() and np.median(found) < 0.2


def without_setting(directory, name):
    path = directory / "settings.json"
    settings = json.loads(path.read_text())
    del settings[name]
    path.write_text(json.dumps(settings))


def test_settings_older_than_the_norm_are_those_of_batches(directory):
    before = models.load_model(directory)[0].get_weights()
    without_setting(directory, "norm")
    after = models.load_model(directory)[0].get_weights()
    assert len(after) == len(before) and all(np.array_equal(a, b) for a, b in zip(after, before))


@pytest.mark.parametrize("name", ["filters", "patch_voxels"])
def test_a_missing_setting_of_the_network_is_named(directory, name):
    without_setting(directory, name)
    with pytest.raises(ValueError, match=rf"settings\.json: expected the setting '{name}' of the network"):
        models.load_model(directory)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("stage", "EvaluationSettings", "expected one of the stages .*, found 'EvaluationSettings'"),
        ("filters", "many", "expected settings that make a network, found ."),
        ("patch_voxels", 7, "expected settings that make a network, found ."),
        ("norm", "layer", "expected settings that make a network, found ."),
    ],
)
def test_settings_that_make_no_network_are_named(directory, name, value, message):
    path = directory / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=rf"settings\.json: {message}") as error:
        models.load_model(directory)
    assert "\n" not in str(error.value)


def test_missing_model_is_named(tmp_path):
    assert not has_model(tmp_path / "nothing")
    with pytest.raises(
        ValueError, match=r"nothing.best\.weights\.h5: expected a trained network, found no such"
    ):
        models.load_model(tmp_path / "nothing")


def test_weights_count_before_the_file_of_an_earlier_training(earlier):
    assert find_model_file(earlier) == earlier / "best.keras"
    other = models.build_segmentation_network(TINY)
    models.save_weights(other, earlier)
    save_settings(TINY, earlier)
    assert find_model_file(earlier) == earlier / "best.weights.h5"
    loaded, _ = models.load_model(earlier)
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), other.get_weights()))


@pytest.mark.parametrize("kind", ["directory", "earlier"])
def test_missing_settings_are_named(request, kind):
    folder = request.getfixturevalue(kind)
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json: expected"):
        models.load_model(folder)


@pytest.mark.parametrize("content", [b"", b"no model at all", "cut", "flipped"])
def test_damaged_model_is_named(earlier, content):
    path = earlier / "best.keras"
    whole = path.read_bytes()
    if content == "cut":
        content = whole[: len(whole) // 2]
    if content == "flipped":  # in the middle of the weights, the largest member
        middle = len(whole) // 2
        content = (
            whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
        )
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"best\.keras: expected a Keras model, found ."):
        models.load_model(earlier)


def test_damage_where_keras_does_not_look_is_named(earlier):
    path = earlier / "best.keras"
    whole = path.read_bytes()
    place = whole.index(b"keras_version")
    path.write_bytes(whole[:place] + b"K" + whole[place + 1 :])
    with pytest.raises(ValueError, match=r"found a checksum of metadata\.json that is wrong"):
        models.load_model(earlier)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_weights_that_are_cut_off_are_named(directory, share):
    path = directory / "best.weights.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    expected = r"best\.weights\.h5: expected the weights of the network of settings\.json, found ."
    with pytest.raises(ValueError, match=expected) as error:
        models.load_model(directory)
    assert "\n" not in str(error.value)


DEEPER = SegmentationTrainingSettings(filters=(2, 3, 4), patch_voxels=8, **PUBLISHED)
WIDER = SegmentationTrainingSettings(filters=(2, 4), patch_voxels=8, **PUBLISHED)


@pytest.mark.parametrize(
    "of_weights, of_settings, found",
    [
        # A convolution has 2 arrays, batch normalisation 4, that of instances 2. A block has two of each;
        # there are 4 blocks, 6 in the deeper network, and a last convolution. In the wider one the two layers
        # of the bottom differ, and the kernel of the decoder that takes it up.
        (WIDER, TINY, "50 arrays in place of 50: 13 of their shapes are missing, 13 are too many"),
        (INSTANCE, TINY, "34 arrays in place of 50: 16 of their shapes are missing, 0 are too many"),
        (TINY, DEEPER, "50 arrays in place of 74: 24 of their shapes are missing, 0 are too many"),
        (DEEPER, TINY, "74 arrays in place of 50: 0 of their shapes are missing, 24 are too many"),
    ],
)
def test_weights_of_other_shapes_are_counted_without_a_warning(tmp_path, of_weights, of_settings, found):
    models.save_weights(models.build_segmentation_network(of_weights), tmp_path)
    save_settings(of_settings, tmp_path)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=rf"best\.weights\.h5: .* found {found}"):
        warnings.simplefilter("error")
        models.load_model(tmp_path)


def test_an_array_beside_the_weights_is_one_too_many(directory):
    with h5py.File(directory / "best.weights.h5", "a") as file:
        file["layers/further/vars/0"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"found 51 arrays in place of 50: 0 of .* missing, 1 are too many"):
        models.load_model(directory)


def test_a_new_network_takes_over_trained_weights(directory):
    network = models.build_segmentation_network(TINY)
    trained, _ = models.load_model(directory)
    before = network.get_weights()
    models.take_over_weights(network, None)
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), before))
    models.take_over_weights(network, directory)
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), trained.get_weights()))
    assert not all(np.array_equal(a, b) for a, b in zip(network.get_weights(), before))


def test_instance_normalisation_has_no_moving_statistics():
    names = {weight.name for weight in models.build_segmentation_network(INSTANCE).weights}
    assert names and not names & {"moving_mean", "moving_variance"}


def test_an_example_is_normalised_by_itself_alone():
    network = models.build_segmentation_network(INSTANCE)
    patches = np.random.default_rng(0).normal(size=(2, 8, 8, 8, 2)).astype(np.float32)
    both = network(patches, training=True).numpy()
    np.testing.assert_allclose(both[:1], network(patches[:1]), atol=1e-5)


def test_instance_normalisation_may_begin_with_that_of_batches(directory):
    network = models.build_segmentation_network(INSTANCE)
    trained, _ = models.load_model(directory)
    models.take_over_weights(network, directory)
    # With the statistics of one example, which batches of one have in training, both are the same network.
    patch = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)
    np.testing.assert_allclose(network(patch), trained(patch, training=True), atol=1e-5)


def test_batches_do_not_begin_with_instance_normalisation(tmp_path):
    models.save_weights(models.build_segmentation_network(INSTANCE), tmp_path)
    save_settings(INSTANCE, tmp_path)
    with pytest.raises(ValueError, match="its preset, filters and norm must be"):
        models.take_over_weights(models.build_segmentation_network(TINY), tmp_path)


def test_weights_of_another_network_are_refused(directory):
    other = models.build_segmentation_network(SegmentationTrainingSettings(filters=(2, 4), patch_voxels=8))
    with pytest.raises(ValueError, match=f"{directory}: expected a network of {other.count_params()} param"):
        models.take_over_weights(other, directory)
