"""Which tests must not be skipped: those whose requirement is there.

`conftest` asks this at the end of every run; such a skip makes the run fail, so that a test that looks for
something in the wrong place is not passed over for ever.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"
_SYSTEM_FOLDERS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
#: What a reason to skip names, and whether it is there; a group of the pattern is handed over.
REQUIREMENTS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (r"shared/([\w-]+)", lambda folder: (SHARED / folder).is_dir()),
    (r"(nginx) is not installed", lambda name: shutil.which(name, path=_SYSTEM_FOLDERS) is not None),
    (r"(Chromium) or its driver", lambda name: has_browser()),
    (r"could not import '(\w+)", lambda name: importlib.util.find_spec(name) is not None),
)


def has_browser() -> bool:
    """Whether a Chromium can be started here: one on the path, or one that a package brings."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return any(map(shutil.which, names)) or importlib.util.find_spec("playwright") is not None


def wrong_skips(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """Give a line for every skipped test, by place and reason, whose requirement is there."""
    lines = []
    for place, reason in skipped:
        found = [(re.search(pattern, reason), is_there) for pattern, is_there in REQUIREMENTS]
        if any(match and is_there(match[1]) for match, is_there in found):
            lines.append(f"{place}: expected to run, found it skipped though what it needs is here: {reason}")
    return lines
