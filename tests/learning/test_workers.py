"""The segmentation training as two worker processes, started from a shell as a cluster would."""

import json

import pandas as pd

from tests import forked
from tests.learning import examples
from tests.ml_3d_unet.test_replicas import ended, free_ports, task_of

TINY = ("--filters", "2", "3", "4", "4", "--patch-voxels", "16", "--shift-mm", "8", "--preset", "small")


def start(work_dir, task, ports, *more):
    command = ("train_segmentation.py", "--work-dir", work_dir, "--device", "cpu", *TINY, *more)
    return forked.start(*command, TF_CONFIG=task_of(task, ports))


def test_two_workers_train_one_network(tmp_path):
    examples.write_segmentation_stage(tmp_path)
    # Five examples of two workers with one each: the last step is filled up.
    more = ("--epochs", "1", "--examples-per-epoch", "5", "--batch-size", "1")
    ports = free_ports(2)
    ends = ended([start(tmp_path, task, ports, *more) for task in (0, 1)])
    assert [status for status, *_ in ends] == [0, 0], ends[0][2][-3000:]
    assert all("Training on 2 replicas in float32." in said for _, said, _ in ends)
    assert "epoch 1/1" in ends[0][1] and "epoch 1/1" not in ends[1][1]  # worker 0 alone reports
    directory = tmp_path / "models" / "segmentation"
    row = pd.read_csv(directory / "history.csv").iloc[0]
    assert round(row["examples_per_second"] * row["seconds"]) == 5
    settings = json.loads((directory / "settings.json").read_text())
    assert (settings["replica_count"], settings["computed_in"]) == (2, "float32")
    assert (directory / "best.weights.h5").is_file()
