"""The table of the published experiment: size, speed and scores of its networks, with paired differences.

Command python experiments/paper_table.py paper --schedules ramp
Reads   in FOLDER: students.csv of the model student-<schedule>, predictions/<schedule>/<network>, and
        evaluation/<schedule>/<network>/vertebrae.csv
Writes  FOLDER/paper.csv, FOLDER/differences.csv, FOLDER/paper.md

The walk counts vertebrae from the top down, so that a count says the level of a vertebra only where one of
the scan is known. *Identified* here means: found, and rightly counted from the level that fits most of the
scan.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.steps import exit_status_of
from utils.evaluation.intervals import RESAMPLING, mean_intervals
from utils.evaluation.report import score_values
from utils.files import write_text_whole
from utils.prediction.quality import QUALITY_SUFFIX, read_quality
from utils.tables import cell, markdown_table, text_beside
from utils.verse.labels import rank_of_code

#: The network that all others are compared with: the claim is that a teacher helps it.
BASELINE = "scratch"
#: What is averaged over the reference vertebrae of the test split, and the title of its column.
SCORES = {
    "mean_dice_overlap": "Dice",
    "mean_hausdorff_95_mm": "95 % surface distance, mm",
    "identified": "identified",
}
_FACTS = {"parameters": "parameters", "megabytes": "MB", "seconds_per_patch": "s a patch"}


def rightly_counted(vertebrae: pd.DataFrame) -> pd.Series:
    """Say which reference vertebrae are found and counted as their place in the column says.

    Parameters
    ----------
    vertebrae : pd.DataFrame
        Rows of one evaluation (`utils.evaluation.report.score_table`), any number of scans.

    Returns
    -------
    pd.Series of float
        With the index of the reference's rows: 1 where the vertebra is found by overlap, and its number
        less its place among the reference vertebrae of the scan, from the top down, is that of most of its
        found ones; else 0. Between two that fit as many the higher place of the column counts.
    """
    reference = vertebrae[vertebrae["kind"] == "reference"]
    places = reference["label"].map(rank_of_code).groupby(reference["case"]).rank(method="first")
    # A number that nothing else has, where nothing was found.
    offsets = (reference["predicted_label"] - places).where(reference["found_overlap"].astype(bool))
    commonest = offsets.groupby(reference["case"]).transform(lambda each: each.mode().min())
    return (offsets == commonest).astype(float)


def network_scores(folder: Path) -> pd.DataFrame:
    """Read the scores of one network over the test split.

    Parameters
    ----------
    folder : Path
        Of `evaluate.py`.

    Returns
    -------
    pd.DataFrame
        A row a reference vertebra, sorted by case and name: subject, case, name, and the columns of `SCORES`.

    Raises
    ------
    ValueError
        If there is no such evaluation.
    """
    path = folder / "vertebrae.csv"
    if not path.is_file():
        raise ValueError(
            f"{path}: expected the evaluation of a network, found none; run experiments/paper.py."
        )
    table = pd.read_csv(path, keep_default_na=True)
    values = score_values(table).assign(identified=rightly_counted(table))
    rows = table.loc[values.index, ["subject", "case", "name"]].join(values[list(SCORES)])
    return rows.sort_values(["case", "name"]).reset_index(drop=True)


def seconds_a_scan(predictions: Path) -> float:
    """Give the median seconds that a scan of a folder of predictions took."""
    files = sorted(predictions.rglob(f"*{QUALITY_SUFFIX}"))
    return statistics.median(read_quality(path).seconds for path in files)


def schedule_tables(
    folder: Path, schedule: str, networks: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give the networks of one schedule, and their differences to the student from scratch.

    Parameters
    ----------
    folder : Path
        That of the experiment.
    schedule : str
        Schedule of the weight of false positives.
    networks : dict of str to dict
        By name, what is known of each before the test: title, parameters, megabytes, seconds_per_patch.

    Returns
    -------
    table : pd.DataFrame
        A row a network: schedule, network, size and seconds, and for each of `SCORES` its mean and the
        limits of its interval (`_low`, `_high`) over patients.
    differences : pd.DataFrame
        A row for every other network and score: the mean over vertebrae of its value less that of the
        student from scratch, and the limits.
    """
    scores = {name: network_scores(folder / "evaluation" / schedule / name) for name in networks}
    rows, differences = [], []
    for name, facts in networks.items():
        subjects, values = scores[name]["subject"], scores[name][list(SCORES)]
        seconds = seconds_a_scan(folder / "predictions" / schedule / name)
        rows.append({"schedule": schedule, **facts, "seconds_a_scan": seconds, **_means(values, subjects)})
        if name != BASELINE:
            paired = values - scores[BASELINE][list(SCORES)]
            known = {"schedule": schedule, "network": facts["network"]}
            differences.append({**known, **_means(paired, subjects)})
    return pd.DataFrame(rows), pd.DataFrame(differences)


def _means(values: pd.DataFrame, subjects: pd.Series) -> dict[str, float | None]:
    """Give mean and limits of every column."""
    intervals = mean_intervals(values, subjects, RESAMPLING)
    found: dict[str, float | None] = {}
    for name, mean in values.mean().items():
        low, high = intervals[name] or (None, None)
        found |= {name: float(mean), f"{name}_low": low, f"{name}_high": high}
    return found


def known_networks(folder: Path, schedule: str) -> dict[str, dict[str, Any]]:
    """Read size and speed of the networks of one schedule, by the names of their folders.

    Raises
    ------
    ValueError
        If the students were not compared.
    """
    path = folder / "work" / "models" / f"student-{schedule}" / "students.csv"
    if not path.is_file():
        raise ValueError(f"{path}: expected the comparison of the students, found none.")
    table = pd.read_csv(path)
    return {
        Path(row["directory"]).name if place else "teacher": {
            name: row[name] for name in ("network", *_FACTS)
        }
        for place, row in table.iterrows()
    }


def page(table: pd.DataFrame, differences: pd.DataFrame, folder: Path) -> str:
    """Write the page: the networks, the differences, and how it was counted."""
    shown = table[["schedule", "network", *_FACTS]].rename(columns=_FACTS)
    shown["s a scan"] = table["seconds_a_scan"].map("{:.1f}".format)
    shown["MB"], shown["s a patch"] = (
        shown["MB"].map("{:.2f}".format),
        shown["s a patch"].map("{:.3f}".format),
    )
    less = differences[["schedule", "network"]].copy()
    for name, title in SCORES.items():
        shown[title] = [_with_limits(row, name) for _, row in table.iterrows()]
        less[title] = [_with_limits(row, name) for _, row in differences.iterrows()]
    facts = {"resamples": RESAMPLING.resamples, "seed": RESAMPLING.seed}
    return text_beside(
        __file__, "paper_page.md", networks=markdown_table(shown), differences=markdown_table(less), **facts
    )


def _with_limits(row: pd.Series, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    limits = "" if pd.isna(low) else f" ({cell(float(low))} to {cell(float(high))})"
    return f"{cell(float(row[name]))}{limits}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and print the table, and give the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the experiment")
    parser.add_argument("--schedules", nargs="+", default=["ramp"], help="schedules that were run")
    chosen = parser.parse_args(arguments)

    def run() -> None:
        folder = chosen.folder
        parts = [
            schedule_tables(folder, schedule, known_networks(folder, schedule))
            for schedule in chosen.schedules
        ]
        table, differences = (pd.concat(part, ignore_index=True) for part in zip(*parts))
        text = page(table, differences, folder)
        write_text_whole(folder / "paper.csv", table.to_csv(index=False))
        write_text_whole(folder / "differences.csv", differences.to_csv(index=False))
        write_text_whole(folder / "paper.md", text)
        print(f"{text}\nWritten to {folder}: paper.csv, differences.csv, paper.md.")

    return exit_status_of(run)


if __name__ == "__main__":
    sys.exit(main())
