"""Inference: network calls a vertebra, seconds a scan, peak memory, and a folder in one call of infer.py.

Three tables, on generated spines and with trained networks (untrained ones find no vertebra, so a work folder
with all networks is required):

- *memory*: one scan of 512 x 512 x 1500 voxels at .4 x .4 x .5 mm, C1 to L5, .8 GB as int16 and 1.6 GB in
  float32, by infer.py as a process of its own. The bound is 8 GB. Peak memory is the largest resident size of
  the process;
- *folder*: ten scans in one call of infer.py, which loads the networks once and reads the next scan while one
  is predicted, beside ten calls of infer.py for one scan each;
- *calls*: how often the segmentation network was asked on the way to each vertebra found, and in all, with
  what the ends of the spine cost; by the published walk, and by the one that looks above, into gaps and for
  leaks.

Reads   WORK/models/segmentation and WORK/models/heatmap (train_segmentation.py, train_heatmap.py)
Writes  nothing that stays: the scans and their predictions, up to 1 GB, in a temporary folder
Command python benchmarks/bench_inference.py --work-dir WORK
Time    9 minutes, on two cores that others used too, with networks of the preset `small`

The last line says how many times as long the ten calls take as the one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402

from utils.imaging.grids import oriented, transform_points  # noqa: E402
from utils.imaging.nifti import read_ct, write_volume  # noqa: E402
from utils.imaging.volume import Volume  # noqa: E402
from utils.synthetic.phantom.make import make_phantom  # noqa: E402

SCANS = 10
LARGE_SHAPE, LARGE_SPACING_MM = (512, 512, 1500), (0.4, 0.4, 0.5)
BOUND_GB = 8.0
FIRST, LAST = 1, 24  # C1 to L5


def write_scans(folder: Path) -> None:
    """Write the CTs of ten generated spines."""
    for subject in range(SCANS):
        phantom = make_phantom(100, subject=subject)
        write_volume(folder / f"sub-{subject:02}_ct.nii.gz", Volume(phantom.ct, phantom.affine))


def write_large_scan(path: Path) -> None:
    """Write the large scan: a generated spine from C1 to L5, its voxels repeated to the finer grid."""
    phantom = make_phantom(100, whole=(FIRST, LAST))
    original = oriented(Volume(phantom.ct, phantom.affine), ("L", "P", "S"))
    affine = np.diag([-LARGE_SPACING_MM[0], -LARGE_SPACING_MM[1], LARGE_SPACING_MM[2], 1.0])
    bodies = np.array([point for _, point in phantom.points])
    middle = (bodies.min(axis=0) + bodies.max(axis=0)) / 2
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(LARGE_SHAPE) - 1) / 2)
    ends = transform_points(np.array([[0, 0, 0], np.array(LARGE_SHAPE) - 1]), affine, original.affine)
    data = original.data
    for axis, voxels in enumerate(LARGE_SHAPE):
        index = np.rint(np.linspace(ends[0, axis], ends[1, axis], voxels)).astype(int)
        data = np.take(data, np.clip(index, 0, data.shape[axis] - 1), axis=axis)
    write_volume(path, Volume(data, affine))


@dataclass(frozen=True)
class Cost:
    """Seconds and peak memory of a process."""

    seconds: float
    peak_bytes: int


def run_infer(inputs: list[Path], output: Path, work_dir: Path) -> Cost:
    """Run infer.py as a process of its own, and measure it."""
    arguments = [*map(str, inputs), "--work-dir", str(work_dir), "--output", str(output), "--device", "cpu"]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "infer.py", *arguments]
        process = subprocess.Popen(command, cwd=PROJECT, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            said.seek(0)
            sys.exit(said.read().decode())
    return Cost(time.perf_counter() - began, usage.ru_maxrss * 1024)


# Tables --------------------------------------------------------------------------------------------


def count_calls(folder: Path, work_dir: Path) -> None:
    """Print a row a scan: vertebrae, network calls and seconds, of the published walk."""
    from utils.prediction.networks import load_networks
    from utils.prediction.one_scan import find_vertebrae, walk_settings
    from utils.settings import InferenceSettings

    settings = InferenceSettings(work_dir=work_dir)
    networks = load_networks(settings)
    networks.patch(*np.zeros((2, *(networks.patch_voxels,) * 3), np.float32))  # the first call traces it
    columns = ("vertebrae", "calls", "a vertebra", "with ends", "seconds")
    print(f"{'published walk':16}" + "".join(f"{column:>12}" for column in columns))
    walk, rows = walk_settings(settings, **networks.walk), []
    for path in sorted(folder.glob("*_ct.nii.gz")):
        began = time.perf_counter()
        found = find_vertebrae(read_ct(path), networks, walk)
        on_the_way = sum(vertebra.calls for vertebra in found.vertebrae)
        rows.append((len(found.vertebrae), found.calls, on_the_way, time.perf_counter() - began))
        print(_calls_line(path.name.partition("_")[0], *rows[-1]), flush=True)
    print(_calls_line("all", *np.sum(rows, axis=0)), flush=True)


def _calls_line(name: str, vertebrae: float, calls: float, on_the_way: float, seconds: float) -> str:
    each = [f"{number / vertebrae:.2f}" if vertebrae else "-" for number in (on_the_way, calls)]
    return f"{name:16}{vertebrae:12.0f}{calls:12.0f}{each[0]:>12}{each[1]:>12}{seconds:12.1f}"


def measure_memory(folder: Path, work_dir: Path) -> None:
    """Print seconds and peak memory of the large scan."""
    path = folder / "sub-large_ct.nii.gz"
    # In a process of its own: a child begins with the peak of its parent.
    subprocess.run([sys.executable, __file__, "write-large", str(path)], check=True)
    cost = run_infer([path], folder.with_name("predictions"), work_dir)
    native = 4 * int(np.prod(LARGE_SHAPE))
    peak_gb = cost.peak_bytes / 1e9
    print(f"{'seconds':>9}{'peak GB':>10}{'x float32':>11}{f'under {BOUND_GB:g} GB':>14}")
    within = "yes" if peak_gb < BOUND_GB else "NO"
    print(f"{cost.seconds:9.1f}{peak_gb:10.2f}{cost.peak_bytes / native:11.2f}{within:>14}", flush=True)


def compare_calls(folder: Path, work_dir: Path) -> float:
    """Print seconds of one call for ten scans and of ten calls; give their ratio."""
    scans = sorted(folder.glob("*_ct.nii.gz"))
    output = folder.with_name("predictions")
    single = [run_infer([scan], output / "single", work_dir) for scan in scans]
    together = run_infer([folder], output / "together", work_dir)
    print(f"{'':24}{'seconds':>9}{'a scan':>9}{'peak GB':>9}")
    alone = Cost(sum(cost.seconds for cost in single), max(cost.peak_bytes for cost in single))
    for name, cost in ((f"{len(scans)} calls of infer.py", alone), ("one call", together)):
        each = cost.seconds / len(scans)
        print(f"{name:24}{cost.seconds:9.1f}{each:9.1f}{cost.peak_bytes / 1e9:9.2f}", flush=True)
    return alone.seconds / together.seconds


def main() -> int:
    """Print the three tables and the ratio."""
    parser = argparse.ArgumentParser(description="Time the inference with trained networks.")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder with trained networks")
    work_dir = parser.parse_args().work_dir
    missing = [name for name in ("segmentation", "heatmap") if not (work_dir / "models" / name).is_dir()]
    if missing:
        parser.error(
            f"{work_dir / 'models'}: expected trained networks, found no {' and no '.join(missing)}."
        )
    with tempfile.TemporaryDirectory() as temporary:
        scans, large = Path(temporary) / "scans", Path(temporary) / "large"
        print("memory: one scan of 512 x 512 x 1500 voxels", flush=True)
        measure_memory(large, work_dir)
        print(f"\nfolder: {SCANS} scans", flush=True)
        subprocess.run([sys.executable, __file__, "write", str(scans)], check=True)
        ratio = compare_calls(scans, work_dir)
        print("\ncalls of the segmentation network", flush=True)
        count_calls(scans, work_dir)
    print(f"ratio: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write_scans(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["write-large"]:
        write_large_scan(Path(sys.argv[2]))
    else:
        sys.exit(main())
