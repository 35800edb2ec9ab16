"""The report of a prediction folder: one page that shows every scan, to be opened from the disk.

`write_scan_report` reads what `infer.py` wrote and makes `report.html` beside it. The page holds small
pictures itself and needs nothing but the full ones that lie in the folder; its policy forbids it every other
source. Without JavaScript it is a plain table. With it levels can be corrected (`report_levels.js`); a line
to copy or a file to save takes them back to `infer.py --relabel`.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from utils.files import written_whole
from utils.prediction import quality
from utils.prediction.case import ANATOMICAL, COUNT
from utils.prediction.doubt import UNREADABLE
from utils.prediction.measure import HEIGHTS, RATIOS
from utils.prediction.papers import ScanPapers, paper_lines
from utils.prediction.quality import CaseQuality, number_in, percent
from utils.prediction.report_cases import ReportCase, read_cases
from utils.prediction.report_html import NO_VALUE, cell, fixed, html_of, percent_or_none, tag
from utils.prediction.report_measures import Column, columns_of, distributions, quantity_cells
from utils.verse.labels import LEVEL_NAMES

REPORT_NAME = "report.html"
_PAGE = Path(__file__).with_name("report_page.html")
#: Core of the page's script, and what of it knows the document.
_SCRIPTS = ("report_levels.js", "report_page.js")
#: Up to this many vertebrae of one kind of remark are described in the row; more are only named.
_DESCRIBED = 2
_MEANING = {ANATOMICAL: "level names (C1 to L6, T13)", COUNT: "counted from the top"}
#: The numbers of a vertebra: heading, what the table's are divided by, and the digits that the page shows.
_OF_VERTEBRA = {
    "volume_mm3": ("cm³", (1000, 1)),
    "mean_hu": ("HU", (1, 0)),
    "mean_probability": ("Voxel p", (1, 2)),
    "label_probability": ("Label p", (1, 2)),
    "steps": ("Steps", (1, 0)),
}
_OF_MEASURES = {
    **{column: (f"{name}, mm", (1, 1)) for column, name in zip(HEIGHTS, ("Ant.", "Mid.", "Post."))},
    **{column: (name, (1, 2)) for column, name in zip(RATIOS, ("A/P", "M/P"))},
    "core_hu": ("Core HU", (1, 0)),
}


def write_scan_report(output: Path) -> Path:
    """Write the page of a prediction folder, whole or not at all.

    Parameters
    ----------
    output : Path
        Folder of the predictions.

    Returns
    -------
    Path
        The page, `output/report.html`. It depends on the files of the cases only.
    """
    path = output / REPORT_NAME
    page = report_page(read_cases(output))
    with written_whole(path) as temporary:
        # Names on a disk may hold bytes that are no text.
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


# Page ----------------------------------------------------------------------------------------------


def report_page(cases: Sequence[ReportCase]) -> str:
    """Give the page that shows cases.

    Parameters
    ----------
    cases : sequence of ReportCase
        In the order of the page.

    Returns
    -------
    str
        HTML with style and script inside.
    """
    style = _PAGE.with_suffix(".css").read_text(encoding="utf-8")
    script = "".join(_PAGE.with_name(name).read_text(encoding="utf-8") for name in _SCRIPTS)
    kinds = {kind for case in cases for kind in case.kinds}
    offered = [kind for kind in (UNREADABLE, *quality.REMARK_KINDS) if kind in kinds]
    columns = columns_of(cases)
    figures = distributions(columns)
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        facts=html_of(_facts(cases)),
        options="".join(html_of(tag("option", kind, value=kind)) for kind in offered),
        distributions="" if figures is None else html_of(figures),
        heads="\n".join(html_of(_head(column)) for column in columns),
        levels=" ".join(LEVEL_NAMES),
        rows="\n".join(html_of(_row(case, quantity_cells(columns, n))) for n, case in enumerate(cases)),
    )


def _head(column: Column) -> ElementTree.Element:
    quantity = column.quantity
    class_, meaning = f"measure {quantity.name}", quantity.meaning
    return tag("th", quantity.heading, scope="col", class_=class_, data_sort="number", title=meaning)


def _hash(text: str) -> str:
    """Name a text as a content security policy does."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _facts(cases: Sequence[ReportCase]) -> ElementTree.Element:
    newest = max((case.predicted for case in cases if case.predicted is not None), default=None)
    warned = sum(bool(case.warnings) for case in cases)
    facts = {
        "Scans": str(len(cases)),
        "With warnings": str(warned),
        "Newest prediction": _date(newest),
    }
    pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    return tag("dl", *pairs, class_="facts")


def _date(seconds: float | None) -> str:
    if seconds is None:
        return NO_VALUE
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _row(case: ReportCase, quantities: Sequence[ElementTree.Element]) -> ElementTree.Element:
    warnings = case.warnings
    names = [str(row["name"]) for row in case.table]
    searched = [case.key, *names, *(f"{kind} {name or ''} {text}" for kind, name, text in warnings)]
    sequence = None if case.quality is None else case.quality.sequence_probability
    top = LEVEL_NAMES.index(names[0]) + 1 if names and names[0] in LEVEL_NAMES else None
    known = bool(case.table) or not case.problems
    return tag(
        "tr",
        tag("td", _thumbnail(case), class_="picture"),
        cell("Scan", case.key, tag("div", case.key, class_="key"), _small_facts(case), class_="scan"),
        _doubt(case.doubt),
        cell("Count", len(case.table) if known else None, class_="number count"),
        cell("Labels", top, *_labels(case), class_="labels"),
        cell("Sequence", sequence, percent_or_none(sequence), class_="number sequence-p"),
        cell("Warnings", len(warnings), *_warning_list(warnings), class_="warnings"),
        *quantities,
        _folded(case),
        data_key=case.key,
        data_names=" ".join(case.names) if _can_be_corrected(case) else "",
        data_mask=case.mask_sha256,
        data_text=" ".join(searched).casefold(),
        data_kinds="|".join(case.kinds),
    )


def _can_be_corrected(case: ReportCase) -> bool:
    return bool(case.mask_sha256) and all(name in LEVEL_NAMES or name.isdecimal() for name in case.names)


def _doubt(parts: Mapping[str, float]) -> ElementTree.Element:
    """Give the sum, and what it is the sum of."""
    total = round(sum(parts.values()), 2)
    items = [tag("li", f"{name} {value:.2f}") for name, value in parts.items() if value >= 0.005]
    return cell("Doubt", total, f"{total:.2f}", tag("ul", *items, class_="small"), class_="number doubt")


def _thumbnail(case: ReportCase) -> ElementTree.Element:
    if case.picture is None:
        return tag("span", "no picture", class_="no-picture")
    address = "/".join(quote(os.fsencode(part)) for part in case.picture.split("/"))
    alternative = f"Snapshot of {case.key}"
    shown = tag("img", src=case.small, alt=alternative) if case.small else tag("span", "no small picture")
    return tag("a", shown, href=address, class_="thumbnail")


def _small_facts(case: ReportCase) -> ElementTree.Element:
    known = case.quality or CaseQuality(case.key, "")
    cost = [
        None if known.seconds is None else f"{known.seconds:.1f} s",
        None if known.network_calls is None else f"{known.network_calls} network calls",
    ]
    facts = [
        _MEANING.get(case.numbering or "", case.numbering),
        f"anchor: {known.anchor}" if known.anchor else None,
        _read_anchors(case),
        ", ".join(filter(None, cost)),
        None if case.predicted is None else _date(case.predicted),
    ]
    return tag("ul", *(tag("li", fact) for fact in facts if fact), class_="small")


def _read_anchors(case: ReportCase) -> str | None:
    """Name what was read that a count can hold on to, whether this one does or not."""
    texts = [
        f"{reading.text} {f'({name})' if name else '(no outline)'} {percent(reading.probability)}"
        for reading, name in case.readings
    ]
    return f"read: {', '.join(texts)}" if texts else None


def _labels(case: ReportCase) -> Iterable[ElementTree.Element | str]:
    if not case.table:
        return (NO_VALUE,)
    parts = [_sequence(case)]
    known = case.quality
    if known is not None and known.second_names:
        second = f"Runner-up {percent_or_none(known.second_probability)}: {' '.join(known.second_names)}"
        parts.append(tag("p", second, class_="small"))
    return parts


def _sequence(case: ReportCase) -> ElementTree.Element:
    chips = []
    for row in case.table:
        probability, odd = number_in(row, "label_probability"), case.remarks_on(row["name"])
        certainty = None if probability is None else tag("small", f" {percent_or_none(probability)}")
        chips.append(tag("li", row["name"], certainty, class_="odd" if odd else None, title=odd or None))
    return tag("ol", *chips, class_="sequence")


def _folded(case: ReportCase) -> ElementTree.Element | None:
    """Give what is seen of a case when it is asked for; None if nothing is known."""
    papers = None if case.quality is None else case.quality.papers
    parts = [_details(case) if case.table else None, _papers(papers) if papers else None]
    return tag("td", *parts, class_="details") if any(part is not None for part in parts) else None


def _papers(papers: ScanPapers) -> ElementTree.Element:
    """Give what was read of a scan, folded."""
    lines = [(tag("dt", heading), tag("dd", text)) for heading, text in paper_lines(papers).items()]
    listed = tag("dl", *(part for line in lines for part in line), class_="papers")
    return tag("details", tag("summary", "What was read"), listed)


def _details(case: ReportCase) -> ElementTree.Element:
    """Give the vertebrae one by one, folded."""
    numbers = {**_OF_VERTEBRA, **({} if case.measures is None else _OF_MEASURES)}
    headings = ("Label", *(heading for heading, _ in numbers.values()), "Remarks")
    head = tag("thead", tag("tr", *(tag("th", heading, scope="col") for heading in headings)))
    rows = []
    for row in case.table:
        measured = (case.measures or {}).get(row["name"], {})
        own = [_number_cell({**measured, **row}, column, *form) for column, (_, form) in numbers.items()]
        texts = (case.remarks_on(row["name"]), measured.get("hint"), measured.get("why"))
        remarks = tag("td", "; ".join(filter(None, texts)))
        rows.append(tag("tr", tag("th", row["name"], scope="row"), *own, remarks))
    table = tag("table", head, tag("tbody", *rows))
    return tag("details", tag("summary", "Each vertebra"), tag("div", table, class_="scroll"))


def _number_cell(row: Mapping[str, Any], column: str, unit: int, digits: int) -> ElementTree.Element:
    value = number_in(row, column)
    return tag("td", fixed(None if value is None else value / unit, digits))


def _warning_list(warnings: Sequence[tuple[str, str | None, str]]) -> Iterable[ElementTree.Element | str]:
    if not warnings:
        return (tag("span", "none", class_="small"),)
    by_kind: dict[str, list[tuple[str | None, str]]] = {}
    for kind, vertebra, text in warnings:
        by_kind.setdefault(kind, []).append((vertebra, text))
    items = [
        tag("li", tag("strong", kind), " ", _warning_text(found), class_=kind.replace(" ", "-"))
        for kind, found in by_kind.items()
    ]
    return (tag("ul", *items),)


def _warning_text(found: Sequence[tuple[str | None, str]]) -> str:
    """Describe the warnings of one kind; if there are many, name their vertebrae."""
    if len(found) > _DESCRIBED and all(vertebra for vertebra, _ in found):
        return ", ".join(str(vertebra) for vertebra, _ in found)
    return "; ".join(f"{vertebra}: {text}" if vertebra else text for vertebra, text in found)
