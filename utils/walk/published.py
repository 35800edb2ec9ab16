"""The published walk down the spine: one vertebra after the other, led by the heatmap.

The segmentation network sees a patch of the CT and the *memory*, the vertebrae found so far, and gives
the first vertebra that the memory does not hold. The walk moves the patch to the centre of what it gives
until the centre rests, writes the vertebra, and asks again (Serrador et al. 2024, after Lessmann et al.,
Medical Image Analysis 53 (2019) 142).

What is left open there:

- *Empty prediction*, or one mostly made of voxels already given: the patch moves a quarter of its edge
  down the heatmap, a few times at most, then the walk ends.
- *A fragment*, under the minimum volume even where the patch rests on it, such as what the field of view
  leaves of a vertebra: it goes into the memory without becoming a vertebra, a few times at most. Ignored,
  it would stay the first that the memory does not hold, and the walk would never get past it.
- *No rest* after `max_steps`: one last prediction at the mean of the last three centres.
- *Specks*: only the largest connected component counts, for the mask and for the centre.

Nothing given to one vertebra is given to another. Every loop is bounded, whatever the network answers, and
so is the number of calls (`WalkSettings.max_calls`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist

from utils.imaging.volume import Volume
from utils.walk import records
from utils.walk.locate import heat_at, point_below, top_of_spine
from utils.walk.look import PatchReader, field_of, is_cut, new_part_of_largest, vertebra_of
from utils.walk.records import FoundVertebra, PredictPatch, WalkResult, WalkSettings


def walk_published(ct: Volume, heat: Volume, predict: PredictPatch, *, settings: WalkSettings) -> WalkResult:
    """Find the vertebrae of a scan from the top of its heatmap down, as published.

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
        The vertebrae in the order of finding; none if the heat nowhere reaches the threshold.

    Raises
    ------
    ValueError
        If `predict` gives another shape than the patch's, or NaN.
    """
    run = _PublishedWalk(ct, heat, predict, settings)
    point = top_of_spine(heat, ct.affine, threshold=settings.heat_threshold)
    while point is not None and len(run.found) < settings.max_vertebrae and not run.reader.exhausted:
        vertebra = run.next_from(point)
        if vertebra is None:
            break
        run.take(vertebra)
        point = None if vertebra.heat < settings.heat_threshold else vertebra.centre
    remarks = (records.CALLS_USED_UP,) if run.reader.exhausted else ()
    labels = Volume(np.where(run.labels == records.FRAGMENT, 0, run.labels).astype(np.uint8), ct.affine)
    return WalkResult(tuple(run.found), labels, run.reader.calls, remarks, tuple(run.reader.trace))


class _PublishedWalk:
    """What one walk has found so far."""

    def __init__(self, ct: Volume, heat: Volume, predict: PredictPatch, settings: WalkSettings) -> None:
        self.ct, self.heat, self.settings = ct, heat, settings
        self.reader = PatchReader(ct, predict, settings)
        self.labels = np.zeros(ct.shape, np.uint8)
        self.found: list[FoundVertebra] = []
        self.field = field_of(ct)

    def next_from(self, point: np.ndarray | None) -> FoundVertebra | None:
        """Find the next vertebra from a point down, past fragments and patches that show nothing new."""
        settings = self.settings
        least_voxels = settings.min_volume_mm3 / settings.spacing_mm**3
        fragments = steps_down = 0
        while point is not None:
            vertebra = self._rest(point)
            if vertebra is None:
                point, steps_down = self._step_down(point), steps_down + 1
            elif np.count_nonzero(vertebra.mask) >= least_voxels:
                return vertebra
            else:
                self.reader.note("passed over: a fragment", vertebra)
                self.labels[vertebra.box][vertebra.mask] = records.FRAGMENT
                point, fragments = vertebra.centre, fragments + 1
            if fragments > settings.max_fragments or steps_down > settings.max_steps_down:
                return None
        return None

    def take(self, vertebra: FoundVertebra) -> None:
        """Write a vertebra."""
        self.found.append(vertebra)
        self.labels[vertebra.box][vertebra.mask] = len(self.found)
        self.reader.note("accepted", vertebra)

    def _step_down(self, point: np.ndarray) -> np.ndarray | None:
        settings = self.settings
        ways = {"distance_mm": settings.step_down_mm, "threshold": settings.heat_threshold}
        return point_below(self.heat, point, self.ct.affine, **ways)

    def _rest(self, point: np.ndarray) -> FoundVertebra | None:
        """Move the patch to the centre of what it shows until that rests; None if nothing new is seen."""
        before = self.reader.calls
        seen: list[FoundVertebra] = []
        rests = False
        while len(seen) < self.settings.max_steps and not rests:
            view = self._look(point)
            if view is None:
                return None
            seen.append(view)
            point = view.centre
            rests = _rests([each.centre for each in seen[-3:]], self.settings)
        last = seen[-1]
        if not rests:
            # A mean between two vertebrae may show nothing; the last prediction is still a vertebra.
            last = self._look(np.mean([each.centre for each in seen[-3:]], axis=0)) or last
        return dataclasses.replace(
            last,
            heat=float(heat_at(self.heat, last.centre[None], self.ct.affine)[0]),
            steps=len(seen) + (not rests),
            converged=rests,
            calls=self.reader.calls - before,
            partial=is_cut(last, self.field),
        )

    def _look(self, point: np.ndarray) -> FoundVertebra | None:
        answer = self.reader.read(point, self.labels)
        if answer is None:
            return None
        new, largest = new_part_of_largest(answer.mask, self.labels[answer.box] > 0)
        if not new.any():
            return None
        vertebra = vertebra_of(answer.begin, answer.probability, new, self.settings.probability_threshold)
        # The published centre is that of the whole prediction.
        centre = np.array(ndimage.center_of_mass(largest)) + answer.begin
        vertebra = dataclasses.replace(vertebra, centre=centre)
        self.reader.note("a vertebra that is new", vertebra)
        return vertebra


def _rests(centres: list[np.ndarray], settings: WalkSettings) -> bool:
    return len(centres) == 3 and pdist(centres).max() * settings.spacing_mm < settings.rest_mm
