"""A scan prepared for the networks that find and name vertebrae: CT, and what is known of its spine.

Beside `<key>_ct.nii` (int16 HU, uncompressed) stands `<key>_spine.json`, in voxels of that CT.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import read_json, write_text_whole
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.synthetic.drawn_scan import DrawnScan
from utils.verse.labels import rank_of_code, region_of_code

CT, SPINE = "_ct.nii", "_spine.json"
#: From this length on a rib makes its vertebra a thoracic one (the rule of VerSe), mm.
LEAST_RIB_MM = 40.0


@dataclass(frozen=True, eq=False)
class KnownSpine:
    """What is known of the spine in a scan.

    Attributes
    ----------
    codes : tuple of int
        VerSe codes of the vertebrae that have a point, from the top down.
    points : np.ndarray of float64, (n, 3)
        Centres of their bodies in voxels.
    has_rib : tuple of bool
        Whether each carries a rib of `LEAST_RIB_MM` or more, on either side.
    sacrum : np.ndarray of float64, (3,), or None
        Centre of the first sacral body in voxels.
    is_complete : bool
        Whether every body centre in the scan has its point, and the sacrum if it is in view. Scans of VerSe
        leave out what the field of view cuts.
    """

    codes: tuple[int, ...]
    points: np.ndarray
    has_rib: tuple[bool, ...]
    sacrum: np.ndarray | None = None
    is_complete: bool = False

    @property
    def ranks(self) -> tuple[int, ...]:
        """Places of the vertebrae in the spine, C1 is 1."""
        return tuple(rank_of_code(code) for code in self.codes)


def spine_of_points(codes: np.ndarray, points: np.ndarray, **known: Any) -> KnownSpine:
    """Give a spine known by its points alone: a vertebra with a rib is thoracic by definition."""
    has_rib = tuple(region_of_code(int(code)) == "thoracic" for code in codes)
    return KnownSpine(tuple(int(code) for code in codes), np.asarray(points, float), has_rib, **known)


def spine_of_drawn(scan: DrawnScan) -> KnownSpine:
    """Give all that is known of the spine of a scan that was drawn."""
    ribs = (max(scan.ribs_mm.get(code, (0.0, 0.0))) >= LEAST_RIB_MM for code in scan.points)
    points = np.array([*scan.points.values()], float).reshape(-1, 3)
    return KnownSpine(tuple(scan.points), points, tuple(ribs), scan.sacrum, is_complete=True)


def write_spine_case(folder: Path, key: str, ct: Volume, spine: KnownSpine) -> None:
    """Write CT and spine of a case; the spine comes last, so a case that has one is whole."""
    write_volume(folder / f"{key}{CT}", Volume(np.rint(ct.data).astype(np.int16), ct.affine))
    content = {
        "points": [[code, *point.round(3)] for code, point in zip(spine.codes, spine.points)],
        "has_rib": list(spine.has_rib),
        "sacrum": None if spine.sacrum is None else list(np.round(spine.sacrum, 3)),
        "is_complete": spine.is_complete,
    }
    write_text_whole(folder / f"{key}{SPINE}", json.dumps(content) + "\n")


def read_spine(path: Path) -> KnownSpine:
    """Read what `write_spine_case` wrote.

    Raises
    ------
    ValueError
        If the file is not there or holds something else; the text names it.
    """
    found = read_json(path, "a prepared spine")
    try:
        points = np.array(found["points"], float).reshape(-1, 4)
        codes = tuple(int(code) for code in points[:, 0])
        sacrum = None if found["sacrum"] is None else np.array(found["sacrum"], float)
        spine = KnownSpine(codes, points[:, 1:], tuple(found["has_rib"]), sacrum, bool(found["is_complete"]))
        if not len(codes) == len(spine.has_rib) == len(set(spine.ranks)):
            raise ValueError(f"{len(codes)} points of {len(set(codes))} vertebrae, {len(spine.has_rib)} ribs")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a prepared spine, found {error}.") from None
    return spine
