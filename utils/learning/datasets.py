"""Prepared files as `tf.data` pipelines of small parameter vectors and raw blocks.

An example is a function of (seed, epoch, position): it is the same alone, in a pipeline, and after a
resume, so no iterator is ever checkpointed. The host reads and draws; the voxels are worked on inside
the compiled step (see `heatmap_batch_builder` and `segmentation_batch_builder`). Training and
validation share every function here: validation passes no generator.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from utils.imaging.centroids import read_centroids
from utils.imaging.volume import open_memory_map
from utils.learning import augment
from utils.learning.heatmap import draw_heatmap_example
from utils.learning.vertebrae import Target, block_of_patch, draw_kind, draw_patch
from utils.settings import HeatmapTrainingSettings, SegmentationTrainingSettings
from utils.verse.labels import ranks_of_mask

EpochDataset = Callable[[int], tf.data.Dataset]
#: Numbers that keep the random streams of an example, an epoch's order and a run's balance apart.
_EXAMPLE, _ORDER, _BALANCE = 0, 1, 2
#: A vertebra's voxels are thinned out to about this many, enough to tell whether a third lies in a patch.
MOST_TARGET_VOXELS = 2000


@dataclass(frozen=True)
class HeatmapCase:
    """One prepared scan of the heatmap stage: CT in HU and centroids in its voxels, on the small grid."""

    key: str
    ct_hu: np.ndarray
    centroids_voxels: np.ndarray


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
        Folder with `<case>_ct.nii`, `<case>_msk.nii` and `vertebrae.csv`.
    vertebrae : tuple of Vertebra
        All vertebrae, in the order of the file.
    """

    folder: Path
    vertebrae: tuple[Vertebra, ...]

    @cached_property
    def scans(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """CT (int16 HU) and mask (uint8 codes) of every case, as read-only memory maps."""
        return {case: self._open(case) for case in sorted({v.case for v in self.vertebrae})}

    def _open(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        ct, mask = (open_memory_map(self.folder / f"{case}_{kind}.nii").data for kind in ("ct", "msk"))
        if ct.shape != mask.shape:
            name = self.folder / f"{case}_msk.nii"
            raise ValueError(f"{name}: expected the shape of the CT, {ct.shape}, found {mask.shape}.")
        return ct, mask

    def without_bad_cases(self) -> tuple[SegmentationData, list[str]]:
        """Look every vertebra up; give the data without the cases where that fails, and a line for each.

        Later, inside the pipeline, an error would come out as TensorFlow's, with a traceback.
        """
        bad: dict[str, str] = {}
        for case in sorted({vertebra.case for vertebra in self.vertebrae}):
            alone = SegmentationData(self.folder, tuple(v for v in self.vertebrae if v.case == case))
            try:
                for vertebra in alone.vertebrae:
                    _target_of(alone, vertebra)
            except ValueError as error:
                bad[case] = str(error)
        good = tuple(vertebra for vertebra in self.vertebrae if vertebra.case not in bad)
        return SegmentationData(self.folder, good), list(bad.values())

    @cached_property
    def ranks_of_case(self) -> dict[str, list[int]]:
        """Ranks of the vertebrae of every case, from the top."""
        return {case: sorted(v.rank for v in self.vertebrae if v.case == case) for case in self.scans}


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
    paths = sorted(folder.glob("*_ct.nii")) if folder.is_dir() else []
    cases, bad = [], []
    for path in paths:
        try:
            case = _read_heatmap_case(path)
            expected = cases[0].ct_hu.shape if cases else case.ct_hu.shape
            if case.ct_hu.shape != expected:
                raise ValueError(f"{path}: expected shape {expected}, found {case.ct_hu.shape}.")
            cases.append(case)
        except ValueError as error:
            bad.append(str(error))
    return cases, bad


def _read_heatmap_case(path: Path) -> HeatmapCase:
    key = path.name.removesuffix("_ct.nii")
    volume = open_memory_map(path)
    centroids = read_centroids(path.with_name(f"{key}_ctd.json"), volume.grid)
    return HeatmapCase(key, np.array(volume.data, np.int16), centroids.voxels(volume.affine))


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
        return SegmentationData(folder, tuple(_vertebra_of_row(row) for row in rows))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{table}: expected the columns that pre-processing writes, found {error}."
        ) from None


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
    callable of int to tf.data.Dataset
        Batches: "ct_hu" int16 (batch, P, R, I) and the vectors of `draw_heatmap_example`.
    """
    shape = cases[0].ct_hu.shape

    def example(item: int, generator: np.random.Generator | None) -> dict[str, np.ndarray]:
        case = cases[item]
        drawn = draw_heatmap_example(generator, case.centroids_voxels, shape=shape, settings=settings)
        return {"ct_hu": case.ct_hu, **drawn}

    return _epoch_dataset(np.arange(len(cases)), example, settings, training=training)


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
    callable of int to tf.data.Dataset
        Batches of the inputs of `vertebra_example`.
    """

    def example(item: int, generator: np.random.Generator | None) -> dict[str, np.ndarray]:
        return segmentation_example(data, item, generator, spacing_mm=spacing_mm, settings=settings)

    items = np.arange(len(data.vertebrae))
    if training:
        items = balanced_positions([v.rank for v in data.vertebrae], settings.seed)
    return _epoch_dataset(items, example, settings, training=training)


def segmentation_example(
    data: SegmentationData,
    item: int,
    generator: np.random.Generator | None,
    *,
    spacing_mm: float,
    settings: SegmentationTrainingSettings,
) -> dict[str, np.ndarray]:
    """Draw one patch and read the block of the scan that it needs: the host's whole share of an example.

    Parameters
    ----------
    data : SegmentationData
        A prepared split.
    item : int
        Index of the vertebra in `data.vertebrae`.
    generator : np.random.Generator or None
        Source of randomness; None for validation.
    spacing_mm : float
        Spacing of the working grid.
    settings : SegmentationTrainingSettings
        Patches and augmentation.

    Returns
    -------
    dict of str to np.ndarray
        Inputs of `vertebra_example`.
    """
    vertebra = data.vertebrae[item]
    kind = draw_kind(generator, settings)
    shown = _vertebra_shown(data, vertebra, kind, generator)
    drawn = augment.NO_AUGMENTATION
    if generator is not None:
        drawn = augment.draw_augmentation(generator, settings.augmentation)
    target = _target_of(data, shown)
    patch = draw_patch(generator, target, kind, matrix=drawn.matrix, spacing_mm=spacing_mm, settings=settings)
    block = _read_block(data.scans[shown.case], patch.affine, settings.patch_voxels)
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
    column = sorted((v for v in data.vertebrae if v.case == vertebra.case), key=lambda v: v.rank)
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
    is_top = vertebra.rank == data.ranks_of_case[vertebra.case][0]
    return Target(vertebra.rank, thinned, vertebra.centre, is_top)


def _read_block(
    scan: tuple[np.ndarray, np.ndarray], affine: np.ndarray, patch_voxels: int
) -> dict[str, np.ndarray]:
    ct, mask = scan
    begin, end, edge = block_of_patch(affine, patch_voxels, ct.shape)
    box = tuple(slice(b, e) for b, e in zip(begin, end))
    padding = [(0, edge - size) for size in end - begin]
    shifted = np.column_stack([affine[:, :3], affine[:, 3] - begin])
    return {
        "ct_hu": np.pad(np.asarray(ct[box], np.int16), padding),
        "ranks": np.pad(ranks_of_mask(np.asarray(mask[box])), padding),
        "last": (end - begin - 1).astype(np.int32),
        "affine": shifted.astype(np.float32),
    }


def _epoch_dataset(
    items: np.ndarray,
    example: Callable[[int, np.random.Generator | None], dict[str, np.ndarray]],
    settings: HeatmapTrainingSettings | SegmentationTrainingSettings,
    *,
    training: bool,
) -> EpochDataset:
    """The one pipeline: order, draw and read, collate, batch, prefetch."""

    def batches(epoch: int) -> Iterator[dict[str, np.ndarray]]:
        order = items
        if training:
            order = epoch_order(items, settings.examples_per_epoch, seed=settings.seed, epoch=epoch)
        for first in range(0, len(order), settings.batch_size):
            chosen = range(first, min(first + settings.batch_size, len(order)))
            generators = [_generator_of(settings.seed, epoch, p) if training else None for p in chosen]
            yield collate([example(int(order[p]), g) for p, g in zip(chosen, generators)])

    signature = _signature(example(int(items[0]), None))

    def dataset(epoch: int) -> tf.data.Dataset:
        # Epochs are asked for one by one; the number is fixed here, not inside a compiled function.
        made = tf.data.Dataset.from_generator(lambda: batches(epoch), output_signature=signature)
        return made.prefetch(4)

    return dataset


def collate(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack examples into a batch; blocks of different edges are padded to the largest."""
    return {name: _stack([example[name] for example in examples]) for name in examples[0]}


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    largest = np.max([np.shape(array) for array in arrays], axis=0)
    padded = [
        np.pad(array, [(0, int(most) - size) for most, size in zip(largest, np.shape(array))])
        if largest.size
        else array
        for array in arrays
    ]
    return np.stack(padded)


def _signature(example: dict[str, np.ndarray]) -> dict[str, tf.TensorSpec]:
    """Shapes of a batch: its length and the edges of volumes vary, the vectors are fixed."""
    return {
        name: tf.TensorSpec(_batch_shape(np.shape(value)), np.asarray(value).dtype)
        for name, value in example.items()
    }


def _batch_shape(shape: tuple[int, ...]) -> list[int | None]:
    return [None, *([None] * 3 if len(shape) == 3 else shape)]


def examples_in_epoch(data: SegmentationData, settings: SegmentationTrainingSettings) -> int:
    """Give the number of training examples in an epoch: the one asked for, or one balanced pass."""
    balanced = balanced_positions([v.rank for v in data.vertebrae], settings.seed)
    return settings.examples_per_epoch or len(balanced)
