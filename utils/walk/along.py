"""The walk along known centres: one vertebra for every centre, from the top down.

The segmentation network sees a patch of the CT and the *memory*, all vertebrae found so far, and gives the
first vertebra that the memory does not hold. The centres say how many vertebrae there are and where each
lies, so nothing is searched for: every centre gets a patch, and a prediction belongs to the centres that it
holds, or else to the nearest, among them one above the first and one below the last, which are extrapolated.

What goes beyond one patch a centre has a switch each (`WalkSettings`; `benchmarks/trial_walk_parts.py`
measures them):

- `passes_others`: a prediction of a centre further up that has no vertebra yet is written for that one; what
  belongs to none, such as what the border of the scan leaves above the first, goes into the memory alone.
  Then the network is asked again. One of a centre further down waits for that one's own patch.
- `cuts_merged`: a prediction that holds two centres is cut between them, by the plane half-way.
- `moves`: the patch moves once, to where the prediction's own centre lies.
- `holds_places`: the place of a vertebra that is not given is held in the memory, in the shape of the one
  above, or it would remain the first that the memory does not hold and hide the next ones.

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

#: The parts that can be switched off.
PARTS = ("passes_others", "cuts_merged", "moves", "holds_places")
#: A vertebra's centre of mass lies so far behind the centre of its body (`utils.imaging.centroids`).
BEHIND_MM = 11.0
#: A prediction holds a centre if it has this share of the ball around it.
BALL_MM, BALL_SHARE = 8.0, 0.1
#: Most predictions of other centres, or of none, on the way to one vertebra.
MOST_OTHERS = 3
#: A patch is moved if the prediction's own centre lies further from the middle of the patch.
MOVE_MM = 12.0
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
        If `centres` has another shape or too many rows, or if `predict` gives another shape than the
        patch's, or NaN.
    """
    centres = np.asarray(centres, float)
    if centres.ndim != 2 or centres.shape[1] != 3:
        raise ValueError(f"Expected centres of shape (n, 3), received {centres.shape}.")
    if len(centres) >= records.HELD:
        raise ValueError(f"Expected at most {records.HELD - 1} centres, received {len(centres)}.")
    run = _Walk(ct, centres, predict, settings)
    for number in range(1, len(centres) + 1):
        if number not in run.found:
            run.find(number)
    return run.result()


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """What a patch shows: the answer, the piece of it that is new, and the centres that this holds."""

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
        self.reader = PatchReader(ct, predict, settings)
        self.labels = Volume(np.zeros(ct.shape, np.uint8), ct.affine)
        self.field = field_of(ct)
        self.found: dict[int, FoundVertebra] = {}

    def find(self, number: int) -> None:
        """Give the vertebra at a centre its voxels, or hold its place."""
        before = self.reader.calls
        point = self.centres[number] + [BEHIND_MM / self.settings.spacing_mm, 0, 0]
        view = self._look(number, point)
        for _ in range(MOST_OTHERS if self.settings.passes_others else 0):
            if view is None or not view.held or view.held[0] >= number:
                break
            self._pass(view)
            view = self._look(number, point)
        view = self._moved(number, view) if self.settings.moves else view
        piece = None if view is None or number not in view.held else self._upper_part(number, view)
        if piece is None or not self._is_enough(piece):
            self.reader.note(f"centre {number}: no vertebra")
            self._hold(number)
            return
        self._take(number, view, piece)
        self.found[number] = dataclasses.replace(self.found[number], calls=self.reader.calls - before)

    def _look(self, number: int, point: np.ndarray) -> _View | None:
        sight = self.reader.read(point, self.labels.data)
        if sight is None:
            return None
        here = self.labels.data[sight.box]
        free = (here == 0) | (here == records.HELD)
        piece = self._piece_at(number, sight, without_specks(sight.mask & free))
        return _View(sight, point, piece, self._held(sight, piece))

    def _piece_at(self, number: int, sight: Sight, mask: np.ndarray) -> np.ndarray:
        """Give the piece of a mask that has most of the ball around a centre, else the largest."""
        numbers, sizes = pieces(mask)
        near = np.bincount(numbers[self._ball(number, sight)], minlength=len(sizes))
        near[0] = 0
        return (numbers == np.argmax(near if near.any() else sizes)) & mask

    def _held(self, sight: Sight, piece: np.ndarray) -> tuple[int, ...]:
        """Give the centres that a piece holds; if none, the nearest to it; none for an empty piece.

        An extrapolated one counts if the piece holds more of it than of the centre beside it: a vertebra
        above the first that has no centre of its own would be taken for the first.
        """
        if not piece.any():
            return ()
        voxels = 4 / 3 * np.pi * (BALL_MM / self.settings.spacing_mm) ** 3
        counts = [np.count_nonzero(piece[self._ball(n, sight)]) for n in range(len(self.centres))]
        for end, beside in ((0, 1), (-1, -2)):
            counts[end] *= counts[end] > counts[beside]
        held = [n for n, count in enumerate(counts) if count >= BALL_SHARE * voxels]
        middle = np.add(ndimage.center_of_mass(piece), sight.begin)
        middle[0] -= BEHIND_MM / self.settings.spacing_mm
        return tuple(held) or (int(np.argmin(np.linalg.norm(self.centres - middle, axis=1))),)

    def _ball(self, number: int, sight: Sight) -> np.ndarray:
        """Tell which voxels of an answer lie in the ball around a centre."""
        away = _open_grid(sight, self.centres[number])
        return sum(each**2 for each in away) <= (BALL_MM / self.settings.spacing_mm) ** 2

    def _is_above_middle(self, upper: int, sight: Sight) -> np.ndarray:
        """Tell which voxels lie above the plane half-way between a centre and the next."""
        line = self.centres[upper + 1] - self.centres[upper]
        away = _open_grid(sight, (self.centres[upper + 1] + self.centres[upper]) / 2)
        return sum(each * part for each, part in zip(away, line)) < 0

    def _pass(self, view: _View) -> None:
        """Write a prediction of another centre for that one, or keep it in the memory alone."""
        number = view.held[0]
        piece = self._upper_part(number, view)
        if number > 0 and number not in self.found and self._is_enough(piece):
            self._take(number, view, piece)
        else:
            self.labels.data[view.sight.box][piece] = records.FRAGMENT
            self.reader.note("what belongs to no centre goes into the memory")

    def _moved(self, number: int, view: _View | None) -> _View | None:
        """Look once more where what was found lies away from the middle of the patch."""
        if view is None or view.held != (number,):
            return view
        own = np.add(ndimage.center_of_mass(view.piece), view.sight.begin)
        if np.linalg.norm(own - view.point) * self.settings.spacing_mm <= MOVE_MM:
            return view
        moved = self._look(number, own)
        return view if moved is None or number not in moved.held else moved

    def _is_enough(self, piece: np.ndarray) -> bool:
        return np.count_nonzero(piece) * self.settings.spacing_mm**3 >= self.settings.min_volume_mm3

    def _upper_part(self, number: int, view: _View) -> np.ndarray:
        """Give the part of a prediction that belongs to a centre, cut from that of the next one."""
        if number + 1 not in view.held or number not in view.held or not self.settings.cuts_merged:
            return view.piece
        self.reader.note(f"centre {number}: cut from the next one")
        return self._piece_at(number, view.sight, view.piece & self._is_above_middle(number, view.sight))

    def _take(self, number: int, view: _View, piece: np.ndarray) -> None:
        threshold = self.settings.probability_threshold
        vertebra = vertebra_of(view.sight.begin, view.sight.probability, piece, threshold)
        self.found[number] = dataclasses.replace(
            vertebra,
            **{"index": number - 1, "converged": True, "partial": is_cut(vertebra, self.field)},
            remarks=() if piece is view.piece else (records.WALK_LEAK,),
        )
        self.labels.data[vertebra.box][vertebra.mask] = number
        self.reader.note(f"centre {number}: accepted", vertebra)

    def _hold(self, number: int) -> None:
        """Hold a centre's place in the memory, in the shape of the vertebra above it."""
        model = self.found.get(max((each for each in self.found if each < number), default=0))
        if not self.settings.holds_places or model is None:
            return
        step = self.centres[number] - self.centres[model.index + 1]
        at = np.argwhere(model.mask) + model.begin + np.round(step).astype(int)
        labels = self.labels.data
        at = tuple(at[((at >= 0) & (at < labels.shape)).all(axis=1)].T)
        labels[at] = np.where(labels[at] == 0, records.HELD, labels[at])

    def result(self) -> WalkResult:
        """Number the vertebrae from the top down."""
        order = sorted(self.found)
        numbers = np.zeros(256, np.uint8)
        numbers[order] = np.arange(1, len(order) + 1)
        return WalkResult(
            tuple(self.found[number] for number in order),
            Volume(numbers[self.labels.data], self.labels.affine),
            self.reader.calls,
            (records.CALLS_USED_UP,) if self.reader.exhausted else (),
            tuple(self.reader.trace),
            tuple(n - 1 for n in range(1, len(self.centres) - 1) if n not in self.found),
        )


def _with_ends(centres: np.ndarray, usual: float) -> np.ndarray:
    """Add a centre above and one below, each as far on as its two neighbours are apart."""
    steps = np.diff(centres, axis=0) if len(centres) > 1 else np.array([[0.0, 0.0, usual]])
    return np.concatenate([centres[:1] - steps[0], centres, centres[-1:] + steps[-1]])


def _open_grid(sight: Sight, point: np.ndarray) -> list[np.ndarray]:
    """Give how far the voxels of an answer lie from a point, in voxels, an open grid of three axes."""
    axes = (np.arange(size) + first for size, first in zip(sight.mask.shape, sight.begin))
    return [axis - own for axis, own in zip(np.ix_(*axes), point)]
