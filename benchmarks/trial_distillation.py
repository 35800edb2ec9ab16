"""Trial of distillation on generated spines: does a teacher help a small student, after equal steps?

For each of three seeds a teacher is trained (preset `small`, filters 8-16-32-64), then a student of half its
filters from scratch and one for each way to learn from the teacher, all for the same number of steps on the
same examples. Seeds change weights, order and augmentation; the spines are the same.

Reads   nothing: spines are generated
Writes  FOLDER/data, and FOLDER/work with the models teacher-<seed> and student-<seed>, and their tables

    python benchmarks/trial_distillation.py FOLDER [OPTION ...]

Options are those of train_distillation.py, such as `--methods soft` or `--distillation-voxels even`. 8 epochs
are 480 steps of two patches; about an hour on two CPU cores. A killed run goes on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).resolve().parents[1]
SEEDS, EPOCHS = (0, 1, 2), 8
PHANTOMS = ("24", "6", "0")


def run(script: str, *arguments: object) -> None:
    """Run a script of the project, and stop if it fails."""
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    print("+", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True)


def table_of_seed(folder: Path, seed: int, options: list[str]) -> pd.DataFrame:
    """Train teacher and students with a seed; give their table."""
    work = ("--work-dir", folder / "work", "--preset", "small", "--seed", seed)
    models = folder / "work" / "models"
    run("train_segmentation.py", *work, "--epochs", EPOCHS, "--name", f"teacher-{seed}")
    students = ("--name", f"student-{seed}", "--segmentation", models / f"teacher-{seed}")
    run("train_distillation.py", *work, *students, *options)
    return pd.read_csv(models / f"student-{seed}" / "students.csv")


def main(folder: Path, options: list[str]) -> int:
    """Print the scores of every seed, and their means and ranges."""
    run("get_verse_data.py", "--source", "phantom", "--data-dir", folder / "data", "--phantoms", *PHANTOMS)
    data = ("--data-dir", folder / "data", "--work-dir", folder / "work")
    run("pre_processing_segmentation.py", *data, "--preset", "small")
    tables = {seed: table_of_seed(folder, seed, options) for seed in SEEDS}
    for column, title in (
        ("dice", "validation Dice"),
        ("surface_distance_95_mm", "95 % surface distance, mm"),
    ):
        scores = pd.DataFrame(
            {f"seed {seed}": table.set_index("network")[column] for seed, table in tables.items()}
        )
        spread = scores.agg(["mean", "min", "max"], axis=1)
        print(f"\n{title}, {EPOCHS} epochs\n{scores.join(spread).round(3).to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
