"""The choice of the device, with TensorFlow's list of devices replaced."""

import json
import random
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils.learning import preflight, runtime
from utils.settings import RunSettings


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
        monkeypatch.setattr(runtime, "gpu_failures", dict)
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


CANNOT = {preflight.CONVOLUTION: "exit status 1: no kernel image is available"}


@pytest.mark.parametrize("preset", ["small", "starter", None])
def test_a_gpu_that_cannot_is_left_for_the_cpu(machine, monkeypatch, capsys, preset):
    notes = machine(1)
    monkeypatch.setattr(runtime, "gpu_failures", lambda: CANNOT)
    assert runtime.choose_device("auto", preset) == "cpu" and notes.hidden == [([], "GPU")]
    said = capsys.readouterr().out
    assert "no kernel image" in said and "3-D convolution" in said and said.count("\n") == 1


@pytest.mark.parametrize(("device", "preset"), [("auto", "paper"), ("auto", "full"), ("gpu", "small")])
def test_a_gpu_that_cannot_ends_what_needs_one(machine, monkeypatch, capsys, device, preset):
    machine(1)
    monkeypatch.setattr(runtime, "gpu_failures", lambda: CANNOT)
    with pytest.raises(SystemExit) as end:
        runtime.choose_device(device, preset)
    said = capsys.readouterr().err
    assert end.value.code == 2 and "no kernel image" in said and said.count("\n") == 1


def test_in_a_process_that_has_computed_a_gpu_stays_as_it_is_and_cannot_be_hidden(machine, monkeypatch):
    machine(1)

    def refuse(*_):
        raise RuntimeError("cannot be modified after being initialized")

    monkeypatch.setattr(runtime.tf.config.experimental, "set_memory_growth", refuse)
    assert runtime.set_device("auto") == ("gpu", "GPU (Accelerator X)")
    monkeypatch.setattr(runtime.tf.config, "set_visible_devices", refuse)
    with pytest.raises(ValueError, match="found its GPUs in use: start a new process"):
        runtime.set_device("cpu")


def test_a_gpu_that_cannot_run_xla_goes_on_without_it(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "gpu_failures", lambda: {preflight.XLA: "exit status 1: no libdevice"})
    assert runtime._xla_of_gpu("off") == "off" and not capsys.readouterr().out
    assert {runtime._xla_of_gpu(wanted) for wanted in ("auto", "on")} == {"off"}
    assert capsys.readouterr().out.count("no libdevice") == 2
    monkeypatch.setattr(runtime, "gpu_failures", dict)
    assert [runtime._xla_of_gpu(wanted) for wanted in ("auto", "on")] == ["auto", "on"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('convolution'); print('XLA')", {}),
        ("print('convolution'); raise SystemExit('no ptxas')", {"XLA": "exit status 1: no ptxas"}),
        ("import os; os.abort()", {"convolution": "exit status -6: no message"}),
    ],
)
def test_what_a_trial_of_the_gpu_found(code, expected):
    assert preflight.failures_of([sys.executable, "-c", code]) == expected


def test_a_trial_that_hangs_is_told_by_what_had_worked_before(monkeypatch):
    monkeypatch.setattr(preflight, "_LIMIT_S", 8)
    code = "import time; print('convolution', flush=True); time.sleep(100)"
    found = preflight.failures_of([sys.executable, "-c", code])
    assert found == {"XLA": "no answer in 8 s"}


def test_the_trial_itself_works():
    """Here on a CPU."""
    assert preflight.failures_of([sys.executable, "-m", "utils.learning.preflight"]) == {}


def test_every_gpu_is_tried(monkeypatch, capsys):
    cpu = tf.config.list_logical_devices("CPU")[0]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [cpu, cpu] if kind == "GPU" else [])
    places = []
    preflight.main({preflight.CONVOLUTION: lambda: places.append(tf.random.normal(()).device)})
    assert len(places) == 2 and capsys.readouterr().out.split() == [preflight.CONVOLUTION]


@pytest.mark.parametrize(
    ("device", "xla", "compiles"),
    [
        ("cpu", "auto", False),
        ("cpu", "on", True),
        ("gpu", "auto", "auto"),
        ("gpu", "on", True),
        ("gpu", "off", False),
    ],
)
def test_what_xla_compiles(device, xla, compiles):
    chosen = runtime.Runtime(device, tf.distribute.get_strategy(), "float32", xla)
    assert chosen.compiles_network == compiles


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


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("capability", "replicas", "expected"),
    [
        (None, 1, "float32"),
        ((6, 1), 1, "float32"),
        ((7, 5), 1, "float16"),
        ((7, 5), 2, "float32"),
        ((8, 0), 1, "bfloat16"),
        ((9, 0), 8, "bfloat16"),
    ],
)
def test_precision_that_the_device_is_fast_in(capability, replicas, expected):
    assert runtime.choose_precision("auto", capability, replicas) == expected
    assert runtime.choose_precision("float32", capability, replicas) == "float32"


def test_float16_on_several_replicas_ends_with_status_2(capsys):
    assert runtime.choose_precision("float16", (8, 0), 1) == "float16"
    with pytest.raises(SystemExit) as end:
        runtime.choose_precision("float16", (8, 0), 2)
    assert end.value.code == 2 and "bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "lacks"),
    [
        *(("fma avx2", True), ("fma avx2 avx512f avx512bw avx512vl", True)),
        *(("fma avx2 avx512f avx512_bf16", False), ("fma avx2 avx512f amx_bf16", False)),
        *(("asimd bf16", False), (None, False)),
    ],
)
def test_processor_that_has_no_bfloat16(tmp_path, flags, lacks):
    facts = tmp_path / "cpuinfo"
    if flags is not None:
        facts.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert runtime.lacks_bfloat16(facts) is lacks


# ---------------------------------------------------------------- replicas and workers


def test_one_device_by_default_and_mirrored_ones_if_asked_for():
    assert runtime.choose_strategy("auto", "cpu") is tf.distribute.get_strategy()
    assert runtime.choose_strategy("one", "cpu") is tf.distribute.get_strategy()
    assert isinstance(runtime.choose_strategy("mirrored", "cpu"), tf.distribute.MirroredStrategy)


@pytest.fixture
def slurm(monkeypatch):
    """Give a function that sets the variables of a SLURM step of two nodes with two tasks each."""

    def pretend(rank, **more):
        step = {"STEP_NUM_TASKS": "4", "STEP_NODELIST": "node[07-08]", "STEP_TASKS_PER_NODE": "2(x2)"}
        own = {"PROCID": str(rank), "LOCALID": str(rank % 2), "JOB_ID": "20003"}
        variables = {f"SLURM_{name}": value for name, value in {**step, **own, **more}.items()}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return variables

    return pretend


@pytest.mark.parametrize("rank", range(4))
def test_a_slurm_step_is_a_cluster_of_workers(slurm, machine, rank):
    notes = machine(4)
    resolver = runtime.cluster_resolver(slurm(rank), "auto")
    # Ports from 12000 on, shifted by the job's number modulo 20000, one a task of the node.
    addresses = ["node07:12003", "node07:12004", "node08:12003", "node08:12004"]
    assert resolver.cluster_spec().as_dict() == {"worker": addresses}
    assert (resolver.task_type, resolver.task_id) == ("worker", rank)
    assert resolver.num_accelerators() == {"GPU": 2}
    ((shown, kind),) = notes.hidden
    assert kind == "GPU"
    assert [gpu.name[-1] for gpu in shown] == (["0", "1"] if rank % 2 == 0 else ["2", "3"])


def test_a_slurm_step_on_nodes_without_gpus(slurm, machine):
    machine(0)
    assert runtime.cluster_resolver(slurm(1), "workers").num_accelerators() == {"GPU": 0}


@pytest.mark.parametrize(
    ("gpus", "tasks", "more", "expected"),
    [
        ("abcd", 2, {"SLURM_LOCALID": "1"}, "cd"),
        ("abc", 2, {"SLURM_LOCALID": "0"}, "a"),
        ("abcd", 4, {"SLURM_LOCALID": "3"}, "d"),
        ("ab", 2, {"SLURM_LOCALID": "1", "SLURM_GPUS_PER_TASK": "2"}, "ab"),
        ("a", 4, {"SLURM_LOCALID": "3"}, "a"),  # SLURM shows each task its own
    ],
)
def test_gpus_are_shared_out_unless_slurm_has_bound_them(gpus, tasks, more, expected):
    assert runtime.gpus_of_task(list(gpus), more, tasks) == list(expected)


def test_tf_config_goes_before_slurm(slurm, monkeypatch):
    config = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    resolver = runtime.cluster_resolver({"TF_CONFIG": json.dumps(config), **slurm(0)}, "auto")
    assert resolver.cluster_spec().as_dict() == {"worker": ["a:1", "b:2"]} and resolver.task_id == 1


TWO = {"worker": ["a:1", "b:2"]}
CHIEF = {"chief": ["c:1"], **TWO}
WHOLE, ADDRESSES = "an object with 'cluster' and 'task'", "lists of addresses by task type in 'cluster'"
TYPES, INDEX = "workers and at most one chief in 'cluster'", "an index from 0 to 1 in 'task'"


@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        ("{worker", "JSON", "{worker"),
        ("[1]", WHOLE, "[1]"),
        ('"a:1"', WHOLE, '"a:1"'),
        ({"task": {"type": "worker", "index": 0}}, WHOLE, '{"task": {'),
        ({"cluster": TWO}, WHOLE, '{"cluster": {'),
        ({"cluster": ["a:1", "b:2"], "task": {}}, ADDRESSES, '["a:1", "b:2"]'),
        ({"cluster": {}, "task": {}}, ADDRESSES, "{}"),
        ({"cluster": {"worker": "a:1"}, "task": {}}, ADDRESSES, '{"worker": "a:1"}'),
        ({"cluster": {"worker": []}, "task": {}}, ADDRESSES, '{"worker": []}'),
        ({"cluster": {"worker": ["a:1", 2]}, "task": {}}, ADDRESSES, '{"worker": ["a:1", 2]}'),
        ({"cluster": {"ps": ["a:1"], **TWO}, "task": {}}, TYPES, '{"ps": ["a:1"], "worker": ['),
        ({"cluster": {"chief": ["a:1", "b:2"]}, "task": {}}, TYPES, '{"chief": ["a:1", "b:2"]}'),
        ({"cluster": TWO, "task": ["worker", 0]}, "the type worker in 'task'", '["worker", 0]'),
        ({"cluster": TWO, "task": {"index": 0}}, "the type worker in 'task'", '{"index": 0}'),
        ({"cluster": TWO, "task": {"type": [], "index": 0}}, "the type worker in 'task'", '{"type": []'),
        ({"cluster": TWO, "task": {"type": "ps", "index": 0}}, "the type worker in 'task'", '{"type": "ps"'),
        ({"cluster": CHIEF, "task": {"type": "ps"}}, "the type chief or worker in 'task'", '{"type": "ps"}'),
        ({"cluster": TWO, "task": {"type": "worker"}}, INDEX, '{"type": "worker"}'),
        ({"cluster": TWO, "task": {"type": "worker", "index": 2}}, INDEX, '{"type": "worker", "index": 2}'),
        ({"cluster": TWO, "task": {"type": "worker", "index": -1}}, INDEX, '{"type": "worker", "index": -1}'),
        (
            {"cluster": TWO, "task": {"type": "worker", "index": True}},
            INDEX,
            '{"type": "worker", "index": true}',
        ),
    ],
)
@pytest.mark.parametrize("replicas", ["auto", "workers"])
def test_a_malformed_tf_config_is_one_line_with_status_2(
    monkeypatch, capsys, replicas, text, expected, found
):
    text = text if isinstance(text, str) else json.dumps(text)
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(SystemExit) as end:
        runtime.start_runtime(RunSettings(device="cpu", replicas=replicas), "small")
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith(f"TF_CONFIG: expected {expected}, found {found}")


def test_a_malformed_tf_config_does_not_matter_where_no_cluster_is_looked_for():
    assert runtime.cluster_resolver({"TF_CONFIG": "["}, "one") is None


@pytest.mark.parametrize("index", [1, "1"])  # the text is what a shell script easily makes of it
def test_an_index_may_be_text(monkeypatch, index):
    config = {"cluster": TWO, "task": {"type": "worker", "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert runtime.cluster_resolver({"TF_CONFIG": json.dumps(config)}, "auto").task_id == 1


@pytest.mark.parametrize(
    ("task", "is_chief"), [(("chief", 0), True), (("worker", 0), False), (("worker", 1), False)]
)
def test_where_there_is_a_chief_the_first_worker_is_none(task, is_chief):
    cluster = tf.train.ClusterSpec(CHIEF)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type=task[0], task_id=task[1]
    )
    strategy = SimpleNamespace(cluster_resolver=resolver)
    assert runtime.Runtime("cpu", strategy, "float32").is_chief == is_chief


def test_the_first_worker_is_the_chief_where_no_other_is_and_a_process_alone_always():
    for number, is_chief in ((0, True), (1, False)):
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(TWO), task_type="worker", task_id=number
        )
        strategy = SimpleNamespace(cluster_resolver=resolver)
        assert runtime.Runtime("cpu", strategy, "float32").is_chief == is_chief
    assert runtime.Runtime("cpu", tf.distribute.get_strategy(), "float32").is_chief


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TF_CONFIG": "{}"},
        {"TF_CONFIG": ""},
        {"TF_CONFIG": json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}})},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # in a batch script, outside of srun
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_process_alone_is_no_cluster_and_must_not_be_asked_for_one(environment, capsys):
    assert runtime.cluster_resolver(environment, "auto") is None
    with pytest.raises(SystemExit) as end:
        runtime.cluster_resolver(environment, "workers")
    assert end.value.code == 2 and "srun" in capsys.readouterr().err


def test_no_cluster_is_looked_for_where_one_device_is_asked_for(slurm):
    assert runtime.cluster_resolver(slurm(0), "one") is None
    assert runtime.cluster_resolver(slurm(0), "mirrored") is None
