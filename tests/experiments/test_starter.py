"""The steps of the starter recipe: which cases enter, what a fold leaves out, the trainings."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.real.facts import read_facts
from experiments.real.folds import ORGANS
from experiments.starter import ON_DRAWN, Recipe, all_steps, main, recipe_from_command_line
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
    (
        "train_heatmap.py",
        "starter",
        "--crop-voxels 32 32 48 --batch-size 4 --epochs 80 --examples-per-epoch 400 --validate-every 10 "
        "--learning-rate 2e-3 --final-learning-rate 2e-4 --seed 0",
    ),
    (
        "train_heatmap.py",
        "starter",
        "--epochs 8 --examples-per-epoch 50 --validate-every 4 --learning-rate 5e-4 "
        "--final-learning-rate 3e-5 --seed 1",
    ),
    ("train_labelling.py", "starter", ""),
    (
        "train_heatmap.py",
        "starter",
        "--epochs 6 --examples-per-epoch 40 --validate-every 6 --origins 0 0.5 0.5 --learning-rate 3e-4 "
        "--final-learning-rate 3e-5 --seed 1",
    ),
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
RARE, REAL, MASK, KNOWN, TRUNKS = (
    ["sub-half*", "sub-rare*"],
    "sub-real-*",
    "sub-mask-*",
    "real-*",
    "drawn-trunk-*",
)


@pytest.fixture
def folder(tmp_path):
    """A folder with masks and CTs, and all that the facts name below `shared`."""
    for name in ("sub-verse014", "sub-gl003_dir-ax", "chest", "abdomen"):
        for end in ("seg-vert_msk", "ct"):
            touch(tmp_path / "data" / name / f"{name}_{end}.nii.gz")
    (tmp_path / "data" / "abdomen" / "abdomen_ct.nii.gz").unlink()
    for path in (*(facts.ct for facts in read_facts().values()), *ORGANS):
        touch(tmp_path / "shared" / path)
    return tmp_path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def lines_of(folder: Path, **changes) -> list[str]:
    places = {"data": folder / "data", "shared": folder / "shared", "folder": Path("s")}
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
        (["heatmap-small-crops"], [*RARE, REAL, KNOWN, TRUNKS], []),
        (["heatmap-drawn"], [*RARE, REAL, KNOWN, TRUNKS], [str(MODELS / "heatmap-small-crops")]),
        (["labelling"], [*RARE, REAL, KNOWN, TRUNKS], []),
        (["heatmap"], [*RARE, REAL], [str(MODELS / "heatmap-drawn")]),
        (["segmentation-phantoms"], [*RARE, REAL, MASK], []),
        (["segmentation-drawn"], [REAL], [str(MODELS / "segmentation-phantoms")]),
        (["segmentation-turned"], [REAL], [str(MODELS / "segmentation-drawn")]),
        (["segmentation-real"], [], [str(MODELS / "segmentation-drawn")]),
    ]


def test_the_command_lines_are_those_of_the_scripts(folder):
    lines = lines_of(folder, options=("--precision", "bfloat16"))
    settings = [settings_from_command_line(SCRIPTS[w[0]], w[1:]) for w in trainings_of(lines)]
    assert [chosen.seed for chosen in settings] == [0, 1, 0, 1, 0, 1, 2, 0]
    assert [chosen.epochs for chosen in settings] == [80, 8, 30, 6, 40, 60, 28, 12]
    assert [chosen.precision for chosen in settings] == [*["bfloat16"] * 4, "auto", *["bfloat16"] * 3]
    assert len({chosen.name for chosen in settings}) == 8
    assert [chosen.spacing_mm for chosen in settings] == [3.0] * 4 + [2.0] * 4
    assert {settings[place].target for place in (0, 1, 3)} == {"centres"}


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


def test_scans_and_trunks_are_drawn(folder):
    (line,) = [line for line in lines_of(folder) if line.startswith("pre_processing_heatmap.py")]
    words = shlex.split(line)
    settings = settings_from_command_line(SCRIPTS[words[0]], words[1:])
    assert settings.drawn == (1500, 40) and settings.trunks == 240
    assert settings.organs == tuple(folder / "shared" / path for path in ORGANS)


def test_the_steps_stand_in_their_order(folder):
    scripts = [line.split()[0] for line in lines_of(folder)]
    assert scripts == [
        *["get_verse_data.py"] * 7,
        *("pre_processing_heatmap.py", "experiments/real/prepare.py", "pre_processing_segmentation.py"),
        *(script for script, _, _ in TRAINED),
        *("copy", "copy", "experiments/average.py", "experiments/real/leave_one_out.py"),
    ]


def test_what_is_shipped(folder):
    assert lines_of(folder, options=("--precision", "bfloat16"))[-4:] == [
        f"copy the network of {MODELS}/heatmap to s/shipped/heatmap",
        f"copy the network of {MODELS}/labelling to s/shipped/labelling",
        f"experiments/average.py {MODELS}/segmentation-turned {MODELS}/segmentation-real "
        "--shares 3 1 --output s/shipped/segmentation",
        f"experiments/real/leave_one_out.py --shared {folder}/shared --work-dir s/work --base heatmap-drawn "
        "--segmentation s/shipped/segmentation --labelling s/shipped/labelling "
        "--options --precision bfloat16",
    ]


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


def test_without_organs_no_trunk_is_drawn_or_excluded(folder, capsys):
    (folder / "shared" / ORGANS[1]).unlink()
    lines = lines_of(folder)
    assert any("--drawn 1500 40" in line for line in lines)
    assert not any("--trunks" in line or TRUNKS in line for line in lines)
    places = (folder / "data", folder / "shared", Path("s"))
    assert main(Recipe(*places), dry_run=True) == 0
    assert "shared: done without real-ct/chest-total, not there." in capsys.readouterr().out


def test_without_real_scans_the_network_for_drawn_ones_is_shipped(folder, capsys):
    absent = folder / "absent"
    lines = lines_of(folder, shared=absent)
    assert not any("experiments/real" in line for line in lines)
    assert [name for name in excluded_of(lines) if name.startswith("heatmap")] == list(ON_DRAWN)
    assert f"copy the network of {MODELS}/heatmap-drawn to s/shipped/heatmap" in lines
    assert main(Recipe(folder / "data", absent), dry_run=True) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"{absent}: done without data/other-ct/chest_ct.nii.gz, ")


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
    patients = ["real-chest_ct", "real-abdomen_ct", TRUNKS]
    assert excluded["heatmap-without-chest_ct-abdomen_ct"] == [*RARE, REAL, *patients]
    assert excluded["labelling"] == [*RARE, REAL, KNOWN, TRUNKS]  # it sees no real scan in any fold
    assert lines[-3].endswith("-without-chest_ct-abdomen_ct to s/shipped-without-chest-abdomen/heatmap")
    assert lines[-2].endswith("/labelling to s/shipped-without-chest-abdomen/labelling")
    assert not any("leave_one_out" in line for line in lines)


@pytest.mark.parametrize("name", ["chest", "chest_ct"])
def test_a_patient_has_the_name_of_the_data_or_of_the_facts(folder, name):
    excluded = excluded_of(lines_of(folder, without=(name,)))
    assert excluded["segmentation-real-without-chest"] == ["sub-real-chest"]
    assert excluded["heatmap-without-chest_ct"] == [*RARE, REAL, "real-chest_ct", TRUNKS]


def test_a_scan_without_a_mask_is_left_out_of_the_heatmap_network_alone(folder):
    whole, fold = (excluded_of(lines_of(folder, without=names)) for names in ((), ("lidc0293",)))
    assert fold.pop("heatmap-without-lidc0293") == [*RARE, REAL, "real-lidc0293"]
    assert fold.items() <= whole.items() and set(whole) - set(fold) == {"heatmap"}


@pytest.mark.parametrize(
    "without, name",
    [(("chest",), "segmentation-drawn"), (("chest", "abdomen"), "segmentation-drawn-without-abdomen")],
)
def test_folds_share_what_is_drawn_unless_they_leave_out_a_mask_alone(folder, without, name):
    whole, fold = (
        {value_of(words, "--name")[0]: words for words in trainings_of(lines_of(folder, without=names))}
        for names in ((), without)
    )
    assert name in fold and fold["heatmap-drawn"] == whole["heatmap-drawn"]
    assert all(fold[shared] == whole[shared] for shared in fold.keys() & whole.keys())
    assert value_of(fold[name.replace("drawn", "turned")], "--start-from") == [f"{MODELS}/{name}"]


def test_a_case_to_leave_out_must_be_there(folder, capsys):
    assert main(Recipe(data=folder / "data", without=("chset",)), dry_run=True) == 1
    said = capsys.readouterr()
    assert "found no chset" in said.err and "(abdomen, abdomen_ct, chest, " in said.err
    assert said.err.count("\n") == 1 and "get_verse_data.py" not in said.out


# The command line


def test_options_are_the_last_and_may_be_one_word():
    for words in (["--precision", "bfloat16"], ["--precision bfloat16"]):
        recipe, dry_run = recipe_from_command_line(
            ["--data", "d", "--without", "a", "b", "--options", *words]
        )
        options = {"without": ("a", "b"), "options": ("--precision", "bfloat16")}
        assert recipe == Recipe(Path("d"), Path("../shared"), **options)
        assert not dry_run


def test_a_dry_run_prints_the_steps_and_does_nothing(folder, tmp_path):
    places = ["--data", str(folder / "data"), "--shared", str(folder / "shared")]
    command = [sys.executable, "experiments/starter.py", *places, "--dry-run"]
    ran = subprocess.run(
        [*command, "--folder", str(tmp_path / "made")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 22 and all(line.startswith("+ ") for line in lines)
    assert not (tmp_path / "made").exists()
