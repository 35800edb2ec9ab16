"""Reading one patch: the network's answer, kept for as long as a walk lasts, and pieces of it.

Shared by the published walk and the walk along known centres.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.imaging.crops import box_between, crop, overlap
from utils.imaging.intensities import LOWEST
from utils.imaging.shown import shown_box
from utils.imaging.volume import Volume
from utils.walk.records import BOX_MARGIN, FoundVertebra, PredictPatch, WalkResult, WalkSettings, WalkStep

#: Pieces under this share of the largest are specks: dropped before anything is decided.
_SPECK = 0.05
#: HU of what lies around a scan are -1024, normalised -1; a slice is of the scan from this on.
_IN_SCAN = -1 + 0.005
_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True, eq=False)
class Sight:
    """What the network gave for one patch: its box in the working grid, probability and mask in it."""

    begin: np.ndarray
    probability: np.ndarray
    mask: np.ndarray

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where the box lies in the working grid."""
        return box_between(self.begin, self.begin + self.mask.shape)


class PatchReader:
    """Asks the network about patches of one scan, counts the calls, and writes down every step.

    The network is deterministic: a patch that was seen with the same memory is looked up.

    Parameters
    ----------
    ct : Volume
        CT in the working grid, in [-1, 1].
    predict : callable
        The segmentation network.
    settings : WalkSettings
        The patch, the threshold, and the most calls.
    """

    def __init__(self, ct: Volume, predict: PredictPatch, settings: WalkSettings) -> None:
        self.ct, self.predict, self.settings = ct, predict, settings
        self.calls = 0
        self.exhausted = False
        self.trace: list[WalkStep] = []
        self._seen: dict[tuple, Sight | None] = {}

    def read(self, point: np.ndarray, memory: np.ndarray) -> Sight | None:
        """Give the answer for the patch around a point, with a memory (not 0, working grid); None if empty.

        None too once the network was asked `WalkSettings.max_calls` times.
        """
        patch = (self.settings.patch_voxels,) * 3
        origin = np.floor(np.asarray(point) + 0.5).astype(int) - patch[0] // 2
        # Outside the scan the memory is empty.
        in_patch = crop(Volume(memory, self.ct.affine), origin, patch, fill=0).data > 0
        key = (*map(int, origin), hashlib.blake2b(np.packbits(in_patch).tobytes()).digest())
        is_new = key not in self._seen
        if is_new and self.calls >= self.settings.max_calls:
            self.exhausted = True
            return None
        if is_new:
            self.calls += 1
            self._seen[key] = self._predicted(origin, in_patch)
        self._note_answer(self._seen[key], origin, self.calls if is_new else None)
        return self._seen[key]

    def note(self, words: str, vertebra: FoundVertebra | None = None) -> None:
        """Write down what was decided."""
        if vertebra is None:
            self.trace.append(WalkStep("down", words))
            return
        centre, voxels = tuple(map(float, vertebra.centre)), int(np.count_nonzero(vertebra.mask))
        self.trace.append(WalkStep("down", words, centre=centre, voxels=voxels))

    def _predicted(self, origin: np.ndarray, memory: np.ndarray) -> Sight | None:
        begin, probability = read_patch(self.ct, memory, origin, self.predict, self.settings)
        mask = without_specks(probability >= self.settings.probability_threshold)
        if not mask.any():
            return None
        box = box_around(mask)
        return Sight(
            begin + [side.start for side in box], probability[box].astype(np.float16), mask[box].copy()
        )

    def _note_answer(self, sight: Sight | None, origin: np.ndarray, call: int | None) -> None:
        where = tuple(map(int, origin))
        if sight is None or not sight.mask.any():
            self.trace.append(WalkStep("down", "nothing", where, call=call))
            return
        centre = tuple(float(each) for each in np.add(ndimage.center_of_mass(sight.mask), sight.begin))
        voxels = int(np.count_nonzero(sight.mask))
        self.trace.append(WalkStep("down", "an answer", where, centre, voxels, call))


def read_patch(
    ct: Volume, memory: np.ndarray, origin: np.ndarray, predict: PredictPatch, settings: WalkSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Ask the network for the next vertebra in one patch.

    Parameters
    ----------
    ct : Volume
        CT in the working grid, in [-1, 1].
    memory : np.ndarray of bool, (n, n, n)
        What the patch shows of the vertebrae found so far; empty outside the scan.
    origin : np.ndarray of int, (3,)
        Voxel of the working grid at which the patch begins; may be negative.
    predict : callable
        The segmentation network.
    settings : WalkSettings
        What the patch shows beyond the scan.

    Returns
    -------
    begin : np.ndarray of int, (3,)
        First voxel of the patch that lies in the scan.
    probability : np.ndarray of float32, (p, r, i)
        The answer, as far as the patch lies in the scan.

    Raises
    ------
    ValueError
        If `predict` gives another shape than the patch's, or NaN.
    """
    # As in the training.
    fill = LOWEST if settings.outside == "air" else "edge"
    shown = crop(ct, origin, memory.shape, fill=fill).data.astype(np.float32)
    probability = np.asarray(predict(shown, memory.astype(np.float32)))
    if probability.shape != memory.shape:
        raise ValueError(f"Expected a prediction of shape {memory.shape}, received {probability.shape}.")
    if np.isnan(probability).any():
        raise ValueError("Expected probabilities, received NaN from the segmentation network.")
    in_scan, in_patch = overlap(origin, memory.shape, ct.shape)
    return np.array([side.start for side in in_scan]), probability[in_patch]


def pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the pieces of a mask, neighbours by face, edge or corner; their voxels, 0 for the outside."""
    numbers, count = ndimage.label(mask, _NEIGHBOURS)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    sizes[0] = 0
    return numbers, sizes


def without_specks(mask: np.ndarray) -> np.ndarray:
    """Drop the pieces of a mask that are small beside the largest."""
    numbers, sizes = pieces(mask)
    return mask if len(sizes) < 3 else (sizes >= _SPECK * sizes.max())[numbers] & mask


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """Keep the largest piece of a mask."""
    numbers, sizes = pieces(mask)
    return mask if len(sizes) < 3 else numbers == np.argmax(sizes)


def new_part_of_largest(predicted: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the new voxels of a prediction's largest piece, none if most are given, and that piece."""
    largest = largest_piece(predicted)
    new = largest & ~given
    enough = 2 * np.count_nonzero(new) >= np.count_nonzero(largest)
    return (new if enough else np.zeros_like(new)), largest


def vertebra_of(
    begin: np.ndarray, probability: np.ndarray, mask: np.ndarray, threshold: float
) -> FoundVertebra:
    """Make a vertebra of a mask (not empty) in a box that begins at a voxel of the working grid."""
    box = box_around(mask)
    return FoundVertebra(
        begin=np.array([first + side.start for first, side in zip(begin, box)]),
        probability=within_bounds(probability[box], mask[box], threshold),
        mask=mask[box].copy(),
        centre=np.array(ndimage.center_of_mass(mask)) + begin,
    )


def field_of(ct: Volume) -> tuple[slice, ...]:
    """Give the box of a normalised CT that the scan shows, without padding of -1024 HU around it."""
    return shown_box(ct.data > _IN_SCAN)


def is_cut(vertebra: FoundVertebra, field: tuple[slice, ...]) -> bool:
    """Tell whether a vertebra reaches the first or last voxel that a scan shows along any axis.

    The working grid reaches less than a voxel over the scan (`working_grid`).
    """
    for axis, side in enumerate(field):
        along = np.flatnonzero(vertebra.mask.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = vertebra.begin[axis] + along[0], vertebra.begin[axis] + along[-1]
        if first <= side.start or last >= side.stop - 1:
            return True
    return False


def without_beyond(found: WalkResult, beyond: np.ndarray, threshold: float) -> WalkResult:
    """Take from vertebrae what lies beyond the scan, where the network saw what `edge` fills in.

    Parameters
    ----------
    found : WalkResult
        What the walk found.
    beyond : np.ndarray of bool, (p, r, i)
        Voxels of the working grid of which the scan shows nothing.
    threshold : float
        Probability from which a voxel belongs to a vertebra.

    Returns
    -------
    WalkResult
        A vertebra that reached over the end of the scan is partial, and perhaps without a voxel.
    """
    labels = Volume(np.where(beyond, 0, found.labels.data).astype(np.uint8), found.labels.affine)
    vertebrae = tuple(_within_scan(vertebra, beyond, threshold) for vertebra in found.vertebrae)
    return dataclasses.replace(found, vertebrae=vertebrae, labels=labels)


def _within_scan(vertebra: FoundVertebra, beyond: np.ndarray, threshold: float) -> FoundVertebra:
    kept = vertebra.mask & ~beyond[vertebra.box]
    probability = within_bounds(vertebra.probability, kept, threshold)
    partial = vertebra.partial or not np.array_equal(kept, vertebra.mask)
    return dataclasses.replace(vertebra, mask=kept, probability=probability, partial=partial)


def box_around(mask: np.ndarray) -> tuple[slice, ...]:
    """Give the box that holds a mask with a margin, as far as the array goes."""
    sides = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(
        slice(max(side.start - BOX_MARGIN, 0), min(side.stop + BOX_MARGIN, size))
        for side, size in zip(sides, mask.shape)
    )


def within_bounds(probability: np.ndarray, mask: np.ndarray, threshold: float) -> np.ndarray:
    """Keep the probability under the threshold where the voxels are not this vertebra's.

    Specks and voxels of other vertebrae must not come back when the probability is brought to another
    grid. Just under the threshold, not zero: so two vertebrae that touch still meet without a gap.
    """
    below = np.nextafter(np.float16(threshold), np.float16(0))
    at_least = np.maximum(probability, threshold).astype(np.float16)
    return np.where(mask, at_least, np.minimum(probability, below).astype(np.float16))
