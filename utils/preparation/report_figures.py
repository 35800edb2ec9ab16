"""Figures of the data set report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.verse.anomalies import SUPERNUMERARY
from utils.verse.cases import SPLITS
from utils.verse.labels import LEVEL_NAMES

#: The anatomical directions, with the letters that nibabel gives the ends of their axes.
DIRECTIONS = {"anterior-posterior": "AP", "left-right": "LR", "superior-inferior": "SI"}
#: Okabe and Ito's colours, told apart with any colour vision; "" is a case outside every split.
SPLIT_COLOURS = {"training": "#0072B2", "validation": "#E69F00", "test": "#009E73", "": "0.5"}

#: Successive multiples of the golden ratio fill an interval evenly, however many there are.
_GOLDEN = (5**0.5 - 1) / 2


def splits_of(table: pd.DataFrame) -> list[str]:
    """Give the splits that occur in a table's column `split`, in their order; "" comes last."""
    return [split for split in (*SPLITS, "") if (table["split"] == split).any()]


def levels_figure(vertebrae: pd.DataFrame) -> Figure:
    """Draw how many vertebrae of each level there are, stacked by split.

    Parameters
    ----------
    vertebrae : pd.DataFrame
        A row a vertebra, with the columns `level` and `split`.

    Returns
    -------
    Figure
        Levels from the highest to the lowest on x, those between them that are nowhere included; the number
        of vertebrae over each.
    """
    levels = levels_between(set(vertebrae["level"]))
    figure = Figure(figsize=(max(5.0, 1.5 + 0.4 * len(levels)), 4.0), layout="constrained")
    axes = figure.subplots()
    bottom = np.zeros(len(levels), int)
    for split, counts in level_counts(vertebrae, levels).items():
        heights = counts.to_numpy()
        label = f"{split or 'no split'} ({heights.sum()})"
        axes.bar(range(len(levels)), heights, bottom=bottom, color=SPLIT_COLOURS[split], label=label)
        bottom += heights
    for position, count in enumerate(bottom):
        axes.annotate(
            str(count), (position, count), (0, 2), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_xticks(range(len(levels)), levels)
    axes.set(xlabel="level", ylabel="vertebrae", xlim=(-0.6, max(len(levels), 1) - 0.4))
    axes.set_ylim(0, max(1.0, 1.1 * bottom.max(initial=0)))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(levels):
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def level_counts(vertebrae: pd.DataFrame, levels: Sequence[str]) -> pd.DataFrame:
    """Count vertebrae by level (rows, in the order given) and split (columns, as `splits_of`)."""
    counts = pd.crosstab(vertebrae["level"], vertebrae["split"])
    return counts.reindex(index=levels, columns=splits_of(vertebrae), fill_value=0)


def levels_between(present: Collection[str]) -> list[str]:
    """Give the levels from the highest to the lowest of some; T13 and L6 only if they are among them."""
    ranks = [LEVEL_NAMES.index(name) for name in present]
    span = LEVEL_NAMES[min(ranks) : max(ranks) + 1] if ranks else ()
    return [name for name in span if name in present or name not in SUPERNUMERARY]


def geometry_figure(cases: pd.DataFrame) -> Figure:
    """Draw spacing and field of view of every case along the anatomical directions.

    Parameters
    ----------
    cases : pd.DataFrame
        A row a case, with the columns `split`, `spacing_<ap|lr|si>_mm` and `extent_<ap|lr|si>_mm`; NaN where
        there is no image.

    Returns
    -------
    Figure
        A dot a case, a line at the median of a split; rows are directions, within them splits.
    """
    figure = Figure(figsize=(10.0, 4.5), layout="constrained")
    columns = figure.subplots(1, 2, sharey=True)
    for axes, quantity, name in zip(columns, ("spacing", "extent"), ("spacing", "field of view")):
        for row, letters in enumerate(DIRECTIONS.values()):
            _draw_direction(axes, row, cases, f"{quantity}_{letters.lower()}_mm")
        axes.set(xlabel=f"{name}, mm")
        axes.set_xlim(0, None)
        axes.grid(axis="x", alpha=0.3)
    columns[0].set_yticks(range(len(DIRECTIONS)), DIRECTIONS)
    columns[0].set_ylim(len(DIRECTIONS) - 0.45, -0.55)
    for split in splits_of(cases):
        known = int(cases.loc[cases["split"] == split, "spacing_ap_mm"].notna().sum())
        label = f"{split or 'no split'} ({known})"
        columns[0].plot([], [], "o", color=SPLIT_COLOURS[split], label=label)
    columns[0].plot([], [], color="black", linewidth=1.2, label="median of a split")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _draw_direction(axes: Any, row: int, cases: pd.DataFrame, column: str) -> None:
    """Draw one direction: the splits one under the other, the cases of each spread over its height."""
    splits = splits_of(cases)
    height = 0.8 / max(len(splits), 1)
    for lane, split in enumerate(splits):
        values = np.sort(cases.loc[cases["split"] == split, column].dropna().to_numpy(float))
        if values.size == 0:
            continue
        middle = row - 0.4 + height * (lane + 0.5)
        spread = (np.arange(1, values.size + 1) * _GOLDEN % 1 - 0.5) * 0.7 if values.size > 1 else np.zeros(1)
        reach = [middle - 0.45 * height, middle + 0.45 * height]
        axes.plot([np.median(values)] * 2, reach, color="black", linewidth=1.2)
        axes.plot(
            values, middle + height * spread, "o", color=SPLIT_COLOURS[split], markersize=4, alpha=0.6, mew=0
        )
