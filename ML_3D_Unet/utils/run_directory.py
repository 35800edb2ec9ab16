"""The files of a training: checkpoints, the history with its curves, and the models."""

from __future__ import annotations

import errno
import math
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from .files import check_room, remove_leftovers, written_whole
from .history import Row, draw_curves, read_history, write_history

KEEP_CHECKPOINTS = 3
MODEL_SUFFIXES = (".keras", ".weights.h5")
MODEL_NAMES = ("best", "last")
#: What a `.keras` file calls the weights in it; they are written as `save_weights` writes them.
_WEIGHTS_IN_ARCHIVE = "model.weights.h5"
#: What HDF5 needs beside a weight's numbers, at most, and beside all of them.
_BYTES_OF_ENTRY, _BYTES_OF_FILE = 2**13, 2**16
_DISK_IS_FULL = os.strerror(errno.ENOSPC)


class RunDirectory:
    """The directory of a run. Every file in it is written whole, by the one process that writes.

    Parameters
    ----------
    path : Path
        Made by `restore`.
    model_suffix : {'.keras', '.weights.h5'}
        What models are saved as: whole, or their weights alone.
    writes : bool
        Whether this process writes. On others whatever would write does nothing.

    Raises
    ------
    ValueError
        If `model_suffix` is another.
    """

    def __init__(self, path: Path, *, model_suffix: str = ".keras", writes: bool = True) -> None:
        if model_suffix not in MODEL_SUFFIXES:
            raise ValueError(
                f"Expected model_suffix to be one of {MODEL_SUFFIXES}, received {model_suffix!r}."
            )
        self.path, self.model_suffix, self.writes = Path(path), model_suffix, writes
        self._manager: tf.train.CheckpointManager | None = None
        self._last_save = time.monotonic()

    # ------------------------------------------------------------------ checkpoints

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Give what a checkpoint holds the values of the last one, if there is one.

        Parameters
        ----------
        parts : dict of str to trackable
            All that a resumed run needs, by the names that checkpoints know it by.

        Raises
        ------
        ValueError
            If the last checkpoint is one of other parts.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.writes:
            self._tidy()
        checkpoint = tf.train.Checkpoint(**parts)
        # Made by the first save otherwise, with a broadcast that workers who do not save would not answer.
        _ = checkpoint.save_counter
        self._manager = tf.train.CheckpointManager(checkpoint, str(self.path), KEEP_CHECKPOINTS)
        latest = self._manager.latest_checkpoint
        try:
            if latest:
                checkpoint.restore(latest).assert_existing_objects_matched()
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"{latest}: expected a checkpoint of this model and optimizer, received another; choose "
                f"another model_dir. ({error})"
            ) from error
        self._last_save = time.monotonic()

    def save_checkpoint(self, number: int) -> None:
        """Write a checkpoint under a number that no other has had, so that none is ever written over."""
        try:
            if self.writes:
                self._manager.save(checkpoint_number=number)
        except tf.errors.ResourceExhaustedError as error:
            if _DISK_IS_FULL not in str(error):  # memory is
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from error
        self._last_save = time.monotonic()

    def minutes_since_save(self) -> float:
        """Give the minutes since the last checkpoint, or since the run was gone on with."""
        return (time.monotonic() - self._last_save) / 60

    # ------------------------------------------------------------------ history

    def history(self, last_epoch: int) -> list[Row]:
        """Read the history up to an epoch, see `read_history`."""
        return read_history(self.path / "history.csv", last_epoch=last_epoch)

    def save_history(self, rows: Sequence[Row]) -> None:
        """Write the history."""
        if self.writes:
            write_history(self.path / "history.csv", rows)

    def draw_curves(self, rows: Sequence[Row]) -> None:
        """Draw the history."""
        if self.writes:
            draw_curves(self.path / "curves.png", rows)

    # ------------------------------------------------------------------ models

    def model_file(self, name: str) -> Path:
        """Give the file of the model "best" or "last"."""
        return self.path / f"{name}{self.model_suffix}"

    def save_model(self, model: keras.Model, name: str) -> None:
        """Save a model as "best" or "last"."""
        if not self.writes:
            return
        with written_whole(self.model_file(name), suffix=self.model_suffix) as temporary:
            if self.model_suffix == ".keras":
                model.save(temporary)
            else:
                check_room(temporary, bytes_of_weights(model))
                model.save_weights(temporary)

    def load_weights(self, model: keras.Model, name: str) -> None:
        """Give a model the weights of "best" or "last", whichever way they were saved.

        Raises
        ------
        ValueError
            If there is no such model here.
        """
        files = [self.model_file(name), *(self.path / f"{name}{suffix}" for suffix in MODEL_SUFFIXES)]
        found = [file for file in files if file.is_file()]
        if not found:
            raise ValueError(f"{files[0]}: expected a saved model, found no such file.")
        model.load_weights(found[0])

    def _tidy(self) -> None:
        """Remove what a killed run left half written, and give whole models of before as weights."""
        names = [f"{name}{suffix}" for name in MODEL_NAMES for suffix in MODEL_SUFFIXES]
        for name in (*names, "history.csv", "curves.png"):
            remove_leftovers(self.path / name)
        for name in MODEL_NAMES if self.model_suffix == ".weights.h5" else ():
            _copy_weights(self.path / f"{name}.keras", self.model_file(name))


def bytes_of_weights(model: keras.Model) -> int:
    """Give the bytes that a file with the weights of a model takes at most."""
    numbers = sum(math.prod(weight.shape) for weight in model.weights)
    return 4 * numbers + _BYTES_OF_ENTRY * len(model.weights) + _BYTES_OF_FILE


def _copy_weights(whole: Path, weights: Path) -> None:
    """Copy the weights out of a `.keras` file, unless there are younger ones; it stays as it is."""
    if not whole.is_file() or (weights.is_file() and weights.stat().st_mtime >= whole.stat().st_mtime):
        return
    with zipfile.ZipFile(whole) as archive, written_whole(weights) as temporary:
        temporary.write_bytes(archive.read(_WEIGHTS_IN_ARCHIVE))
