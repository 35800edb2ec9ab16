"""Prepare the real scans whose centres are known for the training of the network that finds vertebrae.

Command python experiments/real/prepare.py --shared ../shared --work-dir starter/work
Time    a minute
Result  a training case `real-<name>` for every scan of `centres.json` that has a spine, at 3 mm, beside those
        of pre_processing_heatmap.py. A fold leaves scans out by `--exclude "real-<name>"`. Scans whose CT is
        not there are passed over.

Reads   experiments/real/centres.json, and the CTs that it names
Writes  WORK/heatmap/3mm/training
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.real.facts import ScanFacts, available_scans
from experiments.steps import exit_status_of
from utils.imaging.grids import transform_points
from utils.imaging.nifti import read_ct
from utils.imaging.resampling import working_ct
from utils.preparation.prepared import PREPARED_SPLITS, spacing_folder
from utils.preparation.spine_case import SPINE, KnownSpine, spine_of_points, write_spine_case
from utils.presets import preset_settings
from utils.settings import HeatmapPreparationSettings

PREFIX = "real-"


def known_spine(facts: ScanFacts, affine: np.ndarray, shape: tuple[int, int, int]) -> KnownSpine:
    """Give what is known of a scan, in voxels of a grid: every vertebra whose body centre lies in it."""
    points = {**facts.edge_mm, **facts.points_mm}
    ordered = dict(sorted(points.items(), key=lambda item: -item[1][2]))
    voxels = transform_points(np.array([*ordered.values()]).reshape(-1, 3), np.eye(4), affine)
    inside = np.all((voxels > -0.5) & (voxels < np.array(shape) - 0.5), axis=1)
    codes = np.array([*ordered])[inside]
    sacrum = facts.sacrum_mm
    if sacrum is not None:
        sacrum = transform_points(sacrum[None], np.eye(4), affine)[0]
    return spine_of_points(codes, voxels[inside], sacrum=sacrum, is_complete=True)


def prepare(shared: Path, work_dir: Path) -> None:
    """Write the cases that are not there yet, of the scans whose CTs are there."""
    spacing_mm = preset_settings(HeatmapPreparationSettings, "starter").spacing_mm
    folder = spacing_folder(work_dir, "heatmap", spacing_mm) / PREPARED_SPLITS[0]
    for name, facts in available_scans(shared).items():
        key = f"{PREFIX}{name}"
        if not facts.points_mm or (folder / f"{key}{SPINE}").is_file():
            continue
        ct = working_ct(read_ct(shared / facts.ct), spacing_mm)
        folder.mkdir(parents=True, exist_ok=True)
        spine = known_spine(facts, ct.affine, ct.shape)
        write_spine_case(folder, key, ct, spine)
        print(f"{key}: {len(spine.codes)} vertebrae", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and prepare; gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the real scans")
    parser.add_argument("--work-dir", type=Path, default=Path("starter/work"), help="work folder")
    chosen = parser.parse_args(arguments)
    return exit_status_of(partial(prepare, chosen.shared, chosen.work_dir))


if __name__ == "__main__":
    sys.exit(main())
