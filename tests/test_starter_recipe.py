"""The commands that `make starter` runs: which cases enter, what a fold leaves out, where they go."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")


def recipe(
    folder: Path, *arguments: str, shared: tuple[str, ...] = ("first", "levels", "drawn")
) -> subprocess.CompletedProcess[str]:
    """Run the recipe with `echo` in place of Python, so that it prints its commands and does nothing."""
    places = [f"STARTER_{name.upper()}={folder / name}" for name in ("data", *shared)]
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
    for work, network in (("starter", "heatmap"), ("levels", "labelling")):
        trained = tmp_path / work / "work" / "models" / network
        trained.mkdir(parents=True)
        for name in ("best.weights.h5", "last.weights.h5", "settings.json"):
            (trained / name).write_text(f"{network} {name}")
    return tmp_path


def test_every_mask_enters_but_those_whose_licence_forbids_it(folder):
    options = ("STARTER_SEGMENTATION=--epochs 3", "STARTER_OPTIONS=--precision bfloat16")
    ran = recipe(folder, f"STARTER={folder / 'starter'}", *options)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    pairs = [line.split() for line in lines if "--source pairs" in line]
    entered = [
        (words[words.index("--key") + 1], Path(words[words.index("--data-dir") + 1])) for words in pairs
    ]
    # A mask that has no CT is drawn from in both stages, that of a CT in the last one alone.
    places = [folder / place / "data" / "real" for place in ("starter", "drawn")]
    assert entered == [
        ("sub-real-abdomen", places[0]),
        ("sub-real-abdomen", places[1]),
        ("sub-real-chest", places[0]),
        ("sub-real-verse014", places[0]),
    ]
    assert ["--ct" in words for words in pairs] == [False, False, True, True]
    assert not any("gl003" in line for line in lines)
    scripts = [line.split()[0] for line in lines if line.split()[0].endswith(".py")]
    assert [name for name in scripts if name != "get_verse_data.py"] == [
        *("pre_processing_heatmap.py", "train_heatmap.py"),
        *("pre_processing_segmentation.py", "train_segmentation.py"),
        *("pre_processing_segmentation.py", "train_labelling.py"),
        *("pre_processing_heatmap.py", "train_heatmap.py"),
        *("pre_processing_segmentation.py", "train_segmentation.py", "train_segmentation.py"),
        *("pre_processing_segmentation.py", "train_segmentation.py"),
    ]
    own = [line for line in lines if f"--work-dir {folder / 'starter' / 'work'}" in line]
    assert len(own) == 4 and all("--preset starter" in line for line in own)
    first, drawn = (folder / place / "work" / "models" for place in ("first", "drawn"))
    assert own[1].endswith(f"--start-from {first / 'heatmap'} --precision bfloat16")
    assert own[3].endswith(f"--start-from {drawn / 'segmentation'} --precision bfloat16 --epochs 3")
    (drawing,) = [line for line in lines if f"train_segmentation.py --work-dir {drawn.parent} " in line]
    assert f"--start-from {first / 'segmentation'}" in drawing and drawing.endswith("--precision bfloat16")
    turned = drawn.parents[1] / "work-turned"
    assert (turned / "segmentation").resolve() == drawn.parent / "segmentation"
    (turning,) = [line for line in lines if f"train_segmentation.py --work-dir {turned} " in line]
    assert f"--start-from {drawn / 'segmentation'}" in turning and turning.endswith("--precision bfloat16")
    links = {
        ("starter", "data"): folder / "first" / "data",
        ("levels", "data"): folder / "first" / "data",
        ("drawn", "data"): folder / "levels" / "data",
        ("starter", "data-segmentation"): folder / "levels" / "data",
    }
    for (place, data), target in links.items():
        assert (folder / place / data / "phantoms").resolve() == target
    real = folder / "starter" / "data-segmentation" / "real"
    assert real.readlink() == folder / "starter" / "data" / "real"
    shipped = folder / "starter" / "shipped"
    files = sorted(path for path in shipped.rglob("*") if path.is_file())
    assert [path.read_text() for path in files] == [
        f"{network} {name}"
        for network in ("heatmap", "labelling")
        for name in ("best.weights.h5", "settings.json")
    ]
    (averaging,) = [line for line in lines if "utils.learning.averaging" in line]
    averaged = (turned / "models", folder / "starter" / "work" / "models")
    names = " ".join(str(models / "segmentation") for models in averaged)
    assert averaging.endswith(f"{names} --shares 3 1 --output {shipped / 'segmentation'}")


def test_a_fold_leaves_its_case_out(folder):
    ran = recipe(folder, f"STARTER={folder / 'starter'}", "WITHOUT=chest abdomen")
    assert ran.returncode == 0, ran.stderr
    assert "sub-real-verse014" in ran.stdout
    assert "sub-real-chest" not in ran.stdout and "sub-real-abdomen" not in ran.stdout


@pytest.mark.parametrize(
    "without, place", [("chest", "starter-drawn"), ("chest abdomen", "starter-drawn-without-abdomen")]
)
def test_folds_share_what_is_drawn_unless_they_leave_out_a_mask_alone(folder, without, place):
    ran = recipe(folder, f"WITHOUT={without}", "--dry-run", shared=("first", "levels"))
    assert ran.returncode == 0, ran.stderr
    assert f" --work-dir {place}/work " in ran.stdout


def test_a_case_to_leave_out_must_be_there(folder):
    ran = recipe(folder, f"STARTER={folder / 'fold'}", "WITHOUT=chset")
    assert ran.returncode != 0
    assert "found no chset" in ran.stderr and "get_verse_data.py" not in ran.stdout
