"""What every generator of whole scans gives: a CT at one spacing, and all that is known of its spine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class DrawnScan:
    """A scan that was drawn.

    Attributes
    ----------
    ct : np.ndarray of int16, (P, R, I)
        Hounsfield units.
    spacing_mm : float
        Edge of its voxels.
    points : mapping of int to np.ndarray of float, (3,)
        VerSe code of every vertebra whose body centre lies in the scan, and that centre in voxels, from the
        top down. The point of C1 lies in the dens, within its ring. Empty for a scan without a spine.
    sacrum : np.ndarray of float, (3,), or None
        Centre of the first sacral body in voxels; None where it is not in the scan.
    ribs_mm : mapping of int to tuple of float, 2
        Lengths of the right and the left rib of these vertebrae, as drawn, whether or not they are in view.
    kind : str
        What was drawn, such as "phantom", "trunk", "thigh".
    codes : np.ndarray of uint8, shape of `ct`, or None
        VerSe codes of the vertebrae, where the scan is drawn for the segmentation.
    """

    ct: np.ndarray
    spacing_mm: float
    points: Mapping[int, np.ndarray] = field(default_factory=dict)
    sacrum: np.ndarray | None = None
    ribs_mm: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    kind: str = "phantom"
    codes: np.ndarray | None = None

    @property
    def affine(self) -> np.ndarray:
        """Where its voxels lie, RAS+ mm, (4, 4): axes along posterior, right, inferior from the origin."""
        affine = np.eye(4)
        affine[[1, 0, 2], [0, 1, 2]] = np.array([-1.0, 1.0, -1.0]) * self.spacing_mm
        affine[[0, 1, 2], [0, 1, 2]] *= [0.0, 0.0, 1.0]
        return affine
