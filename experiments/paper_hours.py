"""Hours that the published experiment will take, from short trainings of its networks.

Command as experiments/paper.py prints it
Reads   WORK/models/timing-heatmap, timing-teacher and timing-student_runs: trainings of two short epochs,
        the first of which compiles; WORK/heatmap and WORK/segmentation
Writes  the file after --output: a row a kind of training; prints it

Counted are the training steps of all epochs. Validation and the walks over the test split come on top.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.steps import exit_status_of
from utils.command_line import settings_from_command_line
from utils.files import write_text_whole
from utils.preparation.prepared import spacing_folder
from utils.settings import HeatmapTrainingSettings, SegmentationTrainingSettings
from utils.tables import markdown_table


def hours_table(
    heatmap: HeatmapTrainingSettings,
    segmentation: SegmentationTrainingSettings,
    *,
    schedules: int,
    students: int,
) -> pd.DataFrame:
    """Give the hours of every kind of training.

    Parameters
    ----------
    heatmap, segmentation : HeatmapTrainingSettings, SegmentationTrainingSettings
        The trainings to come.
    schedules : int
        Experiments, each with a teacher and its students.
    students : int
        Students of one experiment that learn from the teacher; one more has labels alone.

    Returns
    -------
    pd.DataFrame
        A row a kind: training, runs, epochs, examples (an epoch), examples_per_second, hours (of all runs).

    Raises
    ------
    ValueError
        If there are no prepared data, or a timing was not run.
    """
    models = segmentation.work_dir / "models"
    epochs = {"heatmap": heatmap.epochs, "segmentation": segmentation.epochs}
    kinds = [
        ("heatmap network", "heatmap", 1, models / "timing-heatmap"),
        ("teacher", "segmentation", schedules, models / "timing-teacher"),
        ("student", "segmentation", schedules, models / "timing-student_runs" / "scratch"),
        (
            "student with teacher",
            "segmentation",
            schedules * students,
            models / "timing-student_runs" / "logits",
        ),
    ]
    examples = examples_an_epoch(heatmap, segmentation)
    rows = []
    for training, stage, runs, directory in kinds:
        rate = examples_per_second(directory)
        seconds = runs * epochs[stage] * examples[stage] / rate
        known = {"training": training, "runs": runs, "epochs": epochs[stage], "examples": examples[stage]}
        rows.append({**known, "examples_per_second": rate, "hours": seconds / 3600})
    return pd.DataFrame(rows)


def examples_an_epoch(
    heatmap: HeatmapTrainingSettings, segmentation: SegmentationTrainingSettings
) -> dict[str, int]:
    """Give the examples of an epoch of both networks, balanced over the levels as the trainings do.

    Raises
    ------
    ValueError
        If there are no prepared data.
    """
    # After the command line: TensorFlow loads slowly.
    from utils.learning.epochs import examples_in_epoch
    from utils.learning.prepared_data import heatmap_keys, read_segmentation_data

    folders = {
        stage: spacing_folder(each.work_dir, stage, each.spacing_mm) / "training"
        for stage, each in {"heatmap": heatmap, "segmentation": segmentation}.items()
    }
    scans = len(heatmap_keys(folders["heatmap"]))
    vertebrae = read_segmentation_data(folders["segmentation"])
    return {
        "heatmap": heatmap.examples_per_epoch or scans,
        "segmentation": examples_in_epoch(vertebrae, segmentation),
    }


def examples_per_second(directory: Path) -> float:
    """Give the rate of the last epoch of a training.

    Raises
    ------
    ValueError
        If the training has no epoch.
    """
    path = directory / "history.csv"
    if not path.is_file():
        raise ValueError(f"{path}: expected the history of a short training, found none.")
    return float(pd.read_csv(path)["examples_per_second"].iloc[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and print the hours, and give the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("heatmap", "segmentation"):
        parser.add_argument(f"--{name}", required=True, help=f"command line of the {name} training to come")
    parser.add_argument("--schedules", type=int, default=1, help="experiments")
    parser.add_argument("--students", type=int, default=2, help="students with a teacher, of each")
    parser.add_argument("--output", type=Path, required=True, help="file that receives the table")
    chosen = parser.parse_args(arguments)
    heatmap = settings_from_command_line(HeatmapTrainingSettings, shlex.split(chosen.heatmap))
    segmentation = settings_from_command_line(SegmentationTrainingSettings, shlex.split(chosen.segmentation))

    def run() -> None:
        numbers = {"schedules": chosen.schedules, "students": chosen.students}
        table = hours_table(heatmap, segmentation, **numbers)
        write_text_whole(chosen.output, table.to_csv(index=False))
        print(markdown_table(table))
        print(
            f"Trainings to come: {table['hours'].sum():.1f} hours on this device, without validation and the "
            "walks over the test split.",
            flush=True,
        )

    return exit_status_of(run)


if __name__ == "__main__":
    sys.exit(main())
