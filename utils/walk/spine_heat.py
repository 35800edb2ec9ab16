"""What the heatmap tells the walk: where the spine begins, where it ends, and what of it is not covered yet.

Heights are places along the third axis (I) of the working grid, in its voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.imaging.grids import transform_points
from utils.imaging.volume import Volume
from utils.walk.checks import USUAL_DISTANCE_MM, distances_voxels, heat_profile, uncovered_runs
from utils.walk.locate import point_below, top_of_spine
from utils.walk.records import FoundVertebra, WalkSettings

#: Heat must rise by this factor below a gap of the heatmap.
HEAT_RISES = 1.1
#: Heat further than this from a vertebra along P and R is not its spine's, which curves; hearts lie beyond.
NEAR_MM = 50.0
#: Vertebrae that the heat of the next one is compared with.
COMPARED_WITH = 3


class SpineHeat:
    """The heatmap of a scan, asked in voxels of the working grid.

    Parameters
    ----------
    heat : Volume
        Heatmap of the spine on any grid with the same axes.
    affine : np.ndarray, (4, 4)
        Affine of the working grid, to mm.
    settings : WalkSettings
        Thresholds, the rule that ends the walk, and the patch.
    is_trusted : bool
        False for a heatmap that led to nothing: it ends no walk, and leads none on.
    """

    def __init__(
        self, heat: Volume, affine: np.ndarray, settings: WalkSettings, *, is_trusted: bool = True
    ) -> None:
        self._heat, self._affine, self._settings = heat, affine, settings
        self._is_trusted = is_trusted
        self.profile, self.heights = heat_profile(heat, affine)

    def top(self) -> np.ndarray | None:
        """Give the hottest point of the top-most slice of the spine; None where there is no spine."""
        return top_of_spine(self._heat, self._affine, threshold=self._settings.heat_threshold)

    def step_down(self, point: np.ndarray) -> np.ndarray | None:
        """Give the hottest point a step further down the spine; None where it ends."""
        if not self._is_trusted:
            return None
        return point_below(
            self._heat,
            point,
            self._affine,
            distance_mm=self._settings.step_down_mm,
            threshold=self._settings.heat_threshold,
        )

    def hottest_at(self, height: float) -> np.ndarray:
        """Give the hottest point of the slice nearest to a height."""
        index = int(np.argmin(np.abs(self.heights - height)))
        within = np.unravel_index(np.argmax(self._heat.data[:, :, index]), self._heat.shape[:2])
        return transform_points(np.array([*within, index], float), self._heat.affine, self._affine)[0]

    def is_spine(self, point: np.ndarray, column: Sequence[FoundVertebra]) -> bool:
        """Whether the spine of the vertebrae found so far runs through the height of a point."""
        height = np.array([point[2]])
        return self._is_trusted and bool(
            np.interp(height, self.heights, self.profile) >= self._needed(height, column)
        )

    def ends_before(self, vertebra: FoundVertebra, found: Sequence[FoundVertebra]) -> bool:
        """Whether a vertebra lies below the spine: its heat is low beside that of the last ones found.

        The robust walk goes on where the heat rises again below: the vertebra lies in a gap of the heatmap.
        """
        settings = self._settings
        if not self._is_trusted or settings.end_rule != "relative" or not found:
            return False
        level = settings.relative_heat * np.mean([each.heat for each in found[-COMPARED_WITH:]])
        if vertebra.heat >= level:
            return False
        return not (settings.robust and self._rises_below(vertebra, level))

    def _rises_below(self, vertebra: FoundVertebra, level: float) -> bool:
        profile = self._profile_near(vertebra.centre)
        here = np.interp(vertebra.centre[2], self.heights, profile)
        below = profile[self.heights > vertebra.centre[2]]
        return below.max(initial=0.0) >= max(level, self._settings.heat_threshold, HEAT_RISES * here)

    def _profile_near(self, point: np.ndarray) -> np.ndarray:
        """Give the largest heat of every slice near a point: beside a gap of the spine's may be another's."""
        middle = transform_points(point[None], self._affine, self._heat.affine)[0, :2]
        reach = NEAR_MM / np.linalg.norm(self._heat.affine[:3, :2], axis=0)
        shape = np.array(self._heat.shape[:2])
        begin = np.clip(np.floor(middle - reach), 0, shape - 1).astype(int)
        end = np.clip(np.ceil(middle + reach) + 1, begin + 1, shape).astype(int)
        return self._heat.data[begin[0] : end[0], begin[1] : end[1]].max(axis=(0, 1))

    def uncovered(
        self, column: Sequence[FoundVertebra], looks: Sequence[float] = ()
    ) -> list[tuple[float, float]]:
        """Give the stretches with the spine's heat that no vertebra covers, nor a look that was in vain.

        Parameters
        ----------
        column : sequence of FoundVertebra
            The vertebrae found so far, from the top down.
        looks : sequence of float
            Heights of patches that showed nothing new.

        Returns
        -------
        list of (float, float)
            First and last height of each, from the top down.
        """
        if not self._is_trusted:
            return []
        settings = self._settings
        distances = distances_voxels(column)
        usual = float(np.median(distances)) if distances.size else USUAL_DISTANCE_MM / settings.spacing_mm
        covered = []
        for vertebra in column:
            heights = vertebra.begin[2] + np.flatnonzero(vertebra.mask.any(axis=(0, 1)))
            covered.append((heights[0] - usual / 2, heights[-1] + usual / 2))
        # Downwards less: what lies there may have been hidden by what the patch showed above it.
        above, below = settings.patch_voxels / 4, settings.patch_voxels / 8
        covered += [(height - above, height + below) for height in looks]
        return uncovered_runs(self._is_hot(column), self.heights, covered, least=usual)

    def middle_of_missed(self, column: Sequence[FoundVertebra]) -> float | None:
        """Give the middle of the longest stretch of spine not covered; None where most of the spine is."""
        runs = self.uncovered(column)
        spine = np.count_nonzero(self._is_hot(column)) * np.ptp(self.heights[:2])
        if sum(end - begin for begin, end in runs) <= spine / 2:
            return None
        begin, end = max(runs, key=lambda run: run[1] - run[0])
        return (begin + end) / 2

    def _is_hot(self, column: Sequence[FoundVertebra]) -> np.ndarray:
        """Whether each slice has the heat of the spine."""
        return self.profile >= self._needed(self.heights, column)

    def _needed(self, heights: np.ndarray, column: Sequence[FoundVertebra]) -> np.ndarray:
        """Give the heat from which a slice is of the spine: relative to the three nearest vertebrae."""
        settings = self._settings
        if settings.end_rule != "relative" or not column:
            return np.full(len(heights), settings.heat_threshold)
        centres = np.array([each.centre[2] for each in column])
        heat = np.interp(centres, self.heights, self.profile)
        nearest = np.argsort(np.abs(heights[:, None] - centres), axis=1)[:, :COMPARED_WITH]
        return np.maximum(settings.heat_threshold, settings.relative_heat * heat[nearest].mean(axis=1))
