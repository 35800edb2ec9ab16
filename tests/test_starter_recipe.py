"""The commands that `make starter` runs: which cases enter, what a fold leaves out, where they go."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")


def recipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe with `echo` in place of Python, so that it prints its commands and does nothing."""
    places = (
        f"STARTER_DATA={folder / 'data'}",
        f"STARTER_FIRST={folder / 'first'}",
        f"STARTER_LEVELS={folder / 'levels'}",
    )
    # A make above this one would make it speak of directories, and hand down its own options.
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    surroundings.pop("MFLAGS", None)
    command = ["make", "starter", "RUN=echo", "-o", ".venv/installed", *places, *arguments]
    return subprocess.run(command, cwd=PROJECT, env=surroundings, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path):
    for name in ("sub-verse014", "sub-gl003_dir-ax", "chest", "abdomen"):
        for end in ("seg-vert_msk", "ct"):
            path = tmp_path / "data" / name / f"{name}_{end}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "data" / "abdomen" / "abdomen_ct.nii.gz").unlink()
    # What trainings would leave.
    for work, network in (("starter", "heatmap"), ("starter", "segmentation"), ("levels", "labelling")):
        trained = tmp_path / work / "work" / "models" / network
        trained.mkdir(parents=True)
        for name in ("best.keras", "last.keras", "settings.json"):
            (trained / name).write_text(f"{network} {name}")
    return tmp_path


def test_every_mask_enters_but_those_whose_licence_forbids_it(folder):
    ran = recipe(folder, f"STARTER={folder / 'starter'}", "STARTER_SEGMENTATION=--epochs 3")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    pairs = [line.split() for line in lines if "--source pairs" in line]
    assert [words[words.index("--key") + 1] for words in pairs] == [
        "sub-real-abdomen",
        "sub-real-chest",
        "sub-real-verse014",
    ]
    assert ["--ct" in words for words in pairs] == [False, True, True]
    assert not any("gl003" in line for line in lines)
    scripts = [line.split()[0] for line in lines if line.split()[0].endswith(".py")]
    assert [name for name in scripts if name != "get_verse_data.py"] == [
        *("pre_processing_heatmap.py", "train_heatmap.py"),
        *("pre_processing_segmentation.py", "train_segmentation.py"),
        *("pre_processing_segmentation.py", "train_labelling.py"),
        *("pre_processing_heatmap.py", "train_heatmap.py"),
        *("pre_processing_segmentation.py", "train_segmentation.py"),
    ]
    own = [line for line in lines if f"--work-dir {folder / 'starter' / 'work'}" in line]
    assert len(own) == 4 and all("--preset starter" in line for line in own)
    first = folder / "first" / "work" / "models"
    assert f"--start-from {first / 'heatmap'}" in own[1]
    assert own[3].endswith(f"--preset starter --start-from {first / 'segmentation'} --epochs 3")
    for place in ("starter", "levels"):
        assert (folder / place / "data" / "phantoms").resolve() == folder / "first" / "data"
    shipped = sorted(path for path in (folder / "starter" / "shipped").rglob("*") if path.is_file())
    assert [path.read_text() for path in shipped] == [
        f"{network} {name}"
        for network in ("heatmap", "labelling", "segmentation")
        for name in ("best.keras", "settings.json")
    ]


def test_a_fold_leaves_its_case_out(folder):
    ran = recipe(folder, f"STARTER={folder / 'starter'}", "WITHOUT=chest abdomen")
    assert ran.returncode == 0, ran.stderr
    assert "sub-real-verse014" in ran.stdout
    assert "sub-real-chest" not in ran.stdout and "sub-real-abdomen" not in ran.stdout


def test_a_case_to_leave_out_must_be_there(folder):
    ran = recipe(folder, f"STARTER={folder / 'fold'}", "WITHOUT=chset")
    assert ran.returncode != 0
    assert "found no chset" in ran.stderr and "get_verse_data.py" not in ran.stdout
