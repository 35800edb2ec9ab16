"""Generated scans that no network saw: phantoms of all ranges, and scans in which there is no spine.

Command python experiments/generated.py --options --segmentation DIR --heatmap DIR
        python experiments/generated.py                            the networks that infer.py takes by itself
        python experiments/generated.py --seed 7101 --ranges usual --of-a-kind 0        more of one kind
Time    on two CPU cores (AMD EPYC) about twenty minutes
Result  measured: see models/starter/README.md

Reads   the networks
Writes  FOLDER/<ranges>/{data,predictions,evaluation}, FOLDER/no-spine/{scans,predictions}

Phantoms and scans come from seeds that no recipe draws from. One spine whose levels no count can tell moves
the share of right levels in forty of them by one or two hundredths: that needs more sets. Prints a table, a
column for each of the ranges, then how many vertebrae were seen in the scans of each kind without a spine. A
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
#: Apart from the seeds of `experiments/phantoms.py` and `experiments/starter.py`, and what each kind adds to
#: it: the old ones are the usual ones with other bone.
SEED, ADDED = 7001, {"usual": 0, "wide": 1, "old": 0, "no-spine": 2}
SCORES = (
    *("vertebrae", "found", "extra", "found_overlap", "mean_dice", "mean_dice_overlap"),
    *("identification_rate", "localisation_error_mm"),
)


def phantom_steps(
    ranges: str, folder: Path, options: Sequence[str], *, phantoms: int, seed: int = SEED
) -> list[Step]:
    """Give the steps that generate, segment and score phantoms of some ranges."""
    data, predictions = ("--data-dir", folder / "data"), folder / "predictions"
    drawn = ("--source", "phantom", "--phantoms", 0, 0, phantoms, "--ranges", ranges)
    scored = (*data, "--split", "test", "--predictions", predictions, "--output", folder / "evaluation")
    # Phantoms go to these in turn, the first one to the first.
    tests = [folder / "data" / name for name in TEST_FOLDERS[:phantoms]]
    return [
        script("get_verse_data.py", *data, *drawn, "--seed", seed + ADDED[ranges]),
        script("infer.py", *tests, "--output", predictions, *options),
        script("evaluate.py", *scored),
    ]


def write_scans_without_spine(folder: Path, *, of_a_kind: int, seed: int = SEED) -> list[Path]:
    """Draw scans of every kind without a spine; those that are there stay.

    Parameters
    ----------
    folder : Path
        Receives <kind>-<number>_ct.nii.gz.
    of_a_kind : int
        How many of each.
    seed : int
        As on the command line.

    Returns
    -------
    list of Path
    """
    paths = []
    for kind in NO_SPINE_KINDS:
        for number in range(of_a_kind):
            path = folder / f"{kind}-{number}_ct.nii.gz"
            if not path.is_file():
                scan = draw_no_spine(seed + ADDED["no-spine"], number, kind=kind)
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


def run(chosen: argparse.Namespace, options: Sequence[str]) -> str:
    """Run what was chosen on the command line, and give the tables in Markdown."""
    folder, columns = chosen.folder, {}
    for ranges in chosen.ranges:
        place = folder / ranges
        steps = phantom_steps(ranges, place, options, phantoms=chosen.phantoms, seed=chosen.seed)
        run_steps(steps, dry_run=False)
        summary = json.loads((place / "evaluation" / "summary.json").read_text())
        columns[ranges] = [summary[name] for name in SCORES]
    tables = [markdown_table(pd.DataFrame({"score": SCORES, **columns}))] if columns else []
    if chosen.of_a_kind:
        place = folder / "no-spine"
        scans = write_scans_without_spine(place / "scans", of_a_kind=chosen.of_a_kind, seed=chosen.seed)
        predictions = place / "predictions"
        run_steps([script("infer.py", *scans, "--output", predictions, *options)], dry_run=False)
        counts = vertebrae_by_kind(predictions)
        none = {"no spine": counts.keys(), "scans": chosen.of_a_kind, "vertebrae": counts.values()}
        tables.append(markdown_table(pd.DataFrame(none)))
    return "\n\n".join(tables) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run, print the tables, and give the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("generated"), help="folder that receives everything"
    )
    parser.add_argument("--phantoms", type=int, default=PHANTOMS, help="phantoms of each of the ranges")
    parser.add_argument("--ranges", nargs="*", choices=RANGES, default=RANGES, help="phantoms of these")
    parser.add_argument(
        "--of-a-kind", type=int, default=SCANS_OF_A_KIND, help="scans without a spine, each kind"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="another one gives other phantoms and scans")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="the last one: for infer.py")
    chosen = parser.parse_args(arguments)
    options = [word for text in chosen.options for word in shlex.split(text)]
    print(run(chosen, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
