"""Masks of DICOM series as DICOM segmentations (SEG), one segment a vertebra; highdicom writes them.

A frame of the object is a slice of the series, where that slice lies: nothing is resampled. Patient and study
are those of the first slice, as the standard wants it.

Codes are SNOMED CT's as DICOM's context groups list them: the vertebrae of CID 7603 (C1 to L5); "Vertebra" of
CID 7192 for the levels that it lacks (T13, L6) and for vertebrae that are only counted; parts of the spine of
CID 4. pydicom's dictionary of the standard holds them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.files import written_whole
from utils.imaging.dicom import Series, series_grid, series_slices
from utils.imaging.dicom_headers import ImageHeader, read_data_set, read_headers, short_line
from utils.imaging.grids import SAME_GRID_VOXELS, voxels_apart
from utils.imaging.quiet import silent
from utils.imaging.volume import Volume
from utils.prediction.snapshot import colour_of
from utils.verse.labels import LEVEL_NAMES, MAX_CODE, rank_of_code

if TYPE_CHECKING:
    from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset
    from pydicom.sr.coding import Code

DICOM_SEG = "dicom-seg"
DICOM_SEG_SUFFIX = "_seg-vert_msk.dcm"

_PACKAGE, _REQUIREMENTS = "highdicom", "requirements-seg.txt"
_PROGRAM = "vertebra-segmentation"
_DESCRIPTION = "Vertebrae, found automatically; for research only"
#: Above those of scanners, so that it stands behind their series.
_SERIES_NUMBER = 1000
#: What an image is referred to by, and where its header holds it.
_IDENTITY = {
    "SOPClassUID": "sop_class",
    "SOPInstanceUID": "instance",
    "SeriesInstanceUID": "uid",
    "FrameOfReferenceUID": "frame",
}
#: Of patient and study: what may be empty, but must be there.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
_PARTS_OF_SPINE = {"C": "CervicalSpine", "T": "ThoracicSpine", "L": "LumbarSpine"}

# Without a handler its remarks would go to the terminal; a program that asks for logs still gets them.
logging.getLogger(_PACKAGE).addHandler(logging.NullHandler())


def check_package() -> None:
    """Raise a `ValueError` that says what to install if highdicom is not there."""
    if importlib.util.find_spec(_PACKAGE) is None:
        raise ValueError(
            f"expected {_PACKAGE} for --formats {DICOM_SEG}, found it not installed: "
            f"pip install -r {_REQUIREMENTS}"
        )


def check_source(path: Path, series: Sequence[Path]) -> None:
    """Refuse a scan of which no DICOM segmentation can be made, before it is segmented.

    Parameters
    ----------
    path : Path
        The scan, for the message.
    series : sequence of Path
        Its files, if it is a DICOM series.

    Raises
    ------
    ValueError
        If it is none, or its headers lack what a segmentation refers to, or break the standard.
    """
    if not series:
        raise ValueError(f"{path}: expected DICOM for --formats {DICOM_SEG}, found another format.")
    # What goes wrong does so with the first slices: what must hold of all of them has been looked at.
    some = Series(_checked_slices(series).headers[:2])
    found = _segmentation(some, np.zeros((len(some.headers), 1, 1), np.uint8), {}, gap_mm=1.0)
    with _named_errors(some), silent():
        found.save_as(io.BytesIO())


def write_dicom_seg(
    path: Path, labels: Volume, name_of: Callable[[int], str], *, series: Sequence[Path]
) -> None:
    """Write labels as a DICOM segmentation of a series, whole or not at all.

    Parameters
    ----------
    path : Path
        File ending in .dcm.
    labels : Volume of uint8
        Labels on the grid of the series, 0 outside. Without any there is one segment, which is empty.
    name_of : callable
        Name of a label.
    series : sequence of Path
        Files of the series that the labels are of.

    Raises
    ------
    ValueError
        If the labels do not lie on the series, or as `check_source`.
    """
    slices, grid = _checked_slices(series), series_grid(series)
    if labels.shape != grid.shape or voxels_apart(grid, labels.affine) > SAME_GRID_VOXELS:
        raise ValueError(
            f"{slices.name}: expected a mask on its grid, {grid.shape}, found {labels.shape}, or moved."
        )
    codes = sorted(labels.label_boxes, key=rank_of_code)  # from the top down
    number_of = np.zeros(MAX_CODE + 1, np.uint8)
    number_of[codes] = np.arange(1, len(codes) + 1)
    # Columns of an image are the first axis of a volume, rows the second. Plane by plane, as NumPy makes
    # indices eight times as large.
    planes = np.stack([number_of[plane] for plane in labels.data.T])
    names = {code: name_of(code) for code in codes}
    found = _segmentation(slices, planes, names, gap_mm=float(grid.spacing_mm[2]))
    with written_whole(path, suffix=".dcm") as temporary, silent():
        found.save_as(temporary)


def _segmentation(
    slices: Series, planes: np.ndarray, names: Mapping[int, str], *, gap_mm: float
) -> Segmentation:
    """Make the object of segment numbers (slices, rows, columns) and the names of labels, first to last."""
    from highdicom import UID
    from highdicom.seg import Segmentation

    from utils.command_line import citation_of

    version = citation_of("version") or "unknown"
    described = enumerate(names.items() if names else [(0, "Vertebra")], start=1)
    with _named_errors(slices), silent():
        sources = _sources(slices, planes.shape[1:], gap_mm)
        places = [header.place for header in slices.headers]
        found = Segmentation(
            sources,
            planes if len(sources) > 1 else planes[np.argsort(places)],
            "BINARY",
            [_segment(number, code, name, version) for number, (code, name) in described],
            series_instance_uid=UID(),
            series_number=_SERIES_NUMBER,
            series_description="Vertebrae",
            sop_instance_uid=UID(),
            instance_number=1,
            manufacturer=_PROGRAM,
            manufacturer_model_name=_PROGRAM,
            software_versions=version,
            device_serial_number="none",
            content_label="VERTEBRAE",
            content_description=_DESCRIPTION,
            omit_empty_frames=bool(names),
        )
    found.ContentCreatorName = None  # no person, but the standard wants the element
    return found


def _checked_slices(series: Sequence[Path]) -> Series:
    """Give the slices of a series, if others can refer to each of them."""
    slices = series_slices(series)
    files, headers = slices.files, slices.headers
    with _named_errors(slices):
        for header, (keyword, field) in itertools.product(headers, _IDENTITY.items()):
            if not getattr(header, field):
                raise ValueError(f"no {keyword} in {header.name}")
        frames = len(read_headers(files[0]))
        if len(files) != len(headers) and (len(files), frames) != (1, len(headers)):
            raise ValueError(f"{len(headers)} slices in {len(files)} files, the first with {frames} frames")
    return slices


@contextlib.contextmanager
def _named_errors(slices: Series) -> Iterator[None]:
    """Say which series breaks the standard: highdicom and pydicom have errors of many kinds for it."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{slices.name}: expected headers as a DICOM segmentation needs them, found: "
            f"{short_line(error).rstrip('.')}. Without --formats {DICOM_SEG} it can be segmented."
        ) from None


# Segments ------------------------------------------------------------------------------------------


def _segment(number: int, code: int, name: str, version: str) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    family = codes.DCM.ArtificialIntelligence
    red, green, blue = np.rint(255 * colour_of(code)).astype(int).tolist()
    kind, part = _codes_of(name)
    found = SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.cid7150.AnatomicalStructure,
        segmented_property_type=kind,
        anatomic_regions=[part],
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(_PROGRAM, family, version),
        display_color=CIELabColor.from_rgb(red, green, blue),
    )
    found.SegmentDescription = f"Label {code} in the NIfTI mask" if code else "No vertebra was found"
    return found


def _codes_of(name: str) -> tuple[Code, Code]:
    """Give what a vertebra of a name is, and which part of the spine it belongs to."""
    from pydicom.sr.codedict import codes

    is_level = name in LEVEL_NAMES
    part = getattr(codes.cid4, _PARTS_OF_SPINE[name[0]] if is_level else "Spine")
    return getattr(codes.cid7603, f"{name}Vertebra", codes.cid7192.Vertebra), part


# The series ----------------------------------------------------------------------------------------


def _sources(slices: Series, shape: Sequence[int], gap_mm: float) -> list[Dataset]:
    """Give what highdicom asks of the images of a series: one each, or one with all frames of a file.

    It wants equal directions, the same for all frames, and a slice thickness. Scanners write other headers;
    `series_slices` has found that these are even, so what it found is handed over.
    """
    first = _patient_and_study(slices.headers[0])
    are_frames = len(slices.files) < len(slices.headers)
    sources = [_image_of_frames(slices, gap_mm)] if are_frames else _images(slices, gap_mm)
    for source in sources:
        source.Rows, source.Columns = shape
        source.StudyInstanceUID = first.StudyInstanceUID
    first.update(sources[0])
    return [first, *sources[1:]]


def _patient_and_study(header: ImageHeader) -> Dataset:
    """Read all that the file of an image says beside its voxels."""
    found = read_data_set(header.path)
    if not found.get("StudyInstanceUID"):
        raise ValueError(f"no StudyInstanceUID in {header.name}")
    for keyword in _MAY_BE_EMPTY:
        if keyword not in found:
            setattr(found, keyword, None)
    return found


def _images(slices: Series, gap_mm: float) -> list[Dataset]:
    images = []
    for header in slices.headers:
        image = _identity(header)
        for group in (_measures(slices, gap_mm), _orientation(slices), _position(header)):
            image.update(group[0])
        images.append(image)
    return images


def _image_of_frames(slices: Series, gap_mm: float) -> Dataset:
    """Give one image whose frames are the slices, in the order in which they stand in their file."""
    from pydicom import Dataset

    headers = sorted(slices.headers, key=lambda header: header.place)
    image, shared = _identity(headers[0]), Dataset()
    shared.PixelMeasuresSequence = _measures(slices, gap_mm)
    shared.PlaneOrientationSequence = _orientation(slices)
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for header in headers:
        group = Dataset()
        group.PlanePositionSequence = _position(header)
        image.PerFrameFunctionalGroupsSequence.append(group)
    image.NumberOfFrames = len(headers)
    return image


def _identity(header: ImageHeader) -> Dataset:
    """Give what others refer to an image by."""
    from pydicom import Dataset

    image = Dataset()
    for keyword, field in _IDENTITY.items():
        setattr(image, keyword, getattr(header, field))
    image.Modality = header.modality
    return image


def _measures(slices: Series, gap_mm: float) -> PixelMeasuresSequence:
    from highdicom import PixelMeasuresSequence

    # PixelSpacing gives the distance of rows first. A voxel of the mask is as thick as slices lie apart.
    return PixelMeasuresSequence(slices.headers[0].spacing_mm[::-1], gap_mm, gap_mm)


def _orientation(slices: Series) -> PlaneOrientationSequence:
    from highdicom import PlaneOrientationSequence

    return PlaneOrientationSequence("PATIENT", slices.headers[0].orientation)


def _position(header: ImageHeader) -> PlanePositionSequence:
    from highdicom import PlanePositionSequence

    return PlanePositionSequence("PATIENT", header.position_mm)
