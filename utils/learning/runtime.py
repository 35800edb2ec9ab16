"""What a run computes on, chosen once, before TensorFlow touches any device.

The device, the strategy that spreads a training over several of them, and the numbers it computes in.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import keras
import tensorflow as tf

from ML_3D_Unet.utils.compilation import Choice
from utils import quiet_start
from utils.learning.compilation import compile_examples
from utils.learning.preflight import CONVOLUTION, XLA, gpu_failures
from utils.settings import RunSettings

#: Presets that are not meant for a CPU: an epoch would take hours.
GPU_PRESETS = ("paper", "full")
#: Compute capabilities from which NVIDIA's GPUs have tensor cores for float16, and for bfloat16.
HALF_CAPABILITY, BFLOAT16_CAPABILITY = (7, 0), (8, 0)
#: Ports of SLURM tasks begin here, shifted by the job's number, so that two jobs on a node do not meet.
SLURM_FIRST_PORT, SLURM_PORTS = 12000, 20000
#: Letters of a malformed TF_CONFIG that a message shows.
_SHOWN = 80


@dataclass(frozen=True)
class Runtime:
    """What a training runs on.

    Attributes
    ----------
    device : str
        "gpu" or "cpu".
    strategy : tf.distribute.Strategy
        One device, all GPUs of this machine, or the workers of a job.
    precision : str
        "float32", "bfloat16" or "float16".
    xla : str
        "auto", "on" or "off", see `RunSettings`; "off" too where a GPU cannot run what XLA compiles.
    """

    device: str
    strategy: tf.distribute.Strategy
    precision: str
    xla: Literal["auto", "on", "off"] = "auto"

    @property
    def replicas(self) -> int:
        """Number of devices that train together, on all workers."""
        return self.strategy.num_replicas_in_sync

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files and reports: of several the chief, or else worker 0."""
        resolver = self.strategy.cluster_resolver
        if resolver is None or resolver.task_type is None:
            return True
        first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
        return (resolver.task_type, resolver.task_id) == (first, 0)

    @property
    def compiles_network(self) -> Choice:
        """Whether XLA compiles the network: what is faster on one GPU; on a CPU it is ten times slower."""
        if self.xla == "auto":
            return "auto" if self.device == "gpu" and self.replicas == 1 else False
        return self.xla == "on"


def start_runtime(settings: RunSettings, preset: str) -> Runtime:
    """Choose device, strategy and precision, set them up, and say what they are.

    Must be called before anything else touches TensorFlow's devices.

    Parameters
    ----------
    settings : RunSettings
        `device`, `replicas` and `precision` are read.
    preset : str
        Preset of the training.

    Returns
    -------
    Runtime

    Raises
    ------
    SystemExit
        With status 2, after a line that says what to do, if what was asked for is not there.
    """
    resolver = cluster_resolver(os.environ, settings.replicas)
    device = choose_device(settings.device, preset)
    strategy = choose_strategy(settings.replicas, device, resolver)
    replicas = strategy.num_replicas_in_sync
    if device == "cpu" and settings.precision == "float16":
        _end("Expected --precision float32 or bfloat16 on a CPU, received float16.")
    precision = choose_precision(settings.precision, _compute_capability(device), replicas)
    keras.mixed_precision.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    print(f"Training on {replicas} replica{'s' * (replicas > 1)} in {precision}.", flush=True)
    if device == "cpu" and precision == "bfloat16" and lacks_bfloat16():
        print("This processor multiplies no bfloat16: it takes several times as long as float32.", flush=True)
    xla = settings.xla if device == "cpu" else _xla_of_gpu(settings.xla)
    compile_examples(xla != "off")
    return Runtime(device, strategy, precision, xla)


def _xla_of_gpu(wanted: str) -> str:
    """Give "off" for a GPU that cannot run what XLA compiles, with a line that says so."""
    found = gpu_failures().get(XLA)
    if wanted == "off" or found is None:
        return wanted
    print(f"XLA is left out: expected the GPU to run a function compiled by it, found {found}", flush=True)
    return "off"


def choose_device(device: str, preset: str | None = None) -> str:
    """Make the device visible that was asked for, and print which one it is; see `set_device`.

    Returns
    -------
    str
        "gpu" or "cpu".

    Raises
    ------
    SystemExit
        With status 2, after a line that says what to do, if there is no such device.
    """
    try:
        kind, name = set_device(device, preset)
    except ValueError as error:
        _end(str(error))
    print(f"Device: {name}.", flush=True)
    return kind


def set_device(device: str, preset: str | None = None) -> tuple[str, str]:
    """Make the device visible that was asked for.

    Parameters
    ----------
    device : str
        "gpu", "cpu", or "auto": a GPU if there is one.
    preset : str, optional
        The preset of a training; "paper" and "full" do not go on to a CPU by themselves.

    Returns
    -------
    kind : str
        "gpu" or "cpu".
    name : str
        Which one it is, and why where it is not what one might expect.

    Raises
    ------
    ValueError
        If a GPU is needed and none is visible or it does not work (`utils.learning.preflight`), or is to be
        hidden after TensorFlow has begun to compute. The text says what to do.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and (device == "gpu" or (device == "auto" and preset in GPU_PRESETS)):
        raise ValueError(_without_gpu(device, preset))
    why = "" if device == "cpu" else " (no GPU is visible)"
    if gpus and device != "cpu" and (found := gpu_failures().get(CONVOLUTION)):
        text = f"expected the GPU to run a 3-D convolution and its gradient, found {found}"
        if device == "gpu" or preset in GPU_PRESETS:
            raise ValueError(f"{text}; update its driver or TensorFlow, or pass --device cpu.")
        device, why = "cpu", f" ({text})"
    if device == "cpu" or not gpus:
        _hide_gpus()
        return "cpu", f"CPU{why}"
    for gpu in gpus:
        # In a notebook that has computed already, its memory stays as it was taken.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    return "gpu", f"GPU ({name})"


def _hide_gpus() -> None:
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        raise ValueError(
            "Expected the CPU to be chosen before TensorFlow computes anything, found its GPUs in use: start "
            "a new process."
        ) from None


def _without_gpu(device: str, preset: str | None) -> str:
    asked = "--device gpu" if device == "gpu" else f"the preset {preset!r}"
    return (
        f"Expected a GPU for {asked}, found none visible to TensorFlow. Install one's driver and "
        "`pip install -r requirements-gpu.txt`, or pass --device cpu (slow), or --preset small. "
        f"What TensorFlow said of it: {quiet_start.LOG}"
    )


def _end(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(2)


def cluster_resolver(
    environment: Mapping[str, str], replicas: str
) -> tf.distribute.cluster_resolver.ClusterResolver | None:
    """Give the cluster that this process is a worker of, as TF_CONFIG or SLURM describes it.

    Parameters
    ----------
    environment : mapping of str to str
        Environment variables. TF_CONFIG goes before SLURM, whose variables are heeded in a step that `srun`
        started with several tasks.
    replicas : str
        "workers" asks for a cluster, "auto" takes one that is there; otherwise there is none.

    Returns
    -------
    ClusterResolver or None
        None is a training of this process alone.

    Raises
    ------
    SystemExit
        With status 2 if a cluster is asked for and neither describes one, or if TF_CONFIG is malformed.
    """
    if replicas not in ("auto", "workers"):
        return None
    cluster = _cluster_of_tf_config(environment.get("TF_CONFIG") or "{}")
    if sum(map(len, cluster.values())) > 1:
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _slurm_cluster(environment)
    if replicas == "workers":
        _end(
            "Expected several workers for --replicas workers, found none: set TF_CONFIG in each process, or "
            "start the command with `srun --ntasks N`."
        )
    return None


def _cluster_of_tf_config(text: str) -> dict[str, list[str]]:
    """Give the addresses by task type; none for an empty object. Anything malformed ends the process."""
    try:
        config = json.loads(text)
    except ValueError:
        _end(f"TF_CONFIG: expected JSON, found {text[:_SHOWN]}.")
    if config == {}:
        return {}
    if not isinstance(config, dict) or not {"cluster", "task"} <= config.keys():
        _end_config("an object with 'cluster' and 'task'", config)
    cluster, task = config["cluster"], config["task"]
    if not (isinstance(cluster, dict) and cluster and all(map(_is_list_of_texts, cluster.values()))):
        _end_config("lists of addresses by task type in 'cluster'", cluster)
    if not cluster.keys() <= {"chief", "worker"} or len(cluster.get("chief", ())) > 1:
        _end_config("workers and at most one chief in 'cluster'", cluster)
    kind = task.get("type") if isinstance(task, dict) else None
    if not (isinstance(kind, str) and kind in cluster):
        _end_config(f"the type {' or '.join(cluster)} in 'task'", task)
    index, count = str(task.get("index")), len(cluster[kind])
    if not (index.isdecimal() and int(index) < count):
        _end_config(f"an index from 0 to {count - 1} in 'task'", task)
    return cluster


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(each, str) for each in value)


def _end_config(expected: str, found: Any) -> NoReturn:
    _end(f"TF_CONFIG: expected {expected}, found {json.dumps(found)[:_SHOWN]}.")


def _slurm_cluster(environment: Mapping[str, str]) -> tf.distribute.cluster_resolver.ClusterResolver:
    """Read the cluster off SLURM's variables, and make the GPUs of this task visible.

    TensorFlow's resolver would share out the GPUs of a node by itself, but fails on nodes without any and
    where SLURM shows each task its own only. So it is asked for addresses and rank alone.
    """
    port = SLURM_FIRST_PORT + int(environment.get("SLURM_JOB_ID", 0)) % SLURM_PORTS
    slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=port, gpus_per_node=10**6, gpus_per_task=1, auto_set_gpu=False
    )
    cluster = slurm.cluster_spec()
    host = cluster.task_address(slurm.task_type, slurm.task_id).rpartition(":")[0]
    tasks_on_node = sum(address.rpartition(":")[0] == host for address in cluster.job_tasks("worker"))
    gpus = gpus_of_task(tf.config.list_physical_devices("GPU"), environment, tasks_on_node)
    tf.config.set_visible_devices(gpus, "GPU")
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type=slurm.task_type, task_id=slurm.task_id, num_accelerators={"GPU": len(gpus)}
    )


def gpus_of_task(gpus: list, environment: Mapping[str, str], tasks_on_node: int) -> list:
    """Give the GPUs that one SLURM task uses.

    Parameters
    ----------
    gpus : list of physical devices
        Those that the process sees.
    environment : mapping of str to str
        SLURM's variables.
    tasks_on_node : int
        Tasks of the step on this node.

    Returns
    -------
    list of physical devices
        All, where SLURM has bound GPUs to tasks or there are fewer than tasks; else an equal share of them.
    """
    is_bound = "SLURM_GPUS_PER_TASK" in environment or "SLURM_TRES_PER_TASK" in environment
    if is_bound or len(gpus) < tasks_on_node:
        return list(gpus)
    share, place = len(gpus) // tasks_on_node, int(environment.get("SLURM_LOCALID", 0))
    return list(gpus[place * share : (place + 1) * share])


def choose_strategy(
    replicas: str, device: str, resolver: tf.distribute.cluster_resolver.ClusterResolver | None = None
) -> tf.distribute.Strategy:
    """Give the strategy of a training.

    Parameters
    ----------
    replicas : str
        "auto", "one", "mirrored" or "workers", see `RunSettings.replicas`.
    device : str
        "gpu" or "cpu".
    resolver : ClusterResolver, optional
        The cluster of a training of several workers, see `cluster_resolver`.

    Returns
    -------
    tf.distribute.Strategy
        Workers where there is a cluster; a mirrored strategy over several logical devices of the kind (on a
        CPU only if asked for); else TensorFlow's default, which is one device.
    """
    if resolver is not None:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    kind = device.upper()
    devices = [logical.name for logical in tf.config.list_logical_devices(kind)]
    if replicas == "mirrored" or (replicas == "auto" and device == "gpu" and len(devices) > 1):
        return tf.distribute.MirroredStrategy([name.removeprefix("/device:") for name in devices])
    return tf.distribute.get_strategy()


def choose_precision(precision: str, capability: tuple[int, int] | None, replicas: int) -> str:
    """Give the numbers that the networks compute in.

    Parameters
    ----------
    precision : str
        "float32", "bfloat16", "float16", or "auto".
    capability : tuple of int, 2, optional
        Compute capability of the GPU; None for a CPU.
    replicas : int
        Devices that train together.

    Returns
    -------
    str
        What was asked for; on "auto" bfloat16 where the GPU has it, float16 on one GPU with tensor cores,
        else float32.

    Raises
    ------
    SystemExit
        With status 2 for float16 on several replicas: Keras looks for gradients that are not finite before it
        adds up those of all replicas, so they would not agree on which steps to leave out.
    """
    if precision == "float16" and replicas > 1:
        _end(f"Expected --precision bfloat16 or float32 on {replicas} replicas, received float16.")
    if precision != "auto":
        return precision
    if capability is not None and capability >= BFLOAT16_CAPABILITY:
        return "bfloat16"
    return (
        "float16" if capability is not None and capability >= HALF_CAPABILITY and replicas == 1 else "float32"
    )


def lacks_bfloat16(cpu_facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether the processor computes in bfloat16 only by detours, which are slow.

    Parameters
    ----------
    cpu_facts : Path
        What Linux says of the processors; where there is no such file nothing is known.

    Returns
    -------
    bool
        True on an x86 processor that has instructions for it neither of AVX-512 nor of AMX.
    """
    text = cpu_facts.read_text() if cpu_facts.is_file() else ""
    return "avx2" in text and "avx512_bf16" not in text and "amx_bf16" not in text


def _compute_capability(device: str) -> tuple[int, int] | None:
    """Give the lowest compute capability of the visible GPUs; None without one, or where it is not known."""
    gpus = tf.config.get_visible_devices("GPU") if device == "gpu" else []
    found = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]
    return min(found) if found and None not in found else None


def set_seed(seed: int, *, exact: bool = False) -> None:
    """Seed Python, NumPy and TensorFlow, so that the same seed gives the same initial weights.

    Parameters
    ----------
    seed : int
        The seed.
    exact : bool
        Let TensorFlow use deterministic operations alone, so that on one CPU core a resumed training equals
        an unbroken one bit for bit; on several, networks of some size still round otherwise at every run.
        On a CPU that costs next to nothing; on a GPU it would.
    """
    keras.utils.set_random_seed(seed)
    if exact:
        tf.config.experimental.enable_op_determinism()
