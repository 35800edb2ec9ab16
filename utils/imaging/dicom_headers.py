"""DICOM: what the headers of images say. pydicom reads them, imported where it is needed.

A file gives a header for each of its images: one, or one a frame where functional groups say of each frame
where it lies (enhanced CT).
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from utils.imaging.file_checks import check_is_file, first_line, named_errors
from utils.imaging.quiet import silent

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_PREAMBLE_BYTES = 128
_MARK = b"DICM"
#: How a data set without preamble begins: group 2 or 8, then a kind of value, or its length up to 64 bytes.
_GROUPS = (b"\x02\x00", b"\x08\x00")
_LONGEST_FIRST = 64
_DEFLATED = "1.2.840.10008.1.2.1.99"
#: Most bytes that a deflated data set may have: more than any scanner puts into a file.
_MOST_INFLATED = 2**28
_BLOCK_BYTES = 2**20
_LONGEST_ERROR = 200
_TAGS = (
    *("SOPClassUID", "Modality", "ImageType", "SamplesPerPixel", "PhotometricInterpretation"),
    *("SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("PatientID", "FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames"),
    *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
#: Where the functional groups of a frame say what the header of an image of its own would.
_SEQUENCES = {
    "FrameType": "CTImageFrameTypeSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}


@dataclass(frozen=True)
class ImageHeader:
    """What the header of one DICOM image says; a text is "" and a tuple empty where it says nothing.

    Attributes
    ----------
    path : Path
        The file.
    sop_class, modality, photometric : str
        Kind of object, such as "CT", and of colours.
    image_type : tuple of str
        Such as ("ORIGINAL", "PRIMARY", "AXIAL").
    uid, number, description, patient : str
        Of the series: identifier, number and description; PatientID.
    instance, frame : str
        Identifiers of the image, and of the frame of reference that its positions are in.
    shape : tuple of int, (3,)
        Columns, rows, and the frames of which the file does not say where they lie; 1 for one image.
    samples : int
        Numbers a voxel.
    spacing_mm : tuple of float
        Of columns along a row, and of rows along a column: PixelSpacing turned round.
    position_mm : tuple of float
        Centre of the first voxel, LPS+.
    orientation : tuple of float
        Directions along a row and along a column, LPS+.
    rescale : tuple of float
        Slope and intercept that make Hounsfield units of the stored numbers; empty where there are none.
    place : int
        Number of the image among the frames of its file, from 0.
    """

    path: Path
    sop_class: str
    modality: str
    photometric: str
    image_type: tuple[str, ...]
    uid: str
    number: str
    description: str
    patient: str
    instance: str
    frame: str
    shape: tuple[int, int, int]
    samples: int
    spacing_mm: tuple[float, ...]
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    rescale: tuple[float, ...]
    place: int = 0

    @property
    def name(self) -> str:
        """Name for messages: the file's, and which frame it is, if it is not the first."""
        return self.path.name + (f" (frame {self.place + 1})" if self.place else "")


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM, or is a data set without it.

    One that may not be opened counts as DICOM, so that it is named when it is read.
    """
    try:
        if not path.is_file():  # a pipe would be waited for without end
            return False
        with path.open("rb") as stream:
            begin = stream.read(_PREAMBLE_BYTES + len(_MARK))
        return _has_mark(begin) or (_begins_as_data_set(begin) and bool(read_headers(path)))
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)


def read_headers(path: Path) -> tuple[ImageHeader, ...]:
    """Read the headers of the images of a DICOM file, once as long as the file does not change.

    Returns
    -------
    tuple of ImageHeader
        One, or one a frame where functional groups place each frame.

    Raises
    ------
    ValueError
        If they cannot be read. The text names the file.
    """
    check_is_file(path, "a DICOM file")
    status = path.stat()
    return _read_headers(path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def read_data_set(path: Path, tags: Sequence[str | int] = (), *, with_pixels: bool = False) -> FileDataset:
    """Read elements of a DICOM file, with or without preamble.

    Parameters
    ----------
    path : Path
        A regular file.
    tags : sequence of str or int
        Keywords or numbers of the elements; by default all.
    with_pixels : bool
        Whether to read on to the voxels.

    Raises
    ------
    Exception
        Of any kind: on damaged bytes pydicom raises errors of its own, `RecursionError`, and others.
    """
    import pydicom

    with path.open("rb") as stream:
        begin = stream.read(_PREAMBLE_BYTES + len(_MARK))
        is_bare = not _has_mark(begin) and _begins_as_data_set(begin)
        _check_inflated(stream)
        stream.seek(0)
        return pydicom.dcmread(
            stream, stop_before_pixels=not with_pixels, force=is_bare, specific_tags=list(tags)
        )


def short_line(error: BaseException) -> str:
    """Give the first line that an error says, cut where pydicom goes on with the bytes that it found."""
    return first_line(error)[:_LONGEST_ERROR]


def _has_mark(begin: bytes) -> bool:
    return begin[_PREAMBLE_BYTES:] == _MARK


def _begins_as_data_set(begin: bytes) -> bool:
    if len(begin) < 8 or begin[:2] not in _GROUPS or begin[3]:
        return False
    length = int.from_bytes(begin[4:8], "little")
    return (begin[4:6].isalpha() and begin[4:6].isupper()) or 0 < length <= _LONGEST_FIRST


def _check_inflated(stream: BinaryIO) -> None:
    """Refuse a deflated data set that is cut off or too large, before pydicom inflates it as a whole."""
    from pydicom.filereader import read_file_meta_info

    stream.seek(0)
    if _DEFLATED.encode() not in stream.read(2**12):
        return
    meta = read_file_meta_info(stream.name)
    if str(meta.get("TransferSyntaxUID", "")) != _DEFLATED:
        return
    # The length counts from behind its own element, which has 12 bytes.
    stream.seek(_PREAMBLE_BYTES + len(_MARK) + 12 + int(meta.FileMetaInformationGroupLength))
    engine, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not engine.eof and inflated <= _MOST_INFLATED:
        block = engine.unconsumed_tail or stream.read(_BLOCK_BYTES)
        if not block:
            raise ValueError("a deflated data set that is cut off")
        inflated += len(engine.decompress(block, _BLOCK_BYTES))
    if inflated > _MOST_INFLATED:
        raise ValueError(f"a deflated data set of more than {_MOST_INFLATED // 2**20} MB")


@functools.lru_cache(maxsize=2**12)  # a series is looked at when it is found, placed, measured and read
def _read_headers(path: Path, stamp: tuple[int, ...]) -> tuple[ImageHeader, ...]:
    # Whatever pydicom raises is this file's trouble. Its remarks on values that break the standard are kept.
    with named_errors(path, "a DICOM file", (Exception,), short_line), silent():
        found = read_data_set(path, _TAGS)
        headers = tuple(_frame_headers(found, _header(path, found)))
    if not (headers[0].modality or headers[0].sop_class):
        raise ValueError(f"{path}: expected a DICOM file, found one that does not say what it is.")
    return headers


def _header(path: Path, found: FileDataset) -> ImageHeader:
    def text(keyword: str) -> str:
        return str(found.get(keyword) or "").strip()

    def count(keyword: str) -> int:
        return int(found.get(keyword) or 1)

    meta = getattr(found, "file_meta", {})
    return ImageHeader(
        path=path,
        sop_class=text("SOPClassUID") or str(meta.get("MediaStorageSOPClassUID") or ""),
        modality=text("Modality"),
        photometric=text("PhotometricInterpretation"),
        image_type=_texts(found.get("ImageType")),
        uid=text("SeriesInstanceUID"),
        number=text("SeriesNumber"),
        description=text("SeriesDescription"),
        patient=text("PatientID"),
        instance=text("SOPInstanceUID"),
        frame=text("FrameOfReferenceUID"),
        shape=(count("Columns"), count("Rows"), count("NumberOfFrames")),
        samples=count("SamplesPerPixel"),
        **_of_frame(found),
    )


def _frame_headers(found: FileDataset, header: ImageHeader) -> list[ImageHeader]:
    """Give the header of each frame; that of the file if its functional groups do not place every frame."""
    groups = found.get("PerFrameFunctionalGroupsSequence") if header.modality == "CT" else None
    if not groups or len(groups) != header.shape[2]:
        return [header]
    shared = list(found.get("SharedFunctionalGroupsSequence") or ())[:1]
    shape = (*header.shape[:2], 1)
    headers = []
    for place, group in enumerate(groups):
        values = {keyword: _group_value((group, *shared), keyword) for keyword in _SEQUENCES}
        kinds = {"image_type": _texts(values["FrameType"]) or header.image_type}
        own = {name: value for name, value in _of_frame(values).items() if value}
        headers.append(dataclasses.replace(header, place=place, shape=shape, **kinds, **own))
    return headers


def _group_value(groups: Sequence[Any], keyword: str) -> Any:
    """Look an element up in the groups of a frame, then in those that all frames share."""
    for group in groups:
        for item in list(group.get(_SEQUENCES[keyword]) or ())[:1]:
            if item.get(keyword) is not None:
                return item.get(keyword)
    return None


def _of_frame(values: Any) -> dict[str, tuple[float, ...]]:
    slope, intercept = values.get("RescaleSlope"), values.get("RescaleIntercept")
    is_rescaled = slope is not None or intercept is not None
    return {
        "spacing_mm": _numbers(values.get("PixelSpacing"), 2)[::-1],
        "position_mm": _numbers(values.get("ImagePositionPatient"), 3),
        "orientation": _numbers(values.get("ImageOrientationPatient"), 6),
        "rescale": (
            float(1 if slope is None else slope),
            float(0 if intercept is None else intercept),
        )
        * is_rescaled,
    }


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value or ()
    return tuple(str(each).upper() for each in values)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """Give the numbers of a field, or nothing if it has not as many finite ones as it should."""
    values = () if value is None or isinstance(value, str | float) else tuple(float(each) for each in value)
    return values if len(values) == count and np.isfinite(values).all() else ()
