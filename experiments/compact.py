"""A trained network for shipping: its weights in half precision, compressed, and its settings.

Half precision keeps eleven binary digits of a weight, which is more than a training in bfloat16 tells apart;
the numbers that a network computes with stay what they are. Keras reads such files as any others.

    python experiments/compact.py MODEL --output DIR

Reads   the directory of a trained network, as the training scripts leave it.
Writes  best.weights.h5 into the output, and settings.json as it is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.steps import exit_status_of
from utils.files import written_whole
from utils.learning.model_files import MODEL_FILES
from utils.settings import SETTINGS_FILE, load_settings

#: Arrays of fewer numbers are left as they are.
LEAST_COMPRESSED = 4096


def write_compact(source: Path, target: Path) -> None:
    """Write a file of weights with its arrays in half precision, compressed.

    Parameters
    ----------
    source, target : Path
        HDF5 files; the target is written whole or not at all.

    Raises
    ------
    ValueError
        If a weight is no number, or too large for half precision.
    """
    with h5py.File(source) as stored, written_whole(target) as temporary, h5py.File(temporary, "w") as made:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                made.create_group(name).attrs.update(item.attrs)
                return
            with np.errstate(over="ignore"):
                values = item[()].astype(np.float16)
            if not np.isfinite(values).all():
                raise ValueError(f"{source}: expected numbers under 65504 in {name}, found others.")
            # Compressed arrays lie in blocks, whose index is larger than a small array.
            small = {} if values.size < LEAST_COMPRESSED else {"compression": "gzip", "shuffle": True}
            made.create_dataset(name, data=values, **small)

        made.attrs.update(stored.attrs)
        stored.visititems(copy)


def compact(model: Path, output: Path) -> None:
    """Write the network of a directory compactly into another, with its settings."""
    source = model / MODEL_FILES[0]
    if not source.is_file():
        raise ValueError(f"{source}: expected the weights of a trained network, found no such file.")
    load_settings(model)
    output.mkdir(parents=True, exist_ok=True)
    write_compact(source, output / MODEL_FILES[0])
    with written_whole(output / SETTINGS_FILE) as temporary:
        shutil.copyfile(model / SETTINGS_FILE, temporary)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and write; gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="directory of a trained network")
    parser.add_argument("--output", required=True, type=Path, help="directory that receives it")
    chosen = parser.parse_args(arguments)
    return exit_status_of(partial(compact, chosen.model, chosen.output))


if __name__ == "__main__":
    sys.exit(main())
