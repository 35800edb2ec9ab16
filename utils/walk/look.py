"""Looking at one patch: the network's answer, kept for as long as the walk lasts, and what of it is new.

The network is deterministic, so a patch that was seen with the same memory is looked up. Patches begin on
a lattice (`WalkSettings.lattice_voxels`): a centre that nearly rests meets its patch again, and the result
is that of another call by construction.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist

from utils.imaging.crops import box_between, crop, overlap
from utils.imaging.intensities import LOWEST
from utils.imaging.volume import Volume
from utils.walk.locate import heat_at
from utils.walk.records import BOX_MARGIN, HELD, FoundVertebra, PredictPatch, WalkSettings, WalkStep

#: Less than this share of the smallest vertebra is no reason to move the patch (robust walk).
LEAST_PIECE_SHARE = 0.1
#: Pieces under this share of the largest are specks: dropped before anything is decided.
_SPECK = 0.05
#: Pieces from this share of the largest on may be a vertebra of their own; the upper one is the next.
_COMPARABLE = 0.5
#: Where less than half of a prediction is new: least share of the prediction, and of the new voxels that
#: must lie inside, not at the surface, for a vertebra that a leak hides. A rim around one has none inside.
_NEW_SHARE, _INNER_SHARE = 0.3, 0.15
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

    def mask_in(self, vertebra: FoundVertebra) -> np.ndarray:
        """Give the mask in the box of a vertebra."""
        of_sight = Volume(self.mask, np.eye(4))
        return crop(of_sight, vertebra.begin - self.begin, vertebra.mask.shape, fill=0).data


@dataclass(frozen=True, eq=False)
class View:
    """A vertebra as a patch shows it."""

    vertebra: FoundVertebra
    sight: Sight
    origin: np.ndarray
    """(3,) int: where the patch begins."""
    predicted: int
    """Voxels of the whole prediction, those already given to others with them."""

    def is_cut_by_patch(self, patch_voxels: int, shape: tuple[int, ...]) -> bool:
        """Whether it reaches a face of the patch inside a scan of this shape: there may be more of it."""
        found = self.vertebra
        for axis, size in enumerate(shape):
            along = np.flatnonzero(found.mask.any(axis=tuple(each for each in range(3) if each != axis)))
            first, last = found.begin[axis] + along[0], found.begin[axis] + along[-1]
            begin, end = self.origin[axis], self.origin[axis] + patch_voxels
            if first <= begin > 0 or size > end <= last + 1:
                return True
        return False


class Looker:
    """The eyes of one walk: calls the network, counts, and writes down every look."""

    def __init__(self, ct: Volume, heat: Volume, predict: PredictPatch, settings: WalkSettings):
        self.ct, self.heat, self.predict, self.settings = ct, heat, predict, settings
        self.calls = 0
        self.exhausted = False
        self.part = "down"
        self.trace: list[WalkStep] = []
        self._seen: dict[tuple, Sight | None] = {}

    def origin_at(self, point: np.ndarray) -> np.ndarray:
        """Give where the patch around a point begins."""
        half, lattice = self.settings.patch_voxels // 2, self.settings.lattice_voxels
        begin = np.floor(np.asarray(point) + 0.5).astype(int) - half
        return begin if lattice == 1 else lattice * np.floor(begin / lattice + 0.5).astype(int)

    def _sight(self, origin: np.ndarray, memory: np.ndarray) -> Sight | None:
        """Give what the network sees in a patch with a memory (not 0, working grid); None if nothing."""
        shape = (self.settings.patch_voxels,) * 3
        # Outside the scan the memory is empty.
        in_patch = crop(Volume(memory, self.ct.affine), origin, shape, fill=0).data > 0
        key = (*map(int, origin), hashlib.blake2b(np.packbits(in_patch).tobytes()).digest())
        if key not in self._seen:
            if self.calls >= self.settings.max_calls:
                self.exhausted = True
                return None
            self.calls += 1
            self._seen[key] = self._predicted(origin, in_patch)
        return self._seen[key]

    def look(self, point: np.ndarray, memory: np.ndarray, labels: np.ndarray) -> View | None:
        """Give the vertebra that a patch around a point shows and that no label holds yet."""
        origin = self.origin_at(point)
        before = self.calls
        sight = self._sight(origin, memory)
        view = None if sight is None else self.view(sight, origin, labels)
        self._note(origin, sight, view, self.calls if self.calls > before else None)
        return view

    def look_again(self, origin: np.ndarray, memory: np.ndarray) -> Sight | None:
        """Give all that the network sees in a patch that begins at `origin`, with another memory."""
        before = self.calls
        sight = self._sight(origin, memory)
        words = "nothing" if sight is None else f"an answer of {np.count_nonzero(sight.mask)} voxels"
        call = self.calls if self.calls > before else None
        self.trace.append(WalkStep(self.part, words, tuple(map(int, origin)), call=call))
        return sight

    def decide(self, words: str, vertebra: FoundVertebra | None = None) -> None:
        """Write down what was decided."""
        if vertebra is None:
            self.trace.append(WalkStep(self.part, words))
            return
        centre, voxels = tuple(map(float, vertebra.centre)), int(np.count_nonzero(vertebra.mask))
        self.trace.append(WalkStep(self.part, words, centre=centre, voxels=voxels))

    def _note(self, origin: np.ndarray, sight: Sight | None, view: View | None, call: int | None) -> None:
        where = tuple(map(int, origin))
        if view is None:
            words = "nothing" if sight is None else "nothing that is new"
            self.trace.append(WalkStep(self.part, words, where, call=call))
            return
        found = view.vertebra
        centre, voxels = tuple(map(float, found.centre)), int(np.count_nonzero(found.mask))
        self.trace.append(WalkStep(self.part, "a vertebra that is new", where, centre, voxels, call))

    def _predicted(self, origin: np.ndarray, memory: np.ndarray) -> Sight | None:
        begin, probability = read_patch(self.ct, memory, origin, self.predict, self.settings)
        mask = without_specks(probability >= self.settings.probability_threshold)
        if not mask.any():
            return None
        box = box_around(mask)
        return Sight(
            begin + [side.start for side in box], probability[box].astype(np.float16), mask[box].copy()
        )

    def view(self, sight: Sight, origin: np.ndarray, labels: np.ndarray) -> View | None:
        """Give the vertebra of a sight that no label holds yet."""
        here = labels[sight.box]
        given = (here > 0) & (here != HELD)
        choose = new_piece if self.settings.robust else new_part_of_largest
        mask, predicted = choose(sight.mask, given)
        least = LEAST_PIECE_SHARE * self.settings.min_volume_mm3 / self.settings.spacing_mm**3
        if not mask.any() or (self.settings.robust and np.count_nonzero(mask) < least):
            return None
        # The published centre is that of the whole prediction.
        of_centre = mask if self.settings.robust else predicted
        vertebra = self.vertebra(sight.begin, sight.probability, mask, of_centre)
        return View(vertebra, sight, origin, int(np.count_nonzero(predicted)))

    def vertebra(
        self, begin: np.ndarray, probability: np.ndarray, mask: np.ndarray, of_centre: np.ndarray
    ) -> FoundVertebra:
        """Make a vertebra of a mask in a box; `of_centre` is the mask that its centre is the centre of."""
        centre = np.array(ndimage.center_of_mass(of_centre)) + begin
        box = box_around(mask)
        return FoundVertebra(
            begin=begin + [side.start for side in box],
            probability=within_bounds(probability[box], mask[box], self.settings.probability_threshold),
            mask=mask[box].copy(),
            centre=centre,
            heat=float(heat_at(self.heat, centre[None], self.ct.affine)[0]),
        )


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


def come_to_rest(
    looker: Looker, point: np.ndarray, memory: np.ndarray, labels: np.ndarray
) -> tuple[View | None, int, bool]:
    """Move the patch to the centre of what it shows until the centre rests.

    Returns
    -------
    view : View or None
        None if the first look shows nothing new.
    steps : int
        Patches looked at.
    converged : bool
        Whether the centre came to rest.
    """
    settings = looker.settings
    seen: list[View] = []
    for _ in range(settings.max_steps):
        view = looker.look(point, memory, labels)
        if view is None:
            # The published walk gives up; but what a patch has shown is there, though another hides it.
            last = seen[-1] if seen and settings.robust else None
            return last, len(seen) + 1, False
        seen.append(view)
        point = view.vertebra.centre
        if _rests([each.vertebra.centre for each in seen[-3:]], settings):
            return view, len(seen), True
    # A mean that lies between two vertebrae may show nothing; the last prediction is still a vertebra.
    mean = np.mean([each.vertebra.centre for each in seen[-3:]], axis=0)
    return looker.look(mean, memory, labels) or seen[-1], len(seen) + 1, False


def _rests(centres: list[np.ndarray], settings: WalkSettings) -> bool:
    return len(centres) == 3 and pdist(centres).max() * settings.spacing_mm < settings.rest_mm


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


def new_piece(predicted: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the piece of a prediction that is new, and the pieces of the prediction that it belongs to.

    Where two pieces are comparable, a leak has joined two vertebrae into one prediction: the next one is the
    upper. A rim around vertebrae already given is nothing new.

    Parameters
    ----------
    predicted : np.ndarray of bool
        The prediction in its box, axes (P, R, I).
    given : np.ndarray of bool
        Voxels of the box that belong to a vertebra.

    Returns
    -------
    piece, whole : np.ndarray of bool
        Both empty if nothing is new.
    """
    nothing = np.zeros_like(predicted)
    numbers, sizes = pieces(predicted & ~given)
    if not sizes.any():
        return nothing, nothing
    comparable = np.flatnonzero(sizes >= _COMPARABLE * sizes.max())
    heights = [ndimage.center_of_mass(numbers == number)[2] for number in comparable]
    piece = numbers == comparable[int(np.argmin(heights))]
    of_prediction, _ = pieces(predicted)
    whole = of_prediction == of_prediction[tuple(np.argwhere(piece)[0])]
    new, all_of_it = np.count_nonzero(piece), np.count_nonzero(whole)
    if 2 * new >= all_of_it:
        return piece, whole
    inner = np.count_nonzero(ndimage.binary_erosion(piece))
    if new >= _NEW_SHARE * all_of_it and inner >= _INNER_SHARE * new:
        return piece, whole
    return nothing, nothing


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
    inside = ct.data > _IN_SCAN
    sides = []
    for axis in range(3):
        shown = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        sides.append(slice(int(shown[0]), int(shown[-1]) + 1) if shown.size else slice(0, ct.shape[axis]))
    return tuple(sides)


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
