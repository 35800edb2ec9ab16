"""Volumes and grids: voxels with the affine that places them in the world.

A `Volume` never changes; every function gives a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie.

    Attributes
    ----------
    shape : tuple of int, (3,)
        Number of voxels along each axis.
    affine : np.ndarray of float64, (4, 4)
        Voxel index to world, in mm, RAS+.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        """Distance of neighbouring voxels along each axis, in mm, (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional array and the affine that places it in the world.

    Attributes
    ----------
    data : np.ndarray, (i, j, k)
        Intensities or labels.
    affine : np.ndarray of float64, (4, 4)
        Voxel index to world, in mm, RAS+.
    """

    data: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        return self.data.shape

    @property
    def spacing_mm(self) -> np.ndarray:
        """Distance of neighbouring voxels along each axis, in mm, (3,)."""
        return self.grid.spacing_mm

    @property
    def grid(self) -> Grid:
        """The volume's grid, without its data."""
        return Grid(tuple(int(n) for n in self.data.shape), self.affine)

    @cached_property
    def label_boxes(self) -> dict[int, tuple[slice, slice, slice]]:
        """The smallest box around each label of a label volume, by label; the search is made once."""
        return label_boxes(self.data)


def label_boxes(labels: np.ndarray) -> dict[int, tuple[slice, slice, slice]]:
    """Give the smallest box around each label of a label volume, by label."""
    # find_objects walks along the last axis: files come with the first one contiguous, where it is slow.
    turned = labels.flags.f_contiguous and not labels.flags.c_contiguous
    boxes = ndimage.find_objects(labels.T if turned else labels)
    return {
        label: box[::-1] if turned else box for label, box in enumerate(boxes, start=1) if box is not None
    }


def touches_border(box: tuple[slice, ...], shape: Sequence[int]) -> bool:
    """Whether a box reaches the first or last voxel of any axis of a volume: the end of the field of view."""
    return any(side.start == 0 or side.stop == voxels for side, voxels in zip(box, shape))
