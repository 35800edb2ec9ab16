"""From the walk to the files of a case: labels on the native grid, centroids, table, snapshot.

Every vertebra goes back to the native grid by its probability, linear in its own bounding box; a voxel
takes the vertebra of the largest probability, from the threshold on. Labels are never resampled.
Everything before the section *Files* is pure.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import read_json, sha256_of, write_text_whole, written_whole
from utils.imaging.centroids import Centroids, centroids_of_mask, write_centroids
from utils.imaging.crops import box_between
from utils.imaging.grids import cropped_grid, transform_points
from utils.imaging.nifti import read_mask, write_volume
from utils.imaging.nifti_forms import HeaderForms
from utils.imaging.resampling import resample_linear
from utils.imaging.volume import Grid, Volume
from utils.localisation.identify import Identification
from utils.prediction.exports import EXPORTS
from utils.prediction.quality import QUALITY_SUFFIX, CaseQuality, write_quality
from utils.prediction.snapshot import snapshot_figure
from utils.verse.cases import subject_of
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
_EXPORTED = tuple(export.suffix for export in EXPORTS.values())
OPTIONAL_SUFFIXES = (QUALITY_SUFFIX, COLUMN_SUFFIX, TRACE_SUFFIX, *_EXPORTED)
_RESULT_SUFFIXES = (TABLE_SUFFIX, CENTROIDS_SUFFIX, SNAPSHOT_SUFFIX, MASK_SUFFIX, *OPTIONAL_SUFFIXES)
#: Where the settings of a case hold the SHA-256 of its other files, by the ends of their names.
FILES = "files"


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
        begin, end = _reach_in(grid, patch.grid)
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
                "partial": int(vertebra.partial),
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


def _reach_in(grid: Grid, patch: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Give the first voxel of a grid that a patch of another one can reach, and the one after the last."""
    faces = np.array(list(np.ndindex(2, 2, 2))) * patch.shape - 0.5
    corners = transform_points(faces, patch.affine, grid.affine)
    begin = np.clip(np.floor(corners.min(axis=0)), 0, grid.shape).astype(int)
    end = np.clip(np.ceil(corners.max(axis=0)) + 1, 0, grid.shape).astype(int)
    return begin, end


# Files ---------------------------------------------------------------------------------------------


def case_path(output: Path, key: str, suffix: str) -> Path:
    """Give the path of one of a case's files: `output/derivatives/<subject>/<key><suffix>`."""
    return output / "derivatives" / subject_of(key) / f"{key}{suffix}"


def write_case(
    prediction: CasePrediction, output: Path, *, formats: Sequence[str] = (), keep: Sequence[str] = ()
) -> None:
    """Write the files of one case, each whole or not at all: last of all what it was made with.

    Parameters
    ----------
    prediction : CasePrediction
        The case.
    output : Path
        Folder of the predictions.
    formats : sequence of str
        Keys of `exports.EXPORTS`; any other is one that is always written.
    keep : sequence of str
        Of `OPTIONAL_SUFFIXES` those whose files stay: an earlier writing of the same prediction left them.
    """

    def path(suffix: str) -> Path:
        return case_path(output, prediction.key, suffix)

    # Older settings would make the case look done while it is not, or old files look like its own.
    for suffix in (SETTINGS_SUFFIX, MASK_SUFFIX, *OPTIONAL_SUFFIXES):
        if suffix not in keep:
            path(suffix).unlink(missing_ok=True)
    points = vertebra_points(prediction.labels, prediction.numbering)
    names = [prediction.numbering.name(code) for code in points.codes]
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
    counted = ", counted from the top" if prediction.numbering.kind == COUNT else ""
    title = f"{prediction.key}: {len(names)} vertebrae{counted}"
    figure = snapshot_figure(prediction.ct, prediction.labels, points, names=names, title=title)
    with written_whole(path(SNAPSHOT_SUFFIX)) as temporary:
        figure.savefig(temporary, format="png")
    write_volume(path(MASK_SUFFIX), prediction.labels, forms=prediction.forms)
    for name in formats:
        if name in EXPORTS:
            EXPORTS[name].write(path(EXPORTS[name].suffix), prediction.labels, prediction.numbering.name)
    _write_settings(output, prediction.key, prediction.settings)


def _write_settings(output: Path, key: str, settings: Mapping[str, Any]) -> None:
    """Write what a case was made with, and what its files hold now."""
    paths = {suffix: case_path(output, key, suffix) for suffix in _RESULT_SUFFIXES}
    hashes = {suffix: sha256_of(path) for suffix, path in paths.items() if path.is_file()}
    text = json.dumps({**settings, FILES: hashes}, indent=2) + "\n"
    write_text_whole(case_path(output, key, SETTINGS_SUFFIX), text)


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
    output: Path, key: str, numbering: Numbering, *, formats: Sequence[str], assumed: str | None = None
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
    formats : sequence of str
        As in `write_case`.
    assumed : str, optional
        Where the voxel axes lead if the mask does not say it, as for its scan.

    Returns
    -------
    list of str
        The formats that were missing.

    Raises
    ------
    ValueError
        If one is missing and the mask cannot be read.
    """
    paths = {name: case_path(output, key, EXPORTS[name].suffix) for name in formats if name in EXPORTS}
    missing = [name for name, path in paths.items() if not path.is_file()]
    labels = read_mask(case_path(output, key, MASK_SUFFIX), assumed=assumed) if missing else None
    for name in missing:
        EXPORTS[name].write(paths[name], labels, numbering.name)
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
