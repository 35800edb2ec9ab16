"""Train the iterative 3D U-Net that segments the first vertebra which its memory does not hold yet.

Reads   work/segmentation/<spacing>/{training,validation} (from pre_processing_segmentation.py)
Writes  work/models/segmentation, or with --name X work/models/X: best.weights.h5, last.weights.h5,
        settings.json, history.csv, curves.png

    python train_segmentation.py --work-dir work --preset small

About ten minutes on two CPU cores with the preset small. A killed run goes on where it stopped.
"""

import sys

from utils.command_line import run_script
from utils.settings import SegmentationTrainingSettings


def main(settings: SegmentationTrainingSettings) -> int:
    """Train the segmentation network and give the exit status."""
    from utils.learning.training import train_segmentation  # after the command line: TensorFlow loads slowly

    return train_segmentation(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, SegmentationTrainingSettings))
