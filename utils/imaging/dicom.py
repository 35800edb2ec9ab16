"""DICOM: which series of a folder are CT scans, and a series as a volume.

`dicom_headers` reads what images say, `dicom_pixels` their voxels. The grid comes from the positions of the
slices alone: neither the order of files or frames nor the declared slice thickness matters. A series that is
no even, right-angled stack is refused, since any guess would bend the spine.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.files import sha256_of
from utils.imaging.dicom_headers import ImageHeader, read_headers
from utils.imaging.dicom_pixels import read_planes
from utils.imaging.itk_images import MAX_SLANT_DEGREES, check_grid, flipped_world
from utils.imaging.volume import Grid, Volume

#: Series of fewer images are localisers, test shots or bolus tracking.
MIN_SLICES = 10

#: Largest distance of a slice from its place in an even stack, in slice spacings; as for grids that agree.
_MAX_OFF_PLACE = 0.1
#: Positions and spacings that differ by less are the same: headers hold them as rounded text.
_SAME_MM = 1e-3
_SAME_DIRECTION = 1e-3
_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class Series:
    """The images of one CT series.

    Attributes
    ----------
    headers : tuple of ImageHeader
        One an image, in the order in which they were found.
    left_out : tuple of str
        How many of its images are not among them, for each reason.
    """

    headers: tuple[ImageHeader, ...]
    left_out: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The images' files, each once: one may hold many frames."""
        return tuple(dict.fromkeys(header.path for header in self.headers))

    @property
    def folder(self) -> Path:
        """The innermost folder that holds all its files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    @property
    def name(self) -> str:
        """Name for messages: folder, number and description."""
        first = self.headers[0]
        description = f" ({first.description})" if first.description else ""
        return f"{self.folder}: series {first.number or '?'}{description}"


@dataclass(frozen=True)
class FoundSeries:
    """The series among files.

    Attributes
    ----------
    scans : tuple of Series
        CT scans.
    skipped, bad : tuple of str
        A line for every series or image that is no CT scan, with the reason; and for every file that
        cannot be read.
    """

    scans: tuple[Series, ...]
    skipped: tuple[str, ...]
    bad: tuple[str, ...]


def find_series(files: Iterable[Path]) -> FoundSeries:
    """Group DICOM files by series, and tell CT scans from all else.

    Parameters
    ----------
    files : iterable of Path
        DICOM files in any order, of any kinds.

    Returns
    -------
    FoundSeries
        Scans in the order of their numbers, each of one patient and frame of reference. Of images exported
        twice (same SOPInstanceUID, same bytes) one is taken. Images that are localisers, derived,
        secondary or in colour are left out of their series; what then has fewer than
        `MIN_SLICES` is skipped, as is any other modality. Geometry is looked at when a series is read.
    """
    groups: dict[tuple[str, ...], list[ImageHeader]] = {}
    bad = []
    for path in files:
        try:
            headers = read_headers(path)
        except ValueError as error:
            bad.append(str(error))
            continue
        first = headers[0]
        if first.sop_class != _DIRECTORY:
            # An anonymiser may give all series one identifier.
            identity = (first.uid or str(path.parent), first.patient, first.frame)
            groups.setdefault(identity, []).extend(headers)
    scans, skipped = [], []
    for group in sorted(groups.values(), key=lambda headers: _order(headers[0])):
        once = _without_copies(group)
        copies = f"{len(group) - len(once)} of {len(group)} images left out: copies of others"
        left_out = (f"{copies} (same SOPInstanceUID, same bytes)",) if len(once) < len(group) else ()
        scan, said = _scan_among(Series(once, left_out))
        scans += scan
        skipped += [*said, *(f"{Series(once).name}: {text}." for text in left_out)]
    return FoundSeries(tuple(scans), tuple(skipped), tuple(bad))


def read_series(files: Sequence[Path]) -> Volume:
    """Read one series as a CT in Hounsfield units.

    Parameters
    ----------
    files : sequence of Path
        Its files, in any order; of their images, those that are slices of a CT scan.

    Returns
    -------
    Volume
        Axes along rows, along columns, and from slice to slice along their normal. Rescaled as each image
        says; numbers as `hu_numbers` gives them.

    Raises
    ------
    ValueError
        If an image cannot be read, or if the images are no single, even, right-angled stack: several images
        at one position, slices missing, a tilted gantry. The text names the series and what was found.
    """
    series = _slices_of(files)
    stack, affine = _stacked(series)
    volume = Volume(np.stack(read_planes(stack)).T, flipped_world(affine))
    check_grid(series.name, volume.grid)
    return volume


def series_grid(files: Sequence[Path]) -> Grid:
    """Give the grid of a series from its headers; errors as `read_series`."""
    series = _slices_of(files)
    stack, affine = _stacked(series)
    return Grid((*series.headers[0].shape[:2], len(stack)), flipped_world(affine))


def series_slices(files: Sequence[Path]) -> Series:
    """Give the slices of a series in the order of the third axis of `read_series`; errors as there."""
    return Series(tuple(_stacked(_slices_of(files))[0]))


def series_bytes(files: Sequence[Path]) -> int:
    """Give the size that a series has in memory as float32, from headers; 0 if these cannot be read."""
    try:
        return 4 * sum(math.prod(header.shape) for path in files for header in read_headers(path))
    except ValueError:
        return 0


def _order(header: ImageHeader) -> tuple[int, str, str]:
    return (int(header.number) if header.number.isdecimal() else 0, header.number, header.uid)


def _without_copies(headers: Sequence[ImageHeader]) -> tuple[ImageHeader, ...]:
    """Take each image once; only files that share an identifier are read."""
    times = Counter(instance for instance, _ in {(header.instance, header.path) for header in headers})
    hashes: dict[Path, str] = {}
    kept: dict[tuple[str, str, int], ImageHeader] = {}
    for header in headers:
        content = str(header.path)
        if header.instance and times[header.instance] > 1:
            content = hashes.get(header.path) or hashes.setdefault(header.path, sha256_of(header.path))
        kept.setdefault((header.instance, content, header.place), header)
    return tuple(kept.values())


def _scan_among(series: Series) -> tuple[list[Series], list[str]]:
    """Give the CT scan of a series, if there is one, and what is said about images left out."""
    reasons = [_why_no_slice(header) for header in series.headers]
    slices = tuple(header for header, reason in zip(series.headers, reasons) if not reason)
    others = ", ".join(dict.fromkeys(filter(None, reasons)))
    images = sum(header.shape[2] for header in slices)
    if images >= MIN_SLICES:
        left_out = len(reasons) - len(slices)
        said = [f"{left_out} of {len(reasons)} images left out: {others}"] if left_out else []
        return [Series(slices, (*series.left_out, *said))], [f"{series.name}: {text}." for text in said]
    few = f"{images} images, fewer than {MIN_SLICES}" if slices else ""
    return [], [f"{series.name}: skipped: {', '.join(filter(None, (few, others)))}."]


def _why_no_slice(header: ImageHeader) -> str:
    """Give the reason why an image is no slice of a CT scan; "" if it is one."""
    kinds = header.image_type
    if header.modality != "CT":
        return f"modality {header.modality or 'unknown'}, not CT"
    if "LOCALIZER" in kinds:
        return "a localiser"
    if header.samples != 1 or header.photometric not in ("MONOCHROME2", ""):
        return f"no Hounsfield units but colours ({header.photometric or header.samples})"
    if kinds[1:2] == ("SECONDARY",) or header.sop_class.startswith(_SECONDARY_CAPTURE):
        return "a secondary image, such as a screenshot"
    return "derived from other images (convert it to NIfTI to use it)" if kinds[:1] == ("DERIVED",) else ""


# Geometry ------------------------------------------------------------------------------------------


def _slices_of(files: Sequence[Path]) -> Series:
    """Give the slices in the files of a series, of which all are of one kind and size."""
    headers = []
    for path in files:
        found = read_headers(path)  # of many frames, some may be localisers
        headers += [header for header in found if not _why_no_slice(header)] or found
    series = Series(tuple(headers))
    _check_images_alike(series)
    return series


def _check_images_alike(series: Series) -> None:
    if len(series.headers) < MIN_SLICES:
        raise _refused(series, f"at least {MIN_SLICES} images", str(len(series.headers)))
    for expected, found in _unlike(series.headers):
        raise _refused(series, expected, found)


def _unlike(headers: Sequence[ImageHeader]) -> Iterator[tuple[str, str]]:
    """Give why images make no stack: what was expected, and found."""
    first = headers[0]
    known: dict[tuple[str, int], ImageHeader] = {}
    for header in headers:
        name = header.name
        twin = known.setdefault((header.instance, header.place), header)
        if header.instance and twin is not header:
            yield "images of unlike identifiers", f"{twin.name} and {name} with one and unlike content"
        if bool(header.rescale) != bool(first.rescale):
            yield "RescaleSlope and RescaleIntercept in all images or in none", f"one without beside {name}"
        if header.shape[2] != 1:
            yield "a file a slice", f"{header.shape[2]} frames in {name}; convert it to NIfTI"
        if not (header.position_mm and header.orientation and header.spacing_mm):
            yield "position, orientation and spacing of every image", f"none in {name}"
        if header.shape != first.shape:
            yield "images of one size", f"{first.shape[:2]} and, in {name}, {header.shape[:2]}"
        if not np.allclose(header.orientation, first.orientation, rtol=0, atol=_SAME_DIRECTION):
            yield "images of one orientation", f"{first.orientation} and, in {name}, {header.orientation}"
        if not np.allclose(header.spacing_mm, first.spacing_mm, rtol=0, atol=_SAME_MM):
            yield "images of one spacing", f"{first.spacing_mm} and, in {name}, {header.spacing_mm} mm"


def _stacked(series: Series) -> tuple[list[ImageHeader], np.ndarray]:
    """Sort the images along their normal; gives them with the affine (4, 4) of the stack, to LPS+."""
    first = series.headers[0]
    in_plane = np.reshape(first.orientation, (2, 3))
    normal = np.cross(*in_plane)
    stack = sorted(series.headers, key=lambda header: float(normal @ header.position_mm))
    positions = np.array([header.position_mm for header in stack])
    _check_one_image_a_position(series, positions @ normal)
    step = (positions[-1] - positions[0]) / (len(stack) - 1)
    _check_no_tilt(series, step, normal)
    _check_even(Series(tuple(stack)), positions, normal)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([*(in_plane * np.reshape(first.spacing_mm, (2, 1))), step], axis=1)
    affine[:3, 3] = positions[0]
    return stack, affine


def _check_one_image_a_position(series: Series, heights: np.ndarray) -> None:
    places = 1 + int((np.diff(heights) > _SAME_MM).sum())
    if places < len(heights):
        found = f"{len(heights)} images at {places} positions (several phases, or copies)"
        raise _refused(series, "one image a position", found)


def _check_no_tilt(series: Series, step: np.ndarray, normal: np.ndarray) -> None:
    cosine = abs(step @ normal) / (np.linalg.norm(step) * np.linalg.norm(normal))
    tilt = float(np.degrees(np.arccos(min(1.0, cosine))))
    if tilt > MAX_SLANT_DEGREES:
        found = f"them shifted by {tilt:.1f} degrees (a tilted gantry); straighten it, as dcm2niix does"
        raise _refused(series, "slices one above the other", found)


def _check_even(stack: Series, positions: np.ndarray, normal: np.ndarray) -> None:
    """Refuse gaps: a missing slice moves some slice of the stack by half a spacing or more."""
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    off_mm = np.linalg.norm(positions - np.linspace(positions[0], positions[-1], len(positions)), axis=1)
    if off_mm.max() <= _MAX_OFF_PLACE * usual:
        return
    worst = int(np.abs(gaps - usual).argmax())
    between = f"{stack.headers[worst].name} and {stack.headers[worst + 1].name}"
    found = f"{gaps[worst]:.2f} mm between {between} (a missing slice, or parts of unlike spacing)"
    raise _refused(stack, f"slices {usual:.2f} mm apart throughout", found)


def _refused(series: Series, expected: str, found: str) -> ValueError:
    return ValueError(f"{series.name}: expected {expected}, found {found}.")
