"""DICOM series for the tests, written with pydicom slice by slice, and as frames of one file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Sequence_
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from utils.imaging.volume import Volume

#: 20 degrees about the left-right axis, then 10 about the inferior-superior one: an oblique scan.
_SIDE, _TURN = np.radians(20), np.radians(10)
OBLIQUE = np.array(
    [[np.cos(_TURN), -np.sin(_TURN), 0], [np.sin(_TURN), np.cos(_TURN), 0], [0, 0, 1]]
) @ np.array([[1, 0, 0], [0, np.cos(_SIDE), -np.sin(_SIDE)], [0, np.sin(_SIDE), np.cos(_SIDE)]])


def write_series(folder: Path, ct: Volume, *, names: list[str] | None = None, **changes) -> list[Path]:
    """Write a CT as a series, numbers stored as unsigned ones with 1024 added.

    The third axis of the volume must be the cross product of the first two, as a reader stacks slices.
    `changes` are DICOM keywords; a function is called with the slice's number.
    """
    lps = np.diag([-1.0, -1, 1, 1]) @ ct.affine
    common = {"SeriesInstanceUID": generate_uid(), "SeriesNumber": 3, "PatientID": "P-01"}
    files = []
    for index in range(ct.shape[2]):
        position = lps[:3, 3] + index * lps[:3, 2]
        slice_ = _slice(ct.data[..., index].T + 1024, lps, position)
        for keyword, value in {**common, **changes}.items():
            value = value(index) if callable(value) else value
            if value is None:
                delattr(slice_, keyword)
            else:
                setattr(slice_, keyword, value)
        files.append(folder / (names[index] if names else f"IM{index:04}"))
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        slice_.save_as(files[-1], enforce_file_format=True)
    return files


def write_enhanced(path: Path, ct: Volume, *, shared: Sequence[str] = (), **changes) -> Path:
    """Write a CT as one file with a frame a slice (enhanced CT), those of odd numbers first.

    `shared` names the functional groups that all frames share; `changes` are as those of `write_series`.
    """
    files = write_series(path.parent / "frames", ct, **changes)
    slices = [pydicom.dcmread(file) for file in (*files[1::2], *files[::2])]
    for file in files:
        file.unlink()
    found = slices[0]
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = EnhancedCTImageStorage
    found.NumberOfFrames = len(slices)
    found.PixelData = b"".join(each.PixelData for each in slices)
    groups = [_groups(each) for each in slices]
    common = Dataset()
    for name in shared:
        setattr(common, name, getattr(groups[0], name))
        for group in groups:
            delattr(group, name)
    found.SharedFunctionalGroupsSequence = Sequence_([common])
    found.PerFrameFunctionalGroupsSequence = Sequence_(groups)
    for keyword in sum(GROUPS.values(), ()):
        if keyword in found:
            delattr(found, keyword)
    found.save_as(path, enforce_file_format=True)
    return path


#: The functional groups of a frame, with the elements that an image of its own has in its header.
GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}


def _groups(slice_: Dataset) -> Dataset:
    found = Dataset()
    for name, keywords in GROUPS.items():
        item = Dataset()
        for keyword in keywords:
            setattr(item, keyword, slice_.get(keyword))
        setattr(found, name, Sequence_([item]))
    kind = Dataset()
    kind.FrameType = slice_.ImageType
    found.CTImageFrameTypeSequence = Sequence_([kind])
    return found


def write_bare(file: Path, *, is_implicit: bool = True) -> None:
    """Take preamble and file meta information from a file."""
    found = pydicom.dcmread(file)
    del found.file_meta
    pydicom.dcmwrite(file, found, implicit_vr=is_implicit, little_endian=True)


def compress(file: Path, kind: str) -> None:
    """Compress the image of a file without loss: "RLE" by pydicom, "JPEG" or "JPEG2000" by GDCM."""
    found = pydicom.dcmread(file)
    if kind == "RLE":
        found.compress(RLELossless)
    else:
        with tempfile.TemporaryDirectory() as folder:  # SimpleITK ends the process on names that are no text
            writer = SimpleITK.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.SetFileName(f"{folder}/1.dcm")
            writer.UseCompressionOn()
            writer.SetCompressor(kind)
            writer.Execute(SimpleITK.GetImageFromArray(found.pixel_array[None]))
            encoded = pydicom.dcmread(f"{folder}/1.dcm")
        found.PixelData = encoded.PixelData
        found["PixelData"].VR, found["PixelData"].is_undefined_length = "OB", True
        found.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
    found.save_as(file, enforce_file_format=True)


def _slice(stored: np.ndarray, lps: np.ndarray, position: np.ndarray) -> Dataset:
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = CTImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = generate_uid()
    found.Modality, found.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    found.Rows, found.Columns = stored.shape
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 16, 15, 0
    found.RescaleSlope, found.RescaleIntercept = 1, -1024
    # Columns are the first axis of a volume: DICOM gives the distance of rows first.
    found.PixelSpacing = texts(spacing[[1, 0]])
    found.ImageOrientationPatient = texts((lps[:3, :2] / spacing[:2]).T.ravel())
    found.ImagePositionPatient = texts(position)
    found.PixelData = np.ascontiguousarray(stored, np.uint16).tobytes()
    return found


def texts(numbers: np.ndarray) -> list[str]:
    """Decimal strings, which DICOM limits to 16 characters."""
    return [f"{number:.10f}"[:16] for number in numbers]
