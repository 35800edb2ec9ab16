"""Measure where bone ends in masks: how far a mask reaches beyond the half-height of the cortex.

Command python experiments/real/convention.py CT MASK [CT MASK ...]
Time    some seconds a scan
Result  VerSe (sub-verse014) and TotalSegmentator (a chest, an abdomen) beside phantoms: docs/design.md

Along the normal of a mask's surface the CT rises from soft tissue to the cortex. Half-height is where it
passes the middle between the highest value, near the surface, and the lowest one outside of it, and does not
depend on blur. Lines that meet another bone, a rib or a vessel do not fall low enough outside, and are left
out. Prints a line a scan: median and quartiles of the distance from half-height to the surface in mm,
positive where the mask reaches beyond it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.special import ndtri

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.imaging.grids import working_grid
from utils.imaging.nifti import read_pair
from utils.imaging.resampling import resample_ct, resample_linear
from utils.imaging.volume import Volume

#: Step of the grid that surfaces are found on, and along a line, mm.
STEP_MM, ALONG_MM = 1.0, 0.25
#: A line begins so deep under the surface and ends so far outside of it, mm.
INSIDE_MM, OUTSIDE_MM = 3.0, 4.0
#: A line counts if the cortex stands out of what lies outside of it by so much, and that is soft tissue, HU.
LEAST_STEP_HU, MOST_OUTSIDE_HU = 120.0, 120.0
#: Blur that makes a slope of a mask's steps, in mm.
SMOOTH_MM = 0.8


def distances_beyond(ct: Volume, mask: Volume) -> np.ndarray:
    """Give how far a mask reaches beyond the half-height of the cortex, line by line.

    Parameters
    ----------
    ct, mask : Volume
        A scan in HU and its labels, on one grid.

    Returns
    -------
    np.ndarray of float, (n,)
        Distances in mm, positive where the mask reaches beyond.
    """
    found = []
    for code, box in mask.label_boxes.items():
        part = tuple(
            slice(max(side.start - 8, 0), min(side.stop + 8, size)) for side, size in zip(box, mask.shape)
        )
        affine = mask.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in part]
        own = Volume((mask.data[part] == code).astype(np.float32), affine)
        grid = working_grid(own.grid, STEP_MM)
        image = resample_ct(Volume(ct.data[part], affine), grid).data
        found.append(_of_vertebra(image, resample_linear(own, grid).data))
    return np.concatenate(found) if found else np.zeros(0)


def _of_vertebra(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Distances of one vertebra, from its CT and the share of bone on the same grid."""
    soft = ndimage.gaussian_filter(share, SMOOTH_MM / STEP_MM)
    slope = np.array(np.gradient(soft))
    steep = np.linalg.norm(slope, axis=0)
    surface = np.argwhere((soft > 0.1) & (soft < 0.9) & (steep > 0.1))
    if not len(surface):
        return np.zeros(0)
    at = tuple(surface.T)
    outward = -slope[(slice(None), *at)] / steep[at]
    # Across a flat surface the smoothed share falls as a normal distribution does; a voxel's edge adds to it.
    depth = ndtri(soft[at]) * np.hypot(SMOOTH_MM / STEP_MM, np.sqrt(1 / 12))
    start = surface.T + outward * depth
    steps = np.arange(-INSIDE_MM, OUTSIDE_MM + ALONG_MM / 2, ALONG_MM)
    places = start[:, :, None] + outward[:, :, None] * steps / STEP_MM
    inside = ((places >= 0) & (places <= np.array(image.shape)[:, None, None] - 1)).all(axis=(0, 2))
    lines = ndimage.map_coordinates(image, places[:, inside], order=1)
    return _beyond_half_height(lines, steps)


def _beyond_half_height(lines: np.ndarray, steps: np.ndarray) -> np.ndarray:
    peak = lines[:, steps <= 2.0].argmax(axis=1)
    order = np.arange(len(steps))
    outside = np.where(order > peak[:, None], lines, np.inf)
    low = outside.min(axis=1)
    high = lines[np.arange(len(lines)), peak]
    middle = (high + low) / 2
    below = (order > peak[:, None]) & (lines <= middle[:, None])
    counts = below.any(axis=1) & (high - low > LEAST_STEP_HU) & (low < MOST_OUTSIDE_HU) & (peak > 0)
    lines, below, middle = lines[counts], below[counts], middle[counts]
    after = below.argmax(axis=1)
    row = np.arange(len(lines))
    drop = lines[row, after - 1] - lines[row, after]
    share = (lines[row, after - 1] - middle) / np.maximum(drop, 1e-6)
    return -(steps[after - 1] + share * (steps[1] - steps[0]))


def main(paths: list[Path]) -> None:
    """Print a line a scan."""
    for ct_path, mask_path in zip(paths[::2], paths[1::2], strict=True):
        found = distances_beyond(*read_pair(ct_path, mask_path))
        low, middle, high = np.percentile(found, (25, 50, 75)) if len(found) else (np.nan,) * 3
        print(f"{ct_path.name}: {middle:+.2f} mm ({low:+.2f} to {high:+.2f}), {len(found)} lines", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", type=Path, metavar="CT MASK", help="scans, each with its mask")
    main(parser.parse_args().pairs)
