"""What a training has been through, a row an epoch: its file, its picture, and the rules that read it.

Early stopping and the falling learning rate are functions of the rows alone, so a resumed run decides as an
unbroken one does, without anything else being remembered.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .files import written_whole

HISTORY_FIELDS = (
    "epoch",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "seconds",
    "examples_per_second",
    "data_wait_share",
)

Row = dict[str, int | float | None]


class EpochResult(NamedTuple):
    """Means over the examples of one pass, how long it took, and the share of it spent waiting for data."""

    loss: float | None = None
    accuracy: float | None = None
    examples: int = 0
    seconds: float = 0.0
    waited: float = 0.0


def row_of_epoch(epoch: int, trained: EpochResult, validated: EpochResult, learning_rate: float) -> Row:
    """Put together the row of an epoch, counted from 1."""
    return {
        "epoch": epoch,
        "loss": trained.loss,
        "accuracy": trained.accuracy,
        "val_loss": validated.loss,
        "val_accuracy": validated.accuracy,
        "learning_rate": learning_rate,
        "seconds": trained.seconds,
        "examples_per_second": trained.examples / max(trained.seconds, 1e-9),
        "data_wait_share": trained.waited / max(trained.seconds, 1e-9),
    }


def read_history(path: Path, *, last_epoch: int) -> list[Row]:
    """Read the rows of a history up to `last_epoch`; an absent file has none.

    Rows beyond it belong to an epoch that ended without its checkpoint, and will be run again.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [
            {key: float(text) if text else None for key, text in row.items()} for row in csv.DictReader(file)
        ]
    return [{**row, "epoch": int(row["epoch"])} for row in rows if row["epoch"] <= last_epoch]


def write_history(path: Path, history: Sequence[Row]) -> None:
    """Write the history as CSV, whole."""
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_FIELDS)
        writer.writeheader()
        writer.writerows(history)


def draw_curves(path: Path, history: Sequence[Row]) -> None:
    """Draw loss and accuracy of training and validation over the epochs as a PNG."""
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            rows = [row for row in history if row[key] is not None]
            if rows:
                axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], ".-", label=label)
        axes.set(xlabel="epoch", title=name)
        if axes.lines:
            axes.legend()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def describe_row(row: Row, epochs: int) -> str:
    """Give the line that is printed after an epoch."""
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    values = [f"{name} {row[name]:.4f}" for name in names if row[name] is not None]
    speed = f"{row['seconds']:.1f} s, {row['examples_per_second']:.2f} examples/s"
    return (
        f"epoch {row['epoch']}/{epochs}: {', '.join(values)} "
        f"({speed}, {100 * row['data_wait_share']:.0f} % waiting for data)"
    )


def validations_without_gain(history: Sequence[Row]) -> int:
    """Count the validations since the one with the lowest loss; 0 if that is the last, or there are none."""
    losses = [row["val_loss"] for row in history if row["val_loss"] is not None]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def plateau_scale(history: Sequence[Row], after: int, factor: float) -> float:
    """Give what plateaus have multiplied the learning rate by.

    Parameters
    ----------
    history : sequence of rows
        All epochs so far.
    after : int
        Validations without a lower loss that make a plateau; the count begins anew after each. 0 for never.
    factor : float
        What a plateau multiplies the rate by.

    Returns
    -------
    float
        ``factor`` to the power of the number of plateaus.
    """
    lowest, stale, scale = float("inf"), 0, 1.0
    for loss in (row["val_loss"] for row in history if row["val_loss"] is not None):
        stale = 0 if loss < lowest else stale + 1
        lowest = min(lowest, loss)
        if after and stale == after:
            scale, stale = scale * factor, 0
    return scale
