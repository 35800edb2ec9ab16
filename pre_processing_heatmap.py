"""Prepare the data of the network that finds the vertebrae: every CT and its vertebrae's centres.

Reads   the VerSe tree in --data-dir (the splits training and validation); with --organs the organs of a CT.
Writes  training, validation and settings.json in --work-dir, in heatmap/<spacing> (heatmap/3mm, say); with
        --drawn N M scans that are drawn, with and without a spine, with --trunks K some from the organs.
Command python pre_processing_heatmap.py --data-dir data --work-dir work --preset small
Time    about 2 s a case and core, less for one that is drawn; a rerun prepares only what is missing.
"""

import sys

from utils.command_line import run_script
from utils.settings import HeatmapPreparationSettings


def main(settings: HeatmapPreparationSettings) -> int:
    """Prepare all cases and give the exit status."""
    from utils.preparation.prepare import prepare_heatmap  # after the command line: NumPy loads slowly

    return prepare_heatmap(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, HeatmapPreparationSettings))
