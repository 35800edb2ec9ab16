"""DICOM: what the header of an image says. pydicom reads it, imported where it is needed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.imaging.file_checks import READ_ERRORS, named_errors
from utils.imaging.quiet import silent

_PREAMBLE_BYTES = 128
_TAGS = (
    *("SOPClassUID", "Modality", "ImageType", "SamplesPerPixel", "PhotometricInterpretation"),
    *("SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("PatientID", "FrameOfReferenceUID"),
    *("Rows", "Columns", "NumberOfFrames", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
)
#: What pydicom raises on a broken file, beside its own InvalidDicomError.
_READ_ERRORS = (*READ_ERRORS, AttributeError, NotImplementedError, struct.error)


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
        Columns, rows, frames.
    samples : int
        Numbers a voxel.
    spacing_mm : tuple of float
        Of columns along a row, and of rows along a column: PixelSpacing turned round.
    position_mm : tuple of float
        Centre of the first voxel, LPS+.
    orientation : tuple of float
        Directions along a row and along a column, LPS+.
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


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM after its preamble; False for what cannot be read."""
    try:
        if not path.is_file():  # a pipe would be waited for without end
            return False
        with path.open("rb") as stream:
            stream.seek(_PREAMBLE_BYTES)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def read_header(path: Path) -> ImageHeader:
    """Read the header of a DICOM file.

    Raises
    ------
    ValueError
        If it cannot be read. The text names the file.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    errors = (*_READ_ERRORS, InvalidDicomError)
    with named_errors(path, "a DICOM file", errors), silent():  # remarks on values that break the standard
        found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        header = _header(path, found)
    if not (header.modality or header.sop_class):
        raise ValueError(f"{path}: expected a DICOM file, found one that does not say what it is.")
    return header


def _header(path: Path, found: Any) -> ImageHeader:
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
        spacing_mm=_numbers(found.get("PixelSpacing"), 2)[::-1],
        position_mm=_numbers(found.get("ImagePositionPatient"), 3),
        orientation=_numbers(found.get("ImageOrientationPatient"), 6),
    )


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value or ()
    return tuple(str(each).upper() for each in values)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """Give the numbers of a field, or nothing if it has not as many finite ones as it should."""
    values = () if value is None or isinstance(value, str | float) else tuple(float(each) for each in value)
    return values if len(values) == count and np.isfinite(values).all() else ()
