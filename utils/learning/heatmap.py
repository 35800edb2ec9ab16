"""Examples for the heatmap network: the whole volume on the small grid, and the heat around the centroids.

The host draws a composed affine and a few numbers (`draw_heatmap_example`); `heatmap_example` builds input
and target from them on the device. Validation is the same with nothing drawn. The target is computed
from the moved centroids, so its Gaussians keep their width under zoom.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from utils.imaging.intensities import LOWEST
from utils.learning import augment
from utils.learning.compilation import compiled
from utils.settings import HeatmapTrainingSettings
from utils.verse.labels import MAX_RANK


def draw_heatmap_example(
    generator: np.random.Generator | None,
    centroids_voxels: np.ndarray,
    *,
    shape: tuple[int, int, int],
    settings: HeatmapTrainingSettings,
) -> dict[str, np.ndarray]:
    """Draw the parameters of one example.

    Parameters
    ----------
    generator : np.random.Generator or None
        Source of randomness; None leaves the volume as it is (validation).
    centroids_voxels : np.ndarray of float, (n, 3)
        Centroids in voxel indices of the heatmap grid.
    shape : tuple of int, 3
        Shape of the heatmap grid.
    settings : HeatmapTrainingSettings
        Ranges of the augmentation and of the shift.

    Returns
    -------
    dict of str to np.ndarray
        "affine" (3, 4) from output to source voxels, "shift" (3,) its last part in output voxels, "points"
        (MAX_RANK, 3) the moved centroids and "present" (MAX_RANK,) 1 for each of them, 0 for padding,
        "gain", "offset", "noise_sigma", "blur_sigma", "noise_seed".

    Raises
    ------
    ValueError
        If there are more centroids than levels.
    """
    if len(centroids_voxels) > MAX_RANK:
        raise ValueError(f"Expected at most {MAX_RANK} centroids, received {len(centroids_voxels)}.")
    drawn, shift = augment.draw_augmentation(generator, settings.augmentation), np.zeros(3)
    if generator is not None:
        shift = generator.uniform(-settings.shift_voxels, settings.shift_voxels, 3)
    middle = (np.array(shape) - 1) / 2
    matrix, translation = drawn.matrix, middle - drawn.matrix @ (middle + shift)
    moved = np.linalg.solve(matrix, (centroids_voxels - translation).T).T
    points = np.zeros((MAX_RANK, 3), np.float32)
    present = np.zeros(MAX_RANK, np.float32)
    points[: len(centroids_voxels)] = moved
    present[: len(centroids_voxels)] = 1.0
    return {
        "affine": np.column_stack([matrix, translation]).astype(np.float32),
        "shift": shift.astype(np.float32),
        "points": points,
        "present": present,
        **drawn.of_intensities(),
    }


@compiled
def heat_target(
    points: tf.Tensor, present: tf.Tensor, *, shape: tuple[int, int, int], sigma_voxels: float
) -> tf.Tensor:
    """Sum a Gaussian around every centroid and divide by the sum's maximum (Serrador et al. 2024).

    A three-dimensional Gaussian is the product of three one-dimensional ones, so no distance is computed
    on the grid itself.

    Parameters
    ----------
    points : tf.Tensor of float32, (n, 3)
        Centroids in voxel indices.
    present : tf.Tensor of float32, (n,)
        1 for a centroid, 0 for padding.
    shape : tuple of int, 3
        Shape of the grid.
    sigma_voxels : float
        Standard deviation in voxels.

    Returns
    -------
    tf.Tensor of float32, (*shape, 2)
        Heat in [0, 1] and its complement; heat is 0 everywhere if there is no centroid.
    """
    profiles = [
        tf.exp(-0.5 * tf.square((tf.range(size, dtype=tf.float32) - points[:, axis, None]) / sigma_voxels))
        for axis, size in enumerate(shape)
    ]
    heat = tf.einsum("np,nr,ni->pri", present[:, None] * profiles[0], profiles[1], profiles[2])
    heat = tf.math.divide_no_nan(heat, tf.reduce_max(heat))
    return tf.stack([heat, 1.0 - heat], axis=-1)


# Compiled in parts, as otherwise XLA computes a voxel anew for every neighbour that the blur reads.


@compiled
def moved_volume(ct_hu: tf.Tensor, drawn: dict[str, tf.Tensor]) -> tf.Tensor:
    """Resample the CT, with air beyond it, and give it its gain and offset."""
    shape = tuple(ct_hu.shape)
    last = tf.constant([size - 1 for size in shape], tf.int32)
    coordinates = augment.sampling_coordinates(drawn["affine"], shape)
    return augment.moved_ct(augment.in_file_order(ct_hu), coordinates, last, drawn, "air")


@compiled
def blurred_and_shifted(image: tf.Tensor, drawn: dict[str, tf.Tensor], radius: int) -> tf.Tensor:
    """Blur the volume, and put air there that the shift lets in, without noise or blur."""
    shape = tuple(image.shape)
    image = augment.blur(image, drawn["blur_sigma"], radius)
    back = tf.concat([tf.eye(3), -drawn["shift"][:, None]], axis=1)
    before_shift = augment.sampling_coordinates(back, shape)
    stays = augment.is_inside(before_shift, tf.constant([size - 1 for size in shape], tf.int32))
    return tf.where(stays, image, LOWEST)


def heatmap_example(
    ct_hu: tf.Tensor,
    drawn: dict[str, tf.Tensor],
    *,
    sigma_voxels: float,
    radius: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Build one example on the device.

    Parameters
    ----------
    ct_hu : tf.Tensor of int16, (P, R, I)
        The whole scan on the heatmap grid, in HU.
    drawn : dict of str to tf.Tensor
        Parameters from `draw_heatmap_example`.
    sigma_voxels : float
        Standard deviation of the target's Gaussians, in voxels.
    radius : int
        Half width of the blur's kernel, in voxels.

    Returns
    -------
    tuple of tf.Tensor of float32
        Input (P, R, I, 1) in normalised intensities, and target (P, R, I, 2). Intensities are not clipped.
    """
    image = moved_volume(ct_hu, drawn)
    image = augment.add_noise(image, drawn["noise_sigma"], drawn["noise_seed"])
    image = blurred_and_shifted(image, drawn, radius)
    target = heat_target(
        drawn["points"], drawn["present"], shape=tuple(ct_hu.shape), sigma_voxels=sigma_voxels
    )
    return image[..., None], target


def heatmap_batch_builder(settings: HeatmapTrainingSettings) -> Callable:
    """Give the `augment.batch_builder` of a batch of `utils.learning.datasets.heatmap_dataset`."""
    # The blur is in voxels, hence a spacing of 1.
    radius = augment.blur_radius(settings.augmentation, 1.0)
    fixed = {"sigma_voxels": settings.sigma_voxels, "radius": radius}

    def one(drawn):
        numbers = {name: value for name, value in drawn.items() if name != "ct_hu"}
        return heatmap_example(drawn["ct_hu"], numbers, **fixed)

    return augment.batch_builder(one)
