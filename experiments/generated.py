"""Generated scans that no network saw: phantoms of all ranges, and scans in which there is no spine.

Command python experiments/generated.py --options --segmentation DIR --heatmap DIR
        python experiments/generated.py                            the networks that infer.py takes by itself
Time    on two CPU cores (AMD EPYC) about twenty minutes
Result  measured: see models/starter/README.md

Reads   the networks
Writes  FOLDER/<ranges>/{data,predictions,evaluation}, FOLDER/no-spine/{scans,predictions}

Phantoms and scans come from seeds that no recipe draws from. Prints a table: a column each for the usual,
the wide and the old ranges, then how many vertebrae were seen in the scans of each kind without a spine. A
killed run goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.phantoms import TEST_FOLDERS
from experiments.steps import Step, run_steps, script
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.prediction.derivatives import TABLE_SUFFIX, case_path
from utils.prediction.quality import QUALITY_SUFFIX
from utils.synthetic.no_spine import NO_SPINE_KINDS, draw_no_spine
from utils.tables import markdown_table

RANGES = ("usual", "wide", "old")
PHANTOMS, SCANS_OF_A_KIND = 40, 10
#: Apart from the seeds of `experiments/phantoms.py` and `experiments/starter.py`.
#: The old ones are the usual ones with other bone.
SEEDS = {"usual": 7001, "wide": 7002, "old": 7001, "no-spine": 7003}
SCORES = (
    *("vertebrae", "found", "extra", "found_overlap", "mean_dice", "mean_dice_overlap"),
    *("identification_rate", "localisation_error_mm"),
)


def phantom_steps(ranges: str, folder: Path, options: Sequence[str], *, phantoms: int) -> list[Step]:
    """Give the steps that generate, segment and score phantoms of some ranges."""
    data, predictions = ("--data-dir", folder / "data"), folder / "predictions"
    drawn = ("--source", "phantom", "--phantoms", 0, 0, phantoms, "--ranges", ranges, "--seed", SEEDS[ranges])
    scored = (*data, "--split", "test", "--predictions", predictions, "--output", folder / "evaluation")
    tests = [folder / "data" / name for name in TEST_FOLDERS]
    return [
        script("get_verse_data.py", *data, *drawn),
        script("infer.py", *tests, "--output", predictions, *options),
        script("evaluate.py", *scored),
    ]


def write_scans_without_spine(folder: Path, *, of_a_kind: int) -> list[Path]:
    """Draw scans of every kind without a spine; those that are there stay.

    Parameters
    ----------
    folder : Path
        Receives <kind>-<number>_ct.nii.gz.
    of_a_kind : int
        How many of each.

    Returns
    -------
    list of Path
    """
    paths = []
    for kind in NO_SPINE_KINDS:
        for number in range(of_a_kind):
            path = folder / f"{kind}-{number}_ct.nii.gz"
            if not path.is_file():
                scan = draw_no_spine(SEEDS["no-spine"], number, kind=kind)
                write_volume(path, Volume(scan.ct, scan.affine))
            paths.append(path)
    return paths


def vertebrae_by_kind(predictions: Path) -> dict[str, int]:
    """Count the vertebrae that were predicted in the scans of each kind without a spine.

    Raises
    ------
    ValueError
        If a scan's quality file does not say `no_spine` just where there is no vertebra.
    """
    counts = dict.fromkeys(NO_SPINE_KINDS, 0)
    for table in sorted(predictions.rglob(f"*{TABLE_SUFFIX}")):
        found, key = len(pd.read_csv(table)), table.parent.name
        quality = json.loads(case_path(predictions, key, QUALITY_SUFFIX).read_text())
        if quality["no_spine"] != (found == 0):
            raise ValueError(f"{table}: expected no_spine where no vertebra is, found {found} of them.")
        counts[key.removeprefix("sub-").split("-")[0]] += found
    return counts


def run(folder: Path, options: Sequence[str], *, phantoms: int, of_a_kind: int) -> str:
    """Run everything, and give the tables in Markdown."""
    columns = {}
    for ranges in RANGES:
        run_steps(phantom_steps(ranges, folder / ranges, options, phantoms=phantoms), dry_run=False)
        summary = json.loads((folder / ranges / "evaluation" / "summary.json").read_text())
        columns[ranges] = [summary[name] for name in SCORES]
    scans = write_scans_without_spine(folder / "no-spine" / "scans", of_a_kind=of_a_kind)
    predictions = folder / "no-spine" / "predictions"
    run_steps([script("infer.py", *scans, "--output", predictions, *options)], dry_run=False)
    counts = vertebrae_by_kind(predictions)
    scores = pd.DataFrame({"score": SCORES, **columns})
    none = pd.DataFrame({"no spine": counts.keys(), "scans": of_a_kind, "vertebrae": counts.values()})
    return f"{markdown_table(scores)}\n\n{markdown_table(none)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run, print the tables, and give the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("generated"), help="folder that receives everything"
    )
    parser.add_argument("--phantoms", type=int, default=PHANTOMS, help="phantoms of each of the ranges")
    parser.add_argument("--of-a-kind", type=int, default=SCANS_OF_A_KIND, help="scans of each kind")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="the last one: for infer.py")
    chosen = parser.parse_args(arguments)
    options = [word for text in chosen.options for word in shlex.split(text)]
    print(run(chosen.folder, options, phantoms=chosen.phantoms, of_a_kind=chosen.of_a_kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
