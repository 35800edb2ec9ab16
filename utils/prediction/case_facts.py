"""What the walk and the numbering know of a case, in the words of its quality file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.localisation.identify import Identification, names_of
from utils.prediction.case import CasePrediction
from utils.prediction.quality import GAP, HU_DOUBT, ORIENTATION, OTHER, CaseQuality, Remark, case_remarks
from utils.walk import records
from utils.walk.records import WalkResult

#: The walk's remarks as those of the quality file.
_WALK_REMARKS = {
    records.CALLS_USED_UP: (OTHER, "the walk ended because it had asked the network as often as it may"),
}


def walk_remarks(found: WalkResult, names: Sequence[str]) -> list[Remark]:
    """Give the remarks of a walk.

    Parameters
    ----------
    found : WalkResult
        What the walk found.
    names : sequence of str
        Labels of its vertebrae, from the top down.

    Returns
    -------
    list of Remark
        A centre at which no vertebra could be outlined is a gap at the vertebra above it.
    """
    remarks = [Remark(kind, None, text) for kind, text in (_WALK_REMARKS[word] for word in found.remarks)]
    places = [vertebra.index for vertebra in found.vertebrae]
    for place in found.missed:
        above = [name for own, name in zip(places, names) if own is not None and own < place]
        text = f"a vertebra was found below {above[-1]}" if above else "a vertebra was found above the first"
        remarks.append(Remark(GAP, above[-1] if above else None, f"{text}, but could not be outlined"))
    return remarks


def facts_of_labels(identification: Identification | None, first_label: str | None) -> dict[str, Any]:
    """Give what `CaseQuality` holds of how labels were decided; a count, or none, has no probability."""
    if identification is not None and not identification.codes:
        return {"sequences": ()}
    if identification is None:
        return {"anchor": None if first_label is None else "first label given"}
    return {
        "anchor": identification.anchor,
        "sequence_probability": round(identification.sequence_probability, 4),
        "second_names": identification.second_names or None,
        "second_probability": round(identification.second_probability, 4),
        "sequences": tuple((names_of(codes), round(p, 4)) for codes, p in identification.sequence_set),
    }


def relabelled_quality(prediction: CasePrediction, known: CaseQuality | None) -> CaseQuality:
    """Give the quality of a case whose labels were changed.

    Parameters
    ----------
    prediction : CasePrediction
        With the new labels.
    known : CaseQuality or None
        That of the old ones. What it says of the scan stays, what it says of labels goes with them.

    Returns
    -------
    CaseQuality
    """
    known = known or CaseQuality(prediction.key, prediction.numbering.kind)
    kept = [remark for remark in known.warnings if remark.kind in (HU_DOUBT, ORIENTATION)]
    return CaseQuality(
        prediction.key,
        prediction.numbering.kind,
        **facts_of_labels(prediction.identification, None),
        no_spine=known.no_spine,
        seconds=known.seconds,
        network_calls=known.network_calls,
        papers=known.papers,
        warnings=case_remarks(prediction.table, kept),
    )
