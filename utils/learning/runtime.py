"""The device that a run uses, chosen once, before TensorFlow touches any."""

from __future__ import annotations

import sys

import keras
import tensorflow as tf

#: Presets that are not meant for a CPU: an epoch would take hours.
GPU_PRESETS = ("paper", "full")


def choose_device(device: str, preset: str | None = None) -> str:
    """Make the device visible that was asked for, and say which one it is.

    Parameters
    ----------
    device : str
        "gpu", "cpu", or "auto": a GPU if there is one.
    preset : str, optional
        The preset of a training; "paper" and "full" do not go on to a CPU by themselves.

    Returns
    -------
    str
        "gpu" or "cpu".

    Raises
    ------
    SystemExit
        With status 2, after a line that says what to do, if a GPU is needed and none is visible.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and (device == "gpu" or (device == "auto" and preset in GPU_PRESETS)):
        _end_without_gpu(device, preset)
    if device == "cpu" or not gpus:
        tf.config.set_visible_devices([], "GPU")
        print(f"Device: CPU{'' if device == 'cpu' else ' (no GPU is visible)'}.", flush=True)
        return "cpu"
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    print(f"Device: GPU ({name}).", flush=True)
    return "gpu"


def _end_without_gpu(device: str, preset: str | None) -> None:
    asked = "--device gpu" if device == "gpu" else f"the preset {preset!r}"
    print(
        f"Expected a GPU for {asked}, found none visible to TensorFlow. Install one's driver and "
        "`pip install -r requirements-gpu.txt`, or pass --device cpu (slow), or --preset small.",
        file=sys.stderr,
    )
    raise SystemExit(2)


def set_seed(seed: int, *, exact: bool = False) -> None:
    """Seed Python, NumPy and TensorFlow, so that the same seed gives the same initial weights.

    Parameters
    ----------
    seed : int
        The seed.
    exact : bool
        Let TensorFlow use deterministic operations alone, so that a resumed training equals an unbroken one
        bit for bit. On a CPU that costs next to nothing; on a GPU it would.
    """
    keras.utils.set_random_seed(seed)
    if exact:
        tf.config.experimental.enable_op_determinism()
