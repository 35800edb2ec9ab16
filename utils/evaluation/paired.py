"""Two folders of predictions scored on the same references: differences, their intervals, and a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from utils.evaluation import report
from utils.evaluation.intervals import Resampling, mean_intervals
from utils.evaluation.report import CaseResult
from utils.tables import cell, markdown_table, text_beside

_FACTS = ["subject", "case", "name", "region", "label"]
_COUNTS = ["vertebrae", "found", "missed", "extra", "partial"]
_LOWER_IS_BETTER = "_mm"
_SMALLEST_P_SHOWN = 0.001
_DECIMALS = 9
_LONGEST_NAME = 30


@dataclass(frozen=True, eq=False)
class PairedScores:
    """Scores of the same vertebrae, or of the same patients, in two folders.

    Attributes
    ----------
    facts : pd.DataFrame
        What each row is about: its subject, and for a vertebra case, name, region and label.
    first, second : pd.DataFrame of float
        The columns of `score_values`, NaN where there is no value.
    """

    facts: pd.DataFrame
    first: pd.DataFrame
    second: pd.DataFrame

    @property
    def differences(self) -> pd.DataFrame:
        """First minus second, NaN unless both have a value."""
        return self.first - self.second

    def by_subject(self) -> PairedScores:
        """Average the pairs of each patient; what only one folder has a value for is left out."""
        both = self.differences.notna()
        subjects = self.facts["subject"]
        first, second = (scores.where(both).groupby(subjects).mean() for scores in (self.first, self.second))
        facts = pd.DataFrame({"subject": first.index})
        return PairedScores(facts, first.reset_index(drop=True), second.reset_index(drop=True))


def pair_scores(results: Sequence[CaseResult], others: Sequence[CaseResult]) -> PairedScores:
    """Pair the reference vertebrae of two evaluations of the same cases.

    Parameters
    ----------
    results, others : sequence of CaseResult
        The same cases in the same order, each with a prediction of its own.

    Raises
    ------
    ValueError
        If the cases or their reference vertebrae are not the same.
    """
    tables = [report.score_table(part) for part in (results, others)]
    tables = [table[table["kind"] == "reference"].reset_index(drop=True) for table in tables]
    found = [table[_FACTS].to_numpy().tolist() for table in tables]
    if found[0] != found[1]:
        numbers = f"{len(found[0])} and {len(found[1])}"
        raise ValueError(f"Expected the same reference vertebrae twice, found {numbers} that differ.")
    return PairedScores(tables[0][_FACTS], *(report.score_values(table) for table in tables))


def wilcoxon_p(differences: pd.Series) -> float | None:
    """Give the two-sided p of Wilcoxon's signed-rank test, without the zeros; None if nothing else is there.

    Source: Wilcoxon, Biometrics Bulletin 1 (1945) 80-83, as `scipy.stats.wilcoxon` computes it: exact for few
    differences, else from the normal distribution.
    """
    unequal = differences[differences.notna() & (differences != 0)]
    return float(stats.wilcoxon(unequal).pvalue) if len(unequal) else None


def comparison_table(paired: PairedScores, resampling: Resampling) -> pd.DataFrame:
    """Give a table with a row a score: both means over pairs, their difference, its interval, and the test.

    Parameters
    ----------
    paired : PairedScores
        Of vertebrae.
    resampling : Resampling
        How the interval is made.

    Returns
    -------
    pd.DataFrame
        Columns score, better ("higher" or "lower"), A, B, difference, low, high, p, patients, unequal and
        vertebrae. None or NaN where there are no pairs, limits also with one patient.
    """
    # Rounded, since differences that cancel, or are equal, do so only to the last digits of a float.
    differences, of_subjects = paired.differences, paired.by_subject().differences.round(_DECIMALS)
    intervals = mean_intervals(differences, paired.facts["subject"], resampling)
    rows = []
    for score, pairs in differences.items():
        low, high = intervals[score] or (None, None)
        means = [scores[score][pairs.notna()].mean() for scores in (paired.first, paired.second)]
        rows.append(
            {
                "score": score,
                "better": "lower" if score.endswith(_LOWER_IS_BETTER) else "higher",
                **dict(zip("AB", means)),
                **{"difference": pairs.mean(), "low": low, "high": high},
                "p": wilcoxon_p(of_subjects[score]),
                "patients": int(of_subjects[score].notna().sum()),
                "unequal": int((of_subjects[score].fillna(0) != 0).sum()),
                "vertebrae": int(pairs.notna().sum()),
            }
        )
    return pd.DataFrame(rows)


def difference_rows(paired: PairedScores) -> pd.DataFrame:
    """Give a table with a row a vertebra, then a row a patient.

    Returns
    -------
    pd.DataFrame
        Columns unit ("vertebra" or "subject"), those of `PairedScores.facts`, and for every score its value
        in the first folder, in the other (`_other`), and the difference (`_difference`).
    """
    parts = [_as_rows("vertebra", paired), _as_rows("subject", paired.by_subject())]
    return pd.concat(parts, ignore_index=True).astype({"label": "Int64"})


def count_table(results: Sequence[CaseResult], others: Sequence[CaseResult]) -> pd.DataFrame:
    """Give a table with a row for A and for B: vertebrae found and missed, and predicted ones beside them."""
    scores = [report.vertebra_scores(report.score_table(part)) for part in (results, others)]
    return pd.DataFrame({"folder": ["A", "B"], **{name: [part[name] for part in scores] for name in _COUNTS}})


def write_comparison(
    results: Sequence[CaseResult],
    others: Sequence[CaseResult],
    output: Path,
    *,
    folders: tuple[Path, Path],
    resampling: Resampling,
) -> str:
    """Write comparison.csv, comparison.md and comparison.png into a folder.

    Parameters
    ----------
    results, others : sequence of CaseResult
        The same cases in the same order, scored with the predictions of the two folders.
    output : Path
        Folder, made if it is not there. Every file is written whole or not at all.
    folders : tuple of Path
        The two folders of predictions, as they are named on the page.
    resampling : Resampling
        How the intervals are made.

    Returns
    -------
    str
        The table of the differences, for the terminal.

    Raises
    ------
    ValueError
        If the cases or their reference vertebrae are not the same.
    """
    paired = pair_scores(results, others)
    table = _shown(comparison_table(paired, resampling))
    facts = {"first": folders[0], "second": folders[1], **dataclasses.asdict(resampling)}
    counts = markdown_table(count_table(results, others))
    texts = {
        "comparison.csv": difference_rows(paired).to_csv(index=False),
        "comparison.md": _page(
            paired, text_beside(__file__, "comparison_page.md", **facts), f"{counts}\n\n{table}"
        ),
    }
    figure = comparison_figure(paired, names=short_names(folders))
    report.write_pages(output, texts, {"comparison.png": figure})
    return table


def comparison_figure(paired: PairedScores, *, names: tuple[str, str]) -> Figure:
    """Draw the Dice of one folder against the other's, and the differences by level.

    Parameters
    ----------
    paired : PairedScores
        Of vertebrae; a missed one has Dice 0.
    names : tuple of str
        What the two folders are called.

    Returns
    -------
    Figure
        A dot a reference vertebra in both panels; colours are regions.
    """
    rows = paired.facts.assign(difference=paired.differences["mean_dice"])
    width = report.width_of_levels(rows)
    figure = Figure(figsize=(4.0 + width, 4.4), layout="constrained")
    against, by_level = figure.subplots(1, 2, width_ratios=(4.0, width))
    _draw_against(against, paired, names)
    by_level.axhline(0, color="0.4", linestyle="--", linewidth=1, label="equal")
    report.draw_by_level(by_level, rows, "difference")
    largest = max(0.05, 1.05 * float(rows["difference"].abs().max())) if len(rows) else 1.0
    by_level.set(ylim=(-largest, largest), ylabel="difference of Dice, A − B")
    figure.legend(*by_level.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def short_names(folders: tuple[Path, Path]) -> tuple[str, str]:
    """Give the last part in which two paths differ, else the last part of each, cut to fit an axis."""
    from_the_end = zip(*(reversed(folder.parts) for folder in folders))
    names = next((pair for pair in from_the_end if pair[0] != pair[1]), [folder.name for folder in folders])
    first, second = names
    return _ending(first), _ending(second)


def _ending(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


def _draw_against(axes: Axes, paired: PairedScores, names: tuple[str, str]) -> None:
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
    for region, colour in report.REGION_COLOURS.items():
        chosen = paired.facts["region"] == region
        dice = (scores.loc[chosen, "mean_dice"] for scores in (paired.second, paired.first))
        axes.plot(*dice, "o", color=colour, markersize=4, alpha=0.5)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.set(xlabel=f"Dice (missed: 0) of B\n{names[1]}", ylabel=f"Dice (missed: 0) of A\n{names[0]}")
    axes.grid(alpha=0.3)


def _as_rows(unit: str, paired: PairedScores) -> pd.DataFrame:
    columns = {"unit": unit, **paired.facts}
    for score in paired.first:
        columns[score] = paired.first[score]
        columns[f"{score}_other"] = paired.second[score]
        columns[f"{score}_difference"] = paired.differences[score]
    return pd.DataFrame(columns, index=paired.facts.index)


def _shown(table: pd.DataFrame) -> str:
    interval = [
        report.interval_cell(None if np.isnan(low) else (low, high))
        for low, high in table[["low", "high"]].astype(float).to_numpy()
    ]
    p = [
        f"< {_SMALLEST_P_SHOWN:g}" if value < _SMALLEST_P_SHOWN else cell(value)
        for value in table["p"].astype(float)
    ]
    left, right = ["score", "better", "A", "B", "difference"], ["patients", "unequal", "vertebrae"]
    return markdown_table(table[left].assign(**{"95 % interval": interval, "p": p}).join(table[right]))


def _page(paired: PairedScores, explanation: str, tables: str) -> str:
    subjects = paired.by_subject()
    dice = subjects.facts.assign(A=subjects.first["mean_dice"], B=subjects.second["mean_dice"])
    dice = dice.assign(difference=subjects.differences["mean_dice"])
    parts = [
        "# Comparison",
        explanation,
        tables,
        "## Dice, vertebra by vertebra\n\n![Dice of both, and differences by level](comparison.png)",
        "## Mean Dice by patient\n\n" + (markdown_table(dice) if len(dice) else "No reference vertebrae."),
        "Every vertebra and every score: comparison.csv.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
