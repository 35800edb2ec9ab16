"""A scan's papers: what was read of it, and what was assumed, as it stands beside its prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import obliquity

from utils.imaging.formats import form_of
from utils.imaging.intensities import LOWEST_HU
from utils.imaging.volume import Volume
from utils.prediction.scans import Scan


@dataclass(frozen=True)
class ScanPapers:
    """What was read of a scan, and what was assumed.

    Attributes
    ----------
    form : str
        Of its files, such as "NIfTI".
    shape : tuple of int
        Voxels along each axis as stored.
    spacing_mm : tuple of float
        Their distances.
    orientation : str
        Where each axis leads, such as "LPS"; of an oblique one the nearest direction.
    oblique_degrees : float
        Largest angle between an axis and that direction.
    hu_doubt : str
        Why its numbers are probably no Hounsfield units; "" if they look like them.
    padding_share : float
        Share of voxels at or under -1024 HU: padding, and air that was clipped there.
    left_out : tuple of str
        What belongs to the scan and was not read, such as localisers within a series.
    assumed : tuple of str
        What the files do not say.
    """

    form: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    oblique_degrees: float
    hu_doubt: str
    padding_share: float
    left_out: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def scan_papers(scan: Scan, ct: Volume, *, hu_doubt: str, assumed: Sequence[str] = ()) -> ScanPapers:
    """Write the papers of a scan.

    Parameters
    ----------
    scan : Scan
        The scan.
    ct : Volume
        What was read of it.
    hu_doubt : str
        From `utils.imaging.formats.hu_doubt`.
    assumed : sequence of str
        What the files do not say.

    Returns
    -------
    ScanPapers
        Lengths and angles are rounded as a reader needs them.
    """
    return ScanPapers(
        form=form_of(scan.path, scan.series),
        shape=ct.grid.shape,
        spacing_mm=tuple(round(float(mm), 4) for mm in ct.spacing_mm),
        orientation="".join(nibabel.aff2axcodes(ct.affine)),
        oblique_degrees=round(float(np.degrees(obliquity(ct.affine)).max()), 2),
        hu_doubt=hu_doubt,
        padding_share=round(np.count_nonzero(ct.data <= LOWEST_HU) / ct.data.size, 4),
        left_out=scan.left_out,
        assumed=tuple(assumed),
    )


def papers_of(plain: Mapping[str, Any]) -> ScanPapers:
    """Read papers from plain JSON; what this version does not know is left out.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it holds something else.
    """
    return ScanPapers(
        **{name: str(plain[name]) for name in ("form", "orientation", "hu_doubt")},
        **{name: float(plain[name]) for name in ("oblique_degrees", "padding_share")},
        shape=tuple(map(int, plain["shape"])),
        spacing_mm=tuple(map(float, plain["spacing_mm"])),
        left_out=tuple(map(str, plain.get("left_out", ()))),
        assumed=tuple(map(str, plain.get("assumed", ()))),
    )


def paper_lines(papers: ScanPapers) -> dict[str, str]:
    """Give the papers as a reader wants them: a text for each heading; empty ones are left out."""
    lengths = " × ".join(f"{mm:.3g}" for mm in papers.spacing_mm)
    oblique = f", {papers.oblique_degrees:.1f}° oblique" if papers.oblique_degrees >= 0.05 else ""
    lines = {
        "Form": papers.form,
        "Voxels": f"{' × '.join(map(str, papers.shape))} of {lengths} mm",
        "Axes": papers.orientation + oblique,
        "Numbers": papers.hu_doubt or "look like Hounsfield units",
        "Padding": f"{100 * papers.padding_share:.0f} % of the voxels at or under −1024 HU",
        "Assumed": "; ".join(papers.assumed),
        "Left out": "; ".join(papers.left_out),
    }
    return {heading: text for heading, text in lines.items() if text}
