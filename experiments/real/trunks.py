"""Draw scans with masks from the organs of one real CT: its vertebrae among their own ribs and organs.

Command python experiments/real/trunks.py --shared ../shared --data-dir starter/data --count 24
Time    a minute to read the organs, ten seconds a scan
Result  training cases sub-trunk<seed>x<number> in the data set; those that are there stay

Reads   the CT, its vertebrae and its organs (SHARED/data/other-ct, SHARED/real-ct/chest-total)
Writes  DATA/own-training

Pose, size, bone, contrast, noise and field of view are drawn anew for each (`utils.synthetic.trunk`). Whoever
leaves the patient out leaves these out too: --exclude "sub-trunk*".
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.steps import exit_status_of
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.preparation.own_cases import add_own_case
from utils.settings import DataSettings
from utils.synthetic.organs import read_organ_map
from utils.synthetic.trunk import draw_trunk_scan
from utils.verse.cases import visible_files

#: Organs, table of their names, vertebrae and CT, below the folder of the real scans.
FILES = (
    "real-ct/chest-total/chest_seg-total_msk.nii.gz",
    "real-ct/chest-total/chest_seg-total_names.csv",
    "data/other-ct/chest_seg-vert_msk.nii.gz",
    "data/other-ct/chest_ct.nii.gz",
)
SPACING_MM = 1.0


def draw_trunks(shared: Path, data_dir: Path, *, count: int, seed: int) -> None:
    """Draw the scans that are not there yet.

    Parameters
    ----------
    shared : Path
        Folder of the real scans.
    data_dir : Path
        The data set.
    count, seed : int
        Number of scans, and their seed.

    Raises
    ------
    ValueError
        If the organs cannot be read.
    """
    there = {path.name for path in visible_files(data_dir)} if data_dir.is_dir() else set()
    keys = {number: f"sub-trunk{seed}x{number:03d}" for number in range(count)}
    missing = [number for number, key in keys.items() if f"{key}_ct.nii.gz" not in there]
    if not missing:
        return
    organs = read_organ_map(*(shared / name for name in FILES), spacing_mm=SPACING_MM)
    for number in tqdm(missing, desc="trunks", unit="scan"):
        scan = draw_trunk_scan(organs, seed, number, spacing_mm=SPACING_MM, with_codes=True)
        with tempfile.TemporaryDirectory() as folder:
            ct, mask = (Path(folder) / f"{name}.nii.gz" for name in ("ct", "mask"))
            write_volume(ct, Volume(scan.ct, scan.affine))
            # What the scan shows of a vertebra whose body lies outside is no target.
            codes = np.where(np.isin(scan.codes, [*scan.points]), scan.codes, 0).astype(np.uint8)
            write_volume(mask, Volume(codes, scan.affine))
            add_own_case(DataSettings(source="pairs", data_dir=data_dir, ct=ct, mask=mask, key=keys[number]))


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and draw; gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the real scans")
    parser.add_argument("--data-dir", type=Path, default=Path("starter/data"), help="the data set")
    parser.add_argument("--count", type=int, default=24, help="scans to draw")
    parser.add_argument("--seed", type=int, default=6201, help="the same seed gives the same scans")
    chosen = parser.parse_args(arguments)
    how = {"count": chosen.count, "seed": chosen.seed}
    return exit_status_of(partial(draw_trunks, chosen.shared, chosen.data_dir, **how))


if __name__ == "__main__":
    sys.exit(main())
