"""The choice of the device, with TensorFlow's list of devices replaced."""

import random
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils.learning import runtime


@pytest.fixture
def machine(monkeypatch):
    """Give a function that pretends to have some GPUs; it notes what is made invisible or set to grow."""
    notes = SimpleNamespace(hidden=[], growing=[])

    def pretend(count):
        gpus = [SimpleNamespace(name=f"/physical_device:GPU:{k}") for k in range(count)]
        details = {"device_name": "Accelerator X"}
        experimental = SimpleNamespace(
            set_memory_growth=lambda gpu, grows: notes.growing.append((gpu.name, grows)),
            get_device_details=lambda gpu: details,
        )
        config = SimpleNamespace(
            list_physical_devices=lambda kind: gpus if kind == "GPU" else [],
            set_visible_devices=lambda devices, kind: notes.hidden.append((devices, kind)),
            experimental=experimental,
        )
        monkeypatch.setattr(runtime.tf, "config", config)
        return notes

    return pretend


@pytest.mark.parametrize(
    ("device", "preset"), [("auto", "full"), ("auto", "paper"), ("gpu", "small"), ("gpu", None)]
)
def test_no_gpu_where_one_is_needed_ends_with_status_2(machine, capsys, device, preset):
    machine(0)
    with pytest.raises(SystemExit) as end:
        runtime.choose_device(device, preset)
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    assert "--device cpu" in said.err and "requirements-gpu.txt" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("preset", ["small", None])
def test_without_gpu_it_goes_on_and_says_so(machine, capsys, preset):
    machine(0)
    assert runtime.choose_device("auto", preset) == "cpu"
    assert capsys.readouterr().out == "Device: CPU (no GPU is visible).\n"


@pytest.mark.parametrize("preset", ["paper", "full", "small", None])
def test_cpu_hides_the_gpus(machine, capsys, preset):
    notes = machine(2)
    assert runtime.choose_device("cpu", preset) == "cpu"
    assert notes.hidden == [([], "GPU")]
    assert capsys.readouterr().out == "Device: CPU.\n"


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_gpu_is_taken_and_named(machine, capsys, device):
    notes = machine(2)
    assert runtime.choose_device(device, "full") == "gpu"
    assert not notes.hidden
    assert notes.growing == [("/physical_device:GPU:0", True), ("/physical_device:GPU:1", True)]
    assert "Accelerator X" in capsys.readouterr().out


def test_seed_fixes_all_three_generators():
    def numbers():
        runtime.set_seed(3)
        weights = keras.layers.Dense(4)
        weights.build((None, 4))
        return [random.random(), np.random.rand(), float(tf.random.normal([])), *np.ravel(weights.kernel)]

    first = numbers()
    assert numbers() == first
    runtime.set_seed(4)
    assert random.random() != first[0]
