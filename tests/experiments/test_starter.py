"""The steps of the starter recipe: which cases enter, what a fold leaves out, the trainings."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.starter import (
    AGAIN,
    BASE,
    FIRST_CORRECTIONS,
    LABELLING,
    OUTLINED,
    REAL,
    Recipe,
    all_steps,
    left_out_keys,
    main,
    recipe_from_command_line,
)
from experiments.steps import PROJECT
from utils.command_line import settings_from_command_line
from utils.settings import (
    HeatmapPreparationSettings,
    HeatmapTrainingSettings,
    LabellingTrainingSettings,
    SegmentationPreparationSettings,
    SegmentationTrainingSettings,
)

SCRIPTS = {
    "train_heatmap.py": HeatmapTrainingSettings,
    "train_labelling.py": LabellingTrainingSettings,
    "train_segmentation.py": SegmentationTrainingSettings,
    "pre_processing_heatmap.py": HeatmapPreparationSettings,
    "pre_processing_segmentation.py": SegmentationPreparationSettings,
}
#: The trainings: script, options.
TRAINED = [
    ("train_heatmap.py", "--origins 0.2 0.8 0 --precision float32"),
    *(("train_labelling.py", f"--origins 0.2 0.8 0 {options}") for options in LABELLING.values()),
    ("train_segmentation.py", BASE),
    ("train_segmentation.py", OUTLINED),
    ("train_segmentation.py", REAL),
    ("train_segmentation.py", AGAIN),
]
MODELS, OUTLINED_MODELS, REAL_MODELS = (
    Path("s", work, "models") for work in ("work", "work-outlined", "work-real")
)


@pytest.fixture
def folder(tmp_path):
    """A folder with masks and CTs."""
    for name in ("sub-verse014", "sub-verse004", "sub-gl003_dir-ax"):
        for end in ("seg-vert_msk", "ct"):
            touch(tmp_path / "data" / name / f"{name}_{end}.nii.gz")
    for name in ("sub-verse004", "sub-gl003_dir-ax"):
        (tmp_path / "data" / name / f"{name}_ct.nii.gz").unlink()
    return tmp_path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def lines_of(folder: Path, **changes) -> list[str]:
    recipe = Recipe(**{"shared": folder, "folder": Path("s"), **changes})
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


def test_the_trainings_have_their_options(folder):
    found = []
    for words in trainings_of(lines_of(folder)):
        places = ("--work-dir", "--name", "--preset", "--exclude", "--start-from")
        placed = sum((1 + len(value_of(words, place)) for place in places if place in words), 1)
        assert value_of(words, "--preset") == ["starter"]
        found.append((words[0], shlex.join(words[placed:])))
    assert found == TRAINED


def test_each_training_has_its_cases_and_begins_with_its_network(folder):
    found = [
        tuple(value_of(words, option) for option in ("--name", "--exclude", "--start-from"))
        for words in trainings_of(lines_of(folder))
    ]
    assert found == [
        (["heatmap"], [], []),
        (["labelling-first"], [], []),
        (["labelling"], [], [str(MODELS / "labelling-first")]),
        (["segmentation-base"], [], []),
        (["segmentation-outlined"], [], [str(MODELS / "segmentation-base")]),
        (["segmentation-real"], [], [str(OUTLINED_MODELS / "segmentation-outlined")]),
        (["segmentation-again"], [], [str(REAL_MODELS / "segmentation-so-far")]),
    ]


def test_the_command_lines_are_those_of_the_scripts(folder):
    lines = lines_of(folder, options=("--precision", "bfloat16"))
    settings = [settings_from_command_line(SCRIPTS[w[0]], w[1:]) for w in trainings_of(lines)]
    assert [chosen.seed for chosen in settings] == [0, 0, 1, 5, 2, 3, 4]
    assert [chosen.precision for chosen in settings] == ["float32", *["bfloat16"] * 6]
    assert [chosen.spacing_mm for chosen in settings] == [3.0] * 3 + [2.0] * 4
    assert settings[0].target == "centres" and settings[3].targets == "occupancies"
    for line in lines:
        script, *words = shlex.split(line)
        if script.startswith("pre_"):
            settings_from_command_line(SCRIPTS[script], words)


# The data


def test_the_spines_are_those_of_the_shipped_networks(folder):
    lines = [line for line in lines_of(folder) if "--source phantom" in line]
    start = "get_verse_data.py --source phantom --data-dir s/data"
    assert lines == [
        f"{start} --variants natural --ranges wide --phantoms 70 10 0 --seed 6101",
        f"{start} --variants natural --ranges usual --phantoms 40 6 0 --seed 6103",
        f"{start} --variants rare --ranges wide --phantoms 20 0 0 --seed 6105",
        f"{start} --variants natural --ranges old --phantoms 30 0 0 --seed 6107",
    ]


def test_masks_alone_enter_but_those_whose_licence_forbids_it(folder):
    lines = lines_of(folder)
    (words,) = [shlex.split(line) for line in lines if "--source pairs" in line]
    assert value_of(words, "--key") == ["sub-mask-verse004"]
    assert value_of(words, "--data-dir") == ["s/data-masks"]
    assert not any("gl003" in line for line in lines)


def test_what_is_real_is_kept_from_the_networks_that_see_generated_scans_alone(folder):
    lines = lines_of(folder)
    for words in map(shlex.split, lines):
        is_real = words[0].startswith("experiments/real") and "predict" not in words
        if is_real or "pairs" in words:
            labels = value_of(words, "--labels")
            own = f"s/data-{Path(labels[0]).name}" if labels else "s/data-masks"
            assert value_of(words, "--data-dir") == [own]
        if words[0].startswith("pre_") and value_of(words, "--work-dir") == ["s/work"]:
            assert value_of(words, "--data-dir") == ["s/data"]
        if words[0] == "pre_processing_heatmap.py":
            settings = settings_from_command_line(SCRIPTS[words[0]], words[1:])
            assert settings.drawn == (1500, 40) and settings.trunks == 0
            assert value_of(words, "--work-dir") == ["s/work"]


def test_every_training_finds_its_cases(folder):
    prepared = {
        "s/work": ["s/data"],
        "s/work-outlined": ["s/data", "s/data-labels-first"],
        "s/work-real": ["s/data", "s/data-masks", "s/data-labels"],
    }
    for work, data in prepared.items():
        lines = [shlex.split(line) for line in lines_of(folder)]
        ready = [words for words in lines if words[0] == "pre_processing_segmentation.py"]
        found = [
            value_of(words, "--data-dir")[0] for words in ready if value_of(words, "--work-dir") == [work]
        ]
        assert found == data


def test_the_steps_stand_in_their_order(folder):
    lines = lines_of(folder)
    assert [line.split()[0] for line in lines] == [
        *["get_verse_data.py"] * 5,
        *("experiments/real/trunks.py", "experiments/real/label.py"),
        *("pre_processing_heatmap.py", "pre_processing_segmentation.py"),
        *("train_heatmap.py", *["train_labelling.py"] * 2, "experiments/fit_temperature.py"),
        "train_segmentation.py",
        *["experiments/real/label.py"] * 2,
        *(*["pre_processing_segmentation.py"] * 2, "train_segmentation.py"),
        *["experiments/real/label.py"] * 2,
        *["pre_processing_segmentation.py"] * 3,
        *["train_segmentation.py", "experiments/average.py"] * 2,
        *["experiments/compact.py"] * 4,
    ]
    labelled = [line.split()[1] for line in lines if line.startswith("experiments/real/label.py")]
    assert labelled == ["add", "predict", "add", "predict", "add"]


def test_the_outlines_of_each_network_have_their_corrections(folder):
    """Those of the base, which knows no real scan, and those of what learned from them."""
    lines = [shlex.split(line) for line in lines_of(folder) if line.startswith("experiments/real/label.py")]
    found = [
        tuple(
            value_of(words, option) for option in ("--segmentation", "--output", "--labels", "--corrections")
        )
        for words in lines[1:]
    ]
    assert found == [
        ([str(MODELS / "segmentation-base")], ["s/labels-first"], [], []),
        ([], [], ["s/labels-first"], [str(FIRST_CORRECTIONS)]),
        ([str(OUTLINED_MODELS / "segmentation-outlined")], ["s/labels"], [], []),
        ([], [], ["s/labels"], []),
    ]


def test_what_is_shipped(folder):
    assert lines_of(folder)[-4:] == [
        f"experiments/compact.py {MODELS}/heatmap --output s/shipped/heatmap",
        f"experiments/compact.py {MODELS}/labelling --output s/shipped/labelling",
        f"experiments/compact.py {MODELS}/segmentation-base --output s/shipped/segmentation-base",
        f"experiments/compact.py {REAL_MODELS}/segmentation-average --output s/shipped/segmentation",
    ]


@pytest.mark.parametrize("without, end", [((), ""), (("chest_ct",), "-without-chest_ct")])
def test_the_last_training_begins_with_an_average_and_what_is_shipped_is_one(folder, without, end):
    lines = [each for each in lines_of(folder, without=without) if "average.py" in each]
    real, again, so_far, average = (
        f"{REAL_MODELS}/segmentation-{name}{end}" for name in ("real", "again", "so-far", "average")
    )
    before = f"{OUTLINED_MODELS}/segmentation-outlined {MODELS}/segmentation-base"
    assert lines == [
        f"experiments/average.py {real} {before} --output {so_far}",
        f"experiments/average.py {again} {so_far} --output {average}",
    ]


# Folds


@pytest.mark.parametrize(
    "without, with_mask, labelled",
    [
        (("abdomen_ct",), ["sub-real-abdomen_ct"], []),
        (("chest_ct",), ["sub-real-chest_ct", "sub-trunk*"], []),
        (("sub-verse014", "lidc0028"), ["sub-real-verse014"], ["sub-real-lidc0028"]),
        (("lidc0028",), [], ["sub-real-lidc0028"]),
    ],
)
def test_a_fold_leaves_a_patient_out_everywhere(folder, without, with_mask, labelled):
    assert sorted(left_out_keys(Recipe(without=without))) == sorted(with_mask + labelled)
    lines = lines_of(folder, without=without)
    outlined = [name for name in sorted(without) if name == "lidc0028"]
    ends = {
        name: "-".join(["", "without", *names]) if names else ""
        for name, names in (("outlined", outlined), ("real", sorted(without)))
    }
    excluded = {
        value_of(words, "--name")[0]: sorted(value_of(words, "--exclude")) for words in trainings_of(lines)
    }
    assert excluded.pop("segmentation-outlined") == sorted(labelled)
    for name in ("real", "again"):
        assert excluded.pop(f"segmentation-{name}{ends['real']}") == sorted(with_mask + labelled)
    assert not any(excluded.values())
    # What has not learned from who is left out is shared, all else has a place of its own.
    whole = [word for line in lines_of(folder) for word in shlex.split(line) if word.startswith("s/")]
    ours = [word for line in lines for word in shlex.split(line) if word.startswith("s/")]
    made = ("data-labels-first", "labels-first", "work-outlined", "data-labels", "labels", "work-real")
    names = sorted(made, key=len, reverse=True)
    assert ours == [
        re.sub(
            r"(?<=/segmentation-)(real|so-far|again|average)$",
            rf"\g<1>{ends['real']}",
            re.sub(rf"(?<=^s/)({'|'.join(names)})(?=/|$)", rf"\g<1>{ends['outlined']}", word),
        ).replace("s/shipped", f"s/shipped{ends['real']}")
        for word in whole
    ]


def test_a_fold_goes_on_from_networks_that_are_there(folder):
    lines = lines_of(folder, without=("chest_ct",), trained=Path("m"))
    found = [
        tuple(value_of(words, option) for option in ("--name", "--start-from"))
        for words in trainings_of(lines)
    ]
    assert found == [
        (["segmentation-outlined"], ["m/segmentation-base"]),
        (["segmentation-real-without-chest_ct"], [str(OUTLINED_MODELS / "segmentation-outlined")]),
        (
            ["segmentation-again-without-chest_ct"],
            [str(REAL_MODELS / "segmentation-so-far-without-chest_ct")],
        ),
    ]
    # Nothing is made that these alone would have learned from; all else is as it was.
    whole = lines_of(folder, without=("chest_ct",))
    left_out = [line for line in whole if line.replace(str(MODELS), "m") not in lines]
    assert [line.split()[0] for line in left_out] == [
        *("pre_processing_heatmap.py", "pre_processing_segmentation.py"),
        *("train_heatmap.py", *["train_labelling.py"] * 2, "experiments/fit_temperature.py"),
        "train_segmentation.py",
    ]
    assert len(lines) == len(whole) - len(left_out)
    assert "experiments/compact.py m/heatmap --output s/shipped-without-chest_ct/heatmap" in lines


def test_a_scan_to_leave_out_must_be_known(folder, capsys):
    assert main(Recipe(shared=folder, without=("chset",)), dry_run=True) == 1
    said = capsys.readouterr()
    assert "found no chset" in said.err and "chest_ct" in said.err
    assert said.err.count("\n") == 1 and "get_verse_data.py" not in said.out


# The command line


def test_options_are_the_last_and_may_be_one_word():
    for words in (["--precision", "bfloat16"], ["--precision bfloat16"]):
        recipe, dry_run = recipe_from_command_line(
            ["--shared", "d", "--trained", "m", "--without", "a", "b", "--options", *words]
        )
        options = {"without": ("a", "b"), "options": ("--precision", "bfloat16"), "trained": Path("m")}
        assert recipe == Recipe(Path("d"), **options)
        assert not dry_run


def test_a_dry_run_prints_the_steps_and_does_nothing(folder, tmp_path):
    command = [sys.executable, "experiments/starter.py", "--shared", str(folder), "--dry-run"]
    ran = subprocess.run(
        [*command, "--folder", str(tmp_path / "made")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 32 and all(line.startswith("+ ") for line in lines)
    assert not (tmp_path / "made").exists()
