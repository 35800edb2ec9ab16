"""The published experiment (Serrador et al. 2024) from an indexed VerSe to its table.

Command python experiments/paper.py --data-dir data                     (make paper)
        python experiments/paper.py --data-dir data --schedules ramp constant   both schedules of the loss
        python experiments/paper.py --quick                              all of it on generated spines
        python experiments/paper.py --data-dir data --dry-run            prints the steps, does nothing
Time    a GPU: not measured; before the long part 50 steps of each training are timed, and the hours to come
        are printed. --quick: 9 minutes on two cores
Result  FOLDER/paper.md: size, speed, Dice, 95 % surface distance and identification of teacher and students
        over the test split, with intervals over patients and paired differences

Reads   the data set (with --quick it is generated in FOLDER/data)
Writes  FOLDER/work (networks and training curves in models), FOLDER/predictions, FOLDER/evaluation,
        FOLDER/progress.json (what is done, and how long it took), FOLDER/hours.csv, FOLDER/paper.csv,
        FOLDER/differences.csv, FOLDER/paper.md

Networks are selected on the validation split (the lowest loss), and scored on the test split alone. A killed
run goes on with the same command.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.phantoms import TEST_FOLDERS
from experiments.steps import Step, exit_status_of, run_steps, script
from utils.command_line import ended_in_a_line
from utils.presets import preset_settings
from utils.settings import DistillationSettings
from utils.verse.cases import SPLITS, index_cases, part_of_folder

SCHEDULES = ("ramp", "constant")
_STUDENTS = preset_settings(DistillationSettings, "paper")
#: Steps that are timed before the long part, after as many that compile.
TIMED_STEPS = 50
#: Generated series for training, validation and test, and options of every script, for a trial of minutes:
#: 3 mm for 1, an eighth of the network, a few hundred steps.
QUICK_SPINES = (8, 2, 3)
_GRID = "--spacing-mm 3"
QUICK: dict[str, str] = {
    "pre_processing_heatmap.py": f"{_GRID} --heatmap-shape 32 32 64",
    "pre_processing_segmentation.py": _GRID,
    "train_heatmap.py": f"{_GRID} --sigma-voxels 5 --shift-voxels 10 --epochs 60 --validate-every 20 "
    "--learning-rate 3e-3 --norm-momentum .9",
    "train_segmentation.py": f"{_GRID} --patch-voxels 48 --filters 8 16 32 --epochs 10 --validate-every 5 "
    "--examples-per-epoch 100 --learning-rate 3e-3 --norm-momentum .9",
    # Weighted evenly, as published, what is learned from probabilities finds nothing in so few steps.
    "train_distillation.py": "--filters 4 8 16 --distillation-voxels loss",
}


@dataclass(frozen=True)
class Plan:
    """What is run, and where.

    Attributes
    ----------
    data_dir : Path
        The data set.
    folder : Path
        Folder that receives everything.
    schedules : tuple of str
        Schedules of the weight of false positives, of `SCHEDULES`: an experiment each.
    temperatures : tuple of float
        Temperatures of the students that learn from softened probabilities.
    methods : tuple of str
        How students learn from the teacher, as `train_distillation.py --methods` has it.
    spines : tuple of int, 3, or ()
        Series to generate for training, validation and test; () takes the data set as it is.
    more : dict of str to str
        Last options of a script, such as those of a trial of minutes.
    options : tuple of str
        Further options of all trainings. They must stay the same until these are done.
    device : str
        Device of trainings and inference.
    timed_steps : int
        Steps of each training to time before the long part.
    """

    data_dir: Path = Path("data")
    folder: Path = Path("paper")
    schedules: tuple[str, ...] = SCHEDULES[:1]
    temperatures: tuple[float, ...] = _STUDENTS.temperatures
    methods: tuple[str, ...] = _STUDENTS.methods
    spines: tuple[int, ...] = ()
    more: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    device: str = "auto"
    timed_steps: int = TIMED_STEPS

    @property
    def work(self) -> Path:
        """Folder of prepared data and networks."""
        return self.folder / "work"

    @property
    def models(self) -> Path:
        """Folder of the networks."""
        return self.work / "models"

    def networks(self, schedule: str) -> dict[str, Path]:
        """Give the directories of the networks that are compared, by their names, the teacher first."""
        runs = self.models / f"student-{schedule}_runs"
        students = {name: runs / name for name in ("scratch", *self.taught)}
        return {"teacher": self.models / f"teacher-{schedule}", **students}

    @property
    def taught(self) -> list[str]:
        """Names of the students that learn from the teacher."""
        soft = [f"soft-t{each:g}" for each in self.temperatures] if "soft" in self.methods else []
        return [*soft, *(["logits"] if "logits" in self.methods else [])]

    def script(self, name: str, *arguments: object, last: str = "") -> Step:
        """Give a step that runs a script of the preset; of a training with the options of all trainings."""
        training = (*self.options, "--device", self.device) if name.startswith("train_") else ()
        words = ("--work-dir", self.work, "--preset", "paper", *arguments, *training)
        return script(name, *words, *shlex.split(self.more.get(name, "")), *shlex.split(last))


def check_data(data_dir: Path) -> None:
    """Look at a data set before days of work on it.

    Parameters
    ----------
    data_dir : Path
        The data set.

    Raises
    ------
    ValueError
        If a split has no complete case, or there is no data set.
    """
    for split in SPLITS:
        cases = index_cases(data_dir, split=split)
        complete = sum(case.complete for case in cases)
        print(f"{data_dir}: {complete} complete series of {len(cases)} in the split {split}.", flush=True)
        if not complete:
            raise ValueError(
                f"{data_dir}: expected complete cases (CT, mask and centroids) in the split {split!r}, found "
                f"none; run `python get_verse_data.py --data-dir {data_dir}`, or try --quick."
            )


def folders_of_test_split(data_dir: Path) -> list[Path]:
    """Give the folders that hold the CTs of the test split, such as `data/VerSe19/dataset-verse19test`.

    Where there is no data set yet these are the folders of one that is generated.
    """
    if not data_dir.is_dir():
        return [data_dir / name for name in TEST_FOLDERS]
    paths = [case.ct for case in index_cases(data_dir, split="test") if case.ct is not None]
    return sorted(
        {above for path in paths for above in path.parents if part_of_folder(above.name)[1] == "test"}
    )


def data_steps(plan: Plan) -> list[Step]:
    """Generate the data set if it is to be, and prepare it for both networks."""
    data = ("--data-dir", plan.data_dir)
    phantoms = ("--source", "phantom", *data, "--phantoms", *plan.spines, "--seed", 0)
    return [
        *([script("get_verse_data.py", *phantoms)] if plan.spines else []),
        plan.script("pre_processing_heatmap.py", *data),
        plan.script("pre_processing_segmentation.py", *data),
    ]


def timing_steps(plan: Plan) -> list[Step]:
    """Train each network for two short epochs, and print what the second says of the hours to come.

    Whatever would end a training (memory, a driver, a folder that cannot be written) ends it here.
    """
    short = f"--epochs 2 --validate-every 2 --examples-per-epoch {plan.timed_steps}"
    to_students = ("--name", "timing-student", "--segmentation", plan.models / "timing-teacher")
    # What is timed are the trainings to come, whose options these are.
    to_come = {
        "heatmap": plan.script("train_heatmap.py"),
        "segmentation": plan.script("train_segmentation.py"),
    }
    numbers = ("--schedules", len(plan.schedules), "--students", len(plan.taught))
    return [
        plan.script("train_heatmap.py", "--name", "timing-heatmap", last=short),
        plan.script("train_segmentation.py", "--name", "timing-teacher", last=short),
        plan.script("train_distillation.py", *to_students, "--methods", "logits"),
        script(
            "experiments/paper_hours.py",
            *(f"--{name}={shlex.join(step.arguments[1:])}" for name, step in to_come.items()),
            *(*numbers, "--output", plan.folder / "hours.csv"),
        ),
    ]


def training_steps(plan: Plan, schedule: str) -> list[Step]:
    """Train the teacher under a schedule, then its students."""
    teacher = plan.networks(schedule)["teacher"]
    of_teacher = ("--name", teacher.name, "--fp-weight-schedule", schedule)
    of_students = ("--name", f"student-{schedule}", "--segmentation", teacher, "--methods", *plan.methods)
    return [
        plan.script("train_segmentation.py", *of_teacher),
        plan.script("train_distillation.py", *of_students, "--temperatures", *plan.temperatures),
    ]


def test_steps(plan: Plan, schedule: str) -> list[Step]:
    """Walk down every scan of the test split with each network, and score what it finds."""
    scans = folders_of_test_split(plan.data_dir)
    steps = []
    for name, directory in plan.networks(schedule).items():
        networks = ("--segmentation", directory, "--heatmap", plan.models / "heatmap")
        predictions = plan.folder / "predictions" / schedule / name
        scored = ("--data-dir", plan.data_dir, "--split", "test", "--predictions", predictions)
        steps += [
            script("infer.py", *scans, *networks, "--output", predictions, "--device", plan.device),
            script("evaluate.py", *scored, "--output", plan.folder / "evaluation" / schedule / name),
        ]
    return steps


def all_steps(plan: Plan) -> list[Step]:
    """Give the steps of the experiment in their order."""
    return [
        *data_steps(plan),
        *timing_steps(plan),
        plan.script("train_heatmap.py"),
        *(step for schedule in plan.schedules for step in training_steps(plan, schedule)),
        *(step for schedule in plan.schedules for step in test_steps(plan, schedule)),
        script("experiments/paper_table.py", plan.folder, "--schedules", *plan.schedules),
    ]


def main(plan: Plan, *, dry_run: bool = False) -> int:
    """Run the experiment and give the exit status: 1 after a line if the data set is not whole."""

    def run() -> None:
        if not plan.spines and not dry_run:
            check_data(plan.data_dir)
        run_steps(all_steps(plan), dry_run=dry_run, progress=plan.folder / "progress.json")

    return exit_status_of(run)


def plan_from_command_line(arguments: Sequence[str] | None = None) -> tuple[Plan, bool]:
    """Read the command line: the plan, and whether to print its steps only."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="the data set (default: data; --quick makes its own)")
    parser.add_argument("--folder", type=Path, default=Path("paper"), help="folder that receives everything")
    parser.add_argument("--quick", action="store_true", help="small networks on generated spines")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=Plan.schedules)
    parser.add_argument("--temperatures", nargs="+", type=float, default=Plan.temperatures)
    parser.add_argument("--device", choices=("auto", "gpu", "cpu"), help="default: auto; with --quick cpu")
    parser.add_argument("--dry-run", action="store_true", help="print the steps, do nothing")
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="the last: further options of all trainings"
    )
    chosen = parser.parse_args(arguments)
    quick = {"spines": QUICK_SPINES, "more": QUICK, "timed_steps": 10}
    plan = Plan(
        chosen.data_dir or (chosen.folder / "data" if chosen.quick else Path("data")),
        chosen.folder,
        tuple(dict.fromkeys(chosen.schedules)),
        tuple(dict.fromkeys(chosen.temperatures)),
        options=tuple(shlex.split(" ".join(chosen.options))),
        device=chosen.device or ("cpu" if chosen.quick else "auto"),
        **(quick if chosen.quick else {}),
    )
    return plan, chosen.dry_run


if __name__ == "__main__":
    wanted, only_print = plan_from_command_line()
    sys.exit(ended_in_a_line(lambda: main(wanted, dry_run=only_print)))
