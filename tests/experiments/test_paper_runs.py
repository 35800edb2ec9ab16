"""The published experiment from nothing to its table, with networks of seconds; also killed and continued."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from experiments.steps import PROJECT

#: What a run takes differs from run to run.
MEASURED = ["seconds_per_patch", "seconds_a_scan"]


def start(folder: Path, log: Path, *, one_core: bool = False) -> subprocess.Popen:
    """Start the experiment in a process group of its own, so that its scripts can be killed with it."""
    command = [sys.executable, "-m", "tests.experiments.tiny_paper", str(folder)]
    if one_core:
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    with log.open("a") as output:
        streams = {"stdout": output, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=PROJECT, start_new_session=True, **streams)


def tables_of(folder: Path) -> list[pd.DataFrame]:
    return [
        pd.read_csv(folder / "paper.csv").drop(columns=MEASURED),
        pd.read_csv(folder / "differences.csv"),
    ]


def test_the_experiment_goes_from_nothing_to_its_table(tmp_path):
    folder, log = tmp_path / "paper", tmp_path / "log"
    assert start(folder, log).wait() == 0, log.read_text()
    table, differences = tables_of(folder)
    assert table["network"].tolist() == ["teacher", "student", "student + KD (soft, T = 2)"]
    assert table["mean_dice_overlap"].between(0, 1).all() and (table["parameters"] > 0).all()
    assert differences["network"].tolist() == ["teacher", "student + KD (soft, T = 2)"]
    hours = pd.read_csv(folder / "hours.csv")
    assert hours["training"].tolist() == ["heatmap network", "teacher", "student", "student with teacher"]
    assert (hours["hours"] > 0).all()
    assert "| teacher" in (folder / "paper.md").read_text()


@pytest.mark.skipif(not os.environ.get("LONG_TESTS"), reason="LONG_TESTS is not set")
@pytest.mark.timeout(4 * 3600)  # five runs of the experiment
def test_killed_at_three_moments_it_ends_with_the_same_table(tmp_path):
    log = tmp_path / "log"
    assert start(tmp_path / "whole", log, one_core=True).wait() == 0, log.read_text()
    for number, step in enumerate(("--name timing-student", "--name teacher-ramp", "infer.py")):
        log = tmp_path / f"log{number}"
        run = start(tmp_path / "killed", log, one_core=True)
        while not (log.is_file() and step in log.read_text()):
            assert run.poll() is None, log.read_text()
            time.sleep(0.05)
        time.sleep(2 + 3 * number)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert not (tmp_path / "killed" / "paper.md").exists()
    log = tmp_path / "last"
    assert start(tmp_path / "killed", log, one_core=True).wait() == 0, log.read_text()
    for whole, killed in zip(tables_of(tmp_path / "whole"), tables_of(tmp_path / "killed"), strict=True):
        pd.testing.assert_frame_equal(whole, killed, check_exact=True)
