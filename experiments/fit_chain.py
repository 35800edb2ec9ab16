"""Fit what a chain of peaks is weighed with (`ChainSettings`), on drawn scans that were held out of training.

Command python experiments/fit_chain.py MODELS/heatmap MODELS/labelling HEATMAP/3mm/validation
Time    about ten minutes on two CPU cores for 40 scans and 60 without a spine
Result  prints the settings that scored best so far, ties too; one of the best was entered by hand in
        utils/localisation/chain.py

Reads   model directories of train_heatmap.py and train_labelling.py, and prepared scans; scans without a
        spine are drawn beside them
Writes  nothing

Every setting of a grid scores a point for every body that a vertebra of its chain lies on, and loses one for
every vertebra on none; a scan without a spine that gets one costs as many points as it gets vertebrae. A
vertebra that the end of the scan cuts, its centre beyond it, counts neither way. Real scans take no part, as
they are reported on.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.real.findings import load_localiser
from experiments.real.score import one_to_one
from utils.imaging.grids import transform_points
from utils.imaging.resampling import working_ct
from utils.imaging.volume import Volume
from utils.learning.localiser import END_RADIUS_MM, beyond_the_ends
from utils.learning.spine_cases import read_spine_data
from utils.localisation.candidates import Candidates, Peaks, localise, read_candidates
from utils.localisation.chain import LEAST_HEAT, USUAL, ChainSettings, chain_of
from utils.prediction.networks import Networks
from utils.preparation.spine_case import KnownSpine
from utils.synthetic.no_spine import NO_SPINE_KINDS, draw_no_spine

#: A peak stands for a body up to this far from its centre, or half of the distance to the next one.
NEAR_MM = 12.0
#: Seed of the scans without a spine, which no other experiment draws, and how many there are of each kind.
SEED, OF_A_KIND = 9103, 10
#: What is tried.
GRID = {
    "heat_slope": (0.0, 4.0, 8.0),
    "heat_middle": (0.5, 0.7),
    "no_spine": (-8.0, -11.0, -14.0, -17.0),
    "skip": (-3.0, -5.0),
    "levels": (0.5, 1.0),
}


class HeldOut(NamedTuple):
    """A scan that took no part in the training.

    Attributes
    ----------
    candidates : Candidates
        What the networks say of it.
    sacra : Peaks
        Candidates for the centre of S1.
    bodies_mm : np.ndarray, (n, 3)
        The true centres.
    codes : tuple of int
        Their levels.
    hidden_mm : np.ndarray, (m, 3)
        Where vertebrae may lie that are not known, or whose centre lies beyond the scan.
    """

    candidates: Candidates
    sacra: Peaks
    bodies_mm: np.ndarray
    codes: tuple[int, ...]
    hidden_mm: np.ndarray

    def marks(self, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tell which points lie on a body of their own, and which of the others are false."""
        own = body_of(points_mm, self.bodies_mm) >= 0
        away = np.linalg.norm(points_mm[:, None] - self.hidden_mm[None], axis=2)
        return own, ~own & (away.min(axis=1, initial=np.inf) > END_RADIUS_MM)


def candidates_of(heatmap: Path, labelling: Path, folder: Path, *, keys: str = "*") -> Iterator[HeldOut]:
    """Look at each prepared scan whose key fits a pattern."""
    networks = load_localiser(heatmap, labelling)
    data, bad = read_spine_data(folder)
    if bad or not data.cases:
        raise ValueError(bad[0] if bad else f"{folder}: expected prepared scans, found none.")
    for case in (each for each in data.cases if fnmatch.fnmatchcase(each.key, keys)):
        ct = case.stored.mapped()
        hidden = hidden_points(case.spine, ct.shape, networks.heatmap_mm)
        bodies, hidden = (
            transform_points(points, ct.affine, np.eye(4)) for points in (case.spine.points, hidden)
        )
        yield HeldOut(*_look(ct, networks), bodies, case.spine.codes, hidden)


def without_spine(heatmap: Path, labelling: Path, *, of_a_kind: int = OF_A_KIND) -> Iterator[HeldOut]:
    """Draw scans of each kind without a spine, and look at them."""
    networks, nobody = load_localiser(heatmap, labelling), np.zeros((0, 3))
    for kind in NO_SPINE_KINDS:
        for number in range(of_a_kind):
            drawn = draw_no_spine(SEED, number, kind=kind)
            ct = working_ct(Volume(drawn.ct, drawn.affine), networks.heatmap_mm)
            yield HeldOut(*_look(ct, networks), nobody, (), nobody)


def _look(ct: Volume, networks: Networks) -> tuple[Candidates, Peaks]:
    scan = localise(ct, networks.heat, outside=networks.heatmap_outside)
    return read_candidates(scan, ct, networks.labels, least=LEAST_HEAT)[:2]


def hidden_points(spine: KnownSpine, shape: tuple[int, ...], spacing_mm: float) -> np.ndarray:
    """Give where vertebrae may be seen that have no point, (n, 3), in voxels.

    Parameters
    ----------
    spine : KnownSpine
        Where all vertebrae of the scan are known, those count whose centre lies beyond it.
    shape : tuple of int, 3
        Shape of the scan.
    spacing_mm : float
        Its spacing.
    """
    beyond = beyond_the_ends(dataclasses.replace(spine, is_complete=False), spacing_mm)
    is_inside = np.all((beyond > -0.5) & (beyond < np.array(shape) - 0.5), axis=1)
    return beyond[~is_inside] if spine.is_complete else beyond


def body_of(points_mm: np.ndarray, bodies_mm: np.ndarray) -> np.ndarray:
    """Give the place of the body that each point stands for, one to one, -1 for none, (n,)."""
    places = np.full(len(points_mm), -1)
    if len(points_mm) and len(bodies_mm):
        between = cdist(bodies_mm, bodies_mm) + np.diag(np.full(len(bodies_mm), np.inf))
        reach = np.minimum(NEAR_MM, between.min(axis=1) / 2)
        away = cdist(points_mm, bodies_mm) / reach
        for point, body in one_to_one(np.where(away < 1, away, np.inf)):
            places[point] = body
    return places


def score(settings: ChainSettings, scans: Sequence[HeldOut]) -> tuple[int, int]:
    """Give bodies with a vertebra of their own, and vertebrae on none, over all scans."""
    own = false = 0
    for scan in scans:
        chain = chain_of(scan.candidates, settings)
        if chain.has_spine:
            is_own, is_false = scan.marks(chain.candidates.points_mm)
            own, false = own + int(is_own.sum()), false + int(is_false.sum())
    return own, false


def main(heatmap: Path, labelling: Path, folder: Path) -> None:
    """Fit, and print a line for every setting that is the best so far."""
    scans = [*candidates_of(heatmap, labelling, folder), *without_spine(heatmap, labelling)]
    bodies, peaks = (sum(map(len, each)) for each in zip(*((s.bodies_mm, s.candidates) for s in scans)))
    print(f"{bodies} bodies, {peaks} peaks. As it is: {score(USUAL, scans)}", flush=True)
    best = -np.inf
    for values in itertools.product(*GRID.values()):
        weights = dict(zip(GRID, values))
        own, false = score(dataclasses.replace(USUAL, **weights), scans)
        if own - false >= best:
            best = own - false
            print(f"{own} own, {false} false: {weights}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heatmap", type=Path, help="model directory")
    parser.add_argument("labelling", type=Path, help="model directory")
    parser.add_argument("folder", type=Path, help="prepared scans")
    chosen = parser.parse_args()
    main(chosen.heatmap, chosen.labelling, chosen.folder)
