"""Examples for the segmentation network: a patch of CT, the memory, the target vertebra, its weights.

The host decides what a patch shows (`draw_patch`: kind, position, affine) and reads one block of the
scan; `vertebra_example` does the rest on the device. Mask and memory are read off the one resampled
label volume by cranio-caudal rank. Validation is the same without randomness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import tensorflow as tf

from utils.imaging.centroids import MIDDLE_MM
from utils.learning import augment
from utils.learning.compilation import compiled
from utils.preparation.working_case import FINE
from utils.settings import SegmentationTrainingSettings
from utils.verse.labels import CODES, MAX_RANK, T13_CODE

#: Constants of the patch rule, in mm (Serrador et al. 2024): margin above the target, and the reach of the
#: random shift that follows it.
TOP_MARGIN_MM, TOP_REACH_MM = 2.0, 63.0
LEAST_SHARE_INSIDE = 1.0 / 3.0
#: Of a vertebra that a field of view cuts so much is seen at least, as a share of its voxels, or it is no
#: target; and so much is lost at most where a plane in front of, behind or beside the column cuts it.
LEAST_SHOWN, MOST_LOST_BESIDE = 0.35, 0.25
#: Edge in voxels of the blocks in which a memory is wrong alike, the width in voxels of the blur of its
#: shares, the reach of that blur, and the least share from which a voxel counts as memory.
MEMORY_BLOCK, MEMORY_BLUR, MEMORY_REACH, LEAST_MEMORY_LIMIT = 8, 0.8, 2, 0.1
#: Shares of the patches in whose memory all is missing that lies behind the bodies, and in whose memory parts
#: of the target are.
MISSING_SHARE, BITTEN_SHARE = 0.25, 0.15
#: A field of view ends up to so far beside the target, in mm.
BESIDE_MM = 12.0
MOST_DRAWS = 20
#: Rank of a target that no vertebra has: all vertebrae are then in the memory.
NOTHING_LEFT = MAX_RANK + 1
#: Weight of the boundary: 1 + 8 exp(-d^2 / 36), d in mm; beyond 18 mm it is under .001 and is left out.
BOUNDARY_PEAK, BOUNDARY_VARIANCE_MM2, BOUNDARY_REACH_MM = 8.0, 36.0, 18.0
#: Lengths of the blocks read from disk, in voxels of the block of a patch that is neither turned nor zoomed:
#: few, as each is compiled once. The published zooms and turns need 2.3 on average and 5.6 at most.
BLOCK_SIZES = (1, 2, 3, 4, 6)
#: Voxels that a block's edge exceeds a patch's by, for the interpolation and for rounding.
BLOCK_MARGIN = 4
#: Cranio-caudal rank of every VerSe code, 0 for the background and for codes that nobody uses.
RANK_OF_CODE = np.zeros(max(CODES) + 1, np.int32)
RANK_OF_CODE[list(CODES)] = np.arange(1, MAX_RANK + 1)
#: The same with T13 as background.
RANK_WITHOUT_T13 = np.where(np.arange(len(RANK_OF_CODE)) == T13_CODE, np.int32(0), RANK_OF_CODE)


@dataclass(frozen=True)
class Target:
    """The vertebra that a patch is about, in voxels of the working grid.

    Attributes
    ----------
    rank : int
        Cranio-caudal rank.
    voxels : np.ndarray of float, (n, 3)
        Indices of (a sample of) its voxels.
    centre : np.ndarray of float, (3,)
        Its centre of mass.
    is_top : bool
        Whether no vertebra of the scan lies above it.
    """

    rank: int
    voxels: np.ndarray
    centre: np.ndarray
    is_top: bool


@dataclass(frozen=True)
class Patch:
    """What a patch shows and where it lies.

    Attributes
    ----------
    affine : np.ndarray of float, (3, 4)
        Takes a voxel index of the patch to one of the scan.
    target_rank : int
        Rank that is to be segmented; `NOTHING_LEFT` for none.
    remembers : bool
        Whether the memory holds the vertebrae above the target (else it is empty).
    """

    affine: np.ndarray
    target_rank: int
    remembers: bool


def draw_kind(generator: np.random.Generator | None, settings: SegmentationTrainingSettings) -> str:
    """Draw the kind of a patch: "memory", "emptied" or "nothing left".

    With `patch_kinds` "paper" only the first two exist; without a generator it is "memory".
    """
    if generator is None:
        return "memory"
    if settings.patch_kinds == "paper":
        return "emptied" if generator.random() < settings.empty_memory_probability else "memory"
    shares = np.array(settings.patch_shares) / np.sum(settings.patch_shares)
    return str(generator.choice(["memory", "emptied", "nothing left"], p=shares))


def draw_patch(
    generator: np.random.Generator | None,
    target: Target,
    kind: str,
    *,
    matrix: np.ndarray,
    spacing_mm: float,
    settings: SegmentationTrainingSettings,
) -> Patch:
    """Place a patch around a target: as published, or so that its place tells which vertebra is meant.

    Parameters
    ----------
    generator : np.random.Generator or None
        Source of randomness; None centres the patch on the target, as far as it is known to be its place
        (`MIDDLE_MM`).
    target : Target
        The vertebra; for kind "nothing left" the place around which the patch lies.
    kind : str
        One of the kinds of `draw_kind`.
    matrix : np.ndarray of float, (3, 3)
        Linear map from the augmented image to the scan, in voxels.
    spacing_mm : float
        Spacing of the working grid.
    settings : SegmentationTrainingSettings
        Patch size and shift.

    Returns
    -------
    Patch
        Drawn anew, up to `MOST_DRAWS` times, while under a third of the target lies inside; centred on the
        target if that never happens.
    """
    moved = np.linalg.solve(matrix, (target.voxels - target.centre).T).T
    edge = settings.patch_voxels
    middle = MIDDLE_MM if settings.patch_kinds == "centred" else np.zeros(3)
    centred = np.divide(middle, spacing_mm) - edge / 2.0
    begin = centred
    for _ in range(MOST_DRAWS if generator is not None else 0):
        begin = _draw_begin(generator, moved, kind, is_top=target.is_top, unit=(spacing_mm, settings))
        inside = np.all((moved >= begin - 0.5) & (moved < begin + edge - 0.5), axis=1)
        if kind == "nothing left" or inside.mean() >= LEAST_SHARE_INSIDE:
            break
        begin = centred
    affine = np.column_stack([matrix, target.centre + matrix @ begin])
    rank = NOTHING_LEFT if kind == "nothing left" else target.rank
    return Patch(affine, rank, remembers=kind != "emptied")


def _draw_begin(
    generator: np.random.Generator,
    moved: np.ndarray,
    kind: str,
    *,
    is_top: bool,
    unit: tuple[float, SegmentationTrainingSettings],
) -> np.ndarray:
    """Draw a patch's first voxel, relative to the target's centre in the augmented image."""
    spacing_mm, settings = unit
    edge, shift_mm = settings.patch_voxels, settings.shift_mm
    if kind == "nothing left":
        low_mm = np.array([-shift_mm, -shift_mm, 0.0])
        return generator.uniform(low_mm, [shift_mm, shift_mm, 2 * shift_mm]) / spacing_mm - edge / 2.0
    if settings.patch_kinds == "centred":
        off_mm = settings.centre_error_mm * generator.normal(size=3) * generator.choice([1, 1, 2])
        return (off_mm + MIDDLE_MM) / spacing_mm - edge / 2.0
    begin = generator.uniform(-shift_mm, shift_mm, 3) / spacing_mm - edge / 2.0
    if kind == "emptied" or is_top:
        top = moved[:, 2].min()
        begin[:2] = generator.uniform(-edge / 2.0, edge / 2.0 - 1.0, 2) - edge / 2.0
        begin[2] = top + (generator.uniform(0.0, TOP_REACH_MM) - TOP_MARGIN_MM) / spacing_mm
    return begin


def has_true_memory(settings: SegmentationTrainingSettings) -> bool:
    """Whether the memory that a training shows is never wrong."""
    return settings.patch_kinds == "paper" or not settings.memory_error


def draw_memory_error(
    generator: np.random.Generator | None, settings: SegmentationTrainingSettings
) -> dict[str, np.ndarray]:
    """Draw what makes the memory of a patch like one that was found.

    It is too large or too small from place to place. What lies behind the bodies is missing in some patches,
    and in some the memory holds what is the target's: a network that trusts its memory then gives every
    vertebra the arch of the one above, once it has missed one.

    Parameters
    ----------
    generator : np.random.Generator or None
        Source of randomness; None leaves the memory as it is.
    settings : SegmentationTrainingSettings
        Patch size and `memory_error`.

    Returns
    -------
    dict of str to np.ndarray
        Of float32: "memory_blur" the width in voxels of the blur of its shares; for blocks of `MEMORY_BLOCK`
        voxels (m, m, m) "memory_limits", the share from which a voxel counts, and "memory_bites", how much
        the target's voxels count as those of the memory.
    """
    blocks = (-(-settings.patch_voxels // MEMORY_BLOCK),) * 3
    limits, bites = np.full(blocks, 0.5), np.zeros(blocks)
    is_true = generator is None or has_true_memory(settings)
    if not is_true:
        # Never under what the blur reaches: nothing far from a vertebra is added.
        spread = generator.uniform(0, settings.memory_error)
        limits = np.maximum(generator.normal(0.5, spread, blocks), LEAST_MEMORY_LIMIT)
        behind = np.arange(blocks[0]) >= blocks[0] // 2 + generator.integers(0, 2, 2)[:, None]
        if generator.random() < MISSING_SHARE:
            limits[behind[0]] = np.inf
        if generator.random() < BITTEN_SHARE:
            bites[behind[1]] = 1.0
        elif generator.random() < BITTEN_SHARE:
            bites = (generator.random(blocks) < BITTEN_SHARE).astype(float)
    parts = {"memory_limits": limits, "memory_bites": bites, "memory_blur": 0 if is_true else MEMORY_BLUR}
    return {name: np.asarray(value, np.float32) for name, value in parts.items()}


def samples_along(settings: SegmentationTrainingSettings) -> int:
    """Give how many samples of the mask lie along each axis of a voxel that a training reads."""
    return FINE if settings.targets == "occupancies" else 1


def draw_field(
    generator: np.random.Generator | None,
    target: Target,
    kind: str,
    shape: tuple[int, int, int],
    *,
    spacing_mm: float,
    settings: SegmentationTrainingSettings,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Draw a field of view that ends in or beside the target, or leave the scan as it is.

    A vertebra is a target if the scan shows at least `LEAST_SHOWN` of it, as its body's centre is in view
    then, mostly. One whose scan begins in it or right above it has nothing above it to remember.

    Parameters
    ----------
    generator : np.random.Generator or None
        Source of randomness; None leaves the scan as it is.
    target : Target
        The vertebra.
    kind : str
        One of the kinds of `draw_kind`.
    shape : tuple of int, 3
        Voxels of the scan.
    spacing_mm : float
        Spacing of the working grid.
    settings : SegmentationTrainingSettings
        `cut_share`.

    Returns
    -------
    begin, end : np.ndarray of int, (3,)
        First voxel and end (exclusive) of what is shown of the scan.
    is_first : bool
        Whether the field of view begins at the target.
    """
    begin, end = np.zeros(3, int), np.array(shape)
    if generator is None or kind == "nothing left" or generator.random() >= settings.cut_share:
        return begin, end, False
    beside = BESIDE_MM / spacing_mm
    is_first = False
    # Along I mostly: a scan has two ends there, and its planes show whole bodies elsewhere.
    axis = int(generator.choice(3, p=(0.15, 0.25, 0.6)))
    at_begin = bool(generator.random() < 0.5)
    along = np.sort(target.voxels[:, axis])
    lost = generator.uniform(0, 1 - LEAST_SHOWN if axis == 2 else MOST_LOST_BESIDE)
    if at_begin:
        low = along[0] - beside
        plane = generator.uniform(low, along[0]) if generator.random() < 0.3 else _quantile(along, lost)
        begin[axis] = np.clip(plane, 0, shape[axis] - 1)
        is_first = axis == 2
    else:
        high = along[-1] + beside
        plane = generator.uniform(along[-1], high) if generator.random() < 0.3 else _quantile(along, 1 - lost)
        end[axis] = np.clip(plane + 1, 1, shape[axis])
    return begin, end, is_first


def _quantile(along: np.ndarray, share: float) -> float:
    return float(along[min(int(share * len(along)), len(along) - 1)])


def block_length(voxels: int, patch_voxels: int) -> int:
    """Give the length that a block of so many voxels is padded to: one of few, see `BLOCK_SIZES`."""
    unit = (patch_voxels + BLOCK_MARGIN) ** 3
    return next((size * unit for size in BLOCK_SIZES if size * unit >= voxels), voxels)


def boundary_weight(vertebra: tf.Tensor, spacing_mm: float) -> tf.Tensor:
    """Weigh voxels by their distance to the vertebra's boundary: 1 + 8 exp(-d^2 / 36).

    d is the distance in mm to the nearest voxel of the other class. The squared distances to the vertebra
    and to its complement are 0 on their own class, so their sum is the one that counts everywhere.

    Parameters
    ----------
    vertebra : tf.Tensor of bool, (P, R, I)
        The target. Empty or full, it has weight 1 everywhere.
    spacing_mm : float
        Isotropic spacing.

    Returns
    -------
    tf.Tensor of float32, (P, R, I)
        Weights from 1 to 9; off by less than .001 beyond 18 mm.
    """
    radius = int(BOUNDARY_REACH_MM / spacing_mm)
    to_vertebra, to_rest = tf.unstack(_squared_voxels(tf.stack([vertebra, ~vertebra]), radius))
    squared_mm = tf.cast(to_vertebra + to_rest, tf.float32) * spacing_mm**2
    return 1.0 + BOUNDARY_PEAK * tf.exp(-squared_mm / BOUNDARY_VARIANCE_MM2)


def voxel_weight(share: tf.Tensor, spacing_mm: float, *, weighs_boundary: bool) -> tf.Tensor:
    """Give the weight of every voxel in the loss: `boundary_weight` of what is mostly vertebra, or 1."""
    return boundary_weight(share >= 0.5, spacing_mm) if weighs_boundary else tf.ones_like(share)


def _squared_voxels(seeds: tf.Tensor, radius: int) -> tf.Tensor:
    """Give the squared distance in voxels to the nearest seed of each set, exact up to `radius`.

    Three passes along the axes, each the minimum over shifts of the squared distance so far plus the squared
    shift (Felzenszwalb and Huttenlocher 2012, with a bounded reach). Small integers, as a processor
    handles 16 of them at a time; all padding at the beginning, as otherwise XLA computes a pass anew for
    every neighbour that reads it; the last axis first, as it is cheaper to read than those before it.
    """
    far = 3 * (radius + 1) ** 2  # its weight rounds to 1
    dtype = tf.int16 if far + radius**2 <= tf.int16.max else tf.int32
    padded = tf.pad(seeds, [[0, 0], *[[radius, radius]] * 3])
    squared = tf.where(padded, tf.constant(0, dtype), tf.constant(far, dtype))
    for axis in (3, 1, 2):
        squared, *pairs = augment.shifted_pairs(squared, axis, radius)
        for shift, (before, after) in enumerate(pairs, start=1):
            squared = tf.minimum(squared, tf.minimum(before, after) + tf.constant(shift**2, dtype))
    return squared


def target_and_memory(
    codes: tf.Tensor, target_rank: tf.Tensor, remembers: tf.Tensor, ranks: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Tell target and memory apart in a volume of VerSe codes; both are bool, of the shape of the codes.

    Codes are compared in `ranks`, the rank of each of them, so that a voxel costs one look-up.
    """
    is_memory = (ranks > 0) & (ranks < target_rank) & remembers
    roles = tf.where(tf.equal(ranks, target_rank), 2, tf.cast(is_memory, tf.int32))
    role = tf.gather(roles, tf.cast(codes, tf.int32))
    return tf.equal(role, 2), tf.equal(role, 1)


def shares_of_samples(samples: tf.Tensor, fine: int) -> tf.Tensor:
    """Give the share of a voxel's samples that are True, float32, from `fine` samples along each axis."""
    edge = samples.shape[0] // fine
    parts = tf.reshape(tf.cast(samples, tf.float32), [edge, fine, edge, fine, edge, fine])
    return tf.reduce_mean(parts, axis=[1, 3, 5])


# What follows is compiled in parts, so that what one hands to the next is stored. In one program XLA
# computes a voxel of the image anew for every neighbour that the blur reads, which takes five times as long.


@compiled
def ct_patch(drawn: dict[str, tf.Tensor], patch_voxels: int, outside: str) -> tf.Tensor:
    """Resample the CT of a patch, and give it its gain and offset; where its block ends the scan does."""
    coordinates = augment.sampling_coordinates(drawn["affine"], (patch_voxels,) * 3)
    return augment.moved_ct(drawn["ct_hu"], coordinates, drawn["last"], drawn, outside)


@compiled
def code_patch(drawn: dict[str, tf.Tensor], patch_voxels: int, fine: int) -> tf.Tensor:
    """Resample the VerSe codes of a patch, `fine` samples along each axis of its voxels."""
    turn, start = drawn["affine"][:, :3], drawn["affine"][:, 3]
    # From samples of the patch to those of the block: voxel k has the samples from fine * k on.
    middle = 0.5 * (fine - 1)
    start = fine * start + middle - middle * tf.reduce_sum(turn, axis=1)
    affine = tf.concat([turn, start[:, None]], axis=1)
    coordinates = augment.sampling_coordinates(affine, (patch_voxels * fine,) * 3)
    return augment.sample_nearest(drawn["codes"], coordinates, fine * (drawn["last"] + 1) - 1)


@compiled
def network_input(
    drawn: dict[str, tf.Tensor],
    image: tf.Tensor,
    codes: tf.Tensor,
    radius: int,
    fine: int,
    is_memory_true: bool,
) -> tf.Tensor:
    """Blur and clip the image of a patch, and put the memory beside it."""
    image = tf.clip_by_value(augment.blur(image, drawn["blur_sigma"], radius), -1.0, 1.0)
    vertebra, memory = target_and_memory(codes, drawn["target_rank"], drawn["remembers"], drawn["ranks"])
    shares = shares_of_samples(memory, fine)
    if is_memory_true:
        return tf.stack([image, tf.cast(shares >= 0.5, tf.float32)], axis=-1)
    limits, bites = drawn["memory_limits"], drawn["memory_bites"]
    for axis, size in enumerate(image.shape):
        limits, bites = (
            tf.gather(each, np.arange(size) // MEMORY_BLOCK, axis=axis) for each in (limits, bites)
        )
    shares += bites * shares_of_samples(vertebra, fine)
    shares = augment.blur(shares, drawn["memory_blur"], MEMORY_REACH)
    return tf.stack([image, tf.cast(shares >= limits, tf.float32)], axis=-1)


@compiled
def weighted_target(
    drawn: dict[str, tf.Tensor], codes: tf.Tensor, spacing_mm: float, fine: int, weighs_boundary: bool
) -> tf.Tensor:
    """Give the share of every voxel of a patch that is the target, with its weight beside it."""
    vertebra, _ = target_and_memory(codes, drawn["target_rank"], drawn["remembers"], drawn["ranks"])
    share = shares_of_samples(vertebra, fine)
    return tf.stack([share, voxel_weight(share, spacing_mm, weighs_boundary=weighs_boundary)], axis=-1)


def vertebra_example(
    drawn: dict[str, tf.Tensor],
    *,
    patch_voxels: int,
    spacing_mm: float,
    radius: int,
    outside: Literal["air", "edge"] = "edge",
    fine: int = 1,
    weighs_boundary: bool = True,
    is_memory_true: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Build one example on the device.

    Parameters
    ----------
    drawn : dict of str to tf.Tensor
        "ct_hu" int16 and "codes" uint8, both (n,): the block of the scan and of its mask, in file order and
        padded (see `augment.sample_linear`), the mask with `fine` samples along each axis of a voxel; "last"
        (3,) the largest index an axis; "affine" (3, 4) from patch to block voxels; "ranks" the cranio-caudal
        rank of every VerSe code; "target_rank", "remembers", "memory_blur", "memory_limits", "memory_bites",
        "gain", "offset", "noise_sigma", "blur_sigma" (voxels), "noise_seed".
    patch_voxels : int
        Edge of the patch.
    spacing_mm : float
        Spacing of the working grid.
    radius : int
        Half width of the blur's kernel, in voxels.
    outside : str
        What the CT is beyond the scan.
    fine : int
        Samples of the mask along each axis of a voxel.
    weighs_boundary : bool
        Whether voxels near the boundary weigh more.
    is_memory_true : bool
        Whether no memory is wrong, so that what was drawn of that need not be looked at.

    Returns
    -------
    tuple of tf.Tensor of float32
        Input (n, n, n, 2): CT in [-1, 1] and memory; target (n, n, n, 2): share of the voxel that is
        vertebra, and its weight.
    """
    image, codes = ct_patch(drawn, patch_voxels, outside), code_patch(drawn, patch_voxels, fine)
    # Blocks come in several lengths; what does not read them is compiled once.
    numbers = {name: value for name, value in drawn.items() if name not in ("ct_hu", "codes")}
    image = augment.add_noise(image, drawn["noise_sigma"], drawn["noise_seed"])
    shown = network_input(numbers, image, codes, radius, fine, is_memory_true)
    return shown, weighted_target(numbers, codes, spacing_mm, fine, weighs_boundary)


def segmentation_batch_builder(settings: SegmentationTrainingSettings, spacing_mm: float) -> Callable:
    """Give the `augment.batch_builder` of a batch of `utils.learning.datasets.segmentation_dataset`."""
    one = partial(
        vertebra_example,
        patch_voxels=settings.patch_voxels,
        spacing_mm=spacing_mm,
        radius=augment.blur_radius(settings.augmentation, spacing_mm),
        outside=settings.outside,
        fine=samples_along(settings),
        weighs_boundary=settings.targets == "bits" or settings.boundary_weight,
        is_memory_true=has_true_memory(settings),
    )
    return augment.batch_builder(one)
