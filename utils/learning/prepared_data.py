"""What pre-processing left, read back: heatmap cases, and the vertebrae of the segmentation stage."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import numpy as np

from utils.files import read_table
from utils.imaging.centroids import read_centroids
from utils.imaging.crops import box_between
from utils.imaging.nifti import StoredVolume, open_memory_map, stored_volume
from utils.imaging.volume import Volume
from utils.learning.recent import RecentlyUsed
from utils.learning.vertebrae import Target
from utils.preparation.prepared import PHANTOM, SIDECAR, is_mask_alone, origin_of
from utils.preparation.working_case import FINE, FINE_MASK
from utils.synthetic.label_maps import LabelMap, label_map_of, with_narrow_discs

#: Cases of a split that stay mapped. Each holds three files open: training and validation together hold half
#: of the 1,024 that a process may usually open. Mapping anew reads the pages anew: 8 ms an example at 1 mm.
MAPPED_CASES = 84
#: Memory for label maps, and for scans at 2 mm: sixty label maps of a trunk at 1 mm, all of VerSe at 2 mm.
KEPT_BYTES = 2 * 2**30
#: A vertebra's voxels are thinned out to about this many, enough to tell whether a third lies in a patch.
MOST_TARGET_VOXELS = 2000
#: CT, mask and fine mask of a case, None for what it does not have: as files, and mapped.
Stored = tuple[StoredVolume | None, StoredVolume, StoredVolume | None]
Mapped = tuple[Volume | None, Volume, Volume | None]
#: End of the name of a case's CT.
_CT = "_ct.nii"


@dataclass(frozen=True)
class HeatmapCase:
    """One prepared case of the heatmap stage: CT in HU and centroids in its voxels, on the small grid."""

    key: str
    ct_hu: np.ndarray
    centroids_voxels: np.ndarray


@dataclass(frozen=True)
class PreparedVertebra:
    """One row of `vertebrae.csv`; indices are voxels of the working grid, `end` is exclusive."""

    case: str
    label: int
    rank: int
    centre: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def _kept_label_maps() -> RecentlyUsed[LabelMap]:
    return RecentlyUsed(KEPT_BYTES, lambda labels: labels.nbytes)


def _kept_maps() -> RecentlyUsed[Mapped]:
    return RecentlyUsed(MAPPED_CASES)


@dataclass
class Found:
    """What is found once about the cases of a split, or again where there is no room to keep it."""

    stored: dict[str, Stored] = field(default_factory=dict)
    mapped: RecentlyUsed[Mapped] = field(default_factory=_kept_maps)
    targets: dict[tuple[str, int], Target] = field(default_factory=dict)
    label_maps: RecentlyUsed[LabelMap] = field(default_factory=_kept_label_maps)


@dataclass(frozen=True)
class SegmentationData:
    """One split of the prepared segmentation data.

    Attributes
    ----------
    folder : Path
        Folder with `<case>_ct.nii`, `<case>_msk.nii` and `vertebrae.csv`. A case may lack the CT, for images
        drawn from its mask.
    vertebrae : tuple of PreparedVertebra
        All vertebrae, in the order of the file.
    phantoms : frozenset of str
        The cases that are generated.
    masks_alone : frozenset of str
        The cases that were prepared without a CT.
    """

    folder: Path
    vertebrae: tuple[PreparedVertebra, ...]
    phantoms: frozenset[str] = frozenset()
    masks_alone: frozenset[str] = frozenset()
    _found: Found = field(default_factory=Found, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of vertebrae."""
        return len(self.vertebrae)

    def scan(self, case: str) -> tuple[Volume | None, Volume]:
        """Map CT (int16 HU, or None) and mask (uint8 codes) of a case, read-only.

        The headers are checked once. The maps used last stay, as pages that were read are then at hand.

        Raises
        ------
        ValueError
            If a file is not there or broken, or their shapes do not fit; the text names the file.
        """
        return self._maps(case)[:2]

    def _maps(self, case: str) -> Mapped:
        return self._found.mapped.get(case, lambda: self._mapped(case))

    def _mapped(self, case: str) -> Mapped:
        if case not in self._found.stored:
            self._found.stored[case] = self._checked(case)
        ct, mask, fine = self._found.stored[case]
        return None if ct is None else ct.mapped(), mask.mapped(), None if fine is None else fine.mapped()

    def fine_mask(self, case: str) -> Volume:
        """Map the fine mask of a case (uint8 codes at half the spacing), read-only.

        Raises
        ------
        ValueError
            As `scan`, and if the case has none.
        """
        fine = self._maps(case)[2]
        if fine is None:
            path = self.folder / f"{case}{FINE_MASK}"
            raise ValueError(f"{path}: expected a fine mask, found none; run the pre-processing again.")
        return fine

    def label_map(self, case: str, spacing_mm: float) -> LabelMap:
        """Give what images of a case are drawn from; kept while there is room.

        The discs of phantoms are thicker than those of most patients: those of every third stay as they are,
        those of the others become thinner by 2 and by 4 mm.
        """
        return self._found.label_maps.get(case, lambda: self._found_label_map(case, spacing_mm))

    def _found_label_map(self, case: str, spacing_mm: float) -> LabelMap:
        # Copies: a view would hold the file open.
        codes = np.array(self.scan(case)[1].data)
        mapped = self._maps(case)[2]
        fine = None if mapped is None else np.array(mapped.data)
        if case in self.phantoms:
            narrower_mm = 2.0 * (sorted(self.phantoms).index(case) % 3)
            codes = with_narrow_discs(codes, round(narrower_mm / spacing_mm))
            fine = None if fine is None else with_narrow_discs(fine, round(narrower_mm / spacing_mm * FINE))
        return label_map_of(codes, spacing_mm, fine)

    def _checked(self, case: str) -> Stored:
        name, fine_name = self.folder / f"{case}_msk.nii", self.folder / f"{case}{FINE_MASK}"
        mask = stored_volume(name)
        ct = None if case in self.masks_alone else stored_volume(self.folder / f"{case}_ct.nii")
        if ct is not None and ct.shape != mask.shape:
            raise ValueError(f"{name}: expected the shape of the CT, {ct.shape}, found {mask.shape}.")
        if not fine_name.is_file():
            return ct, mask, None
        fine, divided = stored_volume(fine_name), tuple(FINE * n for n in mask.shape)
        if fine.shape != divided:
            raise ValueError(f"{fine_name}: expected the shape {divided}, found {fine.shape}.")
        return ct, mask, fine

    @cached_property
    def columns(self) -> dict[str, list[PreparedVertebra]]:
        """The vertebrae of every case, from the top."""
        ordered = sorted(self.vertebrae, key=lambda v: (v.case, v.rank))
        return {case: list(column) for case, column in itertools.groupby(ordered, attrgetter("case"))}

    @property
    def cases_with_ct(self) -> list[str]:
        """The cases that were prepared with a CT."""
        return [case for case in self.columns if case not in self.masks_alone]

    def without_level(self, label: int) -> SegmentationData:
        """Give the data without the vertebrae of a VerSe label; the masks keep it."""
        return replace(self, vertebrae=tuple(each for each in self.vertebrae if each.label != label))

    def target(self, vertebra: PreparedVertebra) -> Target:
        """Look a vertebra's voxels up in its mask, once; `ValueError` if it has none there."""
        key = (vertebra.case, vertebra.label)
        if key not in self._found.targets:
            self._found.targets[key] = _target_of(self, vertebra)
        return self._found.targets[key]

    def without_bad_cases(self) -> tuple[SegmentationData, list[str]]:
        """Look every vertebra up; give the data without the cases where that fails, and a line for each.

        Later, inside the pipeline, an error would come out as TensorFlow's, with a traceback.
        """
        bad: dict[str, str] = {}
        for case, column in self.columns.items():
            alone = replace(self, vertebrae=tuple(column))
            try:
                for vertebra in column:
                    alone.target(vertebra)
            except ValueError as error:
                bad[case] = str(error)
        good = tuple(vertebra for vertebra in self.vertebrae if vertebra.case not in bad)
        return replace(self, vertebrae=good), list(bad.values())


def heatmap_keys(folder: Path) -> list[str]:
    """Give the keys of the cases in a folder of the heatmap stage, sorted; none if it is not there."""
    return sorted(path.name.removesuffix(_CT) for path in folder.glob(f"*{_CT}"))


def read_heatmap_cases(folder: Path, *, exclude: Collection[str] = ()) -> tuple[list[HeatmapCase], list[str]]:
    """Read a whole split of the heatmap stage into memory (about 1 MB a case).

    Parameters
    ----------
    folder : Path
        Folder of the split; one that is not there has no case.
    exclude : collection of str
        Keys of cases that are not read.

    Returns
    -------
    cases : list of HeatmapCase
        The cases, sorted by key.
    bad : list of str
        A line for each case that cannot be read or has another shape than the first; it names the file.
    """
    cases, bad = [], []
    for key in [key for key in heatmap_keys(folder) if key not in exclude]:
        try:
            case = _read_heatmap_case(folder, key)
            found = case.ct_hu.shape
            expected = cases[0].ct_hu.shape if cases else found
            if found != expected:
                raise ValueError(f"{folder / f'{key}{_CT}'}: expected shape {expected}, found {found}.")
            cases.append(case)
        except ValueError as error:
            bad.append(str(error))
    return cases, bad


def _read_heatmap_case(folder: Path, key: str) -> HeatmapCase:
    ct = open_memory_map(folder / f"{key}{_CT}")
    centroids = read_centroids(folder / f"{key}_ctd.json", ct.grid)
    return HeatmapCase(key, np.array(ct.data, np.int16), centroids.voxels(ct.affine))


def read_segmentation_data(folder: Path) -> SegmentationData:
    """Read the table of a prepared split; the scans are opened when they are first used.

    Raises
    ------
    ValueError
        If `vertebrae.csv` lacks a column; the text names the file.
    """
    table = folder / "vertebrae.csv"
    if not table.is_file():
        return SegmentationData(folder, ())
    rows = read_table(table, ())
    try:
        vertebrae = tuple(_vertebra_of_row(row) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{table}: expected the columns that pre-processing writes, found {error}."
        ) from None
    sidecars = {vertebra.case: folder / f"{vertebra.case}{SIDECAR}" for vertebra in vertebrae}
    phantoms = frozenset(case for case, path in sidecars.items() if origin_of(path) == PHANTOM)
    masks_alone = frozenset(case for case, path in sidecars.items() if is_mask_alone(path))
    return SegmentationData(folder, vertebrae, phantoms, masks_alone)


def _vertebra_of_row(row: dict[str, str]) -> PreparedVertebra:
    centre, begin, end = (
        np.array([float(row[f"{name}_{axis}"]) for axis in "pri"]) for name in ("centre", "begin", "end")
    )
    whole = begin.astype(int), end.astype(int)
    return PreparedVertebra(row["case"], int(row["label"]), int(row["rank"]), centre, *whole)


def _target_of(data: SegmentationData, vertebra: PreparedVertebra) -> Target:
    box = box_between(vertebra.begin, vertebra.end)
    voxels = np.argwhere(data.scan(vertebra.case)[1].data[box] == vertebra.label) + vertebra.begin
    if not len(voxels):
        where = data.folder / f"{vertebra.case}_msk.nii"
        raise ValueError(
            f"{where}: expected label {vertebra.label} as in vertebrae.csv, found no voxel of it."
        )
    thinned = voxels[:: max(1, len(voxels) // MOST_TARGET_VOXELS)]
    # The patch rule measures from the target's top, so that must not be thinned away.
    thinned = np.vstack([voxels[voxels[:, 2].argmin()], thinned])
    is_top = vertebra.rank == data.columns[vertebra.case][0].rank
    return Target(vertebra.rank, thinned, vertebra.centre, is_top)
