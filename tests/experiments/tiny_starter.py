"""The recipe of the starter weights, with few spines and networks of seconds, for test_killed_recipe.py.

python -m tests.experiments.tiny_starter SHARED FOLDER
"""

import sys
from pathlib import Path

from experiments.starter import Recipe, main

_SHORT = (
    *("--epochs", "1", "--examples-per-epoch", "2", "--batch-size", "1", "--filters", "2", "2"),
    *("--no-tensorboard", "--device", "cpu"),
)


def tiny_recipe(shared: Path, folder: Path) -> Recipe:
    """Give the recipe with all its trainings, each of two steps."""
    return Recipe(
        shared,
        folder,
        spines=(((2, 1, 0), "natural", "usual", 1), ((1, 0, 0), "rare", "wide", 2)),
        drawn=(2, 1),
        trunks=1,
        more={
            "train_heatmap.py": (*_SHORT, "--crop-voxels", "16", "16", "16"),
            "train_labelling.py": (*_SHORT, "--patch-voxels", "18"),
            "train_segmentation.py": (*_SHORT, "--patch-voxels", "16"),
        },
    )


if __name__ == "__main__":
    sys.exit(main(tiny_recipe(Path(sys.argv[1]), Path(sys.argv[2]))))
