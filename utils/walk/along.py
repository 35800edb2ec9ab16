"""The walk along known centres: one vertebra for every centre, from the top down.

The segmentation network sees a patch of the CT and the *memory*, all vertebrae found so far, and gives the
first vertebra that the memory does not hold. The centres say how many vertebrae there are and where each
lies, so nothing is searched for: every centre gets a patch, and a prediction belongs to the centres that it
holds. A centre above the first and one below the last are extrapolated, as neighbours of those two.

What goes beyond one patch a centre has a switch each (`WalkSettings`; `benchmarks/trial_walk_parts.py`
measures them):

- `moves`: the patch moves once, to where the prediction's own centre lies.
- `learns_offset`: a patch lies about its centre as the vertebra above lay about its own.
- `passes_fragments`: what lies above a centre and holds none, such as what the border of the scan leaves of
  a vertebra, goes into the memory alone, and the network is asked again.
- `cuts_merged`: a prediction that holds two centres is cut between them: with the part above the plane
  half-way between them in its memory, the network gives the lower one.
- `looks_again`: where a prediction belongs to another centre, or there is none, a patch is placed so that it
  shows less of the others.
- `holds_places`: the place of a vertebra that is not given is held in the memory, in the shape of the one
  above, or it would remain the first that the memory does not hold and hide the next ones.
- `lowers_threshold`: where the probability around a centre is low, as in an old man's dull bone, half of its
  maximum there is the threshold, between the planes half-way to the neighbours.

Nothing given to one vertebra is given to another. Every loop is bounded, whatever the network answers.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from utils.imaging.volume import Volume
from utils.walk import records
from utils.walk.look import PatchReader, Sight, field_of, is_cut, pieces, vertebra_of, without_specks
from utils.walk.records import FoundVertebra, PredictPatch, WalkResult, WalkSettings

#: A vertebra's centre of mass lies so far behind the centre of its body (`utils.imaging.centroids`).
BEHIND_MM = 11.0
#: A prediction holds a centre that lies in it or so near.
NEAR_MM = 4.0
#: A patch is moved if the prediction's own centre lies further from the middle of the patch.
MOVE_MM = 12.0
#: Bone of low probability is looked for so near a centre, from this share of the maximum there on.
DULL_MM, DULL_SHARE, LEAST_PROBABILITY = 8.0, 0.5, 0.1
#: Distance of neighbours where there is one centre alone: as in the mid thorax.
USUAL_DISTANCE_MM = 25.0


def walk_along(
    ct: Volume, centres: np.ndarray, predict: PredictPatch, *, settings: WalkSettings
) -> WalkResult:
    """Segment the vertebra at every centre, from the top down.

    Parameters
    ----------
    ct : Volume
        CT in the working grid, oriented (P, R, I), in [-1, 1].
    centres : np.ndarray, (n, 3)
        Centres of the vertebral bodies, voxel indices of `ct`, from the top down.
    predict : callable
        The segmentation network.
    settings : WalkSettings
        How to walk.

    Returns
    -------
    WalkResult
        The vertebrae from the top down, each with the index of its centre, and the centres without one.

    Raises
    ------
    ValueError
        If `centres` has another shape, or if `predict` gives another shape than the patch's, or NaN.
    """
    centres = np.asarray(centres, float)
    if centres.ndim != 2 or centres.shape[1] != 3:
        raise ValueError(f"Expected centres of shape (n, 3), received {centres.shape}.")
    run = _Walk(ct, centres, predict, settings)
    for number in range(1, len(centres) + 1):
        run.find(number)
    return run.result()


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """What a patch shows for a centre: the answer, its piece for this centre, and the centres in that."""

    sight: Sight
    point: np.ndarray
    piece: np.ndarray
    held: tuple[int, ...]


class _Walk:
    """One walk. The centres are numbered from 1; 0 and the last are the extrapolated ones."""

    def __init__(
        self, ct: Volume, centres: np.ndarray, predict: PredictPatch, settings: WalkSettings
    ) -> None:
        self.settings = settings
        self.centres = _with_ends(centres, USUAL_DISTANCE_MM / settings.spacing_mm)
        self.reader = PatchReader(ct, predict, settings, least_probability=LEAST_PROBABILITY)
        self.labels = np.zeros(ct.shape, np.uint8)
        self.field = field_of(ct)
        self.found: dict[int, FoundVertebra] = {}
        self.offset = np.array([BEHIND_MM / settings.spacing_mm, 0.0, 0.0])
        self.affine = ct.affine

    def find(self, number: int) -> None:
        """Give the vertebra at a centre its voxels, or hold its place."""
        before = self.reader.calls
        view = self._look(number, self.centres[number] + self.offset)
        for _ in range(self.settings.max_fragments if self.settings.passes_fragments else 0):
            if view is None or not (fragment := self._fragment(number, view)).any():
                break
            self.labels[view.sight.box][fragment] = records.FRAGMENT
            self.reader.note(f"centre {number}: what lies above it goes into the memory")
            view = self._look(number, view.point)
        if self.settings.looks_again and not _is_of(view, number):
            again = self._look(number, self._other_point(number, view))
            view = again if _is_of(again, number) else view
        if self.settings.moves and _is_of(view, number):
            view = self._moved(number, view)
        piece, scale = self._own_part(number, view)
        if piece is None:
            self._hold(number)
        else:
            self._take(number, view.sight, piece, scale, self.reader.calls - before)

    def _look(self, number: int, point: np.ndarray) -> _View | None:
        sight = self.reader.read(point, self.labels)
        if sight is None:
            return None
        free = sight.mask & self._free(sight)
        piece = self._piece_at(number, sight, without_specks(free))
        return _View(sight, point, piece, self._held(sight, piece))

    def _free(self, sight: Sight) -> np.ndarray:
        here = self.labels[sight.box]
        return (here == 0) | (here == records.HELD)

    def _piece_at(self, number: int, sight: Sight, mask: np.ndarray) -> np.ndarray:
        """Give the piece of a mask that holds a centre, else the largest."""
        numbers, sizes = pieces(mask)
        near = np.bincount(numbers[self._distance_mm(number, sight) <= NEAR_MM], minlength=len(sizes))
        near[0] = 0
        chosen = np.argmax(near if near.any() else sizes)
        return (numbers == chosen) & mask

    def _held(self, sight: Sight, piece: np.ndarray) -> tuple[int, ...]:
        numbers = [each for each in range(len(self.centres)) if each not in self.found]
        return tuple(n for n in numbers if piece[self._distance_mm(n, sight) <= NEAR_MM].any())

    def _distance_mm(self, number: int, sight: Sight) -> np.ndarray:
        away = _open_grid(sight, self.centres[number])
        return np.sqrt(sum(each**2 for each in away)) * self.settings.spacing_mm

    def _is_above_middle(self, upper: int, sight: Sight) -> np.ndarray:
        """Tell which voxels lie above the plane half-way between a centre and the next."""
        line = self.centres[upper + 1] - self.centres[upper]
        away = _open_grid(sight, (self.centres[upper + 1] + self.centres[upper]) / 2)
        return sum(each * part for each, part in zip(away, line)) < 0

    def _fragment(self, number: int, view: _View) -> np.ndarray:
        """Give what of a view's piece lies above a centre and belongs to none; often nothing."""
        above = view.piece & self._is_above_middle(number - 1, view.sight)
        if number in view.held and 0 in view.held:
            return above  # given together with what the border of the scan has left of the one above it
        is_above = 2 * np.count_nonzero(above) > np.count_nonzero(view.piece)
        return view.piece if is_above and not set(view.held) - {0} else np.zeros_like(above)

    def _other_point(self, number: int, view: _View | None) -> np.ndarray:
        """Give the point for a patch that shows less of what was given in place of a centre's vertebra."""
        centre, half = self.centres[number], self.settings.patch_voxels / 2
        if view is not None and any(each > number for each in view.held):
            lowest = (centre + self.centres[number + 1])[2] / 2
            return centre + self.offset + [0, 0, lowest - half - centre[2]]
        highest = (centre + self.centres[number - 1])[2] / 2
        return centre + self.offset + [0, 0, highest + half - centre[2]]

    def _moved(self, number: int, view: _View) -> _View:
        own = np.add(ndimage.center_of_mass(view.piece), view.sight.begin)
        if np.linalg.norm(own - view.point) * self.settings.spacing_mm <= MOVE_MM:
            return view
        moved = self._look(number, own)
        return moved if _is_of(moved, number) else view

    def _own_part(self, number: int, view: _View | None) -> tuple[np.ndarray | None, float]:
        """Give a centre's part of a view and what its probability is multiplied by; None for nothing."""
        if view is None:
            return None, 1.0
        piece, scale = view.piece, 1.0
        if number in view.held and number + 1 in view.held and self.settings.cuts_merged:
            piece = self._cut(number, view)
        elif self.settings.lowers_threshold:
            piece, scale = self._dull(number, view)
        least = self.settings.min_volume_mm3 / self.settings.spacing_mm**3
        is_own = piece[self._distance_mm(number, view.sight) <= NEAR_MM].any()
        return (piece, scale) if is_own and np.count_nonzero(piece) >= least else (None, 1.0)

    def _cut(self, number: int, view: _View) -> np.ndarray:
        """Give the upper of two vertebrae in one prediction."""
        upper = view.piece & self._is_above_middle(number, view.sight)
        memory = self.labels.copy()
        memory[view.sight.box][upper] = records.FRAGMENT
        answer = self.reader.read(view.point, memory) if self.settings.asks_for_cut else None
        lower = np.zeros_like(self.labels, bool)
        if answer is not None:
            lower[answer.box] = answer.mask
        lower = lower[view.sight.box] & view.piece
        held = self._held(view.sight, lower)
        confirmed = number + 1 in held and number not in held
        self.reader.note(f"centre {number}: cut from the next one, {'asked' if confirmed else 'by a plane'}")
        return self._piece_at(number, view.sight, view.piece & ~lower if confirmed else upper)

    def _dull(self, number: int, view: _View) -> tuple[np.ndarray, float]:
        """Give the piece at a centre from half of the probability there on, if that is under the threshold."""
        sight, full = view.sight, self.settings.probability_threshold
        between = ~self._is_above_middle(number - 1, sight) & self._is_above_middle(number, sight)
        own = np.where(between & self._free(sight), sight.probability.astype(np.float32), 0)
        most = own[self._distance_mm(number, sight) <= DULL_MM].max(initial=0.0)
        threshold = max(DULL_SHARE * most, LEAST_PROBABILITY)
        if threshold >= full * 0.999 or most < LEAST_PROBABILITY:
            return view.piece, 1.0
        rest = view.piece if number in view.held else np.zeros_like(view.piece)
        self.reader.note(f"centre {number}: taken from a probability of {threshold:.2f} on")
        return self._piece_at(number, sight, (own >= threshold) | rest), full / threshold

    def _take(self, number: int, sight: Sight, piece: np.ndarray, scale: float, calls: int) -> None:
        probability = np.minimum(sight.probability.astype(np.float32) * scale, 1)
        vertebra = vertebra_of(sight.begin, probability, piece, self.settings.probability_threshold)
        is_partial = is_cut(vertebra, self.field)
        vertebra = dataclasses.replace(
            vertebra, index=number - 1, calls=calls, steps=calls, converged=True, partial=is_partial
        )
        self.found[number] = vertebra
        self.labels[vertebra.box][vertebra.mask] = number
        self.reader.note(f"centre {number}: accepted", vertebra)
        if self.settings.learns_offset:
            self.offset = vertebra.centre - self.centres[number]

    def _hold(self, number: int) -> None:
        """Hold a centre's place in the memory, in the shape of the vertebra above it."""
        self.reader.note(f"centre {number}: no vertebra")
        model = self.found.get(max((each for each in self.found if each < number), default=0))
        if not self.settings.holds_places or model is None:
            return
        step = self.centres[number] - self.centres[model.index + 1]
        at = np.argwhere(model.mask) + model.begin + np.round(step).astype(int)
        at = tuple(at[((at >= 0) & (at < self.labels.shape)).all(axis=1)].T)
        self.labels[at] = np.where(self.labels[at] == 0, records.HELD, self.labels[at])

    def result(self) -> WalkResult:
        """Number the vertebrae from the top down."""
        order = sorted(self.found)
        numbers = np.zeros(256, np.uint8)
        numbers[order] = np.arange(1, len(order) + 1)
        missed = tuple(n - 1 for n in range(1, len(self.centres) - 1) if n not in self.found)
        return WalkResult(
            tuple(self.found[number] for number in order),
            Volume(numbers[self.labels], self.affine),
            self.reader.calls,
            (records.CALLS_USED_UP,) if self.reader.exhausted else (),
            tuple(self.reader.trace),
            missed,
        )


def _with_ends(centres: np.ndarray, usual: float) -> np.ndarray:
    """Add a centre above the first and one below the last, each as far on as its two neighbours are apart."""
    if len(centres) < 2:
        steps = np.array([[0.0, 0.0, usual]] * 2)
    else:
        steps = np.diff(centres, axis=0)[[0, -1]]
    return np.concatenate([centres[:1] - steps[0], centres, centres[-1:] + steps[1]])


def _open_grid(sight: Sight, point: np.ndarray) -> list[np.ndarray]:
    """Give how far the voxels of an answer lie from a point, in voxels, an open grid of three axes."""
    axes = (np.arange(size) + first for size, first in zip(sight.mask.shape, sight.begin))
    return [axis - own for axis, own in zip(np.ix_(*axes), point)]


def _is_of(view: _View | None, number: int) -> bool:
    """Whether a view shows a piece that holds a centre."""
    return view is not None and number in view.held
