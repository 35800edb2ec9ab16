"""The walk down the spine: one vertebra after the other, each shown what was found before it.

The segmentation network sees a patch of the CT and the *memory*, the vertebrae found so far, and gives
the first vertebra that the memory does not hold. The walk moves the patch to the centre of what it gives
until the centre rests, writes the vertebra, and asks again (Serrador et al. 2024, after Lessmann et al.,
Medical Image Analysis 53 (2019) 142). Functions on volumes in the working grid, oriented (P, R, I): the
network comes in as a function, and nothing here loads TensorFlow.

What the published walk leaves open:

- *Empty prediction*, or one mostly made of voxels already given: the patch moves a quarter of its edge
  down the heatmap, a few times at most, then the walk ends.
- *A fragment*, under the minimum volume even where the patch rests on it, such as what the field of view
  leaves of a vertebra: it goes into the memory without becoming a vertebra, a few times at most. Ignored,
  it would stay the first that the memory does not hold, and the walk would never get past it. The robust
  walk does the same with what cannot follow the vertebra above it: it lies beside or above the column, or
  its volume is out of all proportion.
- *No rest* after `max_steps`: one last prediction at the mean of the last three centres.
- *Identical patches*: the network is deterministic; an identical patch with an identical memory is looked
  up, never predicted again.
- *Specks*: only the largest connected component counts, for the mask and for the centre, since a speck far
  from the vertebra pulls the centre, and so the next patch, away from it.

What the robust walk adds (`WalkSettings.robust`; off in the preset `paper`):

- Patches begin at multiples of 2 voxels, so a centre that nearly rests meets its patch again; and the
  first look for the next vertebra is where the last two say that it lies. Both save calls.
- *Leaks*: a prediction out of proportion to its neighbours, and the first one, which has none, is asked
  about: with its upper part in the memory, does the network give the rest as another vertebra
  (`walk_checks.is_leak`)? Then that is cut off, before anything is written. Where all that is left of the
  first one is what the scan's border leaves of it, the second one speaks for the volumes below.
- *Above the first*: with an empty memory the patch moves up until nothing new is there.
- *Gaps*: where the distance of neighbours says that a vertebra was skipped, a second look, the patch on the
  gap, then with its top just above it (a vertebra that the network does not give hides those below it, as
  long as the patch shows it), then without the memory of what would be there.
- *Strays*: what lies far beside all the others, as the first find may where the heatmap is wrong, is dropped.
- *Second starts* where the heatmap has spine that neither a vertebra nor a look covers.
- *A walk anew* where more spine was missed than found, since all starts are judged by what was found first,
  and that may have been no spine: from amid what was missed, with an empty memory. The walk that finds more
  counts.
- *A search* patch by patch, as of Lessmann et al., where the heatmap led to fewer than two vertebrae: it may
  mark something else. Two that follow one another end it.

Nothing given to one vertebra is given to another. Every loop is bounded, whatever the network answers, and
so is the number of calls (`WalkSettings.max_calls`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from utils.imaging.volume import Volume
from utils.walk import checks, records
from utils.walk.look import Looker, View, come_to_rest, field_of, is_cut, largest_piece
from utils.walk.spine_heat import SpineHeat

#: Fewer vertebrae than this, which a wrong heatmap may lead to, are not believed without a search.
LEAST_COLUMN = 2
#: The next vertebra is expected at most this much further on than the median so far, and this far.
MOST_GROWTH, MOST_DISTANCE_MM = 1.25, 45.0
#: A vertebra gives voxels back to one found below it only if it is this much larger than its neighbours, and
#: if they are at least this share of the other.
GIVEN_BACK_FROM, GIVEN_BACK_LEAST = 1.05, 0.05
#: Where no neighbours speak, a second vertebra must be given again, by this share, with so much of it known.
KNOWN_OF_SECOND, GIVEN_AGAIN = 0.35, 0.6
#: What is held in the memory for a vertebra is the one above with this margin.
HELD_MARGIN_MM = 4.0
#: Share of its neighbours' volume that a piece cut by the patch must have to be taken as it is.
LEAST_PIECE = 0.6


def walk(
    ct: Volume, heat: Volume, predict: records.PredictPatch, *, settings: records.WalkSettings
) -> records.WalkResult:
    """Find the vertebrae of a scan from the top down.

    Parameters
    ----------
    ct : Volume
        CT in the working grid, oriented (P, R, I), in [-1, 1].
    heat : Volume
        Heatmap of the spine on any grid with the same axes; points reach it through the affines.
    predict : callable
        The segmentation network.
    settings : WalkSettings
        How to walk.

    Returns
    -------
    WalkResult
        The vertebrae from the top down, with what is to be said of them. With the published walk, none if the
        heat nowhere reaches the threshold.

    Raises
    ------
    ValueError
        If `predict` gives another shape than the patch's, or NaN.
    """
    run = _Walk(ct, heat, predict, settings)
    run.walk_from(run.heat.top())
    if settings.robust and (elsewhere := run.missed_most_at()) is not None:
        anew = _Walk(ct, heat, predict, settings, looker=run.looker)
        anew.walk_from(elsewhere)
        run = max(run, anew, key=lambda each: len(each.found))
    if settings.robust and len(run.found) < LEAST_COLUMN:
        search = _Walk(ct, heat, predict, settings, looker=run.looker, trusts_heat=False)
        search.search()
        run = search if len(search.found) >= LEAST_COLUMN else run
    return run.result()


class _Walk:
    """One walk: what was found so far, and the parts that find more."""

    def __init__(
        self,
        ct: Volume,
        heat: Volume,
        predict: records.PredictPatch,
        settings: records.WalkSettings,
        *,
        looker: Looker | None = None,
        trusts_heat: bool = True,
    ) -> None:
        """Begin with nothing found; with the looker of another walk, with its calls and what it saw."""
        self.settings = settings
        self.ct = ct
        self.heat = SpineHeat(heat, ct.affine, settings, is_trusted=trusts_heat)
        self.looker = Looker(ct, heat, predict, settings) if looker is None else looker
        self.labels = np.zeros(ct.shape, np.uint8)
        #: By their number in `labels`, in the order of finding.
        self.found: dict[int, records.FoundVertebra] = {}
        self.field = field_of(ct)
        #: Voxels of the second vertebra, where the first one is a piece that nothing is to be measured by.
        self.below_piece: int | None = None
        #: Heights at which the patch showed nothing new.
        self.in_vain: list[float] = []
        self._least_voxels = settings.min_volume_mm3 / settings.spacing_mm**3

    @property
    def column(self) -> list[records.FoundVertebra]:
        """The vertebrae found so far, from the top down."""
        return sorted(self.found.values(), key=lambda vertebra: vertebra.centre[2])

    @property
    def is_full(self) -> bool:
        return len(self.found) >= self.settings.max_vertebrae or self.looker.exhausted

    # The parts of the walk

    def walk_from(self, point: np.ndarray | None) -> None:
        """Find vertebrae from a point down, and, where the walk is robust, all others that belong to them."""
        self.walk_down(point, part="down")
        if not self.settings.robust:
            return
        if self.found:
            self.drop_strays()
            self.look_above()
            self.look_into_gaps()
        self.start_again()
        self.look_into_gaps()
        self.drop_strays()

    def walk_down(
        self, point: np.ndarray | None, *, part: str, remark: str | None = None, until: float = np.inf
    ) -> int:
        """Find vertebrae from a point down, as long as they lie above the height `until`; how many."""
        self.looker.part = part
        before = len(self.found)
        vertebra = None
        while point is not None and not self.is_full:
            view = self._next(point, vertebra)
            if view is None or self._ends_the_spine(view.vertebra):
                break
            is_first = len(self.found) == before
            refused = self._refusal(view.vertebra, until, judges_volume=is_first and remark is not None)
            if refused:
                self.looker.decide(f"refused: {refused}", view.vertebra)
                break
            vertebra = self._take(view, remark)
            point = None if self._is_the_last(vertebra) else self._expected_below(vertebra)
            if point is vertebra.centre or not self.settings.robust:
                vertebra = None  # nothing says yet how far the next one is
        return len(self.found) - before

    def drop_strays(self) -> None:
        """Keep in the memory alone what lies too far beside the column, as a first find may."""
        for stray in checks.strays(self.column, most_aside_voxels=self.settings.patch_voxels / 4):
            number = self._number_of(stray)
            del self.found[number]
            self.labels[self.labels == number] = records.FRAGMENT
            self.looker.decide("dropped: lies beside the column", stray)
            if number == 1:
                self.below_piece = None

    def look_above(self) -> None:
        """Look above the first vertebra with an empty memory until nothing new is there."""
        nothing = np.broadcast_to(np.uint8(0), self.labels.shape)
        up = np.array([0, 0, self.settings.patch_voxels / 4])
        while not self.is_full:
            self.looker.part = "above"
            first = self.column[0]
            view = self._rest(self._inside(first.centre - up), nothing)
            if view is None:
                return
            refused = checks.follows_above(view.vertebra, self.column, most_voxels=self.settings.patch_voxels)
            if refused or self._is_a_fragment(view.vertebra):
                self.looker.decide(f"refused: {refused or 'a fragment'}", view.vertebra)
                return
            above = self._take(view, records.FOUND_ABOVE)
            # The network gives the top-most one that it sees: others may lie between.
            point = self._expected_below(above)
            self.walk_down(point, part="above", remark=records.FOUND_ABOVE, until=first.centre[2])

    def look_into_gaps(self) -> None:
        """Look a second time where neighbours are too far apart, as long as that finds something."""
        while not self.is_full and any(self._look_into(gap) for gap in checks.gaps_in(self.column)):
            pass

    def start_again(self) -> None:
        """Start again where the heatmap has spine that neither a vertebra nor a look covers."""
        for _ in range(self.settings.max_second_starts):
            runs = [] if self.is_full else self.heat.uncovered(self.column, self.in_vain)
            if not runs:
                return
            begin, end = runs[0]
            quarter = self.settings.patch_voxels / 4
            height = min(begin + quarter, (begin + end) / 2)
            self.in_vain.append(height)
            self.walk_down(self.heat.hottest_at(height), part="second start", remark=records.SECOND_START)

    def missed_most_at(self) -> np.ndarray | None:
        """Give the hottest point amid the spine that was missed, if that is more than was found."""
        height = None if self.is_full or not self.found else self.heat.middle_of_missed(self.column)
        return None if height is None else self.heat.hottest_at(height)

    def search(self) -> None:
        """Look patch by patch, from the top down, until two vertebrae follow one another."""
        for point in checks.search_points(self.field, self.settings.patch_voxels / 2):
            if self.is_full or self.walk_down(point, part="search", remark=records.SEARCHED) >= LEAST_COLUMN:
                break
            self._forget_all()
        if self.found:
            self.look_above()
            self.look_into_gaps()

    def _forget_all(self) -> None:
        self.labels[:] = 0
        self.found.clear()
        self.below_piece = None

    def result(self) -> records.WalkResult:
        """Number the vertebrae from the top down and say what is to be said of them."""
        robust = self.settings.robust
        order = sorted(self.found, key=lambda number: self.found[number].centre[2]) if robust else self.found
        numbers = np.zeros(256, np.uint8)
        numbers[list(order)] = np.arange(1, len(self.found) + 1)
        column = [self.found[number] for number in order]
        vertebrae = tuple(_with_all_remarks(column))
        remarks = [records.CALLS_USED_UP] if self.looker.exhausted else []
        if robust and self.heat.uncovered(self.column):
            remarks.append(records.SPINE_NOT_COVERED)
        labels = Volume(numbers[self.labels], self.ct.affine)
        return records.WalkResult(
            vertebrae, labels, self.looker.calls, tuple(remarks), tuple(self.looker.trace)
        )

    # One vertebra

    def _next(self, point: np.ndarray | None, above: records.FoundVertebra | None) -> View | None:
        """Find the next vertebra from a point, where the one after `above` should lie, down.

        One that the network does not give remains the first that the memory does not hold for as long as the
        patch shows it, and hides the others. So its place is held in the memory, in the shape of `above`.
        """
        settings = self.settings
        fragments = steps_down = held = 0
        step = None if above is None or point is None else point - above.centre
        while (
            point is not None
            and fragments <= settings.max_fragments
            and steps_down <= settings.max_steps_down
        ):
            view = self._rest(point, self.labels)
            if view is None:
                self.in_vain.append(float(point[2]))
                if step is not None and held < settings.max_held and self.heat.is_spine(point, self.column):
                    held += 1
                    point = self._inside(self._hold(above, held * step) + step)
                else:
                    step = self._hold_no_more() if held else None
                    point = self.heat.step_down(point)
                    steps_down += 1
            elif refused := self._passed_over(view.vertebra, above):
                self.looker.decide(f"passed over: {refused}", view.vertebra)
                self.labels[view.vertebra.box][view.vertebra.mask] = records.FRAGMENT
                if not self.settings.robust or above is None:
                    point = view.vertebra.centre
                fragments += 1
            else:
                return view
        return None

    def _passed_over(self, vertebra: records.FoundVertebra, above: records.FoundVertebra | None) -> str:
        """Say why what was found goes into the memory without becoming a vertebra; "" if it is one."""
        if self._is_a_fragment(vertebra):
            return "a fragment"
        if not self.settings.robust or above is None:
            return ""
        quarter = self.settings.patch_voxels / 4
        return checks.follows_below(vertebra, above, self.column, most_aside_voxels=quarter)

    def _hold(self, model: records.FoundVertebra, step: np.ndarray) -> np.ndarray:
        """Hold a place in the memory, a step away from a vertebra and in its shape; give the place."""
        # Larger, since the place is not exact, and less than half of a vertebra would not count as one.
        margin = max(1, round(HELD_MARGIN_MM / self.settings.spacing_mm))
        shape = ndimage.binary_dilation(np.pad(model.mask, margin), iterations=margin)
        at = np.argwhere(shape) - margin + model.begin + np.round(step).astype(int)
        at = tuple(at[((at >= 0) & (at < self.labels.shape)).all(axis=1)].T)
        self.labels[at] = np.where(self.labels[at] == 0, records.HELD, self.labels[at])
        self.looker.decide("nothing: the place of a vertebra that is not given is held in the memory")
        return model.centre + step

    def _hold_no_more(self) -> None:
        self.labels[self.labels == records.HELD] = 0

    def _rest(self, point: np.ndarray, memory: np.ndarray) -> View | None:
        before = self.looker.calls
        view, steps, converged = come_to_rest(self.looker, point, memory, self.labels)
        if view is None or (not converged and self._is_a_cut_piece(view)):
            return None
        vertebra = dataclasses.replace(
            view.vertebra,
            steps=steps,
            converged=converged,
            calls=self.looker.calls - before,
            partial=is_cut(view.vertebra, self.field),
            remarks=() if converged else (records.WALK_NO_CONVERGENCE,),
        )
        view = dataclasses.replace(view, vertebra=vertebra)
        return self._without_leak(view, memory) if self.settings.robust else view

    def _is_a_cut_piece(self, view: View) -> bool:
        """Whether the patch shows only a piece of a vertebra that hides when the patch moves to it."""
        usual = self._usual_volume(view.vertebra)
        if (
            not self.settings.robust
            or usual is None
            or checks.volume_voxels(view.vertebra) >= LEAST_PIECE * usual
        ):
            return False
        return view.is_cut_by_patch(self.settings.patch_voxels, self.labels.shape)

    def _usual_volume(self, vertebra: records.FoundVertebra) -> float | None:
        """Give the volume that the neighbours of a vertebra speak for, in voxels; None without neighbours."""
        if self.below_piece is None:
            return checks.usual_volume(self.column, vertebra.centre[2])
        others = [each for number, each in self.found.items() if number > 1]
        usual = checks.usual_volume(others, vertebra.centre[2])
        return self.below_piece if usual is None else usual

    def _take(self, view: View, remark: str | None) -> records.FoundVertebra:
        vertebra = view.vertebra
        if remark is not None:
            vertebra = dataclasses.replace(vertebra, remarks=(*vertebra.remarks, remark))
        number = max(self.found, default=0) + 1
        self.found[number] = vertebra
        self.labels[vertebra.box][vertebra.mask] = number
        self.looker.decide("accepted", vertebra)
        return vertebra

    def _without_leak(self, view: View, memory: np.ndarray) -> View:
        """Ask whether the prediction holds a second vertebra, if it may, and cut it off (see `is_leak`)."""
        vertebra = view.vertebra
        usual = self._usual_volume(vertebra)
        above = [each for each in self.column if each.centre[2] < vertebra.centre[2]][-2:]
        leaked = any(records.WALK_LEAK in each.remarks for each in above)
        most = checks.LEAK_VOLUME_BELOW_LEAK if leaked else checks.LEAK_VOLUME
        in_proportion = usual is not None and checks.volume_voxels(vertebra) < most * usual
        if in_proportion or self._is_a_fragment(vertebra):
            return view
        share = checks.FIRST_LEAK_SHARE if usual is None else checks.LEAK_SHARE
        before, part, self.looker.part = self.looker.calls, self.looker.part, "leak"
        cut = vertebra
        for upper in checks.upper_parts(vertebra.mask):
            answer = self._answer_knowing(view, memory, upper)
            verdict = checks.is_leak(
                vertebra.mask, upper, answer, least_voxels=self._least_voxels, least_share=share
            )
            left, given = (largest_piece(vertebra.mask & part) for part in (~answer, answer))
            confirmed = usual is not None or (verdict and self._gives_again(view, memory, left, given))
            if verdict and confirmed and checks.leaves_enough(left, vertebra.mask, usual):
                cut = self._cut(vertebra, answer)
                if usual is None and checks.is_piece_above(left, given):
                    self.below_piece = np.count_nonzero(given)
            if verdict is not None:
                break
        self.looker.part = part
        cut = dataclasses.replace(cut, calls=vertebra.calls + self.looker.calls - before)
        return dataclasses.replace(view, vertebra=cut)

    def _gives_again(self, view: View, memory: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether the network gives the second part of a prediction again when it knows the top of that too.

        It does with a vertebra. Of the rest of one that is cut in two it has forgotten the larger part then.
        """
        known = first | checks.topmost(second, KNOWN_OF_SECOND)
        answer = self._answer_knowing(view, memory, known)
        return np.count_nonzero(answer & second) >= GIVEN_AGAIN * np.count_nonzero(second)

    def _answer_knowing(self, view: View, memory: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Give what the network sees, in the vertebra's box, when it knows only the vertebra's upper part."""
        remembered = memory.copy()
        remembered[view.vertebra.box][upper] = records.FRAGMENT
        sight = self.looker.look_again(view.origin, remembered)
        return np.zeros_like(upper) if sight is None else sight.mask_in(view.vertebra)

    def _cut(self, vertebra: records.FoundVertebra, leak: np.ndarray) -> records.FoundVertebra:
        left = largest_piece(vertebra.mask & ~leak)
        cut = self.looker.vertebra(vertebra.begin, vertebra.probability, left, left)
        self.looker.decide("a leak into the next vertebra is cut off", cut)
        return dataclasses.replace(
            vertebra,
            begin=cut.begin,
            probability=cut.probability,
            mask=cut.mask,
            centre=cut.centre,
            heat=cut.heat,
            partial=is_cut(cut, self.field),
            remarks=tuple(dict.fromkeys((*vertebra.remarks, records.WALK_LEAK))),
        )

    # Gaps

    def _look_into(self, gap: checks.Gap) -> bool:
        """Look for one of the missing vertebrae of a gap; whether it was found."""
        self.looker.part = "second look"
        for expected in gap.expected:
            for point, memory in self._looks_at(gap, expected):
                view = self._rest(point, memory)
                if view is None:
                    continue
                refused = (
                    "is a fragment"
                    if self._is_a_fragment(view.vertebra)
                    else checks.fills(view.vertebra, gap)
                )
                if not refused:
                    self._take(self._without_leak_of(gap.upper, view), records.SECOND_LOOK)
                    return True
                self.looker.decide(f"refused: {refused}", view.vertebra)
        return False

    def _looks_at(self, gap: checks.Gap, expected: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the points and memories of the looks for one missing vertebra (see the module)."""
        forgetful = np.where(self.labels == records.HELD, 0, self.labels)
        yield expected, forgetful
        distance = gap.distance_voxels
        lower = expected + np.array([0, 0, self.settings.patch_voxels / 2 - 0.75 * distance])
        yield lower, forgetful
        forgetful = forgetful.copy()
        begin, end = expected[2] - distance / 2, expected[2] + distance / 2
        forgetful[:, :, max(0, round(begin)) : max(0, round(end))] = 0
        yield expected, forgetful

    def _without_leak_of(self, upper: records.FoundVertebra, view: View) -> View:
        """Cut from the upper neighbour what the network now gives to the vertebra that it leaked into."""
        claimed = view.sight.mask_in(upper) & upper.mask
        voxels, of_upper = np.count_nonzero(claimed), checks.volume_voxels(upper)
        others = [each for each in self.column if each is not upper]
        usual = checks.usual_volume(others, upper.centre[2])
        is_large = usual is None or of_upper > GIVEN_BACK_FROM * usual
        if not is_large or not GIVEN_BACK_LEAST * view.predicted <= voxels <= of_upper / 2:
            return view
        number = self._number_of(upper)
        cut = self._cut(upper, claimed)
        self.found[number] = cut
        self.labels[upper.box][upper.mask] = 0
        self.labels[cut.box][cut.mask] = number
        again = self.looker.view(view.sight, view.origin, self.labels)
        old = view.vertebra
        kept = {name: getattr(old, name) for name in ("steps", "converged", "calls", "partial", "remarks")}
        return dataclasses.replace(again, vertebra=dataclasses.replace(again.vertebra, **kept))

    # Questions

    def _number_of(self, vertebra: records.FoundVertebra) -> int:
        return next(number for number, each in self.found.items() if each is vertebra)

    def _ends_the_spine(self, vertebra: records.FoundVertebra) -> bool:
        if not self.heat.ends_before(vertebra, list(self.found.values())):
            return False
        self.looker.decide("refused: lies below the spine, where the heat is low", vertebra)
        return True

    def _expected_below(self, vertebra: records.FoundVertebra) -> np.ndarray:
        """Give where the next vertebra should lie: as far on as the last two are apart."""
        column = self.column
        index = next(i for i, each in enumerate(column) if each is vertebra)
        if not self.settings.robust or index == 0:
            return vertebra.centre
        step = vertebra.centre - column[index - 1].centre
        length = float(np.linalg.norm(step))
        # One that was skipped must not carry the patch away.
        usual = float(np.median(checks.distances_voxels(column)[:index]))
        longest = min(MOST_GROWTH * usual, MOST_DISTANCE_MM / self.settings.spacing_mm)
        return self._inside(vertebra.centre + step * min(1.0, longest / max(length, 1.0)))

    def _inside(self, point: np.ndarray) -> np.ndarray:
        return np.clip(point, 0, np.array(self.labels.shape) - 1)

    def _is_the_last(self, vertebra: records.FoundVertebra) -> bool:
        return self.settings.end_rule == "absolute" and vertebra.heat < self.settings.heat_threshold

    def _is_a_fragment(self, vertebra: records.FoundVertebra) -> bool:
        return checks.volume_voxels(vertebra) < self._least_voxels

    def _refusal(self, vertebra: records.FoundVertebra, until: float, *, judges_volume: bool) -> str:
        """Say why a vertebra is not taken: the first one of another start is judged by those found before."""
        if vertebra.centre[2] >= until:
            return "lies below the vertebra that the walk began with"
        if not judges_volume:
            return ""
        near = sorted(self.found.values(), key=lambda each: abs(each.centre[2] - vertebra.centre[2]))
        return checks.odd_volume(vertebra, near[:2], checks.TAKEN_VOLUMES)


def _with_all_remarks(column: Sequence[records.FoundVertebra]) -> Iterator[records.FoundVertebra]:
    """Give the vertebrae with what only their neighbours say of them, remarks in one order."""
    ordered = sorted(column, key=lambda vertebra: vertebra.centre[2])
    below_gaps = [gap.lower for gap in checks.gaps_in(ordered)]
    for vertebra in column:
        index = next(i for i, each in enumerate(ordered) if each is vertebra)
        near = [*ordered[max(0, index - 2) : index], *ordered[index + 1 : index + 3]]
        said = {
            *vertebra.remarks,
            *([records.GAP_ABOVE] if any(each is vertebra for each in below_gaps) else []),
            *([records.WALK_ODD_VOLUME] if checks.odd_volume(vertebra, near) else []),
        }
        yield dataclasses.replace(vertebra, remarks=tuple(word for word in records.REMARKS if word in said))
