"""The index of a VerSe tree: which CT, mask and centroids belong to which case.

Files are paired by the whole entity key, the part of the name before `_ct`, `_seg-vert_msk` and so
on (`sub-verse401_split-verse253` and `sub-verse401_split-verse260` are two cases of one patient),
never by sorted position and never by a number alone. A folder of predictions (derivatives without
rawdata) is a valid tree.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("training", "validation", "test")
OWN_SPLIT_FOLDER = "dataset-own{split}"

# dataset-verse19training, dataset-verse20test (2019 and 2020); dataset-01training, dataset-02validation,
# dataset-03test (2020 as restructured); dataset-owntraining (a user's own cases).
_SPLIT_FOLDER = re.compile(rf"dataset-(?:verse\d+|\d+|own)(?P<split>{'|'.join(SPLITS)})")
_FILE_NAME = re.compile(
    r"(?P<key>sub-[^_]+(?:_[^_]+)*?)"
    r"_(?P<kind>ct\.nii|seg-vert_msk\.nii|seg-vb_ctd\.json|seg-subreg_ctd\.json)(?P<gz>\.gz)?"
)
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
    """

    key: str
    subject: str
    split: str = ""
    ct: Path | None = None
    mask: Path | None = None
    centroids: Path | None = None

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
        match = _SPLIT_FOLDER.fullmatch(self.dataset)
        return match["split"] if match else ""

    @property
    def role(self) -> str:
        """One of "ct", "mask", "centroids": the field of `Case` that the file fills."""
        return _ROLE_OF_KIND[self.kind]


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
        If the folder or a case of the split is not there, or if two files that differ claim the
        same place in the same case.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise ValueError(f"{data_dir}: expected a folder with a VerSe data set, found no such folder.")
    files: dict[tuple[str, str], dict[str, CaseFile]] = {}
    for file in case_files(data_dir):
        if split is None or file.split == split:
            _keep(files.setdefault((file.key, file.split), {}), file)
    if not files:
        wanted = "VerSe files (sub-*_ct.nii.gz, ...)" if split is None else f"cases of the split {split!r}"
        raise ValueError(f"{data_dir}: expected {wanted}, found none.")
    return [_case(files[identity]) for identity in sorted(files)]


def case_files(data_dir: Path) -> Iterator[CaseFile]:
    """Give every VerSe file below a folder in a fixed order; hidden and temporary ones are left out."""
    top = data_dir.resolve().name
    for path in visible_files(data_dir):
        file = parse_case_file(path, (top, *path.relative_to(data_dir).parts[:-1]))
        if file is not None:
            yield file


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
    return CaseFile(path, match["key"], subject_of(match["key"]), match["kind"], dataset)


def subjects_in_several_splits(cases: list[Case]) -> dict[str, list[str]]:
    """Give the subjects whose cases lie in more than one split, with those splits.

    Patients that are trained on and tested on make a score too good. The release of the VerSe
    challenges repeats 105 series of 2019 in 2020; the restructured release does not.
    """
    splits: dict[str, set[str]] = {}
    for case in cases:
        splits.setdefault(case.subject, set()).add(case.split)
    return {subject: sorted(names) for subject, names in sorted(splits.items()) if len(names) > 1}


def visible_files(data_dir: Path) -> Iterator[Path]:
    """Files below a folder, links followed (data sets are often linked in), each folder once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(data_dir, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _keep(files: dict[str, CaseFile], file: CaseFile) -> None:
    """Put a file into a case's places by kind; archives that unpack nested may bring a copy."""
    other = files.setdefault(file.kind, file)
    if other is not file and not filecmp.cmp(other.path, file.path, shallow=False):
        raise ValueError(
            f"{file.path}: expected one {file.role} file for {file.key}, found another: {other.path}."
        )


def _case(files: dict[str, CaseFile]) -> Case:
    some = next(iter(files.values()))
    paths: dict[str, Path] = {}
    for kind, role in _ROLE_OF_KIND.items():
        if kind in files:
            paths.setdefault(role, files[kind].path)
    return Case(key=some.key, subject=some.subject, split=some.split, **paths)
