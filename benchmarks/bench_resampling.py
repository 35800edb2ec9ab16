"""Resampling of a CT to the working grid: separable cubic splines beside nibabel's resampler.

Reads   nothing: the volume is generated, 256 x 256 x 160 voxels of .7 x .7 x 1.25 mm (oblique), to 1 mm.
Writes  nothing.
Command python benchmarks/bench_resampling.py
Time    about 20 s on two cores.

Seconds are the best of three runs; memory is what NumPy allocates beside the CT itself. The last line
says how many times faster ours is.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.imaging.grids import working_grid
from utils.imaging.resampling import resample_ct
from utils.imaging.volume import Volume

SHAPE = (256, 256, 160)
SPACING_MM = (0.7, 0.7, 1.25)
TILT_DEGREES = 12.0
REPEATS = 3


def example_ct(shape: tuple[int, int, int] = SHAPE) -> Volume:
    """Give an oblique CT of smooth structures and noise, int16 HU from the same seed."""
    noise = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    structure = ndimage.gaussian_filter(noise, 4)
    hu = 400 * structure / structure.std() + 30 * noise
    angle = np.deg2rad(TILT_DEGREES)
    affine = np.diag([-SPACING_MM[0], *SPACING_MM[1:], 1.0])
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), tilt @ affine)


def ours(ct: Volume) -> np.ndarray:
    """Resample with one sparse matrix an axis."""
    return resample_ct(ct, working_grid(ct.grid, 1.0)).data


def with_nibabel(ct: Volume) -> np.ndarray:
    """Resample with nibabel's three-dimensional spline."""
    grid = working_grid(ct.grid, 1.0)
    image = nibabel.Nifti1Image(ct.data.astype(np.float32), ct.affine)
    resampled = resample_from_to(image, (grid.shape, grid.affine), order=3, mode="nearest")
    return np.asarray(resampled.dataobj)


def measure(method: Callable[[Volume], np.ndarray], ct: Volume) -> tuple[float, float, np.ndarray]:
    """Give the best seconds of three runs, MiB allocated at the peak of a fourth, and the result."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = method(ct)
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    method(ct)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(seconds), peak_bytes / 2**20, result


def main() -> int:
    """Print the table and the ratio."""
    ct = example_ct()
    our_seconds, our_mib, our_result = measure(ours, ct)
    their_seconds, their_mib, their_result = measure(with_nibabel, ct)
    print(f"{'method':<10}{'seconds':>10}{'peak MiB':>10}")
    print(f"{'nibabel':<10}{their_seconds:>10.2f}{their_mib:>10.0f}")
    print(f"{'ours':<10}{our_seconds:>10.2f}{our_mib:>10.0f}")
    print(
        f"largest difference: {np.abs(our_result - their_result).max():.3f} HU in {our_result.shape} voxels"
    )
    print(f"ratio: {their_seconds / our_seconds:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
