"""Anatomical labels in practice: those of the vertebrae that the walk found, and labels changed later.

What the network says of each vertebra is written beside the prediction (`<key>_column.json`), so that labels
can be decided anew from it, without any network.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.imaging.grids import SAME_GRID_VOXELS, oriented_grid, transform_points, voxels_apart
from utils.imaging.nifti import read_mask
from utils.imaging.volume import Volume
from utils.localisation.anchors import Sacrum
from utils.localisation.column import Votes, number_column
from utils.localisation.identify import Identification, identify, uniform_votes
from utils.prediction import derivatives
from utils.prediction.derivatives import ANATOMICAL, CasePrediction, Numbering
from utils.verse.labels import MAX_CODE, name_of_code


def identify_found(votes: Votes, places: Sequence[int], *, fixed: Mapping[int, int]) -> Identification:
    """Give the levels of the vertebrae that the walk found, decided with those that it did not find.

    Parameters
    ----------
    votes : Votes
        What the network says of the whole column.
    places : sequence of int
        Places in the column of the vertebrae found, from the top down.
    fixed : mapping of int to int
        Codes that are known, by place among the vertebrae found, from 0.

    Returns
    -------
    Identification
        Of the vertebrae found. Where there are none, fixed codes are for other scans of the run.

    Raises
    ------
    ValueError
        If no sequence of levels has the fixed codes.
    """
    if not places:
        return identify_counted(0, fixed=fixed)
    _check_places(fixed, len(places))
    whole = number_column(votes, fixed={places[place]: code for place, code in fixed.items()})
    return whole.of_places(places)


def identify_counted(count: int, *, fixed: Mapping[int, int]) -> Identification:
    """Give the levels of vertebrae that nothing is known of but some codes; errors as `identify_found`."""
    if count:
        _check_places(fixed, count)
    return identify(*uniform_votes(count), fixed=fixed)


def _check_places(fixed: Mapping[int, int], count: int) -> None:
    for place, code in fixed.items():
        if place >= count:
            raise ValueError(f"Expected a place up to {count}, received {place + 1}={name_of_code(code)}.")


def numbering_of(identification: Identification) -> Numbering:
    """Give the labels of the vertebrae that have one, from the top down, with their probabilities."""
    has_label = [place for place, code in enumerate(identification.codes) if code]
    return Numbering(
        tuple(identification.codes[place] for place in has_label),
        ANATOMICAL,
        tuple(identification.probabilities[place] for place in has_label),
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


# What the network said, on disk --------------------------------------------------------------------


def column_json(votes: Votes, places: Sequence[int], codes: Sequence[int]) -> str:
    """Give the text of `<key>_column.json`.

    Parameters
    ----------
    votes : Votes
        What the network says of the whole column.
    places : sequence of int
        Places of the vertebrae found.
    codes : sequence of int
        Their labels in the mask, 0 for none.

    Returns
    -------
    str
        A JSON object; "label" is that of the mask, 0 for a vertebra without voxels.
    """
    labels = dict(zip(places, codes))
    rows = [
        {
            "label": int(labels.get(place, 0)),
            "centre_mm": [round(float(value), 2) for value in centre],
            "rib_probability": round(float(rib), 4),
            "level_log_probabilities": [round(float(value), 3) for value in levels],
        }
        for place, (centre, rib, levels) in enumerate(
            zip(votes.centres_mm, votes.rib_probability, votes.level_log_probabilities)
        )
    ]
    sacrum = None if votes.sacrum is None else dataclasses.asdict(votes.sacrum)
    content = {"temperature": votes.temperature, "sacrum": sacrum, "vertebrae": rows}
    return json.dumps(content, indent=1) + "\n"


def read_column(path: Path) -> tuple[Votes, list[int]] | None:
    """Read what `column_json` gave: the votes, and the label of each vertebra in the mask.

    Returns
    -------
    tuple of Votes and list of int, or None
        None where there is no such file: nothing but a count was known.

    Raises
    ------
    ValueError
        If the file holds something else; the text names it.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        rows = found["vertebrae"]
        votes = Votes(
            np.array([row["level_log_probabilities"] for row in rows], float),
            np.array([row["rib_probability"] for row in rows], float),
            np.array([row["centre_mm"] for row in rows], float).reshape(-1, 3),
            None if found["sacrum"] is None else Sacrum(**found["sacrum"]),
            float(found["temperature"]),
        )
        return votes, [int(row["label"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected what is known of a column, found {error!r}.") from None


# Labels changed later ------------------------------------------------------------------------------


def relabel_case(
    ct: Volume, output: Path, key: str, *, fixed: Mapping[int, int], settings: Mapping[str, Any]
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
    known = read_column(derivatives.case_path(output, key, derivatives.COLUMN_SUFFIX))
    if known is None:
        numbers = numbers_from_the_top(mask)
        identification, column = identify_counted(len(numbers), fixed=fixed), ""
    else:
        votes, labels = known
        places = [place for place, label in enumerate(labels) if label]
        numbers = [labels[place] for place in places]
        identification = identify_found(votes, places, fixed=fixed)
        column = column_json(votes, places, identification.codes)
    look_up = np.zeros(max(MAX_CODE, *numbers, 0) + 1, np.uint8)
    look_up[numbers] = identification.codes
    labels = Volume(look_up[mask.data], mask.affine)
    numbering = numbering_of(identification)
    rows = _relabelled_rows(derivatives.case_path(output, key, derivatives.TABLE_SUFFIX), look_up, numbering)
    return CasePrediction(
        *(key, ct, labels, numbering, rows, dict(settings)), identification=identification, column=column
    )


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
