"""The files of a model directory: what they are called, and which of them holds the network.

A network lies on disk as its weights beside the `settings.json` that its architecture is built from, so that
any version of Keras loads it. Earlier trainings left architecture and weights in one file, which is read by
the version that wrote it and by later ones.

Nothing here loads TensorFlow.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from utils.files import written_whole
from utils.settings import SETTINGS_FILE

#: End of the names of files that hold weights alone; Keras takes the format from it.
WEIGHTS_SUFFIX = ".weights.h5"
#: Names of the file with the network, the newest first: where both are there, the first is the network.
MODEL_FILES = (f"best{WEIGHTS_SUFFIX}", "best.keras")


def find_model_file(directory: Path) -> Path | None:
    """Give the file that holds the network of a model directory, or None where there is none."""
    return next((directory / name for name in MODEL_FILES if (directory / name).is_file()), None)


def has_model(directory: Path) -> bool:
    """Whether a directory holds a trained network."""
    return find_model_file(directory) is not None


def model_file(directory: Path) -> Path:
    """Give the file that holds the network of a model directory.

    Raises
    ------
    ValueError
        If there is none; the text names the newest kind.
    """
    found = find_model_file(directory)
    if found is None:
        raise ValueError(f"{directory / MODEL_FILES[0]}: expected a trained network, found no such file.")
    return found


def copy_model(source: Path, target: Path) -> None:
    """Copy what is needed of a trained network, its file and its settings, each whole or not at all.

    Parameters
    ----------
    source : Path
        A model directory, as a training script leaves it.
    target : Path
        Directory, made if it is not there. A network of the other kind in it is removed: it must not stand
        for this one.

    Raises
    ------
    ValueError
        If there is no network in the source.
    """
    copied = (model_file(source).name, SETTINGS_FILE)
    for name in copied:
        with written_whole(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
    for name in {*MODEL_FILES} - {*copied}:
        (target / name).unlink(missing_ok=True)
