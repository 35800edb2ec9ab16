"""The average of trained networks: one network that holds the mean of their weights.

Networks that began with the same weights and went different ways from there often do better averaged than
each alone, on scans of a kind that one of them has not seen most of all (Wortsman et al., Model soups, ICML
2022). The labelling network of the starter is such an average (see models/starter/README.md).

    python experiments/average.py MODEL MODEL [...] --output MODEL [--shares 3 1 ...]

Reads   directories of trained networks of the same shapes, as the training scripts leave them.
Writes  best.weights.h5 into the output, and the first network's settings.json with the directories averaged
        and the share of each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.files import write_text_whole
from utils.learning.models import load_model, save_weights
from utils.settings import SETTINGS_FILE, load_settings


def averaged(directories: Sequence[Path], shares: Sequence[float] | None = None) -> keras.Model:
    """Give a network whose weights are the mean of those of trained ones.

    Parameters
    ----------
    directories : sequence of Path
        Two or more model directories.
    shares : sequence of float, optional
        Share of each network, of any sum; by default all have the same.

    Returns
    -------
    keras.Model
        The network.

    Raises
    ------
    ValueError
        If a network cannot be read or has other weights than the first; the text names its directory.
    """
    network, *others = (load_model(directory)[0] for directory in directories)
    shapes = [weight.shape for weight in network.weights]
    for directory, other in zip(directories[1:], others):
        if [weight.shape for weight in other.weights] != shapes:
            raise ValueError(
                f"{directory}: expected a network of the shapes of {directories[0]}, found others."
            )
    weights = [model.get_weights() for model in (network, *others)]
    network.set_weights([np.average(same, axis=0, weights=shares) for same in zip(*weights)])
    return network


def main(arguments: Sequence[str] | None = None) -> int:
    """Average the networks of the command line; 1 where one of them cannot be used."""
    parser = argparse.ArgumentParser(description="Average the weights of trained networks.")
    parser.add_argument("models", nargs="+", type=Path, help="directories of trained networks, two or more")
    parser.add_argument("--output", required=True, type=Path, help="directory that receives the average")
    parser.add_argument("--shares", nargs="+", type=float, help="share of each network, by default the same")
    chosen = parser.parse_args(arguments)
    count = len(chosen.models)
    if count < 2:
        parser.error(f"expected two networks or more, received {count}")
    shares = chosen.shares or [1.0] * count
    if len(shares) != count or not (min(shares) >= 0 and 0 < sum(shares) < np.inf):
        parser.error(f"--shares: expected {count} of 0 or more, not all 0, received {shares}")
    try:
        network = averaged(chosen.models, shares)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    averages = {"average_of": [str(directory) for directory in chosen.models], "shares": shares}
    settings = {**load_settings(chosen.models[0]), **averages}
    save_weights(network, chosen.output)
    write_text_whole(chosen.output / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
