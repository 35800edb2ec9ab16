"""What a prediction was made from, and how: the record beside it, by which a rerun knows what is done.

A scan is known by its content, so a copy of it, or one that was moved, is the same scan. As for a prepared
case (`utils.preparation.prepared`), files of the same size and times are not read again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import sha256_of
from utils.imaging.file_checks import check_is_file
from utils.imaging.formats import files_of_scan
from utils.prediction.derivatives import FILES, changed_files, read_case_settings
from utils.prediction.networks import Networks
from utils.prediction.scans import Scan
from utils.settings import InferenceSettings, settings_as_json

#: Settings that change nothing in what a case's files hold.
_INDIFFERENT = (
    *("inputs", "output", "work_dir", "segmentation", "heatmap", "labelling", "relabel", "corrections"),
    *("formats", "workers", "scheduler", "shard", "seed", "device", "skip_bad", "report"),
    *("max_gigabytes", "measure"),
)
#: Counted up when predictions change their meaning, so that older ones are made again.
_INFERENCE = 5


def scan_identity(scan: Scan) -> dict[str, Any]:
    """Say what tells a scan from another one.

    Parameters
    ----------
    scan : Scan
        Its files are read.

    Returns
    -------
    dict
        Path; number of files, their bytes, and the last of their times of change, in ns; the SHA-256 of a
        single file, or of the hashes of several. Where the files of a DICOM series lie, and what they are
        called, does not count: their headers hold their order.

    Raises
    ------
    ValueError
        If a file is not there, is empty, or is none.
    """
    files = _files_of(scan)
    stamp = _stamp(files)
    digest = _content(files, tuple(stamp.values()), is_ordered=not scan.series)
    return {"path": str(scan.path.resolve()), **stamp, "sha256": digest}


def is_same_scan(scan: Scan, known: Any) -> bool:
    """Whether a scan has the content that an identity was given for, wherever it lies now.

    Parameters
    ----------
    scan : Scan
        Its files are read where number, size or times are not those known.
    known : any
        What a record holds. Earlier versions wrote no hash of the content: theirs is another scan.

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        As `scan_identity`.
    """
    if not isinstance(known, dict) or "changed_ns" not in known:
        return False
    stamp = _stamp(_files_of(scan))
    if any(known.get(name) != stamp[name] for name in ("files", "bytes")):
        return False
    return stamp.items() <= known.items() or scan_identity(scan)["sha256"] == known.get("sha256")


def record_of(
    identity: Mapping[str, Any], networks: Networks | None, settings: InferenceSettings
) -> dict[str, Any]:
    """Give what a prediction is made from and with: settings that count, scan, and the networks, if any."""
    return {**_made_with(networks, settings), "scan": dict(identity)}


def relabelled_record(scan: Scan, settings: InferenceSettings) -> dict[str, Any]:
    """Give the record of a case whose labels are to be changed, as if it had been predicted with them.

    Parameters
    ----------
    scan : Scan
        The scan that the case is of.
    settings : InferenceSettings
        Where the case is, and its new levels.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If there is no such case, or one of another scan.
    """
    old = read_case_settings(settings.output, scan.key)
    if old is None:
        raise ValueError(f"{settings.output}: expected a prediction of {scan.key} to relabel, found none.")
    if not is_same_scan(scan, old.get("scan")):
        raise ValueError(
            f"{scan.path}: expected the scan that the prediction in {settings.output} is of, found another, "
            "or no hash of it there: predict it again."
        )
    return {**old, "first_label": settings.first_label, "fix": list(settings.fix)}


def is_done(scan: Scan, networks: Networks | None, settings: InferenceSettings) -> bool:
    """Whether a scan's prediction is there, made from this content with all that counts, and unchanged."""
    found = _made_alike(scan, networks, settings)
    return found is not None and not changed_files(settings.output, scan.key, found)


def files_to_mend(scan: Scan, networks: Networks | None, settings: InferenceSettings) -> list[str]:
    """Name the files for which alone a prediction is made again: they are not as they were written."""
    found = _made_alike(scan, networks, settings)
    return [] if found is None else changed_files(settings.output, scan.key, found)


def _made_alike(scan: Scan, networks: Networks | None, settings: InferenceSettings) -> dict[str, Any] | None:
    """Give the record of a prediction from this content with all that counts; None if there is none."""
    found = read_case_settings(settings.output, scan.key) or {}
    made_with = {name: value for name, value in found.items() if name not in ("scan", FILES)}
    is_alike = made_with == _made_with(networks, settings) and is_same_scan(scan, found.get("scan"))
    return found if is_alike else None


def _made_with(networks: Networks | None, settings: InferenceSettings) -> dict[str, Any]:
    plain = settings_as_json(settings)
    for name in _INDIFFERENT:
        del plain[name]
    if networks is None:  # a scan too flat for a vertebra is shown to no network
        return {**plain, "inference": _INFERENCE, "networks": {}}
    facts = {"spacing_mm": networks.spacing_mm, "preset": networks.preset, "inference": _INFERENCE}
    return {**plain, **facts, "networks": networks.origin}


def _files_of(scan: Scan) -> tuple[Path, ...]:
    if not scan.series:
        check_is_file(scan.path, "a scan")  # a header, which names further files, is read here
    files = tuple(files_of_scan(scan.path, scan.series))
    for file in files:
        check_is_file(file, "a file of a scan")
    return files


def _stamp(files: Sequence[Path]) -> dict[str, int]:
    """Give what changes with the files; the system sets the last time, which nobody can set back."""
    stats = [file.stat() for file in files]
    return {
        "files": len(stats),
        "bytes": sum(stat.st_size for stat in stats),
        "modified_ns": max(stat.st_mtime_ns for stat in stats),
        "changed_ns": max(stat.st_ctime_ns for stat in stats),
    }


@functools.lru_cache(maxsize=16)
def _content(files: tuple[Path, ...], stamp: tuple[int, ...], *, is_ordered: bool) -> str:
    """Hash files, once for each stamp: a run asks several times about the few scans at hand."""
    hashes = [sha256_of(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes if is_ordered else sorted(hashes)).encode()).hexdigest()
