"""Teacher and student of the published experiment on a GPU: seconds and memory of a step, beside PyTorch.

The networks are built with Keras on whatever backend is there, so that a machine without TensorFlow serves
too; nothing of the project but `ML_3D_Unet` is imported. Beside them the same network runs in PyTorch, if
that is installed, in both layouts, with and without `torch.compile`.

Reads   nothing: patches of random numbers
Writes  nothing; with --output FILE the rows as JSON

    KERAS_BACKEND=jax python benchmarks/gpu_network.py
    KERAS_BACKEND=tensorflow python benchmarks/gpu_network.py --edge 32 --repeats 2     # a trial on a CPU

Takes up to ten minutes on a GPU. Every measurement runs in a process of its own, as frameworks keep memory
and some combinations end a process. The last line says how many times as long as ours the teacher's step
takes in PyTorch's fastest form, both in bfloat16 at batch 1, or "not measured".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
NETWORKS = {"teacher": (16, 32, 64, 128), "student": (8, 16, 32, 64)}
PRECISIONS = ("float32", "bfloat16")
BATCHES = (1, 4)
#: Longest a measurement may take, compilation included.
LIMIT_S = 120
WARM_UP = 2


def cases(networks: list[str]) -> Iterator[dict[str, Any]]:
    """Give what is measured, the most telling first: time may run out."""
    for batch in BATCHES:
        for network in networks:
            for precision in reversed(PRECISIONS):
                shared = {"network": network, "precision": precision, "batch": batch}
                for jit in (True, False):
                    yield {"framework": "keras", **shared, "jit": jit}
                for layout in ("channels_last", "default"):
                    for compiled in (False, True):
                        yield {"framework": "torch", **shared, "jit": compiled, "layout": layout}


def seconds_of(run: Callable[[], None], wait: Callable[[], None], repeats: int) -> float:
    """Give the median seconds of some runs, after those that compile."""
    for _ in range(WARM_UP):
        run()
    wait()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure_keras(case: dict[str, Any], edge: int, repeats: int) -> dict[str, Any]:
    """Time forward pass and step of a network in Keras; `train_on_batch` is the step of every backend."""
    import keras
    import numpy as np

    from ML_3D_Unet.utils.layers_func import create_unet3d

    precision = case["precision"]
    keras.mixed_precision.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    model = create_unet3d((edge,) * 3 + (2,), n_filters=list(NETWORKS[case["network"]]), norm="batch_norm")
    model.compile(keras.optimizers.Adam(1e-3), loss="binary_crossentropy", jit_compile=case["jit"])
    generator = np.random.default_rng(0)
    shape = (case["batch"], edge, edge, edge)
    x = keras.ops.convert_to_tensor(generator.normal(size=(*shape, 2)).astype("float32"))
    y = keras.ops.convert_to_tensor((generator.random((*shape, 1)) < 0.1).astype("float32"))
    forward = seconds_of(lambda: model.predict_on_batch(x), lambda: None, repeats)
    step = seconds_of(lambda: model.train_on_batch(x, y), lambda: None, repeats)
    return {"backend": keras.backend.backend(), "forward": forward, "step": step, **memory_of_keras()}


def memory_of_keras() -> dict[str, float]:
    """Give the device's name and the peak of its memory in GiB, as the backend tells."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return {"device": device.device_kind, "peak_gib": None if peak is None else peak / 2**30}
    if keras.backend.backend() == "torch":
        return memory_of_torch()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return {"device": "CPU", "peak_gib": None}
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return {"device": name, "peak_gib": tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30}


def memory_of_torch() -> dict[str, float]:
    """Give the device's name and the peak of its memory in GiB."""
    import torch

    if not torch.cuda.is_available():
        return {"device": "CPU", "peak_gib": None}
    return {"device": torch.cuda.get_device_name(), "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def measure_torch(case: dict[str, Any], edge: int, repeats: int) -> dict[str, Any]:
    """Time forward pass and step of the same network in PyTorch."""
    import torch

    from benchmarks.torch_unet import UNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    formats = {"default": torch.contiguous_format, "channels_last": torch.channels_last_3d}
    layout = formats[case["layout"]]
    network = UNet(2, list(NETWORKS[case["network"]])).to(device=device, memory_format=layout)
    run = torch.compile(network) if case["jit"] else network
    shape = (case["batch"], edge, edge, edge)
    x = torch.randn(shape[0], 2, *shape[1:], device=device).to(memory_format=layout)
    y = (torch.rand(shape[0], 1, *shape[1:], device=device) < 0.1).float().to(memory_format=layout)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    half = torch.autocast(device, torch.bfloat16, enabled=case["precision"] == "bfloat16")

    def forward() -> None:
        with torch.no_grad(), half:
            run(x)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with half:
            found = run(x)
        torch.nn.functional.binary_cross_entropy(found.float(), y).backward()
        optimizer.step()

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    network.eval()
    seconds = seconds_of(forward, wait, repeats)
    network.train()
    return {"forward": seconds, "step": seconds_of(step, wait, repeats), **memory_of_torch()}


def measured(case: dict[str, Any], edge: int, repeats: int) -> dict[str, Any]:
    """Measure in a process of its own; what goes wrong is the row's "error"."""
    command = [sys.executable, __file__, "--case", json.dumps(case), "--edge", edge, "--repeats", repeats]
    environment = {"PYTHONPATH": str(PROJECT), "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    try:
        run = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=LIMIT_S, env=environment
        )
    except subprocess.TimeoutExpired:
        return {**case, "error": f"over {LIMIT_S} s"}
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1]
        return {**case, "error": last[:120]}
    return {**case, **json.loads(run.stdout.splitlines()[-1])}


def line_of(row: dict[str, Any]) -> str:
    """Give the row of the table."""
    name = row["framework"] if row["framework"] == "torch" else f"keras ({row.get('backend', '?')})"
    compiled = "compiled" if row["jit"] else "as it is"
    what = f"{row['network']:9}{row['precision']:9}{row['batch']:2} {compiled:9}"
    head = f"{name:20}{row.get('layout', ''):14}{what}"
    if "error" in row:
        return f"{head} {row['error']}"
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:8.1f} GiB"
    return f"{head}{1e3 * row['forward']:10.1f} ms{1e3 * row['step']:10.1f} ms{peak}"


def ratio_of(rows: list[dict[str, Any]]) -> float | None:
    """Give how many times as long as ours the teacher's step takes in PyTorch's fastest form."""
    alike = {"network": "teacher", "precision": "bfloat16", "batch": BATCHES[0]}
    found = [row for row in rows if "step" in row and all(row[name] == alike[name] for name in alike)]
    best = {
        kind: min((row["step"] for row in found if row["framework"] == kind), default=None)
        for kind in ("keras", "torch")
    }
    return None if None in best.values() else best["torch"] / best["keras"]


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases that fit into the time, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edge", type=int, default=128, help="edge of the patch in voxels")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no measurement after so many")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--output", type=Path, help="file that receives the rows as JSON")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case is not None:
        measure = {"keras": measure_keras, "torch": measure_torch}[options.case["framework"]]
        print(json.dumps(measure(options.case, options.edge, options.repeats)))
        return 0
    end = time.monotonic() + 60 * options.minutes
    rows = []
    for case in cases(options.networks):
        if time.monotonic() > end:
            print("the rest is left out: the time is over")
            break
        rows.append(measured(case, options.edge, options.repeats))
        print(line_of(rows[-1]), flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(rows, indent=1))
    print(f"device: {next((row['device'] for row in rows if 'device' in row), 'unknown')}")
    ratio = ratio_of(rows)
    print("ratio: not measured" if ratio is None else f"ratio: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
