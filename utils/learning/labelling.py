"""Examples for the network that tells which vertebra lies around a point: a patch, and what is in its middle.

The host draws the point (`draw_labelling_example`), the device builds the patch. Points are body centres, not
quite hit, and points that are none: between two bodies, behind one, or anywhere in a scan.
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

#: What is drawn of points that are no centre: between bodies, behind one, anywhere.
_NONE_KINDS = (0.3, 0.25, 0.45)
#: How far behind a body's centre its posterior elements lie, mm.
_BEHIND_MM = (20.0, 50.0)
#: Points are drawn anew so often where they lie too near to a body; then the example is a vertebra.
_TRIES = 20


def draw_labelling_example(
    generator: np.random.Generator | None,
    spine: KnownSpine,
    shape: tuple[int, int, int],
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
    shape : tuple of int, 3
        Shape of the scan.
    settings : LabellingTrainingSettings
        Patch, shares and augmentation.

    Returns
    -------
    dict of str to np.ndarray
        "begin", "end" (3,) int: the block of the scan that the patch is made of; "affine" (3, 4) from the
        patch's voxels to the block's; "last" (3,) int32; "truth" (2,) as `losses.labelling_loss` takes it;
        and those of `Augmentation.of_intensities`.
    """
    drawn = augment.draw_augmentation(generator, settings.augmentation)
    field = field_of_view(generator, spine, shape, settings)
    point, truth = _point(generator, spine, field, settings)
    patch = (settings.patch_voxels,) * 3
    translation = point - drawn.matrix @ ((np.array(patch) - 1) / 2)
    return {
        **block_in_field(drawn.matrix, translation, patch, field),
        "truth": np.array(truth, np.float32),
        **drawn.of_intensities(),
    }


def _point(
    generator: np.random.Generator | None,
    spine: KnownSpine,
    field: tuple[np.ndarray, np.ndarray],
    settings: LabellingTrainingSettings,
) -> tuple[np.ndarray, tuple[float, float]]:
    """Draw what the middle of a patch shows, in the scan's voxels: where it lies, and its truth."""
    count = len(spine.points)
    if generator is None:
        place = count // 2
        return (spine.points[place], _truth(spine, place)) if count else (np.add(*field) / 2, (0.0, 0.0))
    if not count or generator.random() < settings.none_share:
        for _ in range(_TRIES):
            point = _draw_none(generator, spine, field, settings.spacing_mm)
            if is_none(point, spine, settings):
                return point, (0.0, 0.0)
    if not count:
        return generator.uniform(*field), (0.0, 0.0)
    inside = np.flatnonzero(np.all((spine.points >= field[0]) & (spine.points < field[1]), axis=1))
    place = int(generator.choice(inside)) if len(inside) else int(generator.integers(count))
    jitter = generator.uniform(-settings.jitter_mm, settings.jitter_mm, 3) / settings.spacing_mm
    return spine.points[place] + jitter, _truth(spine, place)


def _truth(spine: KnownSpine, place: int) -> tuple[float, float]:
    return float(spine.ranks[place]), float(spine.has_rib[place])


def _draw_none(
    generator: np.random.Generator,
    spine: KnownSpine,
    field: tuple[np.ndarray, np.ndarray],
    spacing_mm: float,
) -> np.ndarray:
    kind = generator.choice(3, p=_NONE_KINDS)
    if kind == 2 or not len(spine.points):
        return generator.uniform(*field)
    place = int(generator.integers(len(spine.points)))
    if kind == 1:
        behind = [generator.uniform(*_BEHIND_MM), generator.normal(0, 8), generator.normal(5, 10)]
        return spine.points[place] + np.array(behind) / spacing_mm
    if len(spine.points) == 1:
        return (
            spine.points[0]
            + generator.choice((-1, 1)) * np.array([0, 0, generator.uniform(10, 16)]) / spacing_mm
        )
    place = min(place, len(spine.points) - 2)
    middle = spine.points[place : place + 2].mean(axis=0)
    return middle + generator.normal(0, 3, 3) / spacing_mm


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
