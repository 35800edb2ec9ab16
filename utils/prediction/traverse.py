"""The walk down the spine: one vertebra after the other, each shown what was found before it.

The segmentation network sees a patch of the CT and the *memory*, the vertebrae found so far, and gives
the first vertebra that the memory does not hold. The walk moves the patch to the centre of what it gives
until the centre rests, writes the vertebra, and asks again (Serrador et al. 2024, after Lessmann et al.,
Medical Image Analysis 53 (2019) 142). Pure functions on volumes in the working grid, oriented (P, R, I):
the network comes in as a function, and nothing here loads TensorFlow.

What the published walk leaves open:

- *Empty prediction*, or one mostly made of voxels already given: the patch moves a quarter of its edge
  down the heatmap, a few times at most, then the walk ends.
- *A fragment*, under the minimum volume even where the patch rests on it, such as what the field of view
  leaves of a vertebra: it goes into the memory without becoming a vertebra, a few times at most. Ignored,
  it would stay the first that the memory does not hold, and the walk would never get past it.
- *No rest* after `max_steps`: one last prediction at the mean of the last three centres.
- *Identical patches*: patches begin at whole voxels, so the point that rests repeats its patch. The network
  is deterministic; an identical patch is looked up, never predicted again.
- *Specks*: only the largest connected component counts, for the mask and for the centre, since a speck far
  from the vertebra pulls the centre, and so the next patch, away from it.

Every loop is bounded, whatever the network answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist

from utils.imaging.crops import crop, overlap
from utils.imaging.volume import Volume
from utils.prediction.locate import heat_at, point_below, top_of_spine

#: From the CT in [-1, 1] and the memory (0 or 1), both (n, n, n) float32, to the probability (n, n, n).
PredictPatch = Callable[[np.ndarray, np.ndarray], np.ndarray]
#: Voxels kept around a vertebra, so that its surface lies between known probabilities.
BOX_MARGIN = 2
#: Number of passed-over fragments among the labels during the walk.
FRAGMENT = 255


@dataclass(frozen=True)
class WalkSettings:
    """How the walk goes; lengths in mm, the spacing turns them into voxels."""

    patch_voxels: int = 128
    """Edge of the patch in voxels of the working grid."""
    spacing_mm: float = 1.0
    """Isotropic spacing of the working grid."""
    heat_threshold: float = 0.3
    """Heat at which the spine begins, and at which it ends under the absolute rule."""
    end_rule: Literal["absolute", "relative"] = "relative"
    """"absolute": end after a vertebra whose centre has less heat than the threshold (as published).
    "relative": end before one with less than half of the mean heat at the last three."""
    max_steps: int = 10
    """Most predictions for one vertebra before its last centres are averaged."""
    max_vertebrae: int = 26
    """Most vertebrae in one scan: C1 to L6 with T13."""
    min_volume_mm3: float = 1000.0
    """Smallest volume of a vertebra; less is a fragment."""
    probability_threshold: float = 0.5
    """Probability from which a voxel belongs to the vertebra."""
    rest_mm: float = 2.0
    """The last three centres must lie closer together than this."""
    max_steps_down: int = 4
    """Most times that the patch moves down after empty predictions: one whole patch."""
    max_fragments: int = 2
    """Most fragments that are passed over on the way to one vertebra."""
    relative_heat: float = 0.5
    """Share of the mean heat at the last three vertebrae under which the relative rule ends. On perfect
    heatmaps a vertebra has at least .63, what lies below the last at most .52 (benchmarks/trial_end_rule)."""

    def __post_init__(self) -> None:
        """Refuse what no walk can follow."""
        if not 0 < self.heat_threshold <= 1:
            raise ValueError(f"Expected a heat threshold over 0 and up to 1, received {self.heat_threshold}.")
        if self.max_steps < 1:
            raise ValueError(f"Expected at least 1 step for a vertebra, received {self.max_steps}.")
        if not 1 <= self.max_vertebrae < FRAGMENT:
            raise ValueError(
                f"Expected 1 to {FRAGMENT - 1} vertebrae at most, received {self.max_vertebrae}."
            )

    @property
    def step_down_mm(self) -> float:
        """Distance that the patch moves down after an empty prediction: a quarter of its edge."""
        return self.patch_voxels * self.spacing_mm / 4


@dataclass(frozen=True, eq=False)
class FoundVertebra:
    """One vertebra, in a box of the working grid that holds it with a margin."""

    begin: np.ndarray
    """(3,) int: first voxel of the box in the working grid."""
    probability: np.ndarray
    """float16, the box. At least the threshold in the mask, under it elsewhere."""
    mask: np.ndarray
    """bool, the box: the voxels that the walk gave to this vertebra."""
    centre: np.ndarray
    """(3,) float: centre of mass of the prediction, voxel index in the working grid."""
    heat: float
    """Heat at the centre."""
    steps: int = 1
    """Patches looked at."""
    converged: bool = False
    """Whether the centre came to rest."""


@dataclass(frozen=True, eq=False)
class WalkResult:
    """What the walk found, in the order of finding."""

    vertebrae: tuple[FoundVertebra, ...]
    labels: Volume
    """uint8 on the working grid: 1 for the first vertebra found, and so on; 0 outside."""


def walk(ct: Volume, heat: Volume, predict: PredictPatch, *, settings: WalkSettings) -> WalkResult:
    """Find the vertebrae of a scan from the top down.

    Parameters
    ----------
    ct : Volume
        CT in the working grid, oriented (P, R, I), in [-1, 1].
    heat : Volume
        Heatmap of the spine on any grid with the same axes; points reach it through the affines.
    predict : callable
        The segmentation network.
    settings : WalkSettings
        How to walk.

    Returns
    -------
    WalkResult
        The vertebrae in the order of finding; none if the heat nowhere reaches the threshold.

    Raises
    ------
    ValueError
        If `predict` gives another shape than the patch's, or NaN.
    """
    scene = _Scene(ct, heat, predict, settings)
    labels = np.zeros(ct.shape, np.uint8)
    found: list[FoundVertebra] = []
    point = top_of_spine(heat, ct.affine, threshold=settings.heat_threshold)
    while point is not None and len(found) < settings.max_vertebrae:
        vertebra = _next_vertebra(scene, labels, point)
        if vertebra is None or _lies_below_the_spine(vertebra, found, settings):
            break
        found.append(vertebra)
        _remember(labels, vertebra, len(found))
        point = None if _is_the_last(vertebra, settings) else vertebra.centre
    labels[labels == FRAGMENT] = 0
    return WalkResult(tuple(found), Volume(labels, ct.affine))


@dataclass(frozen=True, eq=False)
class _Scene:
    ct: Volume
    heat: Volume
    predict: PredictPatch
    settings: WalkSettings


def _is_the_last(vertebra: FoundVertebra, settings: WalkSettings) -> bool:
    return settings.end_rule == "absolute" and vertebra.heat < settings.heat_threshold


def _lies_below_the_spine(
    vertebra: FoundVertebra, found: list[FoundVertebra], settings: WalkSettings
) -> bool:
    if settings.end_rule != "relative" or not found:
        return False
    return vertebra.heat < settings.relative_heat * np.mean([above.heat for above in found[-3:]])


def _next_vertebra(scene: _Scene, labels: np.ndarray, point: np.ndarray | None) -> FoundVertebra | None:
    settings = scene.settings
    fragments = steps_down = 0
    look = _looker(scene, labels)
    while point is not None and fragments <= settings.max_fragments and steps_down <= settings.max_steps_down:
        vertebra = _come_to_rest(look, point, settings)
        if vertebra is None:
            point = _step_down(scene, point)
            steps_down += 1
        elif _is_a_fragment(vertebra, settings):
            _remember(labels, vertebra, FRAGMENT)
            look, point = _looker(scene, labels), vertebra.centre
            fragments += 1
        else:
            return vertebra
    return None


def _looker(scene: _Scene, labels: np.ndarray) -> Callable[[np.ndarray], FoundVertebra | None]:
    """Give the look at a point; it remembers what each patch showed, as long as the memory stays."""
    half = scene.settings.patch_voxels // 2

    @cache
    def look_from(begin: tuple[int, ...]) -> FoundVertebra | None:
        return _look(scene, labels, np.array(begin))

    return lambda point: look_from(tuple(int(middle) - half for middle in np.floor(point + 0.5)))


def _step_down(scene: _Scene, point: np.ndarray) -> np.ndarray | None:
    settings = scene.settings
    return point_below(
        scene.heat,
        point,
        scene.ct.affine,
        distance_mm=settings.step_down_mm,
        threshold=settings.heat_threshold,
    )


def _is_a_fragment(vertebra: FoundVertebra, settings: WalkSettings) -> bool:
    return np.count_nonzero(vertebra.mask) * settings.spacing_mm**3 < settings.min_volume_mm3


def _remember(labels: np.ndarray, vertebra: FoundVertebra, number: int) -> None:
    box = tuple(slice(b, b + n) for b, n in zip(vertebra.begin, vertebra.mask.shape))
    labels[box][vertebra.mask] = number


def _come_to_rest(
    look: Callable[[np.ndarray], FoundVertebra | None], point: np.ndarray, settings: WalkSettings
) -> FoundVertebra | None:
    seen: list[FoundVertebra] = []
    for _ in range(settings.max_steps):
        vertebra = look(point)
        if vertebra is None:
            return None
        seen.append(vertebra)
        point = vertebra.centre
        if _rests(seen, settings):
            return dataclasses.replace(vertebra, steps=len(seen), converged=True)
    # A mean that lies between two vertebrae may show nothing; the last prediction is still a vertebra.
    final = look(np.mean([each.centre for each in seen[-3:]], axis=0)) or seen[-1]
    return dataclasses.replace(final, steps=len(seen) + 1, converged=False)


def _rests(seen: list[FoundVertebra], settings: WalkSettings) -> bool:
    if len(seen) < 3:
        return False
    return pdist([each.centre for each in seen[-3:]]).max() * settings.spacing_mm < settings.rest_mm


def _look(scene: _Scene, labels: np.ndarray, begin: np.ndarray) -> FoundVertebra | None:
    """Predict one patch; None if it shows no vertebra that is new."""
    settings = scene.settings
    probability, memory = _predict(scene, labels, begin)
    in_scan, in_patch = overlap(begin, probability.shape, labels.shape)
    probability, memory = probability[in_patch], memory[in_patch]
    predicted = _largest_component(probability >= settings.probability_threshold)
    mask = predicted & ~memory
    if not mask.any() or 2 * np.count_nonzero(mask) < np.count_nonzero(predicted):
        return None
    corner = np.array([side.start for side in in_scan])
    centre = ndimage.center_of_mass(predicted) + corner
    box = _box_around(mask)
    return FoundVertebra(
        begin=corner + [side.start for side in box],
        probability=_bounded(probability[box], mask[box], settings.probability_threshold),
        mask=mask[box],
        centre=centre,
        heat=float(heat_at(scene.heat, centre[None], scene.ct.affine)[0]),
    )


def _predict(scene: _Scene, labels: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shape = (scene.settings.patch_voxels,) * 3
    # Outside the scan: as in the training, the CT continues its edge and the memory is empty.
    ct = crop(scene.ct, begin, shape, fill="edge").data
    memory = crop(Volume(labels, scene.ct.affine), begin, shape, fill=0).data > 0
    probability = np.asarray(scene.predict(ct.astype(np.float32), memory.astype(np.float32)))
    if probability.shape != shape:
        raise ValueError(f"Expected a prediction of shape {shape}, received {probability.shape}.")
    if np.isnan(probability).any():
        raise ValueError("Expected probabilities, received NaN from the segmentation network.")
    return probability, memory


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest component of a mask, neighbours by face, edge or corner."""
    components, count = ndimage.label(mask, np.ones((3, 3, 3), bool))
    if count < 2:
        return mask
    sizes = np.bincount(components.ravel())
    return components == np.argmax(sizes[1:]) + 1


def _box_around(mask: np.ndarray) -> tuple[slice, ...]:
    """Give the box that holds a mask with a margin, as far as the array goes."""
    sides = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(
        slice(max(side.start - BOX_MARGIN, 0), min(side.stop + BOX_MARGIN, size))
        for side, size in zip(sides, mask.shape)
    )


def _bounded(probability: np.ndarray, mask: np.ndarray, threshold: float) -> np.ndarray:
    """Keep the probability under the threshold where the voxels are not this vertebra's.

    Specks and voxels of other vertebrae must not come back when the probability is brought to another
    grid. Just under the threshold, not zero: so two vertebrae that touch still meet without a gap.
    """
    below = np.nextafter(np.float16(threshold), np.float16(0))
    at_least = np.maximum(probability, threshold).astype(np.float16)
    return np.where(mask, at_least, np.minimum(probability, below).astype(np.float16))
