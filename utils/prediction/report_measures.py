"""The numbers of the scans on the page of a report, and how they are distributed over the folder."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from utils.prediction.measure import RATIOS
from utils.prediction.quality import number_in
from utils.prediction.report_cases import ReportCase
from utils.prediction.report_html import cell, fixed, tag

#: Bars of a distribution, and the box that it is drawn in.
_BARS, _WIDTH, _HEIGHT = 24, 120, 24
_FRAME = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "preserveAspectRatio": "none"}


@dataclass(frozen=True)
class Shown:
    """A number of a scan: by what it is sorted, and what stands below it."""

    value: float
    note: str = ""


@dataclass(frozen=True)
class Quantity:
    """A number that scans are compared by.

    Attributes
    ----------
    name : str
        Name in the page's code.
    heading : str
        Heading of its column.
    meaning : str
        What it is, in a sentence.
    digits : int
        Digits after the point.
    of_case : callable
        Gives it of a case; None where it is not known.
    needs_measures : bool
        Whether it comes from `--measure`.
    """

    name: str
    heading: str
    meaning: str
    digits: int
    of_case: Callable[[ReportCase], Shown | None]
    needs_measures: bool = True


@dataclass(frozen=True)
class Column:
    """A quantity of all scans.

    Attributes
    ----------
    quantity : Quantity
        Which.
    shown : list of Shown or None
        Of each scan, in the order of the page.
    """

    quantity: Quantity
    shown: list[Shown | None]

    @property
    def values(self) -> list[float]:
        """The numbers that are known."""
        return [each.value for each in self.shown if each is not None]


def columns_of(cases: Sequence[ReportCase]) -> list[Column]:
    """Give the quantities that a folder has columns for; those of `--measure` where a scan was measured."""
    is_measured = any(case.measures is not None for case in cases)
    wanted = [each for each in QUANTITIES if is_measured or not each.needs_measures]
    return [Column(quantity, [quantity.of_case(case) for case in cases]) for quantity in wanted]


def _median(values: Iterable[float | None], digits: int) -> Shown | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = f"{fixed(min(known), digits)} to {fixed(max(known), digits)}"
    return Shown(statistics.median(known), spread)


def _volume(case: ReportCase) -> Shown | None:
    volumes = [number_in(row, "volume_mm3") for row in case.table]
    return _median((None if volume is None else volume / 1000 for volume in volumes), 1)


def _mean_hu(case: ReportCase) -> Shown | None:
    return _median((number_in(row, "mean_hu") for row in case.table), 0)


def _core_hu(case: ReportCase) -> Shown | None:
    return _median((number_in(row, "core_hu") for row in (case.measures or {}).values()), 0)


def _height_ratio(case: ReportCase) -> Shown | None:
    """Give the lowest ratio of heights, and where it is."""
    ratios = [
        (value, name)
        for name, row in (case.measures or {}).items()
        for column in RATIOS
        if (value := number_in(row, column)) is not None
    ]
    return Shown(*min(ratios)) if ratios else None


def _cobb(case: ReportCase) -> Shown | None:
    angles = case.angles or {}
    value = number_in(angles, "cobb_deg")
    return None if value is None else Shown(value, f"{angles.get('cobb_from')} to {angles.get('cobb_to')}")


def _angle(column: str) -> Callable[[ReportCase], Shown | None]:
    def of_case(case: ReportCase) -> Shown | None:
        value = number_in(case.angles or {}, column)
        return None if value is None else Shown(value)

    return of_case


_OVER_VERTEBRAE = "Median of the scan’s vertebrae; below it their range"
QUANTITIES = (
    Quantity("volume", "Volume, cm³", _OVER_VERTEBRAE, 1, _volume, needs_measures=False),
    Quantity("hu", "Mean HU", _OVER_VERTEBRAE, 0, _mean_hu, needs_measures=False),
    Quantity("core", "Core HU", "Cancellous bone of the body. " + _OVER_VERTEBRAE, 0, _core_hu),
    Quantity(
        *("ratio", "Lowest ratio", "Lowest anterior or middle height over the posterior one, and where"),
        *(2, _height_ratio),
    ),
    Quantity("cobb", "Cobb, °", "Largest Cobb angle, and between which vertebrae", 1, _cobb),
    Quantity("kyphosis", "Kyphosis, °", "Thoracic kyphosis, T4 to T12", 1, _angle("kyphosis_t4_t12_deg")),
    Quantity("lordosis", "Lordosis, °", "Lumbar lordosis, L1 to L5", 1, _angle("lordosis_l1_l5_deg")),
)


# Distributions -------------------------------------------------------------------------------------


def histogram(values: Sequence[float], bars: int = _BARS) -> list[int]:
    """Count values in bars of one width from the least to the largest; equal ones stand in the middle bar."""
    low, high = min(values), max(values)
    if low == high:
        return [len(values) if place == bars // 2 else 0 for place in range(bars)]
    return np.histogram(values, bars, (low, high))[0].tolist()


def place_in(value: float, values: Sequence[float]) -> float:
    """Give where a value lies between the least (0) and the largest (1); .5 where these are equal."""
    low, high = min(values), max(values)
    return 0.5 if low == high else (value - low) / (high - low)


def distributions(columns: Sequence[Column]) -> ElementTree.Element | None:
    """Draw how each quantity is distributed over the folder; None where none is known of any scan."""
    figures = [_figure(column.quantity, column.values) for column in columns if column.values]
    return tag("section", *figures, class_="distributions") if figures else None


def _figure(quantity: Quantity, values: Sequence[float]) -> ElementTree.Element:
    ends = (min(values), statistics.median(values), max(values))
    low, middle, high = (fixed(value, quantity.digits) for value in ends)
    scans = f"{len(values)} scan{'s' if len(values) > 1 else ''}"
    words = f"{quantity.heading} of {scans}: {low} to {high}, median {middle}"
    bars = tag("path", d=_bars(histogram(values)), id=f"spread-{quantity.name}")
    return tag(
        "figure",
        tag("figcaption", tag("strong", quantity.heading), " ", tag("span", scans, class_="small")),
        tag("svg", bars, role="img", aria_label=words, **_FRAME),
        tag("p", tag("span", low), tag("span", f"median {middle}"), tag("span", high), class_="ends"),
        title=quantity.meaning,
    )


def _bars(counts: Sequence[int]) -> str:
    """Give the outline of bars, the highest of which fills the frame."""
    width, most = _WIDTH / len(counts), max(counts)
    return "".join(
        f"M{place * width:.4g} {_HEIGHT}V{_HEIGHT * (1 - count / most):.4g}h{width:.4g}V{_HEIGHT}z"
        for place, count in enumerate(counts)
        if count
    )


def quantity_cells(columns: Sequence[Column], place: int) -> list[ElementTree.Element]:
    """Give the cells of the scan at a place, each number with where it lies in the distribution."""
    return [_quantity_cell(column, column.shown[place]) for column in columns]


def _quantity_cell(column: Column, shown: Shown | None) -> ElementTree.Element:
    quantity = column.quantity
    class_ = f"measure {quantity.name}"
    if shown is None:
        return cell(quantity.heading, None, class_=class_)
    at = _WIDTH * place_in(shown.value, column.values)
    strip = (
        tag("use", href=f"#spread-{quantity.name}"),
        tag("path", d=f"M{at:.4g} 0V{_HEIGHT}", class_="here"),
    )
    parts = (
        tag("span", fixed(shown.value, quantity.digits)),
        " ",
        tag("span", shown.note, class_="small") if shown.note else None,
        tag("svg", *strip, class_="strip", aria_hidden="true", **_FRAME),
    )
    return cell(quantity.heading, shown.value, *parts, class_=class_)
