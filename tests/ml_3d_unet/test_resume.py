"""A training killed at random moments, within epochs and between them, ends as one that was left alone."""

import os
import random
import signal
import time
from pathlib import Path

import keras
import numpy as np

from ML_3D_Unet.utils.train import read_history
from tests import forked
from tests.ml_3d_unet import resume_runs

KILLS = 10
LONGEST = 300.0


def start(folder):
    context = forked.context()
    began = context.Event()
    process = context.Process(target=resume_runs.run, args=(str(folder), began))
    process.start()
    return process, began


def finish(folder):
    process, _ = start(folder)
    process.join(LONGEST)
    assert process.exitcode == 0


def kill_at(folder, seconds):
    """Start the training, and kill it so many seconds after its first step; tell whether it still ran."""
    process, began = start(folder)
    limit = time.monotonic() + LONGEST
    # A run that is complete already ends without a step.
    while not began.wait(0.05) and process.is_alive():
        assert time.monotonic() < limit
    process.join(seconds)
    os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
    process.join(LONGEST)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def test_a_run_killed_at_ten_random_moments_equals_an_unbroken_one_bit_for_bit(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)
    seconds = sum(row["seconds"] for row in read_history(whole / "history.csv", last_epoch=9))
    moments = [random.uniform(0.0, 0.25 * seconds + 1.0) for _ in range(KILLS)]
    killed = [kill_at(broken, moment) for moment in moments]
    finish(broken)
    print(f"killed {sum(killed)} times, after {', '.join(f'{moment:.2f}' for moment in moments)} s")
    assert sum(killed) >= KILLS // 2
    assert_same_end(whole, broken)
    # Were the loss scale lost, it would be the first one: it is not, so the comparison above would show it.
    found = np.load(whole / "variables.npz")
    scalars = [
        float(found[name]) for name in found if name.startswith("optimizer") and found[name].shape == ()
    ]
    assert any(value > 8.0 for value in scalars)


def assert_same_end(whole: Path, broken: Path) -> None:
    expected, found = (np.load(folder / "variables.npz") for folder in (whole, broken))
    assert set(expected) == set(found) and len(set(expected)) > 60
    assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []
    rows = [read_history(folder / "history.csv", last_epoch=99) for folder in (whole, broken)]
    measured = ("epoch", "loss", "val_loss", "learning_rate")
    assert [[row[name] for name in measured] for row in rows[0]] == [
        [row[name] for name in measured] for row in rows[1]
    ]
    for name in ("best.keras", "last.keras"):
        pair = [keras.models.load_model(folder / name).get_weights() for folder in (whole, broken)]
        assert all(np.array_equal(a, b) for a, b in zip(*pair))
