"""Train the network that finds the vertebrae in a whole scan, or, as published, the spine.

--target centres (every preset but paper): body centres and the sacrum. --target spine: a heatmap.

Reads   work/heatmap/<spacing>/{training,validation}    (from pre_processing_heatmap.py)
Writes  work/models/heatmap, or with --name X work/models/X: best.weights.h5, last.weights.h5,
        settings.json, history.csv, curves.png

    python train_heatmap.py --work-dir work --preset small

About three minutes on two CPU cores with the preset small. A killed run goes on where it stopped.
"""

import sys

from utils.command_line import run_script
from utils.settings import HeatmapTrainingSettings


def main(settings: HeatmapTrainingSettings) -> int:
    """Train the heatmap network and give the exit status."""
    from utils.learning.training import train_heatmap  # after the command line: TensorFlow loads slowly

    return train_heatmap(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, HeatmapTrainingSettings))
