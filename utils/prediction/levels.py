"""Anatomical labels in practice: levels that the user knows, doubts, and labels changed later.

They are decided anew from what the networks said of each vertebra (`utils.prediction.column`), without any
network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import read_table
from utils.imaging.grids import SAME_GRID_VOXELS, transform_points, voxels_apart
from utils.imaging.nifti import read_mask
from utils.imaging.volume import Volume
from utils.localisation.evidence import uniform_votes
from utils.localisation.identify import Identification, identify, number_column
from utils.prediction import derivatives
from utils.prediction.case import ANATOMICAL, CasePrediction, Numbering, numbering_of, probability_columns
from utils.prediction.column import column_json, read_column
from utils.verse.labels import MAX_CODE, code_of_name, name_of_code


def parse_fixed(fix: Sequence[str], first_label: str | None = None) -> dict[int, int]:
    """Read the levels that the user knows.

    Parameters
    ----------
    fix : sequence of str
        Such as "3=T12": the third vertebra from the top.
    first_label : str, optional
        The level of the top-most one, the same as "1=...".

    Returns
    -------
    dict of int to int
        Codes by place, from 0.

    Raises
    ------
    ValueError
        If a text has another form, names no level, or a place is named twice.
    """
    fixed: dict[int, int] = {}
    for text in (*([] if first_label is None else [f"1={first_label}"]), *fix):
        place, equals, name = text.partition("=")
        if not equals or not place.strip().isdecimal() or int(place) < 1:
            raise ValueError(f"Expected place=level from 1 at the top, such as 3=T12, received {text!r}.")
        code = code_of_name(name)
        if fixed.setdefault(int(place) - 1, code) != code:
            raise ValueError(
                f"Expected one level for vertebra {int(place)}, received a second one, {text!r}."
            )
    return fixed


def identify_counted(count: int, *, fixed: Mapping[int, int]) -> Identification:
    """Give the levels of vertebrae that nothing is known of but some codes; errors as `number_column`."""
    return identify(*uniform_votes(count), fixed=fixed)


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
    mask = read_mask(path, assumed=settings.get("assume_orientation"))
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
        identification = number_column(votes, places=places, fixed=fixed)
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
    heights_mm = transform_points(middles.reshape(-1, 3), mask.affine, np.eye(4))[:, 2]
    return [int(label) for label in np.array(list(boxes), int)[np.argsort(-heights_mm)]]


def _relabelled_rows(path: Path, look_up: np.ndarray, numbering: Numbering) -> tuple[dict[str, Any], ...]:
    table = read_table(path, ("label",), "the table of a case")
    try:
        old = {int(row["label"]): row for row in table}
    except ValueError as error:
        raise ValueError(f"{path}: expected labels that are numbers, found {error}.") from None
    rows = {int(look_up[label]): row for label, row in old.items() if look_up[label]}
    return tuple(
        {
            **rows[code],
            **{"label": code, "name": name_of_code(code), "numbering": ANATOMICAL},
            **probability_columns(numbering, place),
        }
        for place, code in enumerate(numbering.codes)
        if code in rows
    )
