"""Scoring of a folder of predictions against the reference masks of a VerSe tree."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from utils.evaluation.intervals import Resampling
from utils.evaluation.metrics import NumberingKind, score_masks, score_without_prediction
from utils.evaluation.paired import write_comparison
from utils.evaluation.report import CaseResult, Status, case_line, overall_table, write_evaluation
from utils.execution import outcomes
from utils.files import printable
from utils.imaging.file_checks import first_line
from utils.imaging.grids import corners_of
from utils.imaging.nifti import read_mask
from utils.imaging.volume import Volume
from utils.settings import EvaluationSettings, save_settings
from utils.verse.cases import Case, index_cases, parse_case_file

#: Largest distance between the corners of two grids that count as one: formats round an affine.
GRID_TOLERANCE_MM = 0.05


def evaluate(settings: EvaluationSettings) -> int:
    """Score every case of a split, with another folder of predictions too if asked to, and write the report.

    Parameters
    ----------
    settings : EvaluationSettings
        Where references and predictions lie, and where the report goes.

    Returns
    -------
    int
        Exit status: 1 if a case had no prediction or one could not be read
        or scored (unless `skip_bad`), or if there is nothing to score, else 0. Every bad case is one line on
        the standard error.
    """
    try:
        results, *others = [score_cases(part) for part in _folders_to_score(settings)]
        tables = _write(settings, results, *others)
    except (ValueError, OSError) as error:
        print(printable(str(error)), file=sys.stderr)
        return 1
    # A reference that cannot be read has the same message in both folders.
    bad = dict.fromkeys(result.message for part in (results, *others) for result in part if result.message)
    for message in bad:
        print(printable(message), file=sys.stderr)
    print("\n\n".join(tables))
    return 1 if bad and not settings.skip_bad else 0


def score_cases(settings: EvaluationSettings) -> list[CaseResult]:
    """Score every case of the split, with a line in the log for each.

    Raises
    ------
    ValueError
        If there are no references or no predictions at all.
    """
    pairs = pair_with_predictions(reference_cases(settings), settings.predictions)
    options = {"found_dice": settings.found_dice, "most_bytes": settings.max_gigabytes * 2**30}
    score = partial(score_case, predictions=settings.predictions, **options)
    results: dict[tuple[Case, Path | None], CaseResult] = {}
    waiting = deque(pairs)
    ended = outcomes(score, pairs, workers=settings.workers)
    for pair, outcome in tqdm(ended, total=len(pairs), desc="evaluate", unit="case"):
        results[pair] = _killed_result(pair[0], outcome) if isinstance(outcome, str) else outcome
        while waiting and waiting[0] in results:  # In the order of the cases, whichever ends first.
            tqdm.write(printable(case_line(results[waiting.popleft()])))
    return [results[pair] for pair in pairs]


def reference_cases(settings: EvaluationSettings) -> list[Case]:
    """Give the cases of the split that have a reference mask; those that have none are a warning.

    Raises
    ------
    ValueError
        If there is no folder, no case, or no reference mask.
    """
    split = None if settings.split == "all" else settings.split
    cases = index_cases(settings.data_dir, split=split)
    for case in cases:
        if case.mask is None:
            line = f"Warning: {case.key} has no reference mask and is left out."
            print(printable(line), file=sys.stderr)
    with_mask = [case for case in cases if case.mask is not None]
    if not with_mask:
        raise ValueError(
            f"{settings.data_dir}: expected reference masks (*_seg-vert_msk.nii.gz) in the split "
            f"{settings.split!r}, found {len(cases)} incomplete cases."
        )
    return with_mask


def pair_with_predictions(cases: Sequence[Case], predictions: Path) -> list[tuple[Case, Path | None]]:
    """Find the predicted mask of every case by its key in letters of any case, None where there is none.

    Where predictions lie in folders of splits too, that of the case's own split is taken.

    Raises
    ------
    ValueError
        If the folder of predictions is not there or holds none, or two that differ in the letters alone.
    """
    masks = {(found.key.casefold(), found.split): found.mask for found in index_cases(predictions)}

    def mask_of(case: Case) -> Path | None:
        key = case.key.casefold()
        return masks.get((key, case.split)) or masks.get((key, ""))

    return [(case, mask_of(case)) for case in cases]


def score_case(
    pair: tuple[Case, Path | None],
    *,
    predictions: Path,
    found_dice: float = 0.5,
    most_bytes: float = np.inf,
) -> CaseResult:
    """Read and score one case.

    Parameters
    ----------
    pair : tuple of Case and (Path or None)
        The reference, and the predicted mask.
    predictions : Path
        Folder that was searched for the predicted mask, named if there is none.
    found_dice : float
        Dice from which a vertebra counts as found.
    most_bytes : float
        Memory that a mask may take (`check_memory`).

    Returns
    -------
    CaseResult
        Bad input is a result too, with its message, so that the other cases are scored.
    """
    case, predicted_path = pair
    try:
        reference = read_mask(case.mask, most_bytes=most_bytes)
    except ValueError as error:
        return CaseResult(case.key, case.split, "bad reference", message=str(error))
    if predicted_path is None:
        message = f"{case.key}: expected a prediction in {predictions}, found none."
        return _all_missed(case, reference, "no prediction", message)
    try:
        key = parse_case_file(predicted_path, ()).key  # it may be spelled otherwise
        numbering = read_numbering(predicted_path.with_name(f"{key}_vertebrae.csv"))
        predicted = read_mask(predicted_path, most_bytes=most_bytes)
        check_same_grid(reference, predicted, name=predicted_path)
    except ValueError as error:
        return _all_missed(case, reference, "bad prediction", str(error))
    options = {"numbering": numbering, "found_dice": found_dice}
    scores = score_masks(reference.data, predicted.data, reference.affine, **options)
    return CaseResult(case.key, case.split, "scored", numbering, tuple(scores))


def read_numbering(path: Path) -> NumberingKind:
    """Read from a prediction's table whether its labels are levels or only count.

    Parameters
    ----------
    path : Path
        `<key>_vertebrae.csv`. Without the file, its column `numbering`, or a row, labels are levels.

    Returns
    -------
    str
        "anatomical" or "count".

    Raises
    ------
    ValueError
        If the file is no table or its column says anything else.
    """
    if not path.is_file():
        return "anatomical"
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a table of vertebrae, found {first_line(error)}") from None
    kinds = sorted(set(table["numbering"].map(str))) if "numbering" in table else []
    if kinds not in ([], ["anatomical"], ["count"]):
        found = [kind[:40] for kind in kinds[:3]]
        raise ValueError(f'{path}: expected numbering "anatomical" or "count", found {found}.')
    return kinds[0] if kinds else "anatomical"


def check_same_grid(reference: Volume, predicted: Volume, *, name: Path) -> None:
    """Raise `ValueError` if a prediction does not lie on its reference's grid: it is never resampled.

    Parameters
    ----------
    reference, predicted : Volume
        The two masks.
    name : Path
        The prediction's file, for the error.
    """
    if reference.data.shape != predicted.data.shape:
        raise ValueError(
            f"{name}: expected the reference's shape {reference.data.shape}, found {predicted.data.shape}."
        )
    corners = corners_of(reference.shape)
    shift = (reference.affine - predicted.affine)[:3]
    distance = np.linalg.norm(corners @ shift[:, :3].T + shift[:, 3], axis=1).max()
    if distance > GRID_TOLERANCE_MM:
        raise ValueError(
            f"{name}: expected the reference's affine, found one that puts voxels {distance:.2f} mm away."
        )


def _folders_to_score(settings: EvaluationSettings) -> Iterator[EvaluationSettings]:
    yield settings
    if settings.compare is not None:
        tqdm.write(printable(f"The same with the predictions in {settings.compare}:"))
        yield replace(settings, predictions=settings.compare)


def _write(
    settings: EvaluationSettings, results: list[CaseResult], others: list[CaseResult] | None = None
) -> list[str]:
    resampling = Resampling(settings.resamples, settings.seed)
    counted = {"found_dice": settings.found_dice, "resampling": resampling}
    tables = [overall_table(write_evaluation(results, settings.output, **counted))]
    if others is not None:
        folders = (settings.predictions, settings.compare)
        pairs = [pair for pair in zip(results, others) if "killed" not in {result.status for result in pair}]
        both = ([pair[place] for pair in pairs] for place in (0, 1))
        tables.append(write_comparison(*both, settings.output, folders=folders, resampling=resampling))
    save_settings(settings, settings.output)
    return tables


def _all_missed(case: Case, reference: Volume, status: Status, message: str) -> CaseResult:
    scores = tuple(score_without_prediction(reference.data, reference.affine))
    message = f"{message} Its {len(scores)} vertebrae count as missed."
    return CaseResult(case.key, case.split, status, scores=scores, message=message)


def _killed_result(case: Case, found: str) -> CaseResult:
    message = f"{case.key}: expected to be scored, found {found}."
    return CaseResult(case.key, case.split, "killed", message=message)
