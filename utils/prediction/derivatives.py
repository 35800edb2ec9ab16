"""The files of a case in VerSe layout, each whole or not at all: written, completed, checked."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from utils.files import read_json, sha256_of, write_text_whole, written_whole
from utils.imaging.centroids import Centroids, write_centroids
from utils.imaging.nifti import read_mask, write_volume
from utils.imaging.nifti_forms import HeaderForms
from utils.imaging.volume import Volume
from utils.prediction.case import ANATOMICAL, COUNT, TABLE_COLUMNS, CasePrediction, Numbering, vertebra_points
from utils.prediction.column import read_column, readings_by_label
from utils.prediction.dataset_description import write_dataset_description
from utils.prediction.exports import EXPORT_SUFFIXES, Export
from utils.prediction.measured import MEASURED_SUFFIXES, write_measures
from utils.prediction.quality import QUALITY_SUFFIX, number_in, percent, write_quality
from utils.prediction.snapshot import Mark, snapshot_figure
from utils.verse.cases import subject_of

#: Ends of the names of a case's files. The settings are written last, with hashes of the others: a case is
#: done when all are there as they were written, so a run that was killed does the case again.
SETTINGS_SUFFIX = "_settings.json"
#: What the labels were decided from, where a network gave it.
COLUMN_SUFFIX = "_column.json"
TABLE_SUFFIX = "_vertebrae.csv"
CENTROIDS_SUFFIX = "_seg-vb_ctd.json"
SNAPSHOT_SUFFIX = "_seg-vert_snp.png"
MASK_SUFFIX = "_seg-vert_msk.nii.gz"
#: Written only if asked for (`InferenceSettings.trace`).
TRACE_SUFFIX = "_trace.jsonl"
#: Files that not every prediction has: those of an older one must not stay beside a new mask.
_EXPORTED = (*EXPORT_SUFFIXES.values(), *MEASURED_SUFFIXES)
OPTIONAL_SUFFIXES = (QUALITY_SUFFIX, COLUMN_SUFFIX, TRACE_SUFFIX, *_EXPORTED)
_RESULT_SUFFIXES = (TABLE_SUFFIX, CENTROIDS_SUFFIX, SNAPSHOT_SUFFIX, MASK_SUFFIX, *OPTIONAL_SUFFIXES)
#: Where the settings of a case hold the SHA-256 of its other files, by the ends of their names.
FILES = "files"


def case_path(output: Path, key: str, suffix: str) -> Path:
    """Give the path of one of a case's files: `output/derivatives/<subject>/<key><suffix>`."""
    return output / "derivatives" / subject_of(key) / f"{key}{suffix}"


def write_case(
    prediction: CasePrediction,
    output: Path,
    *,
    exports: Mapping[str, Export] = MappingProxyType({}),
    keep: Sequence[str] = (),
    measures: bool = False,
) -> None:
    """Write the files of one case, each whole or not at all: last of all what it was made with.

    A folder of predictions without a description for BIDS gets one (`utils.prediction.dataset_description`).

    Parameters
    ----------
    prediction : CasePrediction
        The case.
    output : Path
        Folder of the predictions.
    exports : mapping of str to Export
        From `wanted_exports`.
    keep : sequence of str
        Of `OPTIONAL_SUFFIXES` those whose files stay: an earlier writing of the same prediction left them.
    measures : bool
        Whether to measure the vertebrae too (`utils.prediction.measured`).
    """

    def path(suffix: str) -> Path:
        return case_path(output, prediction.key, suffix)

    write_dataset_description(output)
    # Older settings would make the case look done while it is not, or old files look like its own.
    for suffix in (SETTINGS_SUFFIX, MASK_SUFFIX, *OPTIONAL_SUFFIXES):
        if suffix not in keep:
            path(suffix).unlink(missing_ok=True)
    points = vertebra_points(prediction.labels, prediction.numbering)
    with written_whole(path(TABLE_SUFFIX)) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, TABLE_COLUMNS)
        writer.writeheader()
        writer.writerows(prediction.table)
    if prediction.quality is not None:
        write_quality(path(QUALITY_SUFFIX), prediction.quality)
    if prediction.column:
        write_text_whole(path(COLUMN_SUFFIX), prediction.column)
    if prediction.trace:
        steps = [json.dumps(step.as_json()) + "\n" for step in prediction.trace]
        write_text_whole(path(TRACE_SUFFIX), "".join(steps))
    write_centroids(path(CENTROIDS_SUFFIX), points, prediction.labels.grid, source="mask")
    figure = _snapshot_of(prediction, points, path(COLUMN_SUFFIX))
    with written_whole(path(SNAPSHOT_SUFFIX)) as temporary:
        figure.savefig(temporary, format="png", pil_kwargs={"compress_level": 3})
    write_volume(path(MASK_SUFFIX), prediction.labels, forms=prediction.forms)
    for export in exports.values():
        export.write(path(export.suffix), prediction.labels, prediction.numbering.name)
    if measures:
        is_anatomical = prediction.numbering.kind == ANATOMICAL
        known = {"anatomical": is_anatomical, "table": prediction.table, "forms": prediction.forms}
        write_measures(path, prediction.ct, prediction.labels, **known)
    _write_settings(output, prediction.key, prediction.settings)


def _snapshot_of(prediction: CasePrediction, points: Centroids, column: Path) -> Figure:
    counted = ", counted from the top" if prediction.numbering.kind == COUNT else ""
    title = f"{prediction.key}: {len(points.codes)} vertebrae{counted}"
    sure = {row["label"]: number_in(row, "label_probability") for row in prediction.table}
    known = read_column(column)
    readings = {} if known is None else readings_by_label(*known)
    held = set() if prediction.quality is None else prediction.quality.anchors
    marks = [
        Mark(
            prediction.numbering.name(code),
            "" if sure.get(code) is None else percent(sure[code]),
            ", ".join(f"{each.text} {percent(each.probability)}" for each in readings.get(code, ())),
            any(each.anchor in held for each in readings.get(code, ())),
        )
        for code in points.codes
    ]
    return snapshot_figure(prediction.ct, prediction.labels, points, marks=marks, title=title)


def _write_settings(output: Path, key: str, settings: Mapping[str, Any]) -> None:
    """Write what a case was made with, and what its files hold now."""
    paths = {suffix: case_path(output, key, suffix) for suffix in _RESULT_SUFFIXES}
    hashes = {suffix: sha256_of(path) for suffix, path in paths.items() if path.is_file()}
    text = json.dumps({**settings, FILES: hashes}, indent=2) + "\n"
    write_text_whole(case_path(output, key, SETTINGS_SUFFIX), text)


def forms_of_case(output: Path, key: str) -> tuple[tuple[str, ...], bool]:
    """Give the formats for other programs in which a case was written, and whether it was measured."""
    formats = (name for name, suffix in EXPORT_SUFFIXES.items() if case_path(output, key, suffix).is_file())
    return tuple(formats), all(case_path(output, key, suffix).is_file() for suffix in MEASURED_SUFFIXES)


def changed_files(output: Path, key: str, settings: Mapping[str, Any]) -> list[str]:
    """Name the files of a finished case that do not hold what was written, or are gone.

    Parameters
    ----------
    output : Path
        Folder of the predictions.
    key : str
        The case.
    settings : mapping
        From `read_case_settings`. Those of earlier versions say nothing of the files: none has changed.

    Returns
    -------
    list of str
        Their names. A file for other programs that is gone is none of them: it is made from the mask.
    """
    hashes = settings.get(FILES, {})
    paths = {suffix: case_path(output, key, suffix) for suffix in _RESULT_SUFFIXES if suffix in hashes}
    return [
        path.name
        for suffix, path in paths.items()
        if (sha256_of(path) != hashes[suffix] if path.is_file() else suffix not in _EXPORTED)
    ]


def complete_case(
    output: Path,
    key: str,
    numbering: Numbering,
    *,
    exports: Mapping[str, Export],
    assumed: str | None = None,
    measured: Callable[[], tuple[Volume, HeaderForms | None]] | None = None,
) -> list[str]:
    """Write the files of a finished case that are wanted and not there, from its mask.

    Parameters
    ----------
    output : Path
        Folder of the predictions.
    key : str
        The case.
    numbering : Numbering
        What the labels mean; only its kind counts.
    exports : mapping of str to Export
        As in `write_case`.
    assumed : str, optional
        Where the voxel axes lead if the mask does not say it, as for its scan.
    measured : callable, optional
        Reads the scan and how its header states the grid, if its vertebrae are to be measured.

    Returns
    -------
    list of str
        The formats that were missing, "measures" among them.

    Raises
    ------
    ValueError
        If one is missing, and the mask, the table or the scan cannot be read.
    """

    def path(suffix: str) -> Path:
        return case_path(output, key, suffix)

    missing = [name for name, export in exports.items() if not path(export.suffix).is_file()]
    to_measure = measured is not None and not all(path(each).is_file() for each in MEASURED_SUFFIXES)
    labels = read_mask(path(MASK_SUFFIX), assumed=assumed) if missing or to_measure else None
    for name in missing:
        exports[name].write(path(exports[name].suffix), labels, numbering.name)
    if to_measure:
        with path(TABLE_SUFFIX).open(newline="") as stream:
            table = list(csv.DictReader(stream))
        is_anatomical = numbering.kind == ANATOMICAL
        ct, forms = measured()
        write_measures(path, ct, labels, anatomical=is_anatomical, table=table, forms=forms)
        missing.append("measures")
    settings = read_case_settings(output, key) if missing else None
    if settings is not None:
        _write_settings(output, key, settings)
    return missing


def read_case_settings(output: Path, key: str) -> dict[str, Any] | None:
    """Read what a finished case was made with; None if it is not finished."""
    path = case_path(output, key, SETTINGS_SUFFIX)
    if not case_path(output, key, MASK_SUFFIX).is_file() or not path.is_file():
        return None
    try:
        found = read_json(path)
    except ValueError:
        return None
    right = isinstance(found, dict) and isinstance(found.get(FILES, {}), dict)
    return found if right else None
