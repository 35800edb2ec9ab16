"""The cases of a prediction folder as the page of a report shows them, read from what `infer.py` wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.files import read_json, read_table, sha256_of
from utils.localisation.chain import Votes
from utils.prediction import derivatives, quality
from utils.prediction.column import Reading, anchor_readings, read_column
from utils.prediction.derivatives import COLUMN_SUFFIX, MASK_SUFFIX, SNAPSHOT_SUFFIX, TABLE_SUFFIX
from utils.prediction.doubt import UNREADABLE, doubt_parts
from utils.prediction.measured import ANGLES_SUFFIX, MEASURES_SUFFIX
from utils.prediction.quality import CaseQuality, Remark, case_remarks, read_quality
from utils.prediction.thumbnails import thumbnail
from utils.verse.cases import visible_files
from utils.verse.labels import name_of_code

#: Files that make a case known; a picture alone does not.
_CASE_SUFFIXES = (TABLE_SUFFIX, quality.QUALITY_SUFFIX, derivatives.SETTINGS_SUFFIX, MASK_SUFFIX)
_NEEDED_COLUMNS = ("name", "numbering", "volume_mm3", "mean_hu")


@dataclass(frozen=True)
class ReportCase:
    """A case of the page.

    Attributes
    ----------
    key : str
        The case.
    table : tuple of mapping
        A row a vertebra from the top down, as text.
    quality : CaseQuality or None
        What is known beside the table; older predictions have none.
    column : tuple of Votes and list of int, or None
        What the labels were decided from, and the label of each vertebra; None where they are only counted.
    measures : mapping of str to mapping
        Rows of the measures by the name of the vertebra; empty if it was not measured.
    angles : mapping
        Angles of the spine in degrees.
    picture : str or None
        Path of the snapshot from the page's folder, with "/"; None if there is none.
    small : str or None
        Address of a small copy of it; None if there is none.
    predicted : float or None
        When the mask was written, in seconds since 1970; None if it is not there.
    mask_sha256 : str
        Hash of the mask; "" if it is not there.
    problems : tuple of str
        What is wrong with the files.
    """

    key: str
    table: tuple[Mapping[str, str], ...] = ()
    quality: CaseQuality | None = None
    column: tuple[Votes, list[int]] | None = None
    measures: Mapping[str, Mapping[str, str]] | None = None
    angles: Mapping[str, Any] | None = None
    picture: str | None = None
    small: str | None = None
    predicted: float | None = None
    mask_sha256: str = ""
    problems: tuple[str, ...] = ()

    @property
    def numbering(self) -> str | None:
        """What the labels mean, `case.COUNT` or `case.ANATOMICAL`; None if no file says so."""
        if self.table:
            return self.table[0]["numbering"]
        return None if self.quality is None else self.quality.kind

    @property
    def names(self) -> list[str]:
        """The labels from the top down, as `--fix` counts them: those of the mask."""
        if self.column is None:
            return [row["name"] for row in self.table]
        return [name_of_code(label) for label in self.column[1] if label]

    @property
    def readings(self) -> list[tuple[Reading, str]]:
        """The anchors that were read, each with the label of its vertebra; "" for one without an outline."""
        if self.column is None:
            return []
        votes, labels = self.column
        found = [(reading, labels[reading.place]) for reading in anchor_readings(votes)]
        return [(reading, name_of_code(label) if label else "") for reading, label in found]

    @cached_property
    def remarks(self) -> tuple[Remark, ...]:
        """What is odd; without a quality file, what the table shows."""
        if self.quality is not None:
            return self.quality.warnings
        return () if self.problems else case_remarks(self.table)

    def remarks_on(self, vertebra: str) -> str:
        """Give the remarks on one vertebra as one text."""
        found = [f"{remark.kind}: {remark.text}" for remark in self.remarks if remark.vertebra == vertebra]
        return "; ".join(found)

    @property
    def warnings(self) -> list[tuple[str, str | None, str]]:
        """Kind, vertebra and text of all that a user should look at."""
        odd = [(remark.kind, remark.vertebra, remark.text) for remark in self.remarks]
        return [*((UNREADABLE, None, problem) for problem in self.problems), *odd]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the warnings, each once."""
        return list(dict.fromkeys(kind for kind, _, _ in self.warnings))

    @property
    def doubt(self) -> dict[str, float]:
        """What the doubt about the case is the sum of."""
        return doubt_parts(self.quality, self.kinds)


def read_cases(output: Path) -> list[ReportCase]:
    """Read all cases of a prediction folder.

    Parameters
    ----------
    output : Path
        Folder of the predictions.

    Returns
    -------
    list of ReportCase
        By name, numbers in it as numbers. Files that are missing or cannot be read are problems of their
        case, not errors.
    """
    found = {
        (path.parent, path.name.removesuffix(suffix))
        for path in visible_files(output / "derivatives")
        for suffix in _CASE_SUFFIXES
        if path.name.endswith(suffix)
    }
    cases = [_read_case(folder, key, output) for folder, key in sorted(found)]
    return sorted(cases, key=lambda case: _natural(case.key))


def _natural(text: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", text)
    return [(int(part) if place % 2 else 0, part) for place, part in enumerate(parts)]


def _read_case(folder: Path, key: str, output: Path) -> ReportCase:
    mask, picture = folder / f"{key}{MASK_SUFFIX}", folder / f"{key}{SNAPSHOT_SUFFIX}"
    facts: dict[str, Any] = {}
    problems = [] if mask.is_file() else [f"{mask.name} is not there: the prediction was not finished."]
    for name, (read, suffix) in _READERS.items():
        try:
            facts[name] = read(folder / f"{key}{suffix}")
        except ValueError as error:
            problems.append(str(error).replace(f"{folder}{os.sep}", ""))
    return ReportCase(
        key,
        **facts,
        picture=picture.relative_to(output).as_posix() if picture.is_file() else None,
        predicted=mask.stat().st_mtime if mask.is_file() else None,
        mask_sha256=sha256_of(mask) if mask.is_file() else "",
        problems=tuple(problems),
    )


def _read_table(path: Path) -> tuple[dict[str, str], ...]:
    return tuple(read_table(path, _NEEDED_COLUMNS, "the table of a case"))


def _read_measures(path: Path) -> dict[str, dict[str, str]] | None:
    if not path.is_file():
        return None
    return {row["name"]: row for row in read_table(path, ("name",), "the measures of a case")}


def _read_angles(path: Path) -> dict[str, Any] | None:
    found = read_json(path, "the angles of a spine") if path.is_file() else None
    if not isinstance(found, dict | None):
        raise ValueError(f"{path}: expected the angles of a spine, found {found!r:.200}.")
    return found


def _read_picture(path: Path) -> str | None:
    return thumbnail(path) if path.is_file() else None


#: How the fields of a case are read, and from which file.
_READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "table": (_read_table, TABLE_SUFFIX),
    "quality": (read_quality, quality.QUALITY_SUFFIX),
    "column": (read_column, COLUMN_SUFFIX),
    "measures": (_read_measures, MEASURES_SUFFIX),
    "angles": (_read_angles, ANGLES_SUFFIX),
    "small": (_read_picture, SNAPSHOT_SUFFIX),
}
