"""The three steps of the phantom in a row: a scan as a pure function of (seed, subject, series)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from utils.synthetic.phantom.acquisition import (
    RAS_FROM_PRI,
    Acquisition,
    acquire,
    cut_codes,
    draw_acquisition,
    grid_of,
    whole_codes,
)
from utils.synthetic.phantom.anatomy import Anatomy, draw_anatomy
from utils.synthetic.phantom.tissue import Tissue, render_tissue
from utils.synthetic.phantom.values import draw_tissue

STEP_MM = 0.8
#: Share of scans of the second release that are stored in an orientation of their own.
ODDLY_STORED = 0.4


@dataclass(frozen=True)
class Phantom:
    """A scan of a phantom and all that is known of it.

    Attributes
    ----------
    ct : np.ndarray of int16, shape (x, y, z)
        Hounsfield units.
    mask : np.ndarray of uint8, shape (x, y, z)
        VerSe codes of the vertebrae that lie wholly in the scan.
    affine : np.ndarray, shape (4, 4)
        From voxels to RAS+ mm, of both.
    points : tuple of (int, np.ndarray of shape (3,))
        Code and body centre in RAS+ mm of every labelled vertebra, downwards; C1 has no body, its point
        lies within its ring, in the dens.
    cut : tuple of int
        Codes of the vertebrae that the scan cuts; they are seen, but have no label.
    bone : np.ndarray of uint8, shape (x, y, z)
        Codes of all bones, with those of cut vertebrae, ribs, sacrum and skull.
    """

    ct: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    points: tuple[tuple[int, np.ndarray], ...]
    cut: tuple[int, ...]
    bone: np.ndarray

    @property
    def whole(self) -> tuple[int, ...]:
        """Codes of the labelled vertebrae, downwards."""
        return tuple(code for code, _ in self.points)

    def stored(self, axes: str) -> Phantom:
        """Give the same scan with its voxels in another order, such as "LPS": what a file may look like."""
        change = nib.orientations.ornt_transform(
            nib.io_orientation(self.affine), nib.orientations.axcodes2ornt(axes)
        )
        affine = self.affine @ nib.orientations.inv_ornt_aff(change, self.ct.shape)
        arrays = {
            name: np.ascontiguousarray(nib.orientations.apply_orientation(getattr(self, name), change))
            for name in ("ct", "mask", "bone")
        }
        return dataclasses.replace(self, affine=affine, **arrays)

    def part_of_cut(self, code: int) -> np.ndarray:
        """Where a cut vertebra is seen: bool, shape of the scan."""
        return self.bone == code

    def voxel_points(self) -> dict[int, np.ndarray]:
        """Body centres as voxel indices of this array."""
        inverse = np.linalg.inv(self.affine)
        return {code: apply_affine(inverse, point) for code, point in self.points}


def make_phantom(
    seed: int,
    *,
    subject: int = 0,
    series: int = 0,
    style: str = "2019",
    whole: tuple[int, int] | None = None,
    step_mm: float = STEP_MM,
) -> Phantom:
    """Make one scan of one phantom.

    Parameters
    ----------
    seed : int
        Seed of the data set.
    subject, series : int
        Number of the subject, and of the scan of that subject: two series show one anatomy.
    style : str
        "2019", "2020", "2020-ax" or "2020-sag"; see `draw_acquisition`.
    whole : tuple of int, optional
        Codes of the first and the last vertebra to be seen whole; drawn if left out.
    step_mm : float
        Spacing of the grid on which the body is rendered.

    Returns
    -------
    Phantom
        The scan; the same arguments give the same arrays.
    """
    anatomy, scan, rng = _draw(seed, (subject, series), style=style, whole=whole)
    tissue = render_tissue(anatomy, draw_tissue(rng, anatomy), grid_of(scan, step_mm))
    labelled = whole_codes(anatomy, scan)
    ct, mask, bone = acquire(tissue, scan, labelled)
    points = tuple((code, RAS_FROM_PRI @ anatomy.vertebra(code).origin) for code in labelled)
    phantom = Phantom(ct, mask, scan.affine, points, tuple(cut_codes(anatomy, scan)), bone)
    # A stream of its own: how a scan is stored changes nothing of what it shows.
    axes = draw_storage(np.random.default_rng([seed, subject, series + 1, 1]), style)
    return phantom.stored(axes) if axes else phantom


def draw_storage(rng: np.random.Generator, style: str) -> str | None:
    """Draw the order of a scan's voxels: None as scanned, else any of the 48 orientations, such as "LPS".

    Scans of the style "2019" are stored as they are, of the others `ODDLY_STORED` in any orientation.
    """
    if style == "2019" or rng.random() >= ODDLY_STORED:
        return None
    return "".join(str(rng.choice(list(pair))) for pair in rng.permutation(["LR", "AP", "IS"]))


def make_tissue(
    seed: int,
    *,
    subject: int = 0,
    series: int = 0,
    style: str = "2019",
    whole: tuple[int, int] | None = None,
    step_mm: float = STEP_MM,
) -> Tissue:
    """Make the body that `make_phantom` would scan with the same arguments, before the scan."""
    anatomy, scan, rng = _draw(seed, (subject, series), style=style, whole=whole)
    return render_tissue(anatomy, draw_tissue(rng, anatomy), grid_of(scan, step_mm))


def _draw(
    seed: int, number: tuple[int, int], *, style: str, whole: tuple[int, int] | None
) -> tuple[Anatomy, Acquisition, np.random.Generator]:
    subject, series = number
    # The anatomy belongs to the subject, everything else to the series.
    anatomy = draw_anatomy(np.random.default_rng([seed, subject]), keep=whole or ())
    rng = np.random.default_rng([seed, subject, series + 1])
    return anatomy, draw_acquisition(rng, anatomy, style=style, whole=whole), rng
