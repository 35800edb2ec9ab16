"""The files of a case's measures: bodies, a row a vertebra, angles of the spine."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import write_text_whole, written_whole
from utils.imaging.nifti import write_volume
from utils.imaging.nifti_forms import HeaderForms
from utils.imaging.volume import Volume
from utils.prediction.measure import measure
from utils.prediction.quality import LOW_LABEL_PROBABILITY, number_in

BODIES_SUFFIX, MEASURES_SUFFIX, ANGLES_SUFFIX = "_seg-body_msk.nii.gz", "_measurements.csv", "_angles.json"
#: Ends of the names of the files that `write_measures` writes, the last one last.
MEASURED_SUFFIXES = (BODIES_SUFFIX, MEASURES_SUFFIX, ANGLES_SUFFIX)


def write_measures(
    path: Callable[[str], Path],
    ct: Volume,
    labels: Volume,
    *,
    anatomical: bool,
    table: Sequence[Mapping[str, Any]],
    forms: HeaderForms | None = None,
) -> None:
    """Measure the vertebrae of a case, and write its `MEASURED_SUFFIXES`, each whole or not at all.

    Parameters
    ----------
    path : callable
        Gives the path of a case's file from the end of its name.
    ct, labels : Volume
        The scan in Hounsfield units, and VerSe codes on its grid.
    anatomical : bool
        Whether the codes are levels.
    table : sequence of mapping
        The case's rows, for the probability of each label.
    forms : HeaderForms, optional
        How the scan's header states its grid: that of the bodies does the same.
    """
    found = measure(ct, labels, anatomical=anatomical)
    sure = {str(row["label"]): number_in(row, "label_probability") for row in table}
    rows = [{**row, **_certainty(sure.get(str(row["label"])))} for row in found.rows]
    write_volume(path(BODIES_SUFFIX), found.bodies, forms=forms)
    with written_whole(path(MEASURES_SUFFIX)) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0]] if rows else ["label", "name"])
        writer.writeheader()
        writer.writerows(rows)
    write_text_whole(path(ANGLES_SUFFIX), json.dumps(found.angles, indent=2) + "\n")


def _certainty(probability: float | None) -> dict[str, Any]:
    """Give the columns that say how sure the level is that a row names."""
    is_low = probability is not None and probability < LOW_LABEL_PROBABILITY
    return {"label_probability": probability, "doubt": "the level is doubtful" if is_low else ""}
