"""Prepared files as `tf.data` pipelines of small parameter vectors and raw blocks.

An example is a function of (seed, epoch, position): it is the same alone, in a pipeline, on however many
devices, and after a resume, so no iterator is ever checkpointed. The host draws and reads; the voxels are
worked on inside the compiled step (see `heatmap_batch_builder` and `segmentation_batch_builder`). Training
and validation share every function here: validation passes no generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from ML_3D_Unet.utils.feeding import EpochPart
from utils.imaging.crops import block_of_patch, box_between
from utils.learning import augment, epochs
from utils.learning.heatmap import draw_heatmap_example
from utils.learning.labelling import draw_labelling_example
from utils.learning.localiser import draw_localiser_example
from utils.learning.prepared_data import HeatmapCase, PreparedVertebra, SegmentationData
from utils.learning.spine_cases import SpineCase, SpineData
from utils.learning.vertebrae import (
    RANK_OF_CODE,
    RANK_WITHOUT_T13,
    block_length,
    draw_field,
    draw_kind,
    draw_memory_error,
    draw_patch,
    samples_along,
)
from utils.settings import HeatmapTrainingSettings, LabellingTrainingSettings, SegmentationTrainingSettings
from utils.synthetic.appearance import draw_appearance
from utils.synthetic.label_images import field_of_view, label_image

#: A function (epoch, part) -> tf.data.Dataset; without a part it gives all of the epoch to one device.
EpochDataset = Callable[..., tf.data.Dataset]
Example = dict[str, np.ndarray]
#: Entries of a segmentation example that are blocks of a volume, and batches that are read at the same time
#: and ahead. Reading waits for the disk, so more threads than cores may pay; each batch takes some 20 MB.
BLOCKS = ("ct_hu", "codes")
READERS, BATCHES_AHEAD = 4, 4


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

    def example(item: int, generator: np.random.Generator | None) -> Example:
        case = cases[item]
        shape = case.ct_hu.shape
        drawn = draw_heatmap_example(generator, case.centroids_voxels, shape=shape, settings=settings)
        return {"ct_hu": case.ct_hu, **drawn}

    return _epoch_dataset(cases, (example, collate), settings, training=training)


def localiser_dataset(data: SpineData, settings: HeatmapTrainingSettings, *, training: bool) -> EpochDataset:
    """Give the function from an epoch to its dataset of batches for `localiser_batch_builder`.

    Parameters
    ----------
    data : SpineData
        A prepared split.
    settings : HeatmapTrainingSettings
        Crops, augmentation, batch size and seed.
    training : bool
        False shows every scan once, in order, around the middle of its spine.

    Returns
    -------
    callable (epoch, part=None) to tf.data.Dataset
        Batches, all of one length, of what `draw_localiser_example` gives, "ct_hu", the block laid flat, and
        "weight" float32 (batch,).
    """

    def draw(generator: np.random.Generator | None, case: SpineCase) -> Example:
        return draw_localiser_example(generator, case.spine, case.shape, settings=settings)

    return _spine_dataset(data, draw, settings.crop_voxels, settings=settings, training=training)


def labelling_dataset(
    data: SpineData, settings: LabellingTrainingSettings, *, training: bool
) -> EpochDataset:
    """Give the function from an epoch to its dataset of batches for `labelling_batch_builder`.

    Parameters
    ----------
    data : SpineData
        A prepared split.
    settings : LabellingTrainingSettings
        Patches, augmentation, batch size and seed.
    training : bool
        False shows the middle vertebra of every scan once, in order.

    Returns
    -------
    callable (epoch, part=None) to tf.data.Dataset
        Batches, all of one length, of what `draw_labelling_example` gives, "ct_hu", the block laid flat, and
        "weight" float32 (batch,).
    """

    def draw(generator: np.random.Generator | None, case: SpineCase) -> Example:
        return draw_labelling_example(generator, case.spine, data.ct_hu(case), settings=settings)

    return _spine_dataset(data, draw, (settings.patch_voxels,) * 3, settings=settings, training=training)


def _spine_dataset(
    data: SpineData,
    draw: Callable[[np.random.Generator | None, SpineCase], Example],
    shown: tuple[int, int, int],
    *,
    settings: HeatmapTrainingSettings | LabellingTrainingSettings,
    training: bool,
) -> EpochDataset:
    def example(item: int, generator: np.random.Generator | None) -> Example:
        case = data.cases[item]
        drawn = draw(generator, case)
        return {"ct_hu": data.block(case, drawn.pop("begin"), drawn.pop("end")), **drawn}

    def collate_blocks(examples: list[Example]) -> Example:
        most = max(example["ct_hu"].size for example in examples)
        return collate(examples, block_length(most, round(np.prod(shown) ** (1 / 3))))

    return _epoch_dataset(data, (example, collate_blocks), settings, training=training)


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

    Raises
    ------
    ValueError
        If there are masks alone, and none is to be drawn from.
    """

    def example(item: int, generator: np.random.Generator | None) -> Example:
        return segmentation_example(data, item, generator, spacing_mm=spacing_mm, settings=settings)

    def collate_blocks(examples: list[Example]) -> Example:
        most = max(example["ct_hu"].size for example in examples)
        return collate(examples, block_length(most, settings.patch_voxels), fine=samples_along(settings))

    return _epoch_dataset(data, (example, collate_blocks), settings, training=training)


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
    drawn = augment.draw_augmentation(generator, settings.augmentation)
    target = data.target(shown)
    how = {"spacing_mm": spacing_mm, "settings": settings}
    patch = draw_patch(generator, target, kind, matrix=drawn.matrix, **how)
    ct, mask = data.scan(shown.case)
    *field, is_first = draw_field(generator, target, kind, mask.shape, **how)
    fine = samples_along(settings)
    codes = mask.data if fine == 1 else data.fine_mask(shown.case).data
    if from_labels:
        labels = data.label_map(shown.case, spacing_mm)
        codes = labels.codes if fine == 1 else labels.fine_codes
        appearance = draw_appearance(generator)
        if settings.outside == "air":
            field = _common(field, field_of_view(labels, appearance))
    begin, end = _block_in(field, patch.affine, settings.patch_voxels)
    if from_labels:
        image = label_image(labels, appearance, begin, end)
    else:
        image = None if ct is None else ct.data[box_between(begin, end)]
    shifted = np.column_stack([patch.affine[:, :3], patch.affine[:, 3] - begin])
    return {
        "ct_hu": image,
        "codes": codes[box_between(fine * begin, fine * end)],
        "last": (end - begin - 1).astype(np.int32),
        "affine": shifted.astype(np.float32),
        "ranks": RANK_OF_CODE if settings.t13 else RANK_WITHOUT_T13,
        "target_rank": np.int32(patch.target_rank),
        "remembers": np.bool_(patch.remembers and not is_first),
        **draw_memory_error(generator, settings),
        **drawn.of_intensities(voxel=spacing_mm),
    }


def _vertebra_shown(
    data: SegmentationData, vertebra: PreparedVertebra, kind: str, generator: np.random.Generator | None
) -> PreparedVertebra:
    """Nothing left is met below the last vertebra of a scan, mostly."""
    column = data.columns[vertebra.case]
    if kind == "nothing left" and generator.random() < 0.75:
        return column[-1]
    return vertebra


def _common(field: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Give what two fields of view both show, a voxel at least."""
    begin = np.maximum(field[0], other[0])
    return begin, np.maximum(np.minimum(field[1], other[1]), begin + 1)


def _block_in(
    field: Sequence[np.ndarray], affine: np.ndarray, patch_voxels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give the block that a patch is read from, inside what is shown of the scan."""
    first, last = field
    from_first = np.column_stack([affine[:, :3], affine[:, 3] - first])
    begin, end = block_of_patch(from_first, (patch_voxels,) * 3, last - first)
    return first + begin, first + end


def _epoch_dataset(
    data: epochs.SplitData,
    how: tuple[Callable[[int, np.random.Generator | None], Example], Callable[[list[Example]], Example]],
    settings: epochs.TrainingSettings,
    *,
    training: bool,
) -> EpochDataset:
    """The one pipeline: order, share out, draw, read, prefetch. `how` makes examples and collates them."""
    example, collated = how
    groups = epochs.groups_of(data, settings if training else None)
    epochs.expect_cts(groups, data, is_mixable=training)
    batch_size = settings.batch_size * settings.accumulate
    first = int(epochs.items_of_epoch(groups, settings, 0)[0] if training else groups[0][0])
    one = example(first, epochs.generator_of(settings.seed, 0, 0) if training else None)
    signature = _signature(collated([one]), batch_size)

    def read(epoch: int, positions: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
        generators = [epochs.generator_of(settings.seed, epoch, p) if training else None for p in positions]
        batch = collated([example(int(item), generator) for item, generator in zip(chosen, generators)])
        return [batch[name] for name in signature]

    # TensorFlow keeps a function that it calls back for ever: hence one for all epochs, given their number.
    def as_batch(epoch, positions, chosen, weight):
        dtypes = [spec.dtype for spec in signature.values()]
        found = tf.numpy_function(read, [epoch, positions, chosen], dtypes)
        shaped = [tf.ensure_shape(tensor, spec.shape) for tensor, spec in zip(found, signature.values())]
        return {**dict(zip(signature, shaped)), "weight": weight}

    def dataset(epoch: int, part: EpochPart | None = None) -> tf.data.Dataset:
        order = epochs.items_of_epoch(groups, settings, epoch) if training else groups[0]
        positions, weights = epochs.batch_positions(len(order), batch_size, part or EpochPart())
        plan = (np.full(len(positions), epoch), positions, order[positions], weights)
        made = tf.data.Dataset.from_tensor_slices(plan)
        # Beside a GPU only: a CPU is busy with the network, and trains with exact operations, for which
        # TensorFlow would make one reader of several, with an error in the log of every epoch.
        readers = {"num_parallel_calls": READERS, "deterministic": True}
        parallel = readers if tf.config.list_logical_devices("GPU") else {}
        return made.map(as_batch, **parallel).prefetch(BATCHES_AHEAD)

    return dataset


def collate(examples: list[Example], length: int = 0, *, fine: int = 1) -> Example:
    """Stack examples into a batch.

    Parameters
    ----------
    examples : list of dict of str to np.ndarray
        The same names and, blocks apart, the same shapes.
    length : int
        If it is not 0, volumes (P, R, I) are laid flat in file order and padded with 0 to this length.
    fine : int
        Samples of "codes" along each axis of a voxel.

    Returns
    -------
    dict of str to np.ndarray
        The arrays, with one more axis at the front.
    """
    samples = {"ct_hu": 1, "codes": fine**3}
    return {
        name: _laid_flat([example[name] for example in examples], length * samples[name])
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
