"""Generated spines from nothing to scores: three networks trained and tried on them, in minutes or longer.

Command python experiments/phantoms.py demo            (make demo)
        python experiments/phantoms.py train-small     (make train-small)
Time    demo 19 minutes on two CPU cores (27 minutes of CPU), train-small an hour and a half
Result  demo, 32 vertebrae of 5 scans: 23 found, none extra, mean Dice .644 (.000 to .896); whatever the
        labels, all found, .892 (.872 to .911)
        train-small: not run since the heatmap network finds every vertebra by itself

Reads   nothing
Writes  FOLDER/data, FOLDER/work (networks and training curves in models), FOLDER/predictions and
        FOLDER/evaluation; FOLDER is the name of the trial, or --folder

A killed run goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.steps import Step, run_steps, script
from utils.command_line import ended_in_a_line

#: Where the test scans of generated data lie.
TEST_FOLDERS = ("VerSe19/dataset-verse19test", "VerSe20/dataset-03test")


@dataclass(frozen=True)
class Trial:
    """How many spines to generate for training, validation and test, and the options of the trainings.

    `drawn` are scans that heatmap and labelling network learn from besides, for training and validation.
    """

    spines: tuple[int, int, int]
    drawn: tuple[int, int]
    heatmap: str = ""
    segmentation: str = ""


TRIALS = {
    "demo": Trial((12, 3, 5), (80, 4)),
    "train-small": Trial(
        (60, 5, 20),
        (400, 20),
        heatmap="--epochs 20",
        segmentation="--epochs 40 --examples-per-epoch 160",
    ),
}


def trial_steps(trial: Trial, folder: Path) -> list[Step]:
    """Give the steps of a trial in their order, with everything in one folder."""
    data, work = ("--data-dir", folder / "data"), ("--work-dir", folder / "work")
    small, predictions = ("--preset", "small"), folder / "predictions"
    scored = (*data, "--split", "test", "--predictions", predictions, "--output", folder / "evaluation")
    tests = [folder / "data" / name for name in TEST_FOLDERS]
    return [
        script("get_verse_data.py", "--source", "phantom", *data, "--phantoms", *trial.spines, "--seed", 0),
        script("pre_processing_heatmap.py", *data, *work, *small, "--drawn", *trial.drawn),
        script("train_heatmap.py", *work, *small, *trial.heatmap.split()),
        script("train_labelling.py", *work, *small),
        script("pre_processing_segmentation.py", *data, *work, *small),
        script("train_segmentation.py", *work, *small, *trial.segmentation.split()),
        script("infer.py", *tests, *work, "--output", predictions),
        script("evaluate.py", *scored),
    ]


def main(name: str, folder: Path, *, dry_run: bool = False) -> int:
    """Run a trial, say where its results lie, and give the exit status."""
    run_steps(trial_steps(TRIALS[name], folder), dry_run=dry_run)
    print(f"Data: {folder}/data. Networks and training curves: models, in {folder}/work.")
    print(f"Masks and pictures: {folder}/predictions.")
    print(f"Scores: {folder}/evaluation (summary.json, vertebrae.csv, evaluation.md, evaluation.png).")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=TRIALS, help="what is run")
    parser.add_argument("--folder", type=Path, help="folder that receives everything")
    parser.add_argument("--dry-run", action="store_true", help="print the steps, do nothing")
    chosen = parser.parse_args()
    chosen_folder = chosen.folder or Path(chosen.name)
    sys.exit(ended_in_a_line(lambda: main(chosen.name, chosen_folder, dry_run=chosen.dry_run)))
