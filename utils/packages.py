"""Packages that not every run needs: which are there, and which requirements file installs a missing one."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[1]
#: What is needed to segment; `requirements-common.txt` is a part of it.
_SEGMENTING = "requirements.txt"


def check_packages(*names: str) -> None:
    """Raise a `ModuleNotFoundError` that names the first package that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def line_about_missing(error: ModuleNotFoundError) -> str | None:
    """Say what to install where a package was not found.

    Parameters
    ----------
    error : ModuleNotFoundError
        From an import, or from `check_packages`.

    Returns
    -------
    str or None
        One line; None where no requirements file has the package, which then is no matter of the
        installation.
    """
    package = (error.name or "").partition(".")[0]
    files = [_PROJECT / _SEGMENTING, *sorted(_PROJECT.glob("requirements-*.txt"))]
    found = next((path.name for path in files if package and _has(path, package)), None)
    if found is None:
        return None
    wanted = _SEGMENTING if found == "requirements-common.txt" else found
    return f"error: expected the package {package}, found none: pip install -r {wanted}"


def _has(path: Path, package: str) -> bool:
    """Whether a requirements file has a package, by the name that it is imported with."""
    lines = path.read_text(encoding="utf-8").lower().splitlines()
    names = {re.split(r"[^\w.-]", line)[0].replace("-", "_") for line in lines}
    return package.lower() in names
