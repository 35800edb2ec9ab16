"""From the walk to what is known of a case: labels on the native grid, their names, a row a vertebra.

Every vertebra goes back to the native grid by its probability, linear in its own bounding box; a voxel
takes the vertebra of the largest probability, from the threshold on. Labels are never resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.imaging.centroids import Centroids, centroids_of_mask
from utils.imaging.crops import box_between
from utils.imaging.grids import cropped_grid, reach_in, transform_points
from utils.imaging.nifti_forms import HeaderForms
from utils.imaging.resampling import resample_linear
from utils.imaging.volume import Grid, Volume, touches_border
from utils.localisation.identify import Identification
from utils.prediction.quality import CaseQuality
from utils.verse.labels import MAX_RANK, T13_CODE, code_of_name, code_of_rank, name_of_code, rank_of_code
from utils.walk.records import FoundVertebra, WalkStep

#: Columns of a case's table, which other programs read.
TABLE_COLUMNS = (
    *("case", "label", "name", "numbering", "volume_mm3", "mean_hu"),
    *("centre_x", "centre_y", "centre_z", "steps", "converged", "mean_probability"),
    *("label_probability", "partial"),
)
COUNT = "count"
ANATOMICAL = "anatomical"


@dataclass(frozen=True)
class Numbering:
    """The labels of a scan's vertebrae from the top down.

    Attributes
    ----------
    codes : tuple of int
        Labels in the mask; fewer than there are vertebrae if the levels end before them.
    kind : str
        `COUNT` (1 for the top-most vertebra found) or `ANATOMICAL` (VerSe codes).
    label_probabilities : tuple of float
        Of each label; empty where no network decided.
    """

    codes: tuple[int, ...]
    kind: str
    label_probabilities: tuple[float, ...] = ()

    def name(self, code: int) -> str:
        """Give the name of a label: its level, or its number where vertebrae are only counted."""
        return name_of_code(code) if self.kind == ANATOMICAL else str(code)


@dataclass(frozen=True, eq=False)
class NativeVertebrae:
    """Labels on the native grid, and the probability that each voxel's label won with.

    Attributes
    ----------
    labels : Volume of uint8
        Codes, 0 outside.
    probability : np.ndarray of float16
        The largest probability of any vertebra; 0 far from all.
    """

    labels: Volume
    probability: np.ndarray


@dataclass(frozen=True, eq=False)
class CasePrediction:
    """All that is written for one case.

    Attributes
    ----------
    key : str
        The case, such as "sub-verse500_dir-ax".
    ct, labels : Volume
        The scan and its labels, on the native grid.
    numbering : Numbering
        What the labels mean.
    table : tuple of dict
        A row a vertebra, `TABLE_COLUMNS`.
    settings : dict
        What the prediction was made with.
    quality : CaseQuality, optional
        What is known about it beside its table.
    trace : tuple of WalkStep
        The steps of the walk, if they are to be written.
    identification : Identification, optional
        How the levels were decided, with the second sequence; None where vertebrae are only counted.
    column : str
        Text of the file that says what they were decided from; "" for none.
    forms : HeaderForms, optional
        Those of the mask's header (`utils.imaging.formats.mask_forms`).
    """

    key: str
    ct: Volume
    labels: Volume
    numbering: Numbering
    table: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    quality: CaseQuality | None = None
    trace: tuple[WalkStep, ...] = ()
    identification: Identification | None = None
    column: str = ""
    forms: HeaderForms | None = None


def number_vertebrae(count: int, first_label: str | None = None) -> Numbering:
    """Number vertebrae from the top down.

    Parameters
    ----------
    count : int
        How many there are.
    first_label : str, optional
        Level of the top-most one, such as "L1". Without it they are counted from 1.

    Returns
    -------
    Numbering
        Below T12 follows L1: T13 is rare and cannot be told by counting, so it is only given where
        `first_label` names it. The levels end with L6; vertebrae below it get no label.

    Raises
    ------
    ValueError
        If there is no such level.
    """
    first = 1 if first_label is None else code_of_name(first_label)
    levels = [code_of_rank(rank) for rank in range(rank_of_code(first), MAX_RANK + 1)]
    codes = [code for code in levels if code != T13_CODE or code == first]
    return Numbering(tuple(codes[:count]), COUNT if first_label is None else ANATOMICAL)


def numbering_of(identification: Identification) -> Numbering:
    """Give the labels of the vertebrae that have one, from the top down, with their probabilities."""
    has_label = [place for place, code in enumerate(identification.codes) if code]
    return Numbering(
        tuple(identification.codes[place] for place in has_label),
        ANATOMICAL,
        tuple(identification.probabilities[place] for place in has_label),
    )


def native_vertebrae(
    vertebrae: Sequence[FoundVertebra],
    affine: np.ndarray,
    grid: Grid,
    *,
    codes: Sequence[int],
    threshold: float = 0.5,
) -> NativeVertebrae:
    """Bring vertebrae to the native grid of their scan.

    Parameters
    ----------
    vertebrae : sequence of FoundVertebra
        From the walk; those beyond the last code are left out.
    affine : np.ndarray (4, 4)
        Affine of the working grid, to mm.
    grid : Grid
        Native grid.
    codes : sequence of int
        Label of each vertebra.
    threshold : float
        Probability from which a voxel belongs to a vertebra.

    Returns
    -------
    NativeVertebrae
        Linear between the voxels of the working grid; the larger probability wins where two meet.
    """
    labels = np.zeros(grid.shape, np.uint8)
    # Half precision: one such volume of a whole-body scan at full precision is a gigabyte.
    largest = np.zeros(grid.shape, np.float16)
    for code, vertebra in zip(codes, vertebrae):
        patch_affine = affine.copy()
        patch_affine[:3, 3] += affine[:3, :3] @ vertebra.begin
        patch = Volume(vertebra.probability, patch_affine)
        begin, end = reach_in(grid, patch.grid)
        part, box = cropped_grid(grid, begin, end), box_between(begin, end)
        if 0 in part.shape:
            continue
        probability = resample_linear(patch, part).data
        wins = probability > largest[box]
        largest[box][wins] = probability[wins]
        labels[box][wins & (probability >= threshold)] = code
    return NativeVertebrae(Volume(labels, grid.affine), largest)


def vertebra_table(
    key: str,
    ct: Volume,
    native: NativeVertebrae,
    vertebrae: Sequence[FoundVertebra],
    *,
    numbering: Numbering,
) -> list[dict[str, Any]]:
    """Describe every vertebra of a case that has a voxel on the native grid.

    Parameters
    ----------
    key : str
        The case.
    ct : Volume
        The scan on its native grid, in Hounsfield units.
    native : NativeVertebrae
        Its labels.
    vertebrae : sequence of FoundVertebra
        From the top down, in the order of the codes.
    numbering : Numbering
        Their labels.

    Returns
    -------
    list of dict
        `TABLE_COLUMNS`. Volume in cubic mm, centre of mass in world mm (RAS+), mean probability over
        the vertebra's voxels, probability of the label where a network gave it, and 1 for a vertebra that
        reaches the border of the scan.
    """
    boxes = native.labels.label_boxes
    voxel_mm3 = abs(np.linalg.det(ct.affine[:3, :3]))
    rows = []
    for place, (code, vertebra) in enumerate(zip(numbering.codes, vertebrae)):
        box = boxes.get(code)
        if box is None:
            continue
        inside = native.labels.data[box] == code
        index = np.mean(np.nonzero(inside), axis=1) + [side.start for side in box]
        rows.append(
            {
                **dict(zip(TABLE_COLUMNS, (key, code, numbering.name(code), numbering.kind))),
                "volume_mm3": round(float(inside.sum() * voxel_mm3), 1),
                "mean_hu": round(float(ct.data[box][inside].mean(dtype=np.float64)), 1),
                **_centre_columns(transform_points(index, ct.affine, np.eye(4))[0]),
                **{"steps": vertebra.steps, "converged": int(vertebra.converged)},
                "mean_probability": round(float(native.probability[box][inside].mean(dtype=np.float64)), 4),
                **probability_columns(numbering, place),
                # The walk knows where a working grid ends, which may be turned against the scan.
                "partial": int(vertebra.partial or touches_border(box, native.labels.shape)),
            }
        )
    return rows


def probability_columns(numbering: Numbering, place: int) -> dict[str, float | str]:
    """Give the column of a row that says how sure its label is; "" if that is not known."""
    known = numbering.label_probabilities
    return {"label_probability": round(known[place], 4) if known else ""}


def vertebra_points(labels: Volume, numbering: Numbering) -> Centroids:
    """Give the point of every vertebra that the centroid file holds: the centre of its body, as VerSe's."""
    return centroids_of_mask(labels, anatomical=numbering.kind == ANATOMICAL)


def _centre_columns(centre_mm: np.ndarray) -> dict[str, float]:
    return {f"centre_{axis}": round(float(value), 2) for axis, value in zip("xyz", centre_mm)}
