"""The starter recipe from nothing with a few steps a training, killed twice, ends whole.

It takes a minute and more, so it runs only where the environment says LONG_TESTS=1.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.imaging.examples import two_vertebrae
from utils.imaging.nifti import write_volume
from utils.learning.models import load_model
from utils.settings import load_settings

PROJECT = Path(__file__).resolve().parents[2]
NETWORKS = ("heatmap", "labelling", "segmentation")

pytestmark = pytest.mark.skipif(not os.environ.get("LONG_TESTS"), reason="LONG_TESTS is not set")


def start(data: Path, folder: Path, log: Path) -> subprocess.Popen:
    """Start the recipe in a process group of its own, so that its scripts can be killed with it."""
    command = [sys.executable, "-m", "tests.experiments.tiny_starter", str(data), str(folder)]
    with log.open("w") as output:
        streams = {"stdout": output, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=PROJECT, start_new_session=True, **streams)


def kill_at(step: str, run: subprocess.Popen, log: Path, *, delay: float) -> None:
    """Kill a run some seconds after it has printed a step."""
    while step not in log.read_text():
        assert run.poll() is None, log.read_text()
        time.sleep(0.05)
    time.sleep(delay)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


def test_the_recipe_killed_twice_ends_whole(tmp_path):
    data, folder, log = tmp_path / "real", tmp_path / "starter", tmp_path / "log"
    ct, mask = two_vertebrae(shape=(60, 90, 140))
    for name in ("sub-whole", "maskalone"):
        write_volume(data / f"{name}_seg-vert_msk.nii.gz", mask)
    write_volume(data / "sub-whole_ct.nii.gz", ct)
    delays = np.random.default_rng(5).uniform(0.5, 4, 2)
    for step, delay in zip(("+ python pre_processing_segmentation.py", "--name segmentation-turned"), delays):
        kill_at(step, start(data, folder, log), log, delay=delay)
        assert not (folder / "shipped").exists()
    assert start(data, folder, log).wait() == 0, log.read_text()
    # Finished trainings are not done again, and what is shipped is theirs.
    assert log.read_text().count("already complete") >= 3
    models = folder / "work" / "models"
    assert {path.name for path in models.iterdir()} == {
        *("heatmap-small-crops", "heatmap-drawn", "labelling", "segmentation-phantoms"),
        *("segmentation-drawn", "segmentation-turned", "segmentation-real"),
    }
    shipped = {name: load_model(folder / "shipped" / name)[0].get_weights() for name in NETWORKS}
    # Without any scan whose centres are known the network for drawn scans is the last one.
    for name, last in {"heatmap": "heatmap-drawn", "labelling": "labelling"}.items():
        trained = load_model(models / last)[0].get_weights()
        assert all(np.array_equal(a, b) for a, b in zip(shipped[name], trained, strict=True))
    turned, real = (
        load_model(models / f"segmentation-{name}")[0].get_weights() for name in ("turned", "real")
    )
    for average, three, one in zip(shipped["segmentation"], turned, real, strict=True):
        np.testing.assert_allclose(average, (3 * three + one) / 4, rtol=1e-5, atol=1e-7)
    cases = {path.name: load_settings(path)["training_cases"] for path in models.iterdir()}
    natural = ["sub-verse004", "sub-verse400_split-verse201"]
    rare = ["sub-half3001x000", "sub-rare3003x000"]
    assert cases["segmentation-phantoms"] == natural
    for name in ("heatmap-small-crops", "heatmap-drawn", "labelling"):
        assert cases[name] == sorted([*natural, "drawn-0-0000000", "drawn-0-0000001"])
    assert cases["segmentation-drawn"] == cases["segmentation-turned"]
    assert cases["segmentation-drawn"] == sorted([*natural, *rare, "sub-mask-maskalone"])
    assert cases["segmentation-real"] == sorted([*natural, *rare, "sub-mask-maskalone", "sub-real-whole"])
