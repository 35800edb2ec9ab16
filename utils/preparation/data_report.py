"""The data set report: what is in a data set, and what is odd about it, case by case.

`report_data` checks every case in parallel (`case_check`) and writes tables, a page and figures into the
data set's folder; no name there is that of a VerSe file, so the index leaves them alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from utils.execution import outcomes
from utils.files import printable, write_text_whole, written_whole
from utils.imaging.nifti import native_bytes
from utils.preparation import case_check, report_figures
from utils.preparation.case_check import CaseFacts, Finding, ImageFacts, VertebraFacts
from utils.preparation.report_figures import geometry_figure, level_counts, levels_figure, splits_of
from utils.settings import DataSettings
from utils.synthetic.phantom.record import PHANTOM_RECORD
from utils.tables import markdown_table
from utils.verse import cases as verse_cases
from utils.verse.anomalies import ANOMALIES
from utils.verse.cases import Case
from utils.verse.labels import LEVEL_NAMES, name_of_code

REPORT_FOLDER = "report"
SEVERAL_SPLITS = "patient in several splits"
OLDER_NAME = "name of the older release"
OTHER_NAME = "image without a VerSe name"
#: Findings about the tree; all are remarks.
TREE_KINDS = (SEVERAL_SPLITS, OLDER_NAME, OTHER_NAME)
CASE_COLUMNS = (
    *("case", "subject", "split", "year", "status", "ct", "mask", "centroids", "shape", "spacing_mm", "axes"),
    *("spacing_ap_mm", "spacing_lr_mm", "spacing_si_mm", "extent_ap_mm", "extent_lr_mm", "extent_si_mm"),
    *("ct_type", "ct_qform", "ct_sform", "hu_low", "hu_high", "mask_type", "mask_qform", "mask_sform"),
    *("vertebrae", "levels", "anomalies", "findings"),
)
REPORT_VERTEBRA_COLUMNS = (
    *("case", "split", "year", "level", "label", "voxels", "volume_mm3", "components"),
    *("strays", "stray_voxels", "stray_mm3", "touches_border", "centroid_distance_mm"),
)
FINDING_COLUMNS = ("case", "split", "kind", "bad", "file", "what")

#: Lines of one kind of remark that the terminal shows; the page has all.
_SHOWN = 20
_EXPLANATION = f"""\
Measured on the native grids. *Bad* cases are unreadable or inconsistent, and the pre-processing refuses
them; remarks are what a user should know. Parts of a vertebra are connected by faces of voxels; strays are
parts beside the largest with at least {case_check.LEAST_STRAY_VOXELS} voxels. A centroid is outside its \
vertebra if it
is more than {case_check.CENTROID_TOLERANCE_MM:g} mm away ({case_check.C1_TOLERANCE_MM:g} mm from C1, \
whose point lies in its ring).
T12 counts as absent only between T11 and L1. All numbers are in `cases.csv`, `vertebrae.csv` and
`findings.csv`.
"""


@dataclass(frozen=True, eq=False)
class DataReport:
    """What is in a data set.

    Attributes
    ----------
    cases : pd.DataFrame
        `CASE_COLUMNS`, a row a case.
    vertebrae : pd.DataFrame
        `REPORT_VERTEBRA_COLUMNS`, a row a vertebra of a readable mask.
    findings : pd.DataFrame
        `FINDING_COLUMNS`, a row a finding.
    release : tuple of str
        Lines on how much of the VerSe release is there; empty where nothing of it is.
    """

    cases: pd.DataFrame
    vertebrae: pd.DataFrame
    findings: pd.DataFrame
    release: tuple[str, ...]

    @property
    def bad(self) -> list[str]:
        """The keys of the cases that are unreadable or inconsistent."""
        return self.cases.loc[self.cases["status"] == "bad", "case"].tolist()


def report_data(settings: DataSettings) -> int:
    """Check every case of a data set, print what is there, and write it to `data_dir/report`.

    Parameters
    ----------
    settings : DataSettings
        `data_dir`, `workers` and `skip_bad` are used.

    Returns
    -------
    int
        Exit status: 1 if a case is bad (unless `skip_bad`) or there is none, else 0.
    """
    try:
        cases = verse_cases.index_cases(settings.data_dir)
        most_bytes = settings.max_gigabytes * 2**30
        facts = check_cases(cases, workers=settings.workers, most_bytes=most_bytes)
        report = data_report(settings.data_dir, facts)
        write_data_report(report, settings.data_dir / REPORT_FOLDER)
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    print(page(report, shown=_SHOWN))
    print(printable(f"Written to {settings.data_dir / REPORT_FOLDER}."))
    if report.bad:
        print(printable(f"error: {len(report.bad)} bad cases: {', '.join(report.bad)}"), file=sys.stderr)
    return 1 if report.bad and not settings.skip_bad else 0


def check_cases(cases: Sequence[Case], *, workers: int, most_bytes: float = np.inf) -> list[CaseFacts]:
    """Check cases in parallel processes, with a bar and a line a case.

    Parameters
    ----------
    cases : sequence of Case
        Any cases of an index.
    workers : int
        Processes; 0 means one a core.
    most_bytes : float
        Memory that a CT or mask may take.

    Returns
    -------
    list of CaseFacts
        In the order of the cases. A case whose process was killed is an unreadable one.
    """
    found: dict[Case, CaseFacts] = {}
    check = partial(case_check.check_case, most_bytes=most_bytes)
    results = outcomes(check, cases, workers=workers, bytes_of=_peak_bytes)
    for case, result in tqdm(results, total=len(cases), desc="report", unit="case"):
        found[case] = case_check.unreadable_case(case, result) if isinstance(result, str) else result
        for line in _log_lines(found[case]):
            tqdm.write(printable(line), file=sys.stderr)
    return [found[case] for case in cases]


def data_report(data_dir: Path, facts: Sequence[CaseFacts]) -> DataReport:
    """Put what was found about the cases of a data set into tables.

    Parameters
    ----------
    data_dir : Path
        The data set; files are named relative to it.
    facts : sequence of CaseFacts
        All its cases.

    Returns
    -------
    DataReport
        The tables.
    """
    cases = [each.case for each in facts]
    vertebrae = [_vertebra_row(each.case, vertebra) for each in facts for vertebra in each.vertebrae]
    findings = [(each.case.key, each.case.split, finding) for each in facts for finding in each.findings]
    findings += [(subject, "", finding) for subject, finding in tree_findings(data_dir, cases)]
    rows = [
        (key, split, found.kind, int(found.bad), _relative(found.file, data_dir), found.what)
        for key, split, found in findings
    ]
    return DataReport(
        cases=pd.DataFrame([_case_row(each, data_dir) for each in facts], columns=CASE_COLUMNS),
        vertebrae=pd.DataFrame(vertebrae, columns=REPORT_VERTEBRA_COLUMNS),
        findings=pd.DataFrame(rows, columns=FINDING_COLUMNS),
        release=release_lines(data_dir, cases),
    )


def release_lines(data_dir: Path, cases: Sequence[Case]) -> tuple[str, ...]:
    """Say how much of the VerSe release is there; nothing of phantoms, which only have its names."""
    if (data_dir / PHANTOM_RECORD).exists() or not verse_cases.series_of_release(list(cases)):
        return ()
    series, patients = sum(verse_cases.RELEASED_SERIES.values()), verse_cases.RELEASED_PATIENTS
    whole = f"all {series} series of {patients} patients are there"
    return tuple(verse_cases.missing_of_release(list(cases))) or (whole,)


def tree_findings(data_dir: Path, cases: Sequence[Case]) -> Iterator[tuple[str, Finding]]:
    """Find what is odd about a tree as a whole.

    Parameters
    ----------
    data_dir : Path
        The data set.
    cases : sequence of Case
        Its index.

    Yields
    ------
    str, Finding
        A subject ("" where it is none) with: patients in several splits, files that were unpacked under the
        older release's name, and further NIfTI files that are no part of a case.
    """
    for subject, splits in verse_cases.subjects_in_several_splits(list(cases)).items():
        yield subject, Finding(SEVERAL_SPLITS, ", ".join(name or "no split" for name in splits))
    for path in verse_cases.visible_files(data_dir):
        is_nifti = path.name.lower().endswith((".nii", ".nii.gz"))
        if not is_nifti or verse_cases.parse_case_file(path, ()) is not None:
            continue
        if verse_cases.is_named_as_older_release(path):
            what = "expected the name of the restructured release, sub-..., as before it was unpacked"
            yield path.parent.name, Finding(OLDER_NAME, what, path)
        else:
            yield "", Finding(OTHER_NAME, "it belongs to no case", path)


def write_data_report(report: DataReport, folder: Path) -> None:
    """Write report.md, cases.csv, vertebrae.csv, findings.csv, levels.png and geometry.png into a folder.

    Every file is written whole or not at all; the folder is made if it is not there.
    """
    figures = {"levels.png": levels_figure(report.vertebrae), "geometry.png": geometry_figure(report.cases)}
    for name, figure in figures.items():
        with written_whole(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    texts = {
        "cases.csv": report.cases.to_csv(index=False),
        "vertebrae.csv": report.vertebrae.to_csv(index=False),
        "findings.csv": report.findings.to_csv(index=False),
        "report.md": page(report, figures=True),
    }
    for name, text in texts.items():
        write_text_whole(folder / name, text)


def page(report: DataReport, *, shown: int | None = None, figures: bool = False) -> str:
    """Give the report as a page in Markdown that also reads well in a terminal.

    Parameters
    ----------
    report : DataReport
        The tables.
    shown : int, optional
        Most lines of one kind of remark; by default all. Bad findings are always given in full.
    figures : bool
        Whether the page shows the figures beside it.

    Returns
    -------
    str
        Text with a newline at its end.
    """
    bars, dots = (
        ("\n\n![Vertebrae by level](levels.png)", "\n\n![Geometry](geometry.png)") if figures else ("", "")
    )
    bad = report.findings[report.findings["bad"].astype(bool)]
    sections = {
        "Series": markdown_table(split_table(report)),
        "VerSe release": "\n".join(f"- {line}" for line in report.release),
        "Vertebrae by level": markdown_table(level_table(report.vertebrae)) + bars,
        "Anomalies": markdown_table(anomaly_table(report.cases)),
        "Spacing and size": markdown_table(geometry_table(report.cases)) + dots,
        "How images are stored": markdown_table(storage_table(report.cases)),
        "Bad cases": "\n".join(_finding_lines(bad)) or "None.",
        "Remarks": _remarks_section(report.findings, shown) or "None.",
    }
    parts = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(["# Data set report", _EXPLANATION.strip(), *parts]) + "\n"


# Tables of the page --------------------------------------------------------------------------------


def split_table(report: DataReport) -> pd.DataFrame:
    """Count series, patients, complete series, bad ones and vertebrae by split, with a row for all."""
    cases = report.cases
    parts = {split or "no split": cases[cases["split"] == split] for split in splits_of(cases)}
    rows = [
        {
            "split": name,
            "series": len(here),
            "patients": here["subject"].str.casefold().nunique(),
            "with CT and mask": int(((here["ct"] != "") & (here["mask"] != "")).sum()),
            "bad": int((here["status"] == "bad").sum()),
            "vertebrae": int(here["vertebrae"].sum()),
        }
        for name, here in {**parts, "all": cases}.items()
    ]
    return pd.DataFrame(rows)


def level_table(vertebrae: pd.DataFrame) -> pd.DataFrame:
    """Count vertebrae by level (rows, from the top of the spine) and split."""
    levels = sorted(set(vertebrae["level"]), key=LEVEL_NAMES.index)
    counts = level_counts(vertebrae, levels).rename(columns={"": "no split"})
    return counts.assign(all=counts.sum(axis=1)).rename_axis("level").reset_index()


def anomaly_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Count the series with each anomaly, and name them."""
    rows = []
    for anomaly in ANOMALIES:
        keys = cases.loc[[anomaly in names.split("; ") for names in cases["anomalies"]], "case"].tolist()
        rows.append({"anomaly": anomaly, "series": len(keys), "cases": printable(", ".join(keys)) or None})
    return pd.DataFrame(rows)


def geometry_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Give smallest, median and largest spacing and field of view along the anatomical directions, in mm."""
    rows = []
    for quantity, name in (("spacing", "spacing"), ("extent", "field of view")):
        for direction, letters in report_figures.DIRECTIONS.items():
            values = cases[f"{quantity}_{letters.lower()}_mm"].astype(float).dropna()
            range_mm = [values.min(), values.median(), values.max()] if len(values) else []
            # As text: a table's cell would give every field of view three decimals.
            texts = [f"{number:.4g}" for number in range_mm] or [None] * 3
            rows.append((f"{name}, {direction}", *texts, len(values)))
    return pd.DataFrame(rows, columns=["mm", "smallest", "median", "largest", "series"])


def storage_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Count axes, number types, and codes of qform and sform of the images."""
    values = {"axes": cases["axes"], "CT numbers": cases["ct_type"], "mask numbers": cases["mask_type"]}
    for name, title in (("ct", "CT"), ("mask", "mask")):
        known = cases[cases[f"{name}_type"] != ""]
        codes = known[f"{name}_qform"].astype(str) + "/" + known[f"{name}_sform"].astype(str)
        values[f"{title} qform/sform code"] = codes
    return pd.DataFrame([{"of the image": name, "series": _format_counts(of)} for name, of in values.items()])


def _format_counts(values: pd.Series) -> str | None:
    counts = values[values != ""].value_counts(sort=False).sort_index()
    return ", ".join(f"{value}: {count}" for value, count in counts.items()) or None


# Sections of the page ------------------------------------------------------------------------------


def _remarks_section(findings: pd.DataFrame, shown: int | None) -> str:
    parts = []
    for kind in (*case_check.FINDING_KINDS, *TREE_KINDS):
        lines = list(_finding_lines(findings[findings["kind"] == kind], with_kind=False))
        if lines:
            more = [f"- and {len(lines) - shown} more"] if shown is not None and len(lines) > shown else []
            parts.append(
                f"### {kind[0].upper()}{kind[1:]}: {len(lines)}\n\n" + "\n".join(lines[:shown] + more)
            )
    return "\n\n".join(parts)


def _finding_lines(findings: pd.DataFrame, *, with_kind: bool = True) -> Iterator[str]:
    for row in findings.itertuples(index=False):
        place = f" ({row.split})" if row.split else ""
        words = [f"{row.case}{place}" if row.case else "", row.file, row.kind if with_kind else "", row.what]
        yield "- " + printable(": ".join(word for word in words if word))


# Rows ----------------------------------------------------------------------------------------------


def _case_row(facts: CaseFacts, data_dir: Path) -> dict[str, Any]:
    case = facts.case
    files = {name: _relative(getattr(case, name), data_dir) for name in ("ct", "mask", "centroids")}
    hu_low, hu_high = facts.hu_range or (None, None)
    return {
        **{"case": case.key, "subject": case.subject, "split": case.split, "year": case.year or ""},
        "status": "bad" if facts.bad else "complete" if case.complete else "incomplete",
        **files,
        **(_grid_columns(facts.image) if facts.image else {"axes": ""}),
        **_storage_columns("ct", facts.ct),
        **{"hu_low": hu_low, "hu_high": hu_high},
        **_storage_columns("mask", facts.mask),
        "vertebrae": len(facts.vertebrae),
        "levels": " ".join(name_of_code(each.code) for each in facts.vertebrae),
        "anomalies": "; ".join(facts.anomalies),
        "findings": "; ".join(dict.fromkeys(finding.kind for finding in facts.findings)),
    }


def _grid_columns(image: ImageFacts) -> dict[str, Any]:
    grid, axes = image.grid, image.axes
    columns: dict[str, Any] = {
        "shape": "x".join(map(str, grid.shape)),
        "spacing_mm": "x".join(f"{spacing:.4g}" for spacing in grid.spacing_mm),
        "axes": axes,
    }
    for letters in report_figures.DIRECTIONS.values():
        axis = next(index for index, end in enumerate(axes) if end in letters)
        spacing_mm = float(grid.spacing_mm[axis])
        columns[f"spacing_{letters.lower()}_mm"] = round(spacing_mm, 4)
        columns[f"extent_{letters.lower()}_mm"] = round(spacing_mm * grid.shape[axis], 1)
    return columns


def _storage_columns(name: str, image: ImageFacts | None) -> dict[str, Any]:
    number_type, (qform, sform) = (image.number_type, image.form_codes) if image else ("", ("", ""))
    return {f"{name}_type": number_type, f"{name}_qform": qform, f"{name}_sform": sform}


def _vertebra_row(case: Case, vertebra: VertebraFacts) -> dict[str, Any]:
    stray_voxels, distance_mm = sum(vertebra.strays), vertebra.centroid_distance_mm
    return {
        **{"case": case.key, "split": case.split, "year": case.year or ""},
        **{"level": name_of_code(vertebra.code), "label": vertebra.code, "voxels": vertebra.voxels},
        "volume_mm3": round(vertebra.volume_mm3, 1),
        "components": vertebra.components,
        "strays": len(vertebra.strays),
        "stray_voxels": stray_voxels,
        "stray_mm3": round(stray_voxels * vertebra.volume_mm3 / vertebra.voxels, 1),
        "touches_border": int(vertebra.touches_border),
        "centroid_distance_mm": None if distance_mm is None else round(distance_mm, 2),
    }


def _relative(path: Path | None, data_dir: Path) -> str:
    return "" if path is None else path.relative_to(data_dir).as_posix()


def _peak_bytes(case: Case) -> int:
    images = [path for path in (case.ct, case.mask) if path is not None]
    return case_check.PEAK_OF_NATIVE * max((native_bytes(path) for path in images), default=0)


def _log_lines(facts: CaseFacts) -> list[str]:
    levels = [name_of_code(vertebra.code) for vertebra in facts.vertebrae]
    span = f" ({levels[0]} to {levels[-1]})" if levels else ""
    lines = [f"{facts.case.key}: {len(levels)} vertebrae{span}, {len(facts.findings)} findings"]
    lines += [
        f"bad case {facts.case.key}: {each.file or ''}: {each.what}" for each in facts.findings if each.bad
    ]
    return lines
