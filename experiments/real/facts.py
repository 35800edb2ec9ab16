"""What is known of the real scans: where the bodies of their vertebrae lie, and which levels they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.verse.labels import code_of_name, rank_of_code

#: The facts that lie beside this module; README.md says how they were made.
FACTS_FILE = Path(__file__).with_name("centres.json")
#: What tells the levels of a scan apart, where it is in view.
ANCHORS = ("C2", "last rib", "sacrum")
#: Who gave the levels and centres: annotators, a program's mask, or a reader of pictures.
SOURCES = ("expert", "program", "eye")


@dataclass(frozen=True, eq=False)
class ScanFacts:
    """The vertebrae of one scan.

    Attributes
    ----------
    name : str
        Name of the scan in the file of facts.
    ct : Path
        The CT, relative to the folder of the real scans.
    patient : str
        Scans and masks of the same patient bear the same name.
    points_mm : dict of int to np.ndarray of float64, (3,)
        Centre of the vertebral body by VerSe code, from the top down, in world mm (RAS+) of the file: of
        every vertebra whose body centre lies inside the scan. The point of C1 would lie in the dens.
    cut : frozenset of int
        Codes of vertebrae whose body the field of view cuts.
    edge_mm : dict of int to np.ndarray of float64, (3,)
        Vertebrae whose body centre lies so close to the end of the scan, on either side of it, that a peak
        there is neither demanded nor false; not among `points_mm`.
    sacrum_mm : np.ndarray of float64, (3,), or None
        Centre of the first sacral body, if it lies inside the scan.
    labels : str
        Who gave the levels and centres, one of `SOURCES`.
    anchors : frozenset of str
        Those of `ANCHORS` that are in view.
    is_certain : bool
        False if all levels may be wrong by one, together.
    others : tuple of Path
        Files of the same patient, such as masks, beside the CT; relative as `ct` is.
    """

    name: str
    ct: Path
    patient: str
    points_mm: dict[int, np.ndarray]
    cut: frozenset[int]
    edge_mm: dict[int, np.ndarray]
    sacrum_mm: np.ndarray | None
    labels: str
    anchors: frozenset[str]
    is_certain: bool
    others: tuple[Path, ...]


def read_facts(path: Path = FACTS_FILE) -> dict[str, ScanFacts]:
    """Read the facts of all real scans.

    Parameters
    ----------
    path : Path
        JSON file as `centres.json` beside this module.

    Returns
    -------
    dict of str to ScanFacts
        By the name of the scan.

    Raises
    ------
    ValueError
        If a scan lacks a fact, names a level or anchor that does not exist, or says that a vertebra is cut
        which it does not hold. The text names the file and the scan.
    """
    scans = json.loads(path.read_text())["scans"]
    return {name: _named_facts(path, name, stored) for name, stored in scans.items()}


def scans_there(shared: Path) -> dict[str, ScanFacts]:
    """Give the facts of the scans whose CTs are there, below the folder that their paths start from."""
    return {name: facts for name, facts in read_facts().items() if (shared / facts.ct).is_file()}


def available_scans(shared: Path, names: Sequence[str] = ()) -> dict[str, ScanFacts]:
    """Give the facts of the scans whose CTs are there, at least one.

    Parameters
    ----------
    shared : Path
        Folder that the paths of the facts start from.
    names : sequence of str
        Those that are wanted; by default all.

    Returns
    -------
    dict of str to ScanFacts

    Raises
    ------
    ValueError
        If one that is wanted is not known, or none is there.
    """
    facts = read_facts()
    unknown = sorted(set(names) - set(facts))
    if unknown:
        raise ValueError(f"Expected scans of {list(facts)}, received {unknown}.")
    there = {name: scan for name, scan in scans_there(shared).items() if name in (names or facts)}
    if not there:
        raise ValueError(f"{shared}: expected the CTs of {list(names or facts)}, found none.")
    return there


def _named_facts(path: Path, name: str, stored: dict[str, Any]) -> ScanFacts:
    try:
        return _facts(name, stored)
    except KeyError as error:
        raise ValueError(f"{path}, {name}: expected the fact {error}, found none.") from None
    except ValueError as error:
        raise ValueError(f"{path}, {name}: {error}") from None


def _facts(name: str, stored: dict[str, Any]) -> ScanFacts:
    points = _points(stored["vertebrae"])
    cut = frozenset(code_of_name(level) for level in stored["cut"])
    _check_among(cut, points)
    _check_among(stored["anchors"], ANCHORS)
    _check_among([stored["labels"]], SOURCES)
    _check_among([stored["sure"]], ("certain", "within one"))
    return ScanFacts(
        name=name,
        ct=Path(stored["ct"]),
        patient=stored["patient"],
        points_mm=points,
        cut=cut,
        edge_mm=_points(stored["edge"]),
        sacrum_mm=None if stored["sacrum"] is None else _point(stored["sacrum"]),
        labels=stored["labels"],
        anchors=frozenset(stored["anchors"]),
        is_certain=stored["sure"] == "certain",
        others=tuple(map(Path, stored.get("others", ()))),
    )


def _points(stored: dict[str, Any]) -> dict[int, np.ndarray]:
    points = {code_of_name(level): _point(point) for level, point in stored.items()}
    return {code: points[code] for code in sorted(points, key=rank_of_code)}


def _check_among(found: Any, expected: Any) -> None:
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise ValueError(f"Expected some of {list(expected)}, found {unknown}.")


def _point(stored: Any) -> np.ndarray:
    point = np.array(stored, np.float64)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise ValueError(f"Expected three finite coordinates in mm, found {stored}.")
    return point
