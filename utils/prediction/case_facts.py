"""What the walk and the labelling know of a case, in the words of its quality file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.localisation.identify import Identification
from utils.prediction.derivatives import CasePrediction
from utils.prediction.quality import GAP, HU_DOUBT, LEAK, OTHER, CaseQuality, Remark, case_remarks
from utils.walk import records
from utils.walk.records import FoundVertebra

#: The walk's remarks as those of the quality file. That it did not come to rest stands in the table.
_VERTEBRA_REMARKS = {
    records.WALK_LEAK: (LEAK, "predicted together with part of its neighbour, which was cut off"),
}
_WALK_REMARKS = {
    records.CALLS_USED_UP: (OTHER, "the walk ended because it had asked the network as often as it may"),
}


def walk_remarks(
    of_walk: Sequence[str], vertebrae: Sequence[FoundVertebra], names: Sequence[str]
) -> list[Remark]:
    """Give the remarks of a walk.

    Parameters
    ----------
    of_walk : sequence of str
        `WalkResult.remarks`.
    vertebrae : sequence of FoundVertebra
        From the top down.
    names : sequence of str
        Their labels; those without one are left out.

    Returns
    -------
    list of Remark
        Those on the whole walk first. A gap stands at the vertebra above it, as those that follow from the
        table do.
    """
    remarks = [Remark(kind, None, text) for word, (kind, text) in _WALK_REMARKS.items() if word in of_walk]
    for place, (vertebra, name) in enumerate(zip(vertebrae, names)):
        if records.GAP_ABOVE in vertebra.remarks and place:
            remarks.append(Remark(GAP, names[place - 1], f"a vertebra may be missing above {name}"))
        found = [_VERTEBRA_REMARKS[word] for word in vertebra.remarks if word in _VERTEBRA_REMARKS]
        remarks += [Remark(kind, name, text) for kind, text in found]
    return remarks


def facts_of_labels(identification: Identification | None, first_label: str | None) -> dict[str, Any]:
    """Give what `CaseQuality` holds of how the labels were decided; counted vertebrae have no probability."""
    if identification is None:
        return {"anchor": None if first_label is None else "first label given"}
    return {
        "anchor": identification.anchor,
        "sequence_probability": round(identification.sequence_probability, 4),
        "second_names": identification.second_names or None,
        "second_probability": round(identification.second_probability, 4),
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
    kept = [remark for remark in known.warnings if remark.kind == HU_DOUBT]
    return CaseQuality(
        prediction.key,
        prediction.numbering.kind,
        **facts_of_labels(prediction.identification, None),
        seconds=known.seconds,
        network_calls=known.network_calls,
        warnings=case_remarks(prediction.table, kept),
    )
