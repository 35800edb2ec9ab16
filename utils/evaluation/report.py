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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.evaluation.intervals import RESAMPLING, Resampling, mean_intervals
from utils.evaluation.metrics import NumberingKind, VertebraScore
from utils.files import write_text_whole, written_whole
from utils.tables import cell, markdown_table, text_beside
from utils.verse.anomalies import ANOMALIES, anomalies_of
from utils.verse.cases import subject_of
from utils.verse.labels import LEVEL_NAMES, name_of_code, rank_of_code, region_of_code

Status = Literal["scored", "no prediction", "bad prediction", "bad reference", "killed"]
#: Cases of which no reference vertebra is known: no score counts them.
_WITHOUT_REFERENCE = ("bad reference", "killed")
REGIONS = ("cervical", "thoracic", "lumbar")
NO_ANOMALY = "none"
#: Okabe and Ito's colours, told apart with any colour vision.
REGION_COLOURS = {"cervical": "#0072B2", "thoracic": "#D55E00", "lumbar": "#009E73"}
_FEWEST_FOR_BOX = 5

#: Key in the summary of the intervals, which stand under the names of the means.
INTERVALS = "intervals_95"


@dataclass(frozen=True)
class CaseResult:
    """What the evaluation of one case gave.

    Attributes
    ----------
    key, split : str
        The case, as in `utils.verse.cases.Case`.
    status : str
        "scored", or why it was not; with "no prediction" and "bad prediction" all vertebrae are missed, and
        "killed" is a case whose process was.
    numbering : str
        How its prediction is numbered, "" without one.
    scores : tuple of VertebraScore
        Empty with a bad reference and for a killed case.
    message : str
        What is wrong, "" if nothing is.
    """

    key: str
    split: str
    status: Status
    numbering: NumberingKind | Literal[""] = ""
    scores: tuple[VertebraScore, ...] = ()
    message: str = ""

    @property
    def subject(self) -> str:
        """The patient, of whom there may be several cases."""
        return subject_of(self.key)

    @property
    def anomalies(self) -> list[str]:
        """Those of the reference, of `ANOMALIES`."""
        return anomalies_of([score.label for score in self.scores if score.kind == "reference"])


def score_table(results: Sequence[CaseResult]) -> pd.DataFrame:
    """Give a table with a row a vertebra: the reference's, and the predicted ones without a reference.

    Parameters
    ----------
    results : sequence of CaseResult
        The evaluated cases.

    Returns
    -------
    pd.DataFrame
        Columns subject, case, name, region and the fields of `VertebraScore`. Name and region are empty for
        a predicted vertebra that is only counted. Sorted from the top down within a case.
    """
    fields = [field.name for field in dataclasses.fields(VertebraScore)]
    columns = ["subject", "case", "name", "region", *fields]
    rows = [
        {"subject": result.subject, "case": result.key, **_level(result, score), **dataclasses.asdict(score)}
        for result in results
        for score in sorted(result.scores, key=_table_order)
    ]
    return pd.DataFrame(rows, columns=columns)


def case_table(results: Sequence[CaseResult]) -> pd.DataFrame:
    """Give a table with a row a case: its status, its scores, and what is wrong with it."""
    rows = []
    for result in results:
        facts = {"case": result.key, "split": result.split, "status": result.status}
        scores = vertebra_scores(score_table([result]))
        known = {"numbering": result.numbering, "anomalies": "; ".join(result.anomalies)}
        rows.append({**facts, **known, **scores, "message": result.message})
    return pd.DataFrame(rows)


def group_table(vertebrae: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Give a table with a row a region or level that has reference vertebrae.

    Parameters
    ----------
    vertebrae : pd.DataFrame
        Rows of `score_table`.
    column : str
        "region" or "name".
    names : sequence of str
        The values of that column, in the order of the rows.
    """
    groups = score_groups(vertebrae, column, names).items()
    return pd.DataFrame([{column: name, **vertebra_scores(rows)} for name, rows in groups])


def score_groups(vertebrae: pd.DataFrame, column: str, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Split a table of vertebrae by a column's values, leaving out those without reference vertebrae."""
    present = set(vertebrae.loc[vertebrae["kind"] == "reference", column])
    return {name: vertebrae[vertebrae[column] == name] for name in names if name in present}


def score_values(vertebrae: pd.DataFrame) -> pd.DataFrame:
    """Give what is averaged, by the name of the mean.

    Parameters
    ----------
    vertebrae : pd.DataFrame
        Rows of `score_table`.

    Returns
    -------
    pd.DataFrame of float
        A row a reference vertebra, with the index of `vertebrae`, and NaN where a vertebra has no value. In
        the mean Dice a missed one is 0, whatever part of it was predicted, and likewise in that by overlap,
        which asks for no label. What labels say (identification rate, localisation error) is NaN in all rows
        as soon as a vertebra's prediction is only counted.
    """
    reference = vertebrae[vertebrae["kind"] == "reference"]
    found = reference["found"].astype(float)
    if_labelled = 1.0 if reference["identified"].notna().all() else float("nan")
    identified = reference["identified"].astype(float) * if_labelled
    dice = reference["dice"].astype(float).where(found == 1, 0.0)
    found_overlap = reference["found_overlap"].astype(float)
    dice_overlap = reference["dice_overlap"].astype(float).where(found_overlap == 1, 0.0)
    complete = reference["complete"].astype(bool)
    error_mm = reference["localisation_error_mm"].astype(float) * if_labelled
    return pd.DataFrame(
        {
            "found_share": found,
            "found_share_complete": found.where(complete),
            "mean_dice": dice,
            "mean_dice_complete": dice.where(complete),
            "found_overlap": found_overlap,
            "mean_dice_overlap": dice_overlap,
            "mean_surface_distance_mm": reference["mean_surface_distance_mm"].astype(float),
            "mean_hausdorff_95_mm": reference["hausdorff_95_mm"].astype(float),
            "mean_hausdorff_mm": reference["hausdorff_mm"].astype(float),
            "identification_rate": identified,
            "localisation_error_mm": error_mm,
            "localisation_error_identified_mm": error_mm.where(identified == 1),
        }
    )


def vertebra_scores(vertebrae: pd.DataFrame) -> dict[str, Any]:
    """Sum up the scores of some vertebrae.

    Parameters
    ----------
    vertebrae : pd.DataFrame
        Rows of `score_table`.

    Returns
    -------
    dict
        Counts (`vertebrae`, `found`, `missed` of the reference; `extra` and `partial` predicted ones) and the
        means of `score_values`. A mean over nothing is None.
    """
    values = score_values(vertebrae)
    found = int(values["found_share"].sum())
    without_reference = {kind: int((vertebrae["kind"] == kind).sum()) for kind in ("extra", "partial")}
    means = {name: None if math.isnan(mean) else float(mean) for name, mean in values.mean().items()}
    counts = {"vertebrae": len(values), "found": found, "missed": len(values) - found}
    return {**counts, **without_reference, **means}


def scores_with_intervals(vertebrae: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    """Give `vertebra_scores`, and under `INTERVALS` the interval of every mean: two limits, or None."""
    values = score_values(vertebrae)
    intervals = mean_intervals(values, vertebrae.loc[values.index, "subject"], resampling)
    return {**vertebra_scores(vertebrae), INTERVALS: intervals}


def summary(results: Sequence[CaseResult], resampling: Resampling = RESAMPLING) -> dict[str, Any]:
    """Give the scores over all cases that have a reference, with the cases that went wrong by name.

    Parameters
    ----------
    results : sequence of CaseResult
        The evaluated cases.
    resampling : Resampling
        How the intervals are made.

    Returns
    -------
    dict
        Those of `scan_scores`; `by_region` and `by_anomaly` with the same of every region (without the
        counts of scans) and of the scans with every anomaly, or none; and `bad_cases`, the keys of the cases
        that were not scored. A scan with two anomalies counts in both.
    """
    regions, anomalies = score_groups(score_table(results), "region", REGIONS), anomaly_groups(results)
    return {
        **scan_scores(results, resampling),
        "by_region": {name: scores_with_intervals(rows, resampling) for name, rows in regions.items()},
        "by_anomaly": {name: scan_scores(group, resampling) for name, group in anomalies.items()},
        "bad_cases": [result.key for result in results if result.status != "scored"],
    }


def scan_scores(results: Sequence[CaseResult], resampling: Resampling) -> dict[str, Any]:
    """Give the scores of some scans.

    Returns
    -------
    dict
        `scans` and `subjects` (with a reference that can be read), those of `scores_with_intervals`, and
        `extra_per_scan`.
    """
    with_reference = [result for result in results if result.status not in _WITHOUT_REFERENCE]
    scans = len(with_reference)
    scores = scores_with_intervals(score_table(results), resampling)
    return {
        "scans": scans,
        "subjects": len({result.subject for result in with_reference}),
        **scores,
        "extra_per_scan": scores["extra"] / scans if scans else None,
    }


def anomaly_groups(results: Sequence[CaseResult]) -> dict[str, list[CaseResult]]:
    """Sort the cases with a reference by their anomalies; a case with two is in both groups."""
    with_reference = [result for result in results if result.status not in _WITHOUT_REFERENCE]
    groups = {
        name: [result for result in with_reference if name in (result.anomalies or [NO_ANOMALY])]
        for name in (*ANOMALIES, NO_ANOMALY)
    }
    return {name: group for name, group in groups.items() if group}


def write_evaluation(
    results: Sequence[CaseResult], output: Path, *, found_dice: float, resampling: Resampling = RESAMPLING
) -> dict[str, Any]:
    """Write summary.json, vertebrae.csv, cases.csv, evaluation.md and evaluation.png into a folder.

    Parameters
    ----------
    results : sequence of CaseResult
        The evaluated cases.
    output : Path
        Folder, made if it is not there. Every file is written whole or not at all.
    found_dice : float
        Dice from which a vertebra counted as found.
    resampling : Resampling
        How the intervals are made.

    Returns
    -------
    dict
        The summary.
    """
    vertebrae, cases, scores = score_table(results), case_table(results), summary(results, resampling)
    facts = {**dataclasses.asdict(resampling), "subjects": scores["subjects"], "found_dice": found_dice}
    texts = {
        "vertebrae.csv": vertebrae.to_csv(index=False),
        "cases.csv": cases.to_csv(index=False),
        "evaluation.md": _page(
            vertebrae, cases, scores, text_beside(__file__, "evaluation_page.md", **facts)
        ),
        "summary.json": json.dumps(scores, indent=2) + "\n",
    }
    write_pages(output, texts, {"evaluation.png": dice_figure(vertebrae, found_dice=found_dice)})
    return scores


def write_pages(folder: Path, texts: dict[str, str], figures: dict[str, Figure]) -> None:
    """Write texts and figures into a folder by their names, the figures first."""
    for name, figure in figures.items():
        with written_whole(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    for name, text in texts.items():
        write_text_whole(folder / name, text)


def case_line(result: CaseResult) -> str:
    """Give a case's scores in one line, for the log."""
    scores = vertebra_scores(score_table([result]))
    counts = f"{scores['found']} of {scores['vertebrae']} found, {scores['extra']} extra"
    return f"{result.key}: {result.status}, {counts}, mean Dice {cell(scores['mean_dice'])}"


def overall_table(scores: dict[str, Any]) -> str:
    """Give a summary as text with a row a score and the interval of every mean, for terminal and page."""
    intervals = scores[INTERVALS]
    rows = [
        {"score": name, "value": scores[name], "95 % interval": interval_cell(intervals.get(name))}
        for name in _names_of_numbers(scores)
    ]
    return markdown_table(pd.DataFrame(rows, dtype=object))


def side_by_side(groups: dict[str, dict[str, Any]]) -> str:
    """Give the scores of several groups as text, with a row a score and a column a group.

    Parameters
    ----------
    groups : dict of str to dict
        By the name of the group, scores with their intervals.
    """
    names = _names_of_numbers(next(iter(groups.values()), {}))
    rows = [
        {"score": name, **{group: _with_interval(scores, name) for group, scores in groups.items()}}
        for name in names
    ]
    return markdown_table(pd.DataFrame(rows)) if rows else "No reference vertebrae."


def interval_cell(interval: Sequence[float] | None) -> str:
    """Give an interval as the text of a cell, "–" without one."""
    return cell(None) if interval is None else " to ".join(cell(limit) for limit in interval)


def dice_figure(vertebrae: pd.DataFrame, *, found_dice: float) -> Figure:
    """Draw the Dice of every reference vertebra by level, as boxes with the vertebrae themselves as dots.

    Parameters
    ----------
    vertebrae : pd.DataFrame
        Rows of `score_table`.
    found_dice : float
        Where the line between found and missed is drawn.

    Returns
    -------
    Figure
        Levels from the top of the spine on x, with the number of vertebrae under each; colours are regions.
    """
    reference = vertebrae[vertebrae["kind"] == "reference"]
    figure = Figure(figsize=(width_of_levels(reference), 4.0), layout="constrained")
    axes = figure.subplots()
    axes.axhline(found_dice, color="0.4", linestyle="--", linewidth=1, label=f"found from {found_dice:g}")
    draw_by_level(axes, reference, "dice")
    axes.set(ylim=(-0.03, 1.03), ylabel="Dice")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def width_of_levels(reference: pd.DataFrame) -> float:
    """Give the width in inches that a figure by level needs."""
    return max(5.0, 1.5 + 0.45 * reference["name"].nunique())


def draw_by_level(axes: Axes, reference: pd.DataFrame, column: str) -> None:
    """Draw a column of a table of vertebrae by level: dots, and boxes where there are enough of them.

    Parameters
    ----------
    axes : Axes
        Receives levels from the top of the spine on x, with the number of values under each, and a legend
        entry for every region.
    reference : pd.DataFrame
        A row a reference vertebra, with name, region, and the column; rows without a value are left out.
    column : str
        What is drawn.
    """
    drawn = reference[reference[column].notna()]
    levels = [name for name in LEVEL_NAMES if (drawn["name"] == name).any()]
    for position, name in enumerate(levels):
        rows = drawn[drawn["name"] == name]
        _draw_level(axes, position, rows[column].to_numpy(float), REGION_COLOURS[rows["region"].iloc[0]])
    counts = drawn["name"].value_counts()
    axes.set_xticks(range(len(levels)), [f"{name}\n{counts[name]}" for name in levels])
    axes.set(xlim=(-0.6, max(len(levels), 1) - 0.4), xlabel="level, and number of reference vertebrae")
    axes.grid(axis="y", alpha=0.3)
    for region in [region for region in REGIONS if (drawn["region"] == region).any()]:
        axes.plot([], [], "o", color=REGION_COLOURS[region], label=region)


def _draw_level(axes: Axes, position: int, values: np.ndarray, colour: str) -> None:
    # Spread over a fixed width in order of value, so that equal ones do not hide one another.
    shifts = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
    axes.plot(position + shifts, np.sort(values), "o", color=colour, markersize=4, alpha=0.5)
    if len(values) >= _FEWEST_FOR_BOX:
        lines = {name: {"color": "0.2"} for name in ("boxprops", "whiskerprops", "capprops", "medianprops")}
        axes.boxplot(values, positions=[position], widths=0.6, showfliers=False, zorder=3, **lines)


def _page(vertebrae: pd.DataFrame, cases: pd.DataFrame, scores: dict[str, Any], explanation: str) -> str:
    levels = group_table(vertebrae, "name", LEVEL_NAMES)
    messages = [f"- {message}" for message in cases["message"] if message]
    parts = [
        "# Evaluation",
        explanation,
        "## Overall\n\n" + overall_table(scores),
        "## By region\n\nMean (95 % interval).\n\n" + side_by_side(scores["by_region"]),
        "## By anomaly\n\nScans by what their reference holds; one with two anomalies is in both columns.",
        side_by_side(scores["by_anomaly"]),
        "## By level\n\n![Dice by level](evaluation.png)",
        markdown_table(levels) if len(levels) else "",
        "## By case\n\n" + markdown_table(cases.drop(columns=["message"])),
        *(["## What went wrong\n\n" + "\n".join(messages)] if messages else []),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _names_of_numbers(scores: dict[str, Any]) -> list[str]:
    return [name for name, value in scores.items() if not isinstance(value, (dict, list))]


def _with_interval(scores: dict[str, Any], name: str) -> str:
    interval = scores[INTERVALS].get(name)
    return cell(scores[name]) + ("" if interval is None else f" ({interval_cell(interval)})")


def _level(result: CaseResult, score: VertebraScore) -> dict[str, str]:
    if score.kind != "reference" and result.numbering == "count":
        return {"name": "", "region": ""}
    return {"name": name_of_code(score.label), "region": region_of_code(score.label)}


def _table_order(score: VertebraScore) -> tuple[bool, int]:
    return score.kind != "reference", rank_of_code(score.label)
