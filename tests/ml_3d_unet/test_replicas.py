"""Replicas, mirrored or in worker processes, equal one device with the batch of all; and a lost worker."""

import json
import signal
import socket

import numpy as np
import pytest

from tests import forked

NEVER = -1


def free_ports(count):
    """Give ports that nothing listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def task_of(task, ports):
    """Give TF_CONFIG for one of the workers at these ports."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": task}})


def start(mode, folder, *more, **environment):
    return forked.start("-m", "tests.ml_3d_unet.replica_runs", mode, folder, *map(str, more), **environment)


def start_workers(folder, *more_of_each):
    ports = free_ports(2)
    more_of_each = more_of_each or ((), ())
    return [
        start("workers", folder, *more, TF_CONFIG=task_of(k, ports)) for k, more in enumerate(more_of_each)
    ]


def ended(processes):
    """Wait for processes; give the exit status and the messages of each."""
    ends = [process.end() for process in processes]
    return [(end.returncode, end.stdout, end.stderr) for end in ends]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Weights, moments and losses of the three ways: those of both workers apart."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "mirrored", "workers")}
    processes = [start(name, folders[name]) for name in ("one", "mirrored")] + start_workers(
        folders["workers"]
    )
    for status, _, errors in ended(processes):
        assert status == 0, errors[-3000:]
    files = {
        "one": ("one", 0),
        "mirrored": ("mirrored", 0),
        "worker 0": ("workers", 0),
        "worker 1": ("workers", 1),
    }
    return {name: np.load(folders[folder] / f"result_{rank}.npz") for name, (folder, rank) in files.items()}


@pytest.mark.parametrize("way", ["mirrored", "worker 0", "worker 1"])
def test_weights_after_20_steps_of_sgd_are_those_of_one_device(results, way):
    names = [name for name in results["one"] if name.startswith("weight")]
    assert len(names) == 4 * 6 + 2  # kernel, bias and four of the normalisation a block; the last layer
    distances = [np.abs(results[way][name] - results["one"][name]).max() for name in names]
    print(f"{way}: largest distance of a weight {max(distances):.1e}")
    assert max(distances) < 1e-5


@pytest.mark.parametrize("way", ["mirrored", "worker 0", "worker 1"])
def test_gradients_of_the_first_step_of_adam_are_those_of_one_device(results, way):
    # After one step Adam's first moment is the gradient times one minus beta.
    names = [name for name in results["one"] if name.startswith("moment")]
    assert len(names) == 4 * 4 + 2
    largest = max(np.abs(results["one"][name]).max() for name in names)
    differences = [np.abs(results[way][name] - results["one"][name]).max() / largest for name in names]
    print(f"{way}: largest relative difference of a gradient {max(differences):.1e}")
    assert largest > 0 and max(differences) < 1e-5


@pytest.mark.parametrize("way", ["mirrored", "worker 0", "worker 1"])
def test_kernels_after_two_steps_of_muon_are_those_of_one_device(results, way):
    names = [name for name in results["one"] if name.startswith("kernel")]
    assert len(names) == 4 * 2
    distances = [np.abs(results[way][name] - results["one"][name]).max() for name in names]
    print(f"{way}: largest distance of a weight {max(distances):.1e}")
    assert max(distances) < 1e-5


@pytest.mark.parametrize("way", ["mirrored", "worker 0", "worker 1"])
def test_a_distilled_student_is_that_of_one_device(results, way):
    names = [name for name in results["one"] if name.startswith("distilled")]
    assert len(names) == 4 * 6 + 2
    assert max(np.abs(results[way][name] - results["one"][name]).max() for name in names) < 1e-5


@pytest.mark.parametrize("way", ["mirrored", "worker 0", "worker 1"])
def test_losses_are_means_over_all_examples_once(results, way):
    np.testing.assert_allclose(results[way]["losses"], results["one"]["losses"], rtol=1e-5)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_lost_worker_ends_the_job_with_a_message_and_a_restart_goes_on(tmp_path, dead):
    more = [(3,) if rank == dead else (NEVER,) for rank in (0, 1)]
    (dead_status, *_), (status, _, errors) = (
        ended(start_workers(tmp_path, *more))[k] for k in (dead, 1 - dead)
    )
    assert dead_status == -signal.SIGKILL and status == 1, errors[-3000:]
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "expected all workers to answer in epoch 2, lost one" in line
    assert "Start all workers again" in line and "last checkpoint" in line
    again = ended(start_workers(tmp_path, (NEVER,), (NEVER,)))
    assert [end[0] for end in again] == [0, 0], again[0][2][-3000:]
    assert "going on after epoch 1" in again[0][1] and "epochs: 3" in again[0][1]
    # Worker 0 alone writes and reports.
    assert "going on" not in again[1][1] and "epochs: 3" in again[1][1]
