"""The order of an epoch: which examples it is made of, in which order, and which process makes which.

All of it is a function of seed and epoch, so that a resumed training sees what an unbroken one sees.
"""

from __future__ import annotations

import numpy as np

from ML_3D_Unet.utils.feeding import EpochPart
from utils.learning.mixture import group_counts, item_groups, mixed_epoch
from utils.learning.prepared_data import HeatmapCase, SegmentationData
from utils.learning.spine_cases import ORIGINS, SpineData
from utils.settings import (
    HeatmapTrainingSettings,
    LabellingTrainingSettings,
    SegmentationTrainingSettings,
    TrainingSettings,
)

#: A prepared split, and what a training on one is asked for.
SplitData = list[HeatmapCase] | SegmentationData | SpineData
#: Numbers that keep the random streams of an example, an epoch's order and a run's balance apart.
_EXAMPLE, _ORDER, _BALANCE = 0, 1, 2


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
    if not len(ranks):
        return np.zeros(0, int)
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


def generator_of(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Give the source of randomness of one example of a run."""
    return np.random.default_rng([seed, _EXAMPLE, epoch, position])


def segmentation_groups(
    data: SegmentationData, settings: SegmentationTrainingSettings | None
) -> list[np.ndarray]:
    """Give the items that an epoch is made of, balanced over levels in training.

    Parameters
    ----------
    data : SegmentationData
        A prepared split.
    settings : SegmentationTrainingSettings or None
        None for validation, where every vertebra with a CT counts once.

    Returns
    -------
    list of np.ndarray of int
        The groups of a mixture (see `utils.learning.mixture.item_groups`), else one group.
    """
    has_ct = [vertebra.case not in data.masks_alone for vertebra in data.vertebrae]
    groups = [np.flatnonzero(has_ct)]
    if settings is None:
        return groups
    if settings.mixture is not None:
        is_phantom = [vertebra.case in data.phantoms for vertebra in data.vertebrae]
        groups = item_groups(is_phantom, has_ct, [True] * len(has_ct))
    ranks = np.array([vertebra.rank for vertebra in data.vertebrae] * 2)
    return [items[balanced_positions(ranks[items].tolist(), settings.seed)] for items in groups]


def spine_groups(
    data: SpineData, settings: HeatmapTrainingSettings | LabellingTrainingSettings | None
) -> list[np.ndarray]:
    """Give the items of a split: one group of all scans, or, for a training with shares, one an origin."""
    if settings is None or settings.origins is None:
        return [np.arange(len(data))]
    origins = np.array([case.origin for case in data.cases])
    return [np.flatnonzero(origins == origin) for origin in ORIGINS]


def expect_cts(groups: list[np.ndarray], data: SplitData, *, is_mixable: bool) -> None:
    """Raise a `ValueError` that names the folder if its cases, all of them masks alone, give no example."""
    if isinstance(data, SegmentationData) and not any(items.size for items in groups):
        drawn = ", or a --mixture that draws images from masks" if is_mixable else ""
        found = f"{len(data.columns)} masks alone"
        raise ValueError(f"{data.folder}: expected cases with a CT{drawn}, found {found}.")


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


def groups_of(data: SplitData, settings: TrainingSettings | None) -> list[np.ndarray]:
    """Give the items that an epoch over a split is made of, in groups; None stands for validation."""
    if isinstance(data, SegmentationData):
        return segmentation_groups(data, settings)
    return spine_groups(data, settings) if isinstance(data, SpineData) else [np.arange(len(data))]


def shares_of(settings: TrainingSettings) -> tuple[str, tuple[float, ...]]:
    """Give the option that shares out the groups of an epoch that is mixed, and the shares."""
    if isinstance(settings, HeatmapTrainingSettings | LabellingTrainingSettings):
        return "--origins", settings.origins
    return "--mixture", settings.mixture


def examples_in_epoch(data: SplitData, settings: TrainingSettings) -> int:
    """Give the number of training examples in an epoch: the one asked for, or one balanced pass."""
    return examples_of_groups(groups_of(data, settings), settings)


def examples_of_groups(groups: list[np.ndarray], settings: TrainingSettings) -> int:
    """Give the number of training examples in an epoch: the one asked for, or one pass over all items."""
    return settings.examples_per_epoch or sum(len(items) for items in groups)


def items_of_epoch(groups: list[np.ndarray], settings: TrainingSettings, epoch: int) -> np.ndarray:
    """Give the items of an epoch in order: of one group its shuffled passes, of several their mixture."""
    if len(groups) == 1:  # nothing is mixed
        return epoch_order(groups[0], settings.examples_per_epoch, seed=settings.seed, epoch=epoch)
    count = examples_of_groups(groups, settings)
    option, shares = shares_of(settings)
    counts = group_counts([len(items) for items in groups], shares, count, option=option)
    return mixed_epoch(groups, counts, epoch_order, seed=settings.seed, epoch=epoch)
