"""The header of an NRRD file (http://teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import re

import numpy as np

from utils.imaging.grids import ASSUME_HINT, affine_of_axes
from utils.imaging.text_headers import (
    TextHeader,
    add_field,
    axes_of_volume,
    chosen,
    decoded_lines,
    names_of_data_files,
    one_field,
    real_numbers,
    refusal,
    whole_number,
    whole_numbers,
)

_MAGIC = re.compile(rb"NRRD000[1-6]\r?\n")
_FIELDS = frozenset(
    (
        *(
            "content",
            "number",
            "type",
            "blocksize",
            "dimension",
            "space",
            "spacedimension",
            "sizes",
            "spacings",
        ),
        *(
            "thicknesses",
            "axismins",
            "axismaxs",
            "spacedirections",
            "centers",
            "centerings",
            "kinds",
            "labels",
        ),
        *(
            "units",
            "min",
            "max",
            "oldmin",
            "oldmax",
            "endian",
            "encoding",
            "lineskip",
            "byteskip",
            "sampleunits",
        ),
        *("spaceunits", "spaceorigin", "measurementframe", "datafile"),
    )
)
_NAMES_OF_TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPES = {name: code for code, names in _NAMES_OF_TYPES.items() for name in names.split(", ")}
_ENCODINGS = {
    **{"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"},
    **{"txt": "text", "text": "text", "ascii": "text"},
}
_ENDS = {"little": "<", "big": ">"}
#: The patient's frames that NRRD knows: the signs that turn their axes into RAS+.
_SPACES = {
    **dict.fromkeys(("lps", "leftposteriorsuperior"), (-1, -1, 1)),
    **dict.fromkeys(("ras", "rightanteriorsuperior"), (1, 1, 1)),
    **dict.fromkeys(("las", "leftanteriorsuperior"), (-1, 1, 1)),
}
_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)


def nrrd_fields(raw: bytes) -> tuple[dict[str, str], list[str], int]:
    """Read the fields of a header.

    Parameters
    ----------
    raw : bytes
        Beginning of the file, with the header in it.

    Returns
    -------
    tuple
        The fields by their names, in small letters and without blanks; the names of the files with the
        voxels, none if they lie behind the header; and the byte at which the header ends.

    Raises
    ------
    ValueError
        If it is no header of NRRD, or has a line that NRRD does not know. The text names no file.
    """
    magic = _MAGIC.match(raw)
    if magic is None:
        raise refusal("a file that begins with NRRD0001 to NRRD0006", ascii(raw[:8]))
    blank = re.search(rb"\n\r?\n", raw)
    end = blank.end() if blank else len(raw)
    lines = decoded_lines(raw[magic.end() : end])
    fields: dict[str, str] = {}
    for number, line in enumerate(lines):
        if _says_nothing(line):
            continue
        name, value = _name_and_value(line)
        add_field(fields, name, value)
        if name == "datafile":
            is_list = value.split()[:1] == ["LIST"]
            below = decoded_lines(raw[magic.end() :])[number + 1 :] if is_list else []
            names = names_of_data_files(value, below)
            if is_list:
                return fields, names, len(raw)
    names = names_of_data_files(fields["datafile"], []) if "datafile" in fields else []
    if blank is None and not names:
        raise refusal("a blank line between the header and the voxels", "")
    return fields, names, end


def _says_nothing(line: str) -> bool:
    """Whether a line is blank, a comment, or a key of the writer's own with its value."""
    name, _, value = line.partition(":")
    of_writer = value.startswith("=") or (":=" in value and _plain(name) not in _FIELDS)
    return not line.strip() or line.startswith("#") or of_writer


def _name_and_value(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    if _plain(name) not in _FIELDS:
        raise refusal("the fields of NRRD in the header", repr(line[:40]))
    return _plain(name), value.strip()


def _plain(name: str) -> str:
    return name.replace(" ", "").lower()


def nrrd_header(raw: bytes, *, assumed: str | None = None) -> TextHeader:
    """Read a header; arguments and errors as `nrrd_fields`, and for what is no volume of a patient.

    Where the field `space` names no patient's frame, `assumed` says where the voxel axes lead, such as "RAS".
    """
    fields, names, end = nrrd_fields(raw)
    dimension = whole_number(fields, "dimension", least=1)
    sizes = whole_numbers("sizes", one_field(fields, "sizes"), least=1)
    if len(sizes) != dimension:
        raise refusal(f"{dimension} sizes", fields["sizes"])
    if states_space(fields) or assumed is None:
        affine, kept = _affine(fields, dimension)
    else:
        affine, kept = _assumed_affine(fields, dimension, assumed)
    code = chosen(fields, "type", _TYPES)
    encoding = chosen(fields, "encoding", _ENCODINGS)
    has_ends = code[1] != "1" and encoding != "text"
    dtype = np.dtype((chosen(fields, "endian", _ENDS) if has_ends else "=") + code)
    lines = whole_number(fields, "lineskip", default="0")
    skipped = whole_number(fields, "byteskip", default="0", least=-1 if encoding == "raw" else 0)
    begin = 0 if names else end
    if encoding == "raw":
        begin, skipped = (-1, 0) if skipped < 0 else (begin, skipped)
    return TextHeader(axes_of_volume(sizes, kept), dtype, affine, encoding, begin, lines, skipped)


def states_space(fields: dict[str, str]) -> bool:
    """Whether a header names a patient's frame; without one readers guess differently where its axes lead."""
    return _signs(fields) is not None


def _signs(fields: dict[str, str]) -> tuple[int, int, int] | None:
    return _SPACES.get(re.sub(r"[\s-]", "", fields.get("space", "")).lower())


def _directions(fields: dict[str, str], dimension: int) -> tuple[list[np.ndarray | None], list[int]]:
    """Give the directions of all axes, None for an axis that does not lie in space, and which do."""
    directions = _vectors("space directions", one_field(fields, "spacedirections"))
    if len(directions) != dimension:
        raise refusal(f"{dimension} vectors in the field 'space directions'", fields["spacedirections"])
    return directions, [axis for axis, vector in enumerate(directions) if vector is not None]


def _assumed_affine(fields: dict[str, str], dimension: int, assumed: str) -> tuple[np.ndarray, list[int]]:
    """Give the affine of axes that lead where the user says, and which axes lie in space."""
    if "spacedirections" in fields:
        directions, kept = _directions(fields, dimension)
        spacings = [float(np.linalg.norm(directions[axis])) for axis in kept]
    else:
        kept = list(range(dimension))
        spacings = real_numbers("spacings", one_field(fields, "spacings"), count=dimension)
        spacings = np.abs(spacings)
    return (affine_of_axes(assumed, spacings) if len(kept) == 3 else np.eye(4)), kept


def _affine(fields: dict[str, str], dimension: int) -> tuple[np.ndarray, list[int]]:
    """Give the affine to RAS+, and which axes lie in space."""
    signs = _signs(fields)
    if signs is None:
        expected = "a field 'space' that says how the axes lie in the patient, such as LPS"
        found = fields.get("space", "")
        raise ValueError(f"{refusal(expected, found)} Write it into the header, or {ASSUME_HINT}.")
    directions, kept = _directions(fields, dimension)
    origin = _vectors("space origin", fields.get("spaceorigin", "(0,0,0)"))
    if len(origin) != 1 or origin[0] is None:
        raise refusal("one vector in the field 'space origin'", fields["spaceorigin"])
    affine = np.eye(4)
    if len(kept) == 3:
        affine[:3] = np.array([*(directions[axis] for axis in kept), origin[0]]).T * np.c_[list(signs)]
    return affine, kept


def _vectors(name: str, text: str) -> list[np.ndarray | None]:
    """Read vectors such as (1,0,0); None stands for "none", and for one without a number."""
    found: list[np.ndarray | None] = []
    if _VECTOR.sub("", text).strip():
        raise refusal(f"vectors such as (1,0,0) in the field '{name}'", text)
    for word in _VECTOR.findall(text):
        numbers = word.strip("()").replace(",", " ")
        is_none = word.lower() == "none" or set(numbers.lower().split()) == {"nan"}
        found.append(None if is_none else real_numbers(name, numbers, count=3))
    return found
