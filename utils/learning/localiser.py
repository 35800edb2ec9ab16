"""Examples for the network that finds vertebrae: a crop of a scan, and the heat of the bodies in it.

The host draws where a crop lies and how it is turned and zoomed (`draw_localiser_example`);
`localiser_example` builds input and target from the scan's block on the device. A crop may lie anywhere in a
scan, with and without spine, and may show it as a scan of a smaller field of view would.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from utils.imaging.crops import block_of_patch
from utils.learning import augment
from utils.learning.compilation import compiled
from utils.preparation.spine_case import KnownSpine
from utils.settings import HeatmapTrainingSettings, LabellingTrainingSettings
from utils.verse.labels import MAX_RANK

#: Channels of the target: heat of bodies, heat of the first sacral body, what counts of both.
BODY, SACRUM, COUNTS = range(3)
#: Unlabelled vertebrae beyond the ends of a scan of VerSe count for nothing: so many at each end, this near.
ENDS, END_RADIUS_MM = 2, 16.0
#: Step that the extrapolation takes where a scan has one point alone.
USUAL_STEP_MM = 25.0
#: A voxel of this heat or more belongs to a body that has its point.
NEAR_CENTRE = 0.5


def draw_localiser_example(
    generator: np.random.Generator | None,
    spine: KnownSpine,
    shape: tuple[int, int, int],
    *,
    settings: HeatmapTrainingSettings,
) -> dict[str, np.ndarray]:
    """Draw the parameters of one example.

    Parameters
    ----------
    generator : np.random.Generator or None
        Source of randomness; None shows the middle of the spine, or of the scan, as it is (validation).
    spine : KnownSpine
        What is known of the scan.
    shape : tuple of int, 3
        Shape of the scan.
    settings : HeatmapTrainingSettings
        Crop, shares and augmentation.

    Returns
    -------
    dict of str to np.ndarray
        "begin", "end" (3,) int: the block of the scan that the crop is made of; "affine" (3, 4) from the
        crop's voxels to the block's; "last" (3,) int32; "points" (MAX_RANK, 3) in the crop's voxels, by rank,
        with "present" (MAX_RANK,); "sacrum" (3,), "has_sacrum"; "ends" (2 * ENDS, 3) with
        "has_ends"; and those of `Augmentation.of_intensities`.
    """
    drawn = augment.draw_augmentation(generator, settings.augmentation)
    field = field_of_view(generator, spine, shape, settings)
    aim = _aim(generator, spine, field, settings)
    translation = aim - drawn.matrix @ ((np.array(settings.crop_voxels) - 1) / 2)
    return {
        **block_in_field(drawn.matrix, translation, settings.crop_voxels, field),
        **_seen(spine, field, drawn.matrix, translation, settings.spacing_mm),
        **drawn.of_intensities(),
    }


def block_in_field(
    matrix: np.ndarray,
    translation: np.ndarray,
    shape: tuple[int, int, int],
    field: tuple[np.ndarray, np.ndarray],
) -> dict[str, np.ndarray]:
    """Give the block of a scan that a crop is made of, where a field of view is all that is seen.

    Parameters
    ----------
    matrix, translation : np.ndarray, (3, 3) and (3,)
        From the crop's voxels to the scan's.
    shape : tuple of int, 3
        Shape of the crop.
    field : tuple of np.ndarray, (3,)
        As `field_of_view` gives it.

    Returns
    -------
    dict of str to np.ndarray
        "begin", "end", "last" and "affine" of an example (see `draw_localiser_example`).
    """
    low, high = field
    affine = np.column_stack([matrix, translation - low])
    begin, end = block_of_patch(affine, shape, high - low)
    affine[:, 3] -= begin
    return {
        "begin": begin + low,
        "end": end + low,
        "last": (end - begin - 1).astype(np.int32),
        "affine": affine.astype(np.float32),
    }


def _seen(
    spine: KnownSpine,
    field: tuple[np.ndarray, np.ndarray],
    matrix: np.ndarray,
    translation: np.ndarray,
    spacing_mm: float,
) -> dict[str, np.ndarray]:
    """Give what a field of view shows of a spine, in a crop's voxels."""
    low, high = field

    def in_crop(points: np.ndarray) -> np.ndarray:
        return np.linalg.solve(matrix, (points - translation).T).T.astype(np.float32)

    def is_shown(points: np.ndarray) -> np.ndarray:
        return np.all((points > low - 0.5) & (points < high - 0.5), axis=1).astype(np.float32)

    by_rank = np.zeros((MAX_RANK, 4), np.float32)
    by_rank[np.array(spine.ranks, int) - 1] = np.column_stack([in_crop(spine.points), is_shown(spine.points)])
    ends = beyond_the_ends(spine, spacing_mm)
    sacrum = np.zeros((1, 3)) if spine.sacrum is None else spine.sacrum[None]
    return {
        "points": by_rank[:, :3],
        "present": by_rank[:, 3],
        "sacrum": in_crop(sacrum)[0],
        "has_sacrum": is_shown(sacrum)[0] * (spine.sacrum is not None),
        "ends": in_crop(ends) if len(ends) else np.zeros((2 * ENDS, 3), np.float32),
        "has_ends": np.float32(len(ends) > 0),
    }


def beyond_the_ends(spine: KnownSpine, spacing_mm: float) -> np.ndarray:
    """Give where vertebrae may lie that have no point, as those that the field of view cuts: (2 * ENDS, 3).

    None, (0, 3), where every vertebra has its point, or none has.
    """
    points = spine.points
    if spine.is_complete or not len(points):
        return np.zeros((0, 3))
    straight = np.array([[0.0, 0.0, USUAL_STEP_MM / spacing_mm]])
    steps = np.diff(points, axis=0) if len(points) > 1 else straight
    numbers = np.arange(1, ENDS + 1)[:, None]
    return np.concatenate([points[0] - numbers * steps[0], points[-1] + numbers * steps[-1]])


def field_of_view(
    generator: np.random.Generator | None,
    spine: KnownSpine,
    shape: tuple[int, int, int],
    settings: HeatmapTrainingSettings | LabellingTrainingSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the part of a scan that one with a smaller field of view would show, around a vertebra of it.

    Parameters
    ----------
    generator, spine, shape
        As for `draw_localiser_example`.
    settings : HeatmapTrainingSettings or LabellingTrainingSettings
        With `cut_share`, `cut_least_mm` and `spacing_mm`.

    Returns
    -------
    low, high : np.ndarray of int, (3,)
        Voxels from `low` up to, not including, `high`.
    """
    whole = np.array(shape)
    if generator is None or not len(spine.points) or generator.random() >= settings.cut_share:
        return np.zeros(3, int), whole
    middle = spine.points[generator.integers(len(spine.points))]
    least = np.array(settings.cut_least_mm) / settings.spacing_mm
    # Small fields as often as large ones: those of spines are seldom as wide as a trunk.
    size = np.exp(generator.uniform(np.log(least), np.log(np.maximum(whole, least))))
    size = np.maximum(size, 8)
    begin = middle - generator.uniform(0.2, 0.8, 3) * size
    low = np.clip(np.floor(begin), 0, whole - 1).astype(int)
    return low, np.clip(np.ceil(begin + size).astype(int), low + 1, whole)


def _aim(
    generator: np.random.Generator | None,
    spine: KnownSpine,
    field: tuple[np.ndarray, np.ndarray],
    settings: HeatmapTrainingSettings,
) -> np.ndarray:
    """Draw what the middle of a crop shows: near a vertebra, or anywhere in the field of view."""
    low, high = field
    if generator is None:
        return spine.points.mean(axis=0) if len(spine.points) else (low + high - 1) / 2
    anywhere = generator.uniform(low, high)
    if not len(spine.points) or generator.random() < settings.anywhere_share:
        return anywhere
    inside = np.all((spine.points >= low) & (spine.points < high), axis=1)
    points = spine.points[inside] if inside.any() else spine.points
    reach = 0.4 * np.array(settings.crop_voxels)
    return points[generator.integers(len(points))] + generator.uniform(-reach, reach)


@compiled
def localiser_target(
    drawn: dict[str, tf.Tensor], shape: tuple[int, int, int], sigma_voxels: float
) -> tf.Tensor:
    """Make the target of a crop: heat that is 1 at every centre.

    Parameters
    ----------
    drawn : dict of str to tf.Tensor
        From `draw_localiser_example`.
    shape : tuple of int, 3
        Shape of the crop.
    sigma_voxels : float
        Standard deviation of the Gaussians.

    Returns
    -------
    tf.Tensor of float32, (*shape, 3)
        Channels as `BODY` and those after it.
    """
    heat = _gaussians(drawn["points"], shape, sigma_voxels) * drawn["present"][:, None, None, None]
    body = tf.reduce_max(heat, axis=0)
    sacrum = _gaussians(drawn["sacrum"][None], shape, sigma_voxels)[0] * drawn["has_sacrum"]
    # Within the radius of an end the Gaussian of a third of it is over exp(-4.5).
    near_ends = tf.reduce_max(_gaussians(drawn["ends"], shape, drawn["end_sigma"]), axis=0) > 0.0111
    hides = near_ends & (drawn["has_ends"] > 0) & (body < NEAR_CENTRE)
    counts = 1.0 - tf.cast(hides, tf.float32)
    return tf.stack([body, sacrum, counts], axis=-1)


def _gaussians(points: tf.Tensor, shape: tuple[int, int, int], sigma: tf.Tensor | float) -> tf.Tensor:
    """Give a Gaussian of height 1 around each point, (n, *shape)."""
    p, r, i = (
        tf.exp(-0.5 * tf.square((tf.range(size, dtype=tf.float32) - points[:, axis, None]) / sigma))
        for axis, size in enumerate(shape)
    )
    return p[:, :, None, None] * r[:, None, :, None] * i[:, None, None, :]


@compiled
def _moved(drawn: dict[str, tf.Tensor], shape: tuple[int, int, int], outside: str) -> tf.Tensor:
    coordinates = augment.sampling_coordinates(drawn["affine"], shape)
    return augment.moved_ct(drawn["ct_hu"], coordinates, drawn["last"], drawn, outside)


_blurred = compiled(augment.blur)


def image_builder(
    settings: HeatmapTrainingSettings | LabellingTrainingSettings, shape: tuple[int, int, int]
) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
    """Give the function that builds the image of an example, of some shape, from its block on the device."""
    # The blur is in voxels, hence a spacing of 1.
    radius = augment.blur_radius(settings.augmentation, 1.0)

    def image_of(drawn: dict[str, tf.Tensor]) -> tf.Tensor:
        image = _moved(drawn, shape, settings.outside)
        image = augment.add_noise(image, drawn["noise_sigma"], drawn["noise_seed"])
        return tf.clip_by_value(_blurred(image, drawn["blur_sigma"], radius), -1.0, 1.0)

    return image_of


def localiser_batch_builder(settings: HeatmapTrainingSettings) -> Callable:
    """Give the `augment.batch_builder` of a batch of `utils.learning.datasets.localiser_dataset`."""
    shape, spacing = tuple(settings.crop_voxels), settings.spacing_mm
    image_of = image_builder(settings, shape)

    def one(drawn: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        known = {**drawn, "end_sigma": tf.constant(END_RADIUS_MM / 3 / spacing)}
        return image_of(drawn)[..., None], localiser_target(known, shape, settings.sigma_mm / spacing)

    return augment.batch_builder(one)
