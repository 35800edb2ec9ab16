"""The index of a VerSe tree: which CT, mask and centroids belong to which case.

Files are paired by the whole entity key, the part of the name before `_ct`, `_seg-vert_msk` and so
on (`sub-verse401_split-verse253` and `sub-verse401_split-verse260` are two cases of one patient),
never by sorted position and never by a number alone. Names are told apart without regard to case, as
some file systems do. A folder of predictions (derivatives without rawdata) is a valid tree.

VerSe was released twice. The older challenge release repeats 105 series of 2019 in 2020, in splits of
its own; in the restructured one, which this program reads, every series stands once. Source: the
organisers' answers at https://github.com/anjany/verse/issues/1 and /6, and https://osf.io/b2wxj/wiki.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SPLITS = ("training", "validation", "test")
OWN_SPLIT_FOLDER = "dataset-own{split}"
#: Series of the restructured release by year and split, and its patients.
RELEASED_SERIES = {
    **{(2019, "training"): 80, (2019, "validation"): 40, (2019, "test"): 40},
    **{(2020, "training"): 61, (2020, "validation"): 80, (2020, "test"): 73},
}
RELEASED_PATIENTS = 355

# dataset-verse19training, dataset-verse20test (2019 and 2020); dataset-01training, dataset-02validation,
# dataset-03test, 01_training (2020 as restructured); dataset-owntraining (a user's own cases).
_SPLIT_FOLDER = re.compile(
    rf"(?:dataset-(?:verse(?:20)?(?P<year>\d\d)|\d+|(?P<own>own))|\d\d_)(?P<split>{'|'.join(SPLITS)})",
    re.IGNORECASE,
)
_FILE_NAME = re.compile(
    r"(?P<key>sub-[^_]+(?:_[^_]+)*?)"
    r"_(?P<kind>ct\.nii|seg-vert_msk\.nii|seg-vb_ctd\.json|seg-subreg_ctd\.json)(?P<gz>\.gz)?",
    re.IGNORECASE,
)
_RELEASED_SUBJECT = re.compile(r"sub-(?:verse|gl)\d+", re.IGNORECASE)
# verse004.nii.gz, verse004_seg.nii.gz, verse004_ctd.json (2019); verse512_CT-iso_seg.nii.gz,
# GL017_CT_ax_iso-ctd.json, verse400_verse090_CT-iso.nii.gz, GL018-GL016.nii.gz (2020).
_OLDER_NAME = re.compile(
    r"(?:verse|gl)\d+(?:[-_](?:verse|gl)\d+)?(?:_ct(?:[-_][a-z]+)?)?"
    r"(?:(?:_seg)?\.nii(?:\.gz)?|_(?:iso-)?ctd\.json)",
    re.IGNORECASE,
)
#: At the top of a disk, closed to all but the system, which keeps pieces of files there.
_OF_DISK = "lost+found"
_ROLE_OF_KIND = {
    "ct.nii": "ct",
    "seg-vert_msk.nii": "mask",
    # Both names hold the same points; where a case has both files the first listed here is taken.
    "seg-vb_ctd.json": "centroids",
    "seg-subreg_ctd.json": "centroids",
}


@dataclass(frozen=True)
class Case:
    """One series of a VerSe tree, with the files found for it.

    Attributes
    ----------
    key : str
        Whole entity key, such as "sub-verse500_dir-ax".
    subject : str
        The patient, such as "sub-verse500": the unit that splits are made of.
    split : str
        "training", "validation", "test", or "" where no folder names one.
    ct, mask, centroids : Path or None
        The files, None where there is none.
    year : int or None
        Year of the VerSe release that the folder names, 2019 or 2020; None outside of both.
    """

    key: str
    subject: str
    split: str = ""
    ct: Path | None = None
    mask: Path | None = None
    centroids: Path | None = None
    year: int | None = field(default=None, compare=False)

    @property
    def complete(self) -> bool:
        """Whether CT and mask are there (centroids can be derived from the mask)."""
        return self.ct is not None and self.mask is not None

    def missing(self) -> list[str]:
        """Name what is not there, of "CT", "mask" and "centroids"."""
        roles = {"CT": self.ct, "mask": self.mask, "centroids": self.centroids}
        return [name for name, path in roles.items() if path is None]


@dataclass(frozen=True)
class CaseFile:
    """A file whose name is that of a VerSe CT, mask or centroid file.

    Attributes
    ----------
    path : Path
        The file.
    key, subject : str
        As those of `Case`.
    kind : str
        The name after the key, without ".gz".
    dataset : str
        The innermost folder that names a split, such as "dataset-01training", or "".
    """

    path: Path
    key: str
    subject: str
    kind: str
    dataset: str

    @property
    def split(self) -> str:
        """ "training", "validation", "test", or "" outside every split's folder."""
        return part_of_folder(self.dataset)[1]

    @property
    def year(self) -> int | None:
        """Year of the VerSe release that the data set belongs to, None if it is no part of VerSe."""
        return part_of_folder(self.dataset)[0]

    @property
    def role(self) -> str:
        """One of "ct", "mask", "centroids": the field of `Case` that the file fills."""
        return _ROLE_OF_KIND[self.kind]


def part_of_folder(name: str) -> tuple[int | None, str]:
    """Give the part of VerSe, year and split, that a folder names; (None, "") if it names none.

    The split of a user's own cases has no year.
    """
    match = _SPLIT_FOLDER.fullmatch(name)
    if match is None:
        return None, ""
    return None if match["own"] else 2000 + int(match["year"] or 20), match["split"].lower()


def subject_of(key: str) -> str:
    """Give the subject of a key: what stands before the first "_", or the whole key of an own name.

    VerSe names a series by pairs after the subject, as in "sub-verse500_dir-ax"; "sub-chest_ct" is no pair.
    """
    subject, *entities = key.split("_")
    return subject if all("-" in entity for entity in entities) else key


def index_cases(data_dir: Path, *, split: str | None = None) -> list[Case]:
    """Find the cases of a VerSe tree.

    Parameters
    ----------
    data_dir : Path
        Folder with the tree, nested to any depth; its own name may be that of a split too.
    split : str, optional
        "training", "validation", "test" or "" (outside every split); by default all.

    Returns
    -------
    list of Case
        Sorted by key, then split. Incomplete cases are among them.

    Raises
    ------
    ValueError
        If the folder or a case of the split is not there, if two files that differ claim the same
        place in the same case, or if files of the older challenge release are there.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise ValueError(f"{data_dir}: expected a folder with a VerSe data set, found no such folder.")
    paths = list(visible_files(data_dir))
    found = list(_case_files_of(paths, data_dir))
    _refuse_older_release(data_dir, paths, found)
    files: dict[tuple[str, str], dict[str, CaseFile]] = {}
    for file in found:
        if split is None or file.split == split:
            _keep(files.setdefault((file.key.casefold(), file.split), {}), file)
    if not files:
        wanted = "VerSe files (sub-*_ct.nii.gz, ...)" if split is None else f"cases of the split {split!r}"
        raise ValueError(f"{data_dir}: expected {wanted}, found none.")
    return [_case(files[identity]) for identity in sorted(files)]


def case_files(data_dir: Path) -> Iterator[CaseFile]:
    """Give every VerSe file below a folder in a fixed order; hidden and temporary ones are left out."""
    return _case_files_of(visible_files(data_dir), data_dir)


def parse_case_file(path: Path, folders: Sequence[str]) -> CaseFile | None:
    """Read what a file's name and folders say; None if it is no VerSe CT, mask or centroid file.

    Parameters
    ----------
    path : Path
        The file; it need not exist.
    folders : sequence of str
        Names of the folders that may name its split, outermost first.

    Returns
    -------
    CaseFile or None
        What was read.
    """
    match = _FILE_NAME.fullmatch(path.name)
    if match is None or (match["gz"] and match["kind"].endswith("json")):
        return None
    dataset = next((folder for folder in reversed(folders) if _SPLIT_FOLDER.fullmatch(folder)), "")
    return CaseFile(path, match["key"], subject_of(match["key"]), match["kind"].lower(), dataset)


def is_of_older_release(path: Path) -> bool:
    """Whether a file is named as a CT, mask or centroid file of VerSe's older challenge release.

    Some programs unpack a file of the restructured release under the older name that its gzip header
    still holds; it then lies in the folder of a subject (`sub-verse012/verse012_CT-sag_seg.nii`), which
    the older release does not have.
    """
    return is_named_as_older_release(path) and not path.parent.name.lower().startswith("sub-")


def is_named_as_older_release(path: Path) -> bool:
    """Whether a file has a name such as verse004_seg.nii.gz or GL017_CT_ax_iso-ctd.json."""
    return _OLDER_NAME.fullmatch(path.name) is not None


def subjects_in_several_splits(cases: list[Case]) -> dict[str, list[str]]:
    """Give the subjects whose cases lie in more than one split, with those splits.

    Patients that are trained on and tested on make a score too good.
    """
    splits: dict[str, set[str]] = {}
    names: dict[str, str] = {}
    for case in cases:
        subject = names.setdefault(case.subject.casefold(), case.subject)
        splits.setdefault(subject, set()).add(case.split)
    return {subject: sorted(found) for subject, found in sorted(splits.items()) if len(found) > 1}


def series_of_release(cases: list[Case]) -> dict[tuple[int, str], int]:
    """Count the series of the VerSe release that are there, by year and split as in `RELEASED_SERIES`.

    Own cases do not count. Where nothing of the release is there, the result is empty.
    """
    released = [(case.year, case.split) for case in cases if _is_released(case)]
    return {part: released.count(part) for part in RELEASED_SERIES} if released else {}


def missing_of_release(cases: list[Case]) -> list[str]:
    """Say in a line each which parts of the VerSe release are not there as a whole, if any of it is."""
    lines = [
        f"{split} {year}: {found} of {RELEASED_SERIES[year, split]} series"
        for (year, split), found in series_of_release(cases).items()
        if found != RELEASED_SERIES[year, split]
    ]
    patients = {case.subject.casefold() for case in cases if _is_released(case)}
    if patients and len(patients) != RELEASED_PATIENTS:
        lines.append(f"all: {len(patients)} of {RELEASED_PATIENTS} patients")
    return lines


def visible_files(data_dir: Path, *, unreadable: Callable[[str], None] | None = None) -> Iterator[Path]:
    """Files below a folder, links followed (data sets are often linked in), each folder once.

    Parameters
    ----------
    data_dir : Path
        The folder; one that is not there has no files.
    unreadable : callable, optional
        Takes a line about each folder that may not be read; without it, such a folder is a `ValueError`.
    """
    seen: set[str] = set()
    for folder, folders, names in os.walk(
        data_dir, followlinks=True, onerror=lambda error: _tell_unreadable(error, unreadable)
    ):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != _OF_DISK)
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _tell_unreadable(error: OSError, unreadable: Callable[[str], None] | None) -> None:
    if isinstance(error, FileNotFoundError):
        return
    line = f"{error.filename}: expected a folder that may be read, found {error.strerror}."
    if unreadable is None:
        raise ValueError(line)
    unreadable(line)


def _case_files_of(paths: Iterable[Path], data_dir: Path) -> Iterator[CaseFile]:
    top = data_dir.resolve().name
    for path in paths:
        file = parse_case_file(path, (top, *path.relative_to(data_dir).parts[:-1]))
        if file is not None:
            yield file


def _refuse_older_release(data_dir: Path, paths: list[Path], found: list[CaseFile]) -> None:
    older = [path for path in paths if is_of_older_release(path)]
    # Predictions may lie beside the scans they were made of, whatever these are named.
    only_predictions = found and not any(file.split or file.role == "ct" for file in found)
    if not older or only_predictions:
        return
    alone, advice = ("", "get the restructured one with get_verse_data.py")
    if found:
        alone, advice = (" alone", "keep it in another folder")
    raise ValueError(
        f"{data_dir}: expected the restructured release of VerSe{alone} (sub-*_ct.nii.gz, ...), found "
        f"{len(older)} files of the older challenge release, such as {older[0]}. That one repeats 105 series "
        f"of 2019 in 2020 under the same numbers, so patients would stand in several splits: {advice}."
    )


def _is_released(case: Case) -> bool:
    in_release = (case.year, case.split) in RELEASED_SERIES
    return in_release and _RELEASED_SUBJECT.fullmatch(case.subject) is not None


def _keep(files: dict[str, CaseFile], file: CaseFile) -> None:
    """Put a file into a case's places by kind; archives that unpack nested may bring a copy."""
    other = files.setdefault(file.kind, file)
    if other is not file and not filecmp.cmp(other.path, file.path, shallow=False):
        raise ValueError(
            f"{file.path}: expected one {file.role} file for {file.key}, found another: {other.path}."
        )


def _case(files: dict[str, CaseFile]) -> Case:
    ordered = [files[kind] for kind in _ROLE_OF_KIND if kind in files]
    paths = {file.role: file.path for file in reversed(ordered)}
    # Where files spell the key differently the CT's spelling counts: predictions are named after it.
    first = ordered[0]
    return Case(key=first.key, subject=first.subject, split=first.split, year=first.year, **paths)
