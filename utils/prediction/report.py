"""Tables, figure and summary of an evaluation, computed from the scores of its vertebrae and written."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.files import written_whole
from utils.prediction.metrics import Numbering, VertebraScore
from utils.tables import cell, markdown_table
from utils.verse.labels import LEVEL_NAMES, name_of_code, rank_of_code, region_of_code

Status = Literal["scored", "no prediction", "bad prediction", "bad reference"]
REGIONS = ("cervical", "thoracic", "lumbar")
#: Okabe and Ito's colours, told apart with any colour vision.
REGION_COLOURS = {"cervical": "#0072B2", "thoracic": "#D55E00", "lumbar": "#009E73"}
_FEWEST_FOR_BOX = 5

_EXPLANATION = """\
Means run over all reference vertebrae; in the mean Dice a missed one counts 0. *Found*:
Dice of at least {found_dice:g}; *missed*: the rest. *Extra*: predicted, at most a tenth of it in any
reference vertebra, and not touching the border of the volume. Surface distances are means over the
vertebrae whose match overlaps them. Identification rate and localisation error follow VerSe (Sekuboyina
et al., 2021), with the centres of the masks. "–" stands where nothing is defined, such as the label of
vertebrae that are only counted.
"""


@dataclass(frozen=True)
class CaseResult:
    """What the evaluation of one case gave.

    Attributes
    ----------
    key, split : str
        The case, as in `utils.verse.cases.Case`.
    status : str
        "scored", or why it was not; with "no prediction" and "bad prediction" all vertebrae are missed.
    numbering : str
        How its prediction is numbered, "" without one.
    scores : tuple of VertebraScore
        Empty with a bad reference.
    message : str
        What is wrong, "" if nothing is.
    """

    key: str
    split: str
    status: Status
    numbering: Numbering | Literal[""] = ""
    scores: tuple[VertebraScore, ...] = ()
    message: str = ""


def vertebra_table(results: Sequence[CaseResult]) -> pd.DataFrame:
    """Give a table with a row a vertebra: the reference's, and the predicted ones without a reference.

    Parameters
    ----------
    results : sequence of CaseResult
        The evaluated cases.

    Returns
    -------
    pd.DataFrame
        Columns case, name, region and the fields of `VertebraScore`. Name and region are empty for
        a predicted vertebra that is only counted. Sorted from the top down within a case.
    """
    columns = ["case", "name", "region", *(field.name for field in dataclasses.fields(VertebraScore))]
    rows = [
        {"case": result.key, **_level(result, score), **dataclasses.asdict(score)}
        for result in results
        for score in sorted(result.scores, key=_table_order)
    ]
    return pd.DataFrame(rows, columns=columns)


def case_table(results: Sequence[CaseResult]) -> pd.DataFrame:
    """Give a table with a row a case: its status, its scores, and what is wrong with it."""
    rows = []
    for result in results:
        facts = {"case": result.key, "split": result.split, "status": result.status}
        scores = vertebra_scores(vertebra_table([result]))
        rows.append({**facts, "numbering": result.numbering, **scores, "message": result.message})
    return pd.DataFrame(rows)


def region_table(vertebrae: pd.DataFrame) -> pd.DataFrame:
    """Give a table with a row a region that has reference vertebrae, from the neck down."""
    of_reference = vertebrae[vertebrae["kind"] == "reference"]
    rows = [
        {"region": region, **vertebra_scores(vertebrae[vertebrae["region"] == region])}
        for region in REGIONS
        if (of_reference["region"] == region).any()
    ]
    return pd.DataFrame(rows)


def vertebra_scores(vertebrae: pd.DataFrame) -> dict[str, Any]:
    """Sum up the scores of some vertebrae.

    Parameters
    ----------
    vertebrae : pd.DataFrame
        Rows of `vertebra_table`.

    Returns
    -------
    dict
        Counts (`vertebrae`, `found`, `missed` of the reference; `extra` predicted ones) and means over the
        reference's vertebrae; in the mean Dice a missed one is 0, whatever part of it was predicted.
        A mean over nothing is None, and so is what labels say (identification rate,
        localisation error) as soon as a vertebra's prediction is only counted.
    """
    reference = vertebrae[vertebrae["kind"] == "reference"]
    found = int(reference["found"].sum())
    labelled = bool(reference["identified"].notna().all())
    return {
        "vertebrae": len(reference),
        "found": found,
        "missed": len(reference) - found,
        "extra": int((vertebrae["kind"] == "extra").sum()),
        "found_share": _mean(reference["found"]),
        "mean_dice": _mean(reference["dice"].astype(float) * reference["found"].astype(float)),
        "mean_surface_distance_mm": _mean(reference["mean_surface_distance_mm"]),
        "mean_hausdorff_95_mm": _mean(reference["hausdorff_95_mm"]),
        "identification_rate": _mean(reference["identified"]) if labelled else None,
        "localisation_error_mm": _mean(reference["localisation_error_mm"]) if labelled else None,
    }


def summary(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Give the scores over all cases that have a reference, with the cases that went wrong by name.

    Parameters
    ----------
    results : sequence of CaseResult
        The evaluated cases.

    Returns
    -------
    dict
        Those of `vertebra_scores`, `scans` (with a reference that can be read), `extra_per_scan`, and
        `bad_cases`, the keys of the cases that were not scored.
    """
    scans = sum(result.status != "bad reference" for result in results)
    scores = vertebra_scores(vertebra_table(results))
    return {
        "scans": scans,
        **scores,
        "extra_per_scan": scores["extra"] / scans if scans else None,
        "bad_cases": [result.key for result in results if result.status != "scored"],
    }


def write_report(results: Sequence[CaseResult], output: Path, *, found_dice: float) -> dict[str, Any]:
    """Write summary.json, vertebrae.csv, cases.csv, evaluation.md and evaluation.png into a folder.

    Parameters
    ----------
    results : sequence of CaseResult
        The evaluated cases.
    output : Path
        Folder, made if it is not there. Every file is written whole or not at all.
    found_dice : float
        Dice from which a vertebra counted as found.

    Returns
    -------
    dict
        The summary.
    """
    vertebrae, cases, scores = vertebra_table(results), case_table(results), summary(results)
    texts = {
        "vertebrae.csv": vertebrae.to_csv(index=False),
        "cases.csv": cases.to_csv(index=False),
        "evaluation.md": _page(vertebrae, cases, scores, found_dice=found_dice),
        "summary.json": json.dumps(scores, indent=2) + "\n",
    }
    with written_whole(output / "evaluation.png") as temporary:
        dice_figure(vertebrae, found_dice=found_dice).savefig(temporary, format="png", dpi=150)
    for name, text in texts.items():
        with written_whole(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return scores


def case_line(result: CaseResult) -> str:
    """Give a case's scores in one line, for the log."""
    scores = vertebra_scores(vertebra_table([result]))
    counts = f"{scores['found']} of {scores['vertebrae']} found, {scores['extra']} extra"
    return f"{result.key}: {result.status}, {counts}, mean Dice {cell(scores['mean_dice'])}"


def overall_table(scores: dict[str, Any]) -> str:
    """Give the summary as text in two columns, for the terminal and the page."""
    rows = [{"score": name, "value": value} for name, value in scores.items() if name != "bad_cases"]
    return markdown_table(pd.DataFrame(rows, dtype=object))


def dice_figure(vertebrae: pd.DataFrame, *, found_dice: float) -> Figure:
    """Draw the Dice of every reference vertebra by level, as boxes with the vertebrae themselves as dots.

    Parameters
    ----------
    vertebrae : pd.DataFrame
        Rows of `vertebra_table`.
    found_dice : float
        Where the line between found and missed is drawn.

    Returns
    -------
    Figure
        Levels from the top of the spine on x, with the number of vertebrae under each; colours are regions.
    """
    reference = vertebrae[vertebrae["kind"] == "reference"]
    levels = [name for name in LEVEL_NAMES if (reference["name"] == name).any()]
    figure = Figure(figsize=(max(5.0, 1.5 + 0.45 * len(levels)), 4.0), layout="constrained")
    axes = figure.subplots()
    for position, name in enumerate(levels):
        rows = reference[reference["name"] == name]
        _draw_level(axes, position, rows["dice"].to_numpy(), REGION_COLOURS[rows["region"].iloc[0]])
    counts = reference["name"].value_counts()
    axes.set_xticks(range(len(levels)), [f"{name}\n{counts[name]}" for name in levels])
    axes.axhline(found_dice, color="0.4", linestyle="--", linewidth=1, label=f"found from {found_dice:g}")
    for region in [region for region in REGIONS if (reference["region"] == region).any()]:
        axes.plot([], [], "o", color=REGION_COLOURS[region], label=region)
    axes.set(ylim=(-0.03, 1.03), xlabel="level, and number of reference vertebrae", ylabel="Dice")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _draw_level(axes: Any, position: int, dice: np.ndarray, colour: str) -> None:
    # Spread over a fixed width in order of Dice, so that equal values do not hide one another.
    shifts = np.linspace(-0.18, 0.18, len(dice)) if len(dice) > 1 else np.zeros(1)
    if len(dice) >= _FEWEST_FOR_BOX:
        grey = {name: {"color": "0.6"} for name in ("boxprops", "whiskerprops", "capprops")}
        box = {"widths": 0.6, "showfliers": False, "medianprops": {"color": colour}, **grey}
        axes.boxplot(dice, positions=[position], **box)
    axes.plot(position + shifts, np.sort(dice), "o", color=colour, markersize=4, alpha=0.7)


def _page(vertebrae: pd.DataFrame, cases: pd.DataFrame, scores: dict[str, Any], *, found_dice: float) -> str:
    regions = region_table(vertebrae)
    short = cases.drop(columns=["message"])
    messages = [f"- {message}" for message in cases["message"] if message]
    parts = [
        "# Evaluation",
        _EXPLANATION.format(found_dice=found_dice),
        "## Overall\n\n" + overall_table(scores),
        "## By region\n\n" + (markdown_table(regions) if len(regions) else "No reference vertebrae."),
        "## By case\n\n" + markdown_table(short),
        "## By level\n\n![Dice by level](evaluation.png)",
        *(["## What went wrong\n\n" + "\n".join(messages)] if messages else []),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _level(result: CaseResult, score: VertebraScore) -> dict[str, str]:
    if score.kind != "reference" and result.numbering == "count":
        return {"name": "", "region": ""}
    return {"name": name_of_code(score.label), "region": region_of_code(score.label)}


def _table_order(score: VertebraScore) -> tuple[bool, int]:
    return score.kind != "reference", rank_of_code(score.label)


def _mean(values: pd.Series) -> float | None:
    mean = values.astype(float).mean()
    return None if math.isnan(mean) else float(mean)
