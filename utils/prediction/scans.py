"""Which scans the inputs of a run give, and the keys that their predictions are named by."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.imaging.dicom import Series, find_series
from utils.imaging.dicom_headers import is_dicom
from utils.imaging.formats import SCAN_SUFFIXES
from utils.preparation.own_cases import own_key
from utils.verse.cases import visible_files

_CT_SUFFIXES = ("_ct.nii", "_ct.nii.gz")
_MASK_NAME = re.compile(r"(?<![a-z])(msk|mask|seg|segmentation|labels?)(?![a-z])", re.IGNORECASE)
_SUFFIX = re.compile("|".join(rf"{re.escape(suffix)}$" for suffix in SCAN_SUFFIXES), re.IGNORECASE)
#: Names that say that a file is DICOM, though it may lack the mark of DICOM.
_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
#: Letters of a hash that tells apart scans of one name.
HASH_LETTERS = 8


@dataclass(frozen=True)
class Scan:
    """A scan to segment, and the key that its predictions are named by.

    Attributes
    ----------
    path : Path
        The file; of a DICOM series the innermost folder that holds all its files.
    key : str
        Such as "sub-verse500_dir-ax".
    series : tuple of Path
        The files of a DICOM series; empty for any other scan.
    left_out : tuple of str
        What belongs to the series and is not read.
    """

    path: Path
    key: str
    series: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name for messages: several series may lie in one folder."""
        return f"{self.path} ({self.key})" if self.series else str(self.path)


@dataclass(frozen=True)
class FoundScans:
    """What the inputs of a run give.

    Attributes
    ----------
    scans : list of Scan
        Each once, in the order of the inputs.
    bad : list of str
        What is wrong with inputs that give no scan, and with files and folders that cannot be read.
    skipped : list of str
        DICOM series and images that are no CT scan, with the reason.
    """

    scans: list[Scan]
    bad: list[str]
    skipped: list[str]


def find_scans(inputs: Sequence[Path]) -> FoundScans:
    """Find the scans among files and folders.

    Parameters
    ----------
    inputs : sequence of Path
        Files (NIfTI, NRRD, MetaImage, DICOM with a frame a slice), and folders that are searched to any
        depth. A folder with VerSe CTs (`*_ct.nii.gz`, in letters of any case) gives only those and names the
        others as skipped; any other all its files but masks (`msk`, `mask`, `seg`, `segmentation` or `label`
        as a word of the name), and every CT series among its DICOM files.

    Returns
    -------
    FoundScans
        Keys may be shared: `utils.prediction.keys.tell_apart`. A name without ASCII letter or digit gives a
        hash of it. A DICOM series is named `sub-<PatientID>_series-<number>_desc-<description>`;
        without PatientID its folder's name stands there.
    """
    scans: dict[tuple[str, str], Scan] = {}
    bad, skipped = [], []
    for path in (Path(path) for path in inputs):
        try:
            found = _scans_in(path)
        except ValueError as error:
            bad.append(str(error))
            continue
        except OSError as error:  # a path through a folder that may not be entered
            bad.append(f"{path}: expected a scan or a folder, found {error.strerror}.")
            continue
        for scan in found.scans:
            # Unlike Path.resolve, this gives a name for a loop of links too: reading it says what it is.
            scans.setdefault((scan.key, os.path.realpath(next(iter(scan.series), scan.path))), scan)
        bad += found.bad
        skipped += found.skipped
    return FoundScans(list(scans.values()), bad, skipped)


def _scans_in(path: Path) -> FoundScans:
    if path.is_dir():
        return _scans_in_folder(path)
    if not path.exists():
        raise ValueError(f"{path}: expected a scan or a folder, found no such file.")
    if _is_mask(path):
        raise ValueError(f"{path}: expected a CT, found a file named as a mask.")
    if not path.name.lower().endswith(SCAN_SUFFIXES) and _may_be_dicom(path):
        return _scans_in_dicom_file(path)
    return FoundScans([Scan(path, _key(path))], [], [])


def _scans_in_dicom_file(path: Path) -> FoundScans:
    """Give the scan whose slices are frames of one file."""
    found = find_series([path])
    if found.bad:
        raise ValueError(found.bad[0])
    if not found.scans:
        raise ValueError(f"{path}: expected the folder of a DICOM series, found a file of one.")
    return FoundScans(_series_scans(found.scans), [], list(found.skipped))


def _scans_in_folder(folder: Path) -> FoundScans:
    unreadable: list[str] = []
    files = list(visible_files(folder, unreadable=unreadable.append))
    images = [file for file in files if file.name.lower().endswith(SCAN_SUFFIXES) and not _is_mask(file)]
    others = (file for file in files if not file.name.lower().endswith(SCAN_SUFFIXES))
    series = find_series(filter(_may_be_dicom, others))
    of_verse = [file for file in images if file.name.lower().endswith(_CT_SUFFIXES)]
    if of_verse:
        left_out = [str(file) for file in images if file not in set(of_verse)]
        left_out += [each.name for each in series.scans]
        reason = f"left out, as {folder} has files named *_ct.nii.gz; name it to segment it"
        lines = [*(f"{name}: {reason}." for name in left_out), *series.skipped]
        return FoundScans([Scan(file, _key(file)) for file in of_verse], [*unreadable, *series.bad], lines)
    scans = [Scan(file, _key(file)) for file in images] + _series_scans(series.scans)
    if not scans:
        found = _why_none([*unreadable, *series.bad, *series.skipped], len(files))
        raise ValueError(f"{folder}: expected a folder with CT scans, found {found}")
    return FoundScans(scans, [*unreadable, *series.bad], list(series.skipped))


def _why_none(reasons: list[str], files: int) -> str:
    """Give the first reasons; a series may have thousands of files."""
    if not reasons:
        return f"none in it: {files} files, none of a known ending or with the mark DICM after a preamble."
    more = f" And {len(reasons) - 2} more such." if len(reasons) > 2 else ""
    return f"none in it: {' '.join(reasons[:2])}{more}"


def _series_scans(found: Iterable[Series]) -> list[Scan]:
    """Name series; those that would have the same name get a hash of their identifier at its end."""
    keys = [(_series_key(series), series) for series in found]
    times = Counter(key for key, _ in keys)
    return [
        Scan(
            series.folder,
            key if times[key] == 1 else f"{key}_uid-{_hash(series)}",
            series.files,
            series.left_out,
        )
        for key, series in keys
    ]


def _series_key(series: Series) -> str:
    first = series.headers[0]
    subject = _letters(first.patient) or _letters(series.folder.resolve().name) or "dicom"
    entities = {"series": _letters(first.number), "desc": _letters(first.description)}
    return "_".join([f"sub-{subject}", *(f"{name}-{value}" for name, value in entities.items() if value)])


def _letters(text: str) -> str:
    """Keep what a part of a VerSe key may hold: any other character might be unsafe in a file's name."""
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _hash(series: Series) -> str:
    first = series.headers[0]
    identity = "\0".join((first.uid, first.patient, first.frame))
    return hashlib.sha256(identity.encode()).hexdigest()[:HASH_LETTERS]


def _is_mask(path: Path) -> bool:
    return not path.name.lower().endswith(_CT_SUFFIXES) and _MASK_NAME.search(path.name) is not None


def _may_be_dicom(path: Path) -> bool:
    return path.suffix.lower() in _DICOM_SUFFIXES or is_dicom(path)


def _key(path: Path) -> str:
    """Give the key of a file of any format by the rules for NIfTI."""
    is_nifti = path.name.lower().endswith((".nii", ".nii.gz"))
    stem = _SUFFIX.sub("", path.name)
    try:
        return own_key(path if is_nifti else path.with_name(stem + ".nii"))
    except ValueError:  # a name in another script
        return f"sub-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:HASH_LETTERS]}"
