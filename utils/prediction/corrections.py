"""Levels that a reader corrected on the page of a report: `corrections.json`, for `infer.py --relabel`.

    {"corrections": [{"case": "sub-a", "mask_sha256": "e3b0…", "fix": ["1=T11", "2=T12"]}]}

A correction holds for the mask that the page showed, which the hash tells. `fix` is read as `--fix` is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import read_json, sha256_of
from utils.prediction.derivatives import MASK_SUFFIX, case_path, read_case_settings
from utils.prediction.levels import parse_fixed
from utils.prediction.scans import Scan
from utils.settings import InferenceSettings


@dataclass(frozen=True)
class Correction:
    """The levels of one case that are known.

    Attributes
    ----------
    case : str
        The case, such as "sub-verse500_dir-ax".
    mask_sha256 : str
        Hash of the mask whose vertebrae were looked at.
    fix : tuple of str
        Levels by place, such as "3=T12".
    """

    case: str
    mask_sha256: str
    fix: tuple[str, ...]


@dataclass(frozen=True)
class CorrectedScans:
    """What a run does with its scans.

    Attributes
    ----------
    scans : list of (Scan, InferenceSettings)
        Those that are done, each with its own settings.
    bad : list of str
        Corrections that serve no scan, a line each.
    """

    scans: list[tuple[Scan, InferenceSettings]]
    bad: list[str]


def read_corrections(path: Path) -> dict[str, Correction]:
    """Read a file of corrections, by case.

    Raises
    ------
    ValueError
        If it cannot be read, holds something else, a level that there is none of, or a case twice; the text
        names it.
    """
    found = read_json(path, "corrections of levels")
    rows = found.get("corrections") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f'{path}: expected corrections of levels, a list named "corrections", found none.')
    corrections: dict[str, Correction] = {}
    for number, row in enumerate(rows, 1):
        correction = _correction_of(row, f"{path}: correction {number}")
        if correction.case in corrections:
            raise ValueError(f"{path}: expected each case once, found {correction.case} twice.")
        corrections[correction.case] = correction
    return corrections


def _correction_of(row: Any, place: str) -> Correction:
    fields = row if isinstance(row, Mapping) else {}
    case, mask, fix = (fields.get(field.name) for field in dataclasses.fields(Correction))
    is_list = isinstance(fix, list) and len(fix) > 0 and all(isinstance(text, str) for text in fix)
    if not (isinstance(case, str) and isinstance(mask, str) and is_list):
        raise ValueError(f"{place}: expected case, mask_sha256 and a list of levels fix, found {row!r:.200}.")
    try:
        parse_fixed(fix)
    except ValueError as error:
        raise ValueError(f"{place}, {case}: {error}") from None
    return Correction(case, mask, tuple(fix))


def corrected_scans(scans: Sequence[Scan], settings: InferenceSettings) -> CorrectedScans:
    """Choose the scans of a run, each with its settings: with corrections, those that are corrected.

    Parameters
    ----------
    scans : sequence of Scan
        The scans given, with the keys of their predictions.
    settings : InferenceSettings
        Of the run; without `corrections` every scan is done with them.

    Returns
    -------
    CorrectedScans
        A prediction that has these levels by now may be given them again, so a run can be repeated.

    Raises
    ------
    ValueError
        As `read_corrections`.
    """
    path = settings.corrections
    if path is None:
        return CorrectedScans([(scan, settings) for scan in scans], [])
    corrections = read_corrections(path)
    unknown = corrections.keys() - {scan.key for scan in scans}
    bad = [
        f"{path}: expected cases of the scans given, found {case}, which is none of them."
        for case in corrections
        if case in unknown
    ]
    chosen = []
    for scan in scans:
        correction = corrections.get(scan.key)
        changed = "" if correction is None else _changed(correction, settings.output)
        if changed:
            bad.append(f"{path}: {changed}")
        elif correction is not None:
            chosen.append((scan, dataclasses.replace(settings, fix=correction.fix)))
    return CorrectedScans(chosen, bad)


def _changed(correction: Correction, output: Path) -> str:
    """Say that a mask is neither the one that was corrected nor has these levels since, or ""."""
    mask = case_path(output, correction.case, MASK_SUFFIX)
    if not mask.is_file():
        return f"expected {mask}, which was corrected, found no such file."
    made_with = read_case_settings(output, correction.case) or {}
    if sha256_of(mask) == correction.mask_sha256 or made_with.get("fix") == list(correction.fix):
        return ""
    return f"expected {mask} as it was when it was corrected, found it changed since: write the report anew."
