"""Anatomical labels in practice: the trained labelling network, a scan's vertebrae, and labels changed later.

The network votes once for every vertebra (`utils.learning.labelling`), `identify` decides, and the labels go
into a `Numbering`. TensorFlow is imported only when a network is loaded.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.imaging.grids import SAME_GRID_VOXELS, oriented_grid, transform_points, voxels_apart
from utils.imaging.nifti import read_mask
from utils.imaging.volume import Grid, Volume
from utils.localisation.identify import Identification, identify, uniform_votes
from utils.prediction import derivatives
from utils.prediction.derivatives import ANATOMICAL, CasePrediction, Numbering
from utils.verse.labels import MAX_CODE, name_of_code
from utils.walk.records import FoundVertebra

if TYPE_CHECKING:
    from utils.learning.labelling import PredictLevel


@dataclass(frozen=True, eq=False)
class Levels:
    """The trained labelling network as a function, and what belongs to it.

    Attributes
    ----------
    predict : callable
        From a patch to its logits.
    patch_voxels : tuple of int, 3
        Shape of the patch.
    temperature : float
        What its votes are divided by.
    """

    predict: PredictLevel
    patch_voxels: tuple[int, int, int]
    temperature: float


def load_levels(directory: Path) -> Levels:
    """Load a labelling network.

    Parameters
    ----------
    directory : Path
        A model directory, as `train_labelling.py` leaves it.

    Returns
    -------
    Levels

    Raises
    ------
    ValueError
        If there is none, it is of another kind, or its temperature was not fitted; the text names the
        directory.
    """
    from utils.learning.labelling import CLASSES, level_function
    from utils.learning.models import load_model

    network, trained = load_model(directory)
    shape = network.input_shape
    if len(shape) != 5 or shape[4] != 3 or network.output_shape[1:] != (CLASSES + 1,):
        raise ValueError(f"{directory}: expected a labelling network, found input shape {shape}.")
    temperature = trained.get("temperature")
    if not isinstance(temperature, (int, float)) or not temperature > 0:
        raise ValueError(
            f"{directory / 'settings.json'}: expected the temperature of the training, found "
            f"{temperature!r}; start train_labelling.py again, it goes on where it stopped."
        )
    return Levels(level_function(network), tuple(shape[1:4]), float(temperature))


def identify_vertebrae(
    ct: Volume,
    labels: Volume,
    numbers: Sequence[int],
    *,
    levels: Levels | None,
    fixed: Mapping[int, int],
) -> Identification:
    """Give the levels of the vertebrae of a scan.

    Parameters
    ----------
    ct : Volume
        CT in HU.
    labels : Volume of uint8
        Numbers of the vertebrae, on any grid with axes parallel to the CT's.
    numbers : sequence of int
        The vertebrae, from the top down.
    levels : Levels or None
        The network; without one the fixed codes alone decide.
    fixed : mapping of int to int
        Codes that are known, by place from 0.

    Returns
    -------
    Identification

    Raises
    ------
    ValueError
        If no sequence of levels has the fixed codes.
    """
    if levels is None:
        return identify(*uniform_votes(len(numbers)), fixed=fixed)
    from utils.learning.labelling import vertebra_votes

    votes = vertebra_votes(ct, labels, numbers, predict=levels.predict, shape=levels.patch_voxels)
    parts = (votes.log_probabilities, votes.complete, votes.centres_mm)
    return identify(*parts, temperature=levels.temperature, fixed=fixed)


def labels_of_walk(vertebrae: Sequence[FoundVertebra], grid: Grid) -> Volume:
    """Give the label volume of vertebrae on their working grid: 1 for the first one, and so on."""
    labels = np.zeros(grid.shape, np.uint8)
    for number, vertebra in enumerate(vertebrae, start=1):
        labels[vertebra.box][vertebra.mask] = number
    return Volume(labels, grid.affine)


def numbering_of(identification: Identification) -> Numbering:
    """Give the labels of the vertebrae that have one, from the top down, with their probabilities."""
    has_label = [place for place, code in enumerate(identification.codes) if code]
    return Numbering(
        tuple(identification.codes[place] for place in has_label),
        ANATOMICAL,
        tuple(identification.probabilities[place] for place in has_label),
        tuple(identification.complete[place] for place in has_label),
    )


def doubt_about(identification: Identification) -> str:
    """Say what a user should know about the labels, or ""."""
    doubts = []
    left_out = identification.codes.count(0)
    if left_out:
        doubts.append(f"{left_out} of {len(identification.codes)} found get no label, as no vertebrae")
    if identification.second_codes and identification.sequence_probability < 0.8:
        first, second = " ".join(identification.names), " ".join(identification.second_names)
        doubts.append(
            f"labels uncertain: {first} with probability {identification.sequence_probability:.2f}, "
            f"{second} with {identification.second_probability:.2f}"
        )
    return "; ".join(doubts)


# Labels changed later ------------------------------------------------------------------------------


def relabel_case(
    ct: Volume,
    output: Path,
    key: str,
    *,
    levels: Levels | None,
    fixed: Mapping[int, int],
    settings: Mapping[str, Any],
) -> CasePrediction:
    """Give a finished case with its labels decided anew; its masks stay as they are.

    Parameters
    ----------
    ct : Volume
        The scan, on its native grid.
    output : Path
        Folder of the predictions, which holds the case.
    key : str
        The case.
    levels : Levels or None
        The network; without one the fixed codes alone decide.
    fixed : mapping of int to int
        Codes that are known, by place from 0, counted among the vertebrae in the mask.
    settings : mapping
        What the case is now made with.

    Returns
    -------
    CasePrediction
        To be written. What was taken for no vertebra keeps its voxels only where it was labelled before.

    Raises
    ------
    ValueError
        If the case is not there, cannot be read, does not belong to the scan, or the fixed codes contradict
        each other.
    """
    path = derivatives.case_path(output, key, derivatives.MASK_SUFFIX)
    mask = read_mask(path)
    if mask.shape != ct.shape or voxels_apart(ct.grid, mask.affine) > SAME_GRID_VOXELS:
        raise ValueError(f"{path}: expected the grid of the scan, {ct.shape}, found {mask.shape}, or moved.")
    numbers = numbers_from_the_top(mask)
    identification = identify_vertebrae(ct, mask, numbers, levels=levels, fixed=fixed)
    look_up = np.zeros(max(MAX_CODE, *numbers, 0) + 1, np.uint8)
    look_up[numbers] = identification.codes
    labels = Volume(look_up[mask.data], mask.affine)
    numbering = numbering_of(identification)
    table = derivatives.case_path(output, key, derivatives.TABLE_SUFFIX)
    rows = _relabelled_rows(table, look_up, numbering)
    return CasePrediction(key, ct, labels, numbering, rows, dict(settings), identification=identification)


def numbers_from_the_top(mask: Volume) -> list[int]:
    """Give the labels of a mask from the top down, by the heights of their boxes' middles."""
    boxes = mask.label_boxes
    middles = np.array([[(side.start + side.stop - 1) / 2 for side in box] for box in boxes.values()])
    heights = transform_points(middles.reshape(-1, 3), mask.affine, oriented_grid(mask.grid).affine)[:, 2]
    return [int(label) for label in np.array(list(boxes), int)[np.argsort(heights)]]


def _relabelled_rows(path: Path, look_up: np.ndarray, numbering: Numbering) -> tuple[dict[str, Any], ...]:
    old = {int(row["label"]): row for row in csv.DictReader(path.read_text().splitlines())}
    rows = {int(look_up[label]): row for label, row in old.items() if look_up[label]}
    return tuple(
        {
            **rows[code],
            **{"label": code, "name": name_of_code(code), "numbering": ANATOMICAL},
            **derivatives.probability_columns(numbering, place),
        }
        for place, code in enumerate(numbering.codes)
        if code in rows
    )
