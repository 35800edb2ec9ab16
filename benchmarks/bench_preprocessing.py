"""Pre-processing of a scan for the segmentation network: ours beside a pass over the scan for each vertebra.

Ours is `pre_processing_segmentation.py` with the preset `full`, one worker, as a process of its own with its
start-up: the scan is resampled once, cropped to the spine, and stored as int16 with its mask. Beside it the
approach of published code for this network: for each vertebra the whole scan is resampled to 1 mm by
`nibabel.processing.resample_from_to` (order 3, the mask order 0), cropped to 256³ voxels around the vertebra
in float64, and stored compressed. That is run for two vertebrae, a quarter and three quarters down the
spine, and counted for all of them. Peak memory is the largest resident size of the process, and given in
multiples of the scan in float32 too.

Reads   nothing: the scans are generated, with blocks for vertebrae.
Writes  nothing that stays: up to 1 GB in a temporary folder.
Command python benchmarks/bench_preprocessing.py
Time    about 4 minutes.

The last line says how many times faster ours is on the first scan, which has twelve vertebrae.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import nibabel  # noqa: E402
import numpy as np  # noqa: E402
from nibabel.affines import apply_affine  # noqa: E402
from nibabel.processing import resample_from_to  # noqa: E402
from scipy import ndimage  # noqa: E402

from utils.imaging.grids import oriented_grid, working_grid  # noqa: E402
from utils.imaging.nifti import write_volume  # noqa: E402
from utils.imaging.volume import Volume  # noqa: E402

KEY = "sub-verse500"
#: Vertebrae that the baseline is run for.
BASELINE_VERTEBRAE = 2
CROP_VOXELS = 256
#: Standard deviation of the noise: that between neighbouring voxels of a chest CT with thin slices.
NOISE_HU = 59


@dataclass(frozen=True)
class Kind:
    """One kind of scan: shape and spacing (LPS), the number of vertebrae, and the type of its mask."""

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    vertebrae: int
    mask_type: type = np.uint8

    @property
    def native_bytes(self) -> int:
        return 4 * int(np.prod(self.shape))


KINDS = (
    Kind("thin axial slices", (512, 512, 300), (0.35, 0.35, 1.0), 12),
    Kind("the same, mask in float64", (512, 512, 300), (0.35, 0.35, 1.0), 12, np.float64),
    Kind("chest", (512, 512, 133), (0.7, 0.7, 2.5), 12),
    Kind("1 mm, whole trunk", (360, 300, 600), (1.0, 1.0, 1.0), 17),
)


def write_scan(data_dir: Path, kind: Kind) -> None:
    """Write CT and mask of a generated training case: a body in air, noise, and a block a vertebra."""
    random = np.random.default_rng(0)
    across = [np.linspace(-1, 1, n, dtype=np.float32) for n in kind.shape[:2]]
    body = (across[0][:, None] ** 2 + across[1] ** 2 < 0.9)[..., None]
    mask = np.zeros(kind.shape, np.uint8)
    length = kind.shape[2] // kind.vertebrae
    half = [round(20 / s) for s in kind.spacing_mm[:2]]
    for number in range(kind.vertebrae):
        inside = slice(number * length + length // 8, (number + 1) * length - length // 8)
        box = tuple(slice(n // 2 - h, n // 2 + h) for n, h in zip(kind.shape, half))
        mask[(*box, inside)] = 24 - number  # L5 at the lower end, the levels above it upwards
    ct = np.where(body, 40, -1000) + np.where(mask > 0, 300, 0)
    ct = (ct + random.normal(0, NOISE_HU, kind.shape)).astype(np.int16)
    affine = np.diag([-kind.spacing_mm[0], -kind.spacing_mm[1], kind.spacing_mm[2], 1.0])
    top = data_dir / "dataset-verse20training"
    write_volume(top / "rawdata" / KEY / f"{KEY}_ct.nii.gz", Volume(ct, affine))
    path = top / "derivatives" / KEY / f"{KEY}_seg-vert_msk.nii.gz"
    write_volume(path, Volume(mask.astype(kind.mask_type), affine))


def prepare_generically(data_dir: Path, output: Path) -> None:
    """Prepare some vertebrae of the scan below `data_dir`: a pass over the whole scan for each."""
    (ct_path,) = data_dir.rglob("*_ct.nii.gz")
    (mask_path,) = data_dir.rglob("*_msk.nii.gz")
    output.mkdir()
    codes = np.unique(np.rint(nibabel.load(mask_path).get_fdata()))[1:]
    for share in (np.arange(BASELINE_VERTEBRAE) + 0.5) / BASELINE_VERTEBRAE:
        code = codes[int(share * len(codes))]
        ct, mask = nibabel.load(ct_path), nibabel.load(mask_path)
        grid = working_grid(oriented_grid(Volume(np.empty(ct.shape, bool), ct.affine).grid), 1.0)
        ct = resample_from_to(ct, (grid.shape, grid.affine), order=3)
        mask = resample_from_to(mask, (grid.shape, grid.affine), order=0)
        inside = np.rint(mask.get_fdata()) == code
        centre = np.rint(ndimage.center_of_mass(inside)).astype(int)
        for name, volume in (("ct", ct.get_fdata()), ("mask", inside.astype(np.float64))):
            crop, affine = crop_around(volume, centre, grid.affine)
            nibabel.save(nibabel.Nifti1Image(crop, affine), output / f"{int(code)}_{name}.nii.gz")


def crop_around(volume: np.ndarray, centre: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut 256³ voxels around one, filled up where the volume ends, and give their affine."""
    half = CROP_VOXELS // 2
    padded = np.pad(volume, half, constant_values=volume.min())
    crop = padded[tuple(slice(c, c + CROP_VOXELS) for c in centre)]
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, centre - half)
    return crop, moved


@dataclass(frozen=True)
class Cost:
    """Seconds, peak memory and bytes on disk of a scan."""

    seconds: float
    peak_bytes: int
    disk_bytes: int


def cost_of(command: list[str], output: Path) -> Cost:
    """Run a command, and measure it and what it wrote."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            said.seek(0)
            sys.exit(said.read().decode())
    seconds = time.perf_counter() - began
    disk = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return Cost(seconds, usage.ru_maxrss * 1024, disk)


def costs(kind: Kind, folder: Path) -> tuple[Cost, Cost, Cost]:
    """Measure one kind of scan: ours for segmentation, ours for the heatmap, and the baseline."""
    data = folder / "data"
    # In a process of its own: a child begins with the peak of its parent.
    own = [sys.executable, __file__]
    subprocess.run([*own, "write", str(KINDS.index(kind)), str(data)], check=True)
    ours = []
    for stage in ("segmentation", "heatmap"):
        work = folder / stage
        script = [sys.executable, f"pre_processing_{stage}.py", "--workers", "1"]
        ours.append(cost_of([*script, "--data-dir", str(data), "--work-dir", str(work)], work))
    few = cost_of([*own, "prepare", str(data), str(folder / "generic")], folder / "generic")
    times = kind.vertebrae / BASELINE_VERTEBRAE
    return *ours, Cost(few.seconds * times, few.peak_bytes, int(few.disk_bytes * times))


def line(name: str, cost: Cost, native_bytes: int) -> str:
    """Give a row of the table."""
    share = cost.peak_bytes / native_bytes
    numbers = f"{cost.seconds:10.1f} {cost.peak_bytes / 1e9:9.2f} {share:9.2f} {cost.disk_bytes / 1e6:9.1f}"
    return f"{name:36s}{numbers}"


def main() -> None:
    """Print a table of all kinds of scans, and the ratio of the first."""
    ratios = []
    for kind in KINDS:
        shape, spacing = (" x ".join(f"{n:g}" for n in numbers) for numbers in (kind.shape, kind.spacing_mm))
        print(f"\n{kind.name}: {shape} at {spacing} mm, {kind.vertebrae} vertebrae")
        print(f"{'':36s}{'seconds':>10s} {'peak GB':>9s} {'x native':>9s} {'disk MB':>9s}")
        with tempfile.TemporaryDirectory() as folder:
            segmentation, heatmap, generic = costs(kind, Path(folder))
        print(line("ours, for the segmentation network", segmentation, kind.native_bytes))
        print(line("ours, for the heatmap network", heatmap, kind.native_bytes))
        print(line("a pass for each vertebra", generic, kind.native_bytes))
        ratios.append(generic.seconds / segmentation.seconds)
        smaller = generic.disk_bytes / segmentation.disk_bytes
        print(f"{ratios[-1]:.0f} times faster, {smaller:.1f} times smaller on disk", flush=True)
    print(f"ratio: {ratios[0]:.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write_scan(Path(sys.argv[3]), KINDS[int(sys.argv[2])])
    elif sys.argv[1:2] == ["prepare"]:
        prepare_generically(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
