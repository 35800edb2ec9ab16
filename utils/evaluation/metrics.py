"""Scores of a segmented spine against its reference: pure functions on two label volumes.

The words used everywhere below:

- A reference vertebra's *match* is the predicted vertebra of the same label, or, where the prediction
  only counts vertebrae, the one that overlaps it most. A prediction matches one reference vertebra.
- *found*: the Dice with its match reaches a threshold (.5). *missed*: every other reference vertebra.
- *overlap Dice*: the Dice with the predicted vertebra that overlaps it most, whatever its label, one to one.
- Dice is 0 without a match, so a mean over reference vertebrae counts what was not found.
- *extra*: a predicted vertebra of which at most a tenth lies in any one reference vertebra, and which
  does not touch the border of the scan.
- *partial*: the same, but it touches the border: it has a voxel in the first or last plane of any axis.
  VerSe does not annotate most vertebrae that the field of view cuts, so finding one is no mistake. It
  counts nowhere, neither for nor against the prediction.
- *unmatched*: any other prediction without a reference: a second piece of a vertebra, say, or one with
  the wrong label. The reference vertebra under it is what counts.

A vertebra at the border that the reference does hold is scored as any other, and is left out of the means
over *complete* vertebrae. A label in several pieces is one vertebra. An empty mask has no vertebrae: all of
the reference's are missed, all of the prediction's extra (or partial), and two empty masks give no scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import surface_distance

from utils.imaging.volume import Volume, touches_border

NumberingKind = Literal["anatomical", "count"]
Match = tuple[int, int]

#: Share of its own volume in one reference vertebra up to which a prediction counts as extra.
EXTRA_OVERLAP = 0.1
#: Sekuboyina et al., Medical Image Analysis 73 (2021) 102166, section 3.2.
IDENTIFICATION_DISTANCE_MM = 20.0
FOUND_DICE = 0.5
_NO_LABEL = 0


@dataclass(frozen=True)
class VertebraScore:
    """The scores of one vertebra.

    Attributes
    ----------
    kind : str
        "reference" for a vertebra of the reference; "extra", "partial" or "unmatched" for a predicted one
        without a reference.
    label : int
        The reference's label, for a predicted one its own; 0 is never a label.
    predicted_label : int
        Label of the match (or of the predicted vertebra itself), 0 without one.
    dice : float
        In [0, 1]; 0 without a match, NaN where there is no reference.
    found : bool
        Whether the Dice reaches the threshold.
    mean_surface_distance_mm, hausdorff_95_mm, hausdorff_mm : float
        As those of `SurfaceDistances`; NaN unless the match overlaps the reference.
    volume_mm3, predicted_volume_mm3 : float
        Volumes of the reference vertebra and of its match, 0 without one.
    identified : bool or None
        As `identification` gives it; None where labels only count.
    localisation_error_mm : float
        Distance to the centre of the same label; NaN if there is none or labels only count.
    complete : bool
        Whether it lies clear of the border of the scan: the reference's, else the predicted one.
    dice_overlap : float
        As `dice`, with the match of `match_by_overlap`, whatever the labels say.
    found_overlap : bool
        Whether that Dice reaches the threshold.
    """

    kind: Literal["reference", "extra", "partial", "unmatched"]
    label: int
    predicted_label: int = _NO_LABEL
    dice: float = float("nan")
    found: bool = False
    mean_surface_distance_mm: float = float("nan")
    hausdorff_95_mm: float = float("nan")
    hausdorff_mm: float = float("nan")
    volume_mm3: float = 0.0
    predicted_volume_mm3: float = 0.0
    identified: bool | None = None
    localisation_error_mm: float = float("nan")
    complete: bool = True
    dice_overlap: float = float("nan")
    found_overlap: bool = False


def overlap_table(reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Count the voxels of every pair of labels.

    Parameters
    ----------
    reference, predicted : np.ndarray of unsigned int, same shape
        Label volumes.

    Returns
    -------
    np.ndarray of int, shape (largest reference label + 1, largest predicted label + 1)
        Entry (i, j) counts the voxels with reference label i and predicted label j, where 0 is
        the background; the voxels that are background in both are not counted.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"Expected masks of one shape, received {reference.shape} and {predicted.shape}.")
    rows, columns = int(reference.max(initial=0)) + 1, int(predicted.max(initial=0)) + 1
    # Under 5 % of a scan is vertebra; counting only there keeps a large one within memory.
    inside = (reference > 0) | (predicted > 0)
    pairs = reference[inside].astype(np.int64) * columns + predicted[inside]
    return np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)


def match_by_label(table: np.ndarray) -> list[Match]:
    """Pair the labels that reference and prediction share, whether they overlap or not."""
    shared = min(table.shape)
    in_both = (table.sum(axis=1)[:shared] > 0) & (table.sum(axis=0)[:shared] > 0)
    return [(int(label), int(label)) for label in np.flatnonzero(in_both) if label != _NO_LABEL]


def match_by_overlap(table: np.ndarray) -> list[Match]:
    """Pair reference and predicted labels one to one, the pair with most voxels in common first.

    Parameters
    ----------
    table : np.ndarray of int, shape (r + 1, p + 1)
        Voxels of every pair of labels, as `overlap_table` gives them.

    Returns
    -------
    list of (int, int)
        Pairs (reference label, predicted label) that overlap; between equal overlaps the smaller
        reference label, then the smaller predicted label goes first.
    """
    rows, columns = np.nonzero(table[1:, 1:])
    pairs = sorted(zip(rows + 1, columns + 1), key=lambda pair: (-table[pair], *pair))
    matches: dict[int, int] = {}
    for reference_label, predicted_label in pairs:
        if reference_label not in matches and predicted_label not in matches.values():
            matches[int(reference_label)] = int(predicted_label)
    return sorted(matches.items())


def dice_of_match(table: np.ndarray, match: Match) -> float:
    """Give the Dice coefficient 2|A∩B| / (|A| + |B|) of a pair of labels that are both present."""
    reference_label, predicted_label = match
    total = table[reference_label].sum() + table[:, predicted_label].sum()
    return float(2 * table[match] / total)


class SurfaceDistances(NamedTuple):
    """How far two surfaces lie apart, in mm; all are NaN if a body is empty.

    Attributes
    ----------
    mean_mm : float
        Mean of the two directed averages, every surface element weighted by its area.
    hausdorff_95_mm : float
        The larger of the two directed 95 % distances, by area.
    hausdorff_mm : float
        The largest distance of a point of either surface to the other one.
    """

    mean_mm: float = float("nan")
    hausdorff_95_mm: float = float("nan")
    hausdorff_mm: float = float("nan")


def surface_distances_mm(
    reference: np.ndarray, predicted: np.ndarray, *, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Measure how far two surfaces lie apart, with DeepMind's surface-distance library.

    Parameters
    ----------
    reference, predicted : np.ndarray of bool, shape (x, y, z)
        The two bodies.
    spacing_mm : sequence of float, length 3
        Edge lengths of a voxel.

    Returns
    -------
    SurfaceDistances
        Mean, 95 % and full Hausdorff distance.
    """
    if not (reference.any() and predicted.any()):
        return SurfaceDistances()
    distances = surface_distance.compute_surface_distances(reference, predicted, tuple(spacing_mm))
    averages = surface_distance.compute_average_surface_distance(distances)
    hausdorff = [surface_distance.compute_robust_hausdorff(distances, percent) for percent in (95, 100)]
    return SurfaceDistances(float(np.mean(averages)), *map(float, hausdorff))


def identification(
    label: int, centres_mm: dict[int, np.ndarray], predicted_centres_mm: dict[int, np.ndarray]
) -> tuple[bool, float]:
    """Judge the label of a vertebra as the VerSe challenges did.

    A vertebra is identified if the reference centre closest to the predicted centre of its label is its own,
    and less than 20 mm away. Source: Sekuboyina et al., Medical Image Analysis 73 (2021) 102166, section 3.2,
    and the challenge's page (verse2019.grand-challenge.org/Tasks); `get_hits` of the organisers' code
    (github.com/anjany/verse) compares with the references whose label was predicted too, and allows 20 mm
    itself. The centres here are those of the masks on both sides; VerSe's own lie in the vertebral bodies.

    Parameters
    ----------
    label : int
        A label of the reference.
    centres_mm, predicted_centres_mm : dict of int to np.ndarray of shape (3,)
        Centres of the reference's and of the predicted vertebrae by label, in mm.

    Returns
    -------
    identified : bool
        False too if the label was not predicted.
    distance_mm : float
        From the predicted centre of the label to the reference's, NaN if there is none.
    """
    if label not in predicted_centres_mm:
        return False, float("nan")
    predicted = predicted_centres_mm[label]
    distances = {other: float(np.linalg.norm(centre - predicted)) for other, centre in centres_mm.items()}
    own = distances[label]
    return own <= min(distances.values()) and own < IDENTIFICATION_DISTANCE_MM, own


def score_masks(
    reference: np.ndarray,
    predicted: np.ndarray,
    affine: np.ndarray,
    *,
    numbering: NumberingKind = "anatomical",
    found_dice: float = FOUND_DICE,
) -> list[VertebraScore]:
    """Score a prediction against its reference, vertebra by vertebra.

    Parameters
    ----------
    reference, predicted : np.ndarray of unsigned int, shape (x, y, z)
        Label volumes on one grid.
    affine : np.ndarray, shape (4, 4)
        From voxel indices to mm.
    numbering : str
        "anatomical" matches by label; "count" by overlap, and nothing is said of identification.
    found_dice : float
        Dice from which a vertebra counts as found.

    Returns
    -------
    list of VertebraScore
        The reference's vertebrae by label, then the predicted ones without a reference. A prediction
        that matches its reference by label but overlaps none stands in both parts.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    table = overlap_table(reference, predicted)
    overlapping = dict(match_by_overlap(table))
    matches = overlapping if numbering == "count" else dict(match_by_label(table))
    scene = _Scene(Volume(reference, affine), Volume(predicted, affine), table)
    places = _place_scores(scene) if numbering == "anatomical" else {}
    scores = []
    for label in scene.reference.label_boxes:
        known = _shape_scores(scene, (label, matches.get(label, _NO_LABEL)), found_dice)
        known |= _overlap_scores(table, (label, overlapping.get(label, _NO_LABEL)), found_dice)
        known |= places.get(label, {})
        complete = _is_complete(scene.reference, label)
        scores.append(VertebraScore("reference", label, **known, complete=complete))
    return scores + _scores_without_reference(scene, matches)


def score_without_prediction(reference: np.ndarray, affine: np.ndarray) -> list[VertebraScore]:
    """Score a case that has no prediction: every reference vertebra is missed and not identified."""
    return score_masks(reference, np.zeros_like(reference), affine)


@dataclass(frozen=True, eq=False)
class _Scene:
    reference: Volume
    predicted: Volume
    table: np.ndarray

    def volume_mm3(self, voxels: int) -> float:
        return float(voxels * abs(np.linalg.det(self.reference.affine[:3, :3])))


def _shape_scores(scene: _Scene, match: Match, found_dice: float) -> dict[str, float]:
    label, predicted_label = match
    volume = scene.volume_mm3(scene.table[label].sum())
    if predicted_label == _NO_LABEL:
        return {"dice": 0.0, "volume_mm3": volume}
    dice = dice_of_match(scene.table, match)
    surfaces = _surface_distances_of_match(scene, match) if dice else SurfaceDistances()
    return {
        "predicted_label": predicted_label,
        "dice": dice,
        "found": dice >= found_dice,
        "mean_surface_distance_mm": surfaces.mean_mm,
        "hausdorff_95_mm": surfaces.hausdorff_95_mm,
        "hausdorff_mm": surfaces.hausdorff_mm,
        "volume_mm3": volume,
        "predicted_volume_mm3": scene.volume_mm3(scene.table[:, predicted_label].sum()),
    }


def _overlap_scores(table: np.ndarray, match: Match, found_dice: float) -> dict[str, float]:
    dice = 0.0 if match[1] == _NO_LABEL else dice_of_match(table, match)
    return {"dice_overlap": dice, "found_overlap": dice >= found_dice}


def _surface_distances_of_match(scene: _Scene, match: Match) -> SurfaceDistances:
    """The joint box holds both bodies whole, so the distances in it are those in the volume."""
    boxes = scene.reference.label_boxes[match[0]], scene.predicted.label_boxes[match[1]]
    joint = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(*boxes))
    return surface_distances_mm(
        scene.reference.data[joint] == match[0],
        scene.predicted.data[joint] == match[1],
        spacing_mm=scene.reference.spacing_mm,
    )


def _place_scores(scene: _Scene) -> dict[int, dict[str, bool | float]]:
    names = ("identified", "localisation_error_mm")
    centres, predicted = _centres_mm(scene.reference), _centres_mm(scene.predicted)
    return {label: dict(zip(names, identification(label, centres, predicted))) for label in centres}


def _centres_mm(volume: Volume) -> dict[int, np.ndarray]:
    """Centre of mass of every label in world coordinates, shape (3,), in mm."""
    centres = {}
    for label, box in volume.label_boxes.items():
        voxels = np.argwhere(volume.data[box] == label).mean(axis=0) + [part.start for part in box]
        centres[label] = volume.affine[:3, :3] @ voxels + volume.affine[:3, 3]
    return centres


def _is_complete(volume: Volume, label: int) -> bool:
    return not touches_border(volume.label_boxes[label], volume.shape)


def _scores_without_reference(scene: _Scene, matches: dict[int, int]) -> list[VertebraScore]:
    scores = []
    for label in scene.predicted.label_boxes:
        voxels = scene.table[:, label].sum()
        overlaps = scene.table[1:, label].max(initial=0) > EXTRA_OVERLAP * voxels
        if overlaps and label in matches.values():
            continue
        complete = _is_complete(scene.predicted, label)
        kind = "unmatched" if overlaps else "extra" if complete else "partial"
        volume = scene.volume_mm3(voxels)
        scores.append(VertebraScore(kind, label, label, predicted_volume_mm3=volume, complete=complete))
    return scores
