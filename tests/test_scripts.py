"""Every script, run in sequence from a shell on a few tiny phantoms, with what it wrote read back."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests import forked
from utils.imaging.nifti import read_ct, read_mask
from utils.settings import load_settings
from utils.verse.cases import index_cases

PROJECT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "get_verse_data.py",
    "pre_processing_heatmap.py",
    "train_heatmap.py",
    "train_labelling.py",
    "pre_processing_segmentation.py",
    "train_segmentation.py",
    "train_distillation.py",
    "infer.py",
    "infer.py --relabel",
    "evaluate.py",
    "export.py",
)
ALL_SCRIPTS = sorted(path.name for path in PROJECT.glob("*.py"))
#: What no network is needed for.
WITHOUT_TENSORFLOW = ("get_verse_data.py", "infer.py --relabel", "evaluate.py")
#: What takes a tenth of a second or more to load.
HEAVY = {"dask", "keras", "matplotlib", "nibabel", "numpy", "pandas", "requests", "scipy", "tensorflow"}
# Small enough for seconds: what is tested is that the parts fit together, not that the networks are good.
TINY_NETWORK = ("--filters", "2", "4", "--patch-voxels", "32")
TINY_LOCALISER = ("--filters", "8", "8", "8", "--crop-voxels", "16", "16", "16")
TINY_LABELLING = ("--filters", "2", "4", "--patch-voxels", "16")
#: Where the stages of the pipeline find their data, each at its spacing.
PREPARED = ("work/heatmap/3mm", "work/segmentation/2mm")
SHORT = ("--epochs", "2", "--examples-per-epoch", "2", "--validate-every", "2", "--batch-size", "2")


def run_script(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    variables.pop("TF_CPP_MIN_LOG_LEVEL", None)  # as a user has it
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False)


def packages_imported(times: str) -> set[str]:
    """Names at the top of all modules in the output of `python -X importtime`."""
    names = set(re.findall(r"^import time:.*\| +(\w+)", times, re.MULTILINE))
    assert {"tyro", "utils"} <= names
    return names


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run the whole pipeline once, each script as from a shell; the folder is `pipeline["folder"]`."""
    folder = tmp_path_factory.mktemp("pipeline")
    blocked = tmp_path_factory.mktemp("blocked")
    for package in ("tensorflow", "keras"):
        (blocked / f"{package}.py").write_text(f"raise SystemExit('{package} was loaded')")
    data, work = ("--data-dir", folder / "data"), ("--work-dir", folder / "work")
    small, output = ("--preset", "small"), ("--output", folder / "evaluation")
    steps = {
        "get_verse_data.py": ("--source", "phantom", *data, "--phantoms", "2", "1", "1", "--seed", "3"),
        "pre_processing_heatmap.py": (*data, *work, *small, "--drawn", "1", "1"),
        "train_heatmap.py": (*work, *small, *SHORT, *TINY_LOCALISER),
        "train_labelling.py": (*work, *small, *SHORT, *TINY_LABELLING),
        "pre_processing_segmentation.py": (*data, *work, *small),
        "train_segmentation.py": (*work, *small, *SHORT, *TINY_NETWORK),
        "train_distillation.py": (*work, *small, "--filters", "2", "2", "--methods", "soft"),
        "infer.py": (folder / "data", *work, "--output", folder / "predictions"),
        "infer.py --relabel": (folder / "data", *work, "--output", folder / "predictions"),
        "evaluate.py": (*data, *("--split", "test", "--predictions", folder / "predictions"), *output),
        "export.py": ("--models", folder / "work" / "models", "--output", folder / "onnx"),
    }
    done = {}
    for script, arguments in steps.items():
        environment = {"PYTHONPATH": str(blocked)} if script in WITHOUT_TENSORFLOW else {}
        done[script] = run_script(*script.split(), *arguments, **environment)
    return {**done, "folder": folder}


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_ends_well(pipeline, script):
    result = pipeline[script]
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_the_pipeline_has_every_script():
    assert {script.partition(" ")[0] for script in SCRIPTS} == {*ALL_SCRIPTS}


def test_data_set_has_the_splits_asked_for(pipeline):
    cases = index_cases(pipeline["folder"] / "data")
    splits = sorted(case.split for case in cases)
    assert splits == ["test", "training", "training", "validation"]
    assert all(case.complete for case in cases)


def test_preparation_covers_training_and_validation_only(pipeline):
    folder = pipeline["folder"]
    keys = {
        split: {c.key for c in index_cases(folder / "data", split=split)}
        for split in ("training", "validation")
    }
    for prepared in PREPARED:
        for split, expected in keys.items():
            scans = {p.name.removesuffix("_ct.nii") for p in (folder / prepared / split).glob("*_ct.nii")}
            drawn = {key for key in scans if key.startswith("drawn-")}
            assert scans - drawn == expected
            assert len(drawn) == ("heatmap" in prepared)
        assert not (folder / prepared / "test").exists()


def test_vertebrae_table_agrees_with_the_masks(pipeline):
    folder = pipeline["folder"]
    for case in index_cases(folder / "data", split="training"):
        table = pd.read_csv(folder / "work/segmentation/2mm/training/vertebrae.csv")
        listed = set(table.loc[table["case"] == case.key, "label"])
        assert listed == set(np.unique(read_mask(case.mask).data)) - {0}


@pytest.mark.parametrize(
    ("stage", "spacing_mm"), [("heatmap", 3.0), ("labelling", 3.0), ("segmentation", 2.0)]
)
def test_model_directory_is_whole(pipeline, stage, spacing_mm):
    directory = pipeline["folder"] / "work" / "models" / stage
    names = {path.name for path in directory.iterdir()}
    assert {"best.weights.h5", "last.weights.h5", "history.csv", "curves.png", "settings.json"} <= names
    history = pd.read_csv(directory / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    assert np.isfinite(history["loss"]).all() and np.isfinite(history["val_loss"].iloc[-1])
    assert load_settings(directory)["spacing_mm"] == spacing_mm
    assert not [name for name in names if name.endswith(".part")]


def test_predictions_are_a_verse_data_set_on_the_native_grid(pipeline):
    folder = pipeline["folder"]
    scans = {case.key: case for case in index_cases(folder / "data")}
    predicted = {case.key: case for case in index_cases(folder / "predictions")}
    assert set(predicted) == set(scans)
    for key, case in predicted.items():
        ct, mask = read_ct(scans[key].ct), read_mask(case.mask)
        assert mask.shape == ct.shape
        np.testing.assert_allclose(mask.affine, ct.affine, atol=1e-4)
        table = pd.read_csv(case.mask.with_name(f"{key}_vertebrae.csv"))
        assert set(table["label"]) == set(np.unique(mask.data)) - {0}
        assert set(table["numbering"]) <= {"anatomical"}
        assert case.centroids is not None
        assert case.mask.with_name(f"{key}_seg-vert_snp.png").stat().st_size > 1000


def test_evaluation_counts_the_reference(pipeline):
    folder = pipeline["folder"]
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    (case,) = index_cases(folder / "data", split="test")
    reference = len(set(np.unique(read_mask(case.mask).data)) - {0})
    assert summary["vertebrae"] == reference == summary["found"] + summary["missed"]
    assert 0.0 <= summary["mean_dice"] <= 1.0
    assert 0.0 <= summary["identification_rate"] <= 1.0  # None where vertebrae are counted, not named
    for name in ("vertebrae.csv", "evaluation.md", "evaluation.png"):
        assert (folder / "evaluation" / name).stat().st_size > 0


def test_a_second_training_says_that_it_is_done(pipeline):
    work = pipeline["folder"] / "work"
    options = ("--work-dir", work, "--preset", "small", *SHORT, *TINY_LOCALISER)
    again = run_script("train_heatmap.py", *options)
    assert again.returncode == 0
    assert "already complete" in again.stdout
    assert again.stderr == ""  # nothing of TensorFlow's either


def lines_beside_the_bar(stderr: str) -> list[str]:
    lines = re.split(r"[\r\n]+", stderr)
    return [line for line in lines if line.strip() and not re.search(r"\[\d+:\d\d[<,]", line)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_good_input_leaves_nothing_but_a_bar_on_stderr(pipeline, script):
    others = lines_beside_the_bar(pipeline[script].stderr)
    if script.startswith("infer.py"):  # what was trained for two epochs finds nothing, or too much
        others = [line for line in others if not line.startswith("warning: ")]
    assert others == []


def test_a_training_on_data_that_are_not_prepared_names_the_command(pipeline):
    work = pipeline["folder"] / "work"
    result = forked.run("train_segmentation.py", "--work-dir", work, "--preset", "full", "--device", "cpu")
    assert result.returncode == 1
    command = f"python pre_processing_segmentation.py --work-dir {work} --preset full"
    assert f"{work / 'segmentation' / '1mm'}: expected prepared data" in result.stderr
    assert command in result.stderr and "Traceback" not in result.stderr


def test_full_preset_without_a_gpu_ends_with_status_2(tmp_path):
    result = run_script("train_heatmap.py", "--work-dir", tmp_path)
    assert result.returncode == 2
    assert "--device cpu" in result.stderr


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_help_explains_the_options_without_what_loads_slowly(script):
    result = run_script("-X", "importtime", script, "--help")
    assert result.returncode == 0
    assert re.search(r"--seed", result.stdout)
    assert not HEAVY & packages_imported(result.stderr)


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_a_wrong_option_ends_with_status_2_without_what_loads_slowly(script):
    result = run_script("-X", "importtime", script, "--no-such-option")
    assert result.returncode == 2
    assert not HEAVY & packages_imported(result.stderr)
