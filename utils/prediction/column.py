"""What the levels of a column were decided from, on disk, and what of it a count can hold on to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import read_json
from utils.localisation.chain import Votes
from utils.localisation.evidence import RIBS, SACRUM_BELOW, SKULL_BASE, Rates, Sacrum, skull_place
from utils.verse.labels import CODES, MAX_RANK

#: Probability from which a vertebra is taken to carry a rib.
_HAS_RIB = 0.5


def column_json(votes: Votes, places: Sequence[int], codes: Sequence[int]) -> str:
    """Give the text of `<key>_column.json`.

    Parameters
    ----------
    votes : Votes
        What the networks say of the whole column.
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
    found = read_json(path, "what is known of a column")
    try:
        return _column_of(found)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected what is known of a column, found {error!r:.200}.") from None


def _column_of(content: dict[str, Any]) -> tuple[Votes, list[int]]:
    rows, sacrum = content["vertebrae"], content["sacrum"]
    votes = Votes(
        np.array([row["level_log_probabilities"] for row in rows], float).reshape(len(rows), MAX_RANK + 1),
        np.array([row["rib_probability"] for row in rows], float).reshape(len(rows)),
        np.array([row["centre_mm"] for row in rows], float).reshape(len(rows), 3),
        None if sacrum is None else Sacrum(int(sacrum["above"]), float(sacrum["probability"])),
        float(content["temperature"]),
    )
    labels = [int(row["label"]) for row in rows]
    if unknown := set(labels) - {0, *CODES}:
        raise ValueError(f"labels {sorted(unknown)}")
    if votes.sacrum is not None and not 0 <= votes.sacrum.above < len(rows):
        raise ValueError(f"a sacrum below place {votes.sacrum.above} of {len(rows)}")
    return votes, labels


# Anchors ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """An anchor as it was read of a column, whether the count holds on to it or not.

    Attributes
    ----------
    anchor : str
        One of `utils.localisation.evidence.ANCHORS`.
    text : str
        What was read, such as "last rib".
    place : int
        The vertebra that it is read at, from 0 at the top.
    probability : float
        That it is right.
    """

    anchor: str
    text: str
    place: int
    probability: float


def anchor_readings(votes: Votes) -> list[Reading]:
    """Give what was read of a column that a count can hold on to, from the top down.

    Parameters
    ----------
    votes : Votes
        What the networks say of the column.

    Returns
    -------
    list of Reading
        The vertebra that is all but certainly C1 or C2; the last one with a rib above one without, with the
        probability of both; the one above the sacrum. Each where it is in view.
    """
    readings = []
    levels, ribs = votes.level_log_probabilities, votes.rib_probability
    place = skull_place(levels, Rates().certain) if len(levels) else None
    if place is not None:
        readings.append(Reading(SKULL_BASE, "C1 or C2", place, float(np.exp(levels[place, 1:3].max()))))
    ends = np.flatnonzero((ribs[:-1] >= _HAS_RIB) & (ribs[1:] < _HAS_RIB))
    if len(ends):
        last = int(ends[-1])
        readings.append(Reading(RIBS, "last rib", last, float(ribs[last] * (1 - ribs[last + 1]))))
    if votes.sacrum is not None:
        readings.append(
            Reading(SACRUM_BELOW, "sacrum below", votes.sacrum.above, float(votes.sacrum.probability))
        )
    return readings


def readings_by_label(votes: Votes, labels: Sequence[int]) -> dict[int, list[Reading]]:
    """Give the readings of the anchors by the label, in the mask, of the vertebra that they are read at."""
    found: dict[int, list[Reading]] = {}
    for reading in anchor_readings(votes):
        if labels[reading.place]:
            found.setdefault(labels[reading.place], []).append(reading)
    return found
