"""A GPU that does not work is met before the work: what is needed of it is tried in a process of its own.

A driver, an architecture that is newer than the installed TensorFlow, or missing tools of CUDA
(`libdevice`, `ptxas`) show only when something runs, some by ending the process. After that the process
could not go on with the CPU either.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable

from utils.execution import PROJECT_DIR

#: What is tried, in its order, by the word that says that it has worked.
CONVOLUTION, XLA = "convolution", "XLA"
#: The longest that it may take: kernels that are not there for a GPU are compiled at its first use.
_LIMIT_S = 600
_LETTERS = 200


@functools.lru_cache(maxsize=1)
def gpu_failures() -> dict[str, str]:
    """Try a small 3-D convolution with its gradient and a function compiled by XLA on each visible GPU.

    Returns
    -------
    dict of str to str
        What was found instead, for each of `CONVOLUTION` and `XLA` that did not work; without the first the
        second is not tried.
    """
    return failures_of([sys.executable, "-m", "utils.learning.preflight"])


def failures_of(command: list[str]) -> dict[str, str]:
    """Run a trial, and give what did not work in it; see `gpu_failures`."""
    try:
        how = {"cwd": PROJECT_DIR, "capture_output": True, "text": True, "errors": "replace"}
        ran = subprocess.run(command, check=False, timeout=_LIMIT_S, **how)
        lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()] or ["no message"]
        words, found = ran.stdout, f"exit status {ran.returncode}: {lines[-1][:_LETTERS]}"
    except subprocess.TimeoutExpired as error:
        # What it had printed by then comes as bytes, whatever was asked for.
        words, found = (error.stdout or b"").decode(), f"no answer in {_LIMIT_S:g} s"
    failed = [name for name in (CONVOLUTION, XLA) if name not in words.split()]
    return dict.fromkeys(failed[:1], found)


def _run_convolution() -> None:
    import tensorflow as tf

    x, kernel = tf.random.normal((1, 8, 8, 8, 2)), tf.random.normal((3, 3, 3, 2, 4))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = tf.reduce_sum(tf.nn.conv3d(x, kernel, [1] * 5, "SAME") ** 2)
    tape.gradient(y, kernel).numpy()


def _run_xla() -> None:
    import tensorflow as tf

    tf.function(lambda x: tf.reduce_sum(tf.exp(x) * x), jit_compile=True)(tf.random.normal((64, 64))).numpy()


def main(trials: dict[str, Callable[[], None]]) -> None:
    """Run the trials in their order, and print the word of each that has worked.

    A trial runs on every visible GPU, since they may differ; without one on the CPU, as the tests do.
    """
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    gpus = tf.config.list_logical_devices("GPU")
    for name, trial in trials.items():
        for device in gpus or tf.config.list_logical_devices("CPU"):
            with tf.device(device.name):
                trial()
        print(name, flush=True)


if __name__ == "__main__":
    main({CONVOLUTION: _run_convolution, XLA: _run_xla})
