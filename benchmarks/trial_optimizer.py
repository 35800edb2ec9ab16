"""Trial of the optimizer: what the base of the starter weights has learned after few epochs by each.

The segmentation network of the preset `starter` is trained twice on the spines of `experiments/starter.py`,
with the options of its base, once by each optimizer: the same seed, examples and falling rate.

Reads   nothing: spines are generated
Writes  FOLDER/data, and FOLDER/work with the models segmentation-adam and segmentation-muon

    python benchmarks/trial_optimizer.py FOLDER [OPTION ...]

Options are those of train_segmentation.py, such as `--precision bfloat16`. Ten epochs are 1,200 steps of two
patches; about twenty minutes on two CPU cores with that option. Prints a table, and as the last line how many
times smaller the loss on held-out spines is by muon. A killed run goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from experiments.starter import BASE, Recipe, preparation_steps, spine_steps, training_step
from experiments.steps import Step, run_steps

OPTIMIZERS, EPOCHS = ("adam", "muon"), 10


def model_of(recipe: Recipe, optimizer: str) -> Path:
    """Give the folder of the network that an optimizer trains."""
    return recipe.models / f"segmentation-{optimizer}"


def all_steps(recipe: Recipe) -> list[Step]:
    """Give the steps: spines, their preparation, and a training by each optimizer."""
    trainings = [
        training_step(recipe, model_of(recipe, name), *BASE.split(), "--epochs", EPOCHS, "--optimizer", name)
        for name in OPTIMIZERS
    ]
    data, work = recipe.folder / "data", recipe.folder / "work"
    return [*spine_steps(recipe), *preparation_steps(work, data), *trainings]


def main(folder: Path, options: list[str]) -> int:
    """Train, and print the history of the validation."""
    recipe = Recipe(folder=folder, options=tuple(options))
    run_steps(all_steps(recipe), dry_run=False)
    histories = {
        name: pd.read_csv(model_of(recipe, name) / "history.csv").set_index("epoch") for name in OPTIMIZERS
    }
    columns = ("val_accuracy", "val_loss", "seconds")
    table = {f"{name}: {column}": h[column] for name, h in histories.items() for column in columns}
    print(pd.DataFrame(table).dropna().round(3).to_string())
    before, after = (histories[name]["val_loss"].iloc[-1] for name in OPTIMIZERS)
    print(f"ratio: {before / after:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
