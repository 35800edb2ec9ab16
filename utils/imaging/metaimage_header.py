"""The header of a MetaImage file (https://itk.org/Wiki/ITK/MetaIO/Documentation)."""

from __future__ import annotations

import re

import numpy as np

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

#: What a header may say of the image; any other line is a remark of its writer. MetaImage has several names
#: for some.
_FIELDS = {
    name.lower(): name
    for name in (
        *("ObjectType", "NDims", "DimSize", "ElementType", "ElementDataFile", "HeaderSize"),
        *("ElementSpacing", "ElementSize", "ElementNumberOfChannels", "BinaryData", "CompressedData"),
        *("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset", "TransformMatrix", "Offset"),
        "ElementByteOrderMSB",
    )
}
_FIELDS |= {"binarydatabyteordermsb": "ElementByteOrderMSB"}
_FIELDS |= dict.fromkeys(("rotation", "orientation"), "TransformMatrix")
_FIELDS |= dict.fromkeys(("position", "origin"), "Offset")
_TYPES = {
    **{"met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2"},
    **{"met_int": "i4", "met_uint": "u4", "met_long": "i4", "met_ulong": "u4"},
    **{"met_long_long": "i8", "met_ulong_long": "u8", "met_float": "f4", "met_double": "f8"},
}
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "1"), "True"),
    **dict.fromkeys(("false", "f", "0"), ""),
}
_SEPARATOR = re.compile("[=:]")


def metaimage_fields(raw: bytes) -> tuple[dict[str, str], list[str], int]:
    """Read the fields of a header, which ends with the one that names the file with the voxels.

    Parameters
    ----------
    raw : bytes
        Beginning of the file, with the header in it.

    Returns
    -------
    tuple
        The fields by their names; the names of the files with the voxels, none if they lie behind the header;
        and the byte at which the header ends.

    Raises
    ------
    ValueError
        If a field stands there twice, or none says where the voxels are. The text names no file.
    """
    fields: dict[str, str] = {}
    end = 0
    while end < len(raw):
        line_end = raw.find(b"\n", end)
        begin, end = end, line_end + 1 if line_end >= 0 else len(raw)
        (line, *_) = decoded_lines(raw[begin:end])
        name, *value = _SEPARATOR.split(line, maxsplit=1)
        known = _FIELDS.get(name.strip().lower())
        if not value and name.split()[:1] and name.split()[0].lower() in _FIELDS:
            raise refusal("lines such as 'NDims = 3' in the header", repr(name[:40]))
        if known is None or not value:
            continue
        add_field(fields, known, value[0].strip())
        if known == "ElementDataFile":
            break
    place = one_field(fields, "ElementDataFile")
    if place.upper() == "LOCAL":
        return fields, [], end
    is_list = place.split()[:1] == ["LIST"]
    return fields, names_of_data_files(place, decoded_lines(raw[end:]) if is_list else []), end


def metaimage_header(raw: bytes) -> TextHeader:
    """Read a header; arguments and errors as `metaimage_fields`, and for what is no volume."""
    fields, names, end = metaimage_fields(raw)
    if fields.get("ObjectType", "Image").lower() != "image":
        raise refusal("an image in the field 'ObjectType'", fields["ObjectType"])
    dimension = whole_number(fields, "NDims", least=1)
    sizes = whole_numbers("DimSize", one_field(fields, "DimSize"), least=1)
    channels = whole_number(fields, "ElementNumberOfChannels", default="1", least=1)
    if len(sizes) != dimension:
        raise refusal(f"{dimension} sizes", fields["DimSize"])
    shape = axes_of_volume([*sizes, channels], range(min(dimension, 3)))
    _check_unscaled(fields)
    is_big = _is_true(fields, "ElementByteOrderMSB", "False")
    dtype = np.dtype((">" if is_big else "<") + chosen(fields, "ElementType", _TYPES))
    encoding = "raw" if _is_true(fields, "BinaryData", "True") else "text"
    if _is_true(fields, "CompressedData", "False"):
        encoding = "zlib"
    begin = whole_number(fields, "HeaderSize", default="0", least=-1 if encoding == "raw" else 0)
    if not names and begin >= 0:
        begin = max(begin, end)
    return TextHeader(shape, dtype, _affine(fields, dimension), encoding, begin)


def _is_true(fields: dict[str, str], name: str, default: str) -> bool:
    return bool(chosen({name: default, **fields}, name, _BOOLEANS))


def _check_unscaled(fields: dict[str, str]) -> None:
    """Refuse a rule for intensities: some readers follow it, and some do not."""
    for name, nothing in (("Slope", 1.0), ("Offset", 0.0)):
        name = f"ElementToIntensityFunction{name}"
        if name in fields and real_numbers(name, fields[name], count=1)[0] != nothing:
            raise refusal(f"{nothing:g} in the field '{name}'", fields[name])


def _affine(fields: dict[str, str], dimension: int) -> np.ndarray:
    """Give the affine to RAS+; the header counts towards left, posterior and superior."""
    # Without it readers take the voxels' axes for those of the patient, which is a guess.
    text = one_field(fields, "TransformMatrix")
    spacing = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    spacing_mm = real_numbers(spacing, one_field(fields, spacing), count=dimension)
    origin = real_numbers("Offset", fields.get("Offset", "0 " * dimension), count=dimension)
    directions = real_numbers("TransformMatrix", text, count=dimension**2).reshape(dimension, dimension)
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3].T * spacing_mm[:3]  # a row says where an axis leads
    affine[:3, 3] = origin[:3]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
