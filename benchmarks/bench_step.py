"""The training step of the segmentation network: input side alone, share of waiting, and PyTorch beside it.

Three questions, preset `paper` (128³ patches at 1 mm, batch 1, float32) on all cores of this machine:

1. How many examples a second does the whole input side make, with a null model in place of the network?
2. What share of a training's time is spent waiting for data with the real network? At most 5 % is the aim.
3. How long do forward pass and step (forward, backward, Adam) of teacher and student take, beside the same
   network and loss in PyTorch with the same weights on the same threads, in its default layout and in
   channels last? All of it is measured three times, one after the other, so that what the machine does
   beside it shows in the spread: the table holds medians, and each ratio its lowest and highest value.

Reads   nothing: two generated spines, written by the project's own scripts into a temporary folder.
Writes  nothing that stays.
Command pip install -r requirements-bench.txt && python benchmarks/bench_step.py [--repeats 3] [--steps 3]
Time    about 12 minutes on two cores that do nothing else.

The last line says how many times as long as ours the teacher's step takes in PyTorch's best layout, the
median; the line before it gives the ratio of every measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from ML_3D_Unet.utils.train import Trainer  # noqa: E402
from utils.learning import datasets, losses, models, prepared_data, training  # noqa: E402
from utils.learning.vertebrae import segmentation_batch_builder  # noqa: E402
from utils.presets import preset_settings  # noqa: E402
from utils.settings import SegmentationTrainingSettings, load_settings  # noqa: E402

NETWORKS = {"student": (8, 16, 32, 64), "teacher": (16, 32, 64, 128)}
LAYOUTS = ("default", "channels_last")
OURS, PARTS = "ours", ("forward", "step")

#: Seconds of each part, by what was run: ours, or PyTorch in a layout.
Timings = dict[str, dict[str, float]]


def prepared_spines(folder: Path) -> Path:
    """Generate two spines and prepare them as a user would; give the folder of the stage."""
    data = ("--data-dir", folder / "data")
    steps = (
        ("get_verse_data.py", *data, "--source", "phantom", "--phantoms", "1", "1", "0"),
        ("pre_processing_segmentation.py", *data, "--work-dir", folder / "work"),
    )
    for script, *arguments in steps:
        command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "work" / "segmentation" / "1mm"


def null_model(settings: SegmentationTrainingSettings) -> keras.Model:
    """Give a model that does next to nothing with a patch: one convolution of one voxel."""
    shape = (*(settings.patch_voxels,) * 3, 2)
    return keras.Sequential([keras.Input(shape), keras.layers.Conv3D(1, 1, activation="sigmoid")])


def trained_row(model: keras.Model, stage: Path, folder: Path, examples: int) -> dict[str, Any]:
    """Train for two epochs, the first of which compiles; give the second's row of the history."""
    settings = preset_settings(SegmentationTrainingSettings, "paper", examples_per_epoch=examples, epochs=2)
    spacing_mm = load_settings(stage)["spacing_mm"]
    data = prepared_data.read_segmentation_data(stage / "training")
    nothing_held_out = prepared_data.read_segmentation_data(stage / "absent")
    trainer = training.VertebraTrainer(
        model,
        model_dir=folder,
        prepare=segmentation_batch_builder(settings, spacing_mm),
        schedule="ramp",
        epochs=2,
    )
    arguments = training.segmentation_arguments(data, nothing_held_out, settings, spacing_mm=spacing_mm)
    return trainer.train(**arguments)[-1]


def an_example(stage: Path) -> tuple[np.ndarray, np.ndarray]:
    """Give one validation patch and its target, (1, n, n, n, 2) each."""
    settings = preset_settings(SegmentationTrainingSettings, "paper")
    spacing_mm = load_settings(stage)["spacing_mm"]
    data = prepared_data.read_segmentation_data(stage / "training")
    epoch = datasets.segmentation_dataset(data, settings, spacing_mm=spacing_mm, training=False)
    x, y, _ = segmentation_batch_builder(settings, spacing_mm)(next(iter(epoch(0))), False)
    return x.numpy(), y.numpy()


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Give the median seconds of some runs, after one that is not counted."""
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def our_seconds(model: keras.Model, example: tuple, folder: Path, steps: int) -> dict[str, float]:
    """Time forward pass and step of a network; the step is that of the trainer, from its own history."""
    x, y = (tf.constant(array) for array in example)
    forward = tf.function(lambda volume: model(volume, training=False))
    forward_seconds = seconds_of(lambda: forward(x).numpy(), steps)
    trainer = Trainer(model, learning_rate=1e-3, model_dir=folder)
    one_step = tf.data.Dataset.from_tensors((x, y))
    history = trainer.train(
        one_step,
        loss_fn=lambda t, p: losses.vertebra_loss(t, p, tf.constant(1.0)),
        EPOCHS=steps + 1,
        save_step=99,
    )
    return {"forward": forward_seconds, "step": statistics.median(row["seconds"] for row in history[1:])}


def torch_seconds(model: keras.Model, example: tuple, folder: Path, steps: int) -> Timings:
    """Time the same network in PyTorch, in a process of its own for each layout."""
    weights = model.get_weights()
    archive = folder / "network.npz"
    arrays = {f"weight_{k}": array for k, array in enumerate(weights)}
    output = model(example[0], training=False).numpy()
    filters = sorted({w.shape[-1] for w in weights if w.ndim == 5 and w.shape[-1] > 1})
    np.savez(
        archive, x=example[0], y=example[1], output=output, weights=len(weights), filters=filters, **arrays
    )
    found = {}
    for layout in LAYOUTS:
        cores = str(len(os.sched_getaffinity(0)))
        script = str(PROJECT / "benchmarks" / "torch_unet.py")
        command = [sys.executable, script, str(archive), layout, cores, str(steps)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[f"PyTorch, {layout}"] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(filters: tuple[int, ...], example: tuple, folder: Path, steps: int) -> Timings:
    """Measure one network once, in PyTorch and in ours."""
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(0)
    settings = preset_settings(SegmentationTrainingSettings, "paper", filters=filters)
    model = models.build_segmentation_network(settings)
    theirs = torch_seconds(model, example, folder, steps)
    return {OURS: our_seconds(model, example, folder / OURS, steps), **theirs}


def ratios_of(rounds: list[Timings], label: str, part: str) -> list[float]:
    """Give how many times ours a part took, in every round."""
    return [timings[label][part] / timings[OURS][part] for timings in rounds]


def best_ratios(rounds: list[Timings]) -> list[float]:
    """Give PyTorch's best step over ours, in every round."""
    steps = zip(*(ratios_of(rounds, label, "step") for label in rounds[0] if label != OURS))
    return [min(ratios) for ratios in steps]


def spread(values: list[float]) -> str:
    """Give the median of some ratios with the lowest and the highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def print_rows(name: str, rounds: list[Timings]) -> None:
    """Print the rows of one network: median seconds, and times ours."""
    for label in rounds[0]:
        columns = ""
        for part in PARTS:
            seconds = statistics.median(timings[label][part] for timings in rounds)
            columns += f"{seconds:>9.2f}{spread(ratios_of(rounds, label, part)):>20}"
        differences = [timings[label]["difference"] for timings in rounds if "difference" in timings[label]]
        note = f"   output off by {max(differences):.0e}" if differences else ""
        print(f"{name + ', ' + label:<32}{columns}{note}", flush=True)


def print_input_side(stage: Path, folder: Path) -> None:
    """Print examples a second and the share of waiting, with next to no network and with the teacher."""
    settings = preset_settings(SegmentationTrainingSettings, "paper")
    null = trained_row(null_model(settings), stage, folder / "null", 16)
    real = trained_row(models.build_segmentation_network(settings), stage, folder / "real", 4)
    for label, row in (("null model (the input side alone)", null), ("teacher", real)):
        waiting = f"{100 * row['data_wait_share']:.1f} % of the time waiting for data"
        print(f"{label:<36}{row['examples_per_second']:>8.2f} examples/s, {waiting}", flush=True)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="measure everything so many times")
    parser.add_argument("--steps", type=int, default=3, help="steps that a measurement is the median of")
    return parser.parse_args()


def main() -> int:
    """Print the tables, the ratio of every measurement, and their median."""
    options = read_options()
    keras.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stage = prepared_spines(folder)
        print_input_side(stage, folder)
        head = "".join(f"{part:>9}{'times ours':>20}" for part in PARTS)
        print(f"\n{f'seconds, {options.repeats} measurements':<32}{head}")
        example = an_example(stage)
        for name, filters in NETWORKS.items():
            places = (folder / f"{name}-{k}" for k in range(options.repeats))
            rounds = [measured(filters, example, place, options.steps) for place in places]
            print_rows(name, rounds)
    ratios = best_ratios(rounds)
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"teacher's step, PyTorch's best layout over ours: {listed}; median (range) {spread(ratios)}")
    print(f"ratio: {statistics.median(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
