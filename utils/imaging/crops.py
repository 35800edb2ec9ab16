"""Cutting patches out of volumes and putting them back: one rule for cropping, padding and pasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from utils.imaging.grids import cropped_grid
from utils.imaging.volume import Volume


def overlap(
    begin: Sequence[int], size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Give where a patch and a volume meet.

    Parameters
    ----------
    begin : sequence of int, (3,)
        Voxel of the volume at which the patch begins; may be negative.
    size : sequence of int, (3,)
        Shape of the patch.
    shape : sequence of int, (3,)
        Shape of the volume.

    Returns
    -------
    in_volume, in_patch : tuple of slice
        The common voxels, counted in the volume and in the patch; empty slices where they do not meet.
    """
    first = [min(max(b, 0), n) for b, n in zip(begin, shape)]
    last = [max(f, min(b + s, n)) for f, b, s, n in zip(first, begin, size, shape)]
    in_volume = tuple(slice(int(f), int(stop)) for f, stop in zip(first, last))
    in_patch = tuple(slice(int(f - b), int(stop - b)) for f, stop, b in zip(first, last, begin))
    return in_volume, in_patch


def box_between(begin: Sequence[int], end: Sequence[int]) -> tuple[slice, ...]:
    """Give the box of the voxels from `begin` up to, not including, `end`."""
    return tuple(slice(int(first), int(stop)) for first, stop in zip(begin, end))


def block_of_patch(
    affine: np.ndarray, size: Sequence[int], shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Give the block of a volume that a patch, turned and zoomed by an affine, is interpolated from.

    Parameters
    ----------
    affine : np.ndarray of float, (3, 4)
        Takes a voxel index of the patch to one of the volume.
    size : sequence of int, (3,)
        Shape of the patch.
    shape : sequence of int, (3,)
        Shape of the volume.

    Returns
    -------
    begin, end : np.ndarray of int, (3,)
        First voxel and end (exclusive) of the block, inside the volume and never empty. Where the patch lies
        inside the volume, a voxel is left on either side of it.
    """
    # The reach of an affine map of a box: along each axis the negative and the positive ways apart.
    ways = affine[:, :3] * (np.array(size) - 1)
    lowest = affine[:, 3] + np.minimum(ways, 0.0).sum(axis=1)
    highest = affine[:, 3] + np.maximum(ways, 0.0).sum(axis=1)
    begin = np.clip(np.floor(lowest).astype(int) - 1, 0, np.array(shape) - 1)
    return begin, np.clip(np.ceil(highest).astype(int) + 2, begin + 1, shape)


def crop(
    volume: Volume, begin: Sequence[int], size: Sequence[int], *, fill: float | Literal["edge"]
) -> Volume:
    """Cut a patch out of a volume; it may reach over the border.

    Parameters
    ----------
    volume : Volume
        Any volume, a memory map too: only the patch is read.
    begin : sequence of int, (3,)
        Voxel at which the patch begins; may be negative.
    size : sequence of int, (3,)
        Shape of the patch.
    fill : float or "edge"
        Value outside the volume, or "edge" for the value of the nearest voxel.

    Returns
    -------
    Volume
        A copy of shape `size`; the affine moves along, so voxels stay where they are in the world.
    """
    begin = [int(b) for b in begin]
    size = [int(s) for s in size]
    patch = (
        _edge_patch(volume.data, begin, size) if fill == "edge" else _filled(volume.data, begin, size, fill)
    )
    return Volume(patch, cropped_grid(volume.grid, begin, np.add(begin, size)).affine)


def paste(target: np.ndarray, patch: np.ndarray, begin: Sequence[int]) -> None:
    """Write a patch into an array in place; what reaches over the border is left out.

    Parameters
    ----------
    target : np.ndarray, (i, j, k)
        Array that is changed.
    patch : np.ndarray, (a, b, c)
        Values to write.
    begin : sequence of int, (3,)
        Voxel of `target` at which the patch begins; may be negative.
    """
    in_target, in_patch = overlap(begin, patch.shape, target.shape)
    target[in_target] = patch[in_patch]


def _filled(data: np.ndarray, begin: list[int], size: list[int], fill: float) -> np.ndarray:
    patch = np.full(size, fill, data.dtype)
    in_volume, in_patch = overlap(begin, size, data.shape)
    patch[in_patch] = data[in_volume]
    return patch


def _edge_patch(data: np.ndarray, begin: list[int], size: list[int]) -> np.ndarray:
    nearest = [np.clip(np.arange(b, b + s), 0, n - 1) for b, s, n in zip(begin, size, data.shape)]
    lowest = [int(indices.min(initial=n)) for indices, n in zip(nearest, data.shape)]
    # First a plain block, so that a memory map is read in runs and not voxel by voxel.
    block = np.asarray(
        data[tuple(slice(low, int(i.max(initial=low)) + 1) for low, i in zip(lowest, nearest))]
    )
    return block[np.ix_(*(indices - low for indices, low in zip(nearest, lowest)))]
