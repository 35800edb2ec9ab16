"""The three steps of the phantom in a row: a scan as a pure function of (seed, subject, series)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from utils.imaging.grids import oriented
from utils.imaging.volume import Volume
from utils.synthetic.phantom import acquisition
from utils.synthetic.phantom.anatomy import Anatomy
from utils.synthetic.phantom.ranges import USUAL, Ranges
from utils.synthetic.phantom.subject import draw_subject
from utils.synthetic.phantom.tissue import render_tissue
from utils.synthetic.phantom.values import TissueValues
from utils.synthetic.phantom.wide_values import draw_tissue_within

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
        turned = {
            name: oriented(Volume(getattr(self, name), self.affine), axes) for name in ("ct", "mask", "bone")
        }
        arrays = {name: np.ascontiguousarray(volume.data) for name, volume in turned.items()}
        return dataclasses.replace(self, affine=turned["ct"].affine, **arrays)


def make_phantom(
    seed: int,
    *,
    subject: int = 0,
    series: int = 0,
    style: str = "2019",
    whole: tuple[int, int] | None = None,
    step_mm: float = STEP_MM,
    ranges: Ranges = USUAL,
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
    ranges : Ranges
        Bounds of what is drawn.

    Returns
    -------
    Phantom
        The scan; the same arguments give the same arrays.
    """
    anatomy, scan, values = draw_scan(seed, subject, series, style=style, whole=whole, ranges=ranges)
    tissue = render_tissue(anatomy, values, acquisition.grid_of(scan, step_mm))
    labelled = acquisition.whole_codes(anatomy, scan)
    ct, mask, bone = acquisition.acquire(tissue, scan, labelled)
    points = tuple((code, acquisition.RAS_FROM_PRI @ anatomy.vertebra(code).origin) for code in labelled)
    phantom = Phantom(ct, mask, scan.affine, points, tuple(acquisition.cut_codes(anatomy, scan)), bone)
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


def draw_scan(
    seed: int,
    subject: int,
    series: int,
    *,
    style: str,
    whole: tuple[int, int] | None,
    ranges: Ranges = USUAL,
) -> tuple[Anatomy, acquisition.Acquisition, TissueValues]:
    """Draw all that `make_phantom` renders and scans with the same arguments."""
    # The anatomy belongs to the subject, everything else to the series.
    anatomy = draw_subject(np.random.default_rng([seed, subject]), keep=whole or (), ranges=ranges)
    rng = np.random.default_rng([seed, subject, series + 1])
    scan = acquisition.draw_acquisition(rng, anatomy, style=style, whole=whole)
    return anatomy, scan, draw_tissue_within(rng, anatomy, ranges)
