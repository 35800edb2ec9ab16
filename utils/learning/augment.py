"""Random transformations of a training example: parameters drawn on the host, applied on the device.

`draw_augmentation` makes the few random numbers, with NumPy; everything that touches voxels is
TensorFlow on tensors of fixed shape, without Python branches on values, so that it runs eagerly, in a
`tf.function` and under XLA alike. One composed affine serves the CT and its labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import tensorflow as tf
from scipy.special import ndtri

from utils.augmentation_settings import AugmentationRanges
from utils.imaging.intensities import HIGHEST_HU, HU_GAIN, LOWEST, LOWEST_HU
from utils.learning.compilation import compiled


@dataclass(frozen=True)
class Augmentation:
    """The random numbers of one example.

    Attributes
    ----------
    flip : bool
        Whether R is mirrored.
    zoom : np.ndarray of float, (3,)
        Magnification along P, R and I.
    degrees : np.ndarray of float, (3,)
        Angles about P, R and I.
    gain, offset : float
        Normalised intensities become gain * intensity + offset.
    noise_sigma : float
        Standard deviation of the noise in normalised intensities; 0 for none.
    blur_sigma : float
        Standard deviation of the blur in the unit of the settings (mm, or voxels of the heatmap grid); 0 for
        none.
    noise_seed : np.ndarray of int32, (2,)
        Seed of the noise field, which is drawn on the device.
    """

    flip: bool
    zoom: np.ndarray
    degrees: np.ndarray
    gain: float = 1.0
    offset: float = 0.0
    noise_sigma: float = 0.0
    blur_sigma: float = 0.0
    noise_seed: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int32))

    @cached_property
    def matrix(self) -> np.ndarray:
        """What `output_to_source` makes of flip, zoom and turns."""
        return output_to_source(self.flip, self.zoom, self.degrees)

    def of_intensities(self, *, voxel: float = 1.0) -> dict[str, np.ndarray]:
        """Give all but the matrix as the device takes it; the size of a voxel is in the unit of the blur."""
        return {
            "gain": np.float32(self.gain),
            "offset": np.float32(self.offset),
            "noise_sigma": np.float32(self.noise_sigma),
            "blur_sigma": np.float32(self.blur_sigma / voxel),
            "noise_seed": self.noise_seed,
        }


#: Normal numbers that each stand for an equal share of the normal distribution.
NORMAL_QUANTILES = ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)


def draw_augmentation(generator: np.random.Generator | None, settings: AugmentationRanges) -> Augmentation:
    """Draw the random numbers of one example (Serrador et al. 2024, section on augmentation).

    Parameters
    ----------
    generator : np.random.Generator or None
        Source of randomness, made from (seed, epoch, position); None changes nothing (validation).
    settings : AugmentationRanges
        Ranges and probabilities.

    Returns
    -------
    Augmentation
        Parameters for `resample_ct`, `resample_labels`, `add_noise` and `blur`.
    """
    if generator is None:
        return Augmentation(False, np.ones(3), np.zeros(3))
    flip = generator.random() < settings.flip_probability
    gain, offset = generator.uniform(*settings.gain), generator.uniform(*settings.offset)
    ranges = (settings.zoom_p, settings.zoom_r, settings.zoom_i)
    zoom = np.array([generator.uniform(*limits) for limits in ranges])
    degrees = generator.uniform(-settings.rotation_degrees, settings.rotation_degrees, 3)
    noise = generator.uniform(*settings.noise_sigma) * (generator.random() < settings.noise_probability)
    blur_sigma = generator.uniform(*settings.blur_sigma) * (generator.random() < settings.blur_probability)
    seed = generator.integers(0, 2**31 - 1, 2).astype(np.int32)
    return Augmentation(flip, zoom, degrees, gain, offset, noise, blur_sigma, seed)


def output_to_source(flip: bool, zoom: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Compose the linear map from the augmented image back to the source.

    The image is mirrored along R, zoomed, then turned about R, about P and about I; a voxel of the result
    therefore finds its source by undoing the turns first and the mirroring last.

    Parameters
    ----------
    flip : bool
        Whether R is mirrored.
    zoom : np.ndarray of float, (3,)
        Magnification along P, R and I.
    degrees : np.ndarray of float, (3,)
        Angles about P, R and I.

    Returns
    -------
    np.ndarray of float, (3, 3)
        Takes an offset from the fixed point in the augmented image to the offset in the source, in voxels.
    """
    about_p, about_r, about_i = (_rotation(axis, angle) for axis, angle in enumerate(degrees))
    forward = about_i @ about_p @ about_r @ np.diag(zoom) @ np.diag([1.0, -1.0 if flip else 1.0, 1.0])
    return np.linalg.inv(forward)


def _rotation(axis: int, degrees: float) -> np.ndarray:
    first, second = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def sampling_coordinates(affine: tf.Tensor, shape: tuple[int, int, int]) -> tuple[tf.Tensor, ...]:
    """Give the source coordinates of every voxel of an output grid.

    Parameters
    ----------
    affine : tf.Tensor of float32, (3, 4)
        Takes an output voxel index to a source voxel index.
    shape : tuple of int, 3
        Shape of the output grid.

    Returns
    -------
    tuple of tf.Tensor of float32, 3 of `shape`
        Source coordinates in voxels, one tensor a source axis.
    """
    steps = [tf.range(size, dtype=tf.float32) for size in shape]
    along = [tf.reshape(step, [-1 if k == axis else 1 for k in range(3)]) for axis, step in enumerate(steps)]
    return tuple(
        sum(affine[row, axis] * along[axis] for axis in range(3)) + affine[row, 3] for row in range(3)
    )


def in_file_order(volume: tf.Tensor) -> tf.Tensor:
    """Lay a volume (P, R, I) flat as a NIfTI file does, the first axis fastest: what the samplers read."""
    return tf.reshape(tf.transpose(volume, [2, 1, 0]), [-1])


def sample_linear(block: tf.Tensor, coordinates: tuple[tf.Tensor, ...], last: tf.Tensor) -> tf.Tensor:
    """Interpolate a volume trilinearly; beyond its border the nearest voxel counts.

    Parameters
    ----------
    block : tf.Tensor, (n,)
        Voxels of a volume of shape `last` + 1 in file order, then padding, which is never looked at. Of any
        numeric type. It is flat so that volumes of many shapes share few lengths, hence few compilations.
    coordinates : tuple of tf.Tensor of float32, 3
        Source coordinates in voxels.
    last : tf.Tensor of int32, (3,)
        Largest index along each axis.

    Returns
    -------
    tf.Tensor of float32
        Values, of the shape of the coordinates.
    """
    limit = tf.cast(last, tf.float32)
    clipped = [tf.clip_by_value(coordinates[axis], 0.0, limit[axis]) for axis in range(3)]
    floors = [tf.minimum(tf.floor(clipped[k]), tf.maximum(limit[k] - 1.0, 0.0)) for k in range(3)]
    fractions = [clipped[axis] - floors[axis] for axis in range(3)]
    strides = _strides(last)
    first = sum(tf.cast(floors[axis], tf.int32) * strides[axis] for axis in range(3))
    # An axis of one voxel has no neighbour to go to.
    steps = [tf.where(last[axis] > 0, strides[axis], 0) for axis in range(3)]
    corners = [sum(step for step, taken in zip(steps, corner) if taken) for corner in np.ndindex(2, 2, 2)]
    values = [tf.cast(tf.gather(block, first + corner), tf.float32) for corner in corners]
    for fraction in reversed(fractions):
        values = [low + fraction * (high - low) for low, high in zip(values[::2], values[1::2])]
    return values[0]


def sample_nearest(block: tf.Tensor, coordinates: tuple[tf.Tensor, ...], last: tf.Tensor) -> tf.Tensor:
    """Look up the nearest voxel of a label volume; outside it is 0.

    Parameters and shapes are those of `sample_linear`; the result has the block's type.
    """
    rounded = [tf.cast(tf.floor(coordinate + 0.5), tf.int32) for coordinate in coordinates]
    strides = _strides(last)
    clipped = [tf.clip_by_value(rounded[axis], 0, last[axis]) for axis in range(3)]
    found = tf.gather(block, sum(clipped[axis] * strides[axis] for axis in range(3)))
    inside = [rounded[axis] == clipped[axis] for axis in range(3)]
    return tf.where(inside[0] & inside[1] & inside[2], found, tf.zeros_like(found))


def _strides(last: tf.Tensor) -> list[tf.Tensor]:
    """Give the steps from voxel to voxel of a flat volume whose first axis is fastest."""
    return [tf.ones_like(last[0]), last[0] + 1, (last[0] + 1) * (last[1] + 1)]


def sample_ct(block: tf.Tensor, coordinates: tuple[tf.Tensor, ...], last: tf.Tensor) -> tf.Tensor:
    """Interpolate a CT in HU as `sample_linear` does, and give normalised intensities.

    Clipping comes before interpolation, on the small integers; the linear map may come after it.
    """
    low, high = (tf.constant(limit, block.dtype) for limit in (LOWEST_HU, HIGHEST_HU))
    return normalised(sample_linear(tf.clip_by_value(block, low, high), coordinates, last))


def is_inside(coordinates: tuple[tf.Tensor, ...], last: tf.Tensor) -> tf.Tensor:
    """Tell which coordinates lie within half a voxel of a volume whose largest index is `last`."""
    limit = tf.cast(last, tf.float32) + 0.5
    checks = [(coordinates[axis] >= -0.5) & (coordinates[axis] <= limit[axis]) for axis in range(3)]
    return checks[0] & checks[1] & checks[2]


def moved_ct(
    block: tf.Tensor,
    coordinates: tuple[tf.Tensor, ...],
    last: tf.Tensor,
    drawn: dict[str, tf.Tensor],
    outside: str,
) -> tf.Tensor:
    """Sample a CT as `sample_ct` does, and give it its gain and offset.

    Parameters
    ----------
    block, coordinates, last
        As for `sample_linear`.
    drawn : dict of str to tf.Tensor
        "gain" and "offset", scalars.
    outside : str
        What lies beyond the volume: "air", which has no gain or offset, or "edge", the nearest voxel.

    Returns
    -------
    tf.Tensor of float32
        Normalised intensities, not clipped.
    """
    image = drawn["gain"] * sample_ct(block, coordinates, last) + drawn["offset"]
    return tf.where(is_inside(coordinates, last), image, LOWEST) if outside == "air" else image


def normalised(ct_hu: tf.Tensor) -> tf.Tensor:
    """Clip Hounsfield units and map them linearly to [-1, 1], in float32, as `normalise_hu` does."""
    clipped = tf.clip_by_value(tf.cast(ct_hu, tf.float32), float(LOWEST_HU), float(HIGHEST_HU))
    return (clipped - LOWEST_HU) * HU_GAIN + LOWEST


@compiled
def add_noise(image: tf.Tensor, sigma: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Add Gaussian noise that depends on the seed alone, whatever the device and the compiler.

    TensorFlow's normal numbers differ between its own kernels and XLA even for a named generator; its
    random bits do not. Each half of 32 bits picks one of 65,536 quantiles of the normal distribution, which
    reach 4.3 standard deviations: a tenth of the time that the inverse distribution function takes. Compiled
    by itself, since XLA makes slow code of it together with what comes before or after.

    Parameters
    ----------
    image : tf.Tensor of float32
        Normalised intensities, of static shape.
    sigma : tf.Tensor of float32, scalar
        Standard deviation of the noise.
    seed : tf.Tensor of int32, (2,)
        Seed.

    Returns
    -------
    tf.Tensor of float32, shape of `image`
        The image with noise.
    """
    count = image.shape.num_elements()
    bits = tf.random.stateless_uniform(
        [(count + 1) // 2], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    halves = [tf.bitwise.bitwise_and(bits, 0xFFFF), tf.bitwise.right_shift(tf.bitcast(bits, tf.uint32), 16)]
    normal = [tf.gather(tf.constant(NORMAL_QUANTILES), tf.cast(half, tf.int32)) for half in halves]
    return image + sigma * tf.reshape(tf.concat(normal, axis=0)[:count], image.shape)


def blur(image: tf.Tensor, sigma_voxels: tf.Tensor, radius: int) -> tf.Tensor:
    """Blur a volume with a separable Gaussian, repeating the voxels at its border.

    Parameters
    ----------
    image : tf.Tensor of float32, 3-D
        Volume of static shape.
    sigma_voxels : tf.Tensor of float32, scalar
        Standard deviation in voxels; 0 leaves the volume as it is.
    radius : int
        Half width of the kernel in voxels, fixed so that nothing is retraced.

    Returns
    -------
    tf.Tensor of float32, shape of `image`
        The blurred volume.
    """
    offsets = tf.range(radius + 1, dtype=tf.float32)
    # A tiny width stands for none: every weight but the middle one underflows to 0.
    weights = tf.exp(-0.5 * tf.square(offsets / tf.maximum(sigma_voxels, 1e-3)))
    weights /= 2.0 * tf.reduce_sum(weights) - weights[0]
    # The border is repeated along all axes at once: what is padded between two passes, XLA computes anew for
    # every neighbour that reads it.
    for axis in range(3):
        last = image.shape[axis] - 1
        places = np.clip(np.arange(-radius, last + 1 + radius), 0, last)
        image = tf.gather(image, places, axis=axis)
    for axis in range(3):
        middle, *pairs = shifted_pairs(image, axis, radius)
        image = weights[0] * middle
        for weight, (before, after) in zip(tf.unstack(weights[1:]), pairs):
            image += weight * (before + after)
    return image


def shifted_pairs(volume: tf.Tensor, axis: int, radius: int) -> list:
    """Give a padded volume's middle, and its parts shifted by 1 to `radius` voxels either way along an axis.

    Parameters
    ----------
    volume : tf.Tensor
        Padded by `radius` voxels at both ends of the axis.
    axis, radius : int
        Axis, and largest shift in voxels.

    Returns
    -------
    list
        The middle, then for each shift the pair of what lies before and of what lies after every voxel.
    """
    size = volume.shape[axis] - 2 * radius

    def part(shift: int) -> tf.Tensor:
        begin = [radius + shift if k == axis else 0 for k in range(volume.shape.rank)]
        return tf.slice(volume, begin, [size if k == axis else -1 for k in range(volume.shape.rank)])

    return [part(0), *((part(-shift), part(shift)) for shift in range(1, radius + 1))]


def blur_radius(settings: AugmentationRanges, spacing: float) -> int:
    """Give the kernel's half width in voxels: three standard deviations of the widest blur.

    The spacing of the voxels is in the unit of the blur.
    """
    return max(1, int(np.ceil(3.0 * settings.blur_sigma[1] / spacing)))


def batch_builder(
    one: Callable[[dict[str, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]],
) -> Callable[[dict[str, tf.Tensor], bool], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Give the function that builds a batch inside the step: `(batch, training) -> (x, y, weight)`.

    Examples are built one after the other, so that each needs the memory of one. Training and validation
    differ by what was drawn alone, so the flag is not looked at.

    Parameters
    ----------
    one : callable
        Builds the x and y of one example from its part of the batch: of what was drawn and read, whose first
        axis, of static length, counts the examples. "weight" is theirs; one of weight 0 counts for nothing.

    Returns
    -------
    callable
        It gives x and y of all examples, of static shape, and their weights (batch,).
    """

    def build(batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        names = [name for name in batch if name != "weight"]
        # Slices, as unstacking int16 has no kernel for GPUs: each block would go to the host and back.
        count = batch["weight"].shape[0]
        pairs = [one({name: batch[name][number] for name in names}) for number in range(count)]
        x, y = (tf.stack(parts) for parts in zip(*pairs))
        return x, y, batch["weight"]

    return build
