"""The networks' sizes as published, and what comes back from a model directory."""

import keras
import numpy as np
import pytest

from utils.learning import models
from utils.presets import preset_settings
from utils.settings import HeatmapTrainingSettings, SegmentationTrainingSettings, save_settings

TINY = SegmentationTrainingSettings(filters=(2, 3, 4, 5), patch_voxels=8)


@pytest.mark.parametrize(
    ("filters", "parameters"), [((16, 32, 64, 128), 1_476_817), ((8, 16, 32, 64), 370_345)]
)
def test_segmentation_networks_have_the_published_size(filters, parameters):
    network = models.build_segmentation_network(
        SegmentationTrainingSettings(filters=filters, patch_voxels=16)
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
        "small": ((8, 16, 32, 64), 64),
    }


def test_heatmap_network_has_the_published_size():
    network = models.build_heatmap_network(HeatmapTrainingSettings(), (64, 64, 128))
    assert network.count_params() == 89_162
    assert network.input_shape == (None, 64, 64, 128, 1)
    assert network.output_shape == (None, 64, 64, 128, 2)


def test_heatmap_channels_sum_to_1():
    network = models.build_heatmap_network(HeatmapTrainingSettings(filters=(2, 3, 4)), (8, 8, 12))
    ct = np.random.default_rng(0).normal(size=(1, 8, 8, 12, 1)).astype(np.float32)
    np.testing.assert_allclose(network(ct).numpy().sum(axis=-1), 1.0, atol=1e-6)


def test_momentum_reaches_every_normalisation():
    settings = SegmentationTrainingSettings(filters=(2, 3, 4, 5), patch_voxels=8, norm_momentum=0.87)
    for network in (
        models.build_segmentation_network(settings),
        models.build_heatmap_network(HeatmapTrainingSettings(filters=(2, 3), norm_momentum=0.87), (8, 8, 8)),
    ):
        norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert norms and all(norm.momentum == 0.87 for norm in norms)


@pytest.fixture
def directory(tmp_path):
    """A model directory as a training leaves it."""
    keras.utils.set_random_seed(1)
    models.build_segmentation_network(TINY).save(tmp_path / "best.keras")
    save_settings(TINY, tmp_path, spacing_mm=1.5)
    return tmp_path


def test_model_and_settings_come_back(directory):
    keras.utils.set_random_seed(1)
    original = models.build_segmentation_network(TINY)
    loaded, settings = models.load_model(directory)
    patch = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(loaded(patch), original(patch))
    assert settings["spacing_mm"] == 1.5 and settings["patch_voxels"] == 8
    assert settings["stage"] == "SegmentationTrainingSettings"


def test_missing_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.best\.keras: expected a trained network, found no such"):
        models.load_model(tmp_path / "nothing")


def test_missing_settings_are_named(directory):
    (directory / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json: expected"):
        models.load_model(directory)


@pytest.mark.parametrize("content", [b"", b"no model at all", "cut", "flipped"])
def test_damaged_model_is_named(directory, content):
    path = directory / "best.keras"
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


INSTANCE = SegmentationTrainingSettings(filters=(2, 3, 4, 5), patch_voxels=8, norm="instance")


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
    models.build_segmentation_network(INSTANCE).save(tmp_path / "best.keras")
    save_settings(INSTANCE, tmp_path)
    with pytest.raises(ValueError, match="its preset, filters and norm must be"):
        models.take_over_weights(models.build_segmentation_network(TINY), tmp_path)


def test_weights_of_another_network_are_refused(directory):
    other = models.build_segmentation_network(
        SegmentationTrainingSettings(filters=(2, 3, 4, 6), patch_voxels=8)
    )
    with pytest.raises(ValueError, match=f"{directory}: expected a network of {other.count_params()} param"):
        models.take_over_weights(other, directory)
