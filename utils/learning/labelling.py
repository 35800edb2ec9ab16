"""Examples for the network that tells which vertebra lies around a point: a patch, and what is in its middle.

The host draws the point (`draw_labelling_example`), the device builds the patch. Points lie near a body's
centre, and the way to it is part of the truth, or they are none: between two bodies, near one, in the sacrum,
or anywhere in a scan.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from utils.learning import augment
from utils.learning.localiser import (
    END_RADIUS_MM,
    beyond_the_ends,
    block_in_field,
    field_of_view,
    image_builder,
)
from utils.preparation.spine_case import KnownSpine
from utils.settings import LabellingTrainingSettings

#: Shares of the points that are no centre: between bodies, near one, in the sacrum, anywhere.
_BETWEEN, _NEAR, _SACRUM, _ANYWHERE = range(4)
_NONE_KINDS = (0.25, 0.3, 0.1, 0.35)
#: How far from a body's centre points near it are drawn, and how far those between bodies, or in the sacrum,
#: spread, in mm.
_NEAR_MM, _SPREAD_MM = 50.0, 4.0
#: A point anywhere is the brightest of up to this power of 2.
_MOST_DOUBLINGS = 6
#: Points are drawn anew so often where they lie too near to a body; then the example is a vertebra.
_TRIES = 20


def draw_labelling_example(
    generator: np.random.Generator | None,
    spine: KnownSpine,
    ct_hu: np.ndarray,
    *,
    settings: LabellingTrainingSettings,
) -> dict[str, np.ndarray]:
    """Draw the parameters of one example.

    Parameters
    ----------
    generator : np.random.Generator or None
        Source of randomness; None shows the middle vertebra, or the middle of a scan without one.
    spine : KnownSpine
        What is known of the scan.
    ct_hu : np.ndarray of int, (P, R, I)
        The scan, of which a few voxels are looked at.
    settings : LabellingTrainingSettings
        Patch, shares and augmentation.

    Returns
    -------
    dict of str to np.ndarray
        "begin", "end" (3,) int: the block of the scan that the patch is made of; "affine" (3, 4) from the
        patch's voxels to the block's; "last" (3,) int32; "truth" (5,) as `losses.labelling_loss` takes it;
        and those of `Augmentation.of_intensities`.
    """
    drawn = augment.draw_augmentation(generator, settings.augmentation)
    field = field_of_view(generator, spine, ct_hu.shape, settings)
    point, place = _point(generator, spine, field, ct_hu, settings)
    patch = (settings.patch_voxels,) * 3
    translation = point - drawn.matrix @ ((np.array(patch) - 1) / 2)
    return {
        **block_in_field(drawn.matrix, translation, patch, field),
        "truth": _truth(spine, place, point, drawn.matrix),
        **drawn.of_intensities(),
    }


def _point(
    generator: np.random.Generator | None,
    spine: KnownSpine,
    field: tuple[np.ndarray, np.ndarray],
    ct_hu: np.ndarray,
    settings: LabellingTrainingSettings,
) -> tuple[np.ndarray, int | None]:
    """Draw what the middle of a patch shows: a point in the scan's voxels, and the place of its vertebra."""
    count = len(spine.points)
    if generator is None:
        return (spine.points[count // 2], count // 2) if count else (np.add(*field) / 2, None)
    if not count or generator.random() < settings.none_share:
        for _ in range(_TRIES):
            point = _draw_none(generator, spine, field, ct_hu, settings.spacing_mm)
            if is_none(point, spine, settings):
                return point, None
    if not count:
        return _anywhere(generator, field, ct_hu), None
    reach = settings.jitter_mm / settings.spacing_mm
    # Also a body whose centre the field of view just leaves out: the way to it leads out of the scan.
    low, high = field
    near = np.flatnonzero(np.all((spine.points > low - reach) & (spine.points < high - 1 + reach), axis=1))
    place = int(generator.choice(near)) if len(near) else int(generator.integers(count))
    point = spine.points[place] + generator.uniform(0, reach) * _direction(generator)
    point = np.clip(point, low, high - 1)
    return point, int(np.linalg.norm(spine.points - point, axis=1).argmin())


def _direction(generator: np.random.Generator) -> np.ndarray:
    drawn = generator.normal(size=3)
    return drawn / np.linalg.norm(drawn)


def _truth(spine: KnownSpine, place: int | None, point: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Give the truth of a patch around a point, the way to the centre in its voxels."""
    if place is None:
        return np.zeros(5, np.float32)
    way = np.linalg.solve(matrix, spine.points[place] - point)
    return np.array([spine.ranks[place], spine.has_rib[place], *way], np.float32)


def _draw_none(
    generator: np.random.Generator,
    spine: KnownSpine,
    field: tuple[np.ndarray, np.ndarray],
    ct_hu: np.ndarray,
    spacing_mm: float,
) -> np.ndarray:
    """Draw a point that may be no body's centre; a kind that the scan does not have is one anywhere."""
    kind = generator.choice(len(_NONE_KINDS), p=_NONE_KINDS)
    spread = generator.normal(0, _SPREAD_MM, 3) / spacing_mm
    if kind == _SACRUM and spine.sacrum is not None:
        return spine.sacrum + spread
    if kind == _NEAR and len(spine.points):
        reach = generator.uniform(0, _NEAR_MM) / spacing_mm
        return generator.choice(spine.points) + reach * _direction(generator)
    if kind == _BETWEEN and len(spine.points) > 1:
        upper = int(generator.integers(len(spine.points) - 1))
        return spine.points[upper : upper + 2].mean(axis=0) + spread
    return _anywhere(generator, field, ct_hu)


def _anywhere(
    generator: np.random.Generator, field: tuple[np.ndarray, np.ndarray], ct_hu: np.ndarray
) -> np.ndarray:
    """Draw a point of a field of view, the brightest of a few: what passes for a vertebra is mostly bone."""
    count = 2 ** int(generator.integers(_MOST_DOUBLINGS + 1))
    points = generator.uniform(*field, (count, 3))
    voxels = np.minimum(points, np.array(ct_hu.shape) - 1).astype(int)
    return points[ct_hu[tuple(voxels.T)].argmax()]


def is_none(point: np.ndarray, spine: KnownSpine, settings: LabellingTrainingSettings) -> bool:
    """Tell whether a point is surely no body's centre, known or hidden beyond the ends of the scan."""
    near = np.linalg.norm(spine.points - point, axis=1) * settings.spacing_mm
    hidden = np.linalg.norm(beyond_the_ends(spine, settings.spacing_mm) - point, axis=1) * settings.spacing_mm
    return bool(np.all(near >= settings.none_least_mm) and np.all(hidden >= END_RADIUS_MM))


def labelling_batch_builder(settings: LabellingTrainingSettings) -> Callable:
    """Give the `augment.batch_builder` of a batch of `utils.learning.datasets.labelling_dataset`."""
    image_of = image_builder(settings, (settings.patch_voxels,) * 3)

    def one(drawn: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return image_of(drawn)[..., None], drawn["truth"]

    return augment.batch_builder(one)
