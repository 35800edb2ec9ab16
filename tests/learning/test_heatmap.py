"""The heatmap's target against its formula, and that it follows the image."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from utils.augmentation_settings import HEATMAP_AUGMENTATION
from utils.learning import augment, heatmap
from utils.presets import preset_settings
from utils.settings import HeatmapAugmentationSettings
from utils.settings import HeatmapTrainingSettings as Settings

SHAPE = (24, 20, 32)
PAPER = preset_settings(Settings, "paper")
CENTROIDS = np.array([[6.25, 9.5, 5.0], [10.0, 9.0, 14.0], [8.0, 11.75, 26.5]])


def moved_alone(shift_voxels=0.0, **ranges) -> Settings:
    """Settings that move the volume and leave its intensities."""
    plain = {"gain": (1.0, 1.0), "offset": (0.0, 0.0), "noise_probability": 0.0, "blur_probability": 0.0}
    ranges = HeatmapAugmentationSettings(**{**plain, **ranges})
    return Settings(target="spine", augmentation=ranges, shift_voxels=shift_voxels)


def drawn_tensors(generator, centroids, settings):
    drawn = heatmap.draw_heatmap_example(generator, centroids, shape=SHAPE, settings=settings)
    return drawn, {name: tf.constant(value) for name, value in drawn.items()}


def formula(points, sigma):
    """The sum of Gaussians over its maximum, with distances computed on the grid."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    squared = [np.sum((grid - point) ** 2, axis=-1) for point in points]
    heat = sum(np.exp(-distance / (2 * sigma**2)) for distance in squared)
    return heat / heat.max()


@pytest.mark.parametrize("sigma", [3.0, 10.0])
def test_target_is_the_formula(sigma):
    points = np.concatenate([CENTROIDS, [[-2.0, 9.0, 33.0], [5.0, 5.0, 5.0]]])
    present = tf.constant([1.0, 1, 1, 1, 0])  # the last is padding
    found = heatmap.heat_target(
        tf.constant(points, tf.float32), present, shape=SHAPE, sigma_voxels=sigma
    ).numpy()
    np.testing.assert_allclose(found[..., 0], formula(points[:4], sigma), atol=1e-6)
    assert found[..., 0].max() == 1.0
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-6)


def test_without_centroids_there_is_no_heat():
    _, drawn = drawn_tensors(np.random.default_rng(0), np.zeros((0, 3)), PAPER)
    target = heatmap.heat_target(drawn["points"], drawn["present"], shape=SHAPE, sigma_voxels=10.0).numpy()
    assert (target[..., 0] == 0).all() and (target[..., 1] == 1).all()


def test_more_centroids_than_levels_are_refused():
    with pytest.raises(ValueError, match="at most 26 centroids, received 27"):
        heatmap.draw_heatmap_example(None, np.zeros((27, 3)), shape=SHAPE, settings=PAPER)


def test_validation_leaves_the_volume_as_it_is():
    drawn, tensors = drawn_tensors(None, CENTROIDS, PAPER)
    ct = np.random.default_rng(0).integers(-1024, 3071, SHAPE).astype(np.int16)
    image, target = heatmap.heatmap_example(tf.constant(ct), tensors, sigma_voxels=4.0, radius=3)
    np.testing.assert_allclose(image[..., 0], (ct + 1024.0) * 2 / 4095 - 1, atol=1e-5)
    np.testing.assert_allclose(target[..., 0], formula(CENTROIDS, 4.0), atol=1e-6)
    np.testing.assert_allclose(drawn["points"][:3], CENTROIDS, atol=1e-5)
    assert drawn["present"].sum() == 3


def test_outside_is_air_and_intensities_are_not_clipped():
    settings = moved_alone(flip_probability=0.0, gain=(1.2, 1.2), offset=(0.1, 0.1), rotation_degrees=0.0)
    _, drawn = drawn_tensors(np.random.default_rng(0), CENTROIDS, settings)
    shifted = np.eye(3, 4, dtype=np.float32)
    shifted[0, 3] = -4.0  # the first four slices come from outside
    ct = tf.fill(SHAPE, tf.constant(3071, tf.int16))
    image, _ = heatmap.heatmap_example(
        ct, {**drawn, "affine": tf.constant(shifted)}, sigma_voxels=4.0, radius=3
    )
    assert (image.numpy()[:4] == -1.0).all()
    np.testing.assert_allclose(image[4:], 1.3, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_target_follows_the_image(seed):
    centroid = np.array([[14.0, 7.0, 19.0]])
    limits = {"zoom_p": (0.8, 1.2), "zoom_r": (0.8, 1.2), "zoom_i": (0.8, 1.2), "rotation_degrees": 25.0}
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    dot = np.exp(-np.sum((grid - centroid) ** 2, axis=-1) / (2 * 1.5**2))
    ct = tf.constant((dot * 4095 - 1024).round().astype(np.int16))
    drawn, tensors = drawn_tensors(np.random.default_rng(seed), centroid, moved_alone(3.0, **limits))
    image, target = heatmap.heatmap_example(ct, tensors, sigma_voxels=3.0, radius=1)
    centre = ndimage.center_of_mass(image.numpy()[..., 0] + 1)
    assert np.abs(drawn["points"][0] - centroid[0]).max() > 1
    np.testing.assert_allclose(centre, drawn["points"][0], atol=0.1)
    peak = np.unravel_index(np.argmax(target[..., 0]), SHAPE)
    np.testing.assert_allclose(centre, peak, atol=0.6)


def test_shift_is_of_the_result_and_fills_its_range():
    settings = moved_alone(20.0, flip_probability=0.0, zoom_p=(2.0, 2.0), rotation_degrees=0.0)
    middle = (np.array([SHAPE]) - 1) / 2
    generator = np.random.default_rng(0)
    points = [
        heatmap.draw_heatmap_example(generator, middle, shape=SHAPE, settings=settings)["points"][0]
        for _ in range(500)
    ]
    # The fixed point of the zoom is the middle, so that all its way is the shift.
    ways = np.array(points) - middle
    assert (np.abs(ways) <= 20.001).all() and (ways.max(axis=0) > 19).all() and (ways.min(axis=0) < -19).all()


def test_what_the_shift_lets_in_is_empty_without_noise_or_blur():
    settings = moved_alone(6.0, flip_probability=0.0, rotation_degrees=0.0)
    drawn, tensors = drawn_tensors(np.random.default_rng(3), CENTROIDS, settings)
    ct = tf.fill(SHAPE, tf.constant(1000, tf.int16))
    noisy = {**tensors, "noise_sigma": tf.constant(0.1), "blur_sigma": tf.constant(1.0)}
    image = heatmap.heatmap_example(ct, noisy, sigma_voxels=4.0, radius=3)[0][..., 0]
    came_in = np.zeros(SHAPE, bool)
    for axis, shift in enumerate(drawn["shift"]):
        place = np.indices(SHAPE)[axis] - shift
        came_in |= (place < -0.5) | (place > SHAPE[axis] - 0.5)
    assert came_in.any() and (image.numpy()[came_in] == -1.0).all()
    assert not (image.numpy()[~came_in] == -1.0).any()


def test_same_generator_state_gives_the_same_draw():
    draws = [drawn_tensors(np.random.default_rng(5), CENTROIDS, PAPER)[0] for _ in range(2)]
    assert draws[0].keys() == draws[1].keys()
    assert all(np.array_equal(draws[0][name], draws[1][name]) for name in draws[0])


@pytest.fixture(scope="module")
def batch_of_two():
    settings = preset_settings(Settings, "paper", sigma_voxels=4.0, shift_voxels=4.0)
    cts = np.random.default_rng(0).integers(-1024, 3071, (2, *SHAPE)).astype(np.int16)
    pairs = [drawn_tensors(np.random.default_rng(k), CENTROIDS, settings)[1] for k in (1, 2)]
    # The noise is looked at by itself in test_augment.
    pairs = [{**pair, "noise_sigma": tf.constant(0.0), "blur_sigma": tf.constant(0.9)} for pair in pairs]
    batch = {name: tf.stack([pair[name] for pair in pairs]) for name in pairs[0]}
    batch |= {"ct_hu": tf.constant(cts), "weight": tf.constant([1.0, 0.0])}
    return cts, pairs, batch, heatmap.heatmap_batch_builder(settings)


@pytest.mark.parametrize("how", [lambda part: part, tf.function])
def test_batches_under_xla_are_the_eager_and_the_traced_examples(monkeypatch, batch_of_two, how):
    cts, pairs, batch, build = batch_of_two
    images, targets, weight = build(batch, True)
    assert images.shape == (2, *SHAPE, 1) and targets.shape == (2, *SHAPE, 2)
    assert weight.numpy().tolist() == [1, 0]
    # 3 standard deviations of at most one voxel.
    assert HEATMAP_AUGMENTATION.blur_sigma_voxels[1] == 1.0
    for name in ("moved_volume", "blurred_and_shifted", "heat_target"):
        monkeypatch.setattr(heatmap, name, how(getattr(heatmap, name).__wrapped__))
    monkeypatch.setattr(augment, "add_noise", how(augment.add_noise.__wrapped__))
    for k, pair in enumerate(pairs):
        image, target = heatmap.heatmap_example(tf.constant(cts[k]), pair, sigma_voxels=4.0, radius=3)
        np.testing.assert_allclose(images[k], image, atol=2e-4)
        np.testing.assert_allclose(targets[k], target, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_batches_inside_compiled_functions_are_the_same(batch_of_two, jit_compile):
    _, _, batch, build = batch_of_two
    step = tf.function(lambda batch: build(batch, True), jit_compile=jit_compile)
    for found, expected in zip(step(batch), build(batch, False)):
        np.testing.assert_allclose(found, expected, atol=2e-4)
