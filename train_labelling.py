"""Train the network that tells whether a vertebra's body lies around a point, and which level it is.

Not for the preset paper, whose vertebrae are counted.

Reads   work/heatmap/<spacing>/{training,validation}    (from pre_processing_heatmap.py)
Writes  work/models/labelling, or with --name X work/models/X: best.weights.h5, last.weights.h5,
        settings.json, history.csv, curves.png

    python train_labelling.py --work-dir work --preset small

About two minutes on two CPU cores with the preset small. A killed run goes on where it stopped.
"""

import sys

from utils.command_line import run_script
from utils.settings import LabellingTrainingSettings


def main(settings: LabellingTrainingSettings) -> int:
    """Train the labelling network and give the exit status."""
    from utils.learning.training import train_labelling  # after the command line: TensorFlow loads slowly

    return train_labelling(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, LabellingTrainingSettings))
