"""The report of a prediction folder: one page that shows every scan, to be opened from the disk.

`write_scan_report` reads what `infer.py` wrote and makes `report.html` beside it. The page needs nothing but
the pictures that lie in the folder; its policy forbids it every other source. Without JavaScript it is a
plain table. ElementTree does the escaping, since names of scans may hold any character.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from utils.files import read_table, written_whole
from utils.prediction import derivatives, quality
from utils.prediction.case import ANATOMICAL, COUNT
from utils.prediction.derivatives import MASK_SUFFIX, SNAPSHOT_SUFFIX, TABLE_SUFFIX
from utils.prediction.papers import ScanPapers, paper_lines
from utils.prediction.quality import CaseQuality, Remark, case_remarks, number_in, read_quality
from utils.verse.cases import visible_files
from utils.verse.labels import LEVEL_NAMES

REPORT_NAME = "report.html"
#: Kind of what the page itself finds wrong with a case's files.
UNREADABLE = "unreadable"
#: Files that make a case known; a picture alone does not.
_CASE_SUFFIXES = (TABLE_SUFFIX, quality.QUALITY_SUFFIX, derivatives.SETTINGS_SUFFIX, MASK_SUFFIX)
_NEEDED_COLUMNS = ("name", "numbering", "volume_mm3", "mean_hu")
_PAGE = Path(__file__).with_name("report_page.html")
_NO_VALUE = "–"
#: Up to this many vertebrae of one kind of remark are described in the row; more are only named.
_DESCRIBED = 2
_MEANING = {ANATOMICAL: "level names (C1 to L6, T13)", COUNT: "counted from the top"}
#: The numbers of a vertebra: what the table's are divided by, and the digits that the page shows.
_UNITS = {
    **{"volume_mm3": (1000, 1), "mean_hu": (1, 0)},
    **{"mean_probability": (1, 2), "label_probability": (1, 2), "steps": (1, 0)},
}


@dataclass(frozen=True)
class ReportCase:
    """A case of the page.

    Attributes
    ----------
    key : str
        The case.
    table : tuple of mapping
        A row a vertebra from the top down, as text.
    quality : CaseQuality or None
        What is known beside the table; older predictions have none.
    picture : str or None
        Path of the snapshot from the page's folder, with "/"; None if there is none.
    predicted : float or None
        When the mask was written, in seconds since 1970; None if it is not there.
    problems : tuple of str
        What is wrong with the files.
    """

    key: str
    table: tuple[Mapping[str, str], ...] = ()
    quality: CaseQuality | None = None
    picture: str | None = None
    predicted: float | None = None
    problems: tuple[str, ...] = ()

    @property
    def numbering(self) -> str | None:
        """What the labels mean, `COUNT` or `ANATOMICAL`; None if no file says so."""
        if self.table:
            return self.table[0]["numbering"]
        return None if self.quality is None else self.quality.kind

    @cached_property
    def remarks(self) -> tuple[Remark, ...]:
        """What is odd; without a quality file, what the table shows."""
        if self.quality is not None:
            return self.quality.warnings
        return () if self.problems else case_remarks(self.table)

    def remarks_on(self, vertebra: str) -> str:
        """Give the remarks on one vertebra as one text."""
        found = [f"{remark.kind}: {remark.text}" for remark in self.remarks if remark.vertebra == vertebra]
        return "; ".join(found)

    @property
    def warnings(self) -> list[tuple[str, str | None, str]]:
        """Kind, vertebra and text of all that a user should look at."""
        odd = [(remark.kind, remark.vertebra, remark.text) for remark in self.remarks]
        return [*((UNREADABLE, None, problem) for problem in self.problems), *odd]


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


# Cases ---------------------------------------------------------------------------------------------


def read_cases(output: Path) -> list[ReportCase]:
    """Read all cases of a prediction folder.

    Parameters
    ----------
    output : Path
        Folder of the predictions.

    Returns
    -------
    list of ReportCase
        By name, numbers in it as numbers. Files that are missing or cannot be read are problems of their
        case, not errors.
    """
    found = {
        (path.parent, path.name.removesuffix(suffix))
        for path in visible_files(output / "derivatives")
        for suffix in _CASE_SUFFIXES
        if path.name.endswith(suffix)
    }
    cases = [_read_case(folder, key, output) for folder, key in sorted(found)]
    return sorted(cases, key=lambda case: _natural(case.key))


def _natural(text: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", text)
    return [(int(part) if place % 2 else 0, part) for place, part in enumerate(parts)]


def _read_case(folder: Path, key: str, output: Path) -> ReportCase:
    mask, picture = folder / f"{key}{MASK_SUFFIX}", folder / f"{key}{SNAPSHOT_SUFFIX}"
    facts: dict[str, Any] = {}
    problems = [] if mask.is_file() else [f"{mask.name} is not there: the prediction was not finished."]
    readers = {"table": (_read_table, TABLE_SUFFIX), "quality": (read_quality, quality.QUALITY_SUFFIX)}
    for name, (read, suffix) in readers.items():
        try:
            facts[name] = read(folder / f"{key}{suffix}")
        except ValueError as error:
            problems.append(str(error).replace(f"{folder}{os.sep}", ""))
    return ReportCase(
        key,
        **facts,
        picture=picture.relative_to(output).as_posix() if picture.is_file() else None,
        predicted=mask.stat().st_mtime if mask.is_file() else None,
        problems=tuple(problems),
    )


def _read_table(path: Path) -> tuple[dict[str, str], ...]:
    return tuple(read_table(path, _NEEDED_COLUMNS, "the table of a case"))


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
    style, script = (_PAGE.with_suffix(end).read_text(encoding="utf-8") for end in (".css", ".js"))
    kinds = {kind for case in cases for kind, _, _ in case.warnings}
    offered = [kind for kind in (UNREADABLE, *quality.REMARK_KINDS) if kind in kinds]
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        facts=_html(_facts(cases)),
        options="".join(_html(_tag("option", kind, value=kind)) for kind in offered),
        rows="\n".join(_html(_row(case)) for case in cases),
    )


def _hash(text: str) -> str:
    """Name a text as a content security policy does."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _tag(name: str, *content: Any, **attributes: str | None) -> ElementTree.Element:
    """Make an element; "class_" and "data_x" stand for "class" and "data-x"; None is left out."""
    given = {key: value for key, value in attributes.items() if value is not None}
    element = ElementTree.Element(name, {key.rstrip("_").replace("_", "-"): given[key] for key in given})
    for part in (part for part in content if part is not None):
        if isinstance(part, ElementTree.Element):
            element.append(part)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + part
        else:
            element.text = (element.text or "") + part
    return element


def _html(element: ElementTree.Element) -> str:
    return ElementTree.tostring(element, encoding="unicode", method="html")


def _facts(cases: Sequence[ReportCase]) -> ElementTree.Element:
    newest = max((case.predicted for case in cases if case.predicted is not None), default=None)
    warned = sum(bool(case.warnings) for case in cases)
    facts = {
        "Scans": str(len(cases)),
        "With warnings": str(warned),
        "Newest prediction": _date(newest),
    }
    pairs = [_tag("div", _tag("dt", name), _tag("dd", value)) for name, value in facts.items()]
    return _tag("dl", *pairs, class_="facts")


def _date(seconds: float | None) -> str:
    if seconds is None:
        return _NO_VALUE
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _row(case: ReportCase) -> ElementTree.Element:
    warnings = case.warnings
    names = [str(row["name"]) for row in case.table]
    searched = [case.key, *names, *(f"{kind} {name or ''} {text}" for kind, name, text in warnings)]
    sequence = None if case.quality is None else case.quality.sequence_probability
    top = LEVEL_NAMES.index(names[0]) + 1 if names and names[0] in LEVEL_NAMES else None
    known = bool(case.table) or not case.problems
    return _tag(
        "tr",
        _tag("td", _thumbnail(case), class_="picture"),
        _cell("Scan", case.key, _tag("div", case.key, class_="key"), _small_facts(case), class_="scan"),
        _cell("Count", len(case.table) if known else None, class_="number count"),
        _cell("Labels", top, *_labels(case), class_="labels"),
        _cell("Sequence", sequence, _percent(sequence), class_="number sequence-p"),
        _quantity_cell("Volume, cm³", case.table, "volume_mm3", class_="volume"),
        _quantity_cell("Mean HU", case.table, "mean_hu", class_="hu"),
        _cell("Warnings", len(warnings), *_warning_list(warnings), class_="warnings"),
        _folded(case),
        data_text=" ".join(searched).casefold(),
        data_kinds="|".join(dict.fromkeys(kind for kind, _, _ in warnings)),
    )


def _cell(heading: str, value: Any, *content: Any, class_: str) -> ElementTree.Element:
    """Make a cell that is sorted by its value; one that narrow pages show under its heading."""
    content = content or (_NO_VALUE if value is None else str(value),)
    plain = "" if value is None else str(value)
    return _tag("td", *content, class_=class_, data_value=plain, data_heading=heading)


def _thumbnail(case: ReportCase) -> ElementTree.Element:
    if case.picture is None:
        return _tag("span", "no picture", class_="no-picture")
    address = "/".join(quote(os.fsencode(part)) for part in case.picture.split("/"))
    image = _tag("img", src=address, alt=f"Snapshot of {case.key}", loading="lazy", decoding="async")
    return _tag("a", image, href=address, class_="thumbnail", data_key=case.key)


def _small_facts(case: ReportCase) -> ElementTree.Element:
    known = case.quality or CaseQuality(case.key, "")
    cost = [
        None if known.seconds is None else f"{known.seconds:.1f} s",
        None if known.network_calls is None else f"{known.network_calls} network calls",
    ]
    facts = [
        _MEANING.get(case.numbering or "", case.numbering),
        f"anchor: {known.anchor}" if known.anchor else None,
        ", ".join(filter(None, cost)),
        None if case.predicted is None else _date(case.predicted),
    ]
    return _tag("ul", *(_tag("li", fact) for fact in facts if fact), class_="small")


def _percent(probability: float | None) -> str:
    if probability is None:
        return _NO_VALUE
    if probability < 0.005:
        return "<1 %"
    return ">99 %" if probability >= 0.995 else f"{100 * probability:.0f} %"


def _quantity_cell(
    heading: str, table: Sequence[Mapping[str, str]], column: str, *, class_: str
) -> ElementTree.Element:
    """Give the median of the vertebrae and, below it, the range."""
    known = [value for row in table if (value := _shown_number(row, column)) is not None]
    if not known:
        return _cell(heading, None, class_=f"number {class_}")
    median = statistics.median(known)
    middle, low, high = (_fixed(value, column) for value in (median, min(known), max(known)))
    spread = _tag("div", f"{low} to {high}", class_="small")
    return _cell(heading, median, _tag("div", middle), spread, class_=f"number {class_}")


def _shown_number(row: Mapping[str, str], column: str) -> float | None:
    """Read a number of a row in the unit that the page shows."""
    value = number_in(row, column)
    return None if value is None else value / _UNITS[column][0]


def _fixed(value: float | None, column: str) -> str:
    return _NO_VALUE if value is None else f"{value:.{_UNITS[column][1]}f}".replace("-", "−")


def _labels(case: ReportCase) -> Iterable[ElementTree.Element | str]:
    if not case.table:
        return (_NO_VALUE,)
    parts = [_sequence(case)]
    known = case.quality
    if known is not None and known.second_names:
        second = f"Runner-up {_percent(known.second_probability)}: {' '.join(known.second_names)}"
        parts.append(_tag("p", second, class_="small"))
    return parts


def _sequence(case: ReportCase) -> ElementTree.Element:
    chips = []
    for row in case.table:
        probability, odd = number_in(row, "label_probability"), case.remarks_on(row["name"])
        certainty = None if probability is None else _tag("small", f" {_percent(probability)}")
        chips.append(_tag("li", row["name"], certainty, class_="odd" if odd else None, title=odd or None))
    return _tag("ol", *chips, class_="sequence")


def _folded(case: ReportCase) -> ElementTree.Element | None:
    """Give what is seen of a case when it is asked for; None if nothing is known."""
    papers = None if case.quality is None else case.quality.papers
    parts = [_details(case) if case.table else None, _papers(papers) if papers else None]
    return _tag("td", *parts, class_="details") if any(part is not None for part in parts) else None


def _papers(papers: ScanPapers) -> ElementTree.Element:
    """Give what was read of a scan, folded."""
    lines = [(_tag("dt", heading), _tag("dd", text)) for heading, text in paper_lines(papers).items()]
    listed = _tag("dl", *(part for line in lines for part in line), class_="papers")
    return _tag("details", _tag("summary", "What was read"), listed)


def _details(case: ReportCase) -> ElementTree.Element:
    """Give the vertebrae one by one, folded."""
    headings = ("Label", "cm³", "HU", "Voxel p", "Label p", "Steps", "Remarks")
    head = _tag("thead", _tag("tr", *(_tag("th", heading, scope="col") for heading in headings)))
    rows = [_detail_row(row, case.remarks_on(row["name"])) for row in case.table]
    table = _tag("table", head, _tag("tbody", *rows))
    return _tag("details", _tag("summary", "Each vertebra"), _tag("div", table, class_="scroll"))


def _detail_row(row: Mapping[str, str], remarks: str) -> ElementTree.Element:
    numbers = [_tag("td", _fixed(_shown_number(row, column), column)) for column in _UNITS]
    return _tag("tr", _tag("th", row["name"], scope="row"), *numbers, _tag("td", remarks))


def _warning_list(warnings: Sequence[tuple[str, str | None, str]]) -> Iterable[ElementTree.Element | str]:
    if not warnings:
        return (_tag("span", "none", class_="small"),)
    by_kind: dict[str, list[tuple[str | None, str]]] = {}
    for kind, vertebra, text in warnings:
        by_kind.setdefault(kind, []).append((vertebra, text))
    items = [
        _tag("li", _tag("strong", kind), " ", _warning_text(found), class_=kind.replace(" ", "-"))
        for kind, found in by_kind.items()
    ]
    return (_tag("ul", *items),)


def _warning_text(found: Sequence[tuple[str | None, str]]) -> str:
    """Describe the warnings of one kind; if there are many, name their vertebrae."""
    if len(found) > _DESCRIBED and all(vertebra for vertebra, _ in found):
        return ", ".join(str(vertebra) for vertebra, _ in found)
    return "; ".join(f"{vertebra}: {text}" if vertebra else text for vertebra, text in found)
