"""Train the network that tells the level of one segmented vertebra, and fit how far its votes are trusted.

Reads   work/segmentation/<spacing>/{training,validation} (from pre_processing_segmentation.py)
Writes  work/models/labelling, or with --name X work/models/X: best.weights.h5, last.weights.h5,
        settings.json (with the temperature fitted on the validation scans), history.csv, curves.png

    python train_labelling.py --work-dir work --preset small

About ten minutes on two CPU cores with the preset small. A killed run goes on where it stopped.
"""

import sys

from utils.command_line import settings_from_command_line
from utils.settings import LabellingTrainingSettings


def main(settings: LabellingTrainingSettings) -> int:
    """Train the labelling network and give the exit status."""
    # After the command line: TensorFlow loads slowly.
    from utils.prediction.calibration import train_labelling

    return train_labelling(settings)


if __name__ == "__main__":
    sys.exit(main(settings_from_command_line(LabellingTrainingSettings)))
