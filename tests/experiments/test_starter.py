"""The steps of the starter recipe: which cases enter, what a fold leaves out, the trainings."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.starter import Recipe, all_steps, main, recipe_from_command_line
from experiments.steps import PROJECT
from utils.command_line import settings_from_command_line
from utils.settings import (
    HeatmapPreparationSettings,
    HeatmapTrainingSettings,
    LabellingTrainingSettings,
    SegmentationTrainingSettings,
)

SCRIPTS = {
    "train_heatmap.py": HeatmapTrainingSettings,
    "train_labelling.py": LabellingTrainingSettings,
    "train_segmentation.py": SegmentationTrainingSettings,
    "pre_processing_heatmap.py": HeatmapPreparationSettings,
}
#: The trainings: script, preset, options.
TRAINED = [
    ("train_heatmap.py", "starter", "--origins 0.2 0.8 0 --precision float32"),
    ("train_labelling.py", "starter", "--origins 0.2 0.8 0"),
    ("train_segmentation.py", "small", "--epochs 40 --examples-per-epoch 160"),
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
MODELS = Path("s", "work", "models")
RARE, REAL, MASK = ["sub-half*", "sub-rare*"], "sub-real-*", "sub-mask-*"


@pytest.fixture
def folder(tmp_path):
    """A folder with masks and CTs."""
    for name in ("sub-verse014", "sub-gl003_dir-ax", "chest", "abdomen"):
        for end in ("seg-vert_msk", "ct"):
            touch(tmp_path / "data" / name / f"{name}_{end}.nii.gz")
    (tmp_path / "data" / "abdomen" / "abdomen_ct.nii.gz").unlink()
    return tmp_path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def lines_of(folder: Path, **changes) -> list[str]:
    places = {"data": folder / "data", "folder": Path("s")}
    recipe = Recipe(**{**places, **changes})
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


def excluded_of(lines: list[str]) -> dict[str, list[str]]:
    return {value_of(words, "--name")[0]: value_of(words, "--exclude") for words in trainings_of(lines)}


# The trainings


def test_the_trainings_have_their_options(folder):
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
    assert found == [
        (["heatmap"], [*RARE, REAL], []),
        (["labelling"], [*RARE, REAL], []),
        (["segmentation-phantoms"], [*RARE, REAL, MASK], []),
        (["segmentation-drawn"], [REAL], [str(MODELS / "segmentation-phantoms")]),
        (["segmentation-turned"], [REAL], [str(MODELS / "segmentation-drawn")]),
        (["segmentation-real"], [], [str(MODELS / "segmentation-drawn")]),
    ]


def test_the_command_lines_are_those_of_the_scripts(folder):
    lines = lines_of(folder, options=("--precision", "bfloat16"))
    settings = [settings_from_command_line(SCRIPTS[w[0]], w[1:]) for w in trainings_of(lines)]
    assert [chosen.seed for chosen in settings] == [0, 0, 0, 1, 2, 0]
    assert [chosen.epochs for chosen in settings] == [100, 60, 40, 60, 28, 12]
    assert [chosen.precision for chosen in settings] == ["float32", "bfloat16", "auto", *["bfloat16"] * 3]
    assert len({chosen.name for chosen in settings}) == 6
    assert [chosen.spacing_mm for chosen in settings] == [3.0] * 2 + [2.0] * 4
    assert settings[0].target == "centres"


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


def test_scans_are_drawn(folder):
    (line,) = [line for line in lines_of(folder) if line.startswith("pre_processing_heatmap.py")]
    words = shlex.split(line)
    settings = settings_from_command_line(SCRIPTS[words[0]], words[1:])
    assert settings.drawn == (1500, 40) and settings.trunks == 0


def test_the_steps_stand_in_their_order(folder):
    scripts = [line.split()[0] for line in lines_of(folder)]
    assert scripts == [
        *["get_verse_data.py"] * 7,
        *("pre_processing_heatmap.py", "pre_processing_segmentation.py"),
        *("train_heatmap.py", "train_labelling.py", "experiments/fit_temperature.py"),
        *["train_segmentation.py"] * 4,
        *("copy", "copy", "experiments/average.py"),
    ]


def test_what_is_shipped(folder):
    lines = lines_of(folder, options=("--precision", "bfloat16"))
    assert lines[-3:] == [
        f"copy the network of {MODELS}/heatmap to s/shipped/heatmap",
        f"copy the network of {MODELS}/labelling to s/shipped/labelling",
        f"experiments/average.py {MODELS}/segmentation-turned {MODELS}/segmentation-real "
        "--shares 3 1 --output s/shipped/segmentation",
    ]
    held_out = MODELS.parent / "heatmap" / "3mm" / "validation"
    fit = f"experiments/fit_temperature.py {MODELS}/heatmap {MODELS}/labelling {held_out}"
    assert fit in lines


@pytest.mark.parametrize("kind, pattern", [("ct", MASK), ("none", REAL)])
def test_patterns_are_given_for_cases_that_are_there(folder, kind, pattern):
    for path in (folder / "data").rglob("*_ct.nii.gz"):
        if kind == "ct":
            path.unlink()
    if kind == "none":
        (folder / "data/abdomen/abdomen_seg-vert_msk.nii.gz").unlink()
    excluded = excluded_of(lines_of(folder))
    assert excluded["segmentation-phantoms"] == [*RARE, pattern]
    # A mask alone is not prepared for the heatmap network.
    assert excluded["heatmap"] == RARE + [REAL] * (pattern == REAL)


def test_no_mask_at_all_is_one_line(tmp_path, capsys):
    assert main(Recipe(data=tmp_path), dry_run=True) == 1
    said = capsys.readouterr()
    assert said.err == f"error: {tmp_path}: expected masks (*_seg-vert_msk.nii.gz), found none.\n"
    assert said.out == ""


# Folds


def test_a_fold_leaves_its_case_out(folder):
    lines = lines_of(folder, without=("chest", "abdomen"))
    excluded, fold = excluded_of(lines), "-without-abdomen-chest"
    assert excluded[f"segmentation-real{fold}"] == ["sub-mask-abdomen", "sub-real-chest"]
    assert excluded["segmentation-drawn-without-abdomen"] == [REAL, "sub-mask-abdomen"]
    for name, line in zip(("heatmap", "labelling"), lines[-3:]):
        assert line.endswith(
            f"{MODELS}/{name} to s/shipped{fold}/{name}"
        )  # they see no real scan in any fold


@pytest.mark.parametrize(
    "without, name",
    [(("chest",), "segmentation-drawn"), (("chest", "abdomen"), "segmentation-drawn-without-abdomen")],
)
def test_folds_share_what_is_drawn_unless_they_leave_out_a_mask_alone(folder, without, name):
    whole, fold = (
        {value_of(words, "--name")[0]: words for words in trainings_of(lines_of(folder, without=names))}
        for names in ((), without)
    )
    assert name in fold and fold["heatmap"] == whole["heatmap"]
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
        options = {"without": ("a", "b"), "options": ("--precision", "bfloat16")}
        assert recipe == Recipe(Path("d"), **options)
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
