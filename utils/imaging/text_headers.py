"""Headers of text, as NRRD and MetaImage have them: what they say, and the parts that both share.

Everything here takes time in proportion to the header, which is bounded, and asks for no memory that the
header claims.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.files import printable

#: Longest header that is read; one with the name of every slice has 50 kB.
HEADER_BYTES = 2**18
#: Most files that voxels may lie in, and most numbers of a field.
_MOST_FILES, _MOST_NUMBERS = 2**16, 64
#: Most letters of a header that a message shows.
_SHOWN = 60
_NUMBER_IN_NAME = re.compile(r"%0?\d?d")


@dataclass(frozen=True, eq=False)
class TextHeader:
    """What the header of an image says.

    Attributes
    ----------
    shape : tuple of int, (3,)
        Voxels along each axis; the first varies fastest.
    dtype : np.dtype
        Of the numbers, with their order of bytes.
    affine : np.ndarray of float64, (4, 4)
        Voxel index to world, in mm, RAS+.
    encoding : str
        A key of `voxel_streams.MOST_BYTES`.
    begin : int
        Byte of each file at which its voxels begin; -1 if the file ends with them.
    skipped_lines, skipped_bytes : int
        What is left out from there: lines, and then bytes of what is inflated.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    affine: np.ndarray
    encoding: str
    begin: int
    skipped_lines: int = 0
    skipped_bytes: int = 0


def refusal(expected: str, found: str) -> ValueError:
    """Give the error about a part of a header, without the file's name; what was found may be anything."""
    short = found.strip()[: _SHOWN + 1]
    shown = short if len(short) <= _SHOWN else f"{short[:_SHOWN]}..."
    return ValueError(f"expected {expected}, found {printable(shown) or 'none'}.")


def one_field(fields: dict[str, str], name: str) -> str:
    """Give what a field says that must be there."""
    if name not in fields:
        raise refusal(f"a field '{name}' in the header", "")
    return fields[name]


def add_field(fields: dict[str, str], name: str, value: str) -> None:
    """Note what a field says; said twice and differently, readers would differ."""
    if fields.setdefault(name, value) != value:
        raise refusal(f"one field '{name}' in the header", f"{fields[name]!r} and {value!r}")


def chosen(fields: dict[str, str], name: str, choices: dict[str, str]) -> str:
    """Give what a word that a field holds stands for."""
    word = one_field(fields, name)
    if word.lower() not in choices:
        raise refusal(f"a known word in the field '{name}' of the header", word)
    return choices[word.lower()]


def whole_numbers(name: str, text: str, *, least: int) -> list[int]:
    """Read the whole numbers of a field, each of at least `least`."""
    try:
        found = [int(word) for word in _words(text)]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise refusal(f"whole numbers from {least} in the field '{name}'", text)
    return found


def whole_number(fields: dict[str, str], name: str, *, default: str | None = None, least: int = 0) -> int:
    """Read the one whole number of a field, which must be there if there is no default."""
    text = one_field(fields, name) if default is None else fields.get(name, default)
    found = whole_numbers(name, text, least=least)
    if len(found) != 1:
        raise refusal(f"one number in the field '{name}'", text)
    return found[0]


def real_numbers(name: str, text: str, *, count: int) -> np.ndarray:
    """Read the numbers of a field, of which there must be so many, all finite."""
    try:
        found = np.array([float(word) for word in _words(text)])
    except ValueError:
        found = np.array([])
    if len(found) != count or not np.isfinite(found).all():
        raise refusal(f"{count} numbers in the field '{name}'", text)
    return found


def _words(text: str) -> list[str]:
    return text.split(maxsplit=_MOST_NUMBERS)  # a long rest stays one word, which is no number


def axes_of_volume(sizes: Sequence[int], kept: Sequence[int]) -> tuple[int, int, int]:
    """Give the sizes of three axes in space; any other axis must have the length 1."""
    others = math.prod(size for axis, size in enumerate(sizes) if axis not in kept)
    if len(kept) != 3 or others != 1:
        raise refusal("a volume with 3 axes and one number a voxel", f"sizes {' x '.join(map(str, sizes))}")
    return tuple(sizes[axis] for axis in kept)


def names_of_data_files(text: str, below: Sequence[str]) -> list[str]:
    """Give the names of the files with the voxels, in their order, from the field that tells them.

    Parameters
    ----------
    text : str
        A name; "LIST", with names in the lines below; or "slice%03d.raw first last step". Behind the last two
        may stand the number of axes that a file has, which the files' sizes tell as well.
    below : sequence of str
        The lines of the header below the field.
    """
    words = text.split()
    if words[:1] == ["LIST"]:
        names = [line.strip() for line in below if line.strip()]
    elif "%" in text and len(words) > 1:
        names = _numbered_names(text)
    else:
        names = [text]
    if not names or not all(names) or len(names) > _MOST_FILES:
        raise refusal("names of files with voxels in the header", text if len(names) < 2 else f"{len(names)}")
    return names


def _numbered_names(text: str) -> list[str]:
    words = text.split(maxsplit=_MOST_NUMBERS)
    numbers = []
    while len(numbers) < 4 and len(words) > 1 and words[-1].isdecimal():
        numbers.insert(0, int(words.pop()))
    parts = _NUMBER_IN_NAME.split(" ".join(words))
    if len(numbers) < 3 or numbers[2] < 1 or len(parts) != 2 or any("%" in part for part in parts):
        raise refusal("a name such as slice%03d.raw with first, last and step", text)
    pattern, (first, last, step) = _NUMBER_IN_NAME.search(" ".join(words))[0], numbers[:3]
    several = range(first, last + 1, step)[: _MOST_FILES + 1]
    return [f"{parts[0]}{pattern % number}{parts[1]}" for number in several]


def decoded_lines(raw: bytes) -> list[str]:
    """Split a header into its lines; bytes that are no text stay those of a file's name."""
    return os.fsdecode(raw).split("\n")
