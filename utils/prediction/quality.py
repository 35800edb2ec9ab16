"""What is known about a case beside its table: how its count is anchored, what it cost, and what is odd.

The remarks that follow from the table alone are worked out here, by pure functions; others come from
where they were seen (the walk, the labelling, the reading of the scan).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import read_json, write_text_whole
from utils.prediction.papers import ScanPapers, papers_of
from utils.verse.labels import LEVEL_NAMES

#: End of the name of a case's file.
QUALITY_SUFFIX = "_quality.json"

GAP = "gap"
PARTIAL = "partial"
NO_CONVERGENCE = "no convergence"
ODD_VOLUME = "odd volume"
LOW_PROBABILITY = "low probability"
HU_DOUBT = "hu doubt"
ORIENTATION = "orientation assumed"
NOTHING_FOUND = "nothing found"
OTHER = "other"
#: What a remark may be about.
REMARK_KINDS = (
    *(NOTHING_FOUND, GAP, PARTIAL, NO_CONVERGENCE),
    *(ODD_VOLUME, LOW_PROBABILITY, HU_DOUBT, ORIENTATION, OTHER),
)

#: Volume against the median of the neighbours. Complete vertebrae of five labelled CTs have .81 to 1.39 (a C2
#: the largest), those of 30 phantoms, wedged ones among them, .55 to 1.63; two taken for one have about 2.
ODD_VOLUME_RATIOS = (0.5, 1.8)
#: Distance to the next centre against the median of the neighbouring distances. The same masks reach 1.26 at
#: most; where a vertebra was missed it is about 2.
GAP_RATIO = 1.5
#: Mean probability of a vertebra's voxels, which all have at least .5. Networks trained for 15 minutes reach
#: .84 to .93 on whole phantoms.
LOW_MEAN_PROBABILITY = 0.75
#: Probability of a label: of those below it more than one in four is wrong, if it means what it says.
LOW_LABEL_PROBABILITY = 0.75
#: Neighbours on either side that a vertebra is compared with, and the fewest that allow it.
_REACH, _FEWEST_NEIGHBOURS = 2, 2


@dataclass(frozen=True)
class Remark:
    """Something that a user should look at.

    Attributes
    ----------
    kind : str
        One of `REMARK_KINDS`.
    vertebra : str or None
        Name of the vertebra; None if it is about the whole scan.
    text : str
        What was found.
    """

    kind: str
    vertebra: str | None
    text: str

    def __post_init__(self) -> None:
        """Refuse a kind that no filter knows."""
        if self.kind not in REMARK_KINDS:
            raise ValueError(f"Expected a remark of kind {', '.join(REMARK_KINDS)}, received {self.kind!r}.")


@dataclass(frozen=True)
class CaseQuality:
    """What is known about a case beside its table; None stands for what is not known.

    Attributes
    ----------
    case : str
        The case, such as "sub-verse500_dir-ax".
    kind : str
        What the labels mean, "count" or "anatomical".
    anchor : str, optional
        What fixed the labels, such as "sacrum below".
    sequence_probability : float, optional
        Probability of the labels, taken together.
    second_names : tuple of str, optional
        The runner-up labels from the top down.
    second_probability : float, optional
        Their probability.
    sequences : tuple of (tuple of str, float), optional
        The fewest sequences of labels, with their probabilities, that together have 95 %.
    no_spine : bool
        Whether no vertebra was found.
    seconds : float, optional
        Time that the case took.
    network_calls : int, optional
        Patches that the segmentation network was shown.
    warnings : tuple of Remark
        What a user should look at.
    papers : ScanPapers, optional
        What was read of the scan.
    """

    case: str
    kind: str
    anchor: str | None = None
    sequence_probability: float | None = None
    second_names: tuple[str, ...] | None = None
    second_probability: float | None = None
    sequences: tuple[tuple[tuple[str, ...], float], ...] | None = None
    no_spine: bool = False
    seconds: float | None = None
    network_calls: int | None = None
    warnings: tuple[Remark, ...] = ()
    papers: ScanPapers | None = None

    @property
    def anchors(self) -> frozenset[str]:
        """The single anchors that the count holds on to."""
        return frozenset((self.anchor or "").split(" and "))


_FIELDS = tuple(field.name for field in dataclasses.fields(CaseQuality))
_NUMBERS = ("sequence_probability", "second_probability", "seconds", "network_calls")

# Remarks that follow from the table ----------------------------------------------------------------


def number_in(row: Mapping[str, Any], column: str) -> float | None:
    """Read a number of a table's row, which may be text; None if it is absent, empty or not finite."""
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def percent(probability: float) -> str:
    """Give a probability for a reader, such as "87 %"; one that is nearly certain or impossible as such."""
    if probability < 0.005:
        return "<1 %"
    return ">99 %" if probability >= 0.995 else f"{100 * probability:.0f} %"


def case_remarks(table: Sequence[Mapping[str, Any]], extra: Sequence[Remark] = ()) -> tuple[Remark, ...]:
    """Give all remarks on a case.

    Parameters
    ----------
    table : sequence of mapping
        A row a vertebra from the top down, `case.TABLE_COLUMNS`; `partial` and `label_probability`
        count where they are there.
    extra : sequence of Remark
        What was seen elsewhere. It stands first, and instead of a remark of the same kind on the same
        vertebra.

    Returns
    -------
    tuple of Remark
        Each kind at most once a vertebra from the table: no convergence, odd volume, low probability,
        partial, gap (on the upper of its two vertebrae), and nothing found where the table is empty.
    """
    known = {(remark.kind, remark.vertebra) for remark in extra}
    derived = [remark for remark in _table_remarks(table) if (remark.kind, remark.vertebra) not in known]
    return (*extra, *derived)


def _table_remarks(table: Sequence[Mapping[str, Any]]) -> list[Remark]:
    if not table:
        return [Remark(NOTHING_FOUND, None, "no vertebra found")]
    remarks = []
    for position, row in enumerate(table):
        found = {
            PARTIAL: "cut by the field of view" if is_partial(row) else None,
            NO_CONVERGENCE: _convergence_text(row),
            ODD_VOLUME: _volume_text(table, position),
            LOW_PROBABILITY: _probability_text(row),
            GAP: _gap_text(table, position),
        }
        remarks += [Remark(kind, str(row.get("name")), text) for kind, text in found.items() if text]
    return remarks


def is_partial(row: Mapping[str, Any]) -> bool:
    """Tell whether a row says that its vertebra is cut; no word of it counts as complete."""
    return str(row.get("partial")).lower() in ("1", "1.0", "true")


def _convergence_text(row: Mapping[str, Any]) -> str | None:
    if number_in(row, "converged") != 0:
        return None
    steps = number_in(row, "steps")
    return "the walk did not come to rest" + (f" in {steps:.0f} steps" if steps else "")


def _probability_text(row: Mapping[str, Any]) -> str | None:
    voxels, label = number_in(row, "mean_probability"), number_in(row, "label_probability")
    low = []
    if voxels is not None and voxels < LOW_MEAN_PROBABILITY:
        low.append(f"voxels {voxels:.2f}")
    if label is not None and label < LOW_LABEL_PROBABILITY:
        low.append(f"label {label:.2f}")
    return ", ".join(low) or None


def _volume_text(table: Sequence[Mapping[str, Any]], position: int) -> str | None:
    volumes = [None if is_partial(row) else number_in(row, "volume_mm3") for row in table]
    ratio = _ratio_to_neighbours(volumes, position)
    low, high = ODD_VOLUME_RATIOS
    if ratio is None or low <= ratio <= high:
        return None
    return f"{volumes[position] / 1000:.1f} cm³, {ratio:.1f} times its neighbours' median"


def _gap_text(table: Sequence[Mapping[str, Any]], position: int) -> str | None:
    """Say what speaks for a missed vertebra between this one and the next: labels, distance, or both."""
    if position + 1 >= len(table):
        return None
    below = table[position + 1].get("name")
    left_out = _levels_between(str(table[position].get("name")), str(below))
    texts = [f"{', '.join(left_out)} not found"] if left_out else []
    distances = [_distance(upper, lower) for upper, lower in itertools.pairwise(table)]
    ratio = _ratio_to_neighbours(distances, position)
    if ratio is not None and ratio > GAP_RATIO:
        texts.append(f"{distances[position]:.0f} mm to {below}, {ratio:.1f} times the spacing around")
    return "; ".join(texts) or None


def _levels_between(above: str, below: str) -> list[str]:
    """Give the levels that labels leave out; T13 is rare, and T12 is absent in some spines."""
    if above not in LEVEL_NAMES or below not in LEVEL_NAMES:
        return []
    between = LEVEL_NAMES[LEVEL_NAMES.index(above) + 1 : LEVEL_NAMES.index(below)]
    left_out = [name for name in between if name != "T13"]
    return [] if left_out == ["T12"] else left_out


def _distance(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> float | None:
    columns = ("centre_x", "centre_y", "centre_z")
    ends = [[number_in(row, column) for column in columns] for row in (upper, lower)]
    return None if any(None in end for end in ends) else math.dist(*ends)


def _ratio_to_neighbours(values: Sequence[float | None], position: int) -> float | None:
    first = max(0, position - _REACH)
    around = [*values[first:position], *values[position + 1 : position + 1 + _REACH]]
    known = [value for value in around if value is not None]
    if values[position] is None or len(known) < _FEWEST_NEIGHBOURS or np.median(known) <= 0:
        return None
    return float(values[position] / np.median(known))


# File ----------------------------------------------------------------------------------------------


def write_quality(path: Path, quality: CaseQuality) -> None:
    """Write what is known about a case as JSON, whole or not at all."""
    write_text_whole(path, quality_json(quality))


def quality_json(quality: CaseQuality) -> str:
    """Give the text of `<key>_quality.json`."""
    return json.dumps(dataclasses.asdict(quality), indent=2) + "\n"


def read_quality(path: Path) -> CaseQuality | None:
    """Read what is known about a case.

    Parameters
    ----------
    path : Path
        File of `write_quality`.

    Returns
    -------
    CaseQuality or None
        None if there is no such file: older predictions have none. Fields that the file lacks have their
        default; those that this version does not know are left out.

    Raises
    ------
    ValueError
        If the file holds something else; the text names it.
    """
    if not path.is_file():
        return None
    plain = read_json(path, "what is known about a case")
    try:
        return _quality_of(plain)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected what is known about a case, found {error!r:.200}.") from None


def _quality_of(plain: Mapping[str, Any]) -> CaseQuality:
    known = {name: plain[name] for name in _FIELDS if name in plain}
    for name in _NUMBERS:
        if known.get(name) is not None and number_in(known, name) is None:
            raise ValueError(f"expected a number as {name}, received {known[name]!r}")
    second = known.get("second_names")
    return CaseQuality(
        **{
            **known,
            **{name: str(plain[name]) for name in ("case", "kind")},
            **{name: number_in(known, name) for name in _NUMBERS},
            "network_calls": known.get("network_calls") and int(known["network_calls"]),
            "second_names": None if second is None else tuple(map(str, second)),
            "sequences": _sequences_of(known.get("sequences")),
            "no_spine": bool(known.get("no_spine", False)),
            "warnings": tuple(_remark_of(each) for each in known.get("warnings", ())),
            "papers": None if known.get("papers") is None else papers_of(known["papers"]),
        }
    )


def _sequences_of(plain: Any) -> tuple[tuple[tuple[str, ...], float], ...] | None:
    if plain is None:
        return None
    return tuple((tuple(map(str, names)), float(share)) for names, share in plain)


def _remark_of(plain: Mapping[str, Any]) -> Remark:
    vertebra = plain["vertebra"]
    return Remark(plain["kind"], None if vertebra is None else str(vertebra), str(plain["text"]))
