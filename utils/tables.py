"""Tables and texts in Markdown, for pages and for the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd


def markdown_table(table: pd.DataFrame) -> str:
    """Give a table in Markdown, padded so that it reads well as plain text too; "–" stands for no value."""
    cells = [list(table.columns), *([cell(value) for value in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(row, widths)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def cell(value: Any) -> str:
    """Give a value as the text of a cell: three decimals for a float, "–" for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def text_beside(module: str, name: str, **facts: Any) -> str:
    """Give the text of a file that lies beside a module, with facts in the places of their names.

    Parameters
    ----------
    module : str
        The module's `__file__`.
    name : str
        Name of the file, in which "{fact}" stands for a fact.
    **facts
        Values by name.

    Returns
    -------
    str
    """
    return Path(module).with_name(name).read_text(encoding="utf-8").format(**facts)
