"""The steps of the starter recipe: which cases enter, what a fold leaves out, the trainings."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.starter import Recipe, all_steps, main, recipe_from_command_line
from experiments.steps import PROJECT
from utils.command_line import settings_from_command_line
from utils.settings import HeatmapTrainingSettings, LabellingTrainingSettings, SegmentationTrainingSettings

TRAININGS = {
    "train_heatmap.py": HeatmapTrainingSettings,
    "train_segmentation.py": SegmentationTrainingSettings,
    "train_labelling.py": LabellingTrainingSettings,
}
#: What `make -n starter` listed when the shipped networks were trained: script, preset, options.
TRAINED = [
    ("train_heatmap.py", "small", "--epochs 12 --examples-per-epoch 60"),
    ("train_segmentation.py", "small", "--epochs 40 --examples-per-epoch 160"),
    ("train_labelling.py", "small", ""),
    ("train_heatmap.py", "starter", ""),
    (
        "train_segmentation.py",
        "starter",
        "--epochs 60 --mixture 0.45 0 0.33 0.22 --learning-rate 2e-3 --final-learning-rate 1e-4 --seed 1",
    ),
    (
        "train_segmentation.py",
        "starter",
        "--epochs 28 --mixture 0.35 0 0.35 0.3 --learning-rate 1e-3 --final-learning-rate 1e-4 --seed 2 "
        "--augmentation.rotation-degrees 30",
    ),
    ("train_segmentation.py", "starter", ""),
]
#: Below the folder of the recipe, "s".
MODELS = Path("s", "work", "models")


@pytest.fixture
def folder(tmp_path):
    for name in ("sub-verse014", "sub-gl003_dir-ax", "chest", "abdomen"):
        for end in ("seg-vert_msk", "ct"):
            path = tmp_path / "data" / name / f"{name}_{end}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "data" / "abdomen" / "abdomen_ct.nii.gz").unlink()
    return tmp_path


def lines_of(folder: Path, **changes) -> list[str]:
    recipe = Recipe(data=folder / "data", folder=Path("s"), **changes)
    return [str(step).removeprefix("python ") for step in all_steps(recipe)]


def trainings_of(lines: list[str]) -> list[list[str]]:
    return [shlex.split(line) for line in lines if line.startswith("train_")]


def value_of(words: list[str], option: str) -> list[str]:
    """What follows an option, up to the next one."""
    if option not in words:
        return []
    after = words[words.index(option) + 1 :]
    ends = [place for place, word in enumerate(after) if word.startswith("--")]
    return after[: ends[0] if ends else None]


# The trainings


def test_the_trainings_are_those_of_the_shipped_networks(folder):
    found = []
    for words in trainings_of(lines_of(folder)):
        places = ("--work-dir", "--name", "--preset", "--exclude", "--start-from")
        placed = sum((1 + len(value_of(words, place)) for place in places if place in words), 1)
        found.append((words[0], value_of(words, "--preset")[0], shlex.join(words[placed:])))
    assert found == TRAINED


def test_each_training_has_its_cases_and_begins_with_its_network(folder):
    found = [
        tuple(value_of(words, option) for option in ("--name", "--exclude", "--start-from"))
        for words in trainings_of(lines_of(folder))
    ]
    models, variants, real, mask = MODELS, ["sub-half*", "sub-rare*"], "sub-real-*", "sub-mask-*"
    assert found == [
        (["heatmap-phantoms"], [*variants, real, mask], []),
        (["segmentation-phantoms"], [*variants, real, mask], []),
        (["labelling"], [real, mask], []),
        (["heatmap"], variants, [str(models / "heatmap-phantoms")]),
        (["segmentation-drawn"], [real], [str(models / "segmentation-phantoms")]),
        (["segmentation-turned"], [real], [str(models / "segmentation-drawn")]),
        (["segmentation-real"], [], [str(models / "segmentation-drawn")]),
    ]


def test_the_command_lines_are_those_of_the_scripts(folder):
    settings = [
        settings_from_command_line(TRAININGS[words[0]], words[1:])
        for words in trainings_of(lines_of(folder, options=("--precision", "bfloat16")))
    ]
    assert [chosen.seed for chosen in settings] == [0, 0, 0, 0, 1, 2, 0]
    assert [chosen.epochs for chosen in settings] == [12, 40, 40, 40, 60, 28, 12]
    assert [chosen.precision for chosen in settings] == ["auto"] * 3 + ["bfloat16"] * 4
    assert len({chosen.name for chosen in settings}) == 7
    assert {chosen.spacing_mm for chosen in settings} == {2.0}


# The data


def test_the_spines_are_those_of_the_shipped_networks(folder):
    lines = [line for line in lines_of(folder) if "--source phantom" in line]
    start = "get_verse_data.py --source phantom --data-dir s/data"
    assert lines == [
        f"{start} --phantoms 60 5 20 --seed 0",
        f"{start} --variants half --phantoms 48 0 0 --seed 3001",
        f"{start} --variants rare --phantoms 60 0 0 --seed 3003",
        f"{start} --variants half --phantoms 0 15 0 --seed 5005",
    ]


def test_every_mask_enters_but_those_whose_licence_forbids_it(folder):
    lines = lines_of(folder)
    pairs = [shlex.split(line) for line in lines if "--source pairs" in line]
    entered = [(value_of(words, "--key")[0], value_of(words, "--ct")) for words in pairs]
    assert entered == [
        ("sub-mask-abdomen", []),
        ("sub-real-chest", [str(folder / "data/chest/chest_ct.nii.gz")]),
        ("sub-real-verse014", [str(folder / "data/sub-verse014/sub-verse014_ct.nii.gz")]),
    ]
    assert all(value_of(words, "--data-dir") == ["s/data"] for words in pairs)
    assert not any("gl003" in line for line in lines)


def test_the_steps_stand_in_their_order(folder):
    scripts = [line.split()[0] for line in lines_of(folder)]
    assert scripts == [
        *["get_verse_data.py"] * 7,
        *("pre_processing_heatmap.py", "pre_processing_segmentation.py"),
        *(script for script, _, _ in TRAINED),
        *("copy", "copy", "experiments/average.py"),
    ]


def test_what_is_shipped(folder):
    assert lines_of(folder)[-3:] == [
        f"copy the network of {MODELS / 'heatmap'} to s/shipped/heatmap",
        f"copy the network of {MODELS / 'labelling'} to s/shipped/labelling",
        f"experiments/average.py {MODELS / 'segmentation-turned'} {MODELS / 'segmentation-real'} "
        "--shares 3 1 --output s/shipped/segmentation",
    ]


@pytest.mark.parametrize("kind, patterns", [("ct", ["sub-mask-*"]), ("none", ["sub-real-*"])])
def test_patterns_are_given_for_cases_that_are_there(folder, kind, patterns):
    for path in folder.rglob("*_ct.nii.gz"):
        if kind == "ct":
            path.unlink()
    if kind == "none":
        (folder / "data/abdomen/abdomen_seg-vert_msk.nii.gz").unlink()
    labelling = trainings_of(lines_of(folder))[2]
    assert value_of(labelling, "--exclude") == patterns


def test_no_mask_at_all_is_one_line(tmp_path, capsys):
    assert main(Recipe(data=tmp_path), dry_run=True) == 1
    said = capsys.readouterr()
    assert said.err == f"error: {tmp_path}: expected masks (*_seg-vert_msk.nii.gz), found none.\n"
    assert said.out == ""


# Folds


def test_a_fold_leaves_its_case_out(folder):
    lines = lines_of(folder, without=("chest", "abdomen"))
    excluded = {value_of(words, "--name")[0]: value_of(words, "--exclude") for words in trainings_of(lines)}
    fold = "-without-abdomen-chest"
    both = ["sub-mask-abdomen", "sub-real-chest"]
    assert excluded[f"heatmap{fold}"] == ["sub-half*", "sub-rare*", *both]
    assert excluded[f"segmentation-real{fold}"] == both
    assert excluded["segmentation-drawn-without-abdomen"] == ["sub-real-*", "sub-mask-abdomen"]
    assert lines[-3].endswith(f"{MODELS}/heatmap{fold} to s/shipped{fold}/heatmap")


@pytest.mark.parametrize(
    "without, name",
    [(("chest",), "segmentation-drawn"), (("chest", "abdomen"), "segmentation-drawn-without-abdomen")],
)
def test_folds_share_what_is_drawn_unless_they_leave_out_a_mask_alone(folder, without, name):
    whole, fold = (
        {value_of(words, "--name")[0]: words for words in trainings_of(lines_of(folder, without=names))}
        for names in ((), without)
    )
    assert name in fold and fold["heatmap-phantoms"] == whole["heatmap-phantoms"]
    assert all(fold[shared] == whole[shared] for shared in fold.keys() & whole.keys())
    assert value_of(fold[name.replace("drawn", "turned")], "--start-from") == [f"{MODELS}/{name}"]


def test_a_case_to_leave_out_must_be_there(folder, capsys):
    assert main(Recipe(data=folder / "data", without=("chset",)), dry_run=True) == 1
    said = capsys.readouterr()
    assert "found no chset" in said.err and "(abdomen, chest, sub-verse014)" in said.err
    assert said.err.count("\n") == 1 and "get_verse_data.py" not in said.out


# The command line


def test_options_are_the_last_and_may_be_one_word():
    for words in (["--precision", "bfloat16"], ["--precision bfloat16"]):
        recipe, dry_run = recipe_from_command_line(
            ["--data", "d", "--without", "a", "b", "--options", *words]
        )
        assert recipe == Recipe(Path("d"), without=("a", "b"), options=("--precision", "bfloat16"))
        assert not dry_run


def test_a_dry_run_prints_the_steps_and_does_nothing(folder, tmp_path):
    command = [sys.executable, "experiments/starter.py", "--data", str(folder / "data"), "--dry-run"]
    ran = subprocess.run(
        [*command, "--folder", str(tmp_path / "made")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 19 and all(line.startswith("+ ") for line in lines)
    assert not (tmp_path / "made").exists()
