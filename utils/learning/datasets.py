"""Prepared files as `tf.data` pipelines of small parameter vectors and raw blocks.

An example is a function of (seed, epoch, position): it is the same alone, in a pipeline, on however many
devices, and after a resume, so no iterator is ever checkpointed. The host draws and reads; the voxels are
worked on inside the compiled step (see `heatmap_batch_builder` and `segmentation_batch_builder`). Training
and validation share every function here: validation passes no generator.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from ML_3D_Unet.utils.feeding import EpochPart
from utils.imaging.centroids import read_centroids
from utils.imaging.nifti import open_memory_map
from utils.imaging.volume import Grid, Volume
from utils.learning import augment
from utils.learning.heatmap import draw_heatmap_example
from utils.learning.labelling import labelling_example, on_labelling_grid
from utils.learning.mixture import group_counts, item_groups, mixed_epoch
from utils.learning.vertebrae import Target, block_length, block_of_patch, draw_kind, draw_patch
from utils.preparation.prepared import PHANTOM, SIDECAR, is_mask_alone, origin_of
from utils.settings import HeatmapTrainingSettings, LabellingTrainingSettings, SegmentationTrainingSettings
from utils.synthetic.label_images import draw_look, label_image, label_scan
from utils.synthetic.label_maps import LabelMap, label_map_of, with_narrow_discs
from utils.verse.labels import rank_of_code, ranks_of_mask

#: A function (epoch, part) -> tf.data.Dataset; without a part it gives all of the epoch to one device.
EpochDataset = Callable[..., tf.data.Dataset]
Example = dict[str, np.ndarray]
#: Numbers that keep the random streams of an example, an epoch's order and a run's balance apart.
_EXAMPLE, _ORDER, _BALANCE = 0, 1, 2
#: A vertebra's voxels are thinned out to about this many, enough to tell whether a third lies in a patch.
MOST_TARGET_VOXELS = 2000
#: Entries of a segmentation example that are blocks of a volume, and batches that are read at the same time
#: and ahead. Reading waits for the disk, so more threads than cores may pay; each batch takes some 20 MB.
BLOCKS = ("ct_hu", "codes")
READERS, BATCHES_AHEAD = 4, 4


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
        image, first_mm, size_mm = label_scan(self.label_map, draw_look(generator))
        spacing_mm = size_mm / image.shape
        centroids = ((self.centroids_voxels + 0.5) * self.spacing_mm - first_mm) / spacing_mm - 0.5
        return HeatmapCase(self.key, image, centroids, spacing_mm, is_phantom=self.is_phantom)


@dataclass(frozen=True)
class Vertebra:
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
    vertebrae : tuple of Vertebra
        All vertebrae, in the order of the file.
    phantoms : frozenset of str
        The cases that are generated.
    masks_alone : frozenset of str
        The cases that were prepared without a CT.
    """

    folder: Path
    vertebrae: tuple[Vertebra, ...]
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
    def columns(self) -> dict[str, list[Vertebra]]:
        """The vertebrae of every case, from the top."""
        columns: dict[str, list[Vertebra]] = {}
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

    def target(self, vertebra: Vertebra) -> Target:
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


def read_heatmap_cases(folder: Path) -> tuple[list[HeatmapCase], list[str]]:
    """Read a whole split of the heatmap stage into memory (about 1 MB a case).

    Parameters
    ----------
    folder : Path
        Folder of the split; one that is not there has no case.

    Returns
    -------
    cases : list of HeatmapCase
        The cases, sorted by key.
    bad : list of str
        A line for each case that cannot be read or has another shape than the first; it names the file.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ends = ("_ct.nii", "_msk.nii")
    keys = sorted({name.removesuffix(end) for name in names for end in ends if name.endswith(end)})
    cases, bad = [], []
    for key in keys:
        try:
            case = _read_heatmap_case(folder, key, names)
            expected = cases[0].shape if cases else case.shape
            if case.shape != expected:
                first = next(end for end in ends if key + end in names)
                raise ValueError(f"{folder / (key + first)}: expected shape {expected}, found {case.shape}.")
            cases.append(case)
        except ValueError as error:
            bad.append(str(error))
    return cases, bad


def _read_heatmap_case(folder: Path, key: str, names: set[str]) -> HeatmapCase:
    ct, mask = (
        open_memory_map(folder / f"{key}_{kind}.nii") if f"{key}_{kind}.nii" in names else None
        for kind in ("ct", "msk")
    )
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


def _vertebra_of_row(row: dict[str, str]) -> Vertebra:
    centre, begin, end = (
        np.array([float(row[f"{name}_{axis}"]) for axis in "pri"]) for name in ("centre", "begin", "end")
    )
    whole = begin.astype(int), end.astype(int)
    return Vertebra(row["case"], int(row["label"]), int(row["rank"]), centre, *whole)


def balanced_positions(ranks: list[int], seed: int) -> np.ndarray:
    """Repeat vertebrae so that every level is met equally often.

    A vertebra of level v is repeated max_count / count_v times; the fraction is decided by chance, once a
    run (Serrador et al. 2024).

    Parameters
    ----------
    ranks : list of int
        Level of every vertebra.
    seed : int
        Seed of the run.

    Returns
    -------
    np.ndarray of int
        Indices into `ranks`, each as often as its vertebra is shown in an epoch.
    """
    _, inverse, counts = np.unique(ranks, return_inverse=True, return_counts=True)
    repeats = counts.max() / counts[inverse]
    chance = np.random.default_rng([seed, _BALANCE]).random(len(ranks))
    whole = np.floor(repeats).astype(int) + (chance < repeats % 1.0)
    return np.repeat(np.arange(len(ranks)), whole)


def epoch_order(items: np.ndarray, count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Give the items of an epoch: shuffled passes over all items, continued from epoch to epoch.

    Parameters
    ----------
    items : np.ndarray of int, (n,)
        What one pass goes through.
    count : int
        Items in an epoch; 0 takes one pass.
    seed, epoch : int
        What the shuffling depends on.

    Returns
    -------
    np.ndarray of int
        The items, in order.
    """
    count = count or len(items)
    places = np.arange(epoch * count, (epoch + 1) * count)
    passes = {
        p: np.random.default_rng([seed, _ORDER, p]).permutation(items) for p in set(places // len(items))
    }
    return np.array([passes[place // len(items)][place % len(items)] for place in places])


def _generator_of(seed: int, epoch: int, position: int) -> np.random.Generator:
    return np.random.default_rng([seed, _EXAMPLE, epoch, position])


def heatmap_dataset(
    cases: list[HeatmapCase], settings: HeatmapTrainingSettings, *, training: bool
) -> EpochDataset:
    """Give the function from an epoch to its dataset of batches for `heatmap_batch_builder`.

    Parameters
    ----------
    cases : list of HeatmapCase
        The prepared scans of a split.
    settings : HeatmapTrainingSettings
        Augmentation, batch size and seed.
    training : bool
        False leaves volumes and order as they are.

    Returns
    -------
    callable (epoch, part=None) to tf.data.Dataset
        Batches, all of one length (see `batch_positions`): "ct_hu" int16 (batch, P, R, I), the vectors of
        `draw_heatmap_example`, and "weight" float32 (batch,).
    """
    shape = cases[0].shape

    def example(item: int, generator: np.random.Generator | None) -> Example:
        from_labels, place = divmod(item, len(cases))
        case = cases[place].drawn(generator) if from_labels else cases[place]
        drawn = draw_heatmap_example(
            generator,
            case.centroids_voxels,
            shape=shape,
            settings=settings,
            spacing_mm=case.spacing_mm,
            has_own_field=bool(from_labels),
        )
        return {"ct_hu": case.ct_hu, **drawn}

    groups = heatmap_groups(cases, settings if training else None)
    return _epoch_dataset(groups, (example, collate), settings, training=training)


def heatmap_groups(cases: list[HeatmapCase], settings: HeatmapTrainingSettings | None) -> list[np.ndarray]:
    """Give the items that an epoch is made of: the balanced groups of a mixture, else one group of all CTs.

    Parameters
    ----------
    cases : list of HeatmapCase
        The prepared cases of a split.
    settings : HeatmapTrainingSettings or None
        None for validation, where nothing is mixed.

    Returns
    -------
    list of np.ndarray of int
        See `utils.learning.mixture.item_groups`.
    """
    has_ct = [case.ct_hu is not None for case in cases]
    if settings is None or settings.mixture is None:
        return [np.flatnonzero(has_ct)]
    groups = item_groups(
        [case.is_phantom for case in cases], has_ct, [case.codes is not None for case in cases]
    )
    return [_balanced_over_levels(items, cases, settings.seed) for items in groups]


def _balanced_over_levels(items: np.ndarray, cases: list[HeatmapCase], seed: int) -> np.ndarray:
    """Repeat items so that every level is met equally often: few scans show the middle of the chest."""
    shown = [(item, rank) for item in items for rank in cases[item % len(cases)].ranks]
    positions = balanced_positions([rank for _, rank in shown], seed) if shown else []
    return np.array([shown[position][0] for position in positions], int)


def segmentation_dataset(
    data: SegmentationData, settings: SegmentationTrainingSettings, *, spacing_mm: float, training: bool
) -> EpochDataset:
    """Give the function from an epoch to its dataset of batches for `segmentation_batch_builder`.

    Parameters
    ----------
    data : SegmentationData
        A prepared split.
    settings : SegmentationTrainingSettings
        Patches, augmentation, batch size and seed.
    spacing_mm : float
        Spacing of the working grid.
    training : bool
        False shows every vertebra once, in order, centred, with its memory.

    Returns
    -------
    callable (epoch, part=None) to tf.data.Dataset
        Batches, all of one length (see `batch_positions`), of the inputs of `vertebra_example`, and "weight"
        float32 (batch,).
    """

    def example(item: int, generator: np.random.Generator | None) -> Example:
        return segmentation_example(data, item, generator, spacing_mm=spacing_mm, settings=settings)

    def collate_blocks(examples: list[Example]) -> Example:
        most = max(example["ct_hu"].size for example in examples)
        return collate(examples, block_length(most, settings.patch_voxels))

    groups = segmentation_groups(data, settings if training else None)
    return _epoch_dataset(groups, (example, collate_blocks), settings, training=training)


def segmentation_groups(
    data: SegmentationData, settings: SegmentationTrainingSettings | None
) -> list[np.ndarray]:
    """Give the items of training, balanced over levels within each group, or those of validation (None).

    Parameters and result are those of `heatmap_groups`.
    """
    has_ct = [vertebra.case not in data.masks_alone for vertebra in data.vertebrae]
    if settings is None:
        return [np.flatnonzero(has_ct)]
    groups = [np.flatnonzero(has_ct)]
    if settings.mixture is not None:
        is_phantom = [vertebra.case in data.phantoms for vertebra in data.vertebrae]
        groups = item_groups(is_phantom, has_ct, [True] * len(has_ct))
    ranks = np.array([vertebra.rank for vertebra in data.vertebrae] * 2)
    return [
        items[balanced_positions(ranks[items].tolist(), settings.seed)] if items.size else items
        for items in groups
    ]


def labelling_dataset(
    data: SegmentationData, settings: LabellingTrainingSettings, *, training: bool
) -> EpochDataset:
    """Give the function from an epoch to its dataset of batches for `labelling_batch_builder`.

    Parameters
    ----------
    data : SegmentationData
        A prepared split.
    settings : LabellingTrainingSettings
        Patches, augmentation, batch size and seed.
    training : bool
        False shows every vertebra once, in order, as it is.

    Returns
    -------
    callable (epoch, part=None) to tf.data.Dataset
        Batches, all of one length, of what `labelling_example` gives, and "weight" float32 (batch,).
    """

    def example(item: int, generator: np.random.Generator | None) -> Example:
        vertebra = data.vertebrae[item]
        ct, ranks = data.labelling_scan(vertebra.case)
        return labelling_example((ct.data, ranks.data), vertebra.rank, generator, settings=settings)

    groups = labelling_groups(data, settings if training else None)
    return _epoch_dataset(groups, (example, collate), settings, training=training)


def labelling_groups(data: SegmentationData, settings: LabellingTrainingSettings | None) -> list[np.ndarray]:
    """Give the vertebrae that have a CT as the one group of an epoch: a mask shows nothing to tell levels by.

    For a training every level is there equally often (`balanced_positions`); without settings each is once.
    """
    items = np.array([i for i, v in enumerate(data.vertebrae) if v.case not in data.masks_alone], int)
    if settings is None:
        return [items]
    return [items[balanced_positions([data.vertebrae[i].rank for i in items], settings.seed)]]


def segmentation_example(
    data: SegmentationData,
    item: int,
    generator: np.random.Generator | None,
    *,
    spacing_mm: float,
    settings: SegmentationTrainingSettings,
) -> Example:
    """Draw one patch, and find the block of the scan that it needs: the host's whole share of an example.

    Parameters
    ----------
    data : SegmentationData
        A prepared split.
    item : int
        Index of the vertebra in `data.vertebrae`; with the count of all added, its CT is drawn from the mask.
    generator : np.random.Generator or None
        Source of randomness; None for validation.
    spacing_mm : float
        Spacing of the working grid.
    settings : SegmentationTrainingSettings
        Patches and augmentation.

    Returns
    -------
    dict of str to np.ndarray
        Inputs of `vertebra_example`, but for "ct_hu" and "codes": they are views (P, R, I) of the files, not
        read yet; `collate` reads them to where they are needed.
    """
    from_labels, place = divmod(item, len(data.vertebrae))
    vertebra = data.vertebrae[place]
    kind = draw_kind(generator, settings)
    shown = _vertebra_shown(data, vertebra, kind, generator)
    drawn = augment.NO_AUGMENTATION
    if generator is not None:
        drawn = augment.draw_augmentation(generator, settings.augmentation)
    target = data.target(shown)
    patch = draw_patch(generator, target, kind, matrix=drawn.matrix, spacing_mm=spacing_mm, settings=settings)
    block = _block(data.scans[shown.case], patch.affine, settings.patch_voxels)
    if from_labels:
        ends = (block["begin"], block["begin"] + block["last"] + 1)
        drawn_from = data.label_map(shown.case, spacing_mm)
        block["ct_hu"] = label_image(drawn_from, draw_look(generator), *ends)
        block["codes"] = drawn_from.codes[tuple(slice(*sides) for sides in zip(*ends))]
    del block["begin"]
    return {
        **block,
        "target_rank": np.int32(patch.target_rank),
        "remembers": np.bool_(patch.remembers),
        "gain": np.float32(drawn.gain),
        "offset": np.float32(drawn.offset),
        "noise_sigma": np.float32(drawn.noise_sigma),
        "blur_sigma": np.float32(drawn.blur_sigma_mm / spacing_mm),
        "noise_seed": drawn.noise_seed,
    }


def _vertebra_shown(
    data: SegmentationData, vertebra: Vertebra, kind: str, generator: np.random.Generator | None
) -> Vertebra:
    """A natural top shows the scan's first vertebra; nothing left is met below its last one, mostly."""
    column = data.columns[vertebra.case]
    if kind == "natural top":
        return column[0]
    if kind == "nothing left" and generator.random() < 0.75:
        return column[-1]
    return vertebra


def _target_of(data: SegmentationData, vertebra: Vertebra) -> Target:
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


def _block(scan: tuple[np.ndarray | None, np.ndarray], affine: np.ndarray, patch_voxels: int) -> Example:
    ct, mask = scan
    begin, end = block_of_patch(affine, patch_voxels, mask.shape)
    box = tuple(slice(b, e) for b, e in zip(begin, end))
    shifted = np.column_stack([affine[:, :3], affine[:, 3] - begin])
    return {
        "begin": begin,
        "ct_hu": None if ct is None else ct[box],
        "codes": mask[box],
        "last": (end - begin - 1).astype(np.int32),
        "affine": shifted.astype(np.float32),
    }


def batch_positions(count: int, batch_size: int, part: EpochPart) -> tuple[np.ndarray, np.ndarray]:
    """Share the positions of an epoch out: every step takes one batch for each replica, in order.

    The last step is filled up with positions from the epoch's beginning, of weight 0, so that all batches
    have one length: nothing is compiled for a smaller one, and no replica goes without.

    Parameters
    ----------
    count : int
        Examples in the epoch.
    batch_size : int
        Examples in a batch.
    part : EpochPart
        Which steps and replicas are asked for.

    Returns
    -------
    positions : np.ndarray of int, (batches, batch_size)
        Step by step, one batch for each replica of the pipeline.
    weights : np.ndarray of float32, (batches, batch_size)
        1, or 0 for a position that only fills up. Over all replicas every position has weight 1 once.

    Raises
    ------
    ValueError
        If the replicas cannot be shared out evenly over the pipelines, or there is no such pipeline.
    """
    if part.replicas % part.pipelines or not 0 <= part.pipeline < part.pipelines:
        raise ValueError(
            f"Expected a pipeline below the number of pipelines, which divides the replicas, received {part}."
        )
    steps = -(-count // (batch_size * part.replicas))
    local = part.replicas // part.pipelines
    places = np.arange(steps * part.replicas * batch_size).reshape(steps, part.pipelines, local, batch_size)
    chosen = places[part.first_step :, part.pipeline].reshape(-1, batch_size)
    return chosen % count, (chosen < count).astype(np.float32)


def examples_of_groups(
    groups: list[np.ndarray],
    settings: HeatmapTrainingSettings | SegmentationTrainingSettings | LabellingTrainingSettings,
) -> int:
    """Give the number of training examples in an epoch: the one asked for, or one pass over all items."""
    return settings.examples_per_epoch or sum(len(items) for items in groups)


def _items_of_epoch(
    groups: list[np.ndarray],
    settings: HeatmapTrainingSettings | SegmentationTrainingSettings | LabellingTrainingSettings,
    epoch: int,
) -> np.ndarray:
    if len(groups) == 1:  # nothing is mixed
        return epoch_order(groups[0], settings.examples_per_epoch, seed=settings.seed, epoch=epoch)
    count = examples_of_groups(groups, settings)
    counts = group_counts([len(items) for items in groups], settings.mixture, count)
    return mixed_epoch(groups, counts, epoch_order, seed=settings.seed, epoch=epoch)


def _epoch_dataset(
    groups: list[np.ndarray],
    how: tuple[Callable[[int, np.random.Generator | None], Example], Callable[[list[Example]], Example]],
    settings: HeatmapTrainingSettings | SegmentationTrainingSettings | LabellingTrainingSettings,
    *,
    training: bool,
) -> EpochDataset:
    """The one pipeline: order, share out, draw, read, prefetch. `how` makes examples and collates them."""
    example, collated = how
    batch_size = settings.batch_size * settings.accumulate
    first = int(_items_of_epoch(groups, settings, 0)[0] if training else groups[0][0])
    one = example(first, _generator_of(settings.seed, 0, 0) if training else None)
    signature = _signature(collated([one]), batch_size)

    def read(epoch: int, positions: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
        generators = [_generator_of(settings.seed, epoch, p) if training else None for p in positions]
        batch = collated([example(int(item), generator) for item, generator in zip(chosen, generators)])
        return [batch[name] for name in signature]

    # TensorFlow keeps a function that it calls back for ever: hence one for all epochs, given their number.
    def as_batch(epoch, positions, chosen, weight):
        dtypes = [spec.dtype for spec in signature.values()]
        found = tf.numpy_function(read, [epoch, positions, chosen], dtypes)
        shaped = [tf.ensure_shape(tensor, spec.shape) for tensor, spec in zip(found, signature.values())]
        return {**dict(zip(signature, shaped)), "weight": weight}

    def dataset(epoch: int, part: EpochPart | None = None) -> tf.data.Dataset:
        order = _items_of_epoch(groups, settings, epoch) if training else groups[0]
        positions, weights = batch_positions(len(order), batch_size, part or EpochPart())
        plan = (np.full(len(positions), epoch), positions, order[positions], weights)
        made = tf.data.Dataset.from_tensor_slices(plan)
        # Beside a GPU only: a CPU is busy with the network, and trains with exact operations, for which
        # TensorFlow would make one reader of several, with an error in the log of every epoch.
        readers = {"num_parallel_calls": READERS, "deterministic": True}
        parallel = readers if tf.config.list_logical_devices("GPU") else {}
        return made.map(as_batch, **parallel).prefetch(BATCHES_AHEAD)

    return dataset


def collate(examples: list[Example], length: int = 0) -> Example:
    """Stack examples into a batch.

    Parameters
    ----------
    examples : list of dict of str to np.ndarray
        The same names and, blocks apart, the same shapes.
    length : int
        If it is not 0, volumes (P, R, I) are laid flat in file order and padded with 0 to this length.

    Returns
    -------
    dict of str to np.ndarray
        The arrays, with one more axis at the front.
    """
    return {
        name: _laid_flat([example[name] for example in examples], length)
        if length and name in BLOCKS
        else np.stack([example[name] for example in examples])
        for name in examples[0]
    }


def _laid_flat(blocks: list[np.ndarray], length: int) -> np.ndarray:
    """Read blocks straight into the rows of a batch, in the order in which they lie in their files."""
    batch = np.zeros((len(blocks), length), blocks[0].dtype)
    for row, block in zip(batch, blocks):
        np.copyto(row[: block.size].reshape(block.shape[::-1]), block.T)
    return batch


def _signature(batch: Example, batch_size: int) -> dict[str, tf.TensorSpec]:
    """Give the shapes of batches from one of them; only the length of blocks laid flat varies."""
    flat = {name for name in BLOCKS if name in batch and batch[name].ndim == 2}
    return {
        name: tf.TensorSpec([batch_size, *([None] if name in flat else value.shape[1:])], value.dtype)
        for name, value in batch.items()
    }


def examples_in_epoch(data: SegmentationData, settings: SegmentationTrainingSettings) -> int:
    """Give the number of training examples in an epoch: the one asked for, or one balanced pass."""
    return examples_of_groups(segmentation_groups(data, settings), settings)
