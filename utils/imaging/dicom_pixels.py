"""DICOM: the voxels of images in Hounsfield units, as long as the file holds them all.

What is not compressed is read here, and so are runs of equal bytes (RLE); `dicom_decoding` has the rest
decoded. Nothing is read, and no memory asked for, before what the header claims is compared with the bytes
that are there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.imaging.dicom_decoding import EncodedFrame, decode_frames
from utils.imaging.dicom_headers import ImageHeader, read_data_set, short_line
from utils.imaging.file_checks import named_errors
from utils.imaging.itk_images import hu_numbers
from utils.imaging.quiet import silent

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

#: Groups that may hold an overlay; bit positions of overlays that lie among the voxels' bits.
_OVERLAY_POSITIONS = tuple((0x6000 + 2 * number) << 16 | 0x0102 for number in range(16))
_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *_OVERLAY_POSITIONS,
)
#: Little endian with implicit and explicit kinds of value, big endian, deflated; none without preamble.
_NOT_COMPRESSED = ("", *(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99")))
_RLE = "1.2.840.10008.1.2.5"
_RLE_HEADER_BYTES = 64
#: Two bytes of RLE give 128 at most.
_RLE_RATIO = 64
#: What may stand between segments of RLE and behind the last.
_RLE_PADDING = b"\x00\x80"


@dataclass(frozen=True)
class _Format:
    """How the numbers of an image are stored."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    is_signed: bool
    is_little: bool
    has_overlay: bool

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.allocated // 8


def read_planes(headers: Sequence[ImageHeader]) -> list[np.ndarray]:
    """Read the voxels of images, rescaled as the header of each says.

    Parameters
    ----------
    headers : sequence of ImageHeader
        Of images in grey, in any order; frames of one file are best side by side.

    Returns
    -------
    list of np.ndarray, (rows, columns)
        One an image, numbers as `hu_numbers` gives them.

    Raises
    ------
    ValueError
        If a file does not hold the voxels that its header claims, or they cannot be decoded. The text names
        the file.
    """
    stored = list(_stored_or_encoded(headers))
    encoded = [each for each in stored if isinstance(each, EncodedFrame)]
    decoded = iter(decode_frames(encoded) if encoded else ())
    planes = []
    for header in headers:
        numbers = stored.pop(0)
        numbers = next(decoded) if isinstance(numbers, EncodedFrame) else numbers
        with _named_errors(header.path):
            planes.append(hu_numbers(header.path, rescaled(numbers, header.rescale)))
    return planes


def rescaled(stored: np.ndarray, rescale: tuple[float, ...]) -> np.ndarray:
    """Turn stored numbers into Hounsfield units, exactly where slope and intercept are whole numbers.

    Parameters
    ----------
    stored : np.ndarray
        Whole numbers.
    rescale : tuple of float
        Slope and intercept; empty for numbers that are taken as they are.

    Raises
    ------
    ValueError
        If the slope is 0, or one of them is no finite number.
    """
    slope, intercept = rescale or (1.0, 0.0)
    if not (np.isfinite([slope, intercept]).all() and slope):
        raise ValueError(f"a RescaleSlope of {slope:g} and a RescaleIntercept of {intercept:g}")
    if slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2**30:
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return stored * slope + intercept


def _stored_or_encoded(headers: Sequence[ImageHeader]) -> Iterator[np.ndarray | EncodedFrame]:
    path, frames = None, []
    for header in headers:
        if header.path != path:  # a file of many frames is read once
            path = header.path
            with _named_errors(path), silent():
                frames = _frames_of(path)
        yield frames[header.place]


def _frames_of(path: Path) -> Sequence[np.ndarray | EncodedFrame]:
    """Read all frames of a file: the stored numbers, or what is to be decoded."""
    from pydicom.uid import AllTransferSyntaxes

    found = read_data_set(path, _TAGS, with_pixels=True)
    frames = int(found.get("NumberOfFrames") or 1)
    syntax = str(getattr(found, "file_meta", {}).get("TransferSyntaxUID") or "")
    form = _format_of(found)
    if "PixelData" not in found or not found.PixelData:
        raise ValueError("no PixelData")
    if syntax and syntax not in AllTransferSyntaxes:
        raise ValueError(f"the transfer syntax {syntax!r}")
    if syntax in _NOT_COMPRESSED:
        return _split(found.PixelData, frames, form)
    parts = _encapsulated(found, frames)
    if syntax == _RLE:
        return [_numbers(_decoded_rle(part, form), form) for part in parts]
    facts = (form.rows, form.columns, form.allocated, form.stored, form.high, form.is_signed)
    return [EncodedFrame(path, syntax, part, *facts) for part in parts]


def _format_of(found: FileDataset) -> _Format:
    allocated, stored = int(found.BitsAllocated), int(found.BitsStored)
    form = _Format(
        rows=int(found.Rows),
        columns=int(found.Columns),
        allocated=allocated,
        stored=stored,
        high=int(found.get("HighBit", stored - 1)),
        is_signed=bool(found.get("PixelRepresentation")),
        is_little=found.original_encoding[1] is not False,
        has_overlay=any(int(found[tag].value or 0) for tag in _OVERLAY_POSITIONS if tag in found),
    )
    if int(found.get("SamplesPerPixel") or 1) != 1 or min(form.rows, form.columns) < 1:
        raise ValueError("no image with one number a voxel")
    if form.allocated not in (8, 16, 32) or not 0 < form.stored <= form.high + 1 <= form.allocated:
        raise ValueError(f"bits {form.high + 1 - form.stored} to {form.high} of {form.allocated} a voxel")
    return form


def _split(content: bytes, frames: int, form: _Format) -> list[np.ndarray]:
    """Cut numbers that are not compressed into frames, if there are as many as there should be."""
    needed = frames * form.frame_bytes
    row = max(2, form.columns * form.allocated // 8)  # a byte fills up to an even number
    if not needed <= len(content) < needed + row:
        shape = f"{form.columns} x {form.rows} x {frames} voxels of {form.allocated} bits"
        raise ValueError(f"{len(content)} bytes of PixelData for {shape}")
    view = memoryview(content)[:needed]
    size = form.frame_bytes
    return [_numbers(view[begin : begin + size], form) for begin in range(0, needed, size)]


def _numbers(content: bytes | memoryview, form: _Format) -> np.ndarray:
    """Give stored numbers, without the bits of overlays beside them."""
    order = "<" if form.is_little else ">"
    bits = np.frombuffer(content, f"{order}u{form.allocated // 8}").reshape(form.rows, form.columns)
    bits = bits.astype(bits.dtype.newbyteorder("="), copy=False) >> (form.high + 1 - form.stored)
    kind = f"{'i' if form.is_signed else 'u'}{form.allocated // 8}"
    # Padding may need more bits than are declared, and stays. Overlays are no part of a number; and of signed
    # numbers none of which is negative the highest of the declared bits is the sign.
    if form.has_overlay or (form.is_signed and not int(bits.max()) >> (form.allocated - 1)):
        unused = form.allocated - form.stored
        return (bits << unused).view(kind) >> unused
    return bits.view(kind)


def _encapsulated(found: FileDataset, frames: int) -> list[bytes]:
    """Give the bytes of each compressed frame."""
    from pydicom.encaps import generate_frames

    if not found["PixelData"].is_undefined_length:
        raise ValueError("PixelData that is not compressed, as is said")
    tables = [found.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = tuple(tables) if all(tables) else None
    parts = list(generate_frames(found.PixelData, number_of_frames=frames, extended_offsets=offsets))
    if len(parts) != frames:
        raise ValueError(f"{len(parts)} compressed frames instead of {frames}")
    return parts


def _decoded_rle(content: bytes, form: _Format) -> bytes:
    """Decode a frame in runs of equal bytes: a segment for each byte of the numbers, the highest first."""
    size = form.allocated // 8
    voxels = form.rows * form.columns
    head = np.frombuffer(content[:_RLE_HEADER_BYTES], "<u4")
    if len(head) * 4 < _RLE_HEADER_BYTES or head[0] != size:
        raise ValueError(f"no RLE in {size} segments")
    if voxels * size > _RLE_RATIO * len(content):
        raise ValueError(f"{len(content)} bytes of RLE for {form.columns} x {form.rows} voxels")
    places = [*map(int, head[1 : size + 1]), len(content)]
    numbers = np.empty((voxels, size), np.uint8)
    for segment, (begin, end) in enumerate(itertools.pairwise(places)):
        numbers[:, size - 1 - segment] = np.frombuffer(_decoded_segment(content[begin:end], voxels), np.uint8)
    return numbers.tobytes()


def _decoded_segment(content: bytes, length: int) -> bytearray:
    decoded, place = bytearray(), 0
    while place < len(content) and len(decoded) < length:
        count = content[place]
        if count < 128:  # so many bytes and one more as they are
            decoded += content[place + 1 : place + 2 + count]
            place += 2 + count
        elif count > 128:  # the next byte several times
            decoded += content[place + 1 : place + 2] * (257 - count)
            place += 2
        else:
            place += 1
    if len(decoded) != length or content[place:].strip(_RLE_PADDING):
        raise ValueError(f"a segment of RLE that is not {length} bytes long")
    return decoded


_named_errors = partial(named_errors, expected="a whole DICOM image", errors=(Exception,), said=short_line)
