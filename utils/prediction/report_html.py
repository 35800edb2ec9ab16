"""Elements of a page: ElementTree does the escaping, since names of scans may hold any character."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from utils.prediction.quality import percent

#: What stands where nothing is known.
NO_VALUE = "–"


def tag(name: str, *content: Any, **attributes: str | None) -> ElementTree.Element:
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


def html_of(element: ElementTree.Element) -> str:
    """Give the text of an element."""
    return ElementTree.tostring(element, encoding="unicode", method="html")


def cell(heading: str, value: Any, *content: Any, class_: str) -> ElementTree.Element:
    """Make a cell that is sorted by its value; one that narrow pages show under its heading."""
    content = content or (NO_VALUE if value is None else str(value),)
    plain = "" if value is None else str(value)
    return tag("td", *content, class_=class_, data_value=plain, data_heading=heading)


def percent_or_none(probability: float | None) -> str:
    """Give a probability for a reader, or a dash."""
    return NO_VALUE if probability is None else percent(probability)


def fixed(value: float | None, digits: int) -> str:
    """Give a number with so many digits after the point, or a dash."""
    return NO_VALUE if value is None else f"{value:.{digits}f}".replace("-", "−")
