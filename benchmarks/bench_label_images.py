"""Images drawn from masks: what one costs beside the rest of a training example and beside a step.

1. The image of the block of a 56³ patch at 2 mm (preset `starter`), as the training draws it: the geometry of
   the mask is found once, and soft tissue is drawn on every second voxel.
2. A whole example with such an image and with the CT that was read, host and device, on the same cores.
3. A step of the trainer, its batch of 2 made already: forward pass, backward pass, Adam.

The baseline of 1 draws plainly: geometry and the image of the whole mask at every draw, cut to the block.

Reads   nothing: two generated spines, written by the project's own scripts into a temporary folder.
Writes  nothing that stays.
Command python benchmarks/bench_label_images.py
Time    about two minutes on two cores.

All numbers are medians. The last line says how many times as long as ours the baseline takes.
"""

from __future__ import annotations

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
from utils.learning import datasets, losses, models, prepared_data  # noqa: E402
from utils.learning.vertebrae import (  # noqa: E402
    block_length,
    samples_along,
    segmentation_batch_builder,
)
from utils.presets import preset_settings  # noqa: E402
from utils.settings import SegmentationTrainingSettings  # noqa: E402
from utils.synthetic.appearance import draw_appearance  # noqa: E402
from utils.synthetic.label_images import label_image  # noqa: E402
from utils.synthetic.label_maps import label_map_of  # noqa: E402

SETTINGS = preset_settings(SegmentationTrainingSettings, "starter", batch_size=1)
SPACING_MM = 2.0
DRAWS, STEPS = 15, 5


def prepared_spines(folder: Path) -> Path:
    """Generate two spines and prepare them as a user would; give the work folder."""
    data = ("--data-dir", folder / "data")
    prepared = (*data, "--work-dir", folder / "work", "--preset", "starter")
    for script, *arguments in (
        ("get_verse_data.py", *data, "--source", "phantom", "--phantoms", "2", "0", "0"),
        ("pre_processing_segmentation.py", *prepared),
    ):
        command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "work"


def median_ms(run: Callable[[int], Any], times: int = DRAWS) -> float:
    """Give the median milliseconds of some runs, after one that is not counted."""
    run(0)
    taken = []
    for seed in range(1, times + 1):
        began = time.perf_counter()
        run(seed)
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def blocks_of(data: prepared_data.SegmentationData) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Give the blocks of the vertebrae's patches, neither turned nor zoomed: case, begin, end."""
    half = SETTINGS.patch_voxels // 2
    return [
        (v.case, np.maximum(at - half, 0), np.minimum(at + half, data.scan(v.case)[1].shape))
        for v in data.vertebrae
        for at in [np.rint(v.centre).astype(int)]
    ]


def image_ms(data: prepared_data.SegmentationData) -> tuple[float, float]:
    """Time the image of a block, as the training draws it and plainly."""
    blocks = blocks_of(data)
    for case in data.columns:
        data.label_map(case, SPACING_MM)

    def ours(seed: int) -> None:
        case, begin, end = blocks[seed % len(blocks)]
        label_image(
            data.label_map(case, SPACING_MM), draw_appearance(np.random.default_rng(seed)), begin, end
        )

    def plainly(seed: int) -> None:
        case, begin, end = blocks[seed % len(blocks)]
        labels = label_map_of(data.scan(case)[1].data, SPACING_MM, data.fine_mask(case).data)
        whole = label_image(labels, draw_appearance(np.random.default_rng(seed)))
        whole[tuple(slice(b, e) for b, e in zip(begin, end))].copy()

    return median_ms(ours), median_ms(plainly)


def example_ms(data: prepared_data.SegmentationData, *, drawn: bool) -> float:
    """Time an example from its item to the finished tensors."""
    build = tf.function(segmentation_batch_builder(SETTINGS, SPACING_MM), reduce_retracing=True)
    length = block_length(10**6, SETTINGS.patch_voxels)

    def one(seed: int) -> None:
        item = seed % len(data.vertebrae) + drawn * len(data.vertebrae)
        example = datasets.segmentation_example(
            data, item, np.random.default_rng(seed), spacing_mm=SPACING_MM, settings=SETTINGS
        )
        made = datasets.collate([example], length, fine=samples_along(SETTINGS))
        batch = {name: tf.constant(value) for name, value in made.items()}
        build({**batch, "weight": tf.ones(1)}, True)[0].numpy()

    return median_ms(one)


def step_ms(folder: Path) -> float:
    """Time a step of the trainer on a batch of 2, from its own history."""
    keras.utils.set_random_seed(0)
    shape = (2, *(SETTINGS.patch_voxels,) * 3, 2)
    x, y = tf.random.uniform(shape), tf.ones(shape)
    history = Trainer(
        models.build_segmentation_network(SETTINGS), learning_rate=1e-3, model_dir=folder
    ).train(
        tf.data.Dataset.from_tensors((x, y)),
        loss_fn=lambda t, p: losses.vertebra_loss(t, p, tf.constant(1.0)),
        EPOCHS=STEPS + 1,
        save_step=99,
    )
    return 1000 * statistics.median(row["seconds"] for row in history[1:])


def main() -> int:
    """Print the table and the ratio."""
    with tempfile.TemporaryDirectory() as temporary:
        work = prepared_spines(Path(temporary))
        folder = work / "segmentation" / "2mm" / "training"
        data = prepared_data.read_segmentation_data(folder).without_bad_cases()[0]
        ours, plainly = image_ms(data)
        rows = {
            "image of a block, 64 voxels a side at most": ours,
            "the same, geometry and the whole mask anew": plainly,
            "example with the CT as it was read": example_ms(data, drawn=False),
            "example with a CT drawn from the mask": example_ms(data, drawn=True),
            "step, batch of 2": step_ms(Path(temporary) / "model"),
        }
    print(f"{'':<48}{'ms':>8}")
    for name, value in rows.items():
        print(f"{name:<48}{value:>8.1f}")
    print(f"ratio: {plainly / ours:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
