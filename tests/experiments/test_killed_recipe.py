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

from experiments.real.facts import ScanFacts, read_facts
from experiments.real.masks import reference_of
from experiments.starter import LABELLING
from tests.imaging.examples import DATA, needs_data
from utils.learning.models import load_model
from utils.settings import load_settings

PROJECT = Path(__file__).resolve().parents[2]

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


def is_outlined(scan: ScanFacts) -> bool:
    return bool(scan.points_mm) and reference_of(scan) is None


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
    models = {
        **{path.name: path for path in (folder / "work" / "models").iterdir()},
        **{
            f"segmentation-{name}": folder / work / "models" / f"segmentation-{name}"
            for name, work in (("outlined", "work-outlined"), ("real", "work-real"), ("again", "work-real"))
        },
    }
    names = ("base", "outlined", "real", "again")
    assert sorted(models) == sorted(["heatmap", *LABELLING, *(f"segmentation-{name}" for name in names)])
    shipped_from = {name: models[name] for name in ("heatmap", "labelling")}
    shipped_from["segmentation"] = models["segmentation-real"].with_name("segmentation-average")
    for name, source in shipped_from.items():
        ours, theirs = (load_model(path)[0] for path in (folder / "shipped" / name, source))
        pairs = zip(ours.get_weights(), theirs.get_weights(), strict=True)
        assert all(np.array_equal(a, b.astype(np.float16)) for a, b in pairs)
    cases = {name: load_settings(path)["training_cases"] for name, path in models.items()}
    generated = ["sub-natural1x000", "sub-natural1x001", "sub-widerare2x000"]
    assert cases["segmentation-base"] == generated
    for name in ("heatmap", *LABELLING):
        assert cases[name] == sorted([*generated, "drawn-0-0000000", "drawn-0-0000001"])
    outlined = {f"sub-real-{name}" for name, scan in read_facts().items() if is_outlined(scan)}
    assert {*generated} <= set(cases["segmentation-outlined"]) <= {*generated, *outlined}
    others = {"sub-mask-verse004", "sub-trunk6201x000"}
    others |= {"sub-real-chest_ct", "sub-real-abdomen_ct", "sub-real-verse014"}
    assert {*generated, *others} <= set(cases["segmentation-real"]) <= {*generated, *others, *outlined}
    assert cases["segmentation-again"] == cases["segmentation-real"]
