"""Prediction folders for the report's tests: small files, no networks."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np

from utils.localisation.chain import Votes
from utils.prediction.case import TABLE_COLUMNS
from utils.prediction.column import column_json
from utils.prediction.derivatives import COLUMN_SUFFIX, MASK_SUFFIX, SNAPSHOT_SUFFIX, TABLE_SUFFIX, case_path
from utils.prediction.measured import ANGLES_SUFFIX, MEASURES_SUFFIX
from utils.prediction.quality import QUALITY_SUFFIX, CaseQuality, case_remarks, write_quality
from utils.verse.labels import code_of_name

#: 2026-01-02 03:04:05 UTC.
WRITTEN = 1767323045


def rows_of(names: Sequence[str], kind: str = "count", **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """A healthy column: 10 cm³ each, 20 mm apart; columns given here replace those values."""
    return [
        {
            **{"case": "sub-a", "label": number + 1, "name": name, "numbering": kind},
            **{"volume_mm3": 10_000.0, "mean_hu": 200.0},
            **{"centre_x": 1.0, "centre_y": 2.0, "centre_z": -20.0 * number},
            **{"steps": 3, "converged": 1, "mean_probability": 0.9},
            **{column: values[number] for column, values in columns.items()},
        }
        for number, name in enumerate(names)
    ]


def put_case(
    output: Path,
    key: str,
    rows: Sequence[dict[str, Any]],
    *,
    quality: bool = True,
    picture: bool = True,
    written: float = WRITTEN,
    **known: Any,
) -> Path:
    """Write the files of a case that the report reads; gives their folder. `known` goes into the quality."""
    table = case_path(output, key, TABLE_SUFFIX)
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0] if rows else TABLE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    if quality:
        known = {"warnings": case_remarks(rows, known.pop("extra", ())), **known}
        kind = rows[0]["numbering"] if rows else "count"
        write_quality(case_path(output, key, QUALITY_SUFFIX), CaseQuality(key, kind, **known))
    if picture:
        grey = np.linspace(0, 1, 600 * 400).reshape(600, 400)
        matplotlib.image.imsave(case_path(output, key, SNAPSHOT_SUFFIX), grey, format="png")
    mask = case_path(output, key, MASK_SUFFIX)
    mask.touch()
    os.utime(mask, (written, written))
    return table.parent


def put_measures(
    output: Path, key: str, rows: Sequence[dict[str, Any]], angles: dict[str, Any] | None = None
) -> None:
    """Write the measures of a case beside its other files."""
    with case_path(output, key, MEASURES_SUFFIX).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    case_path(output, key, ANGLES_SUFFIX).write_text(json.dumps(angles or {}))


def put_column(output: Path, key: str, votes: Votes, names: Sequence[str | None]) -> None:
    """Write what the levels of a case were decided from; None for a vertebra without an outline."""
    codes = [0 if name is None else code_of_name(name) for name in names]
    case_path(output, key, COLUMN_SUFFIX).write_text(column_json(votes, range(len(codes)), codes))
