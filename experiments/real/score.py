"""Score what was found in the real scans against what is known of them.

Command python experiments/real/score.py --heatmap MODELS/heatmap
        python experiments/real/score.py --predictions predictions --pictures pictures
Time    half a minute for the peaks, five seconds for predictions
Result  a table in Markdown, a row a scan, then the sums by who gave the labels

Reads   experiments/real/centres.json; with --heatmap the CTs that it names and a trained network; with
        --predictions what infer.py wrote of them
Writes  with --output the table, with --pictures a picture a scan: what was found (red), what is known (green)

A body has a peak of its own, one to one, if it is nearer than 12 mm and than half the distance to the body
beside it; a vertebra of its own, if a voxel of it lies within 4 mm of the body's centre and its centroid
within 15 mm. What is found at a body at the very end of the scan (`edge`) counts neither way.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.real.facts import SOURCES, ScanFacts, available_scans, read_facts
from experiments.real.findings import (
    Finding,
    finding_of_votes,
    load_localiser,
    look_for_vertebrae,
    read_prediction,
)
from experiments.real.look_at_scan import curved_views, draw, plain_views
from utils.files import write_text_whole
from utils.imaging.crops import box_between
from utils.imaging.formats import read_scan
from utils.imaging.grids import transform_points
from utils.imaging.volume import Volume
from utils.localisation.identify import names_of
from utils.tables import markdown_table
from utils.verse.labels import name_of_code

#: A peak is a body's own up to this distance, or up to half of that to the body beside it, in mm.
PEAK_MM = 12.0
#: A vertebra is a body's own with a voxel and with its centroid within these distances of the centre, mm.
VOXEL_MM, CENTROID_MM = 4.0, 15.0
#: What is found within this distance of a body at the end of the scan may belong to it, in mm.
EDGE_MM = 20.0
#: How far the slab of a picture reaches in front of the bodies' centres and behind them, in mm.
SLAB_MM = (20.0, 60.0)
#: What stands for a pair that is not allowed: more than all that are allowed together.
_NEVER_MM = 1e6


@dataclass(frozen=True)
class ScanScore:
    """How a scan was read.

    Attributes
    ----------
    facts : ScanFacts
        The scan.
    codes : tuple of int
        Labels found, from the top down; 0 for what was taken for no vertebra.
    truth : tuple of int
        The true code of each; 0 for what is none.
    confidence : float
        Probability of the labels given; NaN where it is not known.
    sequences : tuple of tuple of int
        The sequences that are said to hold the true one with 95 %; empty where they are not known.
    """

    facts: ScanFacts
    codes: tuple[int, ...]
    truth: tuple[int, ...]
    confidence: float = math.nan
    sequences: tuple[tuple[int, ...], ...] = ()

    @property
    def bodies(self) -> int:
        """Number of vertebrae whose body centre lies in the scan."""
        return len(self.facts.points_mm)

    @property
    def own(self) -> tuple[int, ...]:
        """Codes of the bodies that have something of their own."""
        return tuple(code for code in self.truth if code in self.facts.points_mm)

    @property
    def missed(self) -> tuple[int, ...]:
        """Codes of the bodies that have nothing."""
        return tuple(code for code in self.facts.points_mm if code not in self.truth)

    @property
    def false(self) -> int:
        """Number of those that belong to no body."""
        return self.truth.count(0)

    @property
    def right(self) -> int:
        """Number of bodies with something of their own that has the right level."""
        return sum(a == b for a, b in zip(self.codes, self.truth) if b in self.facts.points_mm)

    @property
    def is_right(self) -> bool:
        """Whether every body was found with its level, and nothing else."""
        return self.right == self.bodies and not self.false

    @property
    def holds_truth(self) -> bool | None:
        """Whether the true sequence is among those stated; None where none is."""
        return self.truth in self.sequences if self.sequences else None


# One scan ------------------------------------------------------------------------------------------


def score_scan(facts: ScanFacts, finding: Finding) -> ScanScore:
    """Score what was found in a scan.

    Parameters
    ----------
    facts : ScanFacts
        What is known of it.
    finding : Finding
        What was found.

    Returns
    -------
    ScanScore
    """
    decided = finding.identification
    stated = {} if decided is None else {"confidence": decided.sequence_probability}
    sequences = () if decided is None else tuple(codes for codes, _ in decided.sequence_set)
    return ScanScore(facts, finding.codes, true_codes(facts, finding), **stated, sequences=sequences)


def true_codes(facts: ScanFacts, finding: Finding) -> tuple[int, ...]:
    """Give the true code of everything found; 0 for what belongs to no body.

    Parameters
    ----------
    facts : ScanFacts
        What is known of the scan.
    finding : Finding
        What was found in it.

    Returns
    -------
    tuple of int
        What no body in the scan claims may belong to one at its end (`ScanFacts.edge_mm`).
    """
    truth = dict.fromkeys(range(len(finding.points_mm)), 0)
    for body, place in one_to_one(distances_of_own(facts, finding)):
        truth[place] = list(facts.points_mm)[body]
    left = [place for place, code in truth.items() if not code]
    to_edge = cdist(_array(facts.edge_mm), finding.points_mm[left])
    for body, place in one_to_one(np.where(to_edge <= EDGE_MM, to_edge, np.inf)):
        truth[left[place]] = list(facts.edge_mm)[body]
    return tuple(truth.values())


def distances_of_own(facts: ScanFacts, finding: Finding) -> np.ndarray:
    """Give how far everything found is from every body that it may belong to.

    Parameters
    ----------
    facts : ScanFacts
        The n bodies.
    finding : Finding
        The m vertebrae found.

    Returns
    -------
    np.ndarray of float64, (n, m)
        In mm; infinite where it cannot be the body's own.
    """
    bodies = _array(facts.points_mm)
    distance = cdist(bodies, finding.points_mm)
    if finding.mask is None:
        is_own = distance <= reach_of_bodies(facts)[:, None]
    else:
        near = [codes_near(finding.mask, body) for body in bodies]
        touches = [[code in codes for code in finding.codes] for codes in near]
        is_own = (distance <= CENTROID_MM) & np.array(touches, bool).reshape(distance.shape)
    return np.where(is_own, distance, np.inf)


def reach_of_bodies(facts: ScanFacts) -> np.ndarray:
    """Give how far a peak may lie from each body to be its own, (n,), in mm."""
    bodies = _array(facts.points_mm)
    between = cdist(bodies, np.concatenate([bodies, _array(facts.edge_mm)]))
    np.fill_diagonal(between, np.inf)
    return np.minimum(PEAK_MM, between.min(axis=1, initial=np.inf) / 2)


def codes_near(mask: Volume, point_mm: np.ndarray, *, reach_mm: float = VOXEL_MM) -> set[int]:
    """Give the labels that have a voxel's centre within a distance of a point.

    Parameters
    ----------
    mask : Volume of int
        Labels on any grid.
    point_mm : np.ndarray, (3,)
        World mm.
    reach_mm : float
        The distance.

    Returns
    -------
    set of int
        Without the background.
    """
    (centre,) = transform_points(point_mm[None], np.eye(4), mask.affine)
    reach = np.ceil(reach_mm / np.linalg.norm(mask.affine[:3, :3], axis=0)) + 1
    begin = np.clip(np.floor(centre - reach), 0, mask.shape).astype(int)
    end = np.clip(np.ceil(centre + reach) + 1, 0, mask.shape).astype(int)
    block = mask.data[box_between(begin, end)]
    labelled = np.argwhere(block)
    places_mm = transform_points(labelled + begin, mask.affine, np.eye(4))
    is_near = np.linalg.norm(places_mm - point_mm, axis=1) <= reach_mm
    return {int(code) for code in np.unique(block[tuple(labelled[is_near].T)])}


def one_to_one(distance: np.ndarray) -> list[tuple[int, int]]:
    """Pair rows with columns, as many as may be, with the least sum of distances.

    Parameters
    ----------
    distance : np.ndarray, (n, m)
        Infinite where a pair is not allowed.

    Returns
    -------
    list of tuple of int
        Row and column of each pair.
    """
    pairs = zip(*linear_sum_assignment(np.where(np.isfinite(distance), distance, _NEVER_MM)))
    return [(int(row), int(column)) for row, column in pairs if np.isfinite(distance[row, column])]


def _array(points_mm: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.array([*points_mm.values()], float).reshape(-1, 3)


# The table -----------------------------------------------------------------------------------------


def score_table(scores: Sequence[ScanScore]) -> pd.DataFrame:
    """Give a row a scan, then the sums: by who gave the labels, of all, and where an anchor is in view.

    Parameters
    ----------
    scores : sequence of ScanScore
        One a scan.

    Returns
    -------
    pd.DataFrame
        Bodies and those of their own are followed by the number of those that the field of view does not
        cut, in brackets.
    """
    with_spine = [score for score in scores if score.bodies]
    groups = {f"all by {source}": [s for s in with_spine if s.facts.labels == source] for source in SOURCES}
    groups["all"] = list(scores)
    groups["all with an anchor"] = [score for score in with_spine if score.facts.anchors]
    sums = [_sum_row(name, group) for name, group in groups.items() if group]
    return pd.DataFrame([*(_scan_row(score) for score in scores), *sums])


def _scan_row(score: ScanScore) -> dict[str, Any]:
    return {
        "scan": score.facts.name,
        "labels": score.facts.labels,
        "anchors in view": ", ".join(sorted(score.facts.anchors)) or "none",
        **_counts([score]),
        "scan right": _yes_or_no(score.is_right),
        "confidence": score.confidence,
        "95 % set": str(len(score.sequences)) if score.sequences else None,
        "truth in set": _yes_or_no(score.holds_truth),
        "bodies without": " ".join(map(name_of_code, score.missed)) or "none",
        "levels given": _range_of(score.codes),
    }


def _sum_row(name: str, scores: Sequence[ScanScore]) -> dict[str, Any]:
    stated = [score for score in scores if score.sequences]
    return {
        "scan": name,
        **_counts(scores),
        "scan right": _of([score.is_right for score in scores]),
        "confidence": _mean([score.confidence for score in stated]),
        "95 % set": _mean([len(score.sequences) for score in stated]),
        "truth in set": _of([score.holds_truth for score in stated]) if stated else None,
    }


def _counts(scores: Sequence[ScanScore]) -> dict[str, str]:
    cut = [len(score.facts.cut) for score in scores]
    bodies = sum(score.bodies for score in scores)
    own = sum(len(score.own) for score in scores)
    whole = sum(code not in score.facts.cut for score in scores for code in score.own)
    return {
        "bodies": f"{bodies} ({bodies - sum(cut)})",
        "own": f"{own} ({whole})",
        "own share": own / bodies if bodies else math.nan,
        "false": str(sum(score.false for score in scores)),
        "levels right": f"{sum(score.right for score in scores)} of {own}",
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _of(answers: Sequence[bool]) -> str:
    return f"{sum(answers)} of {len(answers)}"


def _yes_or_no(answer: bool | None) -> str | None:
    return None if answer is None else ("yes" if answer else "no")


def _range_of(codes: Sequence[int]) -> str:
    """Name the first and the last level, and say how many there are."""
    names = names_of(codes)
    return f"{names[0]} to {names[-1]}, {len(names)}" if names else "none"


# The whole -----------------------------------------------------------------------------------------


def picture_of(ct: Volume, score: ScanScore, finding: Finding, *, what: str) -> Figure:
    """Draw a scan with what was found in it (red crosses) and what is known of it (green circles).

    Parameters
    ----------
    ct : Volume
        The scan in HU.
    score : ScanScore
        How it was read.
    finding : Finding
        What was found.
    what : str
        What found it, for the title.

    Returns
    -------
    matplotlib.figure.Figure
        Not yet saved.
    """
    known_mm = _array(score.facts.points_mm)
    along = known_mm if len(known_mm) else finding.points_mm
    views = curved_views(ct, along, slab_mm=SLAB_MM) if len(along) else plain_views(ct)
    counts = f"{len(score.own)} of {score.bodies} bodies, {score.false} false, {score.right} levels right"
    title = f"{score.facts.name}, {what}: {counts}"
    figure = draw(views, names_of(finding.codes), finding.points_mm, title=title)
    circle = {"fillstyle": "none", "color": "lime", "markersize": 9}
    for axes, axis in zip(figure.axes, (0, 1)):
        axes.plot(known_mm[:, axis], known_mm[:, 2], "o", **circle)
    return figure


def report(findings: Mapping[str, Finding], shared: Path, *, what: str, pictures: Path | None = None) -> str:
    """Score what was found in scans, draw it, and give the table as text.

    Parameters
    ----------
    findings : mapping of str to Finding
        By the name of the scan.
    shared : Path
        Folder that the paths of the facts start from.
    what : str
        What found it: title of the table and part of the pictures' names.
    pictures : Path, optional
        Folder that receives a picture a scan.

    Returns
    -------
    str
        Markdown.
    """
    facts = read_facts()
    scores = {name: score_scan(facts[name], finding) for name, finding in findings.items()}
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name, score in scores.items():
            figure = picture_of(read_scan(shared / facts[name].ct), score, findings[name], what=what)
            figure.savefig(pictures / f"{name}-{what.replace(' ', '-')}.png", dpi=60)
    return f"## {what}\n\n{markdown_table(score_table([*scores.values()]))}\n"


def findings_of(chosen: argparse.Namespace) -> dict[str, dict[str, Finding]]:
    """Give what is to be scored, by what found it and by scan."""
    scans = available_scans(chosen.shared, chosen.scans)
    found = {}
    if chosen.heatmap is not None:
        networks = load_localiser(chosen.heatmap, chosen.labelling)
        found["peaks"] = {
            name: finding_of_votes(look_for_vertebrae(chosen.shared / facts.ct, networks))
            for name, facts in scans.items()
        }
    if chosen.predictions is not None:
        found["predictions"] = {n: read_prediction(f, chosen.predictions) for n, f in scans.items()}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and score; gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heatmap", type=Path, help="model directory of a network that finds vertebrae")
    parser.add_argument("--labelling", type=Path, help="that of the one for the levels; as infer.py has it")
    parser.add_argument("--predictions", type=Path, help="output folder of infer.py")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the real scans")
    parser.add_argument("--scans", nargs="+", default=(), help="names of the scans; by default all there are")
    parser.add_argument("--pictures", type=Path, help="folder that receives a picture a scan")
    parser.add_argument("--output", type=Path, help="file that receives the tables")
    chosen = parser.parse_args(arguments)
    if chosen.heatmap is None and chosen.predictions is None:
        parser.error("expected --heatmap or --predictions, received neither")
    try:
        found = findings_of(chosen)
        tables = [report(f, chosen.shared, what=w, pictures=chosen.pictures) for w, f in found.items()]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(tables))
    if chosen.output is not None:
        write_text_whole(chosen.output, "\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
