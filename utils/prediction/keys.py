"""Keys that tell apart the scans of a run, and of the runs before it into the same folder."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.prediction.derivatives import read_case_settings
from utils.prediction.provenance import is_same_scan, scan_identity
from utils.prediction.scans import HASH_LETTERS, Scan

#: Scans of one name that a line lists.
_MOST_LISTED = 3


def tell_apart(
    scans: Sequence[Scan], output: Path, *, only_own: bool = False
) -> tuple[list[Scan], list[str]]:
    """Give every scan a key that neither another scan nor another scan's prediction has.

    A scan keeps the key under which `output` holds its prediction. Any other gets its plain key; where
    several would share that, with the parent folder in it; and where this does not help, or a prediction of
    another scan has the key, with a hash of the content, or of content and path, at its end.

    Parameters
    ----------
    scans : sequence of Scan
        From `find_scans`.
    output : Path
        Where predictions are written; it need not exist.
    only_own : bool
        Whether a scan without a prediction keeps its plain key, as nothing new is to be written.

    Returns
    -------
    named : list of Scan
        In the order given.
    lines : list of str
        Which keys differ from the plain ones, a line for each plain key.
    """
    plain = Counter(scan.key for scan in scans)
    with_parent = Counter(_with_parent(scan) for scan in scans)
    taken: set[str] = set()
    named = []
    for scan in scans:
        is_clear = with_parent[_with_parent(scan)] == 1
        fresh = [scan.key] if plain[scan.key] == 1 else [_with_parent(scan)] if is_clear else []
        key = _own(scan, output, taken) or _free(scan, output, taken, fresh)
        if only_own and read_case_settings(output, key) is None:
            key = scan.key
        taken.add(key)
        named.append(dataclasses.replace(scan, key=key))
    return named, _lines(scans, named)


def _own(scan: Scan, output: Path, taken: set[str]) -> str | None:
    """Give the key under which the scan has been predicted; hashes have their turn in `_free`."""
    keys = (key for key in (scan.key, _with_parent(scan)) if key not in taken)
    return next((key for key in keys if _holds(scan, key, output) is True), None)


def _free(scan: Scan, output: Path, taken: set[str], fresh: Sequence[str]) -> str:
    keys = _and_hashes(scan, fresh)
    return next(key for key in keys if key not in taken and _holds(scan, key, output) is not False)


def _and_hashes(scan: Scan, keys: Sequence[str]) -> Iterator[str]:
    """Give keys, then those with a hash, for which the scan is read."""
    yield from keys
    path = os.fsencode(scan.path.absolute())
    try:
        content = scan_identity(scan)["sha256"]
    except (ValueError, OSError):  # what is wrong with it is said when it is its turn
        content = ""
    if content:
        yield f"{scan.key}_hash-{content[:HASH_LETTERS]}"
    number = 0
    while True:
        both = hashlib.sha256(content.encode() + path + b"\0" * number).hexdigest()
        yield f"{scan.key}_hash-{both[:HASH_LETTERS]}"
        number += 1


def _holds(scan: Scan, key: str, output: Path) -> bool | None:
    """Whether the prediction of a key is of this scan; None if there is none, or the scan cannot be read."""
    found = read_case_settings(output, key)
    try:
        return None if found is None else is_same_scan(scan, found.get("scan"))
    except (ValueError, OSError):
        return None


def _with_parent(scan: Scan) -> str:
    folder = scan.path.absolute()
    name = re.sub(r"[^A-Za-z0-9]", "", folder.name if scan.series else folder.parent.name)
    return f"sub-{name}-{scan.key.removeprefix('sub-')}" if name else scan.key


def _lines(scans: Sequence[Scan], named: Sequence[Scan]) -> list[str]:
    changed: dict[str, list[str]] = {}
    for scan, new in zip(scans, named):
        if new.key != scan.key:
            changed.setdefault(scan.key, []).append(f"{scan.path} as {new.key}")
    lines = []
    for key, texts in changed.items():
        more = f" and {len(texts) - _MOST_LISTED} more" if len(texts) > _MOST_LISTED else ""
        lines.append(f"{key} is the name of several scans: {', '.join(texts[:_MOST_LISTED])}{more}.")
    return lines
