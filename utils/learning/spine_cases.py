"""The prepared scans of the networks that find and name vertebrae, read back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.imaging.crops import box_between
from utils.imaging.nifti import StoredVolume, stored_volume
from utils.imaging.volume import Volume
from utils.learning.recent import RecentlyUsed
from utils.preparation.prepared import DRAWN, PHANTOM, SIDECAR, origin_of
from utils.preparation.spine_case import CT, SPINE, KnownSpine, read_spine

#: Scans that stay mapped, each with one file open.
_MAPPED = 256


@dataclass(frozen=True, eq=False)
class SpineCase:
    """One prepared scan: where its CT lies, and what is known of its spine.

    Attributes
    ----------
    key : str
        Its name.
    stored : StoredVolume
        The CT, int16 HU, axes (P, R, I).
    spine : KnownSpine
        Vertebrae in its voxels.
    origin : str
        Where it comes from: "phantom", "drawn" or "scan".
    """

    key: str
    stored: StoredVolume
    spine: KnownSpine
    origin: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the CT."""
        return self.stored.shape


@dataclass(frozen=True, eq=False)
class SpineData:
    """One split of the prepared scans.

    Attributes
    ----------
    folder : Path
        Where they lie.
    cases : tuple of SpineCase
        Sorted by key.
    """

    folder: Path
    cases: tuple[SpineCase, ...]
    _mapped: RecentlyUsed[Volume] = field(default_factory=lambda: RecentlyUsed(_MAPPED), repr=False)

    def __len__(self) -> int:
        """Number of scans."""
        return len(self.cases)

    def ct_hu(self, case: SpineCase) -> np.ndarray:
        """Give a view (P, R, I) of the CT of a case."""
        return self._mapped.get(case.key, case.stored.mapped).data

    def block(self, case: SpineCase, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Give a view (P, R, I) of the CT of a case, from voxel `begin` up to, not including, `end`."""
        return self.ct_hu(case)[box_between(begin, end)]


def spine_keys(folder: Path) -> list[str]:
    """Give the keys of the scans in a folder, sorted; none if it is not there."""
    return sorted(path.name.removesuffix(SPINE) for path in folder.glob(f"*{SPINE}"))


def read_spine_data(folder: Path, *, exclude: Collection[str] = ()) -> tuple[SpineData, list[str]]:
    """Read a split; CTs are opened when they are first used.

    Parameters
    ----------
    folder : Path
        Folder of the split; one that is not there has no scan.
    exclude : collection of str
        Keys of scans that are left out.

    Returns
    -------
    data : SpineData
        The scans.
    bad : list of str
        A line for each scan that cannot be read; it names the file.
    """
    cases, bad = [], []
    for key in [key for key in spine_keys(folder) if key not in exclude]:
        try:
            spine = read_spine(folder / f"{key}{SPINE}")
            stored = stored_volume(folder / f"{key}{CT}")
            cases.append(SpineCase(key, stored, spine, _origin(folder, key)))
        except ValueError as error:
            bad.append(str(error))
    return SpineData(folder, tuple(cases)), bad


def _origin(folder: Path, key: str) -> str:
    return DRAWN if key.startswith(DRAWN) else origin_of(folder / f"{key}{SIDECAR}")


#: In the order of the setting `origins`.
ORIGINS = (PHANTOM, DRAWN, "scan")
