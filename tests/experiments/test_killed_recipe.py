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

from tests.imaging.examples import DATA, needs_data
from utils.learning.models import load_model
from utils.settings import load_settings

PROJECT = Path(__file__).resolve().parents[2]
NETWORKS = ("heatmap", "labelling", "segmentation")

pytestmark = [
    pytest.mark.skipif(not os.environ.get("LONG_TESTS"), reason="LONG_TESTS is not set"),
    pytest.mark.timeout(4 * 3600),  # several trainings
]


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


@needs_data
def test_the_recipe_killed_twice_ends_whole(tmp_path):
    shared, folder, log = DATA.parent, tmp_path / "starter", tmp_path / "log"
    delays = np.random.default_rng(5).uniform(0.5, 4, 2)
    for step, delay in zip(("+ python pre_processing_segmentation.py", "--name segmentation-base"), delays):
        kill_at(step, start(shared, folder, log), log, delay=delay)
        assert not (folder / "shipped").exists()
    assert start(shared, folder, log).wait() == 0, log.read_text()
    models = folder / "work" / "models"
    assert {path.name for path in models.iterdir()} == {
        *("heatmap", "labelling", "segmentation-base", "segmentation-real")
    }
    shipped = {name: load_model(folder / "shipped" / name)[0].get_weights() for name in NETWORKS}
    for name in ("heatmap", "labelling"):
        weights = load_model(models / name)[0].get_weights()
        assert all(np.array_equal(a, b) for a, b in zip(shipped[name], weights, strict=True))
    base, real = (load_model(models / f"segmentation-{n}")[0].get_weights() for n in ("base", "real"))
    for average, one, other in zip(shipped["segmentation"], base, real, strict=True):
        np.testing.assert_allclose(average, (one + other) / 2, rtol=1e-5, atol=1e-7)
    cases = {path.name: load_settings(path)["training_cases"] for path in models.iterdir()}
    generated = ["sub-natural1x000", "sub-natural1x001", "sub-widerare2x000"]
    assert cases["segmentation-base"] == generated
    for name in ("heatmap", "labelling"):
        assert cases[name] == sorted([*generated, "drawn-0-0000000", "drawn-0-0000001"])
    real = {case for case in cases["segmentation-real"] if case.startswith("sub-real-")}
    assert {"sub-real-chest_ct", "sub-real-abdomen_ct", "sub-real-verse014"} <= real
    others = {"sub-mask-verse004", "sub-trunk6201x000"}
    assert set(cases["segmentation-real"]) == {*generated, *real, *others}
