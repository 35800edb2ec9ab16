"""What pre-processing left, read back: heatmap cases, and the vertebrae of the segmentation stage."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.imaging.centroids import read_centroids
from utils.imaging.nifti import open_memory_map
from utils.imaging.volume import Grid, Volume
from utils.learning.labelling import on_labelling_grid
from utils.learning.vertebrae import Target
from utils.preparation.prepared import PHANTOM, SIDECAR, is_mask_alone, origin_of
from utils.synthetic.label_images import draw_appearance, label_scan
from utils.synthetic.label_maps import LabelMap, label_map_of, with_narrow_discs
from utils.verse.labels import rank_of_code, ranks_of_mask

#: A vertebra's voxels are thinned out to about this many, enough to tell whether a third lies in a patch.
MOST_TARGET_VOXELS = 2000
#: Ends of the names of a case's CT and mask.
_VOLUMES = ("_ct.nii", "_msk.nii")


@dataclass(frozen=True)
class HeatmapCase:
    """One prepared case of the heatmap stage: CT in HU and centroids in its voxels, on the small grid.

    A case prepared with `label_maps` has its mask too, and it may lack the CT.
    """

    key: str
    ct_hu: np.ndarray | None
    centroids_voxels: np.ndarray
    spacing_mm: np.ndarray | None = None
    codes: np.ndarray | None = None
    is_phantom: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the small grid."""
        return (self.codes if self.ct_hu is None else self.ct_hu).shape

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Levels that the mask shows, from the top; one that stands for none without a mask or a vertebra."""
        codes = [] if self.codes is None else np.unique(self.codes)
        return tuple(sorted(rank_of_code(int(code)) for code in codes if code)) or (0,)

    @cached_property
    def label_map(self) -> LabelMap:
        """What images of the case are drawn from, found when it is first needed."""
        return label_map_of(self.codes, self.spacing_mm)

    def drawn(self, generator: np.random.Generator) -> HeatmapCase:
        """Give a scan drawn from the mask, in a field of view of its own."""
        image, first_mm, size_mm = label_scan(self.label_map, draw_appearance(generator))
        spacing_mm = size_mm / image.shape
        centroids = ((self.centroids_voxels + 0.5) * self.spacing_mm - first_mm) / spacing_mm - 0.5
        return HeatmapCase(self.key, image, centroids, spacing_mm, is_phantom=self.is_phantom)


@dataclass(frozen=True)
class PreparedVertebra:
    """One row of `vertebrae.csv`; indices are voxels of the working grid, `end` is exclusive."""

    case: str
    label: int
    rank: int
    centre: np.ndarray
    begin: np.ndarray
    end: np.ndarray


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
    _targets: dict[tuple[str, int], Target] = field(default_factory=dict, repr=False, compare=False)
    _at_2_mm: dict[str, tuple[Volume, Volume]] = field(default_factory=dict, repr=False, compare=False)
    _label_maps: dict[str, LabelMap] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def scans(self) -> dict[str, tuple[np.ndarray | None, np.ndarray]]:
        """CT (int16 HU, or None) and mask (uint8 codes) of every case, as read-only memory maps."""
        return {case: self._open(case) for case in self.columns}

    def label_map(self, case: str, spacing_mm: float) -> LabelMap:
        """Give what images of a case are drawn from, found once.

        The discs of phantoms are thicker than those of most patients: those of every third stay as they are,
        those of the others become thinner by 2 and by 4 mm.
        """
        if case not in self._label_maps:
            codes = self.scans[case][1]
            if case in self.phantoms:
                narrower_mm = 2.0 * (sorted(self.phantoms).index(case) % 3)
                codes = with_narrow_discs(codes, round(narrower_mm / spacing_mm))
            self._label_maps[case] = label_map_of(codes, spacing_mm)
        return self._label_maps[case]

    def _open(self, case: str) -> tuple[np.ndarray | None, np.ndarray]:
        mask = open_memory_map(self.folder / f"{case}_msk.nii").data
        if case in self.masks_alone:
            return None, mask
        ct = open_memory_map(self.folder / f"{case}_ct.nii").data
        if ct.shape != mask.shape:
            name = self.folder / f"{case}_msk.nii"
            raise ValueError(f"{name}: expected the shape of the CT, {ct.shape}, found {mask.shape}.")
        return ct, mask

    @cached_property
    def columns(self) -> dict[str, list[PreparedVertebra]]:
        """The vertebrae of every case, from the top."""
        columns: dict[str, list[PreparedVertebra]] = {}
        for vertebra in sorted(self.vertebrae, key=lambda v: (v.case, v.rank)):
            columns.setdefault(vertebra.case, []).append(vertebra)
        return columns

    def working_scan(self, case: str) -> tuple[Volume, Volume]:
        """Give CT (HU) and ranks of a case on the working grid."""
        ct, mask = (open_memory_map(self.folder / f"{case}_{kind}.nii") for kind in ("ct", "msk"))
        return ct, Volume(ranks_of_mask(np.asarray(mask.data)), mask.affine)

    def labelling_scan(self, case: str) -> tuple[Volume, Volume]:
        """Give CT (HU) and ranks of a case on the labelling grid; resampled once where its own is finer."""
        if case not in self._at_2_mm:
            ct, mask = (open_memory_map(self.folder / f"{case}_{kind}.nii") for kind in ("ct", "msk"))
            ct, codes = on_labelling_grid(ct, mask)
            ranks = Volume(ranks_of_mask(np.asarray(codes.data)), codes.affine)
            self._at_2_mm[case] = Volume(np.asarray(np.rint(ct.data), np.int16), ct.affine), ranks
        return self._at_2_mm[case]

    def target(self, vertebra: PreparedVertebra) -> Target:
        """Look a vertebra's voxels up in its mask, once; `ValueError` if it has none there."""
        key = (vertebra.case, vertebra.label)
        if key not in self._targets:
            self._targets[key] = _target_of(self, vertebra)
        return self._targets[key]

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
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted({name.removesuffix(end) for name in names for end in _VOLUMES if name.endswith(end)})


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
            expected = cases[0].shape if cases else case.shape
            if case.shape != expected:
                first = next(end for end in _VOLUMES if (folder / f"{key}{end}").is_file())
                raise ValueError(f"{folder / (key + first)}: expected shape {expected}, found {case.shape}.")
            cases.append(case)
        except ValueError as error:
            bad.append(str(error))
    return cases, bad


def _read_heatmap_case(folder: Path, key: str) -> HeatmapCase:
    paths = [folder / f"{key}{end}" for end in _VOLUMES]
    ct, mask = (open_memory_map(path) if path.exists() else None for path in paths)
    grid: Grid = (ct or mask).grid
    centroids = read_centroids(folder / f"{key}_ctd.json", grid)
    return HeatmapCase(
        key,
        None if ct is None else np.array(ct.data, np.int16),
        centroids.voxels(grid.affine),
        grid.spacing_mm,
        None if mask is None else np.array(mask.data),
        is_phantom=origin_of(folder / f"{key}{SIDECAR}") == PHANTOM,
    )


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
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
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
    box = tuple(slice(begin, end) for begin, end in zip(vertebra.begin, vertebra.end))
    voxels = np.argwhere(data.scans[vertebra.case][1][box] == vertebra.label) + vertebra.begin
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
