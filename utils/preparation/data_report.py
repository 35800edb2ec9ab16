"""The data set report: what is in a data set, and what is odd about it, case by case.

`report_data` checks every case in parallel (`case_check`) and writes tables, a page and figures into the
data set's folder; no name there is that of a VerSe file, so the index leaves them alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from utils.execution import outcomes
from utils.files import written_whole
from utils.imaging.nifti import native_bytes
from utils.imaging.volume import Grid
from utils.preparation.case_check import (
    BAD_KINDS,
    C1_TOLERANCE_MM,
    CENTROID_TOLERANCE_MM,
    FINDING_KINDS,
    LEAST_STRAY_VOXELS,
    PEAK_OF_NATIVE,
    UNREADABLE_FILE,
    CaseFacts,
    Finding,
    ImageFacts,
    VertebraFacts,
    check_case,
)
from utils.preparation.report_figures import DIRECTIONS, geometry_figure, levels_figure, splits_of
from utils.settings import DataSettings
from utils.synthetic.phantom.record import PHANTOM_RECORD
from utils.tables import markdown_table
from utils.verse.anomalies import ANOMALIES
from utils.verse.cases import (
    RELEASED_PATIENTS,
    RELEASED_SERIES,
    Case,
    index_cases,
    is_named_as_older_release,
    missing_of_release,
    parse_case_file,
    series_of_release,
    subjects_in_several_splits,
    visible_files,
)
from utils.verse.labels import LEVEL_NAMES, name_of_code

REPORT_FOLDER = "report"
SEVERAL_SPLITS = "patient in several splits"
OLDER_NAME = "name of the older release"
OTHER_NAME = "image without a VerSe name"
#: Findings about the tree; all are remarks.
TREE_KINDS = (SEVERAL_SPLITS, OLDER_NAME, OTHER_NAME)
CASE_COLUMNS = (
    *("case", "subject", "split", "year", "status", "ct", "mask", "centroids", "shape", "spacing_mm", "axes"),
    *(
        f"{quantity}_{letters.lower()}_mm"
        for quantity in ("spacing", "extent")
        for letters in DIRECTIONS.values()
    ),
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
parts beside the largest with at least {LEAST_STRAY_VOXELS} voxels. A centroid is outside its vertebra if it
is more than {CENTROID_TOLERANCE_MM:g} mm away ({C1_TOLERANCE_MM:g} mm from C1, whose point lies in its ring).
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
        cases = index_cases(settings.data_dir)
        facts = check_cases(cases, workers=settings.workers)
        report = data_report(settings.data_dir, facts)
        write_data_report(report, settings.data_dir / REPORT_FOLDER)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page(report, shown=_SHOWN), end="")
    print(f"\nWritten to {settings.data_dir / REPORT_FOLDER}.")
    if report.bad:
        print(f"error: {len(report.bad)} bad cases: {', '.join(report.bad)}", file=sys.stderr)
    return 1 if report.bad and not settings.skip_bad else 0


def check_cases(cases: Sequence[Case], *, workers: int) -> list[CaseFacts]:
    """Check cases in parallel processes, with a bar and a line a case.

    Parameters
    ----------
    cases : sequence of Case
        Any cases of an index.
    workers : int
        Processes; 0 means one a core.

    Returns
    -------
    list of CaseFacts
        In the order of the cases. A case whose process was killed is an unreadable one.
    """
    found: dict[tuple[str, str], CaseFacts] = {}
    results = outcomes(check_case, cases, workers=workers, bytes_of=_peak_bytes)
    with tqdm(total=len(cases), desc="report", unit="case") as bar:
        for case, result in results:
            if isinstance(result, str):
                result = CaseFacts(
                    case, findings=(Finding(UNREADABLE_FILE, f"expected to be read, found {result}"),)
                )
            found[case.key, case.split] = result
            tqdm.write(_log_line(result), file=sys.stderr)
            bar.update()
    return [found[case.key, case.split] for case in cases]


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
    findings = [
        row
        for each in facts
        for row in _finding_rows(each.case.key, each.case.split, each.findings, data_dir)
    ]
    for key, finding in tree_findings(data_dir, cases):
        findings.extend(_finding_rows(key, "", [finding], data_dir))
    return DataReport(
        cases=pd.DataFrame([_case_row(each, data_dir) for each in facts], columns=CASE_COLUMNS),
        vertebrae=pd.DataFrame(
            [_vertebra_row(each, vertebra) for each in facts for vertebra in each.vertebrae],
            columns=REPORT_VERTEBRA_COLUMNS,
        ),
        findings=pd.DataFrame(findings, columns=FINDING_COLUMNS),
        release=release_lines(data_dir, cases),
    )


def release_lines(data_dir: Path, cases: Sequence[Case]) -> tuple[str, ...]:
    """Say how much of the VerSe release is there; nothing of phantoms, which only have its names."""
    if (data_dir / PHANTOM_RECORD).exists() or not series_of_release(list(cases)):
        return ()
    whole = f"all {sum(RELEASED_SERIES.values())} series of {RELEASED_PATIENTS} patients are there"
    return tuple(missing_of_release(list(cases))) or (whole,)


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
    for subject, splits in subjects_in_several_splits(list(cases)).items():
        yield subject, Finding(SEVERAL_SPLITS, ", ".join(name or "no split" for name in splits))
    for path in visible_files(data_dir):
        if not path.name.lower().endswith((".nii", ".nii.gz")) or parse_case_file(path, ()) is not None:
            continue
        if is_named_as_older_release(path):
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
        _write_figure(folder / name, figure)
    texts = {
        "cases.csv": report.cases.to_csv(index=False),
        "vertebrae.csv": report.vertebrae.to_csv(index=False),
        "findings.csv": report.findings.to_csv(index=False),
        "report.md": page(report, figures=True),
    }
    for name, text in texts.items():
        with written_whole(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


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
    cases, vertebrae = report.cases, report.vertebrae
    rows = []
    for name in (*splits_of(cases), None):
        here = cases if name is None else cases[cases["split"] == name]
        of_split = vertebrae if name is None else vertebrae[vertebrae["split"] == name]
        rows.append(
            {
                "split": "all" if name is None else name or "no split",
                "series": len(here),
                "patients": here["subject"].str.casefold().nunique(),
                "with CT and mask": int(((here["ct"] != "") & (here["mask"] != "")).sum()),
                "bad": int((here["status"] == "bad").sum()),
                "vertebrae": len(of_split),
            }
        )
    return pd.DataFrame(rows)


def level_table(vertebrae: pd.DataFrame) -> pd.DataFrame:
    """Count vertebrae by level (rows, from the top of the spine) and split."""
    splits = splits_of(vertebrae)
    rows = []
    for level in LEVEL_NAMES:
        here = vertebrae[vertebrae["level"] == level]
        counts = {split or "no split": int((here["split"] == split).sum()) for split in splits}
        if len(here):
            rows.append({"level": level, **counts, "all": len(here)})
    return pd.DataFrame(rows, columns=["level", *(split or "no split" for split in splits), "all"])


def anomaly_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Count the series with each anomaly, and name them."""
    rows = []
    for anomaly in ANOMALIES:
        has_it = cases["anomalies"].str.split("; ").map(lambda names, anomaly=anomaly: anomaly in names)
        keys = cases.loc[has_it.astype(bool), "case"].tolist()
        rows.append({"anomaly": anomaly, "series": len(keys), "cases": ", ".join(keys) or None})
    return pd.DataFrame(rows)


def geometry_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Give smallest, median and largest spacing and field of view along the anatomical directions, in mm."""
    rows = []
    for quantity, name in (("spacing", "spacing"), ("extent", "field of view")):
        for direction, letters in DIRECTIONS.items():
            values = cases[f"{quantity}_{letters.lower()}_mm"].astype(float)
            # As text: a table's cell would give every field of view three decimals.
            numbers = [f"{number:.4g}" for number in (values.min(), values.median(), values.max())]
            smallest, median, largest = numbers if values.notna().any() else [None] * 3
            facts = {
                "smallest": smallest,
                "median": median,
                "largest": largest,
                "series": int(values.notna().sum()),
            }
            rows.append({"mm": f"{name}, {direction}", **facts})
    return pd.DataFrame(rows)


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
    for kind in (*FINDING_KINDS, *TREE_KINDS):
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
        yield "- " + ": ".join(word for word in words if word)


# Rows ----------------------------------------------------------------------------------------------


def _case_row(facts: CaseFacts, data_dir: Path) -> dict[str, Any]:
    case = facts.case
    files = {name: _relative(getattr(case, name), data_dir) for name in ("ct", "mask", "centroids")}
    hu_low, hu_high = facts.hu_range or (None, None)
    return {
        **{"case": case.key, "subject": case.subject, "split": case.split, "year": case.year or ""},
        "status": "bad" if facts.bad else "complete" if case.complete else "incomplete",
        **files,
        **(_grid_columns(facts.image.grid, facts.image.axes) if facts.image else {"axes": ""}),
        **_storage_columns("ct", facts.ct),
        **{"hu_low": hu_low, "hu_high": hu_high},
        **_storage_columns("mask", facts.mask),
        "vertebrae": len(facts.vertebrae),
        "levels": " ".join(name_of_code(each.code) for each in facts.vertebrae),
        "anomalies": "; ".join(facts.anomalies),
        "findings": "; ".join(dict.fromkeys(finding.kind for finding in facts.findings)),
    }


def _grid_columns(grid: Grid, axes: str) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "shape": "x".join(map(str, grid.shape)),
        "spacing_mm": "x".join(f"{spacing:.4g}" for spacing in grid.spacing_mm),
        "axes": axes,
    }
    for letters in DIRECTIONS.values():
        axis = next(index for index, end in enumerate(axes) if end in letters)
        spacing_mm = float(grid.spacing_mm[axis])
        columns[f"spacing_{letters.lower()}_mm"] = round(spacing_mm, 4)
        columns[f"extent_{letters.lower()}_mm"] = round(spacing_mm * grid.shape[axis], 1)
    return columns


def _storage_columns(name: str, image: ImageFacts | None) -> dict[str, Any]:
    number_type, (qform, sform) = (image.number_type, image.form_codes) if image else ("", ("", ""))
    return {f"{name}_type": number_type, f"{name}_qform": qform, f"{name}_sform": sform}


def _vertebra_row(facts: CaseFacts, vertebra: VertebraFacts) -> dict[str, Any]:
    case, stray_voxels = facts.case, sum(vertebra.strays)
    distance_mm = vertebra.centroid_distance_mm
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


def _finding_rows(
    key: str, split: str, findings: Sequence[Finding], data_dir: Path
) -> Iterator[dict[str, Any]]:
    for finding in findings:
        facts = {"kind": finding.kind, "bad": int(finding.kind in BAD_KINDS), "what": finding.what}
        yield {"case": key, "split": split, **facts, "file": _relative(finding.file, data_dir)}


def _relative(path: Path | None, data_dir: Path) -> str:
    return "" if path is None else path.relative_to(data_dir).as_posix()


def _peak_bytes(case: Case) -> int:
    images = [path for path in (case.ct, case.mask) if path is not None]
    return PEAK_OF_NATIVE * max((native_bytes(path) for path in images), default=0)


def _log_line(facts: CaseFacts) -> str:
    levels = [name_of_code(vertebra.code) for vertebra in facts.vertebrae]
    span = f" ({levels[0]} to {levels[-1]})" if levels else ""
    lines = [f"{facts.case.key}: {len(levels)} vertebrae{span}, {len(facts.findings)} findings"]
    lines += [
        f"bad case {facts.case.key}: {each.file or ''}: {each.what}" for each in facts.findings if each.bad
    ]
    return "\n".join(lines)


def _write_figure(path: Path, figure: Figure) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
