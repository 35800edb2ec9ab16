"""DICOM series for the tests, written with pydicom slice by slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

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
