"""What of VerSe is asked for, and the folder of the data set that a file of a source belongs to."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.settings import DataSettings
from utils.verse.cases import SPLITS, CaseFile, parse_case_file, part_of_folder

#: Series of other scanners, added in 2020 under CC BY-NC-ND instead of CC BY-SA.
NONCOMMERCIAL_PREFIX = "sub-gl"
# OSF's nodes name a split without the year that the node stands for: "training", "01_training".
_PLAIN_SPLIT_FOLDER = re.compile(rf"(?:\d+[_-])?({'|'.join(SPLITS)})", re.IGNORECASE)


@dataclass(frozen=True)
class Selection:
    """Split and subjects that are asked for.

    Attributes
    ----------
    split : str or None
        The one split, None for all.
    subjects : collection of str
        Subjects such as "sub-verse004", in lower case; empty for all.
    exclude_noncommercial : bool
        Whether the `sub-gl*` series stay away.
    """

    split: str | None = None
    subjects: Collection[str] = ()
    exclude_noncommercial: bool = False

    @classmethod
    def of(cls, settings: DataSettings) -> Selection:
        """Read it from the settings."""
        subjects = frozenset(subject.casefold() for subject in settings.subjects)
        return cls(settings.split, subjects, settings.exclude_noncommercial)

    def wants_subject(self, subject: str) -> bool:
        """Whether files of a subject are asked for."""
        name = subject.casefold()
        if self.exclude_noncommercial and name.startswith(NONCOMMERCIAL_PREFIX):
            return False
        return not self.subjects or name in self.subjects

    def wants_split(self, split: str) -> bool:
        """Whether a split is asked for; "" is a place that names none and may hold any."""
        return self.split is None or split in ("", self.split)

    def wants(self, file: CaseFile) -> bool:
        """Whether a file is asked for."""
        return self.wants_subject(file.subject) and self.split in (None, file.split)

    def enters(self, folders: Sequence[str]) -> bool:
        """Whether a folder, given by its path, can hold something that is asked for."""
        name = folders[-1] if folders else ""
        wanted = not name.casefold().startswith("sub-") or self.wants_subject(name)
        return wanted and self.wants_split(split_of(folders))


def with_year(folders: Sequence[str], year: str) -> tuple[str, ...]:
    """Name folders that name a split alone ("training") as data sets are ("dataset-verse20training")."""
    matches = [(folder, _PLAIN_SPLIT_FOLDER.fullmatch(folder)) for folder in folders]
    return tuple(
        f"dataset-verse{year}{match[1].lower()}" if year and match else folder for folder, match in matches
    )


def split_of(folders: Sequence[str]) -> str:
    """Give the split that the innermost of some folders names, "" if none does."""
    return part_of(folders)[1]


def part_of(folders: Sequence[str]) -> tuple[int | None, str]:
    """Give the part of VerSe, year and split, that the innermost of some folders names, or (None, "")."""
    parts = map(part_of_folder, reversed(folders))
    return next((part for part in parts if part[1]), (None, ""))


def lines_about_homeless(name: str, paths: Sequence[str], *, example: str) -> list[str]:
    """Give a line about VerSe files that lie outside of folders of splits, none if there are no such."""
    if not paths:
        return []
    return [
        f"{name}: expected folders that name a split ({example}, ...), found {len(paths)} files outside of "
        f"them, such as {paths[0]}."
    ]


def case_file_at(path: str, *, year: str = "") -> CaseFile | None:
    """Read what a path in the layout of VerSe, relative and with "/", says; None if it is no VerSe file."""
    *folders, name = path.split("/")
    return parse_case_file(Path(name), with_year(folders, year))
