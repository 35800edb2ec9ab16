"""The steps of the published experiment, the hours to come, and its table."""

import json
import shlex
import subprocess
import sys

import pandas as pd
import pytest

from experiments import paper_hours, paper_table
from experiments.paper import Plan, all_steps, check_data, folders_of_test_split, main, plan_from_command_line
from experiments.steps import PROJECT
from utils.command_line import settings_from_command_line
from utils.files import write_text_whole
from utils.settings import (
    DistillationSettings,
    HeatmapPreparationSettings,
    HeatmapTrainingSettings,
    InferenceSettings,
    SegmentationPreparationSettings,
    SegmentationTrainingSettings,
)

STAGES = {
    "pre_processing_heatmap.py": HeatmapPreparationSettings,
    "pre_processing_segmentation.py": SegmentationPreparationSettings,
    "train_heatmap.py": HeatmapTrainingSettings,
    "train_segmentation.py": SegmentationTrainingSettings,
    "train_distillation.py": DistillationSettings,
    "infer.py": InferenceSettings,
}


def commands_of(plan: Plan) -> list[list[str]]:
    return [shlex.split(str(step).removeprefix("python ")) for step in all_steps(plan)]


def settings_of(plan: Plan, script: str) -> list:
    return [settings_from_command_line(STAGES[c[0]], c[1:]) for c in commands_of(plan) if c[0] == script]


# The steps


def test_the_stages_stand_in_their_order(tmp_path):
    names = [command[0] for command in commands_of(Plan(tmp_path / "data", tmp_path))]
    assert names == [
        *("pre_processing_heatmap.py", "pre_processing_segmentation.py"),
        *("train_heatmap.py", "train_segmentation.py", "train_distillation.py", "experiments/paper_hours.py"),
        *("train_heatmap.py", "train_segmentation.py", "train_distillation.py"),
        *["infer.py", "evaluate.py"] * 4,
        "experiments/paper_table.py",
    ]


def test_the_trainings_are_those_of_the_paper(tmp_path):
    plan = Plan(tmp_path / "data", tmp_path, schedules=("ramp", "constant"))
    timing, *teachers = settings_of(plan, "train_segmentation.py")
    assert (timing.epochs, timing.examples_per_epoch, timing.name) == (2, 50, "timing-teacher")
    assert [(each.name, each.fp_weight_schedule) for each in teachers] == [
        ("teacher-ramp", "ramp"),
        ("teacher-constant", "constant"),
    ]
    for each in teachers:
        assert (each.preset, each.epochs, each.examples_per_epoch, each.spacing_mm) == ("paper", 45, 0, 1.0)
        assert (each.patch_voxels, each.filters, each.precision) == (128, (16, 32, 64, 128), "float32")
    (heatmap,) = settings_of(plan, "train_heatmap.py")[1:]
    assert (heatmap.target, heatmap.epochs, heatmap.name) == ("spine", 300, "heatmap")
    models = plan.folder / "work" / "models"
    students = settings_of(plan, "train_distillation.py")[1:]
    assert [(each.name, each.segmentation) for each in students] == [
        (f"student-{schedule}", models / f"teacher-{schedule}") for schedule in plan.schedules
    ]


def test_every_network_walks_down_the_test_split_alone(tmp_path):
    plan = Plan(tmp_path / "data", tmp_path, temperatures=(1.0, 4.0))
    runs = plan.models / "student-ramp_runs"
    walks = settings_of(plan, "infer.py")
    students = [runs / name for name in ("scratch", "soft-t1", "soft-t4", "logits")]
    assert [walk.segmentation for walk in walks] == [plan.models / "teacher-ramp", *students]
    assert {walk.heatmap for walk in walks} == {plan.models / "heatmap"}
    assert all("test" in path.name for walk in walks for path in walk.inputs)
    assert len({walk.output for walk in walks}) == len(walks)
    for command in commands_of(plan):
        if command[0] == "evaluate.py":
            assert command[command.index("--split") + 1] == "test"


def test_options_reach_all_trainings_and_no_other_script(tmp_path):
    plan, _ = plan_from_command_line(["--folder", str(tmp_path), "--options", "--precision", "bfloat16"])
    assert {each.precision for each in settings_of(plan, "train_segmentation.py")} == {"bfloat16"}
    for command in commands_of(plan):
        assert ("--precision" in command) == command[0].startswith("train_")


def test_a_trial_is_of_the_same_stages_with_smaller_networks(tmp_path):
    plan, _ = plan_from_command_line(["--quick", "--folder", str(tmp_path)])
    first, *others = commands_of(plan)
    assert first[0] == "get_verse_data.py"
    whole = commands_of(Plan(tmp_path / "data", tmp_path))
    assert [command[0] for command in others] == [command[0] for command in whole]
    (teacher,) = settings_of(plan, "train_segmentation.py")[1:]
    assert (teacher.filters, teacher.patch_kinds, teacher.outside) == ((8, 16, 32), "paper", "air")


def test_the_test_scans_are_found_where_they_lie(tmp_path):
    for split in ("01training", "03test"):
        ct = tmp_path / f"VerSe20/dataset-{split}/rawdata/sub-verse500/sub-verse500_ct.nii.gz"
        ct.parent.mkdir(parents=True)
        ct.touch()
    assert folders_of_test_split(tmp_path) == [tmp_path / "VerSe20/dataset-03test"]


def test_a_data_set_without_test_cases_ends_it_before_the_first_step(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    assert main(Plan(tmp_path / "data", tmp_path / "paper")) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "+ python" not in said.out
    with pytest.raises(ValueError, match=str(tmp_path / "data")):
        check_data(tmp_path / "data")


def test_a_dry_run_prints_the_steps_and_does_nothing(tmp_path):
    command = [
        sys.executable,
        "experiments/paper.py",
        "--quick",
        "--folder",
        str(tmp_path / "made"),
        "--dry-run",
    ]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert all(line.startswith("+ python ") for line in ran.stdout.splitlines())
    assert not (tmp_path / "made").exists()


# The hours


def test_the_hours_by_hand(tmp_path, monkeypatch):
    models = tmp_path / "models"
    rates = {"timing-heatmap": 20, "timing-teacher": 5, "timing-student_runs/scratch": 10}
    for name, rate in {**rates, "timing-student_runs/logits": 4}.items():
        # The first epoch compiles.
        write_text_whole(models / name / "history.csv", f"epoch,examples_per_second\n1,.1\n2,{rate}\n")
    examples = {"heatmap": 120, "segmentation": 2000}
    monkeypatch.setattr(paper_hours, "examples_an_epoch", lambda *_: examples)
    heatmap = HeatmapTrainingSettings(work_dir=tmp_path, epochs=300)
    segmentation = SegmentationTrainingSettings(work_dir=tmp_path, epochs=45)
    table = paper_hours.hours_table(heatmap, segmentation, schedules=2, students=3)
    # 300 x 120 / 20 s; 2 teachers of 45 x 2000 / 5 s, 2 students of / 10 s, 6 with a teacher of / 4 s
    assert table["hours"].tolist() == pytest.approx([0.5, 10.0, 5.0, 37.5])
    assert table["runs"].tolist() == [1, 2, 2, 6]


def test_a_timing_that_was_not_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path / "history.csv")):
        paper_hours.examples_per_second(tmp_path)


# The table


def rows(case: str, numbers: dict[str, tuple[int, int, float]]) -> list[dict]:
    """Reference vertebrae by name: code, number of the predicted one, Dice; and an extra one."""
    shared = {"subject": case, "case": case, "predicted_volume_mm3": 1.0}
    found = [
        {
            **{**shared, "name": name, "kind": "reference", "label": code, "predicted_label": number},
            **{"dice": dice, "found": dice >= 0.5, "dice_overlap": dice, "found_overlap": dice >= 0.5},
            **{"hausdorff_95_mm": 10 * (1 - dice), "identified": None, "complete": True},
            **{"mean_surface_distance_mm": 1.0, "hausdorff_mm": 9.0, "localisation_error_mm": None},
        }
        for name, (code, number, dice) in numbers.items()
    ]
    return [*found, {**found[0], "kind": "extra", "name": None, "label": 9, "found": False}]


#: T12, T13, L1 counted 3, 4, 5; L2 missed, L3 counted 6 where 7 would be right.
ONE = {"T12": (19, 3, 0.9), "T13": (28, 4, 0.9), "L1": (20, 5, 0.8), "L2": (21, 0, 0.0), "L3": (22, 6, 0.7)}


def test_the_count_is_judged_from_the_level_that_fits_most_of_the_scan():
    table = pd.DataFrame([*rows("a", ONE), *rows("b", {"L4": (23, 1, 0.9), "L5": (24, 2, 0.3)})])
    assert paper_table.rightly_counted(table).tolist() == [1, 1, 1, 0, 0, 1, 0]


def test_a_scan_in_which_nothing_is_found_is_counted_wrong():
    table = pd.DataFrame(rows("a", {"L4": (23, 0, 0.0), "L5": (24, 0, 0.0)}))
    assert paper_table.rightly_counted(table).tolist() == [0, 0]


@pytest.fixture
def experiment(tmp_path):
    """Two networks on two patients: the student from scratch, and one that is .1 better on the first."""
    better = {name: (code, number, dice + 0.1 * (dice > 0)) for name, (code, number, dice) in ONE.items()}
    other = {"L4": (23, 1, 0.8), "L5": (24, 2, 0.6)}
    for network, first in {"teacher": better, "scratch": ONE}.items():
        table = pd.DataFrame([*rows("a", first), *rows("b", other)])
        folder = tmp_path / "evaluation" / "ramp" / network
        write_text_whole(folder / "vertebrae.csv", table.to_csv(index=False))
        for case, seconds in {"a": 3.0, "b": 5.0}.items():
            quality = {"case": case, "kind": "count", "seconds": seconds}
            place = tmp_path / "predictions" / "ramp" / network / "derivatives" / case
            write_text_whole(place / f"{case}_quality.json", json.dumps(quality))
    students = pd.DataFrame(
        {
            "network": ["teacher", "student"],
            "directory": ["teacher-ramp", "scratch"],
            "parameters": [800, 200],
            "megabytes": [0.8, 0.2],
            "seconds_per_patch": [0.04, 0.01],
        }
    )
    known = tmp_path / "work" / "models" / "student-ramp" / "students.csv"
    write_text_whole(known, students.to_csv(index=False))
    return tmp_path


def test_the_table_by_hand(experiment):
    assert paper_table.main([str(experiment)]) == 0
    table = pd.read_csv(experiment / "paper.csv").set_index("network")
    assert table.loc["student", "mean_dice_overlap"] == pytest.approx(
        (0.9 + 0.9 + 0.8 + 0 + 0.7 + 0.8 + 0.6) / 7
    )
    assert table.loc["student", "identified"] == pytest.approx(5 / 7)
    assert table.loc["student", "seconds_a_scan"] == 4.0
    assert table["parameters"].to_dict() == {"teacher": 800, "student": 200}
    # Patients are drawn whole: means of (a, a) and (b, b) are the ends.
    low, high = table.loc["student", ["mean_dice_overlap_low", "mean_dice_overlap_high"]]
    assert (low, high) == (pytest.approx(3.3 / 5), pytest.approx(0.7))
    (row,) = pd.read_csv(experiment / "differences.csv").to_dict("records")
    assert row["network"] == "teacher" and row["mean_dice_overlap"] == pytest.approx(0.4 / 7)
    assert (row["mean_dice_overlap_low"], row["mean_dice_overlap_high"]) == (0, pytest.approx(0.4 / 5))
    assert row["mean_hausdorff_95_mm"] == pytest.approx(-4 / 7)
    page = (experiment / "paper.md").read_text()
    assert "| teacher" in page and "0.671 (0.660 to 0.700)" in page


def test_an_evaluation_that_is_not_there_is_named(experiment, capsys):
    path = experiment / "evaluation" / "ramp" / "scratch" / "vertebrae.csv"
    path.unlink()
    assert paper_table.main([str(experiment)]) == 1
    assert str(path) in capsys.readouterr().err
