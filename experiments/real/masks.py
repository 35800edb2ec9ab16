"""Score predicted masks of the real scans that have a reference mask.

Command python experiments/real/masks.py --predictions predictions
Time    half a minute
Result  a table in Markdown, a row a scan and convention of its reference; models/starter/README.md

Reads   experiments/real/centres.json, the reference masks that it names, and what infer.py wrote of the scans
Writes  with --output a CSV with a row a vertebra

A vertebra is matched by the largest overlap, whatever the labels say, and is complete if the reference does
not touch the border of the scan. A reference made by a program is scored twice: as it is, and brought to
VerSe's convention of where bone ends (utils/verse/conventions.py), both masks on a grid of 1 mm then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.real.facts import ScanFacts, available_scans
from utils.evaluation.metrics import dice_of_match, match_by_overlap, overlap_table
from utils.files import written_whole
from utils.imaging.grids import working_grid
from utils.imaging.growth import grown_mask
from utils.imaging.nifti import read_mask
from utils.imaging.resampling import resample_labels
from utils.imaging.volume import Volume, touches_border
from utils.prediction.derivatives import MASK_SUFFIX, case_path
from utils.preparation.own_cases import own_key
from utils.tables import markdown_table
from utils.verse.conventions import growth_mm
from utils.verse.labels import code_of_name, name_of_code

#: End of the name of a reference mask, and the convention of each kind of labels.
REFERENCE_END = "_seg-vert_msk.nii.gz"
CONVENTIONS = {"expert": "verse", "program": "totalsegmentator"}
#: Part of a predicted vertebra that must lie outside of every reference for it to be false.
FALSE_SHARE = 0.9
#: The upper chest, the weak spot of thick slices.
UPPER_CHEST = range(code_of_name("T1"), code_of_name("T7") + 1)
_GRID_MM = 1.0


def reference_of(facts: ScanFacts) -> Path | None:
    """Give the reference mask of a scan, relative as its CT; None if it has none."""
    return next((path for path in facts.others if path.name.endswith(REFERENCE_END)), None)


def score_mask(reference: Volume, predicted: Volume) -> pd.DataFrame:
    """Score a mask against its reference on the same grid.

    Parameters
    ----------
    reference, predicted : Volume of uint8
        VerSe codes.

    Returns
    -------
    pd.DataFrame
        A row for every vertebra of the reference: `level`, `code`, `complete`, `dice` (0 without a match),
        `volume` (that of the match as a part of the reference's); and one for every predicted one that lies
        outside, with NaN.
    """
    table = overlap_table(reference.data, predicted.data)
    matches = dict(match_by_overlap(table))
    rows = []
    for code, box in reference.label_boxes.items():
        match = matches.get(code)
        rows.append(
            {
                "level": name_of_code(code),
                "code": code,
                "complete": not touches_border(box, reference.shape),
                "dice": 0.0 if match is None else dice_of_match(table, (code, match)),
                "volume": np.nan if match is None else table[:, match].sum() / table[code].sum(),
            }
        )
    for code in predicted.label_boxes:
        if table[0, code] > FALSE_SHARE * table[:, code].sum():
            rows.append({"level": f"false {name_of_code(code)}", "code": 0, "complete": False})
    return pd.DataFrame(rows)


def score_scan(shared: Path, facts: ScanFacts, predictions: Path) -> pd.DataFrame:
    """Score the prediction of a scan as the reference is, and at VerSe's convention."""
    reference = read_mask(shared / reference_of(facts))
    predicted = read_mask(case_path(predictions, own_key(facts.ct), MASK_SUFFIX))
    scores = [score_mask(reference, predicted).assign(convention="as it is")]
    source = CONVENTIONS[facts.labels]
    if source != "verse":
        grid = working_grid(reference.grid, _GRID_MM)
        grown = grown_mask(reference, grid, growth_mm(source))
        complete = dict(zip(scores[0]["code"], scores[0]["complete"]))
        at_verse = score_mask(grown, resample_labels(predicted, grid)).assign(convention="VerSe's")
        scores.append(at_verse.assign(complete=at_verse["code"].map(complete).fillna(False)))
    return pd.concat(scores).assign(scan=facts.name, labels=facts.labels)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Give a row a scan and convention."""
    rows = []
    for (scan, labels, convention), group in scores.groupby(["scan", "labels", "convention"], sort=False):
        known, complete = group[group["code"] > 0], group[group["complete"].astype(bool)]
        upper = complete[complete["code"].isin(UPPER_CHEST)]
        rows.append(
            {
                "scan": scan,
                "labels": labels,
                "convention": convention,
                "complete": len(complete),
                "found": int((complete["dice"] >= 0.5).sum()),
                "Dice": complete["dice"].mean(),
                "least": complete["dice"].min(),
                "T1-T7": upper["dice"].mean(),
                "volume": complete["volume"].mean(),
                "cut, Dice": known[~known["complete"].astype(bool)]["dice"].mean(),
                "false": int((group["code"] == 0).sum()),
            }
        )
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and score; gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", type=Path, required=True, help="output folder of infer.py")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the real scans")
    parser.add_argument("--scans", nargs="+", default=(), help="names of the scans; by default all there are")
    parser.add_argument("--output", type=Path, help="CSV that receives a row a vertebra")
    chosen = parser.parse_args(arguments)
    try:
        scans = available_scans(chosen.shared, chosen.scans)
        labelled = [facts for facts in scans.values() if reference_of(facts) is not None]
        scores = pd.concat([score_scan(chosen.shared, facts, chosen.predictions) for facts in labelled])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown_table(summary(scores)))
    if chosen.output is not None:
        with written_whole(chosen.output) as temporary:
            scores.to_csv(temporary, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
