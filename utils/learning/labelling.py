"""The level of one segmented vertebra: its patch, the examples to learn from, the network, its votes.

A patch holds the CT, the vertebra's mask and those of all others, 2 mm a voxel, around the mask's centre of
mass. Training and inference make it with `labelling_patch`; training then changes it as scans and predictions
differ from reference masks: a smaller field of view, masks shifted, grown, shrunk, leaking or missing, and
masks of what is no vertebra. The host does all of it, with NumPy and SciPy, on boxes of a few vertebrae.

Classes are cranio-caudal ranks (`utils.verse.labels`); class 0 is *not a vertebra*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy import ndimage
from scipy.special import expit, log_softmax

from utils.imaging.crops import block_of_patch, box_between
from utils.imaging.grids import transform_points, working_grid
from utils.imaging.intensities import LOWEST_HU, normalise_hu
from utils.imaging.resampling import resample_labels, working_ct
from utils.imaging.volume import Grid, Volume
from utils.learning import augment
from utils.settings import LabellingTrainingSettings
from utils.verse.labels import LEVEL_NAMES, MAX_RANK

SPACING_MM = 2.0
NOT_A_VERTEBRA = 0
CLASSES = MAX_RANK + 1
#: From a patch (P, R, I, 3) to `CLASSES` logits and the logit of being complete.
PredictLevel = Callable[[np.ndarray], np.ndarray]
#: What lies outside the field of view.
AIR = float(LOWEST_HU)
#: A vertebra of which less is seen than this share is left out of the examples.
LEAST_SEEN, WHOLE = 0.15, 0.97
#: Smallest mask of what is no vertebra, 0.25 ml: the walk leaves out what is smaller.
LEAST_FALSE_VOXELS = 30
#: Weight of the loss on completeness beside that on the level.
COMPLETE_WEIGHT = 0.3
_BALL = ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True)
class Votes:
    """What the labelling network says about the vertebrae of a scan, from the top down.

    Attributes
    ----------
    log_probabilities : np.ndarray of float64, (n, 27)
        Natural logarithms; the class is the rank, 0 is not a vertebra.
    complete : np.ndarray of float64, (n,)
        Probability that the field of view does not cut the vertebra.
    centres_mm : np.ndarray of float64, (n, 3)
        Centres of mass of the masks, world mm (RAS+).
    """

    log_probabilities: np.ndarray
    complete: np.ndarray
    centres_mm: np.ndarray


# Patches -------------------------------------------------------------------------------------------


def on_labelling_grid(ct: Volume, labels: Volume) -> tuple[Volume, Volume]:
    """Bring a scan and its labels to the 2 mm grid that patches are cut from.

    Parameters
    ----------
    ct : Volume
        CT in HU, on its native or any working grid.
    labels : Volume of uint8
        Vertebrae, by any numbers, on any grid with parallel axes.

    Returns
    -------
    ct, labels : Volume
        Axes (P, R, I), 2 mm; as they are if they lie on such a grid.
    """
    grid = working_grid(ct.grid, SPACING_MM)
    if not lies_on(ct, grid):
        ct = working_ct(ct, SPACING_MM, grid=grid)
    return ct, labels if lies_on(labels, grid) else resample_labels(labels, grid)


def lies_on(volume: Volume, grid: Grid) -> bool:
    """Whether the voxels of a volume are those of a grid."""
    return volume.shape == grid.shape and np.allclose(volume.affine, grid.affine, atol=1e-4)


def sampled(
    ct: np.ndarray, labels: np.ndarray, affine: np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a patch out of a scan, turned and zoomed by an affine.

    Parameters
    ----------
    ct, labels : np.ndarray, (P, R, I)
        HU, and numbers of vertebrae.
    affine : np.ndarray, (3, 4)
        Takes a voxel index of the patch to one of the scan.
    shape : sequence of int, (3,)
        Shape of the patch.

    Returns
    -------
    ct : np.ndarray of float32, `shape`
        Linear; air outside the scan.
    labels : np.ndarray, `shape`
        Of the nearest voxel; 0 outside.
    """
    begin, end = block_of_patch(affine, shape, ct.shape)
    box = box_between(begin, end)
    where = {"matrix": affine[:, :3], "offset": affine[:, 3] - begin, "output_shape": tuple(shape)}
    block = np.asarray(ct[box], np.float32)
    image = ndimage.affine_transform(block, order=1, mode="constant", cval=AIR, **where)
    return image, ndimage.affine_transform(np.asarray(labels[box]), order=0, **where)


def centred_affine(centre: np.ndarray, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Give the affine (3, 4) of a patch whose middle shows `centre`, a voxel index of the scan."""
    return np.column_stack([matrix, centre - matrix @ ((np.array(shape) - 1) / 2)])


def network_channels(ct_hu: np.ndarray, this: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Stack CT in [-1, 1], this vertebra's mask and all others' masks to (P, R, I, 3) of float32."""
    return np.stack([normalise_hu(ct_hu), this, others], axis=-1).astype(np.float32)


def labelling_patch(ct: np.ndarray, labels: np.ndarray, number: int, shape: Sequence[int]) -> np.ndarray:
    """Give the network's input for one vertebra of a scan, as it is.

    Parameters
    ----------
    ct, labels : np.ndarray, (P, R, I)
        HU, and numbers of vertebrae, on the labelling grid.
    number : int
        This vertebra; some voxel must have it.
    shape : sequence of int, (3,)
        Shape of the patch.

    Returns
    -------
    np.ndarray of float32, (P, R, I, 3)
        See `network_channels`.
    """
    affine = centred_affine(_centre_of(labels, number), np.eye(3), shape)
    image, numbers = sampled(ct, labels, affine, shape)
    return network_channels(image, numbers == number, (numbers != number) & (numbers > 0))


def _centre_of(labels: np.ndarray, number: int) -> np.ndarray:
    box = ndimage.find_objects((labels == number).view(np.uint8))[0]
    return np.mean(np.nonzero(labels[box] == number), axis=1) + [side.start for side in box]


def vertebra_votes(
    ct: Volume, labels: Volume, numbers: Sequence[int], *, predict: PredictLevel, shape: Sequence[int]
) -> Votes:
    """Ask the network about every vertebra of a scan, one call each.

    Parameters
    ----------
    ct : Volume
        CT in HU on any grid.
    labels : Volume of uint8
        Numbers of the vertebrae, on any grid with parallel axes.
    numbers : sequence of int
        The vertebrae, from the top down.
    predict : callable
        The network.
    shape : sequence of int, (3,)
        Shape of its patch.

    Returns
    -------
    Votes
        Of a vertebra too small to be seen on the 2 mm grid: not a vertebra, with certainty.
    """
    ct, labels = on_labelling_grid(ct, labels)
    present = set(np.unique(labels.data).tolist())
    log_probabilities = np.full((len(numbers), CLASSES), -50.0)
    log_probabilities[:, NOT_A_VERTEBRA] = 0.0
    complete, centres = np.zeros(len(numbers)), np.full((len(numbers), 3), np.nan)
    for place, number in enumerate(numbers):
        if number not in present:
            continue
        logits = np.asarray(predict(labelling_patch(ct.data, labels.data, number, shape)), np.float64)
        log_probabilities[place] = log_softmax(logits[:CLASSES])
        complete[place] = expit(logits[CLASSES])
        centre = _centre_of(labels.data, number)
        centres[place] = transform_points(centre[None], labels.affine, np.eye(4))[0]
    return Votes(log_probabilities, complete, centres)


# Examples ------------------------------------------------------------------------------------------


def labelling_example(
    scan: tuple[np.ndarray, np.ndarray],
    rank: int,
    generator: np.random.Generator | None,
    *,
    settings: LabellingTrainingSettings,
) -> dict[str, np.ndarray]:
    """Make one example: a vertebra as a prediction may show it, or something that is none.

    Parameters
    ----------
    scan : tuple of np.ndarray, 2 of (P, R, I)
        CT in HU and ranks, on the labelling grid.
    rank : int
        The vertebra.
    generator : np.random.Generator or None
        Source of randomness; None shows the vertebra as it is.
    settings : LabellingTrainingSettings
        Patch, shares, augmentation.

    Returns
    -------
    dict of str to np.ndarray
        "x" as of `network_channels`; "y" float32 (3,): class, whether complete, weight of completeness.
    """
    ct, ranks = scan
    if generator is None:
        whole = not _reaches_the_end(ranks, rank)
        return _as_example(labelling_patch(ct, ranks, rank, settings.patch_voxels), rank, whole)
    drawn = augment.draw_augmentation(generator, settings.augmentation)
    is_none = generator.random() < settings.not_a_vertebra_share
    image, numbers = _surroundings(ct, ranks, rank, settings.patch_voxels)
    whole = np.count_nonzero(numbers == rank)
    image, numbers = cut_field(image, numbers, rank, generator, settings.cut_share)
    this = numbers == rank
    is_whole = np.count_nonzero(this) >= WHOLE * whole and not _reaches_the_end(ranks, rank)
    others = (numbers > 0) & ~this
    false = draw_no_vertebra(image, numbers, rank, generator) if is_none else this
    is_none = is_none and np.count_nonzero(false) >= LEAST_FALSE_VOXELS
    if is_none:
        this, others = false, (others | this) & ~false
    this, others = perturb(this, others, numbers, rank, generator)
    x = _augmented_patch(image, this, others, drawn, generator, settings.patch_voxels)
    return _as_example(x, NOT_A_VERTEBRA if is_none else rank, is_whole and not is_none)


def _surroundings(
    ct: np.ndarray, ranks: np.ndarray, rank: int, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Give the part of a scan that a patch, turned, zoomed and moved, can reach from a vertebra."""
    centre, reach = _centre_of(ranks, rank), np.array(shape) * 0.65 + 20
    begin = np.clip(np.floor(centre - reach).astype(int), 0, None)
    end = np.minimum(np.ceil(centre + reach).astype(int) + 1, ct.shape)
    box = box_between(begin, end)
    return np.array(ct[box], np.float32), np.array(ranks[box])


def _as_example(x: np.ndarray, level: int, is_whole: bool) -> dict[str, np.ndarray]:
    return {"x": x, "y": np.array([level, is_whole, level != NOT_A_VERTEBRA], np.float32)}


def _reaches_the_end(ranks: np.ndarray, rank: int) -> bool:
    """Whether a vertebra reaches the first or last slice of the scan: then it may well be cut."""
    return bool((ranks[:, :, 0] == rank).any() or (ranks[:, :, -1] == rank).any())


def _augmented_patch(
    image: np.ndarray,
    this: np.ndarray,
    others: np.ndarray,
    drawn: augment.Augmentation,
    generator: np.random.Generator,
    shape: Sequence[int],
) -> np.ndarray:
    """Cut the patch around a mask, turned and zoomed, and change the intensities in the field of view."""
    centre = np.mean(np.nonzero(this), axis=1) + generator.uniform(-1.5, 1.5, 3)
    marks = np.where(this, 1, np.where(others, 2, 0)).astype(np.uint8)
    patch, marks = sampled(image, marks, centred_affine(centre, drawn.matrix, shape), shape)
    x = network_channels(patch, marks == 1, marks == 2)
    # Standard normal numbers in single precision: this is most of the host's work otherwise.
    noise = generator.standard_normal(patch.shape, np.float32)
    ct = drawn.gain * x[..., 0] + drawn.offset
    if drawn.blur_sigma > 0:
        ct = ndimage.gaussian_filter(ct, drawn.blur_sigma / SPACING_MM, truncate=3.0)
    ct = np.clip(ct + np.float32(drawn.noise_sigma) * noise, -1.0, 1.0)
    x[..., 0] = np.where(patch > AIR, ct, -1.0)
    return x


def cut_field(
    image: np.ndarray, numbers: np.ndarray, rank: int, generator: np.random.Generator, cut_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Make the field of view of a patch smaller: ends near the vertebra, sides, or through it.

    Parameters
    ----------
    image, numbers : np.ndarray, (P, R, I)
        HU, and ranks.
    rank : int
        The vertebra that the patch is about.
    generator : np.random.Generator
        Source of randomness.
    cut_share : float
        Probability that the vertebra itself is cut.

    Returns
    -------
    image, numbers : np.ndarray, (P, R, I)
        Copies; air and 0 outside the new field.
    """
    voxels = np.nonzero(numbers == rank)
    if not len(voxels[0]):
        return image, numbers
    lows, highs = np.zeros(3, int), np.array(image.shape)
    for axis in range(3):
        # Up to 40 mm beyond the vertebra at the ends; the sides are mostly wider.
        chance, reach = (0.3, 20) if axis == 2 else (0.15, 15)
        if generator.random() < chance:
            lows[axis] = voxels[axis].min() - generator.integers(0, reach)
        if generator.random() < chance:
            highs[axis] = voxels[axis].max() + 1 + generator.integers(0, reach)
    if generator.random() < cut_share:
        # Mostly at the ends of the scan, as that is where a spine leaves it.
        axis = 2 if generator.random() < 0.85 else int(generator.integers(2))
        share = generator.uniform(LEAST_SEEN, 0.9)
        if generator.random() < 0.5:
            lows[axis] = np.quantile(voxels[axis], 1 - share)
        else:
            highs[axis] = np.quantile(voxels[axis], share) + 1
    field = tuple(slice(max(low, 0), max(high, 0)) for low, high in zip(lows, highs))
    return _kept(image, field, AIR), _kept(numbers, field, 0)


def _kept(array: np.ndarray, field: tuple[slice, ...], outside: float) -> np.ndarray:
    result = np.full_like(array, outside)
    result[field] = array[field]
    return result


def perturb(
    this: np.ndarray, others: np.ndarray, numbers: np.ndarray, rank: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Change masks the way in which predictions differ from the reference.

    Parameters
    ----------
    this, others : np.ndarray of bool, (P, R, I)
        The vertebra and its neighbours.
    numbers : np.ndarray, (P, R, I)
        Ranks.
    rank : int
        The vertebra.
    generator : np.random.Generator
        Source of randomness.

    Returns
    -------
    this, others : np.ndarray of bool, (P, R, I)
        Never both true. What would leave a tenth or less of the vertebra is not done.
    """
    others = others & ~_forgotten(numbers, rank, generator)
    changed = this
    if generator.random() < 0.15:
        changed = changed | _leak(this, numbers, rank, generator)
    if generator.random() < 0.1:  # processes are lost first
        changed = changed & (np.indices(this.shape, sparse=True)[0] < _quantile(this, 0, generator))
    if generator.random() < 0.5:
        changed, others = (_grown(mask, generator.integers(-1, 2)) for mask in (changed, others))
    if generator.random() < 0.3:
        shift = tuple(generator.integers(-2, 3, 3))
        changed, others = (ndimage.shift(mask, shift, order=0) for mask in (changed, others))
    if np.count_nonzero(changed) <= max(0.1 * np.count_nonzero(this), 1):
        changed = this
    return changed, others & ~changed


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    if by == 0:
        return mask
    return (ndimage.binary_dilation if by > 0 else ndimage.binary_erosion)(mask, _BALL)


def _quantile(mask: np.ndarray, axis: int, generator: np.random.Generator) -> float:
    places = np.nonzero(mask)[axis]
    return float(np.quantile(places, generator.uniform(0.5, 0.9))) if len(places) else 0.0


def _leak(this: np.ndarray, numbers: np.ndarray, rank: int, generator: np.random.Generator) -> np.ndarray:
    """Give the part of a neighbour that lies within some voxels of this vertebra."""
    reach = int(generator.integers(1, 4))
    side = (numbers > rank) if generator.random() < 0.5 else (numbers > 0) & (numbers < rank)
    return ndimage.binary_dilation(this, _BALL, iterations=reach + 1) & side


def _forgotten(numbers: np.ndarray, rank: int, generator: np.random.Generator) -> np.ndarray:
    """Give the neighbours that were not found: all above, all below, or any single one."""
    chances = generator.random(3) < (0.12, 0.12, 0.12)
    forgotten = np.zeros(numbers.shape, bool)
    if chances[0]:
        forgotten |= numbers < rank
    if chances[1]:
        forgotten |= numbers > rank
    if chances[2]:
        forgotten |= numbers == rank + generator.choice([-2, -1, 1, 2])
    return forgotten


def draw_no_vertebra(
    image: np.ndarray, numbers: np.ndarray, rank: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw a mask that is no vertebra: halves of two, a fragment, a blob, a piece of other bone.

    Parameters
    ----------
    image, numbers : np.ndarray, (P, R, I)
        HU, and ranks.
    rank : int
        A vertebra near by.
    generator : np.random.Generator
        Source of randomness.

    Returns
    -------
    np.ndarray of bool, (P, R, I)
        May be empty where there is nothing of the kind.
    """
    this = numbers == rank
    if not this.any():
        return this
    middle = np.argwhere(this).mean(axis=0)
    if LEVEL_NAMES[rank - 1] in ("L5", "L6") and not (numbers > rank).any() and generator.random() < 0.6:
        return _sacrum_below(image, numbers, rank, generator)
    kind = generator.choice(["halves", "fragment", "blob", "bone"], p=(0.35, 0.25, 0.2, 0.2))
    if kind == "halves":
        return _halves(numbers, rank)
    if kind == "fragment":
        place = generator.choice(np.argwhere(this))
        return this & _ellipsoid(image.shape, place, generator.uniform(3, 6, 3))
    side = generator.choice([-1, 1]) * generator.uniform(14, 22)
    place = middle + np.array([generator.uniform(-8, 10), side, generator.uniform(-12, 12)])
    ball = _ellipsoid(image.shape, place, generator.uniform(5, 11, 3)) & (numbers == 0) & (image > AIR)
    return ball & (image > 130) if kind == "bone" else ball


def _halves(numbers: np.ndarray, rank: int) -> np.ndarray:
    """Give the lower half of one vertebra with the upper half of the one below it."""
    below = min((n for n in np.unique(numbers) if n > rank), default=0)
    if not below:
        return np.zeros(numbers.shape, bool)
    heights = np.indices(numbers.shape, sparse=True)[2]
    first, second = numbers == rank, numbers == below
    cuts = [np.median(np.nonzero(mask)[2]) for mask in (first, second)]
    return (first & (heights >= cuts[0])) | (second & (heights <= cuts[1]))


def _sacrum_below(
    image: np.ndarray, numbers: np.ndarray, rank: int, generator: np.random.Generator
) -> np.ndarray:
    """Give a piece of the bone under the last lumbar vertebra."""
    voxels = np.argwhere(numbers == rank)
    place = voxels.mean(axis=0) + generator.uniform((-2, -3, 0), (8, 3, 0))
    place[2] = voxels[:, 2].max() + generator.uniform(0, 9)
    ball = _ellipsoid(image.shape, place, generator.uniform((8, 10, 7), (14, 20, 12)))
    return ndimage.binary_closing(ball & (image > 100) & (numbers == 0), _BALL) & (numbers == 0)


def _ellipsoid(shape: Sequence[int], place: np.ndarray, radii: np.ndarray) -> np.ndarray:
    axes = np.indices(tuple(shape), sparse=True)
    return sum(((axis - p) / r) ** 2 for axis, p, r in zip(axes, place, radii)) <= 1.0


# Network -------------------------------------------------------------------------------------------


def build_labelling_network(settings: LabellingTrainingSettings, *, replicas: int = 1) -> keras.Model:
    """Build the classifier: from a patch to the logits of its level and of being complete.

    Parameters
    ----------
    settings : LabellingTrainingSettings
        Patch, filters, dropout and the momentum of the batch normalisation.
    replicas : int
        Devices that train together; several share the statistics of batch normalisation.

    Returns
    -------
    keras.Model
        From (batch, P, R, I, 3) to (batch, 28): `CLASSES` logits, then that of completeness.
    """
    norm = {"momentum": settings.norm_momentum, "synchronized": replicas > 1}
    layers = keras.layers
    inputs = keras.Input((*settings.patch_voxels, 3), name="patch")
    x = inputs
    for level, filters in enumerate(settings.filters):
        # The first level has one convolution: at its resolution another would cost as much as all the rest.
        for stride in (2, 1)[: 1 if level == 0 else 2]:
            x = layers.Conv3D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(**norm)(x))
    x = layers.Flatten()(layers.Conv3D(max(settings.filters[-1] // 2, 1), 1, activation="relu")(x))
    x = layers.Dropout(settings.dropout, seed=settings.seed)(x)
    x = layers.Dense(settings.filters[-1], activation="relu")(x)
    outputs = layers.Dense(CLASSES + 1, dtype="float32", name="output")(x)
    return keras.Model(inputs, outputs, name="labelling")


def level_function(network: keras.Model) -> PredictLevel:
    """Give a trained network as a function on one patch, traced once for its one shape."""

    @tf.function(input_signature=[tf.TensorSpec((1, *network.input_shape[1:]), tf.float32)])
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return network(batch, training=False)

    return lambda patch: forward(tf.constant(patch[None], tf.float32)).numpy()[0]


def smoothed_targets(smoothing: float) -> np.ndarray:
    """Give the target probabilities of every class, part of them on the levels next to it.

    Parameters
    ----------
    smoothing : float
        What the levels above and below get together. The rare T13 and the levels that it lies between all
        count as next to one another: where it is absent, L1 follows T12.

    Returns
    -------
    np.ndarray of float32, (27, 27)
        A row a class; *not a vertebra* is not smoothed.
    """
    t12, t13, l1 = (LEVEL_NAMES.index(name) + 1 for name in ("T12", "T13", "L1"))
    near = np.zeros((CLASSES, CLASSES), np.float32)
    for rank in range(1, MAX_RANK):
        near[rank, rank + 1] = near[rank + 1, rank] = 1
    near[t12, l1] = near[l1, t12] = 1
    near[t12, t13] = near[l1, t13] = 0.25  # seldom there
    shares = near / np.maximum(near.sum(axis=1, keepdims=True), 1)
    shares[[1, MAX_RANK]] = near[[1, MAX_RANK]] / 2
    return (np.diag(1 - smoothing * shares.sum(axis=1)) + smoothing * shares).astype(np.float32)


def labelling_loss(smoothing: float) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Give the loss of a batch, (batch,): cross-entropy of the level and, less, of being complete."""
    targets = tf.constant(smoothed_targets(smoothing))

    def loss(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        wanted = tf.gather(targets, tf.cast(y[:, 0], tf.int32))
        level = tf.nn.softmax_cross_entropy_with_logits(wanted, logits[:, :CLASSES])
        complete = tf.nn.sigmoid_cross_entropy_with_logits(y[:, 1], logits[:, CLASSES])
        return level + COMPLETE_WEIGHT * y[:, 2] * complete

    return loss


def level_accuracy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Give 1 for every example whose most probable class is the right one, else 0; (batch,)."""
    found = tf.argmax(logits[:, :CLASSES], axis=1, output_type=tf.int32)
    return tf.cast(found == tf.cast(y[:, 0], tf.int32), tf.float32)


def labelling_batch_builder(batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, ...]:
    """Take a batch of `utils.learning.datasets.labelling_dataset` apart: x, y, weight."""
    return batch["x"], batch["y"], batch["weight"]
