"""How much a reader should look at a case: the number by which the page of a report sorts its scans.

It is a sum of

- `1 - p`, where `p` is the probability of the sequence of labels,
- `1 - 1 / n`, where `n` is the number of sequences in the set with 95 %,
- the weight (`WEIGHTS`) of each kind of warning that there is, however many vertebrae it is about.

What is not known adds nothing: labels that only count vertebrae claim no level.
"""

from __future__ import annotations

from collections.abc import Iterable

from utils.prediction import quality
from utils.prediction.quality import CaseQuality

#: Kind of what is wrong with a case's files.
UNREADABLE = "unreadable"
#: A case without a result comes first; then what likely is a wrong outline or a missed vertebra. That a
#: vertebra is cut says something about the field of view alone.
WEIGHTS = {
    **dict.fromkeys((UNREADABLE, quality.NOTHING_FOUND), 3.0),
    **dict.fromkeys((quality.GAP, quality.ODD_VOLUME, quality.HU_DOUBT, quality.NO_CONVERGENCE), 1.0),
    **dict.fromkeys((quality.LOW_PROBABILITY, quality.ORIENTATION, quality.OTHER), 0.5),
    quality.PARTIAL: 0.0,
}
#: Names of the parts that are no warnings.
LABELS, SEQUENCES = "labels", "sequences"


def doubt_parts(known: CaseQuality | None, kinds: Iterable[str]) -> dict[str, float]:
    """Give what the doubt about a case is the sum of.

    Parameters
    ----------
    known : CaseQuality or None
        What is known of its labels.
    kinds : iterable of str
        Kinds of its warnings, keys of `WEIGHTS`.

    Returns
    -------
    dict of str to float
        The parts above 0 by name, the largest first.
    """
    parts = {kind: WEIGHTS[kind] for kind in kinds}
    if known is not None and known.sequence_probability is not None:
        parts[LABELS] = 1 - known.sequence_probability
    if known is not None and known.sequences:
        parts[SEQUENCES] = 1 - 1 / len(known.sequences)
    return {name: parts[name] for name in sorted(parts, key=lambda name: -parts[name]) if parts[name] > 0}
