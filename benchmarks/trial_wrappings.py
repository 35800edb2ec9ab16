"""Trial of the wrappings: does a scan get the same answer in every form in which it may come?

The scan is written in each form (`tests/prediction/wrappings.py` lists them: orders of voxels, turned stacks,
spacings, padding, number formats, headers, DICOM, NRRD, MetaImage, names, folders, surroundings), segmented
by `infer.py`, and compared in the world with its plain copy.

Reads   a scan: a file, or the folder of a DICOM series; the networks of --work-dir, or those shipped
Writes  nothing that stays

    python benchmarks/trial_wrappings.py my_scan.nii.gz

Takes about a minute on two cores for ten forms of a scan of 200 x 200 x 200 voxels. Prints a line a wrapping:

- `labels`: whether it has the labels of the plain copy
- `Dice`: mean over the vertebrae, and the lowest of one
- the verdict: that it holds (equal labels, Dice as the table asks), that it was refused as it must be, or
  what is wrong

The exit status is 0 if all hold, else 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from tests.prediction.wrapping_runs import HEAD, rows  # noqa: E402
from tests.prediction.wrappings import WRAPPINGS, plain_scan  # noqa: E402
from utils.files import printable  # noqa: E402
from utils.imaging.formats import read_scan  # noqa: E402
from utils.imaging.volume import Volume  # noqa: E402
from utils.prediction.scans import find_scans  # noqa: E402
from utils.settings import InferenceSettings  # noqa: E402


def read_one(path: Path) -> Volume:
    """Read the scan of a path, which must hold one."""
    found = find_scans([path])
    if len(found.scans) != 1:
        raise ValueError(" ".join(found.bad) or f"{path}: expected one scan, found {len(found.scans)}.")
    return read_scan(found.scans[0].path, found.scans[0].series)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scan", type=Path)
    parser.add_argument("--work-dir", type=Path, default=InferenceSettings().work_dir)
    parser.add_argument("--device", default="auto", choices=("auto", "gpu", "cpu"))
    parser.add_argument("--only", nargs="+", default=[""], help="words; a wrapping's name has one of them")
    options = parser.parse_args()
    chosen = [each for each in WRAPPINGS if any(word in each.title for word in options.only)]
    if not chosen:
        parser.error(f"--only: expected words of which a wrapping's name has one, received {options.only}.")
    networks = ("--work-dir", options.work_dir.absolute(), "--device", options.device)
    wrong = 0
    try:
        ct = plain_scan(read_one(options.scan))
        with tempfile.TemporaryDirectory() as folder:
            print(HEAD, flush=True)
            for row in rows(ct, chosen, Path(folder), networks):
                print(printable(str(row)), flush=True)
                wrong += bool(row.fault)
    except (ValueError, RuntimeError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    print(f"{1 + len(chosen) - wrong} of {1 + len(chosen)} hold.")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
