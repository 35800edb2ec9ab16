"""Folds leave every file of a patient out; what is done stays; temperatures are fitted on the others."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.real import leave_one_out
from experiments.real.facts import read_facts
from experiments.real.folds import (
    FOR_SEGMENTATION,
    ORGANS,
    Fold,
    fine_tuning,
    fold_without,
    folds_of,
    left_out_cases,
    patterns_there,
)
from experiments.real.leave_one_out import (
    EVERYBODY,
    LeaveOneOut,
    fitted_temperatures,
    held_out_votes,
    plan_from_command_line,
    temperature_of,
    train_fold,
    write_temperature,
)
from tests.experiments.real.known_scans import facts, place, votes_for
from utils.command_line import settings_from_command_line
from utils.localisation.identify import names_of
from utils.prediction.networks import STARTER_DIR
from utils.settings import HeatmapTrainingSettings

FACTS = read_facts()


@pytest.fixture
def plan(tmp_path):
    """Two chests and a thigh, prepared with a drawn scan; trainings are noted down and leave a network."""
    prepared = tmp_path / "work" / "heatmap" / "3mm" / "training"
    prepared.mkdir(parents=True)
    for key in ("real-chest_ct", "real-lidc0293", "drawn-0-0", "drawn-trunk-0-0", "sub-real-chest"):
        (prepared / f"{key}_spine.json").touch()
    write_network(tmp_path / "work" / "models" / "base")
    for name in ("chest_ct", "lidc0293", "sts001"):
        path = tmp_path / "shared" / FACTS[name].ct
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write_network(tmp_path / "levels")
    places = {"work_dir": tmp_path / "work", "output": tmp_path / "out", "labelling": tmp_path / "levels"}
    networks = {"base": "base", "final": "heatmap", "segmentation": tmp_path / "segmentation"}
    return LeaveOneOut(shared=tmp_path / "shared", **places, **networks)


def write_network(folder):
    folder.mkdir(parents=True)
    (folder / "best.weights.h5").write_text(folder.name)
    (folder / "settings.json").write_text('{"outside": "air"}')


@pytest.fixture
def trainings(monkeypatch):
    """The command lines of the trainings that ran."""
    ran = []

    def run(steps, *, dry_run):
        for step in steps:
            if hasattr(step, "arguments"):
                ran.append(step.arguments)
                words = dict(zip(step.arguments, step.arguments[1:]))
                write_network(leave_one_out.Path(words["--work-dir"]) / "models" / words["--name"])
            else:
                step.run()

    monkeypatch.setattr(leave_one_out, "run_steps", run)
    return ran


# What is left out


def test_a_fold_excludes_every_file_of_the_patient():
    (chest,) = [fold for fold in folds_of(FACTS) if "chest_ct" in fold.scans]
    assert left_out_cases(chest, FACTS) == ["real-chest_ct", "drawn-trunk-*"]
    for fold in folds_of(FACTS):
        cases = left_out_cases(fold, FACTS)
        assert cases[: len(fold.scans)] == [f"real-{name}" for name in fold.scans]
        assert ("drawn-trunk-*" in cases) == (fold == chest)


def test_scans_of_one_patient_are_left_out_together():
    again = dataclasses.replace(FACTS["lidc0293"], name="again", patient=FACTS["chest_ct"].patient)
    known = {**FACTS, "again": again}
    assert [fold.scans for fold in folds_of(known) if "again" in fold.scans] == [("chest_ct", "again")]
    assert fold_without(["again"], known) == Fold(("chest_ct", "again"))
    # One with no organs of its own: those of its patient count.
    assert left_out_cases(fold_without(["again"], known), known) == [
        *("real-chest_ct", "real-again", "drawn-trunk-*")
    ]


def test_there_is_a_fold_for_every_patient_with_a_spine():
    folds = folds_of(FACTS)
    assert [name for fold in folds for name in fold.scans] == [n for n in FACTS if n != "sts001"]
    assert folds[0].suffix == "-without-chest_ct" and EVERYBODY.suffix == ""
    assert {path.parts[0] for path in ORGANS} == {"real-ct", "data"}


def test_patterns_that_match_nothing_are_not_given():
    keys = ["sub-real-chest", "real-chest_ct", "drawn-0-0"]
    assert patterns_there([*FOR_SEGMENTATION, "real-chest_ct", "drawn-trunk-*"], keys) == [
        *("sub-real-*", "real-chest_ct")
    ]


def test_the_fine_tuning_is_short_gentle_and_half_real(tmp_path):
    step = fine_tuning(tmp_path, base=tmp_path / "b", name="n", exclude=["a-*", "b"], steps=200)
    settings = settings_from_command_line(HeatmapTrainingSettings, step.arguments[1:])
    assert settings.epochs * settings.examples_per_epoch == 200 and settings.batch_size == 1
    assert settings.exclude == ("a-*", "b") and settings.start_from == tmp_path / "b"
    assert settings.origins == (0, 0.5, 0.5) and settings.learning_rate < 1e-3


# Trainings


def test_a_fold_is_trained_once(plan, trainings):
    for _ in range(2):
        train_fold(plan, plan.folds[0])
    (words,) = trainings
    start = words.index("--exclude") + 1
    assert words[start : start + 3] == ("sub-real-*", "real-chest_ct", "drawn-trunk-*")
    network = plan.network(plan.folds[0])
    assert network.name == "heatmap-without-chest_ct"
    assert (network / "best.weights.h5").read_text() == "heatmap-without-chest_ct"
    train_fold(plan, EVERYBODY)
    assert len(trainings) == 2 and "real-chest_ct" not in trainings[1]


@pytest.mark.parametrize(
    "change, named",
    [({"steps": 80}, "steps"), ({"options": ("--seed", "3")}, "options"), ({}, "base_sha256")],
)
def test_a_fold_made_in_another_way_is_refused(plan, trainings, change, named):
    train_fold(plan, plan.folds[0])
    if not change:
        (plan.models / "base" / "best.weights.h5").write_text("trained further")
    with pytest.raises(ValueError, match=rf"heatmap-without-chest_ct: .* other values of {named}; delete it"):
        train_fold(dataclasses.replace(plan, **change), plan.folds[0])


# Temperatures


def test_a_temperature_is_written_and_all_else_stays(tmp_path):
    write_network(tmp_path / "model")
    for temperature in (2.5, 1.25):
        write_temperature(tmp_path / "model", temperature)
    stored = json.loads((tmp_path / "model" / "settings.json").read_text())
    assert stored == {"outside": "air", "temperature": 1.25}
    with pytest.raises(ValueError, match=r"settings\.json"):
        write_temperature(tmp_path / "none", 1.0)


def columns(levels, certainty, count=4):
    """Scans of three vertebrae and what a network says of them, the levels given or those one higher."""
    known = {f"s{n}": facts(["T4", "T5", "T6"], name=f"s{n}", anchors=()) for n in range(count)}
    points = [place(n) for n in range(3)]
    return known, {name: votes_for(levels, points, certainty=certainty) for name in known}


def test_votes_that_are_sure_and_wrong_are_trusted_less():
    right, wrong = (columns(levels, 0.99) for levels in (["T4", "T5", "T6"], ["T5", "T6", "T7"]))
    assert temperature_of(right[1], right[0]) < 1 < temperature_of(wrong[1], wrong[0])


def test_each_fold_has_the_temperature_of_the_others(plan, monkeypatch):
    monkeypatch.setattr(leave_one_out, "temperature_of", lambda votes, known: ",".join(votes))
    votes = {Fold((name,)): {name: None} for name in ("a", "b", "c")} | {EVERYBODY: {"thigh": None}}
    assert {fold.suffix: found for fold, found in fitted_temperatures(plan, votes).items()} == {
        "-without-a": "b,c",
        "-without-b": "a,c",
        "-without-c": "a,b",
        "": "a,b,c",
    }


def test_scans_without_a_find_say_nothing_of_the_temperature():
    known = {"s": facts(["T4"], name="s")}
    assert temperature_of({"s": votes_for([], [])}, known) == 1.0


# The whole


def test_every_scan_is_read_by_the_network_that_left_it_out(plan, trainings, monkeypatch, capsys):
    looked, predicted = [], []

    def look(ct, network):
        looked.append((network.name, ct.name))
        name = next(n for n, scan in FACTS.items() if scan.ct.name == ct.name)
        points = FACTS[name].points_mm
        return votes_for(names_of([*points]), [*points.values()], temperature=7.0)

    def predict(plan, fold, names):
        stored = json.loads((plan.labelling_of(fold) / "settings.json").read_text())
        assert (plan.labelling_of(fold) / "best.weights.h5").read_text() == "levels"
        predicted.append((plan.network(fold).name, list(names), stored["temperature"]))

    monkeypatch.setattr(leave_one_out, "load_localiser", lambda network, labelling: network)
    monkeypatch.setattr(leave_one_out, "look_for_vertebrae", look)
    monkeypatch.setattr(leave_one_out, "predict", predict)
    nothing = leave_one_out.Finding((), np.zeros((0, 3)))
    monkeypatch.setattr(leave_one_out, "read_prediction", lambda facts, folder: nothing)
    for _ in range(2):
        tables = leave_one_out.run(plan)
    assert len(trainings) == 3
    # What was said is kept: no network looks twice.
    assert looked == [
        ("heatmap-without-chest_ct", "chest_ct.nii.gz"),
        ("heatmap-without-lidc0293", "lidc0293_ct.nii.gz"),
        ("heatmap", "sts001_ct.nii.gz"),
    ]
    assert [(network, names) for network, names, _ in predicted[:3]] == [
        ("heatmap-without-chest_ct", ["chest_ct"]),
        ("heatmap-without-lidc0293", ["lidc0293"]),
        ("heatmap", ["sts001"]),
    ]
    shipped = json.loads((plan.labelling / "settings.json").read_text())["temperature"]
    assert shipped == predicted[2][2] and f"nobody (shipped) | {shipped:.3f}" in tables
    peaks, segmented = tables.split("## predictions left out")
    assert "31 of 31" in peaks and "0 of 0" in segmented
    votes = held_out_votes(plan, plan.folds[0], ["chest_ct"])["chest_ct"]
    assert votes.temperature == 1.0 and len(votes.centres_mm) == 16
    # Another labelling network is asked anew.
    (plan.labelling / "best.weights.h5").write_text("trained further")
    held_out_votes(plan, plan.folds[0], ["chest_ct"])
    assert len(looked) == 4


@pytest.mark.parametrize("case", ["real-chest_ct", "drawn-trunk-0-0", "sub-real-chest"])
def test_a_labelling_network_that_saw_a_real_scan_is_refused(plan, case):
    (plan.labelling / "settings.json").write_text(json.dumps({"training_cases": ["drawn-0-0", case]}))
    with pytest.raises(ValueError, match=f"levels: expected a network that saw no real scan, found {case}"):
        leave_one_out.run(plan)


def test_one_patient_is_not_enough(plan):
    (plan.shared / FACTS["chest_ct"].ct).unlink()
    with pytest.raises(ValueError, match="expected scans of two patients or more, found 1"):
        leave_one_out.run(plan)


def test_the_command_line():
    plan, pictures = plan_from_command_line(["--work-dir", "w", "--options", "--precision bfloat16"])
    assert plan.output.as_posix() == "w/leave-one-out" and plan.labelling == STARTER_DIR / "labelling"
    assert plan.options == ("--precision", "bfloat16") and plan.steps == 240 and pictures is None
