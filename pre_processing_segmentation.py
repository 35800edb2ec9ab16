"""Prepare the data of the segmentation network: every CT and mask resampled once to the working grid.

Reads   the VerSe tree in --data-dir (the splits training and validation).
Writes  training, validation (each with vertebrae.csv) and settings.json in --work-dir, in
        segmentation/<spacing> (segmentation/2mm, say).
Command python pre_processing_segmentation.py --data-dir data --work-dir work --preset small
Time    about 3 s a case and core; a rerun prepares only what is missing.
"""

import sys

from utils.command_line import run_script
from utils.settings import SegmentationPreparationSettings


def main(settings: SegmentationPreparationSettings) -> int:
    """Prepare all cases and give the exit status."""
    from utils.preparation.prepare import prepare_segmentation  # after the command line: NumPy loads slowly

    return prepare_segmentation(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, SegmentationPreparationSettings))
