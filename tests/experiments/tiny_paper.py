"""The published experiment with few spines and networks of seconds, for test_paper_runs.py.

python -m tests.experiments.tiny_paper FOLDER
"""

import dataclasses
import sys
from pathlib import Path

from experiments.paper import Plan, main

_SHORT = "--epochs 2 --batch-size 1 --no-tensorboard --validate-every 2 --xla off"


def tiny_plan(folder: Path) -> Plan:
    """Give the whole plan, each training of two epochs of two steps, one student with the teacher's help."""
    plan = Plan(folder / "data", folder, spines=(2, 1, 2), device="cpu", timed_steps=1, methods=("soft",))
    grid = "--spacing-mm 4"
    more = {
        "pre_processing_heatmap.py": f"{grid} --heatmap-shape 16 16 32",
        "pre_processing_segmentation.py": grid,
        "train_heatmap.py": f"{_SHORT} {grid} --filters 2 2 --examples-per-epoch 2",
        "train_segmentation.py": f"{_SHORT} {grid} --patch-voxels 16 --filters 2 2 --examples-per-epoch 2",
        "train_distillation.py": "--filters 2 2 --no-tensorboard --xla off",
    }
    return dataclasses.replace(plan, more=more)


if __name__ == "__main__":
    sys.exit(main(tiny_plan(Path(sys.argv[1]))))
