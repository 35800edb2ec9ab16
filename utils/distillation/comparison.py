"""Teacher and students side by side, as in the paper's table: size, speed, accuracy on validation patches."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure
from scipy import ndimage

from utils.distillation import students as distillation
from utils.evaluation.metrics import surface_distances_mm
from utils.files import write_text_whole, written_whole
from utils.learning import datasets, models, prepared_data, training
from utils.learning.losses import vertebra_dice
from utils.learning.model_files import model_file
from utils.learning.runtime import Runtime
from utils.learning.vertebrae import segmentation_batch_builder
from utils.settings import DistillationSettings, SegmentationTrainingSettings
from utils.tables import markdown_table, text_beside

TIMED_RUNS = 7
THRESHOLD = 0.5
#: Okabe and Ito's blue, told apart from black with any colour vision.
BAR_COLOUR = "#0072B2"


def compare_students(settings: DistillationSettings) -> int:
    """Train the students, then compare them with their teacher, and write the table beside the best of them.

    Parameters
    ----------
    settings : DistillationSettings
        All of the stage. Reads prepared data and the teacher; writes `work_dir/models/<name>_runs` and
        `work_dir/models/<name>`, with students.csv, students.md and students.png.

    Returns
    -------
    int
        Exit status: 0, or 1 after a line that says what is wrong.
    """
    return training.run_training(_train_and_compare, settings)


def _train_and_compare(settings: DistillationSettings, chosen: Runtime) -> list[str]:
    inputs = distillation.read_inputs(settings, chosen)
    distillation.train_students(inputs, settings, chosen)
    if chosen.is_chief and inputs.held_out.vertebrae:
        patches = ValidationPatches(inputs.held_out, inputs.settings)
        table = student_table(network_directories(settings), patches)
        folder = distillation.student_directory(settings)
        write_students(table, folder, explanation(table, patches, chosen))
    elif chosen.is_chief:
        print("No validation cases: there is nothing to compare the students on.")
    return inputs.bad


@dataclasses.dataclass(frozen=True)
class ValidationPatches:
    """The validation vertebrae, each in its patch; made anew for every pass, as all may fill the memory.

    Attributes
    ----------
    data : SegmentationData
        The validation split.
    settings : SegmentationTrainingSettings
        Size and spacing of the patches.
    """

    data: prepared_data.SegmentationData
    settings: SegmentationTrainingSettings

    @property
    def spacing_mm(self) -> float:
        """Isotropic spacing, in mm."""
        return self.settings.spacing_mm

    def __iter__(self) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Yield input (1, n, n, n, 2) and target (1, n, n, n, 2) of each vertebra."""
        one_by_one = dataclasses.replace(self.settings, batch_size=1, accumulate=1)
        build = segmentation_batch_builder(one_by_one, self.spacing_mm)
        how = {"spacing_mm": self.spacing_mm, "training": False}
        # A copy opens its scans by itself, and lets them go after the pass.
        for batch in datasets.segmentation_dataset(dataclasses.replace(self.data), one_by_one, **how)(0):
            x, y, _ = build(batch, False)
            yield x, y


def network_directories(settings: DistillationSettings) -> dict[str, Path]:
    """Give the directories of the networks to compare by their titles, the teacher first."""
    students = distillation.variants(settings)
    runs = {variant.title: distillation.run_directory(settings, variant) for variant in students}
    return {"teacher": distillation.teacher_directory(settings), **runs}


def student_table(directories: dict[str, Path], patches: ValidationPatches) -> pd.DataFrame:
    """Measure each network.

    Parameters
    ----------
    directories : dict of str to Path
        Model directories by the networks' titles.
    patches : ValidationPatches
        Input and target of every vertebra.

    Returns
    -------
    pd.DataFrame
        A row a network: network, directory (its name), parameters, megabytes, seconds_per_patch, dice,
        surface_distance_95_mm, empty, vertebrae.
    """
    rows = []
    for title, directory in directories.items():
        network = models.load_model(directory)[0]
        size = model_file(directory).stat().st_size / 1e6
        facts = {"network": title, "directory": directory.name}
        facts |= {"parameters": network.count_params(), "megabytes": size}
        rows.append({**facts, **measured(network, patches, spacing_mm=patches.spacing_mm)})
    return pd.DataFrame(rows)


def measured(
    network: keras.Model, patches: Iterable[tuple[tf.Tensor, tf.Tensor]], *, spacing_mm: float
) -> dict[str, Any]:
    """Run a network over all patches, and give its speed and its mean scores.

    Parameters
    ----------
    network : keras.Model
        From (1, n, n, n, 2) to (1, n, n, n, 1).
    patches : iterable of pairs
        Input (1, n, n, n, 2) and target (1, n, n, n, 2), whose channel 0 is the vertebra.
    spacing_mm : float
        Isotropic spacing.

    Returns
    -------
    dict
        "seconds_per_patch", "dice", "surface_distance_95_mm" (NaN if all predictions are empty), "empty",
        "vertebrae".
    """
    predict = tf.function(lambda x: network(x, training=False))
    dices, distances, seconds = [], [], []
    for number, (x, y) in enumerate(patches):
        prediction = predict(x)
        if number < TIMED_RUNS:
            seconds.append(_seconds_of(predict, x))
        dices.append(float(vertebra_dice(y, prediction)[0]))
        distances.append(_distance_95_mm(y[0, ..., 0], prediction[0, ..., 0], spacing_mm))
    empty = int(np.isnan(distances).sum())
    return {
        "seconds_per_patch": statistics.median(seconds),
        "dice": float(np.mean(dices)),
        "surface_distance_95_mm": float(np.nanmean(distances)) if empty < len(dices) else math.nan,
        "empty": empty,
        "vertebrae": len(dices),
    }


def _seconds_of(predict: Any, x: tf.Tensor) -> float:
    """Time one patch on a compiled network; reading the result waits for the device."""
    began = time.perf_counter()
    predict(x).numpy()
    return time.perf_counter() - began


def _distance_95_mm(vertebra: tf.Tensor, probability: tf.Tensor, spacing_mm: float) -> float:
    """Give the 95 % surface distance, measured in the box that holds both bodies; NaN if one is empty."""
    truth, found = vertebra.numpy() > 0, probability.numpy() >= THRESHOLD
    box = ndimage.find_objects((truth | found).astype(np.uint8))
    if not box:
        return math.nan
    return surface_distances_mm(truth[box[0]], found[box[0]], spacing_mm=(spacing_mm,) * 3)[1]


def explanation(table: pd.DataFrame, patches: ValidationPatches, chosen: Runtime) -> str:
    """Say what the numbers of a table are."""
    vertebrae = int(table["vertebrae"].max())
    facts = {"edge": patches.settings.patch_voxels, "device": chosen.device.upper()}
    facts |= {"vertebrae": vertebrae, "runs": min(TIMED_RUNS, vertebrae)}
    return text_beside(__file__, "students_page.md", **facts)


def write_students(table: pd.DataFrame, folder: Path, text: str) -> None:
    """Write students.csv, students.md and students.png, each whole or not at all, and print the table.

    Parameters
    ----------
    table : pd.DataFrame
        See `student_table`.
    folder : Path
        Where the files go.
    text : str
        What stands under the table.
    """
    page = markdown_table(_readable(table))
    texts = {"students.csv": table.to_csv(index=False), "students.md": f"# Students\n\n{page}\n\n{text}"}
    for name, content in texts.items():
        write_text_whole(folder / name, content)
    with written_whole(folder / "students.png", suffix=".png") as temporary:
        student_figure(table).savefig(temporary, dpi=120)
    print(page)
    print(f"Written to {folder}: students.csv, students.md, students.png.")


_TITLES = {
    "megabytes": "MB",
    "seconds_per_patch": "s a patch",
    "dice": "Dice",
    "surface_distance_95_mm": "95 % surface distance, mm",
}
_DIGITS = {"megabytes": 2, "seconds_per_patch": 3, "dice": 3, "surface_distance_95_mm": 2}


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Give the table with titles, and every number with the digits that mean something."""
    shown = {
        name: table[name].map(lambda value, digits=digits: "–" if pd.isna(value) else f"{value:.{digits}f}")
        for name, digits in _DIGITS.items()
    }
    return table.drop(columns=["directory", "vertebrae"]).assign(**shown).rename(columns=_TITLES)


def student_figure(table: pd.DataFrame) -> Figure:
    """Draw Dice, 95 % surface distance, seconds a patch and parameters of every network as bars.

    Parameters
    ----------
    table : pd.DataFrame
        See `student_table`.

    Returns
    -------
    Figure
        Four panels that share the names of the networks; bars begin at 0 and bear their numbers.
    """
    figure = Figure(figsize=(12, 1.2 + 0.45 * len(table)), layout="constrained")
    panels = {
        "dice": ("Dice", "{:.3f}"),
        "surface_distance_95_mm": ("95 % surface distance (mm)", "{:.2f}"),
        "seconds_per_patch": ("seconds a patch", "{:.3f}"),
        "parameters": ("parameters", "{:,.0f}"),
    }
    for axes, (column, (title, form)) in zip(figure.subplots(1, len(panels), sharey=True), panels.items()):
        bars = axes.barh(table["network"], table[column].fillna(0.0), color=BAR_COLOUR)
        labels = ["–" if pd.isna(value) else form.format(value) for value in table[column]]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0, 1.35 * max(table[column].max(), 1e-9))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    axes.invert_yaxis()
    return figure
