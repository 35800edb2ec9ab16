"""DICOM series that hold one scan in other forms, written with pydicom; see `wrapping_files`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import RLELossless, generate_uid

from tests.imaging.dicom_series import texts, write_series
from tests.prediction.wrapping_files import padded, stored_as
from utils.imaging.volume import Volume

#: Orders of voxels in which slices follow one another along their normal, as `write_series` needs them.
AXIAL, SAGITTAL, PRONE, FEET_FIRST = "LPS", "PIR", "RAS", "LAI"
#: -2000 as unsigned number of 16 bits.
UNSIGNED_PADDING = 63536
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def series(ct: Volume, folder: Path, axes: str = AXIAL, **changes) -> Path:
    """Write a series, in any of the orders above; `changes` as in `write_series`."""
    write_series(folder, stored_as(ct, axes), **{"PatientID": folder.name, **changes})
    return folder


def shuffled(ct: Volume, folder: Path) -> Path:
    """Name the slices by numbers that say nothing of their order, without an ending."""
    slices = stored_as(ct, AXIAL)
    order = np.random.default_rng(5).permutation(slices.shape[2])
    write_series(folder, slices, names=[f"{number:08X}" for number in 7919 * (order + 3)])
    return folder


def signed(ct: Volume, folder: Path) -> Path:
    """Store signed numbers without an intercept, among planes of -2000 that PixelPaddingValue names."""
    slices = stored_as(padded(ct, -2000), AXIAL)
    planes = slices.data.astype("<i2")
    changes = {"PixelRepresentation": 1, "RescaleIntercept": 0, "PixelPaddingValue": -2000}
    return series(
        slices,
        folder,
        PixelData=lambda index: np.ascontiguousarray(planes[..., index].T).tobytes(),
        **changes,
    )


def unsigned_padding(ct: Volume, folder: Path, *, named: bool) -> Path:
    """Surround the scan by -2000 written unsigned, which PixelPaddingValue names or does not."""
    changes = {"PixelPaddingValue": UNSIGNED_PADDING} if named else {}
    return series(padded(ct, UNSIGNED_PADDING - 1024), folder, **changes)  # write_series adds 1024


def without_preamble(ct: Volume, folder: Path) -> Path:
    """Leave the data sets alone: no preamble, no mark, no file meta information, implicit little endian."""
    for path in slices_of(series(ct, folder)):
        found = pydicom.dcmread(path)
        found.preamble = None
        del found.file_meta
        pydicom.dcmwrite(path, found, implicit_vr=True, little_endian=True)
    return folder


def exported_twice(ct: Volume, folder: Path) -> Path:
    """Copy three slices under other names."""
    for path in slices_of(series(ct, folder))[4:7]:
        shutil.copy(path, path.with_name(f"{path.name} (1)"))
    return folder


def run_length(ct: Volume, folder: Path) -> Path:
    """Compress every slice by its runs of equal bytes."""
    for path in slices_of(series(ct, folder)):
        found = pydicom.dcmread(path)
        found.compress(RLELossless, generate_instance_uid=False)
        found.save_as(path)
    return folder


def in_two_folders(ct: Volume, folder: Path) -> Path:
    """Lay every second slice into a folder of its own, as some media do."""
    slices = stored_as(ct, AXIAL)
    write_series(folder, slices, names=[f"{index % 2}/{index:04}.dcm" for index in range(slices.shape[2])])
    return folder


def multi_frame(ct: Volume, folder: Path) -> Path:
    """Write one file of enhanced CT with all slices as its frames."""
    first = slices_of(series(ct, folder))[0]
    found, slices = pydicom.dcmread(first), stored_as(ct, AXIAL)
    shutil.rmtree(folder)
    folder.mkdir()
    lps = np.diag([-1.0, -1, 1, 1]) @ slices.affine
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    found.NumberOfFrames = slices.shape[2]
    found.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    found.FrameOfReferenceUID = generate_uid()
    of_all, scaling = Dataset(), {name: found[name].value for name in ("RescaleIntercept", "RescaleSlope")}
    of_all.PixelMeasuresSequence = items(
        PixelSpacing=found.PixelSpacing, SliceThickness=texts(slices.spacing_mm[2:])[0]
    )
    of_all.PlaneOrientationSequence = items(ImageOrientationPatient=found.ImageOrientationPatient)
    of_all.PixelValueTransformationSequence = items(**scaling, RescaleType="HU")
    of_all.CTImageFrameTypeSequence = items(FrameType=found.ImageType)
    found.SharedFunctionalGroupsSequence = Items([of_all])
    found.PerFrameFunctionalGroupsSequence = Items(
        [frame_groups(index, lps[:3, 3] + index * lps[:3, 2]) for index in range(slices.shape[2])]
    )
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", *scaling):
        delattr(found, name)
    found.PixelData = np.ascontiguousarray((slices.data.astype(np.int32) + 1024).T, "<u2").tobytes()
    found.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder


def frame_groups(index: int, position_mm: np.ndarray) -> Dataset:
    """Give what is told of one frame alone."""
    groups = Dataset()
    groups.FrameContentSequence = items(
        StackID="1", InStackPositionNumber=index + 1, DimensionIndexValues=[1, index + 1]
    )
    groups.PlanePositionSequence = items(ImagePositionPatient=texts(position_mm))
    return groups


def items(**values) -> Items:
    """Give a sequence of one item."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Items([item])


# Refused -------------------------------------------------------------------------------------------


def tilted(ct: Volume, folder: Path) -> Path:
    """Shift each slice in front of the one below, as a tilted gantry does."""
    slices = stored_as(ct, AXIAL)
    lps = np.diag([-1.0, -1, 1, 1]) @ slices.affine
    slope = np.tan(np.radians(15)) * slices.spacing_mm[2] * lps[:3, 1] / slices.spacing_mm[1]
    step = lps[:3, 2] + slope
    return series(ct, folder, ImagePositionPatient=lambda index: texts(lps[:3, 3] + index * step))


def with_a_gap(ct: Volume, folder: Path) -> Path:
    """Lose a slice."""
    slices_of(series(ct, folder))[5].unlink()
    return folder


def slices_of(folder: Path) -> Sequence[Path]:
    """Give the files of a series, in the order in which they were written."""
    return sorted(folder.iterdir())
